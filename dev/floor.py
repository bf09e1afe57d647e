"""
The reconstruction error of the best linear latents of fewer numbers, without training.

    python -m dev.floor config/ns_cpu.py config/burgers_cpu.py
    python -m dev.floor config/burgers_cpu.py --nu=.001 --plot docs/floor.png --json floor.json

The numbers are nRMSE of single frames of the test split, from the frame on that a rollout starts from. The
columns are the lowest cosine modes of the patch of a token (basis='cosine'), the principal components of such
patches in the training frames (basis='components' puts the means of the fields before them), and the
principal components of whole fields. A learned encoder can help only where these errors exceed the rollout
error that is aimed at.
--key=value sets a key of train.py.
"""
import argparse
import math

import torch

from dev.trainings import experiment
from evaluation.load import read
from evaluation.pictures import log_axes
from files.open import split_rows
from grids import dct_basis, merge_tokens, split_tokens
from metrics import mean_nrmse
from peers.compare import prepare, write_json
from runtime.configurator import flag_words, one_line_errors
from runtime.paths import output_files

FEWER = (2, 4, 8, 16, 32, 64)
KINDS = {'cosine': 'cosine modes of a patch', 'patches': 'components of a patch',
         'fields': 'components of fields'}
AT_MOST = 2000                         # frames that principal components are computed from


def train_frames(task):
    """Frames of the train split, (n, *grid, C), evenly thinned. They begin where a rollout begins."""
    n = min(task.source.n, task.keys['n_trajectories'])
    rows = split_rows(n, 'train', task.source.entry.test)
    u = read(task.sources, rows, task.cfg, task.cfg.grid)
    u = frames_of(u[:, -task.y.shape[1]:], task)
    return u[::math.ceil(len(u) / AT_MOST)]


def frames_of(u, task):
    """The predicted fields of all frames of u (N, T, *grid, C), (n, *grid, C). The first frame of a steady
    equation is 0 and is left out."""
    first = 1 if task.source.entry.steady else 0
    return u[:, first:, ..., list(task.cfg.predicted)].flatten(0, 1)


def principal(rows):
    """Orthonormal directions in which `rows` (N, D) vary most, largest first, (D, min(N, D))."""
    if len(rows) < rows.shape[1]:
        return torch.linalg.svd(rows, full_matrices=False)[2].T
    _, directions = torch.linalg.eigh(rows.double().T @ rows.double())
    return directions.flip(1).float()


def floor(task):
    """[{'tokens', 'fewer', 'cosine', 'patches', 'fields'}]: nRMSE with so many times fewer numbers, None
    where a token would have no number, or there are too few training frames."""
    train = train_frames(task)
    y = frames_of(task.y, task)
    space = tuple(range(y.ndim - 1))
    mean = train.mean(space)
    scale = train.std(space)
    train = (train - mean) / scale
    u = (y - mean) / scale

    def error(p):
        return mean_nrmse((p.view_as(u) * scale + mean)[:, None], y[:, None])

    def projected(v, basis):
        return v @ basis @ basis.T

    grid = tuple(u.shape[1:-1])
    whole = principal(train.flatten(1))
    found = []
    tokens = task.keys['latent_tokens']
    for n_tokens in [n for n in (tokens, tokens // 2, tokens // 4) if n]:
        points = tuple(n // n_tokens for n in grid)
        patches = [merge_tokens(v.flatten(1, -2), grid, points) for v in (train, u)]           # (n, S, D)
        directions = principal(patches[0].flatten(0, 1))
        for fewer in FEWER:
            n = len(directions) // fewer                             # features of a token
            row = {'tokens': n_tokens, 'fewer': fewer, 'cosine': None, 'patches': None}
            if n:
                cosine = dct_basis(points, u.shape[-1], n).T
                for name, basis in (('cosine', cosine), ('patches', directions[:, :n])):
                    row[name] = error(split_tokens(projected(patches[1], basis), grid, points))
            n = u[0].numel() // fewer
            row['fields'] = error(projected(u.flatten(1), whole[:, :n])) if n <= whole.shape[1] else None
            found.append(row)
    return found


def table(found):
    for name, rows in found.items():
        print(f'\n| {name}: tokens an axis | times fewer numbers | {" | ".join(KINDS.values())} |')
        print('|---' * 5 + '|')
        for row in rows:
            errors = ['-' if row[key] is None else f'{row[key]:.4f}' for key in KINDS]
            print(f'| {row["tokens"]} | {row["fewer"]} | {" | ".join(errors)} |')


def picture(found, path):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.2), sharey=True, squeeze=False)
    for axis, (name, rows) in zip(axes[0], found.items()):
        first = [row for row in rows if row['tokens'] == rows[0]['tokens']]
        for key, label in KINDS.items():
            known = [row for row in first if row[key] is not None]
            axis.loglog([row['fewer'] for row in known], [row[key] for row in known], 'o-', ms=3, label=label)
        axis.set_title(f'{name}: {rows[0]["tokens"]} tokens an axis', fontsize=9)
        log_axes(axis, FEWER, xlabel='times fewer numbers')
    axes[0, 0].set_ylabel('nRMSE of one frame')
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv=None):
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument('configs', nargs='+')
    parser.add_argument('--json')
    parser.add_argument('--plot')
    args, overrides = parser.parse_known_args(flag_words(argv))
    output_files({'--json': args.json, '--plot': args.plot})
    found = {experiment(config): floor(prepare(config, overrides)) for config in args.configs}
    table(found)
    write_json(args.json, found)
    if args.plot:
        picture(found, args.plot)


if __name__ == '__main__':
    one_line_errors()
    main()
