"""
Files that are something else than HDF5, told by their first bytes; and filters of HDF5 that are not
installed.
"""
import importlib
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


def other_kind(path):
    """What a file is that is no HDF5 file, and what to do: two texts. ('', '') where it begins as HDF5
    does."""
    with open(path, 'rb') as file:
        head = file.read(8192)
    if not head:
        return 'empty (0 bytes)', 'make or download it again'
    if SIGNATURE.startswith(head[:8]) or head.startswith(b'MATLAB 7.3'):
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
    if SIGNATURE in [head[start:start + 8] for start in (512, 1024, 2048, 4096)]:        # after another block
        return '', ''
    if b'<Xdmf' in head or b'<VTKFile' in head:
        return 'a mesh', 'make a file of points from it by python data.py mesh FILE --pde NAME --out OUT.h5'
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


def missing_filter(path, key, code, name):
    """Import the filter of this number and name (bytes) from hdf5plugin. Raises UserError where it is not
    there."""
    try:
        importlib.import_module('hdf5plugin')                            # registers its filters with h5py
    except ImportError:
        pass
    if not h5py.h5z.filter_avail(code):
        name = FILTERS.get(code) or name.decode(errors='replace') or 'unknown'
        raise UserError(f"'{path}': {key} is compressed by the filter {name} ({code}), which is not "
                        'installed: pip install hdf5plugin, or write the file anew, where the filter is '
                        'installed, by h5repack -f GZIP=4 IN OUT')
