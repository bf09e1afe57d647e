"""
The cylinder in a channel of Schäfer and Turek (1996) by equations/lattice.py.

    python -m dev.cylinder --re 20 --cells 10       # steady: drag 5.57 to 5.59, lift .0104 to .0110
    python -m dev.cylinder --re 100 --cells 20      # periodic: largest drag 3.22 to 3.24, largest lift .98 to 1.02,
                                                    # Strouhal number .295 to .305

A diameter has so many cells, the channel is 22 diameters long and 4.1 high, and the centre of the cylinder is 2
diameters from the inflow and the lower wall. Coefficients are those of the mean velocity and the diameter.
"""
import argparse
import math

import torch

from equations.lattice import Channel, risen
from runtime.configurator import one_line_errors, parse_flags, say
from runtime.progress import counted

ONSET = 5.                             # diameters that the mean flow travels while the inflow rises
STEADY = .01                           # change of a lift coefficient that is none
SAMPLES = 50                           # of the forces, in the time of a diameter


def coefficients(re, cells, speed, duration):
    """Times (n,) in diameters of the mean flow, and drag and lift coefficients (n, 2). speed: of the mean flow in
    cells a step. duration: in the unit of the times."""
    size = round(22 * cells), round(4.1 * cells)
    x, y = (torch.arange(n, dtype=torch.float64) + .5 for n in size)
    radius = cells / 2
    distance = ((x[:, None] - 2 * cells) ** 2 + (y - 2 * cells) ** 2).sqrt() - radius
    channel = Channel(distance[None], speed, torch.tensor([speed * cells / re]))
    label = torch.zeros(1, *size, dtype=torch.long)
    every = max(1, round(cells / speed / SAMPLES))
    times = []
    values = []
    for step in counted('solver: steps', range(round(duration * cells / speed))):
        t = step * speed / cells
        if step % every == 0:
            times.append(t)
            values.append(2 * channel.forces(label, 1)[0, 0] / (speed ** 2 * cells))
        channel.step(risen(t / ONSET))
    return torch.tensor(times), torch.stack(values)


def frequency(t, lift):
    """Waves in a unit of the times t (n,), from the rises of `lift` through its mean; nan if there are few, or if
    it hardly changes."""
    z = lift - lift.mean()
    if z.abs().max() < STEADY:
        return math.nan
    rises = ((z[:-1] < 0) & (z[1:] >= 0)).nonzero().flatten()
    if len(rises) < 3:
        return math.nan
    at = t[rises] + (t[rises + 1] - t[rises]) * z[rises] / (z[rises] - z[rises + 1])
    return float((len(rises) - 1) / (at[-1] - at[0]))


def main(argv=None):
    parser = argparse.ArgumentParser(description='The cylinder of Schäfer and Turek.', allow_abbrev=False)
    add = parser.add_argument
    add('--re', type=float, default=20.)
    add('--cells', type=int, default=10, help='of a diameter')
    add('--speed', type=float, default=.04, help='of the mean flow, in cells a step; that of sound is .58')
    add('--duration', type=float, default=120., help='diameters that the mean flow travels')
    args = parse_flags(parser, argv)
    t, values = coefficients(args.re, args.cells, args.speed, args.duration)
    late = len(t) * 6 // 10
    drag, lift = values[late:].T
    say(f'Re {args.re:g}, {args.cells} cells a diameter: largest drag {drag.max():.4f}, largest lift {lift.max():.4f}, '
        f'Strouhal number {frequency(t[late:], lift):.4f}')


if __name__ == '__main__':
    one_line_errors()
    main()
