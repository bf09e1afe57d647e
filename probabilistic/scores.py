"""
Scores of ensembles: fair CRPS, spread-skill ratio, coverage.

members (N, M, T, *space, C) are M predictions of the truth y (N, T, *space, C).
"""
import torch

from evaluation.scores import ms_per_trajectory, predict, predicted_fields
from metrics import metrics, nrmse, ratio, rms, space_of
from probabilistic.flows import sampling_steps

OF_A_STATE = ('frmse_high', 'correlation_time', 'spectral_energy_error')       # metrics of a single state


def fair_crps(members, y):
    """
    Continuous ranked probability score at every point, (N, T, *space, C):

        mean_m |x_m - y| - 1/2 mean over pairs m != n of |x_m - x_n|.

    Fair, since pairs of a member with itself are left out: its expectation does not depend on M, and is
    lowest for members that are drawn as the truth is (Ferro 2014, doi 10.1002/qj.2270). Of a single member
    it is the absolute error.
    """
    n = members.shape[1]
    error = (members - y[:, None]).abs().mean(1)
    apart = 0.
    for shift in range(1, n):
        apart = apart + (members - members.roll(shift, 1)).abs().mean(1)
    return error - .5 * apart / max(1, n - 1)


def relative_crps(members, y):
    """<fair CRPS>_x / rms_x(y), (N, T, C)"""
    return ratio(fair_crps(members, y).mean(space_of(y)), rms(y))


def crps_loss(members, truth):
    """Mean fair CRPS over everything, in normalised units: members (B, M, K, *grid, C), truth (B, K, *grid,
    C)."""
    return fair_crps(members, truth).mean()


def crps(members, y):
    """The number `relative_crps` of ensemble_metrics() alone."""
    values = []
    for t in range(y.shape[1]):
        frame = members[:, :, t:t + 1].double()
        truth = y[:, t:t + 1].double()
        values.append(float(relative_crps(frame, truth).mean()))
    return sum(values) / len(values)


def spread_skill(members, y):
    """sqrt((M + 1) / M) sqrt <variance of the members>_{n,x} / rms_{n,x} of the error of their mean, for each
    frame and field, (T, C); 1 where members and truth are drawn alike."""
    n = members.shape[1]
    axes = (0, *space_of(y))
    variance = members.var(1).mean(axes)
    square = (members.mean(1) - y).square()
    spread = ((n + 1) / n * variance).sqrt()
    return ratio(spread, square.mean(axes).sqrt())


def coverage(members, y):
    """Which truths lie between the least and the largest member, (N, T, *space, C); (M - 1) / (M + 1) of
    them do where members and truth are drawn alike."""
    return (members.amin(1) <= y) & (y <= members.amax(1))


def ensemble_metrics(members, y):
    """{name: number} of an ensemble: the error of a member and of the mean, CRPS and, of several members,
    spread-skill ratio and coverage. Goes frame by frame, as metrics() does."""
    n = members.shape[1]
    values = {}
    for t in range(y.shape[1]):
        truth = y[:, t:t + 1].double()
        frame = members[:, :, t:t + 1].double()
        truth_of_members = truth.repeat_interleave(n, 0)
        of_frame = {'nrmse_member': nrmse(frame.flatten(0, 1), truth_of_members),
                    'nrmse_mean': nrmse(frame.mean(1), truth),
                    'relative_crps': relative_crps(frame, truth)}
        if n > 1:
            of_frame['spread_skill'] = spread_skill(frame, truth)
            of_frame['coverage'] = coverage(frame, truth).double()
        for name, value in of_frame.items():
            values.setdefault(name, []).append(float(value.mean()))
    result = {name: sum(of_frames) / len(of_frames) for name, of_frames in values.items()}
    if n > 1:
        result['coverage_if_calibrated'] = (n - 1) / (n + 1)
    return result


@torch.no_grad()
def ensembles(model, u, params, initial_step, batch_size, steppers, n_members, flow_steps=0, seen_at=None):
    """
    Scores of rollouts by each of `steppers`, {stepper: {metric: number}}. A stochastic stepper makes
    n_members rollouts of each trajectory.

    u (N, T, *grid, C), params, initial_step, batch_size, seen_at: as evaluation.scores.predict takes them.
    flow_steps: sampling steps of a flow; 0: those that the model has. Metrics of a single state are those of
    the first member and of the mean of all.
    """
    u0 = predicted_fields(model, u[:, initial_step - 1])
    y = predicted_fields(model, u[:, initial_step:])
    found = {}
    for name in steppers:
        module = model.stepper(name)
        n = n_members if module.stochastic else 1
        with sampling_steps(module, flow_steps):
            p = predict(model, u, params, initial_step, batch_size, seen_at=seen_at, stepper=name,
                        n_members=n)
            p = predicted_fields(model, p)
            result = {'n_members': n, 'flow_steps': getattr(module, 'n_steps', None),
                      **ensemble_metrics(p, y)}
            ms = ms_per_trajectory(model, u, params, initial_step, batch_size, stepper=name)
        for what, one in (('member', p[:, 0]), ('mean', p.mean(1))):
            values, _ = metrics(one, y, u0, model.cfg.dt)
            for metric in OF_A_STATE:
                result[f'{metric}_{what}'] = values[metric]
        found[name] = {**result, 'ms_per_trajectory': ms}
    return found
