"""
Paths that are written: checked before any work, locked, cleared of what dead processes have left.

    output_file('--json', args.json)             # makes its folder; UserError where it cannot be written
    output_folder('--out', args.out)
"""
import contextlib
import glob
import os
import platform
import re
import tempfile

from runtime.configurator import UserError, say

try:
    import fcntl
except ImportError:                    # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:                    # not Windows
    msvcrt = None

INPUTS = ('.pt', '.hdf5', '.h5', '.mat', '.npy', '.py', 'config.json', 'env.json', 'log.csv')
LOCKED_BYTE = 2 ** 30                  # beyond the text of a lock: nobody else can read the byte on Windows


# --- checks ------------------------------------------------------------------

def output_folder(what, path):
    """The path of a folder for output, which is made. what: the flag or key that names it. Raises UserError
    where it is a file, or where no file can be written in it."""
    if not path:
        raise UserError(f'{what} is empty: name a folder')
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):   # permissions alone say little of root, /proc, network disks
            return path
    except OSError as error:
        if os.path.exists(path) and not os.path.isdir(path):
            raise UserError(f"{what} '{path}' is a file: name a folder") from error
        raise UserError(f"{what} '{path}' cannot be written ({error.strerror}): choose another "
                        'folder') from error


def output_file(what, path):
    """The path of a file for output, whose folder is made. what: the flag or key that names it. Raises
    UserError where it is a folder or a device, or cannot be written."""
    if not path:
        raise UserError(f'{what} is empty: name a file')
    if os.path.isdir(path) or os.path.basename(path) in ('', '.', '..'):
        raise UserError(f"{what} '{path}' is a folder: name a file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{what} '{path}' is no regular file: choose another name")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise UserError(f"{what} '{path}' is write-protected: choose another name")
    output_folder(f"{what} '{path}': its folder", os.path.dirname(path) or '.')
    return path


def output_files(paths):
    """Check several files, {flag: path or None}. Raises UserError, also where two of them are one file, and
    for one that exists and is no result: a checkpoint, data, a file of a run folder."""
    taken = {}
    for what, path in paths.items():
        if path is None:
            continue
        if os.path.exists(path) and path.endswith(INPUTS):
            raise UserError(f"{what} '{path}' would overwrite a file that is no result: choose another name")
        real = os.path.realpath(output_file(what, path))
        if real in taken:
            raise UserError(f"{what} and {taken[real]} name the same file '{path}': choose two names")
        taken[real] = what


# --- locks -------------------------------------------------------------------

def lock(file):
    """Take the lock of an open file, which ends with the process. Raises BlockingIOError where another
    process holds it. Says so where this system has no locks."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    if msvcrt is None:
        say(f"note: '{file.name}' is not locked, since this system has no locks: start one training in a "
            'folder')
        return
    os.lseek(file.fileno(), LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise BlockingIOError(error.errno, error.strerror) from error


# --- temporary files ---------------------------------------------------------

def temporary_name(path):
    """Where this process writes a file that will be renamed to `path`; other processes have other names."""
    return f'{path}.tmp.{platform.node()}.{os.getpid()}'


def remove_stale(folder):
    """Remove the temporary files in a folder that dead processes of this machine have left."""
    pattern = re.compile(rf'.*\.tmp\.{re.escape(platform.node())}\.(\d+)', re.DOTALL)
    for path in glob.glob(os.path.join(glob.escape(folder or '.'), '*.tmp.*')):
        found = pattern.fullmatch(os.path.basename(path))
        if found and fcntl and _is_dead(int(found[1])) and _is_free(path):
            with contextlib.suppress(OSError):
                size = os.path.getsize(path)
                os.remove(path)
                say(f"data: removed '{path}' ({size / 1e9:.2f} GB), which a process that ended had not "
                    'finished')


def _is_dead(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _is_free(path):
    """Does no process hold the lock of a file? HDF5 does while it writes, also in another container whose
    name is that of this machine."""
    try:
        with open(path, 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
