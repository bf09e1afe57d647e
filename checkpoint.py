"""
Checkpoints: written complete or not at all, read with every byte checked, and nothing in them executed.

    save_checkpoint(path, {'model': ..., ...})    # tensors and JSON types; atomic
    state = load_checkpoint(find_checkpoint('out/burgers_cpu'))
"""
import contextlib
import io
import os
import zipfile

import torch

from configurator import UserError

FORMAT, FORMAT_VERSION = 'nanoupt', 2


@contextlib.contextmanager
def whole_file(path, mode='w', **options):
    """A file open for writing that takes its name complete or not at all: a temporary file in the same directory is
    flushed to disk and renamed over the old one. Raises UserError where the disk is full or may not be written."""
    temporary = path + '.tmp'
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
    folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY)
    try:
        os.fsync(folder)                                             # the rename itself
    finally:
        os.close(folder)


def save_checkpoint(path, state):
    """Write `state` (tensors and JSON types) to `path`, complete or not at all."""
    content = io.BytesIO()                                           # torch.save itself has no words for a full disk
    torch.save({'format': FORMAT, 'version': FORMAT_VERSION, **state}, content)
    with whole_file(path, 'wb') as file:
        file.write(content.getbuffer())


def find_checkpoint(path):
    """A run directory or a file -> the file: best.pt, else last.pt. Raises UserError, naming what is there."""
    if os.path.isdir(path):
        for name in ('best.pt', 'last.pt'):
            if os.path.isfile(os.path.join(path, name)):
                return os.path.join(path, name)
    elif os.path.isfile(path):
        return path
    folder = path if os.path.isdir(path) else os.path.dirname(path) or '.'
    found = sorted(os.path.join(root, f) for root, _, files in os.walk(folder) for f in files if f.endswith('.pt'))
    raise UserError(f"no checkpoint at '{path}'; " + (f'found: {", ".join(found[:8])}' if found else
                    f"none under '{folder}' either: train one with python train.py config/burgers_cpu.py"))


def load_checkpoint(path):
    """Read and check a checkpoint; nothing in it is executed. Raises UserError for a file that is damaged
    (checksums), of another program, of another version, or that holds weights which are not finite."""
    damaged = f"'{path}' is damaged ({{}}): use best.pt or last.pt beside it, or train again"
    try:
        with open(path, 'rb') as file:
            head = file.read(4)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    if head[:2] != b'PK':
        kind = 'it is empty' if not head else 'it is no zip archive'
        raise UserError(f"'{path}' is not a checkpoint of this project, or its beginning is lost: {kind}")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(i.external_attr for i in archive.infolist()):     # torch writes none, and would read garbage
                raise UserError(damaged.format('its directory was altered'))
            if sum(i.file_size for i in archive.infolist()) > os.path.getsize(path):
                raise UserError(damaged.format('it claims more bytes than it has'))
            bad = archive.testzip()                                  # torch stores checksums, but checks none
        if bad:
            raise UserError(damaged.format(f'wrong checksum of {bad}'))
        state = torch.load(path, map_location='cpu', weights_only=True)
    except UserError:
        raise
    except Exception as error:                                       # a damaged archive can raise anything
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        if 'weights_only' in str(error) or 'Weights only' in str(error):
            raise UserError(f"'{path}' holds more than tensors and plain values: refused, not executed") from error
        raise UserError(damaged.format(reason)) from error
    if not isinstance(state, dict) or state.get('format') != FORMAT:
        raise UserError(f"'{path}' is not a checkpoint of this project")
    if state.get('version') != FORMAT_VERSION:
        raise UserError(f"'{path}' was made by format version {state.get('version')}; expected {FORMAT_VERSION}")
    for name in ('model', 'ema', 'model_args', 'config'):
        if not isinstance(state.get(name), dict):
            raise UserError(f"'{path}' lacks '{name}': it was not written by train.py")
    for name in ('model', 'ema'):
        for key, tensor in state[name].items():
            if tensor.numel() * tensor.element_size() > os.path.getsize(path):       # repeated without being stored
                raise UserError(f"'{path}': {name}.{key} claims {tuple(tensor.shape)} values, more than the file holds")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UserError(f"'{path}': weight {name}.{key} is not finite: use an older checkpoint")
    return state
