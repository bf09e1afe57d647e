"""
Pictures of one trajectory, in one and two space dimensions: rollout.png and rollout.gif; of an ensemble of
its rollouts: members.png; of its tokens; of the spectra of many: spectra.png; and of the errors of several
runs.

x is a list of coordinates, one array an axis; t (T,) seconds; prediction and truth (T, *X, C) with the given
frame 0; truth may be None. Every field has panels and a colour scale of its own, which truth and prediction
share.
"""
import os

import numpy as np

from runtime.configurator import say

SNAPSHOTS = 5                          # times that are drawn of a trajectory, at most
FEW = 10                               # frames up to which every one has a mark in the curve of the error
ROUNDING = 1e-5                        # a relative error below this is none of the model
SMALLEST_ENERGY = 1e-30                # what is drawn of a spectrum that is zero
INCHES = 2.2                           # height of a map
PIXELS = {'origin': 'lower', 'interpolation': 'nearest'}                 # of imshow: values as they are


def draw(folder, x, t, prediction, truth, fields, title, gif, steady=False):
    """rollout.png, and rollout.gif where it is wanted: not of a steady equation, which has no time. Without
    matplotlib it is only said that it lacks, as in all that draws here."""
    if not can_draw():
        return
    makers = {'png': draw_maps, 'gif': animate_maps}
    if len(x) == 1:
        makers = {'png': draw_lines, 'gif': animate_lines}
    if steady and len(x) == 2:
        makers['png'] = draw_steady
    if steady or not gif:
        del makers['gif']
    for ending, make in makers.items():
        path = os.path.join(folder, f'rollout.{ending}')
        make(path, x, t, prediction, truth, fields, title)
        say(f'-> {path}')


def can_draw():
    """Is matplotlib there? If so, it draws files, without a display; if not, that is said."""
    try:
        import matplotlib
    except ImportError:
        say('no pictures: pip install matplotlib')
        return False
    matplotlib.use('Agg')
    return True


def draw_spectra(folder, waves, t, prediction, truth, fields, title):
    """spectra.png: energy spectra (T, K, C) at the wave numbers (K,), log-log, at a few of the times t."""
    if not can_draw():
        return
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(1, len(fields), figsize=(6 * len(fields), 4.2), layout='constrained',
                                squeeze=False)
    for i, (axis, name) in enumerate(zip(axes[0], fields)):
        for number, frame in enumerate(snapshots(t)):
            colour = plt.cm.viridis(number / SNAPSHOTS)
            label = f't = {t[frame]:.2f} s'
            axis.loglog(waves[1:], truth[frame, 1:, i], color=colour, lw=3, alpha=.35)
            axis.loglog(waves[1:], prediction[frame, 1:, i], color=colour, lw=1.2, ls='--', label=label)
        top = max(truth[..., 1:, i].max(), SMALLEST_ENERGY)
        axis.set_ylim(1e-14 * top, 3 * top)
        axis.set(xlabel='wave number [waves a domain]', ylabel=f'energy of {name}',
                 title='wide: truth, dashed: prediction')
        axis.grid(alpha=.3)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    path = os.path.join(folder, 'spectra.png')
    figure.savefig(path, dpi=110)
    plt.close(figure)
    say(f'-> {path}')


# ---------------------------------------------------------------------------------------------
# what both have in common

def snapshots(t):
    """Numbers of a few frames, from the first to the last."""
    frames = np.linspace(0, len(t) - 1, SNAPSHOTS).round()
    return np.unique(frames.astype(int))


def value_range(u):
    """The least and the largest finite value."""
    u = u[np.isfinite(u)]
    if u.size == 0:
        return 0., 1.
    return float(u.min()), float(u.max())


def colour_scale(u):
    """How a field is coloured, as keywords of imshow: about zero if it takes both signs, else from its least
    to its largest value."""
    low, high = value_range(u)
    limit = max(-low, high)
    if min(-low, high) > .1 * limit:
        return {'cmap': 'RdBu_r', 'vmin': -limit, 'vmax': limit}
    return {'cmap': 'viridis', 'vmin': low, 'vmax': max(high, low + 1e-9)}


def parts(prediction, truth, i, name):
    """What is drawn of field number i: [(title, values (T, *X), keywords of imshow, label of the colours)].
    Without a truth it is the prediction alone."""
    u = prediction[..., i]
    if truth is None:
        return [('prediction', u, colour_scale(u), name)]
    true = truth[..., i]
    scale = colour_scale(true)
    error = u - true
    low, high = value_range(error[1:])                               # of what is predicted
    least = ROUNDING * np.abs(true).max() + 1e-9
    limit = max(-low, high, least)
    error_scale = {'cmap': 'PuOr_r', 'vmin': -limit, 'vmax': limit}
    return [
        ('truth', true, scale, name),
        ('prediction', u, scale, name),
        ('prediction - truth', error, error_scale, f'error in {name}')]


def draw_error(axis, t, prediction, truth, fields):
    """The error of every step relative to the true field, beside that of frame 0 repeated. fields: {number:
    name} of those that are wanted."""
    for i, name in fields.items():
        true = truth[..., i]
        colour = f'C{i}'
        before = f'{name}, ' if len(fields) > 1 else ''
        draw_curve(axis, t, prediction[..., i], true, 'o-', colour, before + 'prediction')
        draw_curve(axis, t, true[:1], true, 'x:', colour, before + 'persistence')
    dress_error(axis, 'error over time')
    if len(t) <= FEW:
        axis.set_xticks(t[1:])


def dress_error(axis, title):
    """Scale, labels and legend of errors over time."""
    axis.set(yscale='log', xlabel='t [s]', ylabel='nRMSE', title=title)
    low, high = axis.get_ylim()
    middle = (low * high) ** .5
    axis.set_ylim(min(low, middle / 2), max(high, middle * 2))       # wide enough to have numbers
    axis.grid(alpha=.3)
    if axis.lines:
        axis.legend(fontsize=8)


def draw_curve(axis, t, guess, true, style, colour, label):
    """The error of a guess (T or 1, *X) at every step; nothing where all of it is rounding."""
    error = rms((guess - true)[1:])
    size = rms(true[1:])
    error = error / np.maximum(size, 1e-12)
    if error.max() <= ROUNDING:
        return
    marker, line = style
    if len(t) > FEW:
        marker = None
    pale = .6 if line == ':' else 1
    axis.plot(t[1:], error, marker=marker, ls=line, color=colour, alpha=pale, label=label)


def rms(u):
    """(T, *X) -> (T,)"""
    return np.sqrt(np.square(u.reshape(len(u), -1)).mean(-1))


def animate(path, figure, show, n_frames, dpi):
    """A GIF of a figure, where show(frame) draws a frame and returns what it has changed."""
    from matplotlib import pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter
    show(0)
    figure.draw_without_rendering()
    figure.set_layout_engine('none')                                 # the places of the panels stay
    movie = FuncAnimation(figure, show, frames=n_frames)
    movie.save(path, writer=PillowWriter(fps=10), dpi=dpi)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------
# one axis: every field has a row of panels

def draw_lines(path, x, t, prediction, truth, fields, title):
    """A PNG: truth, prediction and error over x and t, snapshots, and the error over time."""
    from matplotlib import pyplot as plt
    x = x[0]
    figure = plt.figure(figsize=(13, 7 * len(fields)), layout='constrained')
    rows = figure.subfigures(len(fields), 1, squeeze=False)[:, 0]
    for i, name in enumerate(fields):
        grid = rows[i].add_gridspec(2, 3)
        shown = parts(prediction, truth, i, name)
        for column, part in enumerate(shown):
            draw_over_time(rows[i].add_subplot(grid[0, column]), x, t, *part)
        draw_snapshots(rows[i].add_subplot(grid[1, :2]), x, t, shown, name)
        if truth is not None:
            draw_error(rows[i].add_subplot(grid[1, 2]), t, prediction, truth, {i: name})
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_over_time(axis, x, t, what, u, scale, label):
    """u (T, X) as an image."""
    sides = (x[0], x[-1], t[0], t[-1])
    image = axis.imshow(u, aspect='auto', extent=sides, **PIXELS, **scale)
    axis.set(title=what, xlabel='x', ylabel='t [s]')
    axis.figure.colorbar(image, ax=axis, label=label)


def draw_snapshots(axis, x, t, shown, name):
    """A few frames as curves. shown: what `parts` returns."""
    from matplotlib import pyplot as plt
    fields = {what: u for what, u, *_ in shown}
    u = fields['prediction']
    true = fields.get('truth')
    style = '-' if true is None else '--'
    for i, frame in enumerate(snapshots(t)):
        colour = plt.cm.viridis(i / SNAPSHOTS)
        if true is not None:
            axis.plot(x, true[frame], color=colour, lw=3, alpha=.35)
        axis.plot(x, u[frame], color=colour, lw=1.2, ls=style, label=f't = {t[frame]:.2f} s')
    title = 'prediction' if true is None else 'wide: truth, dashed: prediction'
    axis.set(xlabel='x', ylabel=name, title=title)
    axis.legend(fontsize=8, ncols=SNAPSHOTS, loc='upper center', bbox_to_anchor=(.5, -.16), frameon=False)


def animate_lines(path, x, t, prediction, truth, fields, title):
    """A GIF: the curves of prediction and truth, frame by frame."""
    from matplotlib import pyplot as plt
    x = x[0]
    n = len(fields)
    figure, axes = plt.subplots(n, 1, figsize=(6.4, 3.6 * n), layout='constrained', squeeze=False)
    lines = []
    for i, (axis, name) in enumerate(zip(axes[:, 0], fields)):
        curves = [(prediction[..., i], 'prediction', 'C3', 1.5)]
        if truth is not None:
            curves.insert(0, (truth[..., i], 'truth', '.7', 4))
        ranges = [value_range(u) for u, *_ in curves]
        low = min(low for low, _ in ranges)
        high = max(high for _, high in ranges)
        margin = .08 * (high - low) + 1e-9
        axis.set(xlim=(x[0], x[-1]), ylim=(low - margin, high + margin), xlabel='x', ylabel=name)
        for u, label, colour, width in curves:
            line, = axis.plot(x, u[0], color=colour, lw=width, label=label)
            lines.append((line, u))
        axis.legend(loc='upper right', fontsize=8)

    def show(frame):
        for line, u in lines:
            line.set_ydata(u[frame])
        axes[0, 0].set_title(f'{title}, t = {t[frame]:.2f} s', fontsize=9)
        return [line for line, _ in lines]

    animate(path, figure, show, len(t), dpi=90)


# ---------------------------------------------------------------------------------------------
# two axes: every frame is a map, x to the right and y upwards

def extent(x):
    """Edges of the outermost cells of a map, as imshow takes them."""
    edges = []
    for axis in x:
        half = (axis[1] - axis[0]) / 2 if len(axis) > 1 else .5
        edges += [axis[0] - half, axis[-1] + half]
    return edges


def draw_map(axis, x, u, scale):
    """u (X, Y) as an image."""
    return axis.imshow(u.T, extent=extent(x), **PIXELS, **scale)


def map_width(x):
    """Width in inches of a map that is INCHES high."""
    left, right, bottom, top = extent(x)
    return INCHES * (right - left) / (top - bottom)


def draw_colours(figure, images, panels, shown):
    """The colour bars of the panels, or rows of panels, of a field: what `parts` returns. Those with the same
    label share one."""
    labels = [label for *_, label in shown]
    for label in dict.fromkeys(labels):
        own = [k for k, other in enumerate(labels) if other == label]
        figure.colorbar(images[own[0]], ax=panels[own], label=label)


def draw_maps(path, x, t, prediction, truth, fields, title):
    """A PNG: truth, prediction and error at a few times in rows for every field, then the error over time."""
    from matplotlib import pyplot as plt
    n_rows = 1 if truth is None else 3
    heights = [n_rows * (INCHES + .1) + .6] * len(fields)
    if truth is not None:
        heights.append(2.6)
    columns = len(snapshots(t))
    width = columns * (map_width(x) + .35) + 1.6
    figure = plt.figure(figsize=(width, sum(heights) + .3), layout='constrained')
    figure.suptitle(title)
    rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for i, name in enumerate(fields):
        draw_rows(rows[i], x, t, snapshots(t), parts(prediction, truth, i, name), name)
    if truth is not None:
        draw_error(rows[-1].subplots(), t, prediction, truth, dict(enumerate(fields)))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_rows(figure, x, t, frames, shown, name):
    """The panels of one field: what `parts` returns, a row each, at a few times."""
    axes = figure.subplots(len(shown), len(frames), sharex=True, sharey=True, squeeze=False)
    images = []
    for row, (what, u, scale, _) in zip(axes, shown):
        for axis, frame in zip(row, frames):
            image = draw_map(axis, x, u[frame], scale)
        row[0].set_ylabel(f'{name}: {what}\ny')
        images.append(image)
    draw_colours(figure, images, axes, shown)
    for axis, frame in zip(axes[0], frames):
        axis.set_title(f't = {t[frame]:.2f} s', fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel('x')
    axes[0, 0].locator_params(nbins=3)                               # all panels share the ticks


def map_panels(x, prediction, truth, fields):
    """A figure with truth, prediction and error side by side, a row for each field. -> it, and a function
    that draws one frame and returns what has changed"""
    from matplotlib import pyplot as plt
    columns = 1 if truth is None else 3
    width = columns * (map_width(x) + .55)
    size = (max(width, 5), len(fields) * (INCHES + .1) + .5)         # wide enough for the title
    figure, axes = plt.subplots(len(fields), columns, figsize=size, layout='constrained', squeeze=False)
    images = []
    for i, name in enumerate(fields):
        shown = parts(prediction, truth, i, name)
        if truth is not None and (truth[..., i] == truth[:1, ..., i]).all():
            shown = [('given', *shown[0][1:])]                 # a coefficient: there is nothing to predict
        for axis in axes[i][len(shown):]:
            axis.set_axis_off()
        for axis, (what, u, scale, _) in zip(axes[i], shown):
            images.append((draw_map(axis, x, u[0], scale), u))
            axis.set(xticks=[], yticks=[])
            axis.set_title(what, fontsize=9)
        draw_colours(figure, [image for image, _ in images[-len(shown):]], axes[i], shown)

    def show(frame):
        for image, u in images:
            image.set_data(u[frame].T)
        return [image for image, _ in images]

    return figure, show


def animate_maps(path, x, t, prediction, truth, fields, title):
    """A GIF of these panels, frame by frame."""
    figure, show = map_panels(x, prediction, truth, fields)

    def show_with_time(frame):
        figure.suptitle(f'{title}, t = {t[frame]:.2f} s', fontsize=9)
        return show(frame)

    animate(path, figure, show_with_time, len(t), dpi=68)            # 40 rough frames of 64²: 1.5 MB


def draw_steady(path, x, t, prediction, truth, fields, title):
    """A PNG of these panels for the last frame, which is all that a steady equation has."""
    from matplotlib import pyplot as plt
    figure, show = map_panels(x, prediction, truth, fields)
    show(-1)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------
# the members of an ensemble

def draw_members(folder, x, t, members, truth, fields, title):
    """members.png: the rollouts (M, T, *X, C) of one trajectory that differ by their noise, at the times that
    the other pictures show too, but for that of frame 0, which all of them share."""
    if not can_draw():
        return
    from matplotlib import pyplot as plt
    make = draw_member_lines if len(x) == 1 else draw_member_maps
    with np.errstate(invalid='ignore', over='ignore'):               # of members that blow up
        mean = members.mean(0)
        spread = members.std(0, ddof=1)
    figure = make(x, t, snapshots(t)[1:], members, mean, spread, truth, fields)
    figure.suptitle(title, fontsize=10)
    path = os.path.join(folder, 'members.png')
    figure.savefig(path, dpi=110)
    plt.close(figure)
    say(f'-> {path}')


def draw_member_lines(x, t, frames, members, mean, spread, truth, fields):
    """-> a figure with a row of panels for each field, one for each of a few times."""
    from matplotlib import pyplot as plt
    x = x[0]
    size = (max(3 * len(frames), 6) + .8, 3 * len(fields) + 1.2)
    figure, axes = plt.subplots(len(fields), len(frames), figsize=size, layout='constrained', sharex=True,
                                sharey='row', squeeze=False)
    for i, (row, name) in enumerate(zip(axes, fields)):
        for axis, frame in zip(row, frames):
            middle = mean[frame, :, i]
            half = spread[frame, :, i]
            axis.fill_between(x, middle - half, middle + half, color='C0', alpha=.3, lw=0,
                              label='mean ± standard deviation')
            lines = axis.plot(x, members[:, frame, :, i].T, color='C0', lw=.7, alpha=.7)
            lines[0].set_label('members')
            if truth is not None:
                axis.plot(x, truth[frame, :, i], color='.3', lw=3, alpha=.6, label='truth')
            axis.plot(x, middle, color='C3', lw=1.5, label='mean')
        row[0].set_ylabel(name)
    for axis, frame in zip(axes[0], frames):
        axis.set_title(f't = {t[frame]:.2f} s', fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel('x')
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=len(labels), fontsize=8, frameon=False)
    return figure


def draw_member_maps(x, t, frames, members, mean, spread, truth, fields):
    """-> a figure with rows for each field: the mean and two members, the spread, the error of the mean."""
    from matplotlib import pyplot as plt
    n_rows = 4 if truth is None else 5
    height = n_rows * (INCHES + .1) + .6
    width = max(len(frames) * (map_width(x) + .35) + 1.6, 5)         # wide enough for the title
    figure = plt.figure(figsize=(width, height * len(fields) + .6), layout='constrained')
    rows = figure.subfigures(len(fields), 1, squeeze=False)[:, 0]
    for i, name in enumerate(fields):
        (_, u, scale, _), *error = parts(mean, truth, i, name)[-2:]
        colours = {'cmap': 'magma', 'vmin': 0., 'vmax': max(value_range(spread[..., i])[1], 1e-9)}
        shown = [
            ('mean', u, scale, name),
            ('member 1', members[0, ..., i], scale, name),
            ('member 2', members[1, ..., i], scale, name),
            ('standard deviation', spread[..., i], colours, f'spread of {name}'),
            *[('mean - truth', *part) for _, *part in error]]
        draw_rows(rows[i], x, t, frames, shown, name)
    return figure


# ---------------------------------------------------------------------------------------------
# tokens, and several runs

def draw_tokens(path, t, components, fractions, title):
    """A PNG of the principal components of tokens (T, *tokens, n), with the fractions of the variance that
    they have: each as an image over token and t with one axis, as maps at a few times with two."""
    if not can_draw():
        return
    from matplotlib import pyplot as plt
    draw_components = draw_token_lines if components.ndim == 3 else draw_token_maps
    figure = draw_components(t, components, [f'component {i}: {f:.1%}' for i, f in enumerate(fractions, 1)])
    figure.suptitle(f'{title}\nprincipal components of the tokens, and their shares of the variance')
    figure.savefig(path, dpi=110)
    plt.close(figure)
    say(f'-> {path}')


def about_zero(u):
    """Keywords of imshow for values that have no sign of their own."""
    limit = max(map(abs, value_range(u))) or 1.
    return {'cmap': 'RdBu_r', 'vmin': -limit, 'vmax': limit}


def draw_token_lines(t, components, names):
    """components (T, S, n) -> a figure with an image of each."""
    from matplotlib import pyplot as plt
    n_tokens = components.shape[1]
    figure, axes = plt.subplots(1, len(names), figsize=(13, 4.2), layout='constrained', squeeze=False)
    for axis, name, u in zip(axes[0], names, np.moveaxis(components, -1, 0)):
        draw_over_time(axis, np.array([-.5, n_tokens - .5]), t, name, u, about_zero(u), None)
        axis.set_xlabel('token')
    return figure


def draw_token_maps(t, components, names):
    """components (T, S_x, S_y, n) -> a figure with a row of maps of each."""
    from matplotlib import pyplot as plt
    frames = snapshots(t)
    tokens = [np.arange(n) for n in components.shape[1:-1]]
    width = len(frames) * (map_width(tokens) + .1) + 1
    figure, axes = plt.subplots(
        len(names), len(frames), figsize=(width, len(names) * (INCHES + .1) + 1), layout='constrained',
        sharex=True, sharey=True, squeeze=False)
    for row, name, u in zip(axes, names, np.moveaxis(components, -1, 0)):
        for axis, frame in zip(row, frames):
            image = draw_map(axis, tokens, u[frame], about_zero(u))
        row[0].set_ylabel(f'{name}\ntoken along y')
        figure.colorbar(image, ax=row, fraction=.03, pad=.01)
    for axis, frame in zip(axes[0], frames):
        axis.set_title(f't = {t[frame]:.2f} s', fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel('token along x')
    axes[0, 0].locator_params(integer=True, nbins=5)                 # all panels share the ticks
    return figure


def draw_comparison(path, curves, title):
    """A PNG of errors over time. curves: [(label, times (T,), errors (T,)), ..], nan where one is not
    finite."""
    if not can_draw():
        return
    from matplotlib import pyplot as plt
    figure, axis = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for label, t, errors in curves:
        axis.plot(t, errors, marker='o' if len(t) <= FEW else None, label=label)
    dress_error(axis, title)
    axis.title.set_fontsize(9)                                       # the names of files are long
    figure.savefig(path, dpi=110)
    plt.close(figure)
    say(f'-> {path}')
