"""
Config files and --key=value over the globals of a script, and user errors in one line.

    $ python train.py config/burgers_cpu.py --learning-rate=3e-4 --depths=2,4,2

A script states its defaults as plain module globals, one a line with a trailing comment, then:

    from runtime.configurator import configure, one_line_errors
    one_line_errors()
    config = configure(globals(), sys.argv[1:], __file__)
    globals().update(config)

A config file is Python that assigns those names. It sees the values so far, so it may say
`hidden_dim = 2 * latent_dim`; its own helpers begin with `_`. Files apply in the order given,
then every --key=value, wherever it stands. Types follow the default, and a number is not
negative unless its default is. Nothing typed on the command line is executed; a misspelt key or
a bad value is a UserError before any work.

A dict holds the settings of one stage, which override plain keys of the script while it trains:

    operator_stage = dict(learning_rate=3e-4)      # in a config file
    --operator_stage.max_iters=500                 # on the command line
"""
import ast
import contextlib
import copy
import decimal
import difflib
import errno
import functools
import glob
import importlib.util
import io
import json
import math
import os
import re
import shlex
import signal
import sys
import tokenize
import traceback
import types

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PLAIN_TYPES = (int, float, bool, str, tuple, list, type(None))
# What replaced a key or flag of earlier versions; '' where nothing did.
RENAMED = {
    'query_stride': 'fields live on the grid of space_stride', 'input_frames': 'a model sees one frame',
    'eval_batches': 'set n_validated, a number of trajectories', 'early': 'set early_bias',
    'shift': 'set symmetries', 'flip': 'set symmetries', 'encoder_depth': 'set coder_depth',
    'decoder_depth': 'set coder_depth', 'members': 'set n_members', 'by': 'set stepper',
    'epochs': 'set max_iters', 'force_data': 'use --init_from=best.pt with another --out_dir',
    'residual_stage': 'set diff_residual_stage', 'distill_stage': 'set consistency_distill_stage',
    'steady_stage': 'set steady_prior_stage', 'placements': 'set input_points', 'random': 'set random_points',
    **dict.fromkeys(('boost', 'noise', 'latent_noise', 'coloured_noise', 'lambda_agreement',
                     'lambda_direction', 'gradient_through_time', 'detach_target', 'layer_norm', 'flow_kind',
                     'condition_noise', 'tau_shape', 'lambda_flow', 'lambda_distill', 'lambda_crps',
                     'inverse_decoding_ramp', 'beta2', 'min_lr_ratio', 'decoder_stage'), '')}
# the disk is full, or not ours to write
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


# --- errors ------------------------------------------------------------------

class UserError(ValueError):
    """What the user can mend. Its text is one line: what, where, how to fix."""

    def __str__(self):
        return ' '.join(super().__str__().splitlines())


def one_line_errors():
    """Print user errors and out of memory as one `error: ...` line; exit status 1, no traceback. SIGTERM ends
    the program as an exception does, so that no temporary file is left and what it runs is stopped too. A
    letter that the output has no code for is printed as its number."""
    sys.excepthook = _excepthook
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')
    if os.environ.get('RANK', '0') == '0':     # other processes wait for the first one, and hear no handler
        signal.signal(signal.SIGTERM, _leave)


def _leave(number, _):
    print(f'stopped by signal {number}', file=sys.stderr)
    sys.exit(128 + number)


def say(text):
    """Print a line at once. A closed pipe (`| head`), a lost terminal or a full disk under the
    redirected output must not stop a long run: the rest goes nowhere."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _excepthook(kind, error, trace):
    if issubclass(kind, UserError):
        print(f'error: {error}', file=sys.stderr)
    elif _is_out_of_memory(kind, error):
        sentences = ' '.join(str(error).split()).split('. ')
        what = '. '.join(sentences[:2]).rstrip('.')
        print(f'error: {what}: lower batch_size, raise accumulation, set checkpointing=True, in that order',
              file=sys.stderr)
    elif issubclass(kind, KeyboardInterrupt):
        print('stopped by Ctrl-C', file=sys.stderr)
        sys.exit(130)
    elif issubclass(kind, BrokenPipeError):  # `| head`; the flush at exit must not raise it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    elif issubclass(kind, OSError) and error.errno in _DISK:
        what = error.filename or 'a file'
        print(f'error: {what}: {os.strerror(error.errno)}: free some space, or choose another folder',
              file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _is_out_of_memory(kind, error):
    """NumPy says it, torch on a GPU (recognised by name, to do without torch), or torch on a CPU."""
    return (issubclass(kind, MemoryError)
            or kind.__name__ == 'OutOfMemoryError'
            or "can't allocate memory" in str(error))


def _unknown(name, keys, where, prefix=''):
    """The error for a name that is none of `keys`; both are shown after `prefix`."""
    shown = repr(f'{prefix}{name}')
    if name in RENAMED:
        instead = RENAMED[name] or 'it had no measured use'
        return UserError(f'the key {shown} was removed ({where}): {instead}')
    spelt = {key.lower(): key for key in keys}
    close = difflib.get_close_matches(str(name).lower(), spelt, 1)
    if close:
        meant = repr(prefix + spelt[close[0]])
        return UserError(f'unknown key {shown}, did you mean {meant}? ({where})')
    return UserError(f'unknown key {shown} ({where}): --help lists the keys, '
                     "a config file's own helpers begin with _")


# --- values: the text of each ValueError completes `key=value ...` -----------

def _literal(text):
    """The Python literal that `text` is, or `text` itself."""
    if text.strip().lower() in ('none', 'true', 'false'):  # as text, 'false' would count as true
        text = text.strip().title()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _number(value, whole):
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is not None and not math.isfinite(number):
        raise ValueError('must be finite')
    if number is None or (whole and number % 1):
        raise ValueError('must be a whole number' if whole else 'must be a number')
    try:
        return int(value) if whole else number  # not int(number), rounded above 2**53
    except ValueError:  # the text '1e4'
        return int(number)


def _items(value, default):
    """The elements of a tuple or list, and whether they are still raw text."""
    words = bool(default) and isinstance(default[0], str)  # 1,2 are then the texts '1' and '2'
    literal = _literal(value) if isinstance(value, str) and not words else value
    if isinstance(literal, (tuple, list)):
        return literal, False
    if not isinstance(value, str):
        raise ValueError(f'must be a {type(default).__name__}, like {default!r}')
    text = value.strip()
    if text[:1] + text[-1:] in ('()', '[]'):
        text = text[1:-1]
    items = [item.strip(' \'"') for item in text.split(',')]
    return (items if items[-1] else items[:-1]), True  # a trailing comma, or nothing at all


def _typed(value, default, raw):
    """`value` in the type of `default`; raw: it is text of the command line."""
    if isinstance(default, (tuple, list)):
        items, raw = _items(value, default)
        typed = []
        for item in items:
            try:
                typed.append(_typed(item, default[0] if default else None, raw))
            except ValueError as e:
                raise ValueError(f'has {item!r}, which {e}') from None
        return type(default)(typed)
    if isinstance(default, bool):
        word = str(value).strip().lower()
        if word not in ('true', 'false', '1', '0'):
            raise ValueError('must be true or false')
        return word in ('true', '1')
    if isinstance(default, (int, float)):
        number = _number(value, whole=isinstance(default, int))
        if number < 0 <= default:
            raise ValueError('must not be negative')
        return number
    if isinstance(default, str):
        if isinstance(value, (bool, int, float)):  # compile = True in a file means 'true'
            value = str(value).lower()
        if not isinstance(value, str):
            raise ValueError('must be text, in quotes')
        return ','.join(os.path.expanduser(part) for part in value.split(','))   # data_path may hold several
    value = _literal(value) if raw else value
    try:
        json.dumps(value, allow_nan=False)  # a checkpoint holds plain JSON types
    except TypeError:
        raise ValueError('must be a number, text, bool, None or a list of these') from None
    except ValueError:
        raise ValueError('must be finite') from None
    return value


def _shown(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + '...'


def _resolve(name, value, default, where, raw=False):
    """The value of `name`, a key or stage.key, in the type of `default`."""
    try:
        return _typed(value, default, raw)
    except ValueError as e:
        raise UserError(f'{name}={_shown(value)} {e} ({where})') from None


def _resolve_stage(stage, settings, current, plain, where):
    """The `current` settings of a stage with the given ones added, in the types of the plain keys."""
    if not isinstance(settings, dict):
        raise UserError(f'{stage}={_shown(settings)} must be a dict, like dict(max_iters=1000) ({where})')
    merged = dict(current)
    for key, value in settings.items():
        if key not in plain:
            raise _unknown(key, plain, where, f'{stage}.')
        merged[key] = _resolve(f'{stage}.{key}', value, plain[key], where)
    return merged


def among(name, value, allowed):
    """`value` in the spelling of `allowed`; raises UserError, listing them, where it is none."""
    for choice in allowed:
        if choice.lower() == str(value).lower():
            return choice
    raise UserError(f"{name}={value} is not one of {', '.join(allowed)}")


def flag_words(argv):
    """The words of a command line for argparse, which takes -1e-3 for a flag, with ~ as the shell expands it
    at the beginning of a word alone. argv: None for sys.argv[1:]."""
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        if re.fullmatch(r'-(\d+\.?\d*|\.\d+)e[+-]?\d{1,3}|-\d+\.', word, re.IGNORECASE):
            word = f'{decimal.Decimal(word):f}'
        name, equals, value = word.partition('=')
        if equals and name.startswith('-'):
            word = name + equals + os.path.expanduser(value)
        else:
            word = os.path.expanduser(word)
        words.append(word)
    return words


def parse_flags(parser, argv):
    """The flags of an argparse.ArgumentParser with allow_abbrev=False. Raises UserError for a flag of an
    earlier version, with what replaced it; ends the program for any other unknown one, as argparse does."""
    args, others = parser.parse_known_args(flag_words(argv))
    for word in others:
        name = word.partition('=')[0]
        if RENAMED.get(name[2:]):
            instead = RENAMED[name[2:]].replace('set ', 'use --')
            raise UserError(f'the flag {name} was removed: {instead}')
    if others:
        parser.error(f"unknown arguments: {' '.join(others)}")
    return args


# --- config files ------------------------------------------------------------

@contextlib.contextmanager
def _own_configs():
    """Inside, `from config.NAME import *` is a file of config/ here, whatever else is called config."""
    others = {name: sys.modules.pop(name) for name in [*sys.modules] if f'{name}.'.startswith('config.')}
    folder = os.path.join(HERE, 'config')
    spec = importlib.util.spec_from_file_location(
        'config', os.path.join(folder, '__init__.py'), submodule_search_locations=[folder])
    sys.modules['config'] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if f'{name}.'.startswith('config.')]:
            del sys.modules[name]
        sys.modules.update(others)


def _parse(path, keys):
    """The syntax tree of a config file."""
    if os.path.isdir(path):
        raise UserError(f'config file {path!r} is a directory: name a .py file in it')
    if not os.path.exists(path):
        name = path.partition('=')[0].replace('-', '_')
        if '=' in path and name in keys:
            raise UserError(f'no config file {path!r}: to set {name}, write --{path}')
        folder = os.path.join(glob.escape(os.path.dirname(path)), '*.py')
        near = {os.path.basename(f): f for f in glob.glob('config/*.py') + glob.glob(folder)}
        close = difflib.get_close_matches(os.path.basename(path), near, 1)
        hint = f', did you mean {near[close[0]]!r}?' if close else ': check the path'
        raise UserError(f'no config file {path!r}{hint}')
    try:
        with open(path, 'rb') as f:
            return ast.parse(f.read(), path)
    except (OSError, SyntaxError, ValueError) as e:  # ValueError: null bytes, a binary file
        line = getattr(e, 'lineno', None) or 1
        raise UserError(f'{path}:{line}: {type(e).__name__}: {getattr(e, "msg", e)}') from None


def _apply(path, current, plain, strangers):
    """The `current` values after one config file. Names that are no key are added to `strangers`, with the
    line of their assignment."""
    tree = _parse(path, current)
    given = copy.deepcopy(current)  # the file may append to a list
    space = dict(given, __file__=path, __name__='__config__')
    try:
        with _own_configs():
            exec(compile(tree, path, 'exec', dont_inherit=True), space)
    except (Exception, SystemExit) as e:
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == path]
        line = lines[-1] if lines else getattr(e, 'lineno', 1)  # `return` outside a function: none
        text = f'{type(e).__name__}: {getattr(e, "msg", e)}'.removesuffix(': ')
        raise UserError(f'{path}:{line}: {text}') from None
    where = _lines_of_names(tree, path)
    new = dict(current)
    for name, value in space.items():
        helper = name.startswith('_') or callable(value) or isinstance(value, types.ModuleType)
        if name not in current and not helper:
            strangers[name] = where.get(name, path)
            new[name] = value
    for name in current:
        value = space.get(name, given[name])  # the file may `del` it
        if value is given[name] and given[name] == current[name]:
            continue  # untouched
        place = where.get(name, path)
        if name in strangers:
            new[name] = value
        elif name in plain:
            new[name] = _resolve(name, value, plain[name], place)
        else:
            new[name] = _resolve_stage(name, value, current[name], plain, place)
    return new


def _lines_of_names(tree, path):
    """Where a config file last assigns each name: name -> 'path:line'."""
    stores = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            stores.append(node)
    stores.sort(key=lambda node: node.lineno)
    return {node.id: f'{path}:{node.lineno}' for node in stores}


# --- --help ------------------------------------------------------------------

@functools.cache
def _comments(source):
    """What a script says of its keys: {name: (headings above it, trailing comment)}."""
    with open(source, encoding='utf-8') as f:
        text = f.read()
    notes = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            notes[token.start[0]] = token.string.strip('#-= ')
    assigned = {n.lineno: n for n in ast.parse(text).body if isinstance(n, ast.Assign)}
    found = {}
    headings = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith('#') and number in notes:
            headings.append(notes[number])
        elif number in assigned:
            texts = [text for text in headings if text]
            for target in assigned[number].targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, (texts, notes.get(number, '')))
            headings = []
    return found


def read_keys(source):
    """The keys that a script assigns as plain values, {name: (default, comment)}; nothing is executed."""
    comments = _comments(source)
    keys = {}
    with open(source, encoding='utf-8') as f:
        tree = ast.parse(f.read())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            try:
                keys[name] = (ast.literal_eval(node.value), comments[name][1])
            except ValueError:  # no plain value, so no key
                continue
    return keys


def section(source, heading):
    """The keys of a script from a comment that begins with `heading` to the next heading."""
    names = []
    inside = False
    for name, (headings, _) in _comments(source).items():
        if headings:
            inside = headings[-1].startswith(heading)
        if inside:
            names.append(name)
    return names


def key_of(word):
    """The name of the key that a word of the command line sets: '--out-dir=a' -> 'out_dir'; '' of no flag."""
    return word[2:].partition('=')[0].replace('-', '_') if word.startswith('--') else ''


def resumable(source):
    """The keys that a resumed run may change: those whose comment ends with a star."""
    return {name for name, (_, note) in _comments(source).items() if note.endswith('*')}


def _help_row(name, value, note):
    shown = ','.join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    option = f'  --{name}={shlex.quote(shown)}'
    return f'{option:<36}  {note.strip()}'.rstrip()


def _help(plain, stages, source, groups, parameters):
    """Every key, its default and its comment, under the headings of the script and of the groups; then the
    names of the parameters of the equations, and of the stages."""
    comments = _comments(source)
    rows = []
    for name, value in plain.items():
        if name in comments:
            headings, note = comments[name]
            rows += [f'\n{heading}' for heading in headings]
            rows.append(_help_row(name, value, note))
    for heading, keys in groups.items():
        rows.append(f'\n{heading}')
        rows += [_help_row(name, value, note) for name, (value, note) in keys.items()]
    if parameters:
        rows.append('\nparameters of the equations (each has the default of its equation)')
        rows += [f'  --{name}=VALUE' for name in parameters]
    if stages:
        rows.append('\na value for one stage alone, such as --operator_stage.learning_rate=3e-4')
        rows += [f'  --{name}.KEY=VALUE' for name in stages]
    return '\n'.join(rows)


# --- the one call ------------------------------------------------------------

def _option(arg, plain, stages, parameters):
    """The name, key or stage.key, the text and the key of one --name=value."""
    name, equals, text = arg[2:].partition('=')
    name = name.replace('-', '_')
    stage, _, key = name.rpartition('.')
    if not arg.startswith('--') or not name:
        raise UserError(f'cannot read {arg!r} (command line): write --key=value')
    if name in stages:
        raise UserError(f'--{name} holds several settings (command line): write --{name}.max_iters=value')
    if stage and stage not in stages:
        raise _unknown(stage, stages, 'command line')
    if stage and key not in plain:
        raise _unknown(key, plain, 'command line', f'{stage}.')
    if equals:
        return name, text
    if key not in plain and key not in parameters:
        raise _unknown(name, [*plain, *parameters], 'command line')
    example = 'true' if isinstance(plain.get(key), bool) else 'value'
    raise UserError(f'--{name} has no value (command line): write --{name}={example}')


def with_groups(defaults, groups):
    """The defaults of a script with those of the groups of `configure`."""
    more = {name: default for keys in groups.values() for name, (default, _) in keys.items()}
    return {**more, **defaults}


def configure(defaults, argv, source, groups={}, stages={}, more=None):
    """
    The resolved keys of a script, for its `globals().update(...)`.

    defaults: globals() of the script; its public numbers, texts, bools, tuples, lists and Nones are the keys.
    argv: sys.argv[1:]. source: the script's path, for --help, which exits 0. groups: further keys,
    {heading: {name: (default, comment)}}. stages: {'operator_stage': names of the keys of which this stage
    may have its own value}. more: a function of the value of the key `dataset` (None: of any) -> {name:
    default}, keys that exist for this value: parameters of the equation.

    Raises UserError.
    """
    plain = {name: value for name, value in defaults.items()
             if not name.startswith('_') and type(value) in _PLAIN_TYPES}
    if '--help' in argv or '-h' in argv:
        doc = (defaults.get('__doc__') or '').strip()
        rows = _help(plain, stages, source, groups, more(None) if more else {})
        print(f'{doc}\n\nKeys and defaults (*: a resumed run may change it):\n{rows}', flush=True)
        sys.exit(0)
    plain = with_groups(plain, groups)
    flags = [arg for arg in argv if arg.startswith('-')]
    parameters = more(None) if more and any('=' not in flag for flag in flags) else {}
    options = [_option(flag, plain, stages, parameters) for flag in flags]
    config = {**plain, **{name: {} for name in stages}}
    strangers = {}  # names that are no key: where they were assigned
    for arg in argv:
        if not arg.startswith('-'):
            config = _apply(arg, config, plain, strangers)
    config = dict(config)
    raw = {}
    for name, text in options:
        stage, _, key = name.rpartition('.')
        if stage:
            config[stage] = {**config[stage], key: _resolve(name, text, plain[key], 'command line', raw=True)}
        elif name in plain:
            config[name] = _resolve(name, text, plain[name], 'command line', raw=True)
        else:
            strangers[name] = 'command line'
            raw[name] = text
    known = more(config['dataset']) if more else {}
    for name in known:
        if name in plain:
            raise UserError(f"the equation {config['dataset']} has a parameter '{name}', which is a key of "
                            f'{os.path.basename(source)}: rename the parameter')
    for name, where in strangers.items():
        if name not in known:
            dotted = [f'{stage}.{key}' for stage in stages for key in plain]
            raise _unknown(name, [*plain, *stages, *known, *dotted], where)
        value = raw.get(name, config.get(name))
        known[name] = _resolve(name, value, known[name], where, raw=name in raw)
    for stage, names in stages.items():
        for key in config[stage]:
            if key not in names:
                raise UserError(f'{stage}.{key}: a stage cannot have its own value of this key: set --{key}')
    return {**config, **known}
