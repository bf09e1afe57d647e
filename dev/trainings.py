"""
Studies of many trainings. The result of each is a JSON file in a folder. A training whose result is there is not run
again, so a study that was stopped goes on.
"""
import glob
import itertools
import json
import math
import os
import re
import statistics

from peers.compare import changes_of, train_and_score, write_json
from runtime.configurator import UserError, say


def experiment(config):
    """The name of a config: 'config/ns_cpu.py' -> 'ns_cpu'."""
    return os.path.splitext(os.path.basename(config))[0]


def spent(budget):
    """A budget as a part of a folder's name: {'minutes': 5} -> '5minutes'."""
    return ''.join(f'{value:g}{unit}' for unit, value in budget.items())


def part_of(trainings, part):
    """Every n-th of the trainings from the i-th on, for the part 'i/n'. Raises UserError for another text."""
    numbers = re.fullmatch(r'(\d+)/(\d+)', part)
    if not numbers or int(numbers[1]) >= int(numbers[2]):
        raise UserError(f'--part={part} is not i/n with i below n')
    return itertools.islice(trainings, int(numbers[1]), None, int(numbers[2]))


PLACES = ('out_dir', 'data_dir', 'data_path', 'device')      # keys in which trainings of one folder may differ


def done(path, what):
    """The result of a training at `path` + '.json', or None. Raises UserError for a result of other keys `what`."""
    if not os.path.exists(path + '.json'):
        return None
    with open(path + '.json') as file:
        result = json.load(file)
    if result.get('what') != what:
        raise UserError(f"'{path}.json' was made with other keys: choose another --out")
    return result


def keys_of(task):
    """The keys of train.py on which a result depends, as JSON has them."""
    return json.loads(json.dumps({key: value for key, value in task.keys.items() if key not in PLACES}))


def train_once(name, method, changes, task, budget, seed, folder, diverged=None):
    """Train and score, unless the result is there. Returns the result. diverged: that of a training which diverges; without
    it that is an error. Raises UserError for a result of other keys."""
    what = {'keys': keys_of(task), 'budget': budget, 'changes': [*changes_of(method, task), *changes]}
    values = values_of(task)
    parts = [text.replace(', ', '-').replace(' ', '_') for text in (name, values, f'seed {seed}') if text]
    path = os.path.join(folder, '-'.join(parts))
    result = done(path, what)
    if result is None:
        say(f'{name}, {values}')
        try:
            found = train_and_score(method, task, budget, seed, path, changes)
        except UserError as failure:
            if diverged is None or 'nan_dump.pt' not in str(failure):         # the training says so where it diverges
                raise
            found = diverged
        result = {'what': what, 'name': name, 'data': values, **found}
        write_json(path + '.json', result)
    return result


def values_of(task):
    """The parameters of an equation in all files of a task, as text: 'nu 0.01', 're 40-60'."""
    return ', '.join(f"{key.lower()} {'-'.join(f'{source.params[key]:g}' for source in task.sources)}"
                     for key in task.source.params)


def results_in(folder):
    """The results of all finished trainings of a folder, which may hold other files."""
    results = []
    for path in sorted(glob.glob(os.path.join(folder, '*.json'))):
        with open(path) as file:
            result = json.load(file)
        if 'what' in result:
            results.append(result)
    return results


# ---------------------------------------------------------------------------------------------
# tables

def print_markdown(columns, rows):
    """A table of texts."""
    print(f'| {" | ".join(columns)} |')
    print('|---' * len(columns) + '|')
    for row in rows:
        print(f'| {" | ".join(row)} |')


def mean_of(runs, key):
    return statistics.mean(run[key] for run in runs)


def with_seeds(runs):
    """The mean error of runs, and in brackets that of each: '0.0018 (0.0017 0.0019)'."""
    errors = [small(run['nrmse']) for run in runs]
    return f'{small(mean_of(runs, "nrmse"))} ({" ".join(errors)})'


def small(error):
    """Two figures at least: '0.0018', '0.00018', '0.000018'."""
    if not math.isfinite(error):
        return f'{error}'
    for decimals in (4, 5):
        if error >= 10 ** (1 - decimals):
            return f'{error:.{decimals}f}'
    return f'{error:.6f}' if error >= 5e-7 else '<0.000001'
