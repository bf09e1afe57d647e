"""
Draw the architecture: python docs/architecture.py writes docs/architecture.png (900 pixels wide).
"""
import os

import matplotlib

matplotlib.use('Agg')
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

INK = '#333333'
LOSS = '#c0392b'
MODULE = '#dce8f5'                     # encoder, operator, decoder
CONDITION = '#eeeeee'
COLOURS = {'cmap': 'RdBu_r', 'vmin': -2, 'vmax': 2}
SIZE = 10                              # of a picture of a field
FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'architecture.png')


def wave(x, y, time):
    """A smooth field on the unit square."""
    first = np.sin(6.3 * (x + .6 * y + time))
    second = np.cos(6.3 * (1.4 * y - .5 * x - time))
    return first + .8 * second


def frame(left, bottom):
    plt.gca().add_patch(Rectangle((left, bottom), SIZE, SIZE, fill=False, ec=INK, lw=.8))


def grid_field(left, bottom, time):
    """A field on a grid of 12 x 12 cells."""
    line = np.linspace(0, 1, 12)
    x, y = np.meshgrid(line, line)
    extent = (left, left + SIZE, bottom, bottom + SIZE)
    plt.imshow(wave(x, y, time), extent=extent, origin='lower', **COLOURS)
    frame(left, bottom)


def point_field(left, bottom, time):
    """A field at 50 random points."""
    x, y = np.random.default_rng(3).uniform(.05, .95, (2, 50))
    u = wave(x, y, time)
    plt.scatter(left + SIZE * x, bottom + SIZE * y, 16, u, edgecolors=INK, linewidths=.3, **COLOURS)
    frame(left, bottom)


def tokens(left, bottom, values):
    """A column of latent tokens, one square each, of values from 0 to 1."""
    for i, value in enumerate(values):
        corner = (left, bottom + 2.4 * i)
        plt.gca().add_patch(Rectangle(corner, 2.4, 2.4, fc=plt.cm.viridis(value), ec='white'))


def box(left, bottom, width, height, text, colour=MODULE):
    style = 'round,pad=0,rounding_size=1'
    plt.gca().add_patch(FancyBboxPatch((left, bottom), width, height, style, fc=colour, ec=INK))
    label(left + width / 2, bottom + height / 2, text)


def label(x, y, text, colour=INK, ha='center'):
    plt.text(x, y, text, color=colour, ha=ha, va='center', fontsize=10)


def arrow(start, end, colour=INK, bend=0., style='-|>', line='-'):
    path = {'connectionstyle': f'arc3,rad={bend}', 'shrinkA': 0, 'shrinkB': 0}
    look = {'arrowstyle': style, 'mutation_scale': 12, 'color': colour, 'lw': 1.3, 'ls': line}
    plt.gca().add_patch(FancyArrowPatch(start, end, **path, **look))


def pass_on(start, end):
    arrow((start, 31), (end, 31))


def rollout():
    """One frame in, K steps in latent space, a field at any points out: from left to right."""
    grid_field(2, 26, time=0)
    label(7, 24.2, 'field $u_t$ on a grid')
    label(7, 21.2, 'or at points')
    point_field(2, 9, time=0)
    box(17, 26, 9, 10, 'Encoder\n$E$')
    tokens(30.5, 25, (.15, .55, .3, .8, .45))
    label(31.7, 22.8, 'latent\ntokens $z_t$')
    box(38, 24, 16, 14, 'Operator $A$\n\npure | U-shaped\nstandard | channel\nattention')
    label(46, 18.4, '$K$ steps in latent space')
    tokens(58.5, 25, (.3, .75, .2, .6, .9))
    label(59.7, 23.3, '$z_{t+K}$')
    box(65.5, 26, 9, 10, 'Decoder\n$D$')
    point_field(78, 26, time=.35)
    label(83, 24.2, 'field at any points')
    pass_on(12.5, 16.5)
    pass_on(26.5, 30)
    pass_on(33.4, 37.5)
    pass_on(54.5, 58)
    pass_on(61.4, 65)
    pass_on(75, 77.5)
    arrow((12.5, 14), (20.5, 25.5), bend=.3)
    arrow((51, 23.5), (41, 23.5), bend=-.6)


def condition():
    box(36, 44, 20, 4.5, 'time step, parameters', CONDITION)
    arrow((46, 44), (46, 38.5))
    label(47, 41.4, 'adaptive layer norm', ha='left')


def truth():
    """The true later frame and its encoding: from right to left."""
    grid_field(78, 4, time=.35)
    label(83, 2, 'truth $u_{t+K}$')
    box(65.5, 4, 9, 10, 'Encoder\n$E$')
    tokens(58.5, 3.6, (.3, .7, .25, .6, .85))
    label(59.7, 1.9, '$E(u_{t+K})$')
    arrow((77.5, 9), (75, 9))
    arrow((65, 9), (61.4, 9))


def losses():
    arrow((83, 22.7), (83, 14.5), LOSS, style='<|-|>')
    label(82, 18.6, 'field loss,\nspectral loss', LOSS, ha='right')
    arrow((59.7, 21.8), (59.7, 16.1), LOSS, style='<|-|>')
    label(60.7, 19, 'latent loss', LOSS, ha='left')
    arrow((31.7, 37.5), (7, 36.5), LOSS, bend=.25, line='--')
    label(19.3, 45.3, 'inverse encoding\n$D(E(u)) = u$ in field space', LOSS)
    arrow((83, 36.5), (59.7, 37.5), LOSS, bend=.25, line='--')
    label(73, 45.3, 'inverse decoding\n$E(D(z)) = z$ in latent space', LOSS)


if __name__ == '__main__':
    figure = plt.figure(figsize=(9, 5), dpi=100)
    plt.axes([0, 0, 1, 1])
    rollout()
    condition()
    truth()
    losses()
    plt.axis('off')
    plt.axis([0, 90, 0, 50])
    figure.savefig(FILE)
