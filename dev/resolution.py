"""
The picture of the resolution claim: error against the number of points that a model is given and read at.

    python eval.py --ckpt out/b128 --superres 1 2 4 8 --json b128.json            # and the other runs
    python -m dev.resolution docs/resolution.png 'Burgers=b128.json,b128_fno.json' 'Darcy=darcy.json,darcy_fno.json'

A panel for each NAME=FILE,FILE: the result of eval.py --superres of this model, then of the FNO. The dashed line is the
true field itself, interpolated from the trained grid.
"""
import json
import sys

from evaluation.pictures import can_draw, log_axes, new_axes, save
from runtime.configurator import UserError, one_line_errors
from runtime.paths import output_files

NAMES = ('this model', 'FNO')


def superres_of(path):
    """{factor: {'nrmse', 'floor', 'given'}} of a result of eval.py. Raises UserError where there is none."""
    try:
        with open(path) as file:
            found = json.load(file)['superres']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is no result of eval.py --superres ({error!r})") from error
    return {int(factor): errors for factor, errors in found.items()}


def panels_of(texts):
    """{name: results of this model and the FNO} of the arguments NAME=FILE,FILE. Raises UserError."""
    panels = {}
    for text in texts:
        name, _, paths = text.rpartition('=')                           # a name may be 'ν = .01'
        files = paths.split(',')
        if len(files) != len(NAMES):
            raise UserError(f"'{text}' is not NAME=FILE,FILE")
        panels[name] = [superres_of(path) for path in files]
    return panels


def draw(path, panels):
    if not can_draw():
        raise UserError('the picture needs matplotlib')
    figure, axes = new_axes(3.2 * len(panels), 3.2, 1, len(panels))
    for axis, (title, results) in zip(axes[0], panels.items()):
        for name, found in zip(NAMES, results):
            factors = sorted(found)
            axis.plot(factors, [found[f]['given'] for f in factors], marker='o', label=name)
        shown = [f for f in factors if found[f]['floor']]            # 0 on the trained grid
        axis.plot(shown, [found[f]['floor'] for f in shown], '--', color='grey', marker='.', label='interpolated truth')
        log_axes(axis, factors, xlabel='points an axis / trained points', title=title)
    axes[0][0].set_ylabel('nRMSE')
    axes[0][0].legend(fontsize=7)
    save(figure, path, '')


def main(argv):
    if len(argv) < 2:
        raise UserError('python -m dev.resolution PNG NAME=FILE,FILE ...')
    output_files({'PNG': argv[0]})
    draw(argv[0], panels_of(argv[1:]))


if __name__ == '__main__':
    one_line_errors()
    main(sys.argv[1:])
