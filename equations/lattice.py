"""
The lattice Boltzmann method for incompressible flow in a channel, around walls of any shape.

Nine velocities in the plane, two relaxation times (Ginzburg, Verhaeghe and d'Humières, Commun. Comput. Phys. 3,
2008), the equilibrium of incompressible flow (He and Luo, J. Stat. Phys. 88, 1997). Walls lie anywhere between
cells: populations that meet one come back by linear interpolation (Bouzidi, Firdaouss and Lallemand, Phys.
Fluids 13, 2001). The only geometry is the signed distance of the cells to the nearest wall.

Units: a cell, a time step and the density are 1. The pressure is a third of the excess of the density. A
population is stored without its weight, which it has in fluid at rest.
"""
import math

import torch

AXIS = 1 / 9
DIAGONAL = 1 / 36
VELOCITIES = [                          # along x, along y, the number of the opposite one, weight at rest
    (0, 0, 0, 4 / 9),
    (1, 0, 3, AXIS),
    (0, 1, 4, AXIS),
    (-1, 0, 1, AXIS),
    (0, -1, 2, AXIS),
    (1, 1, 7, DIAGONAL),
    (-1, 1, 8, DIAGONAL),
    (-1, -1, 5, DIAGONAL),
    (1, -1, 6, DIAGONAL),
]
C_X, C_Y, OPPOSITE, WEIGHT = zip(*VELOCITIES)
PAIRS = [(1, 3), (2, 4), (5, 7), (6, 8)]
IN = [1, 5, 8]                          # those along x
OUT = [3, 7, 6]                         # their opposites

# (even time - 1/2)(odd time - 1/2) of the relaxation times. With 3/16 a plane wall of bounce-back lies half-way
# between cells. Where fluid enters by bounce-back, a layer of the width 2 u (odd time - 1/2) grows without
# limit, unless it is thinner than a cell: there the product is small.
PRODUCT = 3 / 16
PRODUCT_IN = .005
FLAT = 4                                # cells from the inflow with PRODUCT_IN,
RISE = 12                               # and cells on which it rises


def moments(f):
    """Excess of the density and velocity, (...) each, of populations f (9, ...)."""
    upwards = f[5] - f[7]
    downwards = f[8] - f[6]
    u = f[1] - f[3] + upwards + downwards
    v = f[2] - f[4] + upwards - downwards
    return f.sum(0), u, v


def risen(t):
    """Speed of an inflow that rises smoothly from 0 at t = 0 to 1 at t = 1, where it stays."""
    return .5 - .5 * math.cos(math.pi * min(1., t))


class Channel:
    """
    A batch of channels of X x Y cells, whose fluid is at rest at first.

    The flow enters at x = 0 with the parabola of plane Poiseuille flow; y = 0 and y = Y are walls. At x = X the
    pressure is 0, but sound leaves: the pressure is that of a plane wave whose velocity is the excess of the
    mean velocity over the inflow's. (Populations of the cell beyond are those of the last cell, with another
    density: Guo, Zheng and Shi, Chin. Phys. 11, 2002.)
    """

    def __init__(self, distance, inflow, viscosity, dtype=torch.float32):
        """distance (B, X, Y): of the cell centres to the nearest obstacle, positive in the fluid. inflow: its
        mean velocity. viscosity (B,)."""
        B, X, Y = distance.shape
        device = distance.device
        distance = distance.double()
        self.inflow = inflow
        self.f = torch.zeros(9, B, X + 2, Y + 2, device=device, dtype=dtype)     # a ring of ghost cells
        self.inside = self.f[:, :, 1:-1, 1:-1]
        self.fluid = distance > 0
        # relaxation rates
        nu = viscosity.to(device, torch.float64).view(-1, 1, 1)
        x = torch.arange(X, dtype=nu.dtype, device=device) + .5
        rise = (x - FLAT) / RISE
        product = PRODUCT_IN * (PRODUCT / PRODUCT_IN) ** rise.clamp(0, 1)
        odd_time = product[:, None] / (3 * nu) + .5
        even_time = 3 * nu + .5
        even_rate = 1 / even_time
        odd_rate = 1 / odd_time
        self.even_rate = even_rate.to(dtype)
        self.odd_rate = odd_rate.to(dtype)
        self.enters = self.entering(nu[:, 0], Y)
        self.find_links(distance)

    def entering(self, nu, Y):
        """What populations that enter exceed those that leave by, in plane Poiseuille flow: a part (3, B, Y) that
        is linear in its speed and one that is quadratic. Rows are those of the ghost cells."""
        y = torch.arange(Y, dtype=nu.dtype, device=nu.device) + .5
        gradient = -36 * nu * self.inflow / Y ** 2                   # of the density, along x
        linear = []
        square = []
        for k, opposite in zip(IN, OUT):
            enters = self.steady(k, y / Y, Y, nu, gradient)
            leaves = self.steady(opposite, (y + C_Y[k]) / Y, Y, nu, gradient)
            linear.append(enters[0] - leaves[0] - WEIGHT[k] * gradient)
            square.append(enters[1] - leaves[1])
        return torch.stack(linear).to(self.f), torch.stack(square).to(self.f)

    def steady(self, k, y, Y, nu, gradient):
        """Population k of plane Poiseuille flow after a collision, where the density is 1: the linear and the
        quadratic part, each its equilibrium less what the slope of the flow takes."""
        u = 6 * self.inflow * y * (1 - y)
        slope = 6 * self.inflow * (1 - 2 * y) / Y
        even_lag = 3 * nu - .5                                       # relaxation times, less one step
        odd_lag = PRODUCT_IN / (3 * nu) - .5
        shear = 3 * C_X[k] * C_Y[k] * slope
        linear = 3 * C_X[k] * u - even_lag * shear - odd_lag * C_X[k] * gradient
        square = 3 * u ** 2 - odd_lag * 6 * C_Y[k] * u * slope
        return WEIGHT[k] * linear, WEIGHT[k] * square

    def find_links(self, distance):
        """Tables of the links from a fluid cell to one beyond a wall: what comes back is lerp(f[second],
        f[first], share), and streams from f[slot]. All are numbers in the flat f."""
        B, X, Y = distance.shape
        padded = distance.new_full((B, X + 2, Y + 2), -.5)
        padded[:, 1:-1, 1:-1] = distance
        is_end = torch.zeros_like(padded, dtype=torch.bool)
        is_end[:, [0, -1], 1:-1] = True
        distance = padded.flatten()
        is_wall = (distance <= 0) & ~is_end.flatten()
        is_fluid = distance > 0
        size = len(distance)
        fluid = is_fluid.nonzero().flatten()
        links = []
        for k in range(1, 9):
            step = C_X[k] * (Y + 2) + C_Y[k]
            cell = fluid[is_wall[fluid + step]]
            row = cell % (Y + 2) + C_Y[k]
            is_side = (row == 0) | (row == Y + 1)                    # a wall of the channel is half-way
            near = distance[cell]
            far = torch.where(is_side, -near, distance[cell + step])
            q = near / (near - far)                                  # distance of the wall, in links
            is_near = (q < .5) & is_fluid[cell - step]
            behind = k * size + cell - step
            returning = OPPOSITE[k] * size + cell
            second = torch.where(is_near, behind, returning)
            share = torch.where(is_near, 2 * q, .5 / q.clamp_min(.5))
            first = k * size + cell
            links.append((returning + step, first, second, share, ~is_side))
        self.slot, self.first, self.second, share, is_obstacle = map(torch.cat, zip(*links))
        self.share = share.to(self.f.dtype)
        size_of_sample = (X + 2) * (Y + 2)
        self.sample = self.slot % size // size_of_sample
        n_links = self.sample.bincount(minlength=B)
        self.part = 1 / n_links.to(self.f.dtype)                     # of a link in its sample
        self.obstacle_links = is_obstacle.nonzero().flatten()

    def step(self, speed):
        """One time step. speed: of the inflow, as a fraction of the whole."""
        self.fill_ghosts(speed)
        self.bounce()
        rest = self.streamed(0)
        even = []
        odd = []
        density = rest
        for a, b in PAIRS:
            f_a = self.streamed(a)
            f_b = self.streamed(b)
            even.append(f_a + f_b)
            odd.append(f_a - f_b)
            density = density + even[-1]
        u = odd[0] + odd[2] - odd[3]
        v = odd[1] + odd[2] + odd[3]
        base = density - 1.5 * (u * u + v * v)
        rest = torch.lerp(rest, WEIGHT[0] * base, self.even_rate)
        for pair, along in enumerate([u, v, u + v, v - u]):
            weight = 2 * AXIS if pair < 2 else 2 * DIAGONAL
            even_equilibrium = weight * (base + 4.5 * along * along)
            odd_equilibrium = 3 * weight * along
            even[pair] = torch.lerp(even[pair], even_equilibrium, self.even_rate)
            odd[pair] = torch.lerp(odd[pair], odd_equilibrium, self.odd_rate)
        self.inside[0] = rest
        for pair, (a, b) in enumerate(PAIRS):
            half = even[pair] / 2
            torch.add(half, odd[pair], alpha=.5, out=self.inside[a])
            torch.sub(half, odd[pair], alpha=.5, out=self.inside[b])

    def streamed(self, k):
        """Population k that arrives in each cell, (B, X, Y)."""
        X, Y = self.fluid.shape[1:]
        x = 1 - C_X[k]
        y = 1 - C_Y[k]
        return self.f[k, :, x:x + X, y:y + Y]

    def bounce(self):
        """What comes back from walls, in the order of the links; it is also written to where it streams from.
        Interpolation would lose up to 2 % of the flow at curved walls, so the links of a sample share the loss."""
        flat = self.f.view(-1)
        leaves = flat[self.first]
        back = torch.lerp(flat[self.second], leaves, self.share)
        gain = torch.zeros_like(self.part)
        gain.index_add_(0, self.sample, back - leaves)
        gain *= self.part
        back -= gain[self.sample]
        flat[self.slot] = back
        return back

    def fill_ghosts(self, speed):
        """Populations of the cells beyond both ends; links fill the corners."""
        linear, square = self.enters
        excess = speed * linear + speed ** 2 * square
        ghosts = self.f[:, :, 0]
        first_cells = self.f[:, :, 1]
        n_y = ghosts.shape[-1]
        for k, opposite, more in zip(IN, OUT, excess):
            low = 1 + max(0, -C_Y[k])
            high = n_y - 1 - max(0, C_Y[k])
            leaves = first_cells[opposite, :, low + C_Y[k]:high + C_Y[k]]
            ghosts[k, :, low:high] = leaves + more[:, low - 1:high - 1]
        last_cells = self.f[:, :, -2, 1:-1]
        density, u, v = moments(last_cells)                          # (B, Y)
        wave = 3 ** .5 * (u.mean(1, keepdim=True) - speed * self.inflow)
        for k in OUT:
            self.f[k, :, -1, 1:-1] = last_cells[k] + WEIGHT[k] * (wave - density)

    def fields(self):
        """Velocity along x and y and pressure, (B, X, Y, 3), 0 outside the fluid."""
        density, u, v = moments(self.inside)
        return torch.stack([u, v, density / 3], -1).where(self.fluid[..., None], 0.)     # walls hold anything

    def forces(self, label, n):
        """Force of the fluid on each of n obstacles, (B, n, 2): momentum that their links take up in the next
        step. label (B, X, Y): number of the obstacle that is nearest to a cell."""
        B, X, Y = self.fluid.shape
        links = self.obstacle_links
        first = self.first[links]
        size = self.f[0].numel()
        k = first // size
        cell = first % size
        x = cell // (Y + 2) % (X + 2) - 1
        y = cell % (Y + 2) - 1
        sample = self.sample[links]
        table = torch.tensor([WEIGHT, C_X, C_Y], device=k.device, dtype=torch.float64)
        weight, c_x, c_y = table[:, k]
        taken = self.bounce()[links] + self.f.view(-1)[first]
        taken = taken.double() + 2 * weight                          # what arrives and what comes back
        force = torch.stack([c_x * taken, c_y * taken], 1)
        total = force.new_zeros(B * n, 2)
        total.index_add_(0, sample * n + label[sample, x, y], force)
        return total.view(B, n, 2)
