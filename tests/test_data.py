"""data.py: hand-made files, good and broken; splits, statistics, windows, exact symmetries, order of sampling."""
import json
import os
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch

import data
import solvers
from configurator import UserError
from data import Sampler, Windows, find_or_make, inspect, open_source, read_rows, split_rows
from solvers import burgers

ROOT = os.path.dirname(os.path.abspath(data.__file__))
CPU = torch.device('cpu')


def fields(n=10, T=5, X=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, T, X)).astype(np.float32)


def write(path, u=None, x=None, t=None, nu=.01, **options):
    """A file in PDEBench's layout; any part of it may be replaced, or left out by False."""
    u = fields() if u is None else u
    with h5py.File(path, 'w') as file:
        parts = {'tensor': u, 'x-coordinate': (np.arange(u.shape[-1]) + .5) / u.shape[-1] if x is None else x,
                 't-coordinate': np.arange(u.shape[1] + 1) * .01 if t is None else t}
        for key, value in parts.items():
            if value is not False:
                file.create_dataset(key, data=value, **(options if key == 'tensor' else {}))
        if nu is not False:
            file.attrs['Nu'] = nu
    return str(path)


def refused(call, *args, **kw):
    with pytest.raises(UserError) as caught:
        call(*args, **kw)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'a b é.hdf5')


# ---------------------------------------------------------------------------------------------
# one file

def test_new_generation(path, capsys):
    u = fields()
    source = open_source(write(path, u))
    assert (source.n, source.n_frames, source.shape, source.params) == (10, 5, (16,), {'Nu': .01})
    assert (source.generation, source.low, source.length, source.periodic) == ('new', (0.,), (1.,), True)
    assert abs(source.dt - .01) < 1e-9 and source.x[0][0] == .5 / 16 and capsys.readouterr().out == ''
    assert np.array_equal(read_rows(source, range(2, 9))[..., 0], u[2:9])
    assert np.array_equal(read_rows(source, range(2, 9), 2, 4)[..., 0], u[2:9, ::2, ::4])


def test_old_generation_is_told(path, capsys):
    source = open_source(write(path, x=-1 + 2 * (np.arange(16) + .5) / 16))
    assert (source.generation, source.low, source.length) == ('old', (-1.,), (2.,))
    assert 'old generation' in capsys.readouterr().out
    open_source(path, quiet=True)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('n_times', [5, 6])
def test_both_lengths_of_the_time_coordinate(path, n_times):
    assert open_source(write(path, t=np.arange(n_times) * .01)).n_frames == 5


@pytest.mark.parametrize('dtype', ['f8', '>f4', '>f8', 'i2', '>i4', 'u1', 'f2'])
def test_other_number_types_are_cast_with_a_note(path, dtype, capsys):
    u = np.abs(10 * fields()).astype(dtype)
    source = open_source(write(path, u))
    rows = read_rows(source, range(10))
    assert rows.dtype == np.float32 and np.array_equal(rows[..., 0], u.astype(np.float32))
    assert 'cast to float32' in capsys.readouterr().out


X16 = (np.arange(16) + .5) / 16


@pytest.mark.parametrize('parts, words', [
    ({'t': False}, ["'t-coordinate'", '(10, 5, 16)', '(16,)']),
    ({'x': False}, ["'x-coordinate'"]),
    ({'nu': False}, ['Nu']),
    ({'nu': np.nan}, ['Nu']),
    ({'nu': -1.}, ['Nu']),
    ({'u': fields()[..., None], 'x': X16}, ['(10, 5, 16, 1)', '(N, T, X)']),
    ({'u': fields()[0], 'x': X16}, ['(5, 16)']),
    ({'u': fields().transpose(0, 2, 1), 'x': X16, 't': np.arange(6.)}, ['(10, 16, 5)', 'swapped']),
    ({'u': fields().transpose(2, 1, 0), 'x': X16, 't': np.arange(6.)}, ['(16, 5, 10)', 'swapped']),
    ({'t': np.arange(4) * .01}, ['5 frames', '4 times']),
    ({'t': np.arange(7) * .01}, ['5 frames', '7 times']),
    ({'t': np.arange(6)[::-1] * .01}, ['t-coordinate']),
    ({'t': np.arange(6) ** 2 * .01}, ['t-coordinate']),
    ({'t': np.array([0., 1, 2, np.nan, 4, 5])}, ['t-coordinate']),
    ({'x': X16[::-1].copy()}, ['x-coordinate']),
    ({'x': X16 ** 2}, ['x-coordinate']),
    ({'x': np.full(16, np.nan)}, ['x-coordinate']),
    ({'u': fields() + 0j}, ['complex64']),
    ({'u': fields() > 0}, ['bool']),
    ({'u': fields()[:, :1]}, ['too small']),
    ({'u': fields()[:0]}, ['too small']),
])
def test_wrong_layout_is_refused_with_what_was_found(path, parts, words):
    message = refused(open_source, write(path, **parts))
    assert path in message and all(word in message for word in words), message


def test_missing_tensor_and_missing_file(path, tmp_path):
    write(path)
    with h5py.File(path, 'a') as file:
        del file['tensor']
        file.attrs['x'] = 1
    assert "'tensor'" in refused(open_source, path)
    assert os.path.basename(path) in refused(open_source, str(tmp_path / 'other.hdf5'))     # what the folder holds
    refused(open_source, str(tmp_path / 'no folder' / 'other.hdf5'))
    assert 'directory' in refused(open_source, str(tmp_path))


@pytest.mark.parametrize('value', [np.nan, -np.inf])
def test_values_that_are_not_finite_are_refused_with_count_and_place(path, value):
    u = fields(40)
    u[33, 2, 3:6], u[37, 0, 0] = value, value
    source = open_source(write(path, u))
    for call in (lambda: read_rows(source, range(20, 40)), lambda: Windows([source], 40, 1, 1, 1, 2, CPU)):
        message = refused(call)
        assert '4 values' in message and 'trajectory 33, frame 2' in message
    assert 'trajectory 33' in refused(inspect, path)


@pytest.mark.parametrize('size', [0, 1, 100, .5, -1])
def test_truncated_file(path, size):
    write(path, fields(50))
    n = os.path.getsize(path)
    os.truncate(path, int(size * n) if isinstance(size, float) else size % n)
    message = refused(inspect, path)
    assert path in message and str(os.path.getsize(path)) in message


def test_a_flipped_byte_of_the_values_is_refused(path):
    u = fields()
    write(path, u, chunks=(1, 5, 16), fletcher32=True)
    content = bytearray(open(path, 'rb').read())
    source = open_source(path)
    for row in range(10):
        place = content.index(u[row].tobytes()) + 7 * row
        broken = content.copy()
        broken[place] ^= 16
        open(path, 'wb').write(broken)
        message = refused(read_rows, source, range(10))
        assert path in message and 'damaged' in message
        refused(inspect, path)


@pytest.mark.parametrize('link, key', [(link, key) for link in ('external', 'dangling', 'soft', 'raw')
                                       for key in ('tensor', 'x-coordinate', 't-coordinate')] + [('virtual', 'tensor')])
def test_links_are_not_followed(tmp_path, path, link, key):
    other = write(tmp_path / 'other.hdf5')
    write(path)
    with h5py.File(path, 'a') as file:
        shape = file[key].shape
        del file[key]
        if link == 'raw':
            file.create_dataset(key, shape, 'f4', external=[(other, 0, h5py.h5f.UNLIMITED)])
        elif link == 'virtual':
            layout = h5py.VirtualLayout(shape, 'f4')
            layout[:] = h5py.VirtualSource(other, key, shape)
            file.create_virtual_dataset(key, layout)
        else:
            file['hidden'] = np.zeros(shape, np.float32)
            file[key] = {'external': h5py.ExternalLink(other, key), 'soft': h5py.SoftLink('/hidden'),
                         'dangling': h5py.ExternalLink('nowhere.hdf5', key)}[link]
    assert path in refused(open_source, path)


@pytest.mark.parametrize('chunks', [None, (1, 201, 1024)])
@pytest.mark.parametrize('n', [10, 10 ** 9])
def test_claimed_but_never_filled(path, chunks, n):
    with h5py.File(path, 'w') as file:
        tensor = file.create_dataset('tensor', (n, 201, 1024), 'f4', chunks=chunks)
        if chunks:
            tensor[3] = 1.
        file['x-coordinate'], file['t-coordinate'] = (np.arange(1024) + .5) / 1024, np.arange(202) * .01
        file.attrs['Nu'] = .01
    start = time.perf_counter()
    assert 'never filled' in refused(open_source, path)
    assert time.perf_counter() - start < 1


def test_incomplete_flag(path):
    write(path)
    with h5py.File(path, 'a') as file:
        file.attrs['complete'] = 0
    assert 'incomplete' in refused(open_source, path)


# ---------------------------------------------------------------------------------------------
# inspect

def command(*args):
    return subprocess.run([sys.executable, os.path.join(ROOT, 'data.py'), *args], capture_output=True, text=True,
                          timeout=120)


def test_inspect_command(path):
    u = fields(10)
    done = command('inspect', write(path, u), '--json')
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found['trajectories'], found['frames'], found['cells'], found['params']) == (10, 5, [16], {'Nu': .01})
    assert abs(found['mean'] - u.mean()) < 1e-6 and abs(found['std'] - u.std()) < 1e-6
    assert found['min'] == u.min() and found['max'] == u.max()
    os.truncate(path, os.path.getsize(path) // 2)
    done = command('inspect', path)
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


def test_inspect_finds_every_kind_of_trouble(path, burgers_file):
    found = inspect(burgers_file)
    assert found['trajectories'] == 20 and found['duplicates'] == 0
    json.dumps(found, allow_nan=False)
    u = fields(20)
    u[1] = np.nan                                       # a test row, which training never reads
    assert 'trajectory 1' in refused(inspect, write(path, u))
    u = fields(20)
    u[12, 0] = u[3, 0]
    message = refused(inspect, write(path, u))
    assert '3' in message and '12' in message
    u[12, 0] = u[13, 0]                                 # two equal ones within the train part leak nothing
    assert inspect(write(path, u))['duplicates'] == 1


# ---------------------------------------------------------------------------------------------
# splits and statistics

@pytest.mark.parametrize('n', [3, 4, 10, 19, 20, 101, 1000])
def test_splits(n):
    test, val, train = (split_rows(n, name) for name in ('test', 'val', 'train'))
    assert [*test, *val, *train] == list(range(n)) == list(split_rows(n, 'all'))
    assert len(test) == len(val) == max(1, n // 10) and len(train) >= 1


def test_too_few_to_split(path):
    for n in (0, 1, 2):
        assert str(n) in refused(split_rows, n, 'train')
    assert '2' in refused(Windows, [open_source(write(path, fields(2)))], 2, 1, 1, 1, 2, CPU)


def windows(source, n=10 ** 6, time_stride=1, space_stride=1, query_stride=1, window=2, memory_gb=100., **kw):
    """Of all trajectories, unless n says fewer."""
    sources = source if isinstance(source, list) else [source]
    sources = [open_source(s, quiet=True) if isinstance(s, str) else s for s in sources]
    return Windows(sources, n, time_stride, space_stride, query_stride, window, CPU, memory_gb, **kw)


def test_overlap_of_train_and_validation_is_refused(path):
    u = fields(20)
    u[11, 0] = u[2, 0]
    message = refused(windows, write(path, u))
    assert 'trajectory 11' in message and 'trajectory 2' in message
    u[11, 0], u[2, 0] = 0, 0                            # constant fields evolve alike and leak nothing
    windows(write(path, u))


@pytest.mark.parametrize('value', [0., 3.])
def test_constant_field(path, value, capsys):
    w = windows(write(path, np.full((10, 5, 16), value)))
    assert w.std == 1. and w.mean == value and 'constant' in capsys.readouterr().out
    u, _ = w.get(torch.arange(4), *torch.zeros(3, 4, dtype=torch.long))
    assert torch.isfinite((u - w.mean) / w.std).all()


@pytest.mark.parametrize('memory_gb', [0., 100.])
def test_statistics_come_from_train_rows_alone(path, memory_gb):
    u = fields(20, seed=1) + .5
    w = windows(write(path, u), memory_gb=memory_gb)
    assert abs(w.mean - u[4:].mean()) < 1e-6 and abs(w.std - u[4:].std()) < 1e-6
    assert np.array_equal(w.val[..., 0], u[2:4])
    for bad in (u[:2] * 1000, np.nan):                  # test rows are not even read
        u[:2] = bad
        other = windows(write(path, u), memory_gb=memory_gb)
        assert (other.mean, other.std, other.identity) == (w.mean, w.std, w.identity)
        assert torch.equal(other.val, w.val)
    u[2:4] *= 1000                                      # nor do validation rows count
    other = windows(write(path, u), memory_gb=memory_gb)
    assert (other.mean, other.std) == (w.mean, w.std)


def test_identity_follows_the_train_rows(path, tmp_path):
    u = fields(20)
    one = windows(write(path, u)).identity
    assert windows(write(tmp_path / 'copy.hdf5', u)).identity == one
    assert windows(write(path, u * 2)).identity != one
    assert windows(write(path, u, nu=.02)).identity != one


# ---------------------------------------------------------------------------------------------
# windows

def draw(w, n, seed=0):
    """Random arguments of Windows.get."""
    g = torch.Generator().manual_seed(seed)
    whole = lambda low, high: torch.randint(low, high, (n,), generator=g)  # noqa: E731
    return whole(0, w.n_windows), whole(0, w.n_points), whole(-5, 6), whole(0, 2)


def test_memory_and_lazy_give_identical_batches(burgers_file, path):
    with h5py.File(burgers_file) as file:
        other = write(path, np.float32(1.1) * file['tensor'][:], nu=.02)
    for files, early in (([burgers_file], 1.), ([burgers_file, other], 2.)):
        memory, lazy = (windows(files, 20, 5, 8, 4, 4, memory_gb=gb, early=early) for gb in (100., 0.))
        assert memory.in_memory and not lazy.in_memory
        assert memory.n_windows == lazy.n_windows == len(files) * 16 * (41 - 3)
        assert (memory.mean, memory.std, memory.identity) == (lazy.mean, lazy.std, lazy.identity)
        assert torch.equal(memory.val, lazy.val)
        args = draw(memory, 24)
        for a, b in zip(memory.get(*args), lazy.get(*args)):
            assert torch.equal(a, b)


@pytest.mark.parametrize('memory_gb', [0., 100.])
def test_windows_of_two_files(tmp_path, memory_gb):
    u = fields(20, 7), fields(20, 7, seed=1)
    u[1][:, 0] = u[0][:, 0]                             # both begin alike, row by row
    w = windows([write(tmp_path / f'{i}.hdf5', v, nu=nu) for i, v, nu in zip('ab', u, (.01, .001))], time_stride=2,
                window=3, memory_gb=memory_gb)
    assert w.n_windows == 2 * 16 * 2 and w.val.shape == (4, 4, 16, 1)
    index = torch.arange(w.n_windows)
    got, params = w.get(index, *torch.zeros(3, len(index), dtype=torch.long))
    expected = np.stack([v[row, s:s + 5:2] for v in u for row in range(4, 20) for s in (0, 2)])
    assert np.array_equal(got[..., 0], expected)
    assert np.allclose(params[:, 0], np.repeat([.01, .001], 32)) and np.allclose(w.val_params[:, 0],
                                                                                 np.tile([.01, .001], 2))


def test_number_of_trajectories(path, capsys):
    u = fields(20)
    assert windows(write(path, u), n=20).n_trajectories == 20 and not capsys.readouterr().out
    w = windows(path, n=10)                             # splits are of the first n
    assert np.array_equal(w.val[..., 0], u[1:2]) and abs(w.std - u[2:10].std()) < 1e-6
    assert windows(path, n=21).n_trajectories == 20     # fewer than asked for is told
    assert '20' in capsys.readouterr().out


@pytest.mark.parametrize('early', [1., 2., 3.])
def test_early_frames_more_often(path, early):
    u = fields(10, 40)
    u += 100 * np.arange(40)[:, None]                   # the frame can be read off
    w = windows(write(path, u), early=early, window=3)
    got, _ = w.get(torch.arange(w.n_windows), *torch.zeros(3, w.n_windows, dtype=torch.long))
    frame = torch.round(got.mean((2, 3)) / 100)
    start = frame[:, 0].view(8, 38)
    assert (frame.diff(dim=1) == 1).all() and (start == start[0]).all()
    assert start.min() == 0 and start.max() >= 36 and (start.diff(dim=1) >= 0).all()
    assert abs(float(start.mean()) / 38 - 1 / (1 + early)) < .03
    if early == 1:
        assert torch.equal(start[0], torch.arange(38.))


def test_windows_refuse_in_one_line(path, tmp_path):
    write(path, fields(10, 5, 16))
    assert '2' in refused(windows, path, n=2)
    assert 'space_stride=3' in refused(windows, path, space_stride=3)
    assert 'query_stride=4' in refused(windows, path, space_stride=2, query_stride=4)
    assert '6' in refused(windows, path, window=6)
    assert '3' in refused(windows, path, window=4, time_stride=2)
    for u in (fields(10, 6, 16), fields(10, 5, 8)):
        assert 'differ' in refused(windows, [path, write(tmp_path / 'b.hdf5', u)])


@pytest.fixture(scope='module')
def resolved(tmp_path_factory):
    """Resolved trajectories at nu .05, so that strided values are the solution everywhere."""
    u0 = torch.from_numpy(solvers.burgers_initial(10, 256, seed=4))
    u = burgers(u0, .05, np.arange(41) * .01)
    return write(tmp_path_factory.mktemp('resolved') / 'a.hdf5', u.float().numpy(), t=np.arange(42) * .01, nu=.05)


@pytest.mark.parametrize('shift, boost, flip', [(0, 0, 0), (7, 0, 0), (-130, 0, 0), (0, 0, 1), (5, 0, 1), (0, 3, 0),
                                                (0, -4, 0), (11, 2, 1)])
def test_augmentation_is_an_exact_symmetry(resolved, shift, boost, flip):
    """The solver, started from the first frame of an augmented window, arrives at the others."""
    stride, w = 5, windows(resolved, 10, 5, 2, 1, 8)
    plain, _ = w.get(torch.tensor([3]), *torch.zeros(3, 1, dtype=torch.long))
    u, _ = w.get(*torch.tensor([[3], [shift], [boost], [flip]]))
    again = burgers(u[:, 0, :, 0], .05, np.arange(8) * .01 * stride)
    assert (again - u[..., 0]).abs().max() < 1e-5 * (1 + abs(boost))
    c = boost / 256 / (.01 * stride)                    # cells of the query grid a frame
    first = plain[0, 0, :, 0]
    if flip:
        first = -first[-torch.arange(256) % 256]
    assert torch.allclose(u[0, 0, :, 0], first.roll(shift) + c, atol=1e-5)


@pytest.mark.parametrize('memory_gb', [0., 100.])
def test_drag_moves_the_points_on(path, memory_gb):
    w = windows(write(path, fields(20, T=7, X=32)), window=3, memory_gb=memory_gb)
    index, shift, boost, flip = torch.tensor([[0, 7], [3, 30], [0, -5], [0, 1]])
    plain, _ = w.get(index, shift, boost, flip)
    moved, _ = w.get(index, shift, boost, flip, drag=6)
    for k in range(3):
        assert torch.equal(moved[:, k], plain[:, k].roll(-6 * k, 1))


@pytest.mark.parametrize('x0, speed', [(0., 1.), (-1., 2.)])
def test_still_brings_the_mean_flow_to_rest(path, x0, speed):
    """To half a cell a step, for either flux; lift says what was added."""
    u, length = fields(20, T=7, X=32), 1. if x0 == 0 else 2.
    u += np.random.default_rng(0).uniform(-9, 9, (20, 1, 1)) - u.mean(2, keepdims=True)
    w = windows(write(path, u, x=x0 + length * (np.arange(32) + .5) / 32), window=3)
    index = torch.arange(w.n_windows)
    for flip in (0, 1):
        boost = w.still(index, torch.full_like(index, flip))
        got, _ = w.get(index, torch.zeros_like(index), boost, torch.full_like(index, flip))
        assert got.mean((1, 2, 3)).abs().max() <= .5 * length / 32 / (w.sources[0].dt * w.time_stride) / speed + 1e-5
        own = torch.from_numpy(u[4:]).mean((1, 2))[index // w.n_starts] * (1 - 2 * flip)
        assert torch.allclose(got.mean((1, 2, 3)), (own + w.lift(boost)).float(), atol=1e-3)
        assert (boost.abs() > 1).any()


def test_augmentation_is_per_sample(resolved):
    w = windows(resolved, 10, 5, 2, 1, 3)
    args = draw(w, 6)
    u, _ = w.get(*args)
    for i in range(6):
        assert torch.equal(w.get(*(a[i:i + 1] for a in args))[0][0], u[i])


# ---------------------------------------------------------------------------------------------
# order of sampling

def test_sampler_visits_every_window_once_an_epoch():
    sampler, epochs = Sampler(24, 4, seed=1), []
    for epoch in range(3):
        batches = [sampler.next() for _ in range(6)]
        epochs.append(torch.cat(batches).tolist())
        assert sorted(epochs[-1]) == list(range(24)) and sampler.epoch == epoch + 1
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize('n, batch', [(24, 4), (25, 4), (3, 5), (1, 2)])
def test_sampler_resumes_from_two_integers(n, batch):
    sampler = Sampler(n, batch, seed=7)
    states, drawn = [], []
    for _ in range(20):
        states.append(json.loads(json.dumps(sampler.state())))
        drawn.append(sampler.next())
        assert drawn[-1].shape == (batch,) and drawn[-1].min() >= 0 and drawn[-1].max() < n
    for start in (0, 3, 5, 6, 11, 19):
        again = Sampler(n, batch, seed=7, **states[start])
        assert all(torch.equal(again.next(), index) for index in drawn[start:])


def test_sampler_order_follows_the_seed():
    orders = [Sampler(50, 50, seed).next().tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


# ---------------------------------------------------------------------------------------------
# which file

def test_explicit_path_must_exist(tmp_path, path, monkeypatch):
    monkeypatch.setattr(solvers, 'write_burgers', lambda *a, **k: pytest.fail('the solver was called'))
    missing = str(tmp_path / 'missing.hdf5')
    assert missing in refused(find_or_make, str(tmp_path), missing, .01, 4)
    write(path)
    assert find_or_make(str(tmp_path), path, .01, 4) == [path]
    assert find_or_make(str(tmp_path), f'{path}, {path}', .01, 4) == [path, path]
    assert missing in refused(find_or_make, str(tmp_path), f'{path},{missing}', .01, 4)
    assert not os.path.exists(missing)


def test_released_file_is_preferred_and_an_absent_one_is_made(tmp_path, monkeypatch):
    calls, folder = [], str(tmp_path)
    monkeypatch.setattr(solvers, 'write_burgers', lambda path, n, nu, **k: calls.append((path, n, nu)))
    made = solvers.burgers_path(folder, .01, 12)
    assert find_or_make(folder, '', .01, 12) == [made] and calls == [(made, 12, .01)]
    write(made)
    assert find_or_make(folder, '', .01, 12) == [made] and len(calls) == 1
    released = write(tmp_path / '1D_Burgers_Sols_Nu0.01.hdf5')
    assert find_or_make(folder, '', .01, 12) == [released] and len(calls) == 1
