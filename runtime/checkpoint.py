"""
Checkpoints: written complete or not at all, read with every byte checked, and nothing in them executed.

    save_checkpoint(path, {'model': ..., ...})    # tensors and JSON types; atomic
    state = load_checkpoint(find_checkpoint('out/burgers_cpu'))

    $ python -m runtime.checkpoint out/burgers_cpu pretrained/burgers_cpu.pt    # to give away: see ship
"""
import contextlib
import io
import os
import re
import sys
import zipfile

import torch

from runtime.configurator import UserError, one_line_errors, say
from runtime.paths import output_file, temporary_name

FORMAT = 'nanoupt'
FORMAT_VERSION = 5


def half_written(path):
    """Where a file is written that will be renamed to `path`, if no other process writes it."""
    return path + '.tmp'


@contextlib.contextmanager
def whole_file(path, mode='w', shared=False, **options):
    """A file open for writing that takes its name complete or not at all: a temporary file in the same
    directory is flushed to disk and renamed over the old one. shared: other processes may write the same
    file meanwhile. Raises UserError where the disk is full or may not be written."""
    temporary = temporary_name(path) if shared else half_written(path)
    if 'b' not in mode:
        options['encoding'] = 'utf-8'
    try:
        with open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = 'the last good one is kept' if os.path.exists(path) else 'none was saved before'
        raise UserError(f"could not save '{path}': {error.strerror}; {kept}") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    if hasattr(os, 'O_DIRECTORY'):               # Windows opens no folders
        folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)                     # the rename itself
        finally:
            os.close(folder)


def save_checkpoint(path, state):
    """Write `state` (tensors and JSON types) to `path`, complete or not at all."""
    content = io.BytesIO()                       # torch.save itself does not explain a full disk
    torch.save({'format': FORMAT, 'version': FORMAT_VERSION, **state}, content)
    with whole_file(path, 'wb') as file:
        file.write(content.getbuffer())


def ship(run, path):
    """Write the checkpoint of a run to `path` as it is given away: its averaged weights alone, without the
    places of this machine."""
    state = load_checkpoint(find_checkpoint(run))
    output_file('FILE', path)
    members = state['data'].get('members', {})
    for about in (state['data'], *members.values()):
        names = [os.path.basename(name) for name in about['paths']]
        typed = [os.path.join('datasets', name) for name in names]
        about.update(paths=typed, absolute=typed, relative=[os.path.join('..', name) for name in typed])
    for config in (state['config'], *(state['config'][name] for name in members)):
        for key in ('out_dir', 'data_dir', 'data_path', 'init_from'):
            if key in config:
                config[key] = os.path.basename(config[key])
    if members:
        state['config']['mixture'] = [os.path.basename(config) for config in state['config']['mixture']]
    for key in ('platform', 'wandb_id'):
        state['environment'].pop(key, None)
    command = state['environment'].get('command', '')
    state['environment']['command'] = re.sub(r'(?<![^= ])/\S*/', '', command)        # of absolute paths, the last part
    state['model'] = state['ema']                # the same tensors are stored once
    save_checkpoint(path, state)


def _best_of_run(folder):
    """The checkpoint of a run folder, best.pt or else last.pt; None where it holds neither."""
    for name in ('best.pt', 'last.pt'):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    return None


def find_runs(path):
    """
    The checkpoints that `path` stands for: a file for itself, a run folder for its best.pt (or else
    last.pt), any other folder for the checkpoint of every run folder below it, sorted by path.

    Returns a list of paths. Raises UserError, naming what is there, where there is none.
    """
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        folder = path
        runs = [_best_of_run(root) for root, _, _ in os.walk(path)]
        if runs[0]:                              # os.walk begins with the folder itself
            return runs[:1]
        if any(runs):
            return sorted(run for run in runs if run)
    else:
        folder = os.path.dirname(path) or '.'
    others = []
    for root, _, files in os.walk(folder):
        others += [os.path.join(root, name) for name in files if name.endswith('.pt')]
    if others:
        raise UserError(f"no checkpoint at '{path}'; found: {', '.join(sorted(others)[:8])}")
    raise UserError(f"no checkpoint at '{path}'; none under '{folder}' either: train one with "
                    'python train.py config/burgers_cpu.py')


def find_checkpoint(path):
    """
    The one checkpoint that `path` stands for, as in `find_runs`. Of several runs it is the one whose
    checkpoint was written last, with a line that says so. Raises UserError where there is none.
    """
    found = find_runs(path)
    newest = max(found, key=os.path.getmtime)
    if len(found) > 1:
        say(f"'{path}' holds {len(found)} runs: '{newest}' is taken, which was written last")
    return newest


def _check_archive(path, damaged):
    """Raise UserError unless the file is a zip archive as torch writes it and every checksum is right."""
    try:
        with open(path, 'rb') as file:
            head = file.read(4)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    if head[:2] != b'PK':
        kind = 'it is no zip archive' if head else 'it is empty'
        raise UserError(f"'{path}' is not a checkpoint of this project, or its beginning is lost: {kind}")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.external_attr for member in members):  # torch writes none, and would read garbage
            raise UserError(damaged.format('its directory was altered'))
        if sum(member.file_size for member in members) > os.path.getsize(path):
            raise UserError(damaged.format('it claims more bytes than it has'))
        bad = archive.testzip()                  # torch stores checksums, but does not check them
    if bad:
        raise UserError(damaged.format(f'wrong checksum of {bad}'))


def _check_weights(path, state):
    """Raise UserError for weights that the file cannot hold or that are not finite."""
    size = os.path.getsize(path)
    for name in ('model', 'ema'):
        for key, tensor in state[name].items():
            if tensor.numel() * tensor.element_size() > size:  # repeated without being stored
                shape = tuple(tensor.shape)
                raise UserError(f"'{path}': {name}.{key} claims {shape} values, more than the file holds")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UserError(f"'{path}': weight {name}.{key} is not finite: use an older checkpoint")


def _check_version(path, version):
    if version == FORMAT_VERSION:
        return
    made = f"'{path}' was made by format version {version}"
    if isinstance(version, int) and version < FORMAT_VERSION:
        raise UserError(f'{made} (before the redesign); expected {FORMAT_VERSION}: train again, or use '
                        'the code of that time')
    raise UserError(f'{made}; expected {FORMAT_VERSION}')


def load_checkpoint(path):
    """
    Read and check a checkpoint; nothing in it is executed. Returns the dict that was saved. Raises
    UserError for a file that is damaged (checksums), of another program, of another version, or that
    holds weights which are not finite.
    """
    damaged = f"'{path}' is damaged ({{}}): use best.pt or last.pt beside it, or train again"
    try:
        _check_archive(path, damaged)
        state = torch.load(path, map_location='cpu', weights_only=True)
    except UserError:
        raise
    except Exception as error:                   # a damaged archive can raise anything
        if 'weights_only' in str(error) or 'Weights only' in str(error):
            raise UserError(f"'{path}' holds more than tensors and plain values: refused, not "
                            'executed') from error
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise UserError(damaged.format(reason)) from error
    if not isinstance(state, dict) or state.get('format') != FORMAT:
        raise UserError(f"'{path}' is not a checkpoint of this project")
    _check_version(path, state.get('version'))
    for name in ('model', 'ema', 'model_args', 'config'):
        if not isinstance(state.get(name), dict):
            raise UserError(f"'{path}' lacks '{name}': it was not written by train.py")
    _check_weights(path, state)
    return state


# ---- checkpoints of several equations

# Model arguments of the blocks that the equations of a mixture share (universal/), and the beginnings of the
# names of their weights
NETWORK = ('arch', 'attention', 'hidden_dim', 'depth', 'n_head', 'group_size', 'mlp_ratio')
SHARED = ('operator.network.levels.', 'operator.network.norm.', 'condition.mlp.', 'condition.numbers.weights.',
          'condition.numbers.boundary.')


def is_shared(name):
    """Is this weight of a member shared by all equations of a mixture?"""
    return name.startswith(SHARED)


def equations_of(state):
    """{name: its equation} of the members of a checkpoint of several equations; {} for that of one."""
    return {name: args['pde'] for name, args in state['model_args'].get('members', {}).items()}


def member_of(state, path, equation):
    """The name of the member of a checkpoint of several equations, from that name or that of its equation; None
    of a checkpoint of one equation. Raises UserError where it has none or several."""
    members = equations_of(state)
    if not members:
        pde = state['model_args']['pde']
        if equation not in (None, pde):
            raise UserError(f"'{path}' is a model of {pde}, not of {equation}")
        return None
    names = [name for name, pde in members.items() if equation in (name, pde)]
    if len(names) == 1:
        return names[0]
    has = f"'{path}' is a model of {', '.join(members)}"
    if equation is None:
        raise UserError(f'{has}: name one, such as equation={list(members)[0]}')
    raise UserError(f'{has}: {len(names) or "none"} of them is of {equation}, name one')


def of_equation(state, path, equation):
    """One equation of a checkpoint of several, as a checkpoint of one; equation: as `member_of` takes it. A
    checkpoint of one equation is returned as it is. Raises UserError."""
    name = member_of(state, path, equation)
    if name is None:
        return state
    about = state['data']
    one = {**state, 'model_args': state['model_args']['members'][name],
           'config': {**state['config'], **state['config'][name]},
           'data': {**about, **about['members'][name]}}
    start = f'members.{name}.'
    for key in ('model', 'ema'):
        one[key] = {weight.removeprefix(start): value for weight, value in state[key].items()
                    if weight.startswith(start)}
    return one


def tuples(value):
    """JSON's lists as the tuples that they were."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def check_shapes(path, weights, expected, new_modules=()):
    """Raise UserError unless weights have the names and shapes of those expected; new modules may lack
    theirs."""
    there = {name: value.shape for name, value in weights.items()}
    shapes = {name: value.shape for name, value in expected.items()}
    old = {name for name in shapes if name.split('.')[0] not in new_modules}
    wrong = [name for name in old | there.keys() if shapes.get(name) != there.get(name)]
    if wrong:
        raise UserError(f"'{path}': weights and model arguments disagree at {', '.join(sorted(wrong)[:4])}")


if __name__ == '__main__':
    one_line_errors()
    if len(sys.argv) != 3:
        raise UserError('usage: python -m runtime.checkpoint RUN FILE')
    ship(*sys.argv[1:])
