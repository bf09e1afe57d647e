"""
Look into a data file and check every row.

    python data.py inspect FILE [--json]                # exit status 1 if it is broken
"""
import argparse
import json
import sys

import numpy as np

from files.fit import Signs
from files.open import blocks, check_finite, check_overlap, fingerprints, open_source, split_rows
from runtime.configurator import parse_flags

FAR = 20.                             # standard deviations of a value from the mean of its field


def inspect(path):
    """All facts about a file as JSON types; reads every row. Raises UserError if it is broken."""
    source = open_source(path, quiet=True)
    n_fields = len(source.fields)
    count = 0
    least = np.full(n_fields, np.inf)
    largest = np.full(n_fields, -np.inf)
    total = np.zeros(n_fields)
    squares = np.zeros(n_fields)
    prints = []
    signs = Signs(source)
    empty = []                                                       # rows with a later frame that is 0
    moving = [i for i, name in enumerate(source.fields) if name not in source.entry.static]
    for first, u in blocks(source, range(source.n)):
        check_finite(path, u, first)
        signs.add(u)
        prints.append(fingerprints(u[:, 0]))
        is_empty = ~u[:, 1:, ..., moving].any(tuple(range(2, u.ndim - 1)))               # (n, T - 1, C)
        empty += [first + int(row) for row in np.flatnonzero(is_empty.any((1, 2)))]
        u = u.reshape(-1, n_fields)
        count += len(u)
        least = np.minimum(least, u.min(0))
        largest = np.maximum(largest, u.max(0))
        total += u.sum(0, dtype=np.float64)
        squares += np.square(u, dtype=np.float64).sum(0)
    prints = np.concatenate(prints)
    if source.n >= 3:
        splits = {name: split_rows(source.n, name, source.entry.test) for name in ('test', 'val', 'train')}
        check_overlap({name: [(path, rows.start, prints[rows])] for name, rows in splits.items()})
    doubts = list(source.doubts)
    if empty:
        doubts.append(f'{len(empty)} trajectories (first: {empty[0]}) have a field that is 0 everywhere: no '
                      'relative error of it is defined')
    if signs.text():
        doubts.append(signs.text())
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean ** 2, 0))
    for name, low, high, middle, deviation in zip(source.fields, least, largest, mean, std):
        far = max(high - middle, middle - low)
        if far > FAR * deviation > 0:
            value = low if middle - low == far else high
            doubts.append(f'{name} reaches {value:g}, which is {far / deviation:.3g} standard deviations from its '
                          'mean: is it a mark of a missing value?')
    telling = prints[prints != 0]
    return {
        'path': path,
        'pde': source.pde,
        'layout': source.layout,
        'fields': list(source.fields),
        'trajectories': source.n,
        'frames': source.n_frames,
        'cells': list(source.shape),
        'dt': source.dt,
        'first_x': [float(axis[0]) for axis in source.x],
        'domain': [[float(low), float(high)] for low, high in source.entry.space],
        'periodic': source.entry.periodic,
        'params': source.params,
        'dtype': source.dtype,
        'notes': list(source.notes),
        'doubts': doubts,
        'min': least.tolist(),
        'max': largest.tolist(),
        'mean': mean.tolist(),
        'std': std.tolist(),
        'duplicates': len(telling) - len(np.unique(telling))}


def print_found(found):
    """What `inspect` returns, as text: a line each, and one for each note and doubt, then a table of the
    fields."""
    statistics = ('min', 'max', 'mean', 'std')
    for key, value in found.items():
        if key in ('notes', 'doubts'):
            for text in value or ['none']:
                print(f'{key:>13}  {text}')
        elif key not in statistics:
            print(f'{key:>13}  {value}')
    print(f"{'field':>13}" + ''.join(f'{name:>13}' for name in statistics))
    for index, field in enumerate(found['fields']):
        values = [found[name][index] for name in statistics]
        print(f'{field:>13}' + ''.join(f'{value:>13.5g}' for value in values))


def inspect_command(argv):
    """The command line `python data.py inspect FILE`."""
    parser = argparse.ArgumentParser('data.py inspect', description='Look into a file and check every row.')
    parser.add_argument('file')
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parse_flags(parser, argv)
    found = inspect(args.file)
    if args.json:
        json.dump(found, sys.stdout, indent=1)
        print()
    else:
        print_found(found)
