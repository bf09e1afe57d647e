"""
Latent cache: windows that are encoded once, for stages that train between the tokens of a frozen encoder.

The symmetries of a window are drawn anew in every iteration. With a cache, a few augmented copies of each
window (cache_copies) stand for all of them. They are a file in data_dir/latents, named by a hash of what they
follow from. It may be deleted between runs; it is then made again.

Making it takes cache_copies * windows * (unroll + 1) encodings; an iteration without a cache takes 2 *
batch_size. So a cache pays with a learned encoder, if a stage is long for its data or several share the file.
"""
import hashlib
import math
import os
import shutil
from itertools import chain

import numpy as np
import torch

from data import Batch
from files.open import split_rows
from files.write import check_space
from model import model_args
from runtime.checkpoint import whole_file
from runtime.configurator import UserError, say
from runtime.device import DATA, free_memory, seed_of
from runtime.paths import output_file, remove_stale

PART = 64                              # windows that are encoded at once
TOLERANCE = .01                        # of tokens that are encoded again, relative to the largest
# Keys and model arguments that cannot change the tokens; all others are part of the file's name. (The
# settings of a stage hold its own values, so the dicts KEY_stage are left out as well.)
NOT_IN_NAME = {'out_dir', 'init_from', 'overwrite', 'data_dir', 'memory_gb', 'stages', 'steppers', 'flow_dim',
               'flow_depth', 'noise_dim', 'max_iters', 'max_minutes', 'patience', 'learning_rate', 'muon_lr',
               'warmup_iters', 'flow_steps', 'tau_schedule', 'n_members', 'eval_interval', 'log_interval',
               'save_interval', 'n_validated', 'checkpointing', 'wandb_log', 'wandb_project',
               'wandb_run_name'}


def check_cache(stage):
    """The extension of a stage. Raises UserError for a cache that the stage cannot use."""
    copies = stage.settings.cache_copies
    if copies and stage.settings.other_strides:
        raise UserError(f'cache_copies={copies} caches windows of one time step: leave other_strides out')
    if copies and not stage.latent_only:
        raise UserError(f'cache_copies={copies} caches tokens, but {type(stage).__name__} needs fields: set '
                        f'--diff_residual_stage.cache_copies={copies}')


def check_room(stage, sources):
    """Raise UserError for tokens of the files `sources` that are more than the whole disk holds, and than the
    memory; whether they fit beside other files is known when they are made."""
    keys = stage.settings
    cfg = stage.model.cfg
    first = sources[0]
    n = min(keys.n_trajectories, *(source.n for source in sources))
    n_row = len(sources) * len(split_rows(n, 'train', first.entry.test))
    n_start = -(-first.n_frames // keys.time_stride) - max(keys.initial_step, 1) + 1 - keys.unroll
    n_latent = keys.cache_copies * n_row * n_start * (keys.unroll + 1)
    n_bytes = 4 * n_latent * math.prod(cfg.token_grid) * cfg.latent_dim
    folder = os.path.abspath(keys.data_dir)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    memory = free_memory() if keys.memory_gb < 0 else 1e9 * keys.memory_gb
    room = max(shutil.disk_usage(folder).total, memory)
    if n_bytes > room:
        raise UserError(f'cache_copies={keys.cache_copies} needs {n_bytes / 1e9:.1f} GB, and the disk and the '
                        f'memory hold {room / 1e9:.1f} GB: lower cache_copies')


class CachedWindows:
    """
    In place of data.Windows: the same windows, as tokens (Batch.z).

    Copies are made from batches of data.Windows whose iteration counts the parts of all copies. Every batch
    draws a copy of each of its windows. An encoder of points sees each part at points of its own, which are
    not drawn again. The file is memory-mapped, or moved to the device if it fits there. If no file can be
    written, the tokens stay in memory.
    """

    def __init__(self, windows, stage, machine):
        """windows: data.Windows; stage: has a frozen encoder and the settings of the windows. Reads the file
        or makes it. Raises UserError for tokens that fit neither on the disk nor into memory."""
        cfg = windows.model.cfg
        self.windows = windows
        self.stage = stage
        self.machine = machine
        self.n_windows = windows.n_windows
        self.row_names = windows.row_names
        self.copies = stage.settings.cache_copies
        self.shape = (self.copies * self.n_windows, stage.settings.unroll + 1, math.prod(cfg.token_grid),
                      cfg.latent_dim)
        self.n_parts = -(-self.n_windows // PART) * self.copies
        folder = stage.settings.data_dir
        self.path = os.path.join(folder, 'latents', f'{self.key()}.npy')
        with machine.master_first():                             # one process makes the file, the others wait
            z = self.read()
            self.z = self.make() if z is None else z             # (copies n_windows, unroll + 1, S, D)
        if self.fits():
            self.z = self.z.to(machine.device)

    def fits(self):
        trajectories = self.windows.trajectories
        return trajectories.fits(math.prod(self.shape), self.machine.world, trajectories.device)

    def key(self):
        """A hash of all that the tokens follow from, except the code, of which `wrong` takes a sample."""
        t = self.windows.trajectories
        known = {**vars(self.stage.settings), **model_args(self.windows.model.cfg)}
        known = [(name, value) for name, value in sorted(known.items())
                 if name not in NOT_IN_NAME and not name.endswith('_stage')]
        sums = [t.mean.tolist(), t.mean_square.tolist(), t.moving_square.tolist()]
        about = [known, t.identity, sums, t.params.tolist(), self.shape, PART, self.machine.device.type,
                 self.machine.bf16]
        digest = hashlib.sha256(repr(about).encode())
        model = self.stage.model
        scales = (('mean', model.mean), ('std', model.std))
        for name, value in chain(model.encoder.named_parameters(), model.encoder.named_buffers(), scales):
            digest.update(repr((name, value.dtype, value.shape)).encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:32]

    @torch.no_grad()
    def part(self, number):
        """Tokens of up to PART windows of a copy, (n, unroll + 1, S, D) on the CPU."""
        first = number % (self.n_parts // self.copies) * PART
        index = torch.arange(first, min(first + PART, self.n_windows))
        [batch] = self.windows.batches(index, number)
        with self.machine.autocast():
            z = self.stage.encode(batch.u, batch)
        return z.float().cpu().contiguous()

    def parts(self):
        return map(self.part, range(self.n_parts))

    def read(self):
        """The tokens of the file; None if there is none, or none that can be used, which a line then says."""
        if not os.path.exists(self.path):
            return None
        try:
            z = mapped(self.path)
            why = ''
        except Exception as error:                               # a damaged head can raise anything
            why = ' '.join(str(error).split())[:80] or type(error).__name__
        why = why or self.wrong(z)
        if why:
            say(f"cache: '{self.path}' is broken or foreign ({why}): made again")
            return None
        self.machine.say(f"cache: '{self.path}' | {self.copies} copies of {self.n_windows} windows")
        return z

    def wrong(self, z):
        """What is wrong with tokens that were read, or ''. The first and the last part are encoded again, to
        notice a file that older code made."""
        if z.shape != self.shape or z.dtype != torch.float32:
            return f'{z.dtype} {tuple(z.shape)}, not float32 {self.shape}'
        if not all(rows.isfinite().all() for rows in z.split(1024)):
            return 'values that are not finite'
        first = self.part(0)
        last = self.part(self.n_parts - 1)
        for there, now in ((z[:len(first)], first), (z[-len(last):], last)):
            if (there - now).abs().max() > TOLERANCE * now.abs().max():
                return 'not what the encoder says'
        return ''

    def make(self):
        """Encode all copies, into the file if that can be written."""
        n_bytes = 4 * math.prod(self.shape)
        self.machine.say(f'cache: encoding {self.copies} copies of {self.n_windows} windows, '
                         f"{n_bytes / 1e9:.2f} GB, to '{self.path}'")
        try:
            output_file('the cache', self.path)
            remove_stale(os.path.dirname(self.path))
            check_space(self.path, n_bytes)
            with whole_file(self.path, 'wb', shared=True) as file:
                head = {'descr': '<f4', 'fortran_order': False, 'shape': self.shape}
                np.lib.format.write_array_header_1_0(file, head)
                for z in self.parts():
                    file.write(z.numpy())
            return mapped(self.path)
        except UserError as error:
            if not self.fits():
                raise UserError(f'{error}; nor do the tokens fit into memory: lower cache_copies') from error
            say(f'cache: {error}; the tokens stay in memory')
        z = torch.empty(self.shape)
        filled = 0
        for part in self.parts():
            z[filled:filled + len(part)] = part
            filled += len(part)
        return z

    def batches(self, index, iteration, rank=0, world=1, n_micro=1, following=None):
        """As data.Windows.batches. Yields Batch without fields."""
        t = self.windows.trajectories
        random = torch.Generator().manual_seed(seed_of(self.stage.settings.seed, iteration, DATA))
        copy = torch.randint(self.copies, (len(index),), generator=random)
        for number in (copy * self.n_windows + index)[rank::world].chunk(n_micro):
            z = self.z[number.to(self.z.device, non_blocking=True)].to(t.device, non_blocking=True)
            row = self.windows.trajectory(number % self.n_windows).to(t.device, non_blocking=True)
            dt = torch.full((len(z),), self.windows.model.cfg.dt, device=t.device)
            yield Batch(None, None, t.params[row], dt, iteration, z=z)


def mapped(path):
    """The array of a .npy file as a memory-mapped tensor. Writes to it stay in memory."""
    return torch.from_numpy(np.lib.format.open_memmap(path, mode='c'))
