"""
What stored values mean.

Numbers may be packed, or marked as missing, by attributes of their data set, as netCDF's conventions have it.
A parameter may be an attribute or a small data set, a number or a text, one value or one a trajectory.
"""
import h5py
import numpy as np

from runtime.configurator import UserError

MARKS = ('_FillValue', 'missing_value')             # attributes: a stored value that stands for none
LIMITS = ('valid_min', 'valid_max', 'valid_range')  # attributes: stored values beyond stand for none
PACKING = ('scale_factor', 'add_offset')            # attributes: value = stored value * factor + offset

# of an axis, that need no word
UNITS = ('', '1', '-', 'none', 's', 'sec', 'second', 'seconds', 'm', 'meter', 'meters', 'metre', 'metres',
         'nondimensional', 'dimensionless')


def as_text(value):
    """The text of an attribute: bytes are decoded, an array of one value is this value, none is ''."""
    if isinstance(value, h5py.Empty):
        return ''
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return value.decode(errors='replace') if isinstance(value, bytes) else str(value)


def as_numbers(value):
    """The numbers (K,) float64 in the value of an attribute or data set: numbers, or texts such as '0.01'.
    Raises ValueError, whose text completes a sentence, where it holds anything else."""
    if isinstance(value, h5py.Empty):
        raise ValueError('is empty')
    value = np.asarray(value)
    if value.dtype.kind in 'fiu':
        return value.astype(np.float64).ravel()
    if value.dtype.kind not in 'SUO':
        raise ValueError(f'holds {value.dtype}')
    texts = [as_text(item) for item in value.ravel()]
    try:
        return np.array([float(text) for text in texts])
    except ValueError:
        raise ValueError(f"is the text '{texts[0][:40]}'") from None


def is_number(value, number):
    """Is the value of an attribute this one number?"""
    try:
        return as_numbers(value).tolist() == [number]
    except ValueError:
        return False


# -----------------------------------------------------------------------------
# packed and missing values

def check_conventions(path, key, dataset):
    """Raise UserError where the attributes that say how values are packed are not one number each."""
    for name in PACKING if len(dataset.attrs) else ():
        if name not in dataset.attrs:
            continue
        try:
            numbers = as_numbers(dataset.attrs[name])
        except ValueError as error:
            raise UserError(f"'{path}': the attribute {name} of {key} {error}, expected a number") from error
        if len(numbers) != 1 or not np.isfinite(numbers[0]):
            raise UserError(f"'{path}': the attribute {name} of {key} is {numbers}, expected one finite "
                            'number')
    if 'scale_factor' in dataset.attrs and as_numbers(dataset.attrs['scale_factor'])[0] == 0:
        raise UserError(f"'{path}': the attribute scale_factor of {key} is 0")


def unit_doubts(file):
    """A sentence on each axis of space or time whose attribute `units` names another unit than a second or a
    metre: its numbers are taken as they are."""
    doubts = []
    for pattern in ('{}-coordinate', '0000/grid/{}', 'dimensions/{}', '{}'):
        for name in ('t', 'time', 'x', 'y', 'z'):
            key = pattern.format(name)
            units = as_text(file[key].attrs.get('units', '')) if key in file and is_own(file, key) else ''
            if units.partition(' since ')[0].strip().lower() not in UNITS:
                doubts.append(f"has {key} in '{units[:40]}': its numbers are taken as they are, in the units "
                              'of the equation')
    return doubts


def type_of(dataset):
    """The type of the stored numbers, a text: 'float32', 'int16 packed by scale_factor'."""
    used = [name for name in PACKING if name in dataset.attrs]
    return str(dataset.dtype) + (f" packed by {' and '.join(used)}" if used else '')


def stored(dataset, where=()):
    """The numbers of a data set at the index `where`, an array. Missing values are NaN, packed ones are
    unpacked in float64."""
    values = np.asarray(dataset[where])
    if not len(dataset.attrs):
        return values
    names = [name for name in (*MARKS, *LIMITS, *PACKING) if name in dataset.attrs]
    attrs = {name: _numbers_or_none(dataset.attrs[name]) for name in names}
    is_unsigned = as_text(dataset.attrs.get('_Unsigned', '')).lower() == 'true'
    if is_unsigned and values.dtype.kind == 'i':
        values = values.view(values.dtype.str.replace('i', 'u'))
    missing = np.zeros(values.shape, bool)
    for name in MARKS:
        for mark in attrs.get(name, ()):
            if values.dtype.kind == 'f':
                missing |= values == values.dtype.type(mark)             # NaN needs no mark
            else:
                missing |= values == (mark % 2 ** (8 * values.itemsize) if is_unsigned else mark)
    low, high = _limits(attrs)
    if not is_unsigned and (low > -np.inf or high < np.inf):
        missing |= (values < low) | (values > high)
    if any(name in attrs for name in PACKING):
        factor, = attrs.get('scale_factor', [1.])
        offset, = attrs.get('add_offset', [0.])
        values = values * np.float64(factor) + offset
    if missing.any():
        values = np.where(missing, np.nan, values)
    return values


def _limits(attrs):
    """The least and the largest stored value that is no missing one. attrs: {name: its numbers}."""
    low = high = ()
    if len(attrs.get('valid_range', ())) == 2:
        low, high = np.split(attrs['valid_range'], 2)
    low = attrs.get('valid_min', low)
    high = attrs.get('valid_max', high)
    return max(low, default=-np.inf), min(high, default=np.inf)


def _numbers_or_none(value):
    """The numbers of an attribute; none of a text such as 'n/a', which marks no number."""
    try:
        return as_numbers(value)
    except ValueError:
        return []


def check_filters(path, key, dataset):
    """Raise UserError where a data set went through a filter that is neither installed nor in hdf5plugin."""
    plist = dataset.id.get_create_plist()
    for index in range(plist.get_nfilters()):
        code, _, _, name = plist.get_filter(index)
        if not h5py.h5z.filter_avail(code):
            from files.kinds import missing_filter
            missing_filter(path, key, code, name)


# -----------------------------------------------------------------------------
# parameters

def parameter(file, name, n):
    """
    What a file of n trajectories gives for a parameter: a number; None where it gives nothing; a text that
    says why this is no one number.

    It may stand in an attribute of the file or of a part of it, in a data set of one value or of one a
    trajectory, or, where there is a group for each trajectory, in all groups. Capitals do not matter.
    """
    numbers, problems = _numbers_named(file, name, n)
    if not numbers:
        return problems[0] if problems else None
    numbers = np.concatenate(numbers)
    if not np.allclose(numbers, numbers[0], rtol=1e-6, atol=0, equal_nan=True):
        return (f'its values of {name} differ (from {numbers.min():g} to {numbers.max():g}), and a file has '
                'one: write a file for each value, and name them by --data_path=a,b')
    return float(numbers[0])


def passed_over(file, name, n):
    """Texts on what has the name of a parameter, but is no number."""
    _, problems = _numbers_named(file, name, n)
    return problems


def _numbers_named(file, name, n):
    """Numbers (K,) of each attribute and data set of a name, and a text on each that holds none."""
    numbers = []
    problems = []
    for what, value in _named(file, name.lower()):
        try:
            numbers.append(_few_numbers(value, n))
        except ValueError as error:
            problems.append(f'its {what} {error}, and {name} must be a number')
    return numbers, problems


def possible_parameters(file, n):
    """Names of the attributes and data sets of a file of n trajectories that hold one number, or n, and do
    not belong to a layout."""
    names = []
    for name in file.attrs:
        if not name.startswith('_') and _may_be_parameter(file.attrs, name, n):
            names.append(name)
    for name in file:
        if name == 'tensor' or name.endswith('-coordinate') or name.isdigit() or not is_own(file, name):
            continue
        if isinstance(file[name], h5py.Dataset) and _may_be_parameter(file, name, n):
            names.append(name)
    return names


def _may_be_parameter(place, name, n):
    try:
        return len(_few_numbers(place[name], n)) in (1, n)
    except (ValueError, TypeError, OSError, UserError):              # h5py cannot read all types
        return False


def _few_numbers(value, n):
    """The numbers of an attribute, or of a data set of one value or of n."""
    if isinstance(value, h5py.Dataset):
        if value.size not in (1, n):
            raise ValueError(f'has the shape {value.shape}')
        check_filters(value.file.filename, value.name.lstrip('/'), value)
        value = stored(value) if value.dtype.kind in 'fiu' else value[()]
    numbers = as_numbers(value)
    if not len(numbers):
        raise ValueError('is empty')
    return numbers


def _named(file, name):
    """Yields ('attribute Nu', its value) and ('data set nu', h5py.Dataset) for all of a name in lower
    case."""
    yield from _inside(file, name)
    members = [key for key in file if is_own(file, key)]
    groups = [key for key in members if key.isdigit()]               # one a trajectory
    if groups and not any(_inside(file[groups[0]], name)):
        return
    for key in groups or members:
        yield from _inside(file[key], name)


def _inside(group, name):
    """The same in a group, or of a data set."""
    yield from _attributes(group, name)
    if isinstance(group, h5py.Group):
        for key in group:
            if key.lower() == name and is_own(group, key) and isinstance(group[key], h5py.Dataset):
                yield f'data set {key}', group[key]


def _attributes(place, name):
    for key in place.attrs:
        if key.lower() == name:
            yield f'attribute {key}', place.attrs[key]


def is_own(group, key):
    """Is a member of a group part of the file, and no link?"""
    return isinstance(group.get(key, getlink=True), h5py.HardLink)
