"""
Gray-Scott: a reaction that feeds on u and makes v, with diffusion.

    ∂u/∂t = D_u Δu - u v² + F (1 - u),      ∂v/∂t = D_v Δv + u v² - (F + k) v,      x, y in (0, 1/2) periodic
    D_u = 2e-5,   D_v = 1e-5

F is the feed rate and k the rate at which v is removed ('kill'). They select the pattern (J. E. Pearson,
Science 261, 1993): F .029, k .057 give a maze, .03, .062 spots that divide, .018, .051 spirals, .058, .065
worms. These rates and diffusivities are those of arXiv 2412.00568, on a quarter of its width. The scheme is
Fourier series with the 2/3 rule, and ETDRK4, for which decay and diffusion are exact.
"""
import math

import numpy as np
import torch

from equations import PDE
from equations.common import (centres, checked, empty_frames, etdrk4_step, etdrk4_weights, exchange_axes,
                              finer_spectrum, generators, waves_2d)
from equations.derivatives import derivative
from runtime.configurator import UserError
from runtime.progress import counted

DIFFUSIVITY = (2e-5, 1e-5)      # of u and v
SIDE = .5                       # of the domain
GS_CELLS = 96                   # internal cells per axis, at least
GS_STEP = 2.5                   # longest step in seconds


def gray_scott(u0, feed, kill, t, refine=None, step=GS_STEP):
    """Solve u_t = D_u Δu - u v² + F (1 - u), v_t = D_v Δv + u v² - (F + k) v, periodic on (0, 1/2)².

    u0: (B, X, Y, 2) of u and v at the cell centres. feed: F; kill: k; both in 1/s. refine: number of internal
    cells in a given cell along each axis, by default enough for fronts. step: longest step in seconds. Returns
    (B, T, X, Y, 2) float64. Raises UserError as `checked` does, and if the solution is not finite.

    For fields of `drops` at F .029, k .057 and t = 100, 200, 400 the largest nrmse of v in three samples is
    4e-4, 6e-4, 1.2e-3 due to the steps (against steps half as long). That due to the cells is 1e-5 on 96²
    internal cells and 2e-3 on 64² (against 192²), where v falls to -4e-7 and -2e-4. A trajectory of 400 s takes
    .5 s of a CPU core on 128² internal cells.
    """
    u0, t = checked(u0, t, axes=2, channels=2, feed=feed, kill=kill, step=step)
    n_x = u0.shape[1]
    n_y = u0.shape[2]
    if refine is None:
        refine = math.ceil(GS_CELLS / min(n_x, n_y))
    size = (n_x * refine, n_y * refine)
    k_x, k_y, kept = waves_2d(size, u0.device)
    square = (k_x ** 2 + k_y ** 2) / SIDE ** 2
    decay_u = DIFFUSIVITY[0] * square + feed
    decay_v = DIFFUSIVITY[1] * square + feed + kill
    linear = -torch.stack([decay_u, decay_v])                       # (2, X, K)
    supply = feed * math.prod(size)                                 # F, in the coefficient of the mean

    def rate(w):
        u, v = torch.fft.irfft2(w, s=size).unbind(1)
        reaction = torch.fft.rfft2(u * v ** 2) * kept
        change = torch.stack([-reaction, reaction], 1)
        change[:, 0, 0, 0] += supply
        return change

    out = empty_frames(u0, t)
    fields = u0.movedim(3, 1)                                       # (B, 2, X, Y)
    w = finer_spectrum(fields.flatten(0, 1), refine) * kept
    w = w.unflatten(0, (-1, 2))
    tau = 0.
    for i, gap in enumerate(counted('solver: frames', np.diff(t))):
        n_step = math.ceil(gap / step * (1 - 1e-9))                 # a gap of 2.0000001 steps takes two
        if not math.isclose(tau, gap / n_step):
            tau = gap / n_step
            weights = etdrk4_weights(linear, tau)
        for _ in range(n_step):
            w = etdrk4_step(w, rate, weights)
        field = torch.fft.irfft2(w, s=size)
        out[:, i + 1] = field[..., ::refine, ::refine].movedim(1, 3)
    if not torch.isfinite(out).all():
        raise UserError(f'u0 reaches {float(u0.abs().max()):.3g}, too much for steps of {step} s')
    return out


def gray_scott_residual(u0, u1, dt, params, axes):
    """Residuals of u_t - D_u Δu + u v² - F (1 - u) and v_t - D_v Δv - u v² + (F + k) v between the frames u0,
    u1 (B, X, Y, 2), dt (B,) seconds apart: (B, X, Y, 2), by the midpoint rule and Fourier derivatives.
    params: {'feed': (B,), 'kill': (B,)}; axes: [x, y]. On 64² cells, which hardly resolve the fronts, it is 3 %
    to 4 % of the fields' rate of change for exact fields; on 128² it is 5e-4 or less."""
    u, v = ((u0 + u1) / 2).unbind(-1)
    feed = params['feed'].view(-1, 1, 1)
    kill = params['kill'].view(-1, 1, 1)
    diffusion = []
    for field, diffusivity in zip((u, v), DIFFUSIVITY):
        curve_x = derivative(field, axes[0], 0, 2)
        curve_y = derivative(field, axes[1], 1, 2)
        diffusion.append(diffusivity * (curve_x + curve_y))
    reaction = u * v ** 2
    rate_u = diffusion[0] - reaction + feed * (1 - u)
    rate_v = diffusion[1] + reaction - (feed + kill) * v
    return (u1 - u0) / dt.view(-1, 1, 1, 1) - torch.stack([rate_u, rate_v], -1)


# ---------------------------------------------------------------------------------------------
# initial fields

def drops(n, cells, seed=0, first=0):
    """Initial fields (n, X, Y, 2) float64: 2 to 6 round drops of v in u = 1, and u = 1 - v. A drop at a random
    place is a periodic Gaussian of height .4 to .9 and standard deviation .03 to .06. Where drops overlap, v
    stays below 1. Sample i depends on (seed, first + i) alone."""
    x, y = [2 * np.pi * centres(n_cells) for n_cells in cells]
    u0 = np.empty((n, *cells, 2))
    for row, rng in enumerate(generators(n, seed, first)):
        u = 1.
        for _ in range(rng.integers(2, 7)):
            p_x, p_y = rng.uniform(0, 2 * np.pi, 2)
            width = 2 * np.pi / SIDE * rng.uniform(.03, .06)
            height = rng.uniform(.4, .9)
            bump_x = np.exp((np.cos(x - p_x) - 1) / width ** 2)
            bump_y = np.exp((np.cos(y - p_y) - 1) / width ** 2)
            u = u * (1 - height * bump_x[:, None] * bump_y)
        u0[row, ..., 0] = u
        u0[row, ..., 1] = 1 - u
    return u0


# No integral is conserved. The exact fields are positive, but those of the solver only to about 4e-7.
ENTRY = PDE(
    fields=('u', 'v'),
    params={'Feed': .029, 'Kill': .057},
    space=((0, SIDE), (0, SIDE)),
    boundary='periodic',
    file='2D_GrayScott_Feed{Feed}_Kill{Kill}.h5',
    layout='groups',
    solve=gray_scott,
    cheaper=({'refine': 1}, {'refine': 1, 'step': 2 * GS_STEP}),
    initial=drops,
    cells=(64, 64),
    frames=41,
    dt=10.,
    mirror=True,
    symmetry=exchange_axes,
    residual=gray_scott_residual)
