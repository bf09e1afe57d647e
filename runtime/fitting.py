"""
Keys that fit a data file: what the error of keys that do not fit lists, as a command to copy.
"""
import math
import shlex
import sys

from runtime.configurator import UserError
from runtime.inputs import token_grid

POINTS = 32                            # along an axis, which a stride leaves if the file has as many
POINTS_PER_TOKEN = 4                   # at least, where the number of tokens has to change


def with_fitting_keys(error, check, keys, source):
    """
    The UserError of keys that do not fit a file, with a command whose keys do; the same error where no change
    helps, and for a mixture, each of whose configs has keys of its own.

    check(changes) raises UserError where the keys, some of them changed, do not fit. keys: a namespace;
    source: a files.Source. Only strides, unrolled steps and sizes of tokens and patches are changed, and only
    those that have to be.
    """
    if keys.mixture:
        return error
    for values in candidates(keys, source):
        changes = {name: value for name, value in values.items() if value != getattr(keys, name)}
        try:
            check(changes)
        except UserError:
            continue
        command = shlex.join(['python', 'train.py', *replaced(sys.argv[1:], changes)])
        return UserError(f'{error}. Keys that fit this file: {command}')
    return error


def replaced(argv, changes):
    """A command line with other values of some keys."""
    kept = [arg for arg in argv if arg.partition('=')[0].lstrip('-').replace('-', '_') not in changes]
    return [*kept, *(f'--{name}={value}' for name, value in changes.items())]


def candidates(keys, source):
    """Values of keys that may fit, {name: value}, the closest to those of `keys` first."""
    times = time_keys(keys, source.n_frames)
    stride = space_stride(keys.space_stride, source.shape)
    grid = [cells // stride for cells in source.shape]
    for tokens in token_numbers(keys.latent_tokens, grid):
        points = [n // s for n, s in zip(grid, token_grid(grid, tokens)) if s]
        sizes = {**times, 'space_stride': stride, 'latent_tokens': tokens, 'latent_dim': keys.latent_dim,
                 'halo': min(keys.halo, *grid), 'patch_size': keys.patch_size, 'token_shift': 0}
        if keys.encoder_dim:                                         # patches divide the points of a token
            sizes['patch_size'] = largest_divisor(math.gcd(*points), keys.patch_size)
        shift = keys.token_shift
        if shift >= min(points):
            shift = min(points) // 2
        n_value = math.prod(points) * len(source.fields)
        for latent_dim in (keys.latent_dim, max(keys.latent_dim, n_value)):
            yield {**sizes, 'token_shift': shift, 'latent_dim': latent_dim}
        yield sizes


def time_keys(keys, n_frames):
    """Stride and window in a trajectory of n_frames."""
    first = keys.initial_step if keys.initial_step < n_frames else 1
    unroll = min(keys.unroll, max(1, n_frames - first))
    stride = max(1, keys.time_stride)
    while stride > 1 and -(-n_frames // stride) < first + unroll:
        stride -= 1
    return {'time_stride': stride, 'initial_step': first, 'unroll': unroll,
            'unroll_start': min(keys.unroll_start, unroll)}


def space_stride(stride, shape):
    """The largest stride of at most `stride` that divides the cells and leaves POINTS, or all of them."""
    most = min(stride, max(1, min(shape) // POINTS))
    return largest_divisor(math.gcd(*shape), most)


def token_numbers(tokens, grid):
    """Numbers of tokens along an axis that divide the points of each: `tokens`, or else smaller ones, first
    those of which each holds some points."""
    n = math.gcd(*grid)
    divisors = [k for k in range(min(n, tokens), 0, -1) if n % k == 0]
    large = [k for k in divisors if k * POINTS_PER_TOKEN <= min(grid)]
    kept = [tokens] if n % max(1, tokens) == 0 else []
    return list(dict.fromkeys([*kept, *large, *divisors]))


def largest_divisor(n, most):
    """The largest divisor of n that is at most `most`, which may be 0."""
    return next((k for k in range(min(n, most), 0, -1) if n % k == 0), 1)
