"""
Data files made by the built-in solvers, complete or not at all.

    python data.py make burgers --n 1000 --nu 0.01      # datasets/1D_Burgers_Sols_Nu0.01_N1000.hdf5
"""
import argparse
import contextlib
import os
import re
import shutil
import time

import h5py
import numpy as np

import equations
from files.open import LAYOUTS, open_source, plan
from runtime.configurator import UserError, parse_flags, say
from runtime.device import float64_device
from runtime.paths import output_file, remove_stale, temporary_name
from runtime.progress import duration

SOLVED_VALUES = 2 ** 25               # values solved for at a time, at most (or one row): 270 MB
CACHED_VALUES = 2 ** 15               # values of a frame solved for at a time on a CPU, about: 260 kB
SILENT = 10.                          # seconds of a batch that may pass without a word
FORMAT_VERSION = 1


def make(sources, device, quiet=False):
    """Make the planned ones of `sources`, and open them. Returns [Source], all of which exist.
    A file that another process has made meanwhile is only opened. quiet: print no notes on opened files."""
    opened = []
    for source in sources:
        if not source.exists:
            if not os.path.exists(source.path):
                _write(source, device)
            source = open_source(source.path, source.pde, quiet)
        opened.append(source)
    return opened


def write_file(path, dataset, params, n, seed=0, device='auto', batch_size=None, resolution=0):
    """Solve n trajectories and write a file of the equation's layout, complete or not at all. Returns path.

    params: {'Nu': .01}. batch_size: trajectories solved at a time. resolution: cells along each axis (0: the
    equation's own). The file holds float32 values, the coordinates, and the parameters as attributes; it is
    checksummed (fletcher32). Prints the cost when the first of them are solved. Raises UserError.
    """
    if not 0 <= seed < 2 ** 63:
        raise UserError(f'seed={seed} must be from 0 to {2 ** 63 - 1}')
    if batch_size is not None and batch_size < 1:
        raise UserError(f'batch_size={batch_size} must be at least 1 trajectory')
    return _write(plan(path, dataset, params, n, resolution, seed), device, batch_size)


def _write(source, device, batch_size=None):
    """Make a planned file. Returns its path."""
    entry = source.entry
    seed = source.seed
    layout = LAYOUTS[source.layout]
    device = float64_device(device)
    n = source.n
    frame_values = int(np.prod(source.shape)) * len(source.fields)
    row_values = source.n_frames * frame_values
    batch_size = min(n, batch_size or batch_size_of(device, frame_values, row_values))
    t = np.arange(source.n_frames) * source.dt

    def solve(first, size, times):
        """Trajectories first .. first + size, (size, T, *X, C) float32, and the records of the entry."""
        records = {}
        u0 = entry.start(size, source.shape, seed, first).to(device)
        u = entry.solution(u0, source.params, times, records).float().cpu()
        expected = (size, len(times), *source.shape, len(source.fields))
        if tuple(u.shape) != expected:
            raise UserError(f'the solver of {source.pde} returned the shape {tuple(u.shape)}; expected '
                            f'{expected}')
        if not u.isfinite().all():
            raise UserError(f'the solver of {source.pde} returned values that are not finite in trajectories '
                            f'{first} to {first + size - 1}')
        return u.numpy(), records

    output_file('the data file', source.path)
    remove_stale(os.path.dirname(source.path))
    n_bytes = 4 * n * row_values
    check_space(source.path, n_bytes)
    values = ', '.join([source.pde, *(f'{name} {value:g}' for name, value in source.params.items())])
    say(f'data: making {source.path}: {n} trajectories of {values}, seed {seed}, on {device}: '
        f'{n_bytes / 1e9:.2f} GB')
    _say_cost(solve, n, batch_size, t, device)
    attributes = {**source.params, 'seed': seed, 'pde': source.pde, 'format_version': FORMAT_VERSION}
    attributes['source'] = f'data.py make: {getattr(entry.solve, "__name__", "?")}, float64'
    way = repr((attributes, n, source.shape, source.n_frames, batch_size, device.type))
    with _whole_hdf5(source.path, way) as file:
        begin = int(file.attrs.get('made', 0))                      # by a run that was stopped
        if begin:
            say(f'data: {begin} of {n} trajectories were made before')
        else:
            file.attrs.update(attributes)
            layout.create(file, source)
        start = time.perf_counter()
        next_print = start                                  # the first batch says how long all of them take
        for first in range(begin, n, batch_size):
            done = min(first + batch_size, n)
            layout.write(file, first, *solve(first, done - first, t))
            file.attrs['made'] = done
            now = time.perf_counter()
            if now >= next_print or done == n:
                each = (now - start) / (done - begin)
                say(f'data: {done}/{n} {done / n:.0%} | {1e3 * each:.1f} ms per trajectory | '
                    f'eta {duration(each * (n - done))}')
                next_print = now + 5
    return source.path


def batch_size_of(device, frame_values, row_values):
    """Trajectories solved at a time. A CPU is fastest where the frames of a batch fit into its cache, a GPU with
    many trajectories."""
    if device.type == 'cuda':
        return min(256, max(1, 8 * SOLVED_VALUES // row_values))
    return min(max(32, CACHED_VALUES // frame_values), max(1, SOLVED_VALUES // row_values))


def _say_cost(solve, n, batch_size, t, device):
    """Say how long n trajectories will take, where a first batch would be silent for long. All times are solved
    for, since early ones may take shorter steps than late ones."""
    def seconds(size):
        start = time.perf_counter()
        solve(0, size, t)
        return time.perf_counter() - start

    solve(0, 1, t[:3])                                          # warms up
    if device.type == 'cuda' or batch_size == n <= 4:           # large batches are fast there
        return
    batch = seconds_of_batch(seconds, batch_size, SILENT)
    if batch > SILENT:
        say(f'data: about {duration(batch * n / batch_size)}, as the first trajectories took')


def seconds_of_batch(seconds, size, short):
    """Seconds of `size` trajectories together, about, from those of 1 and of 4. seconds(n): solves n of them. Where even
    one after another would take less than `short` seconds, it is those, and 4 are not solved."""
    few = min(4, size)
    one = seconds(1)
    if one * size < short:
        return one * size
    each = (seconds(few) - one) / (few - 1) if few > 1 else one
    return max(one, one + each * (size - 1))


def check_space(path, n_bytes):
    """Raise UserError where the disk has no room for a file of n_bytes."""
    free = shutil.disk_usage(os.path.dirname(path) or '.').free
    if free < n_bytes * 1.05:
        raise UserError(f"'{path}' needs {n_bytes / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there")


def _goes_on(path, way):
    """Is this an unfinished file that was made in this way?"""
    try:
        with h5py.File(path) as file:
            return file.attrs['way'] == way and file.attrs['made'] > 0
    except (OSError, KeyError):
        return False


@contextlib.contextmanager
def _whole_hdf5(path, way):
    """An HDF5 file open for writing that takes its name when it is complete, or leaves nothing. If Ctrl-C
    or SIGTERM ends it, PATH.part stays and the next run goes on with it. way: how the values are made. Raises
    UserError where the disk is full. Chunks are not cached, so that a failed write raises its error here: the
    error of a cache that is emptied when a dataset is closed could not be caught."""
    temporary = temporary_name(path)                            # others may make the same file meanwhile
    try:                                                        # version 1.10 checksums the metadata, too
        part = f'{path}.part'
        mode = 'w'
        if _goes_on(part, way):
            os.rename(part, temporary)
            mode = 'r+'
        elif os.path.exists(part):
            os.remove(part)
        with h5py.File(temporary, mode, libver='v110', rdcc_nbytes=0) as file:
            file.attrs['way'] = way
            yield file
            del file.attrs['way'], file.attrs['made']
            file.attrs['complete'] = 1
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:                    # h5py raises either for a failed write
        found = re.search(r'errno = (\d+)', str(error))
        if found:
            reason = os.strerror(int(found[1]))
        elif isinstance(error, OSError):
            reason = error.strerror or error
        else:
            raise
        raise UserError(f"could not write '{path}': {reason}") from error
    except (SystemExit, KeyboardInterrupt):
        if _goes_on(temporary, way):
            os.replace(temporary, part)
        raise
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def make_command(argv):
    """The command line `python data.py make NAME ..`: make one file."""
    entries = equations.entries()
    keys = equations.parameter_keys()
    parser = argparse.ArgumentParser('data.py make', description='Make a data file with a built-in solver.',
                                     allow_abbrev=False)
    parser.add_argument('name', choices=[name for name, entry in entries.items() if entry.solve])
    parser.add_argument('--n', type=int, default=1000, help='trajectories')
    for key in keys:
        having = [name for name, entry in entries.items() if key in map(str.lower, entry.params)]
        parser.add_argument(f'--{key}', type=float, help=f"parameter of {', '.join(having)}")
    parser.add_argument('--seed', type=int, default=0, help='of the initial conditions')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--batch_size', type=int, default=None, help='trajectories solved at a time')
    parser.add_argument('--resolution', type=int, default=0, help="cells per axis (default: PDEBench's)")
    parser.add_argument('--data_dir', default='datasets', help='folder of the file')
    parser.add_argument('--out', help='file to write, or a folder for it (default: --data_dir)')
    args = parse_flags(parser, argv)
    params = equations.parameters(args.name, {key: getattr(args, key) for key in keys})
    out = args.data_dir if args.out is None else args.out
    if args.out is None or os.path.isdir(out) or out.endswith(os.sep):
        out = os.path.join(out, entries[args.name].made(params, args.n, args.resolution, args.seed))
    elif not out.endswith(('.hdf5', '.h5')):
        raise UserError(f"--out '{out}' must end with .hdf5 or .h5, or with a / for a folder")
    if os.path.exists(out):
        raise UserError(f"'{out}' exists: remove it first, or write elsewhere with --out")
    write_file(out, args.name, params, args.n, args.seed, args.device, args.batch_size, args.resolution)
