"""
Pictures: rollout.png and rollout.gif of one trajectory, members.png of an ensemble of its rollouts,
tokens.png of a latent rollout, spectra.png of many trajectories, and the errors of several runs over time.

In all functions x is a list of coordinates, one array for each of one or two space axes; t (T,) are the times
of the frames in seconds; prediction and truth are arrays (T, *X, C) that begin with the initial frame; truth
may be None; fields are the names of the C fields. Without matplotlib, nothing is drawn and a note is printed.
"""
import importlib.util
import os
from typing import NamedTuple

import numpy as np

from runtime.configurator import say

SNAPSHOTS = 5                          # times at which a trajectory is drawn, at most
COMPONENTS = 3                         # principal components of the tokens that are drawn
ROUNDING = 1e-5                        # relative errors below this are rounding, and are not drawn
INCHES = 2.2                           # height of a map
PIXELS = {'origin': 'lower', 'interpolation': 'nearest'}                 # values as they are
STYLES = {'truth': {'lw': 3.5, 'alpha': .35}, 'prediction': {'ls': '--', 'lw': 1.2}}


# ---------------------------------------------------------------------------------------------
# the pictures

def draw(folder, x, t, prediction, truth, fields, title, gif, steady=False):
    """Write rollout.png, and rollout.gif if `gif`. A steady equation has no time, hence no animation."""
    if not can_draw():
        return
    make = draw_lines if len(x) == 1 else draw_maps
    make_moving = moving_lines if len(x) == 1 else moving_maps
    moving, show = make_moving(x, prediction, truth, fields)
    show(-1)
    figure = moving if steady else make(x, t, prediction, truth, fields)
    save(figure, os.path.join(folder, 'rollout.png'), title)
    if gif and not steady:
        animate(moving, os.path.join(folder, 'rollout.gif'), show, t, title)


def draw_members(folder, x, t, members, truth, fields, title):
    """Write members.png: rollouts (M, T, *X, C) of one trajectory with different noise."""
    if not can_draw():
        return
    make = member_lines if len(x) == 1 else member_maps
    with np.errstate(invalid='ignore', over='ignore'):               # members may blow up
        figure = make(x, t, members, truth, fields)
    save(figure, os.path.join(folder, 'members.png'), title)


def draw_tokens(folder, t, tokens, title):
    """Write tokens.png: principal components of tokens (T, *token grid, D), with their shares of variance."""
    if not can_draw():
        return
    values, shares = principal_components(tokens, COMPONENTS)
    shown = []
    for i, share in enumerate(shares):
        u = values[..., i]
        shown.append(Panel(f'component {i + 1}: {share:.1%}', u, colour_scale(u), f'component {i + 1}'))
    x = [np.arange(n) for n in tokens.shape[1:-1]]
    if len(x) == 2:
        figure = rows_of_maps(x, t, snapshots(t), [shown])
    else:
        figure, axes = new_axes(13, 4.2, 1, len(shown))
        for axis, panel in zip(axes[0], shown):
            draw_over_time(axis, x[0], t, panel)
            axis.set_xlabel('token')
    save(figure, os.path.join(folder, 'tokens.png'), f'{title}\nprincipal components of the tokens')


def draw_spectra(path, waves, t, prediction, truth, fields, title):
    """Write a PNG of energy spectra (T, K, C) at the wave numbers (K,) at a few times."""
    if not can_draw():
        return
    figure, axes = new_axes(6 * len(fields), 4.2, 1, len(fields))
    for i, axis in enumerate(axes[0]):
        curves = {'truth': truth[:, 1:, i], 'prediction': prediction[:, 1:, i]}
        draw_snapshots(axis, waves[1:], t, curves)
        top = max(truth[:, 1:, i].max(), 1e-30)
        axis.set(ylim=(1e-14 * top, 3 * top), xscale='log', yscale='log')
        axis.set(xlabel='wave number [waves a domain]', ylabel=f'energy of {fields[i]}')
        axis.grid(alpha=.3)
    save(figure, path, title)


def draw_comparison(path, curves, title):
    """Write a PNG of errors over time. curves: [(label, times (T,), errors (T,)), ...]"""
    if not can_draw():
        return
    figure, [[axis]] = new_axes(7, 4.5)
    for label, t, errors in curves:
        axis.plot(t, errors, marker='.', label=label)
    dress_errors(axis)
    save(figure, path, title)


# ---------------------------------------------------------------------------------------------
# figures and panels

def can_draw():
    """Is matplotlib installed? If not, print a note."""
    is_installed = importlib.util.find_spec('matplotlib') is not None
    if not is_installed:
        say('no pictures: pip install matplotlib')
    return is_installed


def stacked(width, heights):
    """A figure, which needs no display, and its subfigures, one below another. In inches."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, sum(heights)), layout='constrained')
    figure.subfigures(len(heights), 1, height_ratios=heights)
    return figure, figure.subfigs


def new_axes(width, height, n_rows=1, n_columns=1, **shared):
    """A figure and its axes (n_rows, n_columns)."""
    figure, [whole] = stacked(width, [height])
    return figure, whole.subplots(n_rows, n_columns, squeeze=False, **shared)


def log_axes(axis, ticks, **labels):
    """Make both axes logarithmic, the lower one with these ticks alone."""
    axis.set(xscale='log', yscale='log', **labels)
    axis.set_xticks(ticks, ticks)
    axis.set_xticks([], minor=True)
    axis.grid(alpha=.3)


def save(figure, path, title):
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    say(f'-> {path}')


def animate(figure, path, show, t, title):
    """Write a GIF of a figure, in which show(frame) draws a frame."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    def show_with_time(frame):
        figure.suptitle(f'{title}, t = {t[frame]:.2f} s', fontsize=9)
        show(frame)

    figure.suptitle(title, fontsize=18)                              # keeps room for a smaller one
    show(0)
    figure.draw_without_rendering()
    figure.set_layout_engine('none')                                 # from here on, panels keep their places
    movie = FuncAnimation(figure, show_with_time, frames=len(t))
    movie.save(path, writer=PillowWriter(fps=10), dpi=75)
    say(f'-> {path}')


class Panel(NamedTuple):
    """A field over time, and how it is coloured."""
    title: str
    values: np.ndarray                 # (T, *X)
    scale: dict                        # keywords of imshow
    label: str                         # of its colour bar


def panels(prediction, truth, i, name):
    """The panels of field number i: truth, prediction and error; without a truth the prediction alone."""
    u = prediction[..., i]
    if truth is None:
        return [Panel('prediction', u, colour_scale(u), name)]
    true = truth[..., i]
    scale = colour_scale(true)
    error = u - true
    low, high = value_range(error[1:])                               # frame 0 is no prediction
    limit = max(-low, high, ROUNDING * np.abs(true).max() + 1e-9)
    error_scale = {'cmap': 'PuOr_r', 'vmin': -limit, 'vmax': limit}
    return [Panel('truth', true, scale, name),
            Panel('prediction', u, scale, name),
            Panel('prediction - truth', error, error_scale, f'error in {name}')]


def snapshots(t):
    """Numbers of a few frames, from the first to the last."""
    frames = np.linspace(0, len(t) - 1, SNAPSHOTS).round()
    return np.unique(frames.astype(int))


def value_range(u):
    """The smallest and the largest finite value."""
    u = u[np.isfinite(u)]
    if u.size == 0:
        return 0., 1.
    return float(u.min()), float(u.max())


def colour_scale(u):
    """Keywords of imshow for a field. The colours are symmetric about zero if it takes both signs."""
    low, high = value_range(u)
    limit = max(-low, high)
    if min(-low, high) > .1 * limit:
        return {'cmap': 'RdBu_r', 'vmin': -limit, 'vmax': limit}
    return {'cmap': 'viridis', 'vmin': low, 'vmax': max(high, low + 1e-9)}


def draw_errors(axis, t, prediction, truth, fields):
    """nRMSE of every step, and that of persistence, which repeats frame 0."""
    space = tuple(range(1, truth.ndim - 1))
    size = np.nanmean(np.square(truth), space) ** .5                 # (T, C); nan is outside of the domain
    for what, guess in {'prediction': prediction, 'persistence': truth[:1]}.items():
        error = np.nanmean(np.square(guess - truth), space) ** .5 / np.maximum(size, 1e-12)
        for name, values in zip(fields, error[1:].T):
            if not values.max() <= ROUNDING:
                axis.plot(t[1:], values, marker='.', label=f'{name}, {what}')
    dress_errors(axis)


def dress_errors(axis):
    """Scale, labels and legend of errors over time."""
    axis.set(yscale='log', xlabel='t [s]', ylabel='nRMSE')
    axis.grid(alpha=.3)
    if axis.lines:
        axis.legend(fontsize=8)


def principal_components(tokens, n):
    """The first n principal components of tokens (T, ..., D), about their mean over all times and places:
    (T, ..., n), and their shares of the variance (n,)."""
    x = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    left, sizes, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    values = (left * sizes)[:, :n]
    variances = np.square(sizes)
    shares = variances[:n] / max(variances.sum(), 1e-300)            # 0 if all tokens are equal
    return values.reshape(*tokens.shape[:-1], -1), shares


# ---------------------------------------------------------------------------------------------
# one axis

def draw_lines(x, t, prediction, truth, fields):
    """A figure of each field over x and t, of snapshots, and of the error over time."""
    places = [['prediction'], ['snapshots']]
    if truth is not None:
        places = [['truth', 'prediction', 'prediction - truth'], ['snapshots', 'snapshots', 'error']]
    figure, rows = stacked(13, [7] * len(fields))
    for i, name in enumerate(fields):
        axes = rows[i].subplot_mosaic(places)
        shown = panels(prediction, truth, i, name)
        for panel in shown:
            draw_over_time(axes[panel.title], x[0], t, panel)
        draw_snapshots(axes['snapshots'], x[0], t, {panel.title: panel.values for panel in shown[:2]})
        axes['snapshots'].set(xlabel='x', ylabel=name)
        if truth is not None:
            draw_errors(axes['error'], t, prediction[..., [i]], truth[..., [i]], [name])
    return figure


def draw_over_time(axis, x, t, panel):
    """A panel of values (T, X) as an image."""
    sides = (x[0], x[-1], t[0], t[-1])
    image = axis.imshow(panel.values, aspect='auto', extent=sides, **PIXELS, **panel.scale)
    axis.set(title=panel.title, xlabel='x', ylabel='t [s]')
    axis.figure.colorbar(image, ax=axis, label=panel.label)


def draw_snapshots(axis, x, t, curves):
    """A few frames as curves. curves: {name in STYLES: values (T, X)}"""
    from matplotlib import colormaps
    for i, frame in enumerate(snapshots(t)):
        colour = colormaps['viridis'](i / SNAPSHOTS)
        for what, u in curves.items():
            [line] = axis.plot(x, u[frame], color=colour, **STYLES[what])
        line.set_label(f't = {t[frame]:.2f} s')
    axis.set_title('wide: truth, dashed: prediction')
    axis.legend(fontsize=8)


def moving_lines(x, prediction, truth, fields):
    """A figure of the curves of prediction and truth, and a function that shows a frame of them."""
    figure, axes = new_axes(6.4, 3.6 * len(fields), len(fields))
    curves = []
    for i, axis in enumerate(axes[:, 0]):
        shown = panels(prediction, truth, i, fields[i])[:2]
        low, high = value_range(np.stack([panel.values for panel in shown]))
        margin = .08 * (high - low) + 1e-9
        axis.set(ylim=(low - margin, high + margin), xlabel='x', ylabel=fields[i])
        for panel in shown:
            [curve] = axis.plot(x[0], panel.values[0], label=panel.title, **STYLES[panel.title])
            curves.append((curve, panel.values))
        axis.legend(loc='upper right', fontsize=8)

    def show(frame):
        for curve, u in curves:
            curve.set_ydata(u[frame])

    return figure, show


def member_lines(x, t, members, truth, fields):
    """A figure with a row for each field and a column for each of a few frames."""
    frames = snapshots(t)[1:]
    shape = (len(fields), len(frames))
    figure, axes = new_axes(3 * len(frames) + 2, 3 * len(fields) + 1, *shape, sharex=True, sharey='row')
    for i, name in enumerate(fields):
        axes[i, 0].set_ylabel(name)
        for axis, frame in zip(axes[i], frames):
            u = members[:, frame, :, i]                              # (M, X)
            axis.plot(x[0], u.T, color='C0', lw=.7)
            axis.plot(x[0], u.mean(0), color='C3', label='mean of the members')
            if truth is not None:
                axis.plot(x[0], truth[frame, :, i], color='.3', label='truth', **STYLES['truth'])
    label_frames(axes, t, frames)
    axes[0, 0].legend(fontsize=8)
    return figure


# ---------------------------------------------------------------------------------------------
# two axes: every frame is a map, with x to the right and y upwards

def extent(x):
    """Edges of the outermost cells of a map, as imshow takes them."""
    edges = []
    for axis in x:
        half = (axis[1] - axis[0]) / 2 if len(axis) > 1 else .5
        edges += [axis[0] - half, axis[-1] + half]
    return edges


def map_width(x):
    """Width in inches of a map that is INCHES high."""
    left, right, bottom, top = extent(x)
    return INCHES * (right - left) / (top - bottom)


def draw_block(figure, axes, x, frames, block):
    """Draw panels as maps with colour bars; axes (panels, frames). Returns the last image of each panel."""
    images = []
    for row, panel in zip(axes, block):
        for axis, frame in zip(row, frames):
            image = axis.imshow(panel.values[frame].T, extent=extent(x), **PIXELS, **panel.scale)
            axis.set_facecolor('.6')                                 # of obstacles, where values are nan
        figure.colorbar(image, ax=row, label=panel.label)
        images.append(image)
    return images


def draw_maps(x, t, prediction, truth, fields):
    """A figure of the panels of each field at a few times, and of the error over time."""
    blocks = [panels(prediction, truth, i, name) for i, name in enumerate(fields)]
    if truth is None:
        return rows_of_maps(x, t, snapshots(t), blocks)
    figure = rows_of_maps(x, t, snapshots(t), [*blocks, []])
    draw_errors(figure.subfigs[-1].subplots(), t, prediction, truth, fields)
    return figure


def rows_of_maps(x, t, frames, blocks):
    """A figure with a row for each panel in the lists `blocks`; an empty list leaves some space."""
    width = len(frames) * (map_width(x) + .35) + 1.6
    heights = [max(len(block), 1) * INCHES + .8 for block in blocks]
    figure, rows = stacked(max(width, 5), heights)                   # wide enough for the title
    for row, block in zip(rows, blocks):
        if block:
            axes = row.subplots(len(block), len(frames), sharex=True, sharey=True, squeeze=False)
            draw_block(row, axes, x, frames, block)
            label_frames(axes, t, frames)
            for axis, panel in zip(axes[:, 0], block):
                axis.set_ylabel(f'{panel.title}\ny')
    return figure


def label_frames(axes, t, frames):
    """Times above the panels of the first row, 'x' below those of the last."""
    for first, last, frame in zip(axes[0], axes[-1], frames):
        first.set_title(f't = {t[frame]:.2f} s', fontsize=10)
        last.set_xlabel('x')


def moving_maps(x, prediction, truth, fields):
    """A figure with the panels of each field side by side, and a function that shows a frame of them."""
    n_columns = 1 if truth is None else 3
    width = n_columns * (map_width(x) + .9)
    height = len(fields) * (INCHES + .1) + .5
    figure, axes = new_axes(max(width, 5), height, len(fields), n_columns)
    maps = []
    for i, row in enumerate(axes):
        shown = panels(prediction, truth, i, fields[i])
        maps += zip(draw_block(figure, row[:, None], x, [0], shown), shown)
        for axis, panel in zip(row, shown):
            axis.set(title=panel.title, xticks=[], yticks=[])

    def show(frame):
        for image, panel in maps:
            image.set_data(panel.values[frame].T)

    return figure, show


def member_maps(x, t, members, truth, fields):
    """A figure of mean, two members, standard deviation and the error of the mean for each field."""
    mean = members.mean(0)
    spread = members.std(0, ddof=1)
    blocks = []
    for i, name in enumerate(fields):
        of_mean = panels(mean, truth, i, name)
        scale = of_mean[0].scale
        deviation = spread[..., i]
        block = [Panel('mean', mean[..., i], scale, name),
                 Panel('member 1', members[0, ..., i], scale, name),
                 Panel('member 2', members[1, ..., i], scale, name),
                 Panel('standard deviation', deviation, colour_scale(deviation), f'spread of {name}')]
        if truth is not None:
            block.append(of_mean[-1]._replace(title='mean - truth'))
        blocks.append(block)
    return rows_of_maps(x, t, snapshots(t)[1:], blocks)
