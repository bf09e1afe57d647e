"""
The certificate: the figures of README.md and of six sections of docs/RESULTS.md, with the commands that make them.

    python -m dev.figures                      # run what takes less than 10 minutes in all: inside, or outside?
    python -m dev.figures --minutes 60         # more of it
    python -m dev.figures --runs obstacles     # the runs whose names begin so
    python -m dev.figures --out out/figures    # keep what they write; after a stop, the same command goes on

docs/figures.json has four parts:

    runs       {name: {'commands': [..], 'minutes': of one thread, 'result': the JSON file that they write}}; OUT is a
               folder; of several files, 'OUT/*.json', the result is {name of a file: what it holds}
    figures    [{'run', 'key', 'value', 'low', 'high', 'places'}]: the value that was measured, the interval in which
               that of another CPU should lie, and words of the lines that show it. The key is a path in the result,
               'metrics/nrmse'; '*' is the mean of a list, '0,3' that of two of its items; a list of two keys is their
               quotient. An interval is that of seeds and CPUs: about .7 to 1.4 times an error, at most .5 to 2 times the
               quotient of two, .2 to 5 times a time, and nearly the value itself where nothing is trained.
    derived    [{'of', 'places'}]: geometric means of figures, and quotients of two such means. 'of' has a regular
               expression over 'RUN: KEY' for each mean
    constants  [{'number', 'what', 'places'}]: settings, percentages, and results that no command of this file makes

A test reads the texts and fails for a decimal number, a percentage, or a number of thousands, '44,800', that is none of
these.
"""
import argparse
import glob
import json
import math
import os
import re
import shlex
import statistics
import sys
import tempfile

from peers.compare import HERE, print_row, run_child
from runtime.configurator import UserError, one_line_errors, parse_flags, say
from runtime.paths import output_folder

FILE = os.path.join(HERE, 'docs', 'figures.json')
SECTIONS = ('Ten equations beside the FNO', 'The race: how soon as good as the FNO?', 'One model of ten equations',
            'Flow past obstacles', 'Given and read on finer grids, other time steps',
            'Is it the network or the loop?')                                                  # of RESULTS.md


# ---------------------------------------------------------------------------------------------
# the texts

def texts():
    """{name: text} of README.md and of the first part of each of the SECTIONS, up to its first command."""
    with open(os.path.join(HERE, 'README.md'), encoding='utf-8') as file:
        found = {'README.md': file.read()}
    with open(os.path.join(HERE, 'docs', 'RESULTS.md'), encoding='utf-8') as file:
        results = file.read()
    for name in SECTIONS:
        section = results.split(f'\n## {name}\n')[1].split('\n## ')[0]
        found[name] = section.split('```')[0]
    return found


def lines(text):
    """The lines of a text that are no code."""
    return re.sub(r'```.*?```', '', text, flags=re.DOTALL).splitlines()


def numbers(text):
    """The decimal numbers, percentages and numbers of thousands of a line, without those of code, links and numbers of
    papers."""
    text = re.sub(r'`[^`]*`|\]\([^)]*\)|\d{4}\.\d{5}', '', text)
    return re.findall(r'(?<![\w.,])(?:\d*\.\d+|\d+(?= %)|\d+(?= to \d+ %)|\d{1,3}(?:,\d{3})+)(?![\w.,]*\d)', text)


def shows(text, value):
    """Is `text` the number `value`, rounded to its decimals? Thousands are rounded to three figures."""
    if ',' in text:
        return float(text.replace(',', '')) == float(f'{value:.3g}')
    decimals = len(text.partition('.')[2])
    return '.' in text and abs(float(text) - value) <= .5001 * 10 ** -decimals


def is_in(line, entry):
    return any(word in line for word in entry['places'])


def key_text(key):
    """The two keys of a quotient have ' : ' between."""
    return key if isinstance(key, str) else ' : '.join(key)


def name_of(figure):
    return f'{figure["run"]}: {key_text(figure["key"])}'


def derived(entry, figures):
    """The geometric mean of the figures that a regular expression names, or, of two, the quotient of these means."""
    means = [statistics.geometric_mean(figure['value'] for figure in figures if re.fullmatch(pattern, name_of(figure)))
             for pattern in entry['of']]
    return means[0] if len(means) == 1 else means[0] / means[1]


def missing():
    """{name of a text: its numbers that docs/figures.json does not have at this place}"""
    with open(FILE) as file:
        known = json.load(file)
    results = [*known['figures'], *({**entry, 'value': derived(entry, known['figures'])} for entry in known['derived'])]
    found = {}
    for name, text in texts().items():
        for line in lines(text):
            values = [result['value'] for result in results if is_in(line, result)]
            constants = [constant['number'] for constant in known['constants'] if is_in(line, constant)]
            left = [number for number in numbers(line)
                    if number not in constants and not any(shows(number, value) for value in values)]
            if left:
                found.setdefault(name, []).extend(left)
    return found


# ---------------------------------------------------------------------------------------------
# the runs

def value_at(result, key):
    """The number at a path of a result; two paths: their quotient."""
    if isinstance(key, list):
        return value_at(result, key[0]) / value_at(result, key[1])
    here = [result]
    for part in key.split('/'):
        if part == '*':
            here = [item for value in here for item in value]
        else:
            here = [item for value in here for item in items(value, part)]
    return statistics.mean(here)


def items(value, part):
    """Those of a list or dict that a part of a path names: by a name, or by several with commas between."""
    if isinstance(value, list):
        return [value[int(index)] for index in part.split(',')]
    return [value[part]] if part in value else [value[name] for name in part.split(',')]


def result_of(run, folder):
    """Run the commands of a run, and read what they wrote. Raises UserError where one fails."""
    os.makedirs(folder, exist_ok=True)
    for command in run['commands']:
        words = [word.replace('OUT', folder) for word in shlex.split(command)]
        if words[0] == 'python':
            words[0] = sys.executable
        run_child(words, command, cwd=HERE, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    found = {}
    for path in glob.glob(run['result'].replace('OUT', folder)):
        with open(path) as file:
            found[os.path.splitext(os.path.basename(path))[0]] = json.load(file)
    if not found:
        raise UserError(f"{run['commands'][-1]}: wrote no {run['result']}")
    return found if '*' in run['result'] else found.popitem()[1]


def chosen(runs, minutes, names):
    """Names of the runs that are asked for by their beginnings, or the shortest ones, of `minutes` in all. Raises
    UserError for a beginning of none."""
    found = []
    for beginning in names:
        here = [name for name in runs if name.startswith(beginning)]
        if not here:
            raise UserError(f"--runs: there is no '{beginning}', but {', '.join(runs)}")
        found += [name for name in here if name not in found]        # of two beginnings that a name has
    if names:
        return found
    for name in sorted(runs, key=lambda name: runs[name]['minutes']):
        minutes -= runs[name]['minutes']
        if minutes >= 0:
            found.append(name)
    return found


def main(argv=None):
    """Returns the figures that lie outside of their intervals, and runs that failed."""
    with open(FILE) as file:
        known = json.load(file)
    runs = known['runs']
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument('--minutes', type=float, default=10.)
    parser.add_argument('--runs', nargs='+', default=[], metavar='NAME', help=f'of {", ".join(runs)}')
    parser.add_argument('--out', help='folder of what the runs write (default: a temporary one)')
    args = parse_flags(parser, argv)
    if args.out:
        output_folder('--out', args.out)
    names = chosen(runs, args.minutes, args.runs)
    left_out = [name for name in runs if name not in names]
    print(f'{len(names)} of {len(runs)} runs, about {sum(runs[name]["minutes"] for name in names):.0f} minutes; left out: '
          f'{"; ".join(left_out) or "none"}')
    widths = (-34, -44, 11, 11, 24, 10)
    print_row(['run', 'figure', 'value', 'found', 'interval', ''], widths)
    outside = []
    for name in names:
        try:
            with tempfile.TemporaryDirectory() as temporary:
                result = result_of(runs[name], os.path.abspath(os.path.join(args.out or temporary, name)))
        except UserError as error:                                   # the other runs go on
            say(f'{name}: failed: {error}')
            outside.append({'run': name})
            continue
        for figure in known['figures']:
            if figure['run'] == name and not check(figure, result, widths):
                outside.append(figure)
    return outside


def check(figure, result, widths):
    """Print the row of a figure. Is what was found inside of its interval? What was not found is not."""
    try:
        value = value_at(result, figure['key'])
    except (LookupError, TypeError, ValueError, ZeroDivisionError, statistics.StatisticsError):
        value = math.nan
    is_inside = figure['low'] <= value <= figure['high']
    print_row([figure['run'], key_text(figure['key']), f'{figure["value"]:.4g}', f'{value:.4g}',
               f'{figure["low"]:.4g} to {figure["high"]:.4g}', 'inside' if is_inside else 'outside'], widths)
    return is_inside


if __name__ == '__main__':
    one_line_errors()
    sys.exit(1 if main() else 0)
