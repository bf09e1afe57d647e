"""
The physics report of eval.py --physics: conserved integrals, energy, walls, divergence and residual of the
equation, for predictions and for the truth.
"""
import torch

from metrics import energy
from physics.priors import (boundary, conservation, divisor, energies, rate, relative_divergence, why_not)

QUANTITIES = ('conservation', 'energy', 'boundary', 'divergence', 'residual')
LABELS = {'conservation': 'conservation gap', 'energy': 'energy growth', 'boundary': 'boundary violation',
          'divergence': 'divergence', 'residual': 'residual of the equation'}


@torch.no_grad()
def report(u0, p, y, dt, params, axes, entry):
    """
    What eval.py --physics says of predictions p and of the truth y, both (N, T, *X, C), frames dt seconds
    apart after u0 (N, *X, C). params: {name: (N,)}. Returns {quantity: {'prediction': number, 'truth':
    number}, or {'does_not_apply': why}}, with an item for each conserved field.

    In float64. conservation: mean of |<u_t> - <u_0>| / rms(u_0) over trajectories and frames. energy: what it
    grows by from frame to frame, summed over the frames (falls do not make up for it), over that of u_0.
    boundary, divergence, residual: rms over points and trajectories in units of the truth, mean over frames.
    """
    axes = [x.cpu().double() for x in axes]
    values = {name.lower(): value.cpu().double() for name, value in params.items()}
    dt = torch.full((len(u0),), dt, dtype=torch.float64)
    start = u0.double()
    found = {}
    for quantity in QUANTITIES:
        why = why_not(quantity, entry, axes)
        if why:
            found[quantity] = {'does_not_apply': why}
            continue
        total = {}
        for side, u in (('prediction', p), ('truth', y)):
            total[side] = 0.
            before = true_before = start
            for t in range(u.shape[1]):                              # frame by frame, as metrics() goes
                now = u[:, t].double()
                true = y[:, t].double()
                pairs = (start, before, now, true_before, true)
                total[side] = total[side] + of_frame(quantity, *pairs, dt, values, axes, entry)
                before = now
                true_before = true
            if quantity != 'energy':
                total[side] = total[side] / u.shape[1]
        names = entry.conserved if quantity == 'conservation' else ('',)
        for i, name in enumerate(names):
            key = f'{quantity} of {name}' if name else quantity
            found[key] = {side: float(value[i]) for side, value in total.items()}
    return found


def of_frame(quantity, start, before, u, true_before, true, dt, params, axes, entry):
    """A quantity of the frame u, which follows `before`: (conserved fields,) or (1,)."""
    if quantity == 'conservation':
        return conservation(u, start, axes, entry).abs().mean(0)
    if quantity == 'energy':
        grown = energies(u, axes, entry) - energies(before, axes, entry)
        whole = energies(start, axes, entry).sum(0, keepdim=True)
        return grown.clamp_min(0.).sum() / divisor(whole)
    if quantity == 'boundary':
        defect = boundary(u, true, axes, entry)
    elif quantity == 'divergence':
        defect = relative_divergence(u, true, axes, entry)
    else:
        defect = entry.residual(before, u, dt, params, axes) / rate(true_before, true, dt, entry)
    return defect.square().mean().sqrt()[None]


def lines(found):
    """The report as text, one line per quantity."""
    rows = [['', 'prediction', 'truth']]
    for key, value in found.items():
        quantity, *field = key.split(' ', 1)
        label = ' '.join([LABELS[quantity], *field])
        if 'does_not_apply' in value:
            rows.append([label, f"does not apply: {value['does_not_apply']}"])
        else:
            sides = [value['prediction'], value['truth']]
            rows.append([label, *['not finite' if x is None else f'{x:.3g}' for x in sides]])
    text = []
    for label, *cells in rows:
        columns = [f'{cell:<10}' for cell in cells]
        text.append(f'{label:<28}' + '  '.join(columns).rstrip())
    return '\n'.join(text)


def spectra(u, periodic):
    """Energy spectrum of fields u (N, T, *X, C), the mean over trajectories (T, K, C), and K wave numbers in
    waves a domain. Between walls it is that of the even extension, which does not jump: half waves count."""
    u = u.double()
    unit = 1.
    if not periodic:
        unit = .5
        for axis in range(2, u.ndim - 1):
            u = torch.cat([u, u.flip(axis)], axis)
    power = energy(u).mean(0)
    return power, unit * torch.arange(power.shape[1])
