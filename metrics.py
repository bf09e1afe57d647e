"""
Metrics of predicted fields, as pure functions of arrays with any number of space axes and fields.

p is the prediction and y the truth, both (N, T, *space, C) in float64: trajectory, frame, points, field. Each
function returns the values of which the metric is the mean. The definitions are those of PDEBench (arXiv
2210.07182) where it has them. In the docstrings <.> is a mean; its index is n for trajectories, t for frames,
x for points.
"""
import torch

BANDS = {'low': (0, 4), 'mid': (4, 12), 'high': (12, None)}     # wave numbers, PDEBench's
MIN_CORRELATION = .8
BLOCK = 64                                                      # trajectories that become float64 at a time


def space_of(u):
    """The space axes of (N, T, *space, C)."""
    return tuple(range(2, u.ndim - 1))


def rms(u):
    """sqrt <u²>_x, (N, T, C)"""
    mean_square = u.square().mean(space_of(u))
    return mean_square.sqrt()


def ratio(a, b):
    """a / b without an epsilon; 0 / 0 is 0 (nothing to predict, and that was predicted)."""
    return torch.where(a == 0, a, a / b)


def nrmse(p, y):
    """rms_x(p - y) / rms_x(y) for each trajectory, frame and field, (N, T, C): not a ratio of norms over
    all."""
    return ratio(rms(p - y), rms(y))


def vrmse(p, y):
    """rms_x(p - y) / std_x(y), (N, T, C): the true spatial mean scores 1."""
    variance = y.var(space_of(y), correction=0)
    return ratio(rms(p - y), variance.sqrt())


def brmse(e):
    """Root mean square of e = p - y over the boundary, (N, T, C): the first and last point in 1D, the 4 edges
    in 2D (2 nx + 2 ny points, a corner belongs to two edges)."""
    edges = []
    for axis in space_of(e):
        edges.append(e.narrow(axis, 0, 1))
        edges.append(e.narrow(axis, -1, 1))
    edges = [edge.flatten(2, -2) for edge in edges]                 # (N, T, points of one edge, C)
    points = torch.cat(edges, 2)
    return points.square().mean(2).sqrt()


def energy(u):
    """Energy spectrum E(κ) = Σ_{κ <= |k| < κ+1} |û_k|², (N, T, K, C). All signed wave numbers k count, up to
    the corners in 2D, so Σ_κ E(κ) = <u²>_x."""
    modes = torch.fft.fftn(u, dim=space_of(u), norm='forward')
    power = modes.abs().square()
    axes = [torch.fft.fftfreq(n, 1 / n).round() for n in u.shape[2:-1]]
    numbers = torch.meshgrid(*axes, indexing='ij')                  # of each mode, one array per axis
    square = sum(k.square() for k in numbers)
    shell = square.sqrt().long().flatten()
    n_rows, n_frames, *_, n_fields = u.shape
    n_shells = int(shell.max()) + 1
    spectrum = power.new_zeros(n_rows, n_frames, n_shells, n_fields)
    return spectrum.index_add_(2, shell, power.flatten(2, -2))


def frmse(e):
    """Fourier coefficients of e = p - y in the bands |k| = 0-3, 4-11, 12 and above, {name: (T, C)}.

    sqrt <|e_k|²>_n, then the mean over the k of the band; e_k is the FFT divided by the number of points
    (domain length 1, as PDEBench has it). 1D: k >= 0, one of each conjugate pair. 2D: |e_k|² summed over
    radial shells floor |k| of all signed wave numbers (PDEBench: those >= 0 only). A band that the grid does
    not reach is nan.
    """
    if e.ndim > 4:
        power = energy(e)
    else:
        modes = torch.fft.rfft(e, dim=2, norm='forward')
        power = modes.abs().square()
    error = power.mean(0).sqrt()                                    # (T, K, C)
    result = {}
    for band, (low, high) in BANDS.items():
        result[f'frmse_{band}'] = error[:, low:high].mean(1)
    return result


def spectral_energy_error(p, y):
    """Σ_k |E_p(k) - E_y(k)| / Σ_k E_y(k), (N, T, C)"""
    predicted = energy(p)
    true = energy(y)
    difference = (predicted - true).abs()
    return ratio(difference.sum(2), true.sum(2))


def conservation_gap(p, u0):
    """|<p_t>_x - <u_0>_x| / rms_x(u_0), (N, T, C); u0 (N, 1, *space, C) is the field the rollout starts
    from."""
    space = space_of(p)
    gap = p.mean(space) - u0.mean(space)
    return ratio(gap.abs(), rms(u0))


def rel_l2(p, y):
    """‖p - y‖ / ‖y‖ over time and space, (N, C)"""
    axes = (1, *space_of(y))
    error = (p - y).square().sum(axes)
    norm = y.square().sum(axes)
    return ratio(error.sqrt(), norm.sqrt())


def correlation(p, y):
    """Pearson correlation over x, (N, T, C). A truth that is constant to float32 has none to lose: 1. A
    prediction that is constant or not finite: 0."""
    space = space_of(p)
    a = p - p.mean(space, keepdim=True)
    b = y - y.mean(space, keepdim=True)
    covariance = (a * b).mean(space)
    r = covariance / (rms(a) * rms(b))
    is_flat = rms(b) <= 1e-6 * rms(y)
    has_none = is_flat & rms(p).isfinite()
    r = torch.where(has_none, 1., r)
    return r.nan_to_num(0., 0., 0.)


def correlation_time(r, dt):
    """Seconds from the last given frame to the first one whose correlation r (N, T, C) is below .8; the
    horizon T dt if there is none. (N, C)"""
    is_good = (r >= MIN_CORRELATION).long()
    n_good = is_good.cumprod(1).sum(1)                              # frames before the first bad one
    first_bad = (n_good + 1).clamp_max(r.shape[1])
    return first_bad.double() * dt


def metrics(p, y, u0, dt, on_frame=None):
    """All metrics of predictions p against the truth y, (N, T, *space, C) in any precision, from the last
    given frame u0 (N, *space, C), frames dt seconds apart. Returns ({name: number}, nrmse of each step).
    on_frame() is called when a frame is done.

    What pools over trajectories goes frame by frame, what pools over time in blocks of trajectories: exact,
    and without float64 copies of whole arrays.
    """
    assert p.shape == y.shape, (p.shape, y.shape)
    assert u0.shape == y[:, 0].shape, (u0.shape, y.shape)
    u0 = u0[:, None].double()
    values = {}                                                     # name -> one number a frame
    correlations = []
    for t in range(p.shape[1]):
        a = p[:, t:t + 1].double()
        b = y[:, t:t + 1].double()
        correlations.append(correlation(a, b))
        for name, value in _of_frame(a, b, u0).items():
            of_frames = values.setdefault(name, [])
            of_frames.append(float(value.mean()))
        if on_frame:
            on_frame()
    result = {}
    for name, of_frames in values.items():
        result[name] = sum(of_frames) / len(of_frames)
    norms = []
    for a, b in zip(p.split(BLOCK), y.split(BLOCK)):
        norms.append(rel_l2(a.double(), b.double()))
    result['rel_l2'] = float(torch.cat(norms).mean())
    times = correlation_time(torch.cat(correlations, 1), dt)
    result['correlation_time'] = float(times.mean())
    return result, values['nrmse']


def _of_frame(p, y, u0):
    """The metrics that pool over trajectories, of one frame: all (N, 1, *space, C)."""
    e = p - y
    space = space_of(y)
    integral = e.mean(space)                                        # (N, 1, C)
    return {
        'nrmse': nrmse(p, y),
        'rmse': rms(e),                                             # <rms_x>: no root of the mse
        'mse': e.square(),
        'mae': e.abs(),
        'max_error': e.abs().amax((0, *space)),                     # <max_{n,x}>_t: the worst point
        'crmse': integral.square().mean(0).sqrt(),                  # <sqrt <(<p>_x - <y>_x)²>_n>_t
        'brmse': brmse(e),
        **frmse(e),
        'vrmse': vrmse(p, y),
        'spectral_energy_error': spectral_energy_error(p, y),
        'conservation_gap': conservation_gap(p, u0)}


def by_frame(measure, *fields):
    """measure(..) (N, 1, C) of every frame of fields (N, T, *space, C), one after another in float64, as
    metrics() goes: (N, T, C)"""
    values = []
    for frame in zip(*[u.split(1, 1) for u in fields]):
        values.append(measure(*[u.double() for u in frame]))
    return torch.cat(values, 1)


def field_nrmse(p, y):
    """The number `nrmse` of metrics() of each field, a list of C numbers; their mean is that of all
    fields."""
    return by_frame(nrmse, p, y).mean((0, 1)).tolist()


def bounded(size, largest):
    """Which trajectories stay finite and bounded, (N,): those whose sizes rms_x (N, T, C) are at most twice
    the largest ones (N, C) of the truth, in every frame and field."""
    return (size <= 2 * largest[:, None]).all(2).all(1)             # False for nan, too


def mean_nrmse(p, y):
    """The number `nrmse` of metrics() alone."""
    values = []
    for a, b in zip(p.split(1, 1), y.split(1, 1)):                  # frame by frame, as metrics() goes
        value = nrmse(a.double(), b.double())
        values.append(float(value.mean()))
    return sum(values) / len(values)
