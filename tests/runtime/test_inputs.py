"""runtime/inputs.py: what a user gives to a model. Fields on other grids, resampled; points, parameters, and
what is refused."""
import math
import warnings

import numpy as np
import pytest
import torch

from conftest import close, config, drawn, refused
from runtime.inputs import as_numbers, noise_of, resample, say_unseen, unseen

both = pytest.mark.parametrize('d', [1, 2])


def build(*args, **options):
    """A drawn model in eval mode."""
    return drawn(*args, **options).eval()


def field(m, B=3, seed=0, grid=None):
    """A random field (B, *grid, C)."""
    shape = [B, *(grid or m.cfg.grid), m.cfg.n_field]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wave(x):
    """A wave with period 1, (N,) -> (N,)"""
    return torch.sin(2 * math.pi * x + .4)


# ---------------------------------------------------------------------------------------------
# arrays and numbers

def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


# what becomes of a float32 array, with the same values
KINDS = {
    'tensor': torch.tensor, 'list': np.ndarray.tolist, 'list of arrays': list, 'float64': np.float64,
    'list of tensors': lambda x: [torch.tensor(row) for row in x], 'read-only': read_only,
    'big-endian': lambda x: x.astype('>f4'), 'long double': np.longdouble,
    'flipped': lambda x: x[::-1].copy()[::-1], 'column order': np.asfortranarray,
    'sparse': lambda x: torch.tensor(x).to_sparse(),
    'unmasked': np.ma.asarray, 'list of unmasked': lambda x: [np.ma.asarray(row) for row in x],
    'tensor with a gradient': lambda x: torch.tensor(x, requires_grad=True)}


@pytest.mark.parametrize('kind', KINDS)
def test_arrays_of_every_kind(kind):
    """Fields, points, coordinates, parameters and time steps may all be given in any of these ways."""
    m = build()
    as_kind = KINDS[kind]
    u = field(m).numpy()
    q = np.random.default_rng(0).random((3, 5, 1)).astype('f4')
    x = m.grid(32)[:, 0].numpy()
    nu = np.float32([.01, .01, .01])
    dt = np.float32([.05, .05, .05])
    expected = m.rollout(torch.tensor(u), 2, torch.tensor(q))
    got = m.rollout(as_kind(u), 2, as_kind(q), {'Nu': as_kind(nu)}, as_kind(dt), grid=as_kind(x))
    assert torch.equal(got, expected)
    z = m.step(m.encode(as_kind(u), as_kind(x)), {'Nu': as_kind(nu)}, as_kind(dt))
    assert torch.equal(m.decode(z, as_kind(q)), expected[:, 0])


@pytest.mark.parametrize('dtype', ['f2', '>i4', 'u2', 'i8'])
def test_numbers_of_other_types(dtype):
    x = np.arange(6).reshape(2, 3).astype(dtype)
    assert as_numbers('x', x).tolist() == x.tolist()
    assert as_numbers('x', x[0, 1]).ndim == 0                        # a numpy scalar
    assert as_numbers('x', x).dtype == (torch.float16 if dtype == 'f2' else torch.float64)


@pytest.mark.parametrize('value, words', [
    (True, 'bool'), (np.ones((1, 32, 1), bool), 'bool'), (torch.ones(1, 32, 1, dtype=torch.bool), 'bool'),
    (np.ones(3, complex), 'complex'), (torch.ones(3, dtype=torch.cfloat), 'complex'), ('wave', '<U4'),
    (None, 'object'), ([[1.], [1., 2.]], 'no array'), ([torch.ones(2), torch.ones(3)], 'no array'),
    (np.ma.masked_greater([1., 2., 3., 4.], 2), '2 of 4 values of u are masked'),
    (torch.quantize_per_tensor(torch.ones(1, 32, 1), .1, 0, torch.qint8), 'quantized'),
    ([1., np.ma.masked], 'masked'), (10 ** 400, 'no array')])
def test_what_is_no_array_of_real_numbers_is_refused(value, words):
    m = build()
    assert words in refused(m.encode, value)
    assert words in refused(m.rollout, value, 1)


@pytest.mark.parametrize('encoder', ['grid', 'points'])
@both
def test_an_empty_batch_gives_no_samples(d, encoder):
    m = build(d, encoder=encoder)
    none = np.empty((0, *m.cfg.grid, 1))
    q = np.empty((0, 5, d))
    z = m.step(m.encode(none), {'Nu': []}, [])
    assert m.decode(z).shape == none.shape and m.decode(z, q).shape == (0, 5, 1)
    assert m.rollout(none, 2).shape == (0, 2, *m.cfg.grid, 1)
    assert m.rollout(none, 2, points=q, reencode=True).shape == (0, 2, 5, 1)


@pytest.mark.parametrize('steps', [0, -1, 2., True, '2', None, torch.tensor([1, 2]), np.float32(2)])
def test_steps_that_are_no_number_of_steps(steps):
    m = build()
    assert 'whole number of at least 1' in refused(m.rollout, field(m), steps)


@pytest.mark.parametrize('seed', [2 ** 64, -1, 1.5])
def test_numbers_that_are_no_seed(seed):
    assert 'seed=' in refused(noise_of, seed, torch.zeros(1))
    assert noise_of(2 ** 64 - 1, torch.zeros(1))(3).shape == (3,)


def test_steps_of_other_types():
    m = build()
    for steps in (np.int16(2), torch.tensor(2), np.array(2)):
        assert m.rollout(field(m), steps).shape[1] == 2


# ---------------------------------------------------------------------------------------------
# resampling

@pytest.mark.parametrize('length', [None, 1.])
def test_resample_keeps_shared_points(length):
    x = (torch.arange(40) / 40 + .003).float()
    u = torch.randn(2, 3, 40)
    assert torch.equal(resample(u, x, x[5:30:3], length), u[..., 5:30:3])
    assert torch.equal(resample(u, x, x, length), u)
    order = torch.randperm(40)
    assert torch.equal(resample(u[..., order], x[order], x, length), u)


def test_resample_accuracy():
    to = torch.rand(500, generator=torch.Generator().manual_seed(0))

    def error(x):
        return float((resample(wave(x)[None], x, to, 1.) - wave(to)).abs().max())
    errors = [error((torch.arange(n) + .5) / n) for n in (8, 16, 32)]
    assert errors[0] / errors[1] > 6
    assert errors[1] / errors[2] > 6
    assert errors[2] < 1e-3
    uneven = torch.rand(200, generator=torch.Generator().manual_seed(1))
    assert error(torch.sort(uneven)[0]) < 5e-3


def test_resample_wraps_around():
    x = (torch.arange(64) + .5) / 64
    to = torch.tensor([-.3, 0., .001, .999, 1., 1.7])
    close(resample(wave(x)[None], x, to, 1.)[0], wave(to), 1e-3)
    close(resample(wave(x)[None], x, to + 2., 1.), resample(wave(x)[None], x, to, 1.), 1e-5)


def test_resample_between_walls():
    x = (torch.arange(10) + .5) / 10
    to = torch.tensor([-.5, 0., .05, .37, .5, .95, 1., 2.])
    got = resample((3 * x + 1)[None], x, to)[0]
    expected = 3 * to.clamp(.05, .95) + 1                            # clamped to the outermost points
    close(got, expected, 1e-6)


def test_the_mirror_image_of_uneven_points_gives_the_mirror_image():
    x = torch.tensor([0., .1, .2, .3, .7, 1.], dtype=torch.float64)
    to = torch.linspace(0, 1, 41, dtype=torch.float64)
    u = (x ** 2)[None]
    close(resample(u, 1 - x, 1 - to), resample(u, x, to), 1e-6)


# ---------------------------------------------------------------------------------------------
# the grid of a model

@both
def test_the_grid_of_a_model(d):
    m = build(d, first=(.5 / 1024,) * d)
    assert torch.equal(m.grid(), m.points)
    n = m.cfg.grid[0]
    fine = m.grid(*[4 * n] * d).view(*[4 * n] * d, d)
    for axis in range(d):
        line = fine[(0,) * axis + (slice(None),) + (0,) * (d - 1 - axis) + (axis,)]
        assert np.allclose(line, .5 / 1024 + np.arange(4 * n) / (4 * n))
    coarse = fine[::4] if d == 1 else fine[::4, ::4]
    assert torch.equal(coarse.reshape(-1, d), m.grid())
    assert torch.equal(m.grid(m.cfg.grid), m.grid())                 # a shape, as torch.zeros takes it
    assert f'{d} axes' in refused(m.grid, *[8] * (3 - d))
    for bad in (0, 8., '8'):
        assert 'whole number' in refused(m.grid, *[bad] * d)


def test_grid_between_walls_stays_inside():
    m = build(boundary='wall')
    for n in (16, 8):                                                # coarser: the first point fits its cell
        assert np.allclose(m.grid(n)[:, 0], .5 / 32 + np.arange(n) / n)
    fine = m.grid(128)[:, 0]                                         # finer: it would not; cells are centred
    assert np.allclose(fine, (np.arange(128) + .5) / 128)


# ---------------------------------------------------------------------------------------------
# other input grids

@both
@pytest.mark.parametrize('first, factor', [(None, 3), (.5 / 1024, 2), (.5 / 1024, 8)])
def test_finer_input_that_holds_the_trained_points_is_strided_exactly(d, first, factor):
    m = build(d, **({'first': (first,) * d} if first else {}))
    fine = field(m, 1, grid=tuple(factor * n for n in m.cfg.grid))
    strided = fine[:, ::factor] if d == 1 else fine[:, ::factor, ::factor]
    assert torch.equal(m.encode(fine).tokens, m.encode(strided).tokens)


def test_input_on_points_of_its_own():
    m = build()
    z = m.encode(wave(m.grid())[None])
    order = torch.randperm(96)
    x = m.grid(96)
    assert torch.equal(m.encode(wave(x)[None], grid=x).tokens, z.tokens)
    assert torch.equal(m.encode(wave(x[order])[None], grid=x[order]).tokens, z.tokens)
    x = (torch.arange(300) / 300 + .0007)[:, None]
    for y in (x, x + 1):                                             # other points, and a period further
        close(m.encode(wave(y)[None], grid=y).tokens, z.tokens, 1e-3)
    out = m.rollout(wave(x)[None], 2, grid=x)
    assert out.shape == (1, 2, 300, 1)
    close(out, m.rollout(wave(x)[None], 2, grid=x, points=x), 0.)
    close(out, m.rollout(wave(m.grid())[None], 2, points=x), 2e-3)


@pytest.mark.parametrize('n', [12, 24, 40])
def test_input_on_other_grids_is_interpolated(n):
    m = build(2)

    def product(x):
        return (wave(x[:, 0]) * wave(x[:, 1] + .2))[None]
    z = m.encode(product(m.grid()).view(1, 16, 16, 1))
    close(m.encode(product(m.grid(n, n)).view(1, n, n, 1)).tokens, z.tokens, .1)
    walls = build(boundary='wall')
    square = walls.encode(walls.grid(4 * n)[None] ** 2)
    close(square.tokens, walls.encode(walls.grid()[None] ** 2).tokens, .02)


# ---------------------------------------------------------------------------------------------
# points

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@both
def test_points_outside_walls_are_refused(d, dtype):
    """The walls themselves are inside, where 0.7 is another number in float32, too."""
    m = build(d, boundary='wall', length=(.7,) * d)
    z = m.encode(field(m))
    q = .7 * torch.rand(6, d, dtype=dtype)
    inside = torch.cat([q, torch.zeros(1, d, dtype=dtype), torch.full((1, d), .7, dtype=dtype)])
    assert torch.isfinite(m.decode(z, inside)).all()
    for bad in (.7001, -.0001):
        outside = q.clone()
        outside[4, d - 1] = bad
        assert 'outside' in refused(m.decode, z, outside)
    assert torch.isfinite(build(d).decode(z, torch.full((1, d), 1.01))).all()
    below = build(d, boundary='wall', low=(-1.,) * d)
    assert 'outside' in refused(below.decode, below.encode(field(below)), torch.full((1, d), .5))


@pytest.mark.parametrize('d, shape', [(1, (32, 1)), (1, (2, 32)), (1, (2, 32, 2)), (1, (2, 3, 32, 1)),
                                      (2, (2, 16, 1))])
def test_fields_of_wrong_shape_are_refused(d, shape):
    m = build(d)
    assert str(shape) in refused(m.encode, torch.zeros(shape))
    assert str(shape) in refused(m.rollout, torch.zeros(shape), 3)


def test_the_mistake_in_a_shape_is_told():
    m = build(fields=('a', 'b'))
    told = {(3, 2, 32): 'moveaxis(u, 1, -1)', (32, 2): 'u[None]', (3, 32): 'u[..., None]', (3, 32, 4): 'a b',
            (3, 1, 2): 'at least 2 points', (): '(B, X, 2)'}
    for shape, words in told.items():
        assert words in refused(m.encode, torch.zeros(shape))


@pytest.mark.parametrize('q, words', [
    (.5, '()'), (torch.rand(5, 2), '(5, 2)'), (torch.rand(1, 1, 5, 1), '(1, 1, 5, 1)'),
    (torch.rand(2, 5, 1), '2 samples'), (torch.tensor([[np.nan]]), 'not finite')])
def test_points_of_wrong_shape_are_refused(q, words):
    m = build()
    assert words in refused(m.decode, m.encode(field(m)), q)


def test_flat_points_are_points_of_one_axis():
    m = build()
    z = m.encode(field(m))
    assert torch.equal(m.decode(z, [.1, .7]), m.decode(z, [[.1], [.7]]))
    plane = build(2)
    assert 'shape (2,)' in refused(plane.rollout, field(plane), 1, [.1, .7])


@both
def test_a_field_without_batch_and_fields_is_refused_with_the_way_out(d):
    m = build(d)
    u = field(m)[0, ..., 0]
    assert 'u[None, ..., None]' in refused(m.encode, u)
    assert m.encode(u[None, ..., None]).tokens.shape[0] == 1


def test_other_arguments_are_refused():
    m = build()
    u = field(m)
    z = m.encode(u)
    assert '31 coordinates' in refused(m.encode, u, grid=m.grid(31))
    assert 'encoder=points' in refused(build(2).encode, torch.zeros(2, 16, 16, 1), grid=[.1])
    v = torch.zeros(1, 32, 1)
    assert 'part of the domain' in refused(m.encode, v, grid=torch.linspace(0, .5, 32))
    assert 'not finite' in refused(m.encode, v, grid=torch.full((32,), math.nan))
    walls = build(boundary='wall')
    assert 'part of the domain' in refused(walls.encode, v, grid=torch.linspace(.4, 1, 32))
    assert walls.encode(v, grid=torch.linspace(0, 1, 32)).tokens.isfinite().all()
    assert "'nu'" in refused(m.rollout, u, 1, params={'nu': .1})
    assert '(1, 32)' in refused(m.encode, v, grid=m.grid(32).T)
    assert '(16, 2)' in refused(m.encode, v, grid=m.grid(32).view(16, 2))
    assert 'dict' in refused(m.rollout, u, 1, params=[.01])
    for value in (math.nan, np.array([.01, math.inf, .02]), torch.tensor(math.nan)):
        assert 'Nu holds values that are not finite' in refused(m.step, z, {'Nu': value})
        assert 'dt holds values that are not finite' in refused(m.rollout, u, 1, dt=value)
    for value in (0, -.05, [.05, 0., .05], torch.tensor(-1.)):
        assert 'must be positive' in refused(m.step, z, dt=value)
    assert 'dt' in refused(m.step, z, dt=torch.ones(2))
    assert 'Nu' in refused(m.step, z, params={'Nu': torch.ones(3, 1)})
    assert 'steps=0' in refused(m.rollout, u, 0)
    assert 'Latent' in refused(m.decode, z.tokens)
    assert 'Latent' in refused(m.step, u)
    other = build(2).encode(torch.zeros(1, 16, 16, 1))
    for call in (m.step, m.decode):
        assert 'tokens has shape (1, 16, 8); expected (B, 8, 8)' in refused(call, other)
    assert 'mean has shape (2, 1)' in refused(m.step, z._replace(mean=z.mean[:2]))
    assert 'stepper=ensemble' in refused(m.step, z, stepper='ensemble')
    u[1, 3] = np.inf
    assert 'not finite' in refused(m.encode, u)


# ---------------------------------------------------------------------------------------------
# parameters

def test_unseen_parameters_are_told():
    cfg = config(params=('a', 'b'), seen_params=((.2, .1), (3.,)))
    assert unseen(cfg, {'a': [.1, .2, .10000001], 'b': [3.]}) == ''
    note = unseen(cfg, {'a': [.1, .5, .4], 'b': [3.]})
    assert note == 'a=0.4, 0.5 was never seen in training (0.2, 0.1 was)'
    assert unseen(config(seen_params=((1e-8,),)), {'Nu': [2e-8]})    # numbers differ relatively
    many = unseen(cfg, {'a': range(1, 10), 'dt': [.05, .1]})
    assert many == ('dt=0.1 was never seen in training (0.05 was); a=1, 2, 3, 4 and 5 more was never seen in '
                    'training (0.2, 0.1 was)')


def warned(call, *args, **options):
    """The warnings of a call, which must name a line of this file."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        call(*args, **options)
    assert {note.filename for note in told} <= {__file__}
    return [str(note.message) for note in told]


@pytest.mark.parametrize('name, known, new', [('Nu', .01, .7), ('dt', .05, .1)])
def test_use_with_an_unseen_parameter_or_time_step_is_warned_of(name, known, new):
    """However the value is given; once for a rollout."""
    m = build()
    u = field(m)
    z = m.encode(u)
    text = [f'{name}={new} was never seen in training ({known} was)']
    for kind in (float, np.float32, np.array, torch.tensor, lambda x: [x] * 3,
                 lambda x: np.array([x, known, x]), lambda x: torch.tensor([known, x, x])):
        given = {'dt': kind(new)} if name == 'dt' else {'params': {name: kind(new)}}
        assert warned(m.step, z, **given) == text
        assert warned(m.rollout, u, 2, **given) == text
    assert warned(m.rollout, u, 2, n_members=2, **given) == text
    almost = {'Nu': .01, 'dt': .05, name: known * (1 + 1e-5)}
    assert warned(m.step, z, {'Nu': almost['Nu']}, almost['dt']) == []


def test_a_script_that_tells_of_unseen_values_is_not_followed_by_the_model(capsys):
    m = build()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        say_unseen('note: ', m.cfg, {'Nu': [.7]})
        m.rollout(field(m), 1, params={'Nu': .7})
    assert capsys.readouterr().out == 'note: Nu=0.7 was never seen in training (0.01 was)\n'
