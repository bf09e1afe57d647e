"""
Data: trajectories in, batches of windows out.

    python data.py inspect FILE [--json]      # what is in it, every row checked; exit 1 if broken

files.py reads the files. Here their rows are split, their statistics taken (of train rows only, one mean and
one scale a field), kept in memory or read when they are needed, cut into windows of consecutive frames, and
transformed by the exact symmetries that the equation's entry in pdes.py promises. Everything random follows
from (seed, iteration), and is drawn for the whole batch, so a resumed run and several processes see the same
batches.
"""
import argparse
import hashlib
import json
import os
import sys
from typing import NamedTuple

import numpy as np
import torch

from files import (blocks, check_finite, check_overlap, fingerprints, inspect, opened, read, spacing_doubts,
                   split_rows)
from grids import positions, random_points
from runtime.configurator import UserError, one_line_errors, say


class Batch(NamedTuple):
    """A batch of windows, normalised, on the device. Its frames follow the tokens: frame k is seen on points
    that have moved on k times, in the frame of the mean flow where there is one. Of a cache (cache.py) it has
    tokens in place of fields: u, q, y and lift are None."""
    u: torch.Tensor                       # (B, window, *grid, C): what the encoder sees
    q: torch.Tensor                       # (Q, d): query points, physical coordinates
    y: torch.Tensor                       # (B, window, *grid, C): the true fields at the query points
    lift: torch.Tensor                    # (B, 1, *1, C): what mean and moving frame have taken off u and y
    params: torch.Tensor                  # (B, P)
    dt: torch.Tensor                      # (B,) seconds
    scale: torch.Tensor = torch.ones(())  # of fields, (Q, 1), where a loss takes some of the points
    iteration: int = 0
    points: torch.Tensor | None = None    # (P, d): where an encoder of points sees u, physical coordinates
    placement: tuple | None = None        # what that encoder needs to know of them (stages.Stage.placed)
    z: torch.Tensor | None = None         # (B, window - input_frames + 1, S, D): encodings of u


# ---------------------------------------------------------------------------------------------
# trajectories

def check_strides(shape, n_frames, time_stride, space_stride, query_stride, window):
    """Raise UserError where the strides do not fit the cells, or a window of frames the trajectory."""
    for cells in shape:
        if cells % space_stride or space_stride % query_stride:
            raise UserError(f'space_stride={space_stride} must divide the {cells} cells of the file, and '
                            f'query_stride={query_stride} must divide space_stride')
    n = -(-n_frames // time_stride)
    if n < window:
        raise UserError(f'{n_frames} frames at time_stride={time_stride} leave {n}, but a window of input '
                        f'frames + unroll needs {window}')


class Trajectories:
    """
    The train and validation rows of one or several files that share an equation and a grid.

    Fields are kept on the query grid, query_stride cells apart; the encoder's grid is every `ratio`-th of its
    points along each axis. Several files (several parameter values) share their initial conditions row by
    row, so a row belongs to the same split in all of them. Raises UserError for files that differ, strides
    that do not fit, splits that overlap, and values that are not finite.
    """

    def __init__(self, sources, keys, device, processes=1):
        """sources: of open_source. keys: has n_trajectories, time_stride, space_stride, query_stride,
        memory_gb."""
        self.sources = sources
        self.device = device
        self.keys = keys
        first = sources[0]
        self.entry = first.entry
        self.ratio = keys.space_stride // keys.query_stride
        self.n_trajectories = min(keys.n_trajectories, *(s.n for s in sources))
        if self.n_trajectories < keys.n_trajectories:
            say(f'data: {self.n_trajectories} trajectories are there, n_trajectories={keys.n_trajectories} '
                'were asked for')
        for s in sources:
            same = (s.pde, s.n_frames, s.shape) == (first.pde, first.n_frames, first.shape)
            if not same or abs(s.dt - first.dt) > 1e-9:
                raise UserError(f"'{s.path}' and '{first.path}' differ in equation, frames, grid or time "
                                'step')
            for doubt in spacing_doubts(s.x, s.entry):
                if not s.periodic:
                    raise UserError(f"'{s.path}': {doubt} Between walls a model takes centres of cells")
                say(f"data: '{s.path}': {doubt} Shifted by a point, these fields are not quite a solution")
        self.dt = first.dt * keys.time_stride
        self.n_frames = -(-first.n_frames // keys.time_stride)
        self.query_grid = tuple(cells // keys.query_stride for cells in first.shape)
        self.grid = tuple(n // self.ratio for n in self.query_grid)
        self.rows = split_rows(self.n_trajectories, 'train', self.entry.test)
        self.val_rows = split_rows(self.n_trajectories, 'val', self.entry.test)
        self.n_rows = len(sources) * len(self.rows)
        n_value = self.n_rows * self.n_frames * np.prod(self.query_grid) * len(self.entry.fields)
        self.in_memory = self.fits(n_value, processes)
        self.files = None                                            # opened when first read, in this process
        self.read_validation()
        self.read_train()

    def fits(self, n_value, processes):
        """May so many float32 numbers live in the memory of the device, as memory_gb says?"""
        limit = self.keys.memory_gb
        if limit < 0:
            is_cuda = self.device.type == 'cuda'
            free = torch.cuda.mem_get_info(self.device)[0] if is_cuda else _free_memory() / processes
            limit = .5 * free / 1e9
        return 4 * n_value <= limit * 1e9

    def strided(self, u):
        """Cells (n, T, *X, C) -> the query grid."""
        stride = slice(None, None, self.keys.query_stride)
        return u[(slice(None), slice(None), *[stride] * len(self.query_grid))]

    def on_encoder_grid(self, u):
        """(B, T, *query grid, C) -> (B, T, *grid, C)"""
        for axis in range(2, u.ndim - 1):
            u = u.unfold(axis, 1, self.ratio).squeeze(-1)
        return u

    def read_validation(self):
        """self.val (N, T, *grid, C), on the CPU, and its parameters. Rows of several files take turns, so
        that any first few of them cover all files."""
        values = []
        prints = []
        for s in self.sources:
            for offset, u in blocks(s, self.val_rows, self.keys.time_stride):
                check_finite(s.path, u, self.val_rows.start + offset)
                prints.append(fingerprints(u[:, 0]))
                values.append(self.on_encoder_grid(torch.from_numpy(self.strided(u).copy())))
        val = torch.cat(values).unflatten(0, (len(self.sources), -1))
        self.val = val.transpose(0, 1).flatten(0, 1).contiguous()
        self.val_prints = np.concatenate(prints)
        params = torch.tensor([list(s.params.values()) for s in self.sources], dtype=torch.float32)
        self.val_params = params.repeat(len(self.val_rows), 1)
        self.params = params.repeat_interleave(len(self.rows), 0).to(self.device)        # (N, P)

    def read_train(self):
        """One pass over the train rows: statistics, identity, fingerprints, and the rows themselves where
        they fit."""
        n_field = len(self.entry.fields)
        total = np.zeros(n_field)
        squares = np.zeros(n_field)
        rest_squares = np.zeros(n_field)
        count = 0
        means = []
        prints = []
        digest = hashlib.sha256()
        self.u = None
        if self.in_memory:
            self.u = torch.empty(self.n_rows, self.n_frames, *self.query_grid, n_field, device=self.device)
        filled = 0
        for s in self.sources:
            digest.update(repr((s.pde, s.n, s.n_frames, s.shape, s.params)).encode())
            for offset, cells in blocks(s, self.rows, self.keys.time_stride):
                prints.append(fingerprints(cells[:, 0]))
                u = np.ascontiguousarray(self.strided(cells))
                check_finite(s.path, u, self.rows.start + offset)
                flat = u.reshape(-1, n_field)
                total += flat.sum(0, dtype=np.float64)
                squares += np.square(flat, dtype=np.float64).sum(0)
                count += len(flat)
                mean = u[:, 0].reshape(len(u), -1, n_field).mean(1, dtype=np.float64)        # (n, C)
                means.append(mean)
                rest = u.reshape(len(u), -1, n_field) - mean[:, None]
                rest_squares += np.square(rest).sum((0, 1))
                digest.update(u[::8].tobytes())
                if self.in_memory:
                    self.u[filled:filled + len(u)] = torch.from_numpy(u)
                filled += len(u)
        self.prints = np.concatenate(prints)
        check_overlap({'train': (self.rows.start, self.prints),
                       'val': (self.val_rows.start, self.val_prints)})
        self.identity = digest.hexdigest()
        self.row_means = np.concatenate(means)                       # (N, C): of the first frames
        self.mean = total / count
        self.mean_square = squares / count
        self.rest_square = rest_squares / count                     # about the mean of each row's first frame

    def statistics(self, moving):
        """Mean and scale of each field, as tuples of C numbers. moving: fields whose mean a frame takes off;
        their mean is 0, and their scale that of what is left."""
        mean = self.mean.copy()
        variance = self.mean_square - mean ** 2
        for field in moving:
            mean[field] = 0.
            variance[field] = self.rest_square[field]
        std = np.sqrt(np.maximum(variance, 0.))
        for field, name in enumerate(self.entry.fields):
            if std[field] < 1e-8:
                say(f'data: the train fields {name} are constant (std {std[field]:.1e}); scaled by 1 instead')
                std[field] = 1.
        return tuple(mean.tolist()), tuple(std.tolist())

    # ---- what checkpoints know of the data

    def describe(self, paths, run):
        """What a checkpoint says of the data: where the files are (as typed, absolute, and as seen from the
        run folder, so that both may move together), which they are, and what they began like, for checks of
        leaks: also what the run was fine-tuned from has seen."""
        seen = [self.prints, self.val_prints]
        for earlier in (run.parent, run.state):
            if earlier:
                seen.append(earlier['data']['seen'].numpy())
        return {'paths': paths,
                'absolute': [os.path.abspath(path) for path in paths],
                'relative': [os.path.relpath(path, run.folder) for path in paths],
                'identity': self.identity, 'n_trajectories': self.n_trajectories,
                'seen': torch.from_numpy(np.unique(np.concatenate(seen)))}

    def check_history(self, run, force):
        """Refuse to resume on other data, and to fine-tune where the parent was trained on what is now the
        test part: its errors would be too low."""
        if run.state and run.state['data']['identity'] != self.identity and not force:
            raise UserError(f"the data are not those that '{run.folder}' was trained on (another file, seed "
                            'or number of rows): put them back, or --force_data=true')
        if run.parent:
            rows = split_rows(self.n_trajectories, 'test', self.entry.test)
            for s in self.sources:
                again = seen_rows(s, rows, run.parent['data']['seen'])
                if again:
                    raise UserError(f"{len(again)} of {len(rows)} test trajectories of '{s.path}' (first: "
                                    f"{again[0]}) begin like ones that '{run.parent_path}' was trained on, "
                                    'so a test would say nothing: take its n_trajectories, or data of '
                                    'another seed')

    # ---- windows

    def gather(self, trajectory, start, window):
        """Windows (B, window, *query grid, C) that begin at frames `start` (B,) of rows `trajectory` (B,),
        both on the CPU; on the device where the rows live there."""
        if self.in_memory:
            frame = start[:, None] + torch.arange(window)
            index = torch.stack([trajectory[:, None].expand_as(frame), frame])
            index = index.to(self.device, non_blocking=True)
            return self.u[index[0], index[1]]
        return torch.from_numpy(self._read(trajectory.tolist(), start.tolist(), window))

    def _read(self, trajectory, start, window):
        out = np.empty((len(trajectory), window, *self.query_grid, len(self.entry.fields)), np.float32)
        if self.files is None:
            self.files = [opened(s) for s in self.sources]
        stride = self.keys.time_stride
        for i, (row, first) in enumerate(zip(trajectory, start)):
            which = row // len(self.rows)
            row = self.rows[row % len(self.rows)]
            frames = slice(first * stride, (first + window - 1) * stride + 1, stride)
            u = read(self.sources[which], self.files[which], slice(row, row + 1), frames)
            out[i] = self.strided(u)[0]
        return out


def seen_rows(source, rows, seen):
    """Those of `rows` whose first frame is one of the fingerprints `seen` (an int64 tensor). Reads first
    frames."""
    seen = set(seen.tolist()) - {0}
    again = []
    for offset, u in blocks(source, rows, source.n_frames):
        for i, fingerprint in enumerate(fingerprints(u[:, 0]).tolist()):
            if fingerprint in seen:
                again.append(rows.start + offset + i)
    return again


def _free_memory():
    try:
        with open('/proc/meminfo') as file:
            lines = file.readlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith('MemAvailable'))
    except (OSError, StopIteration):                                 # not Linux
        return 8e9


# ---------------------------------------------------------------------------------------------
# windows

class Windows:
    """
    Windows of consecutive frames, gathered and transformed by exact symmetries of the equation.

    A window begins at any frame; early frames, where gradients are steep, are drawn more often: the start is
    the fraction U^early of the possible ones, with U uniform and stratified, so that early=1 visits each once
    an epoch. The symmetries are those that the entry promises: translation of a periodic domain, reflection
    of an axis (the velocity along it changes its sign, and so does a pseudo-scalar), a Galilean boost.
    Neither translation nor boost is used where places differ. With a moving frame, the boost that brings the
    mean flow to rest is applied, to half a cell a step. With token_shift, the points move on every frame, as
    the tokens will.
    """

    def __init__(self, trajectories, cfg, keys):
        """cfg: the ModelConfig. keys: has input_frames, initial_step, query_stride, unroll, early, shift,
        flip, boost, seed, and input_points if the encoder sees points. Raises UserError for a window longer
        than a trajectory, and for tokens that would move where places differ."""
        self.trajectories = trajectories
        self.cfg = cfg
        self.keys = keys
        self.window = keys.input_frames + keys.unroll
        self.first_start = max(keys.initial_step - keys.input_frames, 0)
        self.n_starts = trajectories.n_frames - self.first_start - self.window + 1
        if self.n_starts < 1:
            raise UserError(f'{trajectories.n_frames} frames, from frame {self.first_start} on, are fewer '
                            f'than a window of input_frames={keys.input_frames} + unroll={keys.unroll}')
        self.n_windows = trajectories.n_rows * self.n_starts
        self.d = len(trajectories.query_grid)
        device = trajectories.device
        entry = trajectories.entry
        if cfg.token_shift and not cfg.direction:
            raise UserError(f'token_shift={cfg.token_shift} moves tokens to places that are not alike in '
                            f'{cfg.pde}: --token_shift=0')
        # A boost by one cell of the query grid a step is a velocity along each axis: a change of fields.
        cells = torch.tensor(trajectories.query_grid)
        cell_a_step = torch.tensor(cfg.length) / cells / cfg.dt
        self.lift_of_boost = torch.zeros(self.d, cfg.n_field)
        self.parity = torch.ones(self.d, cfg.n_field)
        for axis, name in enumerate(entry.velocity):
            field = entry.fields.index(name)
            self.parity[axis, field] = -1.
            if entry.galilean:
                self.lift_of_boost[axis, field] = cell_a_step[axis] / entry.galilean
        for name in entry.pseudo:
            self.parity[:, entry.fields.index(name)] = -1.
        self.can_boost = bool(entry.galilean and entry.translates)
        # Where places differ, a reflection has to map the points of the grid onto each other.
        self.can_flip = entry.translates or keys.query_stride == 1 and is_centred(trajectories.sources[0])
        shape = trajectories.query_grid
        self.is_square = len(set(shape)) == 1
        self.can_turn = self.can_flip and self.is_square and shape[0] % entry.turns_on == 0
        # These boosts bring the mean flow of each row to rest, in whole cells a step.
        self.rest = torch.zeros(trajectories.n_rows, self.d, dtype=torch.long)
        if cfg.frame_speed:
            for axis, field in enumerate(cfg.velocity):
                speed = cfg.frame_speed * torch.from_numpy(trajectories.row_means[:, field])
                self.rest[:, axis] = (speed / cell_a_step[axis]).round().long()
        self.rest = self.rest.to(device)
        self.lift_of_boost = self.lift_of_boost.to(device)
        self.parity = self.parity.to(device)
        self.mean = torch.tensor(cfg.mean, device=device)
        self.std = torch.tensor(cfg.std, device=device)
        spacing = [length / n for length, n in zip(cfg.length, trajectories.query_grid)]
        points = positions(trajectories.query_grid, cfg.first, spacing)
        self.points = points.view(*trajectories.query_grid, self.d).to(device)           # all query points

    def trajectory(self, index):
        """Row of the train part (of all files, one after another) that a window belongs to."""
        return index // self.n_starts

    def row_names(self, index):
        """Rows in the file of windows `index`, sorted, for a message."""
        rows = self.trajectories.rows
        return sorted({rows[int(i) % len(rows)] for i in self.trajectory(index)})

    def generator(self, iteration):
        """What is drawn in an iteration follows from the seed and its number."""
        return torch.Generator().manual_seed((self.keys.seed * 1_000_003 + iteration) * 1_009 + 1_008)

    def batches(self, index, iteration, rank=0, world=1, parts=1):
        """The global batch of windows `index` (B,), in `parts` micro-batches; a process takes every world-th
        window. Yields Batch."""
        keys = self.keys
        n = len(index)
        random = self.generator(iteration)

        def whole(low, high, on):
            """Whole numbers for every window and axis, (B, d); zeros where that symmetry is not used."""
            drawn = torch.randint(low, high, (n, self.d), generator=random)
            return drawn if on else torch.zeros_like(drawn)

        entry = self.trajectories.entry
        n_shift = max(self.trajectories.query_grid)
        shift = whole(0, n_shift, keys.shift and entry.translates)
        flip = whole(0, 2, keys.flip and entry.mirror and self.can_flip)
        boost = whole(-keys.boost, keys.boost + 1, keys.boost and self.can_boost) * self.trajectories.ratio
        offset = torch.randint(self.trajectories.ratio, (self.d,), generator=random).tolist()
        start = self.draw_start(index, random)
        element = torch.randint(4, (n,), generator=random)
        own_shift = torch.randint(n_shift, (n,), generator=random)
        drawn = [self.trajectory(index), start, element, own_shift, *shift.T, *flip.T, *boost.T]
        drawn = torch.stack(drawn)[:, rank::world]                   # (4 + 3 d, B of this process)
        points = None
        if self.cfg.encoder == 'points':                             # new ones for every batch
            points = random_points(keys.input_points, self.cfg, random).to(self.trajectories.device)
        for part in drawn.chunk(parts, 1):
            yield self.batch(part, offset, iteration)._replace(points=points)

    def frames(self, n):
        """What the encoder sees of about n windows, spread evenly over all: (N, *grid, C)."""
        index = torch.arange(0, self.n_windows, max(1, self.n_windows // n))
        [batch] = self.batches(index, 0)
        return batch.u.flatten(0, 1)

    def draw_start(self, index, random):
        """Frame at which each window begins, (B,)."""
        stratum = index % self.n_starts
        jitter = torch.rand(len(index), generator=random, dtype=torch.float64)
        if self.keys.early == 1:
            return self.first_start + stratum
        fraction = ((stratum + jitter) / self.n_starts) ** self.keys.early
        return self.first_start + (self.n_starts * fraction).long().clamp_max(self.n_starts - 1)

    def batch(self, drawn, offset, iteration):
        """drawn (4 + 3 d, B): trajectory, start, element and shift of the equation's own group, and shift,
        flip, boost along each axis, on the CPU; offset: of the query points from the encoder's along each
        axis, in cells of the query grid. -> Batch"""
        data = self.trajectories
        d = self.d
        u = data.gather(drawn[0], drawn[1], self.window).to(data.device, non_blocking=True)
        if data.entry.symmetry:
            u = self.of_own_group(u, drawn[2].tolist(), drawn[3].tolist())
        drawn = drawn.to(data.device, non_blocking=True)
        shift, flip, boost = drawn[4:].view(3, d, -1)
        sign = 1 - 2 * flip                                          # (d, B)
        rest = -sign * self.rest[drawn[0]].T                    # brings the mean flow to rest, after the flip
        u = self.transform(u, shift, sign, boost + rest)
        lift = -(rest.T.float() @ self.lift_of_boost)             # (B, C): what that has taken off the fields
        ones = [1] * (d + 1)
        u = (u - self.mean) / self.std
        lift = ((lift + self.mean) / self.std).view(len(u), *ones, -1)
        every = tuple(slice(o, None, data.ratio) for o in offset)
        params = data.params[drawn[0]]
        dt = torch.full((len(u),), self.cfg.dt, device=data.device)
        y = u[(slice(None), slice(None), *every)]
        q = self.points[every].reshape(-1, d)
        return Batch(data.on_encoder_grid(u), q, y, lift, params, dt, iteration=iteration)

    def of_own_group(self, u, elements, shifts):
        """Windows u (B, window, *query grid, C), each transformed by an element of the group that the entry
        of the equation names, as far as it maps the points of this grid onto each other."""
        turns = self.keys.flip and self.can_turn
        moves = self.keys.shift and self.is_square
        moved = []
        for window, element, shift in zip(u.movedim(-1, 1), elements, shifts):
            window = self.trajectories.entry.symmetry(
                window, element if turns else 0, shift if moves else 0)
            moved.append(window)
        return torch.stack(moved).movedim(1, -1)

    def transform(self, u, shift, sign, boost):
        """
        u (B, window, *query grid, C) in physical units; shift, sign, boost (d, B) along each axis: cells by
        which the domain is rotated, -1 for a reflection, cells a frame by which the fields are boosted,
        u(x, t) -> u(x - ct, t) + lift. Point i of frame k comes from point
        sign (i - shift - boost k + drag k), where drag is what the tokens move on.
        """
        drag = self.cfg.token_shift * self.trajectories.ratio
        frame = torch.arange(self.window, device=u.device)
        if self.cfg.direction:
            for axis, n in enumerate(self.trajectories.query_grid):
                step = boost[axis][:, None] - drag * self.cfg.direction[axis]
                point = torch.arange(n, device=u.device) - (shift[axis][:, None] + step * frame)[..., None]
                point = sign[axis][:, None, None] * point % n        # (B, window, n)
                shape = [1] * u.ndim
                shape[:2] = point.shape[:2]
                shape[2 + axis] = n
                u = u.gather(2 + axis, point.view(shape).expand_as(u))
        elif self.can_flip and self.trajectories.entry.mirror:
            for axis in range(self.d):
                here = (sign[axis] < 0).view(-1, *[1] * (u.ndim - 1))
                u = torch.where(here, u.flip(2 + axis), u)
        parity = torch.where(sign[..., None] < 0, self.parity[:, None], 1.).prod(0)      # (B, C)
        lift = boost.T.float() @ self.lift_of_boost
        ones = [1] * (self.d + 1)
        return u * parity.view(len(u), *ones, -1) + lift.view(len(u), *ones, -1)


def is_centred(source):
    """Are the points of a file as far from both ends of the domain along every axis?"""
    middle = [low + length / 2 for low, length in zip(source.low, source.length)]
    gaps = [abs((x[0] + x[-1]) / 2 - m) / (x[1] - x[0]) for x, m in zip(source.x, middle)]
    return max(gaps) < .01


class Sampler:
    """Order of the windows as a function of (seed, epoch, cursor): resume is two integers. Every draw is made
    for the whole global batch, so one and several processes see the same one."""

    def __init__(self, n_windows, batch_size, seed):
        self.n_windows = n_windows
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.cursor = 0
        self.order = None

    def next(self):
        """Indices (batch_size,) of the next global batch; an epoch's short tail is left to the next one."""
        if self.order is None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            self.order = torch.randperm(self.n_windows, generator=generator)
            if len(self.order) < self.batch_size:                    # tiny sets are repeated
                self.order = self.order.repeat(-(-self.batch_size // self.n_windows))
        index = self.order[self.cursor:self.cursor + self.batch_size]
        self.cursor += self.batch_size
        if self.cursor + self.batch_size > len(self.order):
            self.epoch += 1
            self.cursor = 0
            self.order = None
        return index

    def state_dict(self):
        return {'epoch': self.epoch, 'cursor': self.cursor}

    def load_state_dict(self, state):
        self.epoch = state['epoch']
        self.cursor = state['cursor']
        self.order = None


def print_found(found):
    """What `inspect` has found, as text: a line each, then a table of the fields."""
    statistics = ('min', 'max', 'mean', 'std')
    for key, value in found.items():
        if key not in statistics:
            print(f'{key:>13}  {value}')
    print(f"{'field':>13}" + ''.join(f'{name:>13}' for name in statistics))
    for index, field in enumerate(found['fields']):
        values = [found[name][index] for name in statistics]
        print(f'{field:>13}' + ''.join(f'{value:>13.5g}' for value in values))


if __name__ == '__main__':
    one_line_errors()
    parser = argparse.ArgumentParser(description='Look into a data file and check every row.')
    parser.add_argument('command', choices=['inspect'])
    parser.add_argument('file')
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parser.parse_args()
    found = inspect(args.file)
    if args.json:
        json.dump(found, sys.stdout, indent=1)
        print()
    else:
        print_found(found)
