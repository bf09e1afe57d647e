"""
Does a data file fit a model, another file, or a key? One place decides: train.py, eval.py, sample.py and
peers/ ask here.

Where a point lies matters between walls and in a flow that is forced. It does not matter on a periodic
domain whose places are all alike: there the first point of a grid may lie anywhere in its cell. `cfg` is a
model.ModelConfig, or has its names.
"""
import math
import os
import shlex

import h5py
import numpy as np
import torch

from equations.derivatives import shifted
from files.layouts import COORDINATE, one_axis, spacing
from files.open import CHUNK_ROWS, read_rows, seen_rows, split_rows, uneven_axes
from files.values import check_filters, parameter, stored
from grids import is_strided, shape_text
from runtime.configurator import UserError, key_of, say
from runtime.inputs import axis_points

SAME_TIME = 1e-5                      # relative difference of equal time steps: they are stored in float32
SAME_POINT = .01                      # distance of equal points, in spacings of the grid
ROUNDING = 1e-5                       # a negative value of that size, relative to the largest, is rounding
OTHER_UNITS = 30.                     # a field so many times larger or smaller than in training


# ---------------------------------------------------------------------------------------------
# files that are trained on together

def check_together(sources):
    """Raise UserError for files that cannot be trained on together, with both names and the numbers that
    differ. Prints a note for points that do not divide a periodic domain into equal cells."""
    first = sources[0]
    for s in sources:
        check_cells(s)
        differ = []
        if s.pde != first.pde:
            differ.append(f'{s.pde} against {first.pde}')
        if s.n_frames != first.n_frames:
            differ.append(f'{s.n_frames} frames against {first.n_frames}')
        if s.shape != first.shape:
            differ.append(f'{shape_text(s.shape)} cells against {shape_text(first.shape)}')
        if not math.isclose(s.dt, first.dt, rel_tol=SAME_TIME):
            differ.append(f'a frame every {s.dt:g} s against {first.dt:g} s')
        if not differ:
            differ = other_points(s, first)
        if differ:
            raise UserError(f"'{s.path}' and '{first.path}' differ in equation, frames, grid or time step "
                            f"({', '.join(differ)}): train on files that agree")


def other_points(source, other):
    """What differs between the points of two files with the same cells, as phrases; on a periodic domain
    whose places are alike, only the distance of the points counts."""
    differ = []
    for x, there in zip(source.x, other.x):
        if source.entry.translation_invariant:
            x = x - x[0]
            there = there - there[0]
        if np.abs(x - there).max() > SAME_POINT * spacing(there):
            differ.append(f'points {x[0]:g} .. {x[-1]:g} against {there[0]:g} .. {there[-1]:g}')
    return differ


def check_cells(source):
    """Print a note where the points of a periodic file are not as far apart as equal cells of the domain.
    Raises UserError for such a file between walls."""
    for axis, beyond, doubt in uneven_axes(source.x, source.entry):
        text = f"'{source.path}': {doubt}"
        if not source.entry.periodic:
            raise UserError(f'{text} Between walls, points must be cell centres')
        say(f'data: {text} They are taken for equal cells, which moves them by up to {beyond:.2g} cells along '
            f'axis {axis}; shifts by a point are then not quite a symmetry')


def check_strides(source, keys, unroll):
    """Raise UserError where the strides do not fit the file, a window the trajectory, or where there are too
    few rows."""
    split_rows(min(keys.n_trajectories, source.n), 'train')
    if any(not isinstance(stride, int) or isinstance(stride, bool) for stride in keys.other_strides):
        raise UserError(f'other_strides={keys.other_strides} must be whole numbers, like (2, 10)')
    for name in ('time_stride', 'space_stride', 'other_strides'):
        value = getattr(keys, name)
        if min(value, default=1) < 1 if name == 'other_strides' else value < 1:
            raise UserError(f'{name}={value} must be at least 1')
    for cells in source.shape:
        if cells % keys.space_stride:
            raise UserError(f'space_stride={keys.space_stride} must divide the {cells} cells of the file')
    n = -(-source.n_frames // keys.time_stride)
    needed = max(keys.initial_step, 1) + unroll
    if n < needed:
        raise UserError(f'{source.n_frames} frames at time_stride={keys.time_stride} leave {n}, but '
                        f'initial_step={keys.initial_step} and unroll={unroll} need {needed}')
    begin = (max(keys.initial_step, 1) - 1) * keys.time_stride
    longest = max(keys.other_strides, default=0)
    if begin + unroll * longest >= source.n_frames:
        raise UserError(f'{source.n_frames} frames are fewer than those of a window of unroll={unroll} steps of '
                        f'other_strides={longest} frames')


# ---------------------------------------------------------------------------------------------
# keys beside a file

def settled(config, params, sources, argv):
    """
    What a configuration (a dict; params: {'Nu': .01} of it) has to record of the files that it found:
    {key: value}, a list where the files differ. Raises UserError for a key of the command line argv that says
    something else. A value of a config file gives way to that of the data file, with a note.
    """
    typed = {key_of(word) for word in argv}
    recorded = {}
    for source in sources:
        if not source.exists:                                        # it will be made as the keys say
            return {}
        for name, value in params.items():
            key = name.lower()
            there = source.params[name]
            values = value if isinstance(value, tuple) else (value,)
            if not any(math.isclose(one, there, rel_tol=SAME_TIME) for one in values):
                told = f"{key}={','.join(map('{:g}'.format, values))}, but '{source.path}' has {name}={there:g}"
                if key in typed:
                    raise UserError(f'{told}: leave --{key} out, or name a file that has this value')
                if value != source.entry.params[name]:               # a config file has set it
                    say(f'note: {told}, which counts')
            recorded.setdefault(key, []).append(there)
        cells = config['resolution']
        if cells and source.shape != source.entry.shape(cells):
            told = f"resolution={cells}, but '{source.path}' has {shape_text(source.shape)} cells"
            if 'resolution' in typed:
                raise UserError(f'{told}: leave --resolution out, which is of data that are made')
            say(f'note: {told}, which count')
            recorded['resolution'] = [0]
    return {key: values[0] if len(set(values)) == 1 else values for key, values in recorded.items()}


# ---------------------------------------------------------------------------------------------
# files and the runs that have seen them

def described(trajectories, run):
    """What a checkpoint stores of data.Trajectories: the paths (as typed, absolute, and relative to the run folder, so
    that both may move together), the identity of the train and validation rows, and fingerprints of all initial
    conditions seen so far, also by the run that this one fine-tunes."""
    seen = [prints for split in ('train', 'val') for _, _, prints in trajectories.prints[split]]
    for earlier in (run.parent, run.state):
        if earlier:
            seen.append(earlier['data']['seen'].numpy())
    paths = [source.path for source in trajectories.sources]
    return {'paths': paths,
            'absolute': [os.path.abspath(path) for path in paths],
            'relative': [os.path.relpath(path, run.folder) for path in paths],
            'identity': trajectories.identity, 'n_trajectories': trajectories.n_trajectories,
            'seen': torch.from_numpy(np.unique(np.concatenate(seen)))}


def check_history(run, identity, sources, n_trajectories):
    """Refuse to resume a run on other data than those of this identity, and to fine-tune one that was trained on
    rows which are now test rows: the test errors would be too low. Raises UserError."""
    if run.state and run.state['data']['identity'] != identity:
        raise UserError(f"the data are not those that '{run.folder}' was trained on: put those back, or "
                        f'train on with --init_from={shlex.quote(run.best_path)} and another --out_dir')
    if run.parent:
        rows = split_rows(n_trajectories, 'test', sources[0].entry.test)
        for s in sources:
            again = seen_rows(s, rows, run.parent['data']['seen'])
            if again:
                raise UserError(f"{len(again)} of {len(rows)} test trajectories of '{s.path}' (first: "
                                f"{again[0]}) were in the training set of '{run.parent_path}': use the "
                                'n_trajectories of that run, or data made with another --seed')


# ---------------------------------------------------------------------------------------------
# a file and a model

def check_model(source, cfg):
    """Raise UserError where the fields, parameters, domain, cells or times of a file do not fit a model.
    Prints a note where its points lie elsewhere and `read_placed` moves them."""
    path = source.path
    if len(source.fields) != cfg.n_field or not set(cfg.params) <= set(source.params):
        raise UserError(f"'{path}' holds {len(source.fields)} field(s) and the parameters "
                        f'{list(source.params)}; the model was trained on {cfg.n_field} field(s) and '
                        f'{list(cfg.params)}')
    entry = source.entry
    if (entry.low, entry.length, entry.boundary) != (tuple(cfg.low), tuple(cfg.length), cfg.boundary):
        raise UserError(f"'{path}' has the {entry.boundary} domain {entry.low} + {entry.length}, the model "
                        f'the {cfg.boundary} one {tuple(cfg.low)} + {tuple(cfg.length)}')
    grid = tuple(cfg.grid)
    if not is_strided(grid, source.shape) and not is_strided(source.shape, grid):
        ratio = source.shape[0] / grid[0]
        raise UserError(f"'{path}' has {shape_text(source.shape)} cells, the trained grid {shape_text(grid)} "
                        f'points: one must be a whole multiple of the other, the same along every axis, and '
                        f'{source.shape[0]} / {grid[0]} = {ratio:g}')
    stride = cfg.dt / source.dt
    if abs(stride - source.time_stride(cfg.dt)) > SAME_TIME * stride:
        raise UserError(f"'{path}' has a frame every {source.dt:g} s, and the model's step of {cfg.dt:g} s "
                        f'must be a whole multiple: {cfg.dt:g} / {source.dt:g} = {stride:g}')
    check_cells(source)
    check_points(source, cfg)


def check_points(source, cfg):
    """Raise UserError where the points of a file are not those of the model's grid and lie between walls.
    Prints a note where a periodic file is interpolated to the model's points."""
    moved = 0.
    for axis, n in enumerate(grid_of(source, cfg)):
        x = strided_axis(source, axis, n)
        expected = axis_points(cfg, axis, n).numpy()
        step = cfg.length[axis] / n
        if cfg.periodic:
            moved = max(moved, abs(move(source, cfg, axis)) / step)
        elif np.abs(x - expected).max() > SAME_POINT * step:
            raise UserError(f"'{source.path}' has points at {x[0]:g}, {x[1]:g}, ..., the model at "
                            f'{expected[0]:g}, {expected[1]:g}, ...: between walls they must be the same')
    if moved > SAME_POINT:
        say(f"note: '{source.path}' has points at {source.x[0][0]:g}, ..., the model at {cfg.first[0]:g}, "
            f'...: its fields are interpolated to these, {moved:.2g} of a spacing away, by Fourier series')


def check_continued(cfg, earlier, path):
    """Raise UserError where the points of a configuration are not those of the checkpoint `path` that it
    continues, and places differ. earlier: its model arguments, or None."""
    if not earlier or cfg.translation_invariant:
        return
    for axis, (first, there) in enumerate(zip(cfg.first, earlier['first'])):
        step = cfg.length[axis] / cfg.grid[axis]
        moved = abs(first - there) / step
        if moved > SAME_POINT:
            raise UserError(f"the points begin at {first:g}, those of '{path}' at {there:g}, {moved:.2g} of a "
                            'spacing away, and places differ in this equation: name a file whose points '
                            'begin there, or train from the start with --init_from=scratch')


def grid_of(source, cfg):
    """The grid on which a model is evaluated: the trained one, or that of the file where it is coarser."""
    return tuple(min(cells, n) for cells, n in zip(source.shape, cfg.grid))


def strided_axis(source, axis, n):
    """Coordinates (n,) along one axis of every k-th cell of a file."""
    return source.x[axis][::source.shape[axis] // n]


def move(source, cfg, axis):
    """The way from the first point of a file to that of a model on a periodic axis; 0 where it is
    indifferent."""
    if cfg.translation_invariant or not cfg.periodic:
        return 0.
    way = cfg.first[axis] - float(source.x[axis][0])
    return way if abs(way) > 1e-4 * cfg.length[axis] / source.shape[axis] else 0.


def placed_axis(source, cfg, axis, n):
    """Coordinates (n,) along one axis of the points where read_placed has its values."""
    return strided_axis(source, axis, n) + move(source, cfg, axis)


def read_placed(source, rows, cfg, shape, time_stride=None):
    """
    Rows of a file at the points of a model's grid with `shape` points, which strides the cells of the file:
    (len(rows), T, *shape, C) float32. Where the points of a periodic file lie elsewhere and places differ,
    its fields are moved by Fourier series, exactly for fields that its cells resolve.

    rows: a range of step 1. time_stride: by default, that of the model's step. Raises UserError as
    files.open.read_rows does.
    """
    time_stride = time_stride or source.time_stride(cfg.dt)
    space_stride = source.shape[0] // shape[0]
    ways = [move(source, cfg, axis) for axis in range(len(shape))]
    if not any(ways):
        return torch.from_numpy(read_rows(source, rows, time_stride, space_stride))
    cells = (slice(None), slice(None), *[slice(None, None, space_stride)] * len(shape))
    n_frames = -(-source.n_frames // time_stride)
    out = torch.empty(len(rows), n_frames, *shape, len(source.fields))
    for first in range(0, len(rows), CHUNK_ROWS):                    # all cells of a few rows at a time
        u = torch.from_numpy(read_rows(source, rows[first:first + CHUNK_ROWS], time_stride))
        for axis, way in enumerate(ways):
            if way:
                x = axis_points(cfg, axis, source.shape[axis])
                lines = u.movedim(2 + axis, -1)
                flat = lines.flatten(0, -2).double()
                flat = shifted(flat, x, flat.new_full((len(flat),), way))
                u = flat.view(lines.shape).movedim(-1, 2 + axis)
        out[first:first + len(u)] = u[cells]
    return out


def initial_params(path, cfg):
    """
    The parameters of a model that a file of initial conditions names, {'Nu': .02}, where it is an HDF5 file.
    Prints a warning where the file has other coordinates than those of the model, which its values are taken
    for.
    """
    if not h5py.is_hdf5(path):
        return {}
    with h5py.File(path, 'r') as file:
        n = len(file['tensor']) if 'tensor' in file else 1
        found = {name: parameter(file, name, n) for name in cfg.params}
        for axis, letter in enumerate('xy'[:len(cfg.grid)]):
            key = COORDINATE.format(letter)
            if key not in file:
                continue
            check_filters(path, key, file[key])
            x = one_axis(path, key, stored(file[key]))
            expected = axis_points(cfg, axis, len(x)).numpy()
            apart = np.abs(x - expected).max() / (cfg.length[axis] / len(x))
            if not apart < SAME_POINT:
                say(f"warning: '{path}' has {key} from {x[0]:g} to {x[-1]:g}, and its values are taken for those "
                    f'from {expected[0]:g} to {expected[-1]:g}, up to {apart:.3g} spacings away; --data FILE '
                    'heeds its coordinates')
    for name, value in found.items():
        if isinstance(value, str):
            say(f"warning: '{path}': {value}: not used")
    return {name: value for name, value in found.items() if isinstance(value, float)}


# ---------------------------------------------------------------------------------------------
# values

class Signs:
    """Counts the negative values of the fields that the equation of a file declares positive, and values that
    are not 0 outside of its domain. Values that are 0 but for rounding do not count."""

    def __init__(self, source):
        self.source = source
        self.fields = [source.fields.index(name) for name in source.entry.positive]
        self.count = np.zeros(len(self.fields), int)
        self.least = np.zeros(len(self.fields))
        self.largest = np.zeros(len(self.fields))
        self.outside = 0

    def add(self, u):
        """Values u (..., C) of the file."""
        entry = self.source.entry
        if entry.domain:
            distance = u[..., entry.fields.index(entry.domain)]
            changing = [i for i, name in enumerate(entry.fields) if name not in entry.static]
            self.outside += (u[distance <= 0][:, changing] != 0).sum()
        for i, field in enumerate(self.fields):
            values = u[..., field]
            self.count[i] += (values < 0).sum()
            self.least[i] = min(self.least[i], values.min())
            self.largest[i] = max(self.largest[i], values.max())

    def text(self):
        """A sentence on the values that were added; '' if there is nothing to say."""
        told = []
        for i, field in enumerate(self.fields):
            if -self.least[i] > ROUNDING * self.largest[i]:
                told.append(f'{self.count[i]} values of {self.source.fields[field]} are negative, the smallest '
                            f'is {self.least[i]:g}, and {self.source.pde} declares the field positive')
        if self.outside:
            told.append(f'{self.outside} values are not 0 where {self.source.entry.domain} is not positive, outside '
                        'of the domain')
        return '; '.join(told)

    def check(self):
        """Raise UserError where there is something to say: predictions are cut off at 0, or are 0 there, and
        would never come near."""
        if self.text():
            raise UserError(f"'{self.source.path}': {self.text()}: mend the values, or the entry in "
                            f"equations/{self.source.pde.replace('-', '_')}.py")


def zero_rows(u, fields):
    """Numbers of the rows of u (N, T, *X, C) that have a frame in which one of the `fields` is 0 everywhere:
    its relative error is infinite, or not a number."""
    some = (u[..., list(fields)] != 0).flatten(2, -2).any(2)         # (N, T, C)
    return torch.nonzero(~some.all(2).all(1)).flatten().tolist()


def other_units(u, model):
    """A sentence on fields u (N, T, *X, C) whose deviation from the mean of the training is far from that of
    the training; '' if there is none."""
    told = []
    for field, name in enumerate(model.cfg.fields):
        mean = float(model.mean[field])
        std = float(model.std[field])
        values = u[:, 0, ..., field].double()
        if field in model.cfg.velocity and model.cfg.galilean:       # the moving frame takes the mean off
            mean = values.flatten(1).mean(1).view(-1, *[1] * (values.ndim - 1))
        size = float((values - mean).square().mean().sqrt())
        if not std / OTHER_UNITS <= size <= std * OTHER_UNITS and size > 0:
            told.append(f'{name} deviates by {size:.2g} from the mean of the training, where it was {std:.2g}')
    return '; '.join(told)


def odd_values(u, model):
    """Sentences on fields u (N, T, *X, C) that a rollout begins with: those of `other_units`, and on positive
    fields that are negative; '' if there are none."""
    told = [other_units(u, model)]
    for field in model.cfg.positive:
        least = float(u[..., field].min())
        if -least > ROUNDING * float(u[..., field].abs().max()):
            told.append(f'{model.cfg.fields[field]} falls to {least:g}, and the equation declares it positive: '
                        'predictions are cut off at 0')
    return '; '.join(text for text in told if text)
