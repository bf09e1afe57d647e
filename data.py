"""
Data: trajectories in, batches of windows out.

    python data.py make burgers --n 1000 --nu .01    # solve, and write a file to datasets/
    python data.py inspect FILE [--json]             # what a file holds; checks every row, exit 1 if broken
    python data.py mesh a.xdmf --pde NAME --out FILE # from meshes (points/meshes.py)

files/ opens and checks the files. Here the rows (trajectories) are split, normalised by mean and standard
deviation of each field over the train rows, kept in memory or read when they are needed, cut into windows of
consecutive frames, and transformed by the exact symmetries of the equation. Everything random follows from
(seed, iteration) and is drawn for the whole batch, so a resumed run and several processes see the same
batches.
"""
import copy
import hashlib
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import NamedTuple

from runtime.configurator import UserError, one_line_errors, say

if __name__ == '__main__':
    one_line_errors()                  # also while the rest is imported

import numpy as np
import torch

from equations.derivatives import is_centred
from files.fit import Signs, check_history, check_together, described, other_units, zero_rows
from files.open import (blocks, check_finite, check_overlap, fingerprints, first_prints, opened, read,
                        split_rows)
from grids import shape_text
from runtime.device import DATA, free_memory, seed_of


CONSTANT = 1e-7                        # a standard deviation of that size, relative to the rms, is rounding


class Batch(NamedTuple):
    """A batch of windows, normalised, on the device. With a moving frame or token_shift, frame k is sampled
    on a grid that has moved k times by the displacement per step, so it matches the latent after k steps."""
    u: torch.Tensor                       # (B, window, *grid, C): fields, without the background
    background: torch.Tensor              # (B, 1, *1, C): mean and mean flow in units of std; u + background
                                          # is the whole field
    params: torch.Tensor                  # (B, P): parameters of the equation
    dt: torch.Tensor                      # (B,) seconds per step
    iteration: int = 0
    where: tuple | None = None            # points at which an encoder of points sees u (points/)
    z: torch.Tensor | None = None         # (B, window, S, D): cached encodings, in place of u


# ---------------------------------------------------------------------------------------------
# trajectories

class Trajectories:
    """
    The train and validation rows of one or several files that share an equation and a grid.

    Fields are kept on the trained grid, space_stride cells apart. Several files (several parameter values)
    share their initial conditions row by row, so a row belongs to the same split in all of them. Of the test
    rows, the first frames are read and compared with those of all other rows, and nothing else. Raises
    UserError for files that differ, splits that overlap, values that are not finite, and negative values of
    positive fields.
    """

    def __init__(self, sources, keys, device, processes=1):
        """sources: files.Source. keys: has n_trajectories, time_stride, other_strides, space_stride,
        initial_step, memory_gb."""
        self.sources = sources
        self.device = device
        self.keys = keys
        first = sources[0]
        self.entry = first.entry
        self.n_trajectories = min(keys.n_trajectories, *(s.n for s in sources))
        if self.n_trajectories < keys.n_trajectories:
            say(f'data: the file has {self.n_trajectories} of n_trajectories={keys.n_trajectories}')
        check_together(sources)
        self.dt = first.dt * keys.time_stride
        strides = (keys.time_stride, *keys.other_strides)
        self.stride = math.gcd(*strides)                             # of the frames that are kept
        self.step_frames = [stride // self.stride for stride in strides]     # kept frames in a step
        self.n_frames = -(-first.n_frames // self.stride)
        self.grid = tuple(cells // keys.space_stride for cells in first.shape)
        self.rows = split_rows(self.n_trajectories, 'train', self.entry.test)
        self.val_rows = split_rows(self.n_trajectories, 'val', self.entry.test)
        self.n_rows = len(sources) * len(self.rows)
        n_value = self.n_rows * self.n_frames * np.prod(self.grid) * len(self.entry.fields)
        places = (device, torch.device('cpu'))                       # where the rows live; else in the files
        self.home = next((place for place in places if self.fits(n_value, processes, place)), None)
        self.files = None                                            # opened when first read, in this process
        self.digest = hashlib.sha256()
        self.prints = {'train': [], 'val': []}                       # (path, first row, fingerprints)
        test_rows = split_rows(self.n_trajectories, 'test', self.entry.test)
        self.prints['test'] = [(s.path, test_rows.start, first_prints(s, test_rows)) for s in sources]
        self.read_validation()
        self.read_train()
        check_overlap(self.prints)
        self.identity = self.digest.hexdigest()

    def fits(self, n_value, processes, device):
        """Do n_value float32 numbers fit into memory_gb of a device's memory? -1: half of what is free."""
        limit = self.keys.memory_gb
        if limit < 0:
            is_cuda = device.type == 'cuda'
            free = torch.cuda.mem_get_info(device)[0] if is_cuda else free_memory() / processes
            limit = .5 * free / 1e9
        return 4 * n_value <= limit * 1e9

    def strided(self, u):
        """Cells (n, T, *X, C) -> the trained grid."""
        stride = slice(None, None, self.keys.space_stride)
        return u[(slice(None), slice(None), *[stride] * len(self.grid))]

    def read_split(self, s, split, rows):
        """Yields the values (n, T, *grid, C) of some rows of a file at a time, and takes down their
        fingerprints and their part of the identity. Raises UserError for values that no model can fit."""
        signs = Signs(s)
        prints = []
        self.digest.update(repr((split, s.pde, s.n, s.n_frames, s.shape, s.params)).encode())
        for offset, cells in blocks(s, rows, self.stride):
            check_finite(s.path, cells, rows.start + offset)
            signs.add(cells)
            prints.append(fingerprints(cells[:, 0]))
            u = np.ascontiguousarray(self.strided(cells))
            self.digest.update(u)
            yield u
        signs.check()
        self.prints[split].append((s.path, rows.start, np.concatenate(prints)))

    def read_validation(self):
        """self.val (N, T, *grid, C), on the CPU, and its parameters. Rows of several files alternate, so any
        first few cover all files. Rows without a relative error are left out."""
        values = []
        for s in self.sources:
            values += [torch.from_numpy(u) for u in self.read_split(s, 'val', self.val_rows)]
        val = torch.cat(values).unflatten(0, (len(self.sources), -1))
        val = val[:, :, ::self.step_frames[0]]
        self.val = val.transpose(0, 1).flatten(0, 1).contiguous()
        params = torch.tensor([list(s.params.values()) for s in self.sources], dtype=torch.float32)
        self.val_params = params.repeat(len(self.val_rows), 1)
        self.params = params.repeat_interleave(len(self.rows), 0).to(self.device)        # (N, P)
        fields = [i for i, name in enumerate(self.entry.fields) if name not in self.entry.static]
        left_out = zero_rows(self.val[:, max(self.keys.initial_step, 1):], fields)
        if len(left_out) == len(self.val):
            raise UserError('every validation trajectory has a field that is 0 everywhere in a frame, so that '
                            'no relative error is defined: python data.py inspect tells which')
        for row in left_out:
            number, which = divmod(row, len(self.sources))
            say(f"data: trajectory {self.val_rows[number]} of '{self.sources[which].path}' has a field that is 0 "
                'everywhere in a frame: no relative error is defined, and validation leaves it out')
        kept = [row for row in range(len(self.val)) if row not in left_out]
        self.val_file = [row % len(self.sources) for row in kept]
        self.val = self.val[kept]
        self.val_params = self.val_params[kept]

    def read_train(self):
        """One pass over the train rows: statistics, and the rows themselves where they fit."""
        n_field = len(self.entry.fields)
        total = np.zeros(n_field)
        squares = np.zeros(n_field)
        moving_squares = np.zeros(n_field)
        count = 0
        means = []
        self.u = None
        if self.home:
            self.u = torch.empty(self.n_rows, self.n_frames, *self.grid, n_field, device=self.home)
        filled = 0
        for s in self.sources:
            for u in self.read_split(s, 'train', self.rows):
                flat = u.reshape(-1, n_field)
                if self.entry.domain:                                # statistics are those inside
                    flat = flat[flat[:, self.entry.fields.index(self.entry.domain)] > 0]
                total += flat.sum(0, dtype=np.float64)
                squares += np.square(flat, dtype=np.float64).sum(0)
                count += len(flat)
                mean = u[:, 0].reshape(len(u), -1, n_field).mean(1, dtype=np.float64)        # (n, C)
                means.append(mean)
                deviation = u.reshape(len(u), -1, n_field) - mean[:, None]
                moving_squares += np.square(deviation).sum((0, 1))
                if self.home:
                    self.u[filled:filled + len(u)] = torch.from_numpy(u)
                filled += len(u)
        self.row_means = np.concatenate(means)                       # (N, C): of the first frames
        self.mean = total / count
        self.mean_square = squares / count
        self.moving_square = moving_squares / count                  # about each row's initial mean

    def statistics(self, moving):
        """Mean and standard deviation of each field, (C,) float32 tensors. moving: numbers of the fields
        whose mean the moving frame takes off: their deviation is that about the mean of each row."""
        mean = self.mean.copy()
        if self.entry.domain:                                        # what is 0 outside of it stays 0
            mean[:] = 0.
        variance = self.mean_square - mean ** 2
        for field in moving:
            mean[field] = 0.
            variance[field] = self.moving_square[field]
        std = np.sqrt(np.maximum(variance, 0.))
        for field, name in enumerate(self.entry.fields):
            if std[field] <= CONSTANT * self.mean_square[field] ** .5:
                say(f'data: the train fields {name} are constant (std {std[field]:.1e}); scaled by 1 instead')
                std[field] = 1.
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()

    def check_units(self, model):
        """Print a warning for each file whose fields are far larger or smaller than the model is scaled for:
        by another file, or by the run that it fine-tunes."""
        for number, s in enumerate(self.sources):
            rows = [row for row, file in enumerate(self.val_file) if file == number]
            note = other_units(self.val[rows], model)
            if note:
                say(f"data: warning: '{s.path}': {note}: are its units others?")

    def text(self):
        files = ', '.join(source.path for source in self.sources)
        home = 'read from HDF5' if self.home is None else f'in the memory of {self.home}'
        return (f'{files} | {self.n_rows} train and {len(self.val)} validation trajectories, '
                f'{self.n_frames} frames of {shape_text(self.grid)} points | {home}')

    def windows(self, model, keys):
        return Windows(self, model, keys)

    def sampler(self, windows, keys):
        return Sampler(windows.n_windows, keys.batch_size, keys.seed)

    def normalise(self, model, keys):
        """Give a new model the mean and scale of the fields, and the components that basis=components asks for."""
        cfg = model.cfg
        model.normalise(*self.statistics(moving=cfg.velocity if cfg.galilean else ()))
        if cfg.basis == 'components':
            model.encoder.patches.fit(Windows(self, model, keys).frames(1000).cpu())

    # ---- what checkpoints know of the data

    describe = described                                             # what a checkpoint stores of the data

    def check_history(self, run):
        """As fit.check_history."""
        check_history(run, self.identity, self.sources, self.n_trajectories)

    # ---- windows

    def gather(self, trajectory, start, window, step=1):
        """Windows (B, window, *grid, C) of frames start, start + step .. of rows `trajectory`, (B,) on the CPU.
        They are on the device where the rows live there, else in memory that it copies without waiting."""
        if self.home is None:
            u = torch.from_numpy(self.read_windows(trajectory.tolist(), start.tolist(), window, step))
        else:
            frame = start[:, None] + step * torch.arange(window)
            index = torch.stack([trajectory[:, None].expand_as(frame), frame])
            index = index.to(self.home, non_blocking=True)
            u = self.u[index[0], index[1]]
        return u.pin_memory() if self.device.type == 'cuda' and u.device.type == 'cpu' else u

    def read_windows(self, trajectory, start, window, step):
        out = np.empty((len(trajectory), window, *self.grid, len(self.entry.fields)), np.float32)
        if self.files is None:
            self.files = [opened(s) for s in self.sources]
        for i, (row, first) in enumerate(zip(trajectory, start)):
            which = row // len(self.rows)
            row = self.rows[row % len(self.rows)]
            frames = slice(first * self.stride, (first + (window - 1) * step) * self.stride + 1, step * self.stride)
            u = read(self.sources[which], self.files[which], slice(row, row + 1), frames)
            out[i] = self.strided(u)[0]
        return out


# ---------------------------------------------------------------------------------------------
# windows

class Draw(NamedTuple):
    """What is drawn for each window of a batch; (B,), or (B, d) with a value for each axis."""
    row: torch.Tensor                     # row of the train part
    start: torch.Tensor                   # frame at which the window begins
    element: torch.Tensor                 # of the equation's own group
    shift: torch.Tensor                   # circular shift, grid points
    flip: torch.Tensor                    # 1 reflects the axis


class Windows:
    """
    Windows of consecutive frames, transformed by exact symmetries of the equation (its entry in equations/).

    The start frame is n_starts U^early_bias with U ~ Uniform(0, 1), stratified over an epoch; early_bias = 1
    visits every start once per epoch. Symmetries are circular shifts of a periodic domain, reflections (a
    velocity along the axis and a pseudo-scalar change sign), and the equation's own group. With a moving
    frame, each trajectory is Galilean-boosted so that its mean velocity is 0, to half a grid point per step.
    With token_shift, the grid moves on every frame, as the tokens will. With other_strides, batches of the
    different time steps are mixed; a window starts where one of the longest step still fits.
    """

    def __init__(self, trajectories, model, keys):
        """keys: has initial_step, unroll, early_bias, symmetries, seed, space_stride. Raises UserError for a
        window longer than a trajectory."""
        cfg = model.cfg
        entry = trajectories.entry
        self.trajectories = trajectories
        self.model = model
        self.keys = keys
        self.grid = trajectories.grid
        self.d = len(self.grid)
        self.window = 1 + keys.unroll
        self.step_frames = trajectories.step_frames
        self.first_start = max(keys.initial_step - 1, 0) * self.step_frames[0]
        self.n_starts = trajectories.n_frames - self.first_start - keys.unroll * max(self.step_frames)
        if self.n_starts < 1:
            raise UserError(f'{trajectories.n_frames} frames, from frame {self.first_start} on, are fewer '
                            f'than the {self.window} of a window of unroll={keys.unroll} steps')
        self.n_windows = trajectories.n_rows * self.n_starts
        cell_a_step = torch.tensor(cfg.length) / torch.tensor(self.grid) / cfg.dt
        self.velocity = torch.zeros(self.d, cfg.n_field)             # that a boost by one cell per step adds
        self.parity = torch.ones(self.d, cfg.n_field)                # sign under a reflection of each axis
        for axis, name in enumerate(entry.velocity):
            field = entry.fields.index(name)
            self.parity[axis, field] = -1.
            if entry.galilean:
                self.velocity[axis, field] = cell_a_step[axis] / entry.galilean
        for name in entry.pseudo:
            self.parity[:, entry.fields.index(name)] = -1.
        # In a domain with walls or a force, a reflection has to map the points of the grid onto each other.
        points = [torch.from_numpy(x[::keys.space_stride].copy()) for x in trajectories.sources[0].x]
        self.can_flip = entry.translation_invariant or is_centred(points, entry)
        self.is_square = len(set(self.grid)) == 1
        self.can_turn = self.can_flip and self.is_square and self.grid[0] % entry.turns_on == 0
        # Boosts that bring the mean flow of each row to rest, in whole cells per step, for each time step.
        self.times = torch.tensor(self.step_frames) / self.step_frames[0]     # time steps / that of the model
        self.boost = torch.zeros(len(self.times), trajectories.n_rows, self.d, dtype=torch.long)
        if cfg.galilean:
            for axis, field in enumerate(cfg.velocity):
                speed = cfg.galilean * torch.from_numpy(trajectories.row_means[:, field])
                cells = self.times[:, None] * speed / cell_a_step[axis]
                self.boost[..., axis] = -cells.round().long()
        for name in ('boost', 'times', 'velocity', 'parity'):
            setattr(self, name, getattr(self, name).to(trajectories.device))
        self.reader = ThreadPoolExecutor(1)                          # of the next batch
        self.next_draws = []
        self.next_windows = []

    def trajectory(self, index):
        """Row of the train part (of all files, one after another) that a window belongs to."""
        return index // self.n_starts

    def row_names(self, index):
        """Rows in the file of windows `index`, sorted, for a message."""
        rows = self.trajectories.rows
        return sorted({rows[int(i) % len(rows)] for i in self.trajectory(index)})

    def batches(self, index, iteration, rank=0, world=1, n_micro=1, following=None):
        """The global batch of windows `index` (B,), in n_micro micro-batches; a process takes every world-th
        window. Yields Batch. following: a function that returns the windows of the next iteration. They are
        read meanwhile, where they do not live on the device."""
        draws, random = self.draws(index, iteration, rank, world, n_micro)
        read = self.next_windows if same(draws, self.next_draws) else [None] * n_micro
        if following and self.trajectories.home != self.trajectories.device:
            self.next_draws, _ = self.draws(following(), iteration + 1, rank, world, n_micro)
            self.next_windows = [self.reader.submit(self.read, draw, iteration + 1) for draw in self.next_draws]
        for draw, u in zip(draws, read):
            u = u.result() if u else self.read(draw, iteration)
            batch = self.batch(draw, u, iteration)
            where = self.model.encoder.draw_points(self.keys, random.clone_state(), batch.u[:, 0])
            yield batch._replace(where=where)

    def time_step(self, iteration):
        """Which of the time steps a batch has. It is drawn: a loss of every tenth iteration meets all of them."""
        return Random(seed_of(self.keys.seed, iteration)).randrange(len(self.step_frames))

    def read(self, draw, iteration):
        step = self.step_frames[self.time_step(iteration)]
        return self.trajectories.gather(draw.row, draw.start, self.window, step)

    def draws(self, index, iteration, rank=0, world=1, n_micro=1):
        """([Draw for each micro-batch], the generator after them)"""
        n = len(index)
        entry = self.trajectories.entry
        symmetries = self.keys.symmetries
        random = torch.Generator().manual_seed(seed_of(self.keys.seed, iteration, DATA))

        def whole(high, on):
            """Whole numbers below `high` for every window and axis, (B, d); 0 where a symmetry is off."""
            drawn = torch.randint(high, (n, self.d), generator=random)
            return drawn if on else torch.zeros_like(drawn)

        shift = whole(max(self.grid), symmetries and entry.translation_invariant)
        flip = whole(2, symmetries and self.can_flip) * torch.tensor(entry.mirrored)
        start = self.draw_start(index, random)
        element = torch.randint(4, (n,), generator=random)           # of the equation's own group
        own_shift = torch.randint(max(self.grid), (n, 1), generator=random)
        if symmetries and entry.symmetry and entry.diagonal and self.is_square:
            shift = own_shift * torch.tensor(entry.diagonal)
        drawn = (self.trajectory(index), start, element, shift, flip)
        of_process = [values[rank::world].chunk(n_micro) for values in drawn]
        return [Draw(*micro_batch) for micro_batch in zip(*of_process)], random

    def draw_start(self, index, random):
        """Frame at which each window begins, (B,)."""
        stratum = index % self.n_starts
        jitter = torch.rand(len(index), generator=random, dtype=torch.float64)
        if self.keys.early_bias == 1:
            return self.first_start + stratum
        fraction = ((stratum + jitter) / self.n_starts) ** self.keys.early_bias
        return self.first_start + (self.n_starts * fraction).long().clamp_max(self.n_starts - 1)

    def frames(self, n):
        """Frames of n random windows, (N, *grid, C), normalised."""
        random = torch.Generator().manual_seed(seed_of(self.keys.seed, 0, DATA))
        index = torch.randperm(self.n_windows, generator=random)[:n]
        [batch] = self.batches(index, 0)
        return batch.u.flatten(0, 1)

    def batch(self, draw, u, iteration):
        """The Batch of a Draw, which is on the CPU, and of its windows u (B, window, *grid, C)."""
        data = self.trajectories
        u = u.to(data.device, non_blocking=True)
        numbers = torch.cat([draw.row[:, None], draw.element[:, None], draw.shift, draw.flip], 1)
        numbers = numbers.to(data.device, non_blocking=True)         # in one transfer
        row, element, shift, flip = numbers.T.split([1, 1, self.d, self.d])
        row = row[0]
        if data.entry.symmetry and self.keys.symmetries and self.can_turn:
            u = self.of_own_group(u, element[0])
        sign = 1 - 2 * flip                                          # (d, B)
        which = self.time_step(iteration)
        boost = sign * self.boost[which][row].T                      # to rest, after the reflection
        added = boost.T.float() @ self.velocity / self.times[which]  # (B, C): the velocity that it adds
        u = self.transform(u, shift, sign, boost, added)
        u = (u - self.model.mean) / self.model.std
        background = (self.model.mean - added) / self.model.std
        background = background.view(len(u), *[1] * (self.d + 1), -1)
        dt = torch.full((len(u),), self.model.cfg.dt, device=data.device) * self.times[which]
        return Batch(u, background, data.params[row], dt, iteration)

    def of_own_group(self, u, element):
        """Windows u (B, window, *grid, C), each transformed by its element (B,) of the group that the
        equation's entry names. (Every element is applied to all windows, in a few launches on a GPU.)"""
        u = u.movedim(-1, 1)                                         # (B, C, window, *grid)
        element = element.view(-1, *[1] * (u.ndim - 1))
        moved = u
        for number in range(1, 4):
            turned = self.trajectories.entry.symmetry(u, number, 0)
            moved = torch.where(element == number, turned, moved)
        return moved.movedim(1, -1)

    def transform(self, u, shift, sign, boost, added):
        """
        u (B, window, *grid, C) in physical units, transformed. For each axis, (d, B): shift, a circular shift
        in grid points; sign, -1 for a reflection; boost, a Galilean boost u(x, t) -> u(x - ct, t) + c in grid
        points per frame; added (B, C) is c. Point i of the transformed frame k is point
        sign (i - shift - k (boost - token_shift)) mod n of frame k.
        """
        cfg = self.model.cfg
        frame = torch.arange(self.window, device=u.device)
        if cfg.shift_direction:
            for axis, n in enumerate(self.grid):
                step = boost[axis][:, None] - cfg.token_shift * cfg.shift_direction[axis]
                point = torch.arange(n, device=u.device) - (shift[axis][:, None] + step * frame)[..., None]
                point = sign[axis][:, None, None] * point % n        # (B, window, n)
                shape = [1] * u.ndim
                shape[:2] = point.shape[:2]
                shape[2 + axis] = n
                u = u.gather(2 + axis, point.view(shape).expand_as(u))
        elif self.can_flip and self.trajectories.entry.mirror:
            for axis in range(self.d):
                reflected = (sign[axis] < 0).view(-1, *[1] * (u.ndim - 1))
                u = torch.where(reflected, u.flip(2 + axis), u)
        parity = torch.where(sign[..., None] < 0, self.parity[:, None], 1.).prod(0)      # (B, C)
        ones = [1] * (self.d + 1)
        return u * parity.view(len(u), *ones, -1) + added.view(len(u), *ones, -1)


def same(draws, others):
    """Are these draws of the same windows?"""
    pairs = list(zip(draws, others))
    return len(draws) == len(others) == sum(torch.equal(a.row, b.row) and torch.equal(a.start, b.start)
                                            for a, b in pairs)


class Sampler:
    """Order of the windows as a function of (seed, epoch, cursor), so a resume needs two integers. It gives
    the whole global batch, of which each process takes its part."""

    def __init__(self, n_windows, batch_size, seed):
        self.n_windows = n_windows
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.cursor = 0
        self.order = None

    def next(self):
        """Indices (batch_size,) of the next global batch; an epoch's short tail is left to the next one."""
        return self.take()

    def peek(self):
        """What `next` will return."""
        return copy.copy(self).take()

    def take(self):
        if self.order is None:
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
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


if __name__ == '__main__':
    command = sys.argv[1] if len(sys.argv) > 1 else ''
    if command == 'make':
        from files.write import make_command as run
    elif command == 'inspect':
        from files.inspect import inspect_command as run
    elif command == 'mesh':
        from points.meshes import mesh_command as run
    elif command in ('-h', '--help'):
        print(__doc__.strip())
        sys.exit()
    else:
        raise UserError('data.py make NAME makes a data file, data.py inspect FILE checks one, data.py --help')
    run(sys.argv[2:])
