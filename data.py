"""
Data: PDEBench-layout HDF5 in, batches out.

    python data.py inspect FILE [--json]      # what is in it, every row checked; exit 1 if broken

A 1D Burgers file holds `tensor` (N, T, X) = (trajectory, time, cell), `x-coordinate` (X,), `t-coordinate`
(T + 1,) (one more than there are frames) and the attribute `Nu`. Coordinates and times stay in physical
units. Two generations of the released files exist, told apart by the first coordinate: the new one lives on
(0, 1) with the flux u²/2, the old one on (-1, 1) with the flux u².

Rows are split by trajectory index: first 10 % test, next 10 % validation, the rest train. Training opens
train and validation rows only. Files of several ν share their initial conditions row by row, so one index
belongs to one split in all of them.
"""
import argparse
import hashlib
import json
import os
import sys
from dataclasses import dataclass

import h5py
import numpy as np
import torch

import solvers
from configurator import UserError, one_line_errors, say

CHUNK_ROWS = 16                       # rows read at a time: 13 MB of a released file


# ---------------------------------------------------------------------------------------------
# one file

@dataclass(frozen=True)
class Source:
    """One opened and checked file; holds no rows."""
    path: str
    pde: str                          # 'burgers'
    fields: tuple                     # names of the channels
    n: int                            # trajectories
    n_frames: int
    dt: float                         # seconds between stored frames
    x: tuple                          # one float64 array of coordinates an axis
    low: tuple                        # lower corner of the domain
    length: tuple                     # its extent
    periodic: bool
    params: dict                      # PDE parameters by name
    generation: str                   # 'new' or 'old' flux
    dtype: str

    @property
    def shape(self):
        return tuple(len(axis) for axis in self.x)


def open_source(path, quiet=False):
    """Open and check one file's layout without reading its rows. Returns a Source.
    Raises UserError for a missing, truncated, incomplete or differently laid out file."""
    if not os.path.exists(path):
        folder = os.path.dirname(path) or '.'
        found = sorted(f for f in os.listdir(folder) if f.endswith(('.h5', '.hdf5'))) if os.path.isdir(folder) else []
        raise UserError(f"no data file '{path}' (" + (f"{folder} holds {', '.join(found[:5])}" if found else
                        f'{folder} holds no .hdf5 file') + '): python solvers.py burgers --n 1000 makes one')
    if os.path.isdir(path):
        raise UserError(f"'{path}' is a directory, expected an HDF5 file")
    try:
        with h5py.File(path, 'r') as file:
            return _check_layout(path, file, quiet)
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, AttributeError, TypeError) as error:  # damaged metadata
        raise _unreadable(path, error) from error


def _unreadable(path, error):
    hint = ('another program is writing it; on a network disk try HDF5_USE_FILE_LOCKING=FALSE'
            if 'unable to lock' in str(error) else 'truncated or damaged: make or download it again')
    return UserError(f"cannot read '{path}' ({os.path.getsize(path)} bytes): {error}; {hint}")


def _check_layout(path, file, quiet):
    for key in ('tensor', 'x-coordinate', 't-coordinate'):
        if key not in file:
            shapes = {k: getattr(v, 'shape', 'group') for k, v in file.items()}
            raise UserError(f"'{path}' has no dataset '{key}': expected tensor (N, T, X), x-coordinate (X,), "
                            f't-coordinate (T + 1,); found {shapes or "nothing"}')
        if not isinstance(file.get(key, getlink=True), h5py.HardLink) or not isinstance(file[key], h5py.Dataset) \
                or file[key].external or file[key].is_virtual:
            raise UserError(f"'{path}': '{key}' is no dataset of this file; links to elsewhere are not followed")
    tensor, x, t = file['tensor'], file['x-coordinate'], file['t-coordinate']
    if tensor.ndim != 3 or x.ndim != 1 or t.ndim != 1 or tensor.shape[2] != x.shape[0]:
        swapped = tensor.ndim == 3 and x.ndim == 1 and x.shape[0] in tensor.shape
        raise UserError(f"'{path}': expected tensor (N, T, X) with X = {x.shape} of x-coordinate; found "
                        f'tensor {tensor.shape}' + ('; its axes seem to be swapped' if swapped else ''))
    n, n_frames, n_cells = tensor.shape
    if len(t) not in (n_frames, n_frames + 1):
        raise UserError(f"'{path}': {n_frames} frames but {len(t)} times in t-coordinate "
                        f'(expected {n_frames + 1}, or {n_frames})')
    if not np.all(file.attrs.get('complete', 1)):
        raise UserError(f"'{path}' is marked incomplete: delete it and make it again")
    if tensor.chunks is None and tensor.id.get_storage_size() < tensor.size * tensor.dtype.itemsize:
        raise UserError(f"'{path}' claims {tensor.shape} values but stores only "
                        f'{tensor.id.get_storage_size()} bytes: it was never filled')
    if tensor.chunks is not None and tensor.id.get_num_chunks() < np.prod(
            [-(-s // c) for s, c in zip(tensor.shape, tensor.chunks)]):
        raise UserError(f"'{path}' claims {tensor.shape} values but lacks some of its chunks: it was never filled")
    if tensor.dtype.kind not in 'fiu':
        raise UserError(f"'{path}': tensor holds {tensor.dtype}, expected numbers")
    if n < 1 or n_frames < 2 or n_cells < 2:
        raise UserError(f"'{path}': tensor {tensor.shape} is too small: at least 1 trajectory, 2 frames, 2 cells")
    x, t = x[:].astype(np.float64), t[:n_frames].astype(np.float64)
    dx, dt = np.diff(x), np.diff(t)
    if not (np.isfinite(x).all() and dx.min() > 0 and np.allclose(dx, dx.mean(), rtol=1e-2)):
        raise UserError(f"'{path}': x-coordinate is not a uniform increasing grid")
    if not (np.isfinite(t).all() and dt.min() > 0 and np.allclose(dt, dt.mean(), rtol=1e-2)):
        raise UserError(f"'{path}': t-coordinate does not increase uniformly")
    if 'Nu' not in file.attrs:
        raise UserError(f"'{path}' has no attribute Nu, so it is not a Burgers file; "
                        f'its attributes are {dict(file.attrs) or "none"}')
    nu = float(np.squeeze(file.attrs['Nu']))
    if not (np.isfinite(nu) and nu > 0):
        raise UserError(f"'{path}': Nu={nu} must be positive")
    old = x[0] < 0
    if not quiet:
        if old:
            say(f"data: '{path}' is of the old generation (x in (-1, 1)): it solves u_t + (u²)_x, without the "
                  '1/2 of the corrected files; figures on the two are not comparable')
        if tensor.dtype != np.float32:
            say(f"data: '{path}' holds {tensor.dtype}, cast to float32")
    length = 2. if old else 1.
    if abs(n_cells * dx.mean() - length) > .02 * length:
        raise UserError(f"'{path}': x spans {n_cells * dx.mean():g}; expected (0, 1), or (-1, 1) of the old generation")
    return Source(path, 'burgers', ('u',), n, n_frames, float((t[-1] - t[0]) / (n_frames - 1)),
                  (x,), (-1. if old else 0.,), (length,), True, {'Nu': nu}, 'old' if old else 'new',
                  str(tensor.dtype))


def read_rows(source, rows, time_stride=1, space_stride=1, check=True):
    """Rows of a file, strided in time and space: (len(rows), T, X, C) float32. rows: a range of step 1.
    Raises UserError for values that are not finite (with their count and first index) or a failed checksum."""
    n_frames, n_cells = -(-source.n_frames // time_stride), -(-source.shape[0] // space_stride)
    out = np.empty((len(rows), n_frames, n_cells, 1), np.float32)
    try:
        with h5py.File(source.path, 'r') as file:
            for first in range(0, len(rows), CHUNK_ROWS):
                stop = min(first + CHUNK_ROWS, len(rows))
                block = file['tensor'][rows.start + first:rows.start + stop, ::time_stride]
                out[first:stop, ..., 0] = block[..., ::space_stride]    # HDF5 itself strides cells slowly
    except OSError as error:
        raise _unreadable(source.path, error) from error
    if check:
        check_finite(source.path, out, rows.start)
    return out


def check_finite(path, u, first_row=0):
    bad = ~np.isfinite(u)
    if bad.any():
        row, frame = np.argwhere(bad)[0][:2]
        raise UserError(f"'{path}': {bad.sum()} values are not finite, the first in trajectory "
                        f'{first_row + row}, frame {frame} (of those read)')


def split_rows(n, split):
    """Rows of a split: first 10 % test, next 10 % validation, the rest train; at least one each."""
    if n < 3:
        raise UserError(f'{n} trajectories cannot be split into train, val and test: at least 3 are needed')
    part = max(1, n // 10)
    return {'test': range(0, part), 'val': range(part, 2 * part), 'train': range(2 * part, n),
            'all': range(0, n)}[split]


def check_overlap(named_rows):
    """Refuse two equal initial conditions in different splits. named_rows: {split: (first row, u (N, T, X, C))}."""
    seen = {}
    for split, (first, u) in named_rows.items():
        for row, frame in enumerate(u[:, 0]):
            if np.ptp(frame) == 0:                                      # a constant field leaks nothing
                continue
            key = hashlib.sha256(np.ascontiguousarray(frame).tobytes()).digest()
            other = seen.setdefault(key, (split, first + row))
            if other[0] != split:
                raise UserError(f'trajectory {first + row} ({split}) has the same initial condition as trajectory '
                                f'{other[1]} ({other[0]}): the splits leak into each other')


def find_or_make(data_dir, data_path, nu, n_trajectories, device='cpu', before_making=lambda: None):
    """Paths of the files a config asks for. An explicit data_path must exist. Otherwise the released file, or the
    built-in solver's file of that many trajectories, is looked for in data_dir, and made there if absent, after a call
    of before_making()."""
    if data_path:
        paths = [data_path] if os.path.exists(data_path) else [p.strip() for p in data_path.split(',') if p.strip()]
        for path in paths:
            if not os.path.exists(path):
                raise UserError(f"data_path '{path}' does not exist: leave data_path empty to have the data made")
        if not paths:
            raise UserError(f"data_path='{data_path}' names no file")
        return paths
    released = os.path.join(data_dir, f'1D_Burgers_Sols_Nu{float(nu)}.hdf5')         # Nu0.001, Nu1.0
    path = solvers.burgers_path(data_dir, nu, n_trajectories)
    if os.path.exists(released):
        return [released]
    if not os.path.exists(path):
        say(f"data: no '{released}' and no '{path}'")
        before_making()
        solvers.write_burgers(path, n_trajectories, nu, device=device)
    return [path]


# ---------------------------------------------------------------------------------------------
# training and validation windows

def check_strides(n_cells, n_frames, time_stride, space_stride, query_stride, window):
    """Raise UserError where the strides do not fit the cells, or a window of frames the trajectory."""
    if n_cells % space_stride or space_stride % query_stride:
        raise UserError(f'space_stride={space_stride} must divide the {n_cells} cells of the file, and '
                        f'query_stride={query_stride} must divide space_stride')
    if -(-n_frames // time_stride) < window:
        raise UserError(f'{n_frames} frames at time_stride={time_stride} leave {-(-n_frames // time_stride)}, but a '
                        f'window of input frames + unroll needs {window}')


class Windows:
    """Windows of consecutive frames from the train rows of one or several files.

    get(index, shift) gathers and augments a batch, in memory (on the device) or straight from HDF5: the
    same numbers either way. u is kept on the query grid, `query_stride` cells apart; the encoder's grid is
    every `ratio`-th of its points.
    """

    def __init__(self, sources, n_trajectories, time_stride, space_stride, query_stride, window, device,
                 memory_gb=-1., early=1.):
        self.sources, self.device, self.window = sources, device, window
        self.time_stride, self.query_stride = time_stride, query_stride
        self.ratio = space_stride // query_stride
        first = sources[0]
        n = min(n_trajectories, *(s.n for s in sources))
        if n < n_trajectories:
            say(f'data: {n} trajectories are there, n_trajectories={n_trajectories} were asked for')
        self.n_trajectories = n
        for s in sources:
            if (s.n_frames, s.shape, s.generation) != (first.n_frames, first.shape, first.generation) \
                    or abs(s.dt - first.dt) > 1e-9:
                raise UserError(f"'{s.path}' and '{first.path}' differ in frames, grid, time step or generation")
        n_cells = first.shape[0]
        check_strides(n_cells, first.n_frames, time_stride, space_stride, query_stride, window)
        self.n_frames, self.n_points = -(-first.n_frames // time_stride), n_cells // query_stride
        self.rows, self.val_rows = split_rows(n, 'train'), split_rows(n, 'val')
        self.n_starts = self.n_frames - window + 1
        # start frames as n_starts U^early: more than 1 visits the early, steep frames more often than the late ones
        self.starts = (self.n_starts * ((torch.arange(self.n_starts) + .5) / self.n_starts) ** early).long()
        self.n_windows = len(sources) * len(self.rows) * self.n_starts
        self.n_files_rows = len(sources) * len(self.rows)

        val = [read_rows(s, self.val_rows, time_stride, query_stride) for s in sources]
        self.val = torch.from_numpy(np.concatenate(val))[:, :, ::self.ratio]     # (N_val, T, X, C), encoder grid
        n_bytes = self.n_files_rows * self.n_frames * self.n_points * 4
        if memory_gb < 0:
            free = torch.cuda.mem_get_info()[0] if device.type == 'cuda' else _free_memory()
            memory_gb = .5 * free / 1e9
        self.in_memory = n_bytes <= memory_gb * 1e9
        # speed of a field for a unit of its mean: 1 with the flux u²/2, 2 with the flux u²
        self.frame = (2. if first.generation == 'old' else 1.) if first.periodic else 0.
        # one pass over the train rows: finite, statistics, identity, and the rows themselves where they fit
        total, squares, count, digest, filled, initial = 0., 0., 0, hashlib.sha256(), 0, []
        self.u = torch.empty(self.n_files_rows, self.n_frames, self.n_points, len(first.fields), device=device) \
            if self.in_memory else None                                 # (N, T, Xq, C)
        for s in sources:
            digest.update(repr((s.pde, s.n, s.n_frames, s.shape, s.params, s.generation)).encode())
            for start in range(self.rows.start, self.rows.stop, 256):
                part = range(start, min(start + 256, self.rows.stop))
                u = read_rows(s, part, time_stride, query_stride)
                total, squares = total + u.sum(dtype=np.float64), squares + np.square(u, dtype=np.float64).sum()
                count += u.size
                digest.update(u[::max(1, len(part) // 8)].tobytes())
                initial.append(u[:, :1].copy())
                if self.in_memory:
                    self.u[filled:filled + len(u)] = torch.from_numpy(u)
                    filled += len(u)
        # files of several nu repeat their initial conditions, but never across splits
        check_overlap({'train': (self.rows.start, np.concatenate(initial)),
                       'val': (self.val_rows.start, np.concatenate([v[:, :1] for v in val]))})
        self.mean = float(total / count)
        self.std = float(np.sqrt(max(squares / count - self.mean ** 2, 0.)))
        if self.std < 1e-8:
            say(f'data: the train fields are constant (std {self.std:.1e}); scaled by 1 instead')
            self.std = 1.
        means = torch.from_numpy(np.concatenate(initial).mean((1, 2, 3), dtype=np.float64))
        still = squares / count - float(np.mean(np.square(means.numpy())))
        self.std_still = float(np.sqrt(still)) if still > 1e-16 else self.std  # without the mean of each trajectory
        self.drift = (self.frame * means * self._cells_a_step()).round().long()  # (N,) cells a step
        self.identity = digest.hexdigest()
        self.files = None                                               # opened lazily, in this process
        params = [[p for p in s.params.values()] for s in sources]
        self.params = torch.tensor(params, dtype=torch.float32).repeat_interleave(len(self.rows), 0).to(device)
        # validation rows of the files take turns, so that any first few of them cover all files
        self.val = self.val.unflatten(0, (len(sources), -1)).transpose(0, 1).flatten(0, 1)
        self.val_params = torch.tensor(params, dtype=torch.float32).repeat(len(self.val_rows), 1)

    def _cells_a_step(self):
        """Cells of the query grid that speed 1 covers in a step."""
        source = self.sources[0]
        return source.dt * self.time_stride * self.n_points / source.length[0]

    def still(self, index, flip):
        """The boosts (B,) of windows `index` that bring the mean flow to rest, to half a cell a step."""
        return (2 * flip - 1) * self.drift[index // self.n_starts]

    def lift(self, boost):
        """What a Galilean boost (B,) in cells a step adds to the field (B,)."""
        return boost / self._cells_a_step() / (self.frame or 1.)

    def get(self, index, shift, boost, flip, drag=0):
        """Gather windows `index` (B,) and apply exact symmetries of the PDE.

        shift (B,): cells of the query grid by which the domain is rotated; boost (B,): Galilean boost in
        cells a frame, u(x, t) -> u(x - ct, t) + lift with c = boost dx/dt; flip (B,): u(x) -> -u(-x).
        All CPU integer tensors. drag: cells by which the points themselves move on every frame.
        Returns u (B, window, Xq, C) and params (B, P) on the device.
        """
        traj, start = index // self.n_starts, self.starts[index % self.n_starts]
        frame = torch.arange(self.window)
        sign = 1. - 2. * flip
        if self.in_memory:
            send = lambda a: a.to(self.device, non_blocking=True)       # noqa: E731
            u = self.u[send(traj)[:, None], send(start[:, None] + frame)]
        else:
            send = lambda a: a                                          # noqa: E731
            u = torch.from_numpy(self._read(traj.tolist(), start.tolist()))
        # (B, window, Xq): point i of frame k comes from point ±(i - shift - boost k + drag k)
        point = torch.arange(self.n_points) - shift[:, None, None] - ((boost[:, None] - drag) * frame)[..., None]
        point = send(((1 - 2 * flip)[:, None, None] * point) % self.n_points)
        u = torch.gather(u, 2, point[..., None].expand_as(u))
        u = u * send(sign)[:, None, None, None] + send(self.lift(boost).float())[:, None, None, None]
        return u.to(self.device, non_blocking=True), self.params[traj.to(self.device, non_blocking=True)]

    def _read(self, traj, start):
        out = np.empty((len(traj), self.window, self.n_points, 1), np.float32)
        source = self.sources[0]
        try:
            if self.files is None:
                self.files = [h5py.File(s.path, 'r') for s in self.sources]
            for i, (row, first) in enumerate(zip(traj, start)):
                which, row = row // len(self.rows), self.rows[row % len(self.rows)]
                source, frames = self.sources[which], slice(
                    first * self.time_stride, (first + self.window - 1) * self.time_stride + 1, self.time_stride)
                out[i, ..., 0] = self.files[which]['tensor'][row, frames][:, ::self.query_stride]
        except OSError as error:                                        # it was whole when the training began
            raise _unreadable(source.path, error) from error
        return out


class Sampler:
    """Order of the windows as a function of (seed, epoch, cursor): resume is two integers. Every draw is
    made for the whole global batch, so one and several processes see the same one."""

    def __init__(self, n_windows, batch_size, seed, epoch=0, cursor=0):
        self.n_windows, self.batch_size, self.seed = n_windows, batch_size, seed
        self.epoch, self.cursor = epoch, cursor
        self.order = None

    def next(self):
        """Indices (batch_size,) of the next global batch; an epoch's short tail is left to the next one."""
        if self.order is None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            self.order = torch.randperm(self.n_windows, generator=generator)
            if len(self.order) < self.batch_size:                       # tiny sets: repeat
                self.order = self.order.repeat(-(-self.batch_size // self.n_windows))
        index = self.order[self.cursor:self.cursor + self.batch_size]
        self.cursor += self.batch_size
        if self.cursor + self.batch_size > len(self.order):
            self.epoch, self.cursor, self.order = self.epoch + 1, 0, None
        return index

    def state(self):
        return {'epoch': self.epoch, 'cursor': self.cursor}


def _free_memory():
    try:
        with open('/proc/meminfo') as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith('MemAvailable'))
    except (OSError, StopIteration):                                    # not Linux
        return 8e9


# ---------------------------------------------------------------------------------------------
# inspect

def inspect(path):
    """Everything worth knowing of a file as JSON types; reads every row. Raises UserError if it is broken."""
    source = open_source(path, quiet=True)
    low, high, total, squares, count = np.inf, -np.inf, 0., 0., 0
    seen = {}
    for start in range(0, source.n, CHUNK_ROWS):
        part = range(start, min(start + CHUNK_ROWS, source.n))
        u = read_rows(source, part)
        low, high = min(low, float(u.min())), max(high, float(u.max()))
        total, squares = total + u.sum(dtype=np.float64), squares + np.square(u, dtype=np.float64).sum()
        count += u.size
        for row, frame in zip(part, u[:, 0]):
            if np.ptp(frame) == 0:
                continue
            seen.setdefault(hashlib.sha256(frame.tobytes()).digest(), []).append(row)
    splits = {row: name for name in ('test', 'val', 'train') for row in
              (split_rows(source.n, name) if source.n >= 3 else ())}
    for rows in seen.values():
        if len({splits.get(row) for row in rows}) > 1:
            raise UserError(f"'{path}': trajectories {', '.join(map(str, rows[:5]))} share one initial condition "
                            'but belong to different splits')
    mean = total / count
    return {'path': path, 'pde': source.pde, 'generation': source.generation, 'fields': list(source.fields),
            'trajectories': source.n, 'frames': source.n_frames, 'cells': list(source.shape), 'dt': source.dt,
            'first_x': float(source.x[0][0]), 'domain': [[lo, lo + length] for lo, length in
                                                         zip(source.low, source.length)],
            'periodic': source.periodic, 'params': source.params, 'dtype': source.dtype, 'min': low, 'max': high,
            'mean': mean, 'std': float(np.sqrt(max(squares / count - mean ** 2, 0.))),
            'duplicates': sum(len(rows) - 1 for rows in seen.values())}


if __name__ == '__main__':
    one_line_errors()
    parser = argparse.ArgumentParser(description='Look into a PDEBench-layout file and check every row.')
    parser.add_argument('command', choices=['inspect'])
    parser.add_argument('file')
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parser.parse_args()
    found = inspect(args.file)
    if args.json:
        json.dump(found, sys.stdout, indent=1)
        print()
    else:
        for key, value in found.items():
            print(f'{key:>13}  {value}')
