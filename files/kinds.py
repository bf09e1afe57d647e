"""
Files that are something else than HDF5, told by their first bytes; and filters of HDF5 that are not
installed.
"""
import importlib
import os
import zipfile

import h5py

from runtime.configurator import UserError

SIGNATURE = b'\x89HDF\r\n\x1a\n'
OWN = 'the README, "Your own data", says how'
UNPACK = 'unpack it'
# first bytes: what the file is, and what to do
KINDS = {
    b'MATLAB 5.0': ('a MATLAB file of version 5',
                    f"save it in MATLAB by save(NAME, '-v7.3'), or by scipy.io.loadmat and h5py: {OWN}"),
    b'\x93NUMPY': ('a NumPy array (.npy)', f'write it to an HDF5 file as `tensor`: {OWN}'),
    b'CDF': ('a NetCDF file of version 3', 'convert it by nccopy -k nc4 IN OUT'),
    b'\x0e\x03\x13\x01': ('an HDF4 file', 'convert it by h4toh5 IN OUT'),
    b'version https://git-lfs': ('a pointer of Git LFS, not the file', 'get the file by git lfs pull'),
    b'/annex/objects': ('a pointer of git-annex, not the file', 'get the file by git annex get'),
    b'\x1f\x8b': ('packed by gzip', UNPACK),
    b'BZh': ('packed by bzip2', UNPACK),
    b'\xfd7zXZ': ('packed by xz', UNPACK),
    b'\x28\xb5\x2f\xfd': ('packed by zstd', UNPACK),
    b'7z\xbc\xaf': ('a 7z archive', UNPACK),
    b'Rar!': ('a RAR archive', UNPACK),
    b'PAR1': ('a Parquet table', f'write an HDF5 file from it: {OWN}'),
    b'ARROW1': ('an Arrow table', f'write an HDF5 file from it: {OWN}'),
    b'GRIB': ('a GRIB file', f'write an HDF5 file from it: {OWN}')}
PAGES = (b'<!doctype html', b'<html', b'<?xml', b'<head', b'<error')
FILTERS = {4: 'szip', 305: 'lzo', 307: 'bzip2', 32000: 'lzf', 32001: 'blosc', 32004: 'lz4',
           32008: 'bitshuffle', 32013: 'zfp', 32015: 'zstd', 32017: 'sz', 32024: 'sz3', 32026: 'blosc2',
           32028: 'sperr'}


def as_file(path, what='data file'):
    """The path of a file, in which ~ is expanded. what: what the file is, in words. Raises UserError for a
    folder, a file that may not be read, and one that is not there."""
    path = os.path.expanduser(path)
    bare = path.rstrip('/')
    if path != bare and os.path.isfile(bare):
        raise UserError(f"'{path}' ends with a slash, but '{bare}' is a file: leave the slash out")
    if os.path.isdir(path):
        if any(name in ('.zgroup', '.zarray', 'zarr.json') for name in os.listdir(path)):
            raise UserError(f"'{path}' is a Zarr folder, expected an HDF5 file: write one from it: {OWN}")
        raise UserError(f"'{path}' is a directory, expected a file: {found_beside(path + '/')}")
    if not os.path.exists(path):
        hint = ': python data.py make NAME --n 1000 makes one' if what == 'data file' else ''
        raise UserError(f"no {what} '{path}' ({found_beside(path)}){hint}")
    if not os.path.isfile(path):
        raise UserError(f"'{path}' is a pipe or a device, expected a file: write its content to one")
    if not os.access(path, os.R_OK):
        raise UserError(f"'{path}' may not be read by you: change its permissions")
    return path


def found_beside(path):
    """What HDF5 files the folder of a path holds, in words."""
    folder = os.path.dirname(path) or '.'
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [name for name in names if name.endswith(('.h5', '.hdf5', '.mat', '.nc'))]
    return f"{folder} holds {', '.join(found[:5])}" if found else f'{folder} holds no .hdf5 file'


def other_kind(path):
    """What a file is that is no HDF5 file, and what to do: two texts. ('', '') where it begins as HDF5
    does."""
    with open(path, 'rb') as file:
        head = file.read(8192)
    if not head:
        return 'empty (0 bytes)', 'make or download it again'
    # HDF5 may begin after a block of 512, 1024, .. bytes, as MATLAB 7.3 has it
    if SIGNATURE.startswith(head[:8]) or head.startswith(b'MATLAB 7.3') or SIGNATURE in head:
        return '', ''
    for start, (what, mend) in KINDS.items():
        if head.startswith(start):
            return what, mend
    if head.startswith((b'PK\x03\x04', b'PK\x05\x06')):
        return _archive(path)
    if head.startswith(b'\x80') and b'.' in head[:4096]:
        return 'a Python pickle', f'write an HDF5 file from it: {OWN}'
    if head[257:262] == b'ustar':
        return 'a tar archive', UNPACK
    if head.lstrip(b'\xef\xbb\xbf \r\n\t').lower().startswith(PAGES):
        return 'a web page or message, not the file', 'look at it in a browser: is a login needed?'
    if not any(head):
        return 'a file that begins with zeros', 'its download or copy is not finished: do it again'
    text = head.decode(errors='replace')
    if '\ufffd' not in text[:-3] and all(letter.isprintable() or letter.isspace() for letter in text[:-3]):
        line = text.split('\n')[0][:40].strip()
        return f"text (it begins with '{line}')", f'write an HDF5 file from it: {OWN}'
    return f'no HDF5 file (it begins with {head[:8]})', 'name another one, or download it again'


def _archive(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return 'a zip archive that is truncated or damaged', 'make or download it again'
    if any(name.endswith('data.pkl') for name in names):
        return 'a PyTorch file (.pt)', f'write the tensors in it to an HDF5 file: {OWN}'
    if names and all(name.endswith('.npy') for name in names):
        arrays = ', '.join(name.removesuffix('.npy') for name in names[:6])
        return f'a NumPy archive (.npz) of {arrays}', f'write the arrays to an HDF5 file: {OWN}'
    return 'a zip archive', UNPACK


def check_filters(path, key, dataset):
    """Raise UserError where a data set went through a filter that is neither installed nor in hdf5plugin."""
    plist = dataset.id.get_create_plist()
    for index in range(plist.get_nfilters()):
        code, _, _, name = plist.get_filter(index)
        if h5py.h5z.filter_avail(code):
            continue
        try:
            importlib.import_module('hdf5plugin')                        # registers its filters with h5py
        except ImportError:
            pass
        if not h5py.h5z.filter_avail(code):
            name = FILTERS.get(code) or name.decode(errors='replace') or 'unknown'
            raise UserError(f"'{path}': {key} is compressed by the filter {name} ({code}), which is not "
                            'installed: pip install hdf5plugin, or write the file anew, where the filter is '
                            'installed, by h5repack -f GZIP=4 IN OUT')
