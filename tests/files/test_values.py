"""files/values.py: parameters wherever a file has them, packed and missing values, axes that are columns."""
import h5py
import numpy as np
import pytest

from conftest import centres, noise, refused
from files.inspect import inspect
from files.open import open_source, read_rows
from files.values import stored
from handmade import change, darcy, groups, tensor

SAME = np.full(10, .01)
DIFFERENT = np.linspace(.01, .1, 10)


def with_dataset(path, name, value, **attrs):
    """A file of Burgers, 10 trajectories, with one more data set. -> path"""
    tensor(path, attrs=attrs)
    with h5py.File(path, 'a') as file:
        file[name] = value
    return path


# -----------------------------------------------------------------------------
# parameters

@pytest.mark.parametrize('value', ['0.01', b'1e-2', np.bytes_('.01'), np.array([.01]), SAME, SAME[:3],
                                   np.array([b'0.01']), np.float32(.01)], ids=repr)
def test_a_parameter_is_a_number_however_it_is_stored(path, value):
    assert open_source(tensor(path, attrs={'Nu': value})).params == {'Nu': pytest.approx(.01)}
    source = open_source(tensor(path, attrs={'nu': value, '_nc3_strict': 1}))
    assert source.params == {'Nu': pytest.approx(.01)}
    assert 'nc3' not in str(source.notes)                # an attribute of a library is no parameter


@pytest.mark.parametrize('value', [.01, '0.01', SAME, SAME[:, None], np.array([[.01]])], ids=repr)
@pytest.mark.parametrize('name', ['nu', 'Nu'])
def test_a_parameter_may_be_a_data_set_beside_the_fields(path, name, value):
    source = open_source(with_dataset(path, name, value))
    assert (source.pde, source.layout, source.params) == ('burgers', 'tensor', {'Nu': pytest.approx(.01)})
    with h5py.File(with_dataset(path, name, 1), 'a') as file:
        file[name].attrs['scale_factor'] = .01           # packed as fields may be
    assert open_source(path).params == {'Nu': .01}


@pytest.mark.parametrize('value, word', [
    (DIFFERENT, 'values of Nu differ (from 0.01 to 0.1), and a file has one: write a file for each value'),
    (1e-9 * SAME + 1e-9 * DIFFERENT, 'values of Nu differ'),
    ('small', "for its attribute Nu is the text 'small', and Nu must be a number"),
    (h5py.Empty('f4'), 'is empty'), (np.zeros(0), 'is empty'), (True, 'holds bool')], ids=repr)
def test_a_parameter_that_is_no_one_number_is_told(path, value, word):
    tensor(path, attrs={'Nu': value})
    assert word in refused(open_source, path)
    assert word.removeprefix('for ') in refused(open_source, path, 'burgers')


def test_places_of_a_parameter_that_disagree_are_told(path):
    assert open_source(with_dataset(path, 'nu', SAME, Nu=.01)).params == {'Nu': .01}
    assert 'differ (from 0.01 to 0.1)' in refused(open_source, with_dataset(path, 'nu', DIFFERENT, Nu=.01))
    assert 'differ' in refused(open_source, with_dataset(path, 'nu', .02, Nu=.01))
    with_dataset(path, 'nu', noise()[:, 0])
    assert 'data set nu has the shape (10, 16)' in refused(open_source, path)
    doubts = open_source(with_dataset(path, 'nu', noise()[:, 0], Nu=.01)).doubts
    assert 'nu has the shape (10, 16), and Nu must be a number: not used' in doubts[0]


def test_a_parameter_behind_a_link_is_not_read(path, tmp_path):
    other = with_dataset(tmp_path / 'other.hdf5', 'nu', .01)
    with h5py.File(tensor(path, attrs={}), 'a') as file:
        file['settings/nu'] = h5py.ExternalLink(str(other), 'nu')
    assert 'it has no attribute Nu' in refused(open_source, path, 'burgers')


def test_a_parameter_of_the_data_set_and_of_every_group(path):
    with h5py.File(tensor(path, attrs={}), 'a') as file:
        file['tensor'].attrs['Nu'] = .02
    assert open_source(path).params == {'Nu': .02}
    assert open_source(with_dataset(path, 'settings/nu', .03)).params == {'Nu': .03}
    u = noise(3, 4, 16, 1)
    groups(path, u, [centres(16)], np.arange(4.) * 5)
    with h5py.File(path, 'a') as file:
        file['D'] = .1                                   # beside the groups
        for row in range(3):
            file[f'000{row}'].attrs['seed'] = row
    source = open_source(path, quiet=True)
    assert (source.n, source.pde) == (3, 'diffusion-sorption') and 'has D, which' in source.notes[0]


def test_a_coefficient_in_every_cell_is_still_darcy_flow(path):
    assert open_source(darcy(path)).pde == 'darcy'
    assert open_source(darcy(path, attrs=[('beta', '1.0'), ('seed', 3)]), 'darcy').params == {'beta': 1.}


# -----------------------------------------------------------------------------
# packed and missing values, axes

@pytest.mark.parametrize('dtype, attrs', [
    ('i2', {'scale_factor': .5, 'add_offset': 3.}), ('u1', {'scale_factor': np.array([2.])}),
    ('f4', {'add_offset': -1}), ('i1', {'scale_factor': '0.1', '_Unsigned': 'true'})], ids=repr)
def test_packed_values_are_unpacked(path, dtype, attrs, capsys):
    packed = np.random.default_rng(0).integers(0, 99, (10, 5, 16)).astype(dtype)
    with h5py.File(tensor(path, packed), 'a') as file:
        file['tensor'].attrs.update(attrs)
    source = open_source(path)
    factor = float(np.squeeze(attrs.get('scale_factor', 1.)))
    expected = packed * factor + float(attrs.get('add_offset', 0.))
    assert np.allclose(read_rows(source, range(10), 2)[..., 0], expected[:, ::2], rtol=1e-6)
    assert f'{np.dtype(dtype)} packed by' in capsys.readouterr().out


@pytest.mark.parametrize('dtype, mark', [('f4', 1e20), ('f4', -999.), ('i2', -999), ('f8', [-999., 7e5])])
@pytest.mark.parametrize('name', ['_FillValue', 'missing_value'])
def test_missing_values_are_refused_with_their_number(path, name, dtype, mark):
    u = (10 * noise()).astype(dtype)
    with h5py.File(tensor(path, u), 'a') as file:
        file['tensor'].attrs[name] = np.asarray(mark, dtype)
    assert inspect(path)['trajectories'] == 10           # none is missing
    change(path, 'tensor')
    u[4, 2, :3] = np.asarray(mark, dtype).ravel()[-1]
    with h5py.File(path, 'a') as file:
        file['tensor'] = u
        file['tensor'].attrs[name] = np.asarray(mark, dtype)
    assert '3 values are not finite, the first in trajectory 4, frame 2' in refused(inspect, path)


@pytest.mark.parametrize('values, attrs, expected', [
    (np.array([-1, 1], 'i1'), {'_Unsigned': 'true', 'add_offset': 0.}, [255., 1.]),
    (np.array([-1, 1], 'i1'), {'_Unsigned': 'true', '_FillValue': np.int8(-1)}, [np.nan, 1.]),
    (np.array([-1, 1], 'i1'), {'_Unsigned': 'true', 'valid_range': np.array([0, -2], 'i1')}, [255., 1.]),
    (np.array([.1, 1], 'f4'), {'missing_value': .1}, [np.nan, 1.]),              # a mark of another type
    (np.array([3, 1], 'i2'), {'scale_factor': .1}, [3 * .1, .1]),
    (np.array([3, 1], 'i2'), {'valid_range': [2., 3., 4.]}, [3., 1.])], ids=str)
def test_what_stored_numbers_mean(path, values, attrs, expected):
    with h5py.File(path, 'w') as file:
        file['a'] = values
        file['a'].attrs.update(attrs)
        assert np.array_equal(stored(file['a']), expected, equal_nan=True)


@pytest.mark.parametrize('attrs', [{'valid_range': [-100., 100.]}, {'valid_min': -100.},
                                   {'valid_max': 100.}], ids=str)
def test_values_beyond_their_limits_are_missing(path, attrs):
    u = noise()
    limit = -100. if 'valid_min' in attrs else 100.
    for value, n_bad in ((limit, 0), (1.1 * limit, 1)):
        u[4, 2, 3] = value
        with h5py.File(tensor(path, u), 'a') as file:
            file['tensor'].attrs.update(attrs)
        if n_bad:
            assert '1 values are not finite' in refused(inspect, path)
        else:
            assert limit in (inspect(path)['min'][0], inspect(path)['max'][0])


def test_packing_that_is_no_number(path):
    with h5py.File(tensor(path), 'a') as file:
        file['tensor'].attrs['missing_value'] = 'n/a'
    assert len(read_rows(open_source(path), range(10))) == 10
    with h5py.File(path, 'a') as file:
        file['tensor'].attrs['scale_factor'] = 'm/s'
    assert "the attribute scale_factor of tensor is the text 'm/s'" in refused(open_source, path)
    for value, word in ((np.ones(2), 'expected one finite'), (0., 'is 0'), (np.nan, 'expected one finite'),
                        (h5py.Empty('f4'), 'is empty')):
        with h5py.File(path, 'a') as file:
            file['tensor'].attrs['scale_factor'] = value
        assert word in refused(open_source, path)


def test_packed_axes_that_are_columns_and_rows(path):
    tensor(path, x=np.arange(16, dtype='i2')[:, None], t=np.arange(6)[None] * .01)
    with h5py.File(path, 'a') as file:
        file['x-coordinate'].attrs.update({'scale_factor': 1 / 16, 'add_offset': .5 / 16})
    source = open_source(path)
    assert np.allclose(source.x[0], centres(16)) and source.dt == pytest.approx(.01)
