"""
Numerical solvers that write PDEBench-layout files, so that nothing has to be downloaded.

    python solvers.py burgers --n 1000 --nu 0.01          # datasets/1D_Burgers_Sols_Nu0.01_N1000.hdf5
    python solvers.py burgers --n 10000 --nu 0.001 --device cuda

Burgers' equation as PDEBench poses it (arXiv 2210.07182; the flux u²/2 of its corrected files):

    ∂u/∂t + ∂(u²/2)/∂x = (ν/π) ∂²u/∂x²,      x in (0, 1) periodic,  t in [0, 2]

on 1024 cells with centres (i + 1/2)/1024 and 201 frames every .01 s. Cell values are cell averages,
as in any finite-volume code, so the integral of u is conserved to rounding.

The solver is exact up to quadrature. With D = ν/π the Cole-Hopf potential θ = -∫u dx / 2D turns the
equation into the heat equation for exp(θ), and one step of any length τ is a Gaussian convolution:

    θ(x, t+τ) = log ∫ exp(θ(y, t) - (x - y)²/4Dτ) dy + const        (a log-sum-exp)

The trapezoidal rule for it converges like exp(-2π² 2Dτ/h²): there is no CFL number, and a shock
thinner than a cell costs nothing, because θ only has a kink there. θ spans hundreds of e-foldings
at small ν, so the sum is taken block by block relative to the block's own maximum, where double
precision suffices; a block is then one small matrix product with a shared Gaussian kernel.
"""
import argparse
import math
import os
import platform
import shutil
import sys
import time

import h5py
import numpy as np
import torch

from configurator import UserError, one_line_errors, say

FORMAT_VERSION = 1
N_CELLS, N_FRAMES, DT_SAVE = 1024, 201, .01      # what PDEBench stores for 1D Burgers
MIN_SIGMA = 1.25                                 # kernel width in cells: trapezoid error 4e-14
TAIL = 8.5                                       # kernel cut-off in widths: exp(-36) = 2e-16
MAX_EXPONENT = 600.                              # doubles end at exp(709)
MAX_REFINEMENT = 64                              # finest internal grid, in cells per given cell


# ---------------------------------------------------------------------------------------------
# Burgers

def burgers(u0, nu, t):
    """Solve periodic Burgers on (0, 1) for cell averages.

    u0: (B, X) cell averages on X equal cells, centres (i + .5)/X. Array or tensor, any device.
    nu: PDEBench's ν; the diffusivity is ν/π. t: increasing times in seconds, the first one 0.
    Returns a float64 tensor (B, len(t), X) on u0's device (on the CPU where it has no float64).
    Raises UserError for times that do not increase from 0, ν <= 0, or values that are not finite.
    """
    u0 = torch.as_tensor(u0)
    u0 = (u0.cpu() if u0.device.type == 'mps' else u0).double()
    t = np.asarray(t, dtype=np.float64)
    if u0.ndim != 2 or u0.shape[1] < 2:
        raise UserError(f'u0 has shape {tuple(u0.shape)}; expected (batch, cells) with 2 or more cells')
    if not (nu > 0 and math.isfinite(nu)):
        raise UserError(f'nu={nu} must be positive and finite')
    if t.ndim != 1 or len(t) == 0 or t[0] != 0 or not (np.diff(t) > 0).all() or not np.isfinite(t).all():
        raise UserError('times must start at 0 and increase')
    if not torch.isfinite(u0).all():
        raise UserError('u0 holds values that are not finite')

    B, X = u0.shape
    D, u_max = nu / math.pi, float(u0.abs().max())
    out = torch.empty(B, len(t), X, dtype=torch.float64, device=u0.device)
    out[:, 0] = u0
    if u_max == 0 or len(t) == 1:
        out[:] = u0[:, None]
        return out
    # how finely to step and to refine, from the shortest interval asked for
    gaps = np.diff(t)
    refine = max(1, math.ceil(MIN_SIGMA / X / math.sqrt(2 * D * gaps.min())))
    longest = _longest_step(D, u_max)
    if gaps.max() > longest:       # split long intervals; never below what the grid resolves
        refine = max(refine, math.ceil(MIN_SIGMA / X / math.sqrt(D * min(longest, gaps.min()))))
    if refine > MAX_REFINEMENT:
        raise UserError(f'nu={nu}, {X} cells and a time step of {gaps.min():.2g} s need {refine} times '
                        f'finer cells inside (at most {MAX_REFINEMENT}): ask for later times or more cells')
    h = 1 / (X * refine)
    jump = -u0.mean(1) / (2 * D)                                    # θ(x + 1) - θ(x)
    theta = _potential(u0, D, refine)                               # (B, X refine) at the left edges
    for i, gap in enumerate(gaps):
        n_sub = max(1, math.ceil(gap / longest))
        for _ in range(n_sub):
            theta = _heat_step(theta, jump, gap / n_sub, D, u_max, h)
        edges = theta[:, ::refine]                                  # (B, X)
        right = torch.cat([edges[:, 1:], edges[:, :1] + jump[:, None]], 1)
        out[:, i + 1] = (edges - right) * (2 * D * X)
        u_max = float(out[:, i + 1].abs().max())                    # never grows (maximum principle)
        longest = max(longest, _longest_step(D, u_max))
    return out


def _longest_step(D, u_max):
    """Longest τ for which θ varies by less than MAX_EXPONENT over one kernel's reach (half of it kept
    for the block): (u_max τ + TAIL sqrt(2Dτ)) u_max / 2D = MAX_EXPONENT / 2."""
    a, b, c = u_max, TAIL * math.sqrt(2 * D), -MAX_EXPONENT * D / max(u_max, 1e-300)
    return ((-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)) ** 2 if a > 1e-12 else math.inf


def _potential(u0, D, refine):
    """θ at the left edges of the refined cells, (B, X) -> (B, X refine). Values at the given edges are
    exact sums; between them the periodic part is interpolated trigonometrically."""
    B, X = u0.shape
    mean = u0.mean(1, keepdim=True)
    theta = -(torch.cumsum(u0 - mean, 1) - (u0 - mean)) / (2 * D * X)      # periodic part
    if refine > 1:
        spectrum = torch.fft.rfft(theta) * refine
        if X % 2 == 0:
            spectrum[:, -1] /= 2                                    # the Nyquist mode has two halves
        theta = torch.fft.irfft(spectrum, n=X * refine)
    edges = torch.arange(X * refine, device=u0.device, dtype=torch.float64) / (X * refine)
    return theta - mean * edges / (2 * D)


def _heat_step(theta, jump, tau, D, u_max, h):
    """One Gaussian convolution of exp(θ) over τ, on M edges a distance h apart. (B, M) -> (B, M)."""
    B, M = theta.shape
    reach = math.ceil((u_max * tau + TAIL * math.sqrt(2 * D * tau)) / h)
    # long blocks need fewer exponentials, short ones less range: the longest that still fits
    room = int((MAX_EXPONENT * 2 * D / max(u_max, 1e-300)) / h - reach)
    block = max(8, min(reach, room, M))
    n_block = -(-M // block)
    index = torch.arange(-reach, n_block * block + reach, device=theta.device)
    wraps = torch.div(index, M, rounding_mode='floor')
    padded = theta[:, index - wraps * M] + jump[:, None] * wraps    # (B, n_block block + 2 reach)
    windows = padded.unfold(1, block + 2 * reach, block)            # (B, n_block, window)
    top = windows.amax(2, keepdim=True)
    offset = (torch.arange(block + 2 * reach, device=theta.device)[:, None] - reach
              - torch.arange(block, device=theta.device)[None]).double() * h
    kernel = torch.exp(-offset ** 2 / (4 * D * tau))                # (window, block)
    theta = (torch.exp(windows - top) @ kernel).log() + top         # (B, n_block, block)
    theta = theta.flatten(1)[:, :M]
    return theta - theta[:, :1]                                     # the constant carries nothing


def burgers_initial(n, n_cells=N_CELLS, seed=0, first=0):
    """Initial conditions of PDEBench's distribution, (n, n_cells) float64 at the cell centres.

    u0 = s |·|? Σ_{i=1..4} A_i sin(2π i n_i x / P + φ_i), A_i ~ U[0, 1), φ_i ~ U[0, 2π), where n_i counts how
    often i was drawn in two draws from 1..4. Its quirks are kept: a mode not drawn adds the constant
    A_i sin φ_i (so most samples have a mean); a mode drawn twice doubles its wave number (up to 8);
    P = 1 - 1/1024 is the distance from first to last centre; one sample in ten is |u|; each has a random
    sign; one in ten is windowed to (xL, xR) by tanh ramps of width .01. Unlike there, all draws are
    independent. Sample i depends on (seed, first + i) alone: every ν, and every n, shares them.
    """
    x = (np.arange(n_cells) + .5) / n_cells
    period = 1 - 1 / N_CELLS
    u0 = np.empty((n, n_cells))
    for row in range(n):
        rng = np.random.default_rng([seed, first + row])
        count = np.bincount(rng.integers(0, 4, 2), minlength=4)
        amplitude, phase = rng.uniform(size=4), 2 * np.pi * rng.uniform(size=4)
        wave = np.arange(1, 5) * count
        u = (amplitude[:, None] * np.sin(2 * np.pi * wave[:, None] * x / period + phase[:, None])).sum(0)
        is_abs, sign, is_window = rng.uniform() < .1, rng.choice([-1., 1.]), rng.uniform() < .1
        left, right = rng.uniform(.1, .45), rng.uniform(.55, .9)
        u = sign * (np.abs(u) if is_abs else u)
        if is_window:
            u = u * .5 * (np.tanh((x - left) / .01) - np.tanh((x - right) / .01))
        u0[row] = u
    return u0


# ---------------------------------------------------------------------------------------------
# files

def burgers_path(data_dir, nu, n):
    """Where the built-in solver keeps n trajectories: PDEBench's name, with the number of them."""
    return os.path.join(data_dir, f'1D_Burgers_Sols_Nu{nu:g}_N{n}.hdf5')


def solver_device(device='auto'):
    """The device the solver runs on: float64 is needed, so MPS falls back to the CPU, and says so."""
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'mps':
        say('solvers: mps has no float64, solving on the cpu')
        device = 'cpu'
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise UserError('device=cuda was asked for, but torch sees no CUDA device: use --device cpu')
    return device


def write_burgers(path, n, nu, seed=0, device='auto', batch_size=None):
    """Solve n trajectories and write a PDEBench-layout file, complete or not at all.

    tensor (n, 201, 1024) float32, x-coordinate (1024,), t-coordinate (202,) (one more than frames, as in
    the released files), attribute Nu; checksummed (fletcher32). Prints the cost before it starts.
    """
    if n < 1:
        raise UserError(f'n={n}: at least one trajectory is needed')
    device = solver_device(device)
    batch_size = min(n, batch_size or (256 if device.startswith('cuda') else 32))
    t = np.arange(N_FRAMES) * DT_SAVE
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder of '{path}': {error.strerror}") from error
    n_bytes = n * N_FRAMES * N_CELLS * 4
    free = shutil.disk_usage(os.path.dirname(path) or '.').free
    if free < n_bytes * 1.05:
        raise UserError(f'{path} needs {n_bytes / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there')
    warm_up = torch.from_numpy(burgers_initial(min(n, 2), seed=seed)).to(device)
    burgers(warm_up, nu, t[:3]).cpu()                               # then time a small batch
    start, n_probe = time.perf_counter(), min(n, batch_size, 16)
    burgers(torch.from_numpy(burgers_initial(n_probe, seed=seed)).to(device), nu, t[:41]).cpu()
    seconds = (time.perf_counter() - start) / n_probe * 5 * n
    say(f'solvers: making {path}: {n} trajectories of Burgers at nu {nu:g}, seed {seed}, on {device}: '
        f'about {seconds / 60:.1f} minutes and {n_bytes / 1e9:.2f} GB')

    temporary = f'{path}.tmp.{platform.node()}.{os.getpid()}'       # of this process alone: others may make it, too
    try:
        with h5py.File(temporary, 'w', libver='v110') as file:      # checksums the metadata, too
            file.attrs.update({'Nu': nu, 'seed': seed, 'pde': 'burgers', 'format_version': FORMAT_VERSION,
                               'source': 'solvers.py: Cole-Hopf, cell averages, float64'})
            for name, values in (('x-coordinate', (np.arange(N_CELLS) + .5) / N_CELLS),
                                 ('t-coordinate', np.arange(N_FRAMES + 1) * DT_SAVE)):
                file.create_dataset(name, data=values.astype(np.float32), chunks=True, fletcher32=True)
            tensor = file.create_dataset('tensor', (n, N_FRAMES, N_CELLS), np.float32,
                                         chunks=(1, N_FRAMES, N_CELLS), fletcher32=True)
            start = last_print = time.perf_counter()
            for first in range(0, n, batch_size):
                size = min(batch_size, n - first)
                u0 = torch.from_numpy(burgers_initial(size, seed=seed, first=first)).to(device)
                tensor[first:first + size] = burgers(u0, nu, t).float().cpu().numpy()
                now, done = time.perf_counter(), first + size
                if now - last_print > 5 or done == n:
                    eta = (now - start) / done * (n - done)
                    say(f'solvers: {done}/{n} {done / n:.0%} | {1e3 * (now - start) / done:.1f} ms a '
                        f'trajectory | eta {eta:.0f}s')
                    last_print = now
            file.attrs['complete'] = 1
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"could not write '{path}': {os.strerror(error.errno) if error.errno else error}") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return path


if __name__ == '__main__':
    one_line_errors()
    parser = argparse.ArgumentParser(description='Make a PDEBench-layout data set with the built-in solver.')
    parser.add_argument('pde', choices=['burgers'])
    parser.add_argument('--n', type=int, default=1000, help='trajectories')
    parser.add_argument('--nu', type=float, default=.01, help="PDEBench's nu; the diffusivity is nu/pi")
    parser.add_argument('--seed', type=int, default=0, help='of the initial conditions')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--batch_size', type=int, default=None, help='trajectories solved at a time')
    parser.add_argument('--data_dir', default='datasets', help='folder of the file')
    parser.add_argument('--out', default=None, help='file to write (default: a name under --data_dir)')
    args = parser.parse_args()
    out = args.out or burgers_path(args.data_dir, args.nu, args.n)
    if os.path.exists(out):
        sys.exit(f'error: {out} exists: remove it first, or write elsewhere with --out')
    write_burgers(out, args.n, args.nu, args.seed, args.device, args.batch_size)
