"""
The lattice Boltzmann method for incompressible flow in a channel, around walls of any shape.

Nine velocities in the plane, two relaxation times (Ginzburg, Verhaeghe and d'Humières, Commun. Comput. Phys. 3,
2008), the equilibrium of incompressible flow (He and Luo, J. Stat. Phys. 88, 1997). Walls lie anywhere between
cells: populations that meet one come back by linear interpolation (Bouzidi, Firdaouss and Lallemand, Phys.
Fluids 13, 2001). The only geometry is the signed distance of the cells to the nearest wall.

Units: a cell, a time step and the density are 1. The pressure is a third of the excess of the density. A
population is stored without its weight, which it has in fluid at rest.
"""
import torch

C_X = (0, 1, 0, -1, 0, 1, -1, -1, 1)    # the nine velocities
C_Y = (0, 0, 1, 0, -1, 1, 1, -1, -1)
WEIGHT = (4 / 9, *[1 / 9] * 4, *[1 / 36] * 4)
OPPOSITE = (0, 3, 4, 1, 2, 7, 8, 5, 6)
PAIRS = ((1, 3), (2, 4), (5, 7), (6, 8))
IN = (1, 5, 8)                          # velocities along x
OUT = (3, 7, 6)                         # their opposites

# (even time - 1/2)(odd time - 1/2) of the relaxation times. With 3/16 a plane wall of bounce-back lies half-way
# between cells. Where fluid enters by bounce-back, a layer of the width 2 u (odd time - 1/2) grows without
# limit, unless it is thinner than a cell: there the product is small.
PRODUCT = 3 / 16
PRODUCT_IN = .005
FLAT, RISE = 4, 12                      # cells from the inflow with PRODUCT_IN, and on which it rises


def equilibrium(k, density, u, v):
    """Population of the velocity k in equilibrium. density: its excess over 1."""
    along = C_X[k] * u + C_Y[k] * v
    return WEIGHT[k] * (density + 3 * along + 4.5 * along ** 2 - 1.5 * (u * u + v * v))


def moments(f):
    """Excess of the density and velocity, (...) each, of populations f (9, ...)."""
    u = f[1] + f[5] + f[8] - f[3] - f[6] - f[7]
    v = f[2] + f[5] + f[6] - f[4] - f[7] - f[8]
    return f.sum(0), u, v


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
        self.inflow = inflow
        self.f = torch.zeros(9, B, X + 2, Y + 2, device=device, dtype=dtype)     # a ring of ghost cells
        self.inside = self.f[:, :, 1:-1, 1:-1]
        nu = viscosity.to(device, torch.float64).view(-1, 1, 1)
        x = torch.arange(X, device=device, dtype=torch.float64) + .5
        rise = ((x - FLAT) / RISE).clamp(0, 1)
        product = PRODUCT_IN * (PRODUCT / PRODUCT_IN) ** rise[:, None]
        self.even_rate = (1 / (3 * nu + .5)).to(dtype)
        self.odd_rate = (1 / (product / (3 * nu) + .5)).to(dtype)
        self.enters = self.entering(nu[:, 0], Y)
        self.find_links(distance.to(torch.float64))

    def entering(self, nu, Y):
        """What populations that enter exceed those that leave by, in plane Poiseuille flow: a part (3, B, Y) that
        is linear in its speed and one that is quadratic. Rows are those of the ghost cells."""
        even_time = 3 * nu + .5
        odd_time = PRODUCT_IN / (3 * nu) + .5
        gradient = -36 * nu * self.inflow / Y ** 2                   # of the density, along x

        def population(k, y):
            """Equilibrium and deviation from it, after a collision."""
            u = 6 * self.inflow * y * (1 - y)
            slope = 6 * self.inflow * (1 - 2 * y) / Y
            even = 3 * C_X[k] * C_Y[k] * slope
            linear = 3 * C_X[k] * u - (even_time - 1) * even - (odd_time - 1) * C_X[k] * gradient
            return WEIGHT[k] * linear, WEIGHT[k] * (3 * u * u - (odd_time - 1) * 6 * C_Y[k] * u * slope)

        y = (torch.arange(Y, dtype=torch.float64, device=nu.device) + .5) / Y
        parts = []
        for k, opposite in zip(IN, OUT):
            linear, square = population(k, y)
            linear_out, square_out = population(opposite, y + C_Y[k] / Y)
            parts.append((linear - linear_out - WEIGHT[k] * gradient, square - square_out))
        return [torch.stack(part).to(self.f) for part in zip(*parts)]

    def find_links(self, distance):
        """Tables of the links from a fluid cell to one beyond a wall: what comes back is lerp(f[second],
        f[first], share), and streams from f[slot]. All are numbers in the flat f."""
        B, X, Y = distance.shape
        padded = torch.full((B, X + 2, Y + 2), -.5, dtype=distance.dtype, device=distance.device)
        padded[:, 1:-1, 1:-1] = distance
        is_fluid = padded > 0
        is_end = torch.zeros_like(is_fluid)
        is_end[:, [0, -1], 1:-1] = True
        padded, fluid, end = padded.flatten(), is_fluid.flatten(), is_end.flatten()
        size = padded.numel()
        here = fluid.nonzero().flatten()
        y = here % (Y + 2)
        links = []
        for k in range(1, 9):
            step = C_X[k] * (Y + 2) + C_Y[k]
            is_link = ~fluid[here + step] & ~end[here + step]
            cell = here[is_link]
            beyond = cell + step
            row = y[is_link] + C_Y[k]
            is_side = (row == 0) | (row == Y + 1)                    # a wall of the channel is half-way
            far = torch.where(is_side, -padded[cell], padded[beyond])
            q = padded[cell] / (padded[cell] - far)                  # distance of the wall, in links
            is_near = (q < .5) & fluid[cell - step]
            second = torch.where(is_near, k * size + cell - step, OPPOSITE[k] * size + cell)
            share = torch.where(is_near, 2 * q, .5 / q.clamp_min(.5))
            links.append((OPPOSITE[k] * size + beyond, k * size + cell, second, share, ~is_side))
        self.slot, self.first, self.second, share, is_obstacle = map(torch.cat, zip(*links))
        self.share = share.to(self.f.dtype)
        self.sample = self.slot % size // ((X + 2) * (Y + 2))
        self.link_share = 1 / self.sample.bincount(minlength=B).to(self.f.dtype)
        self.obstacle_links = is_obstacle.nonzero().flatten()
        self.fluid = is_fluid[:, 1:-1, 1:-1]

    def step(self, speed):
        """One time step. speed: of the inflow, as a fraction of the whole."""
        self.fill_ghosts(speed)
        self.bounce()
        X, Y = self.fluid.shape[1:]
        g = [self.f[k, :, 1 - C_X[k]:1 - C_X[k] + X, 1 - C_Y[k]:1 - C_Y[k] + Y] for k in range(9)]
        even = [g[a] + g[b] for a, b in PAIRS]
        odd = [g[a] - g[b] for a, b in PAIRS]
        u = odd[0] + odd[2] - odd[3]
        v = odd[1] + odd[2] + odd[3]
        base = g[0] + even[0] + even[1] + even[2] + even[3] - 1.5 * (u * u + v * v)
        rest = torch.lerp(g[0], WEIGHT[0] * base, self.even_rate)
        for pair, along in enumerate((u, v, u + v, v - u)):
            weight = 2 * WEIGHT[PAIRS[pair][0]]
            even[pair] = torch.lerp(even[pair], weight * (base + 4.5 * along * along), self.even_rate)
            odd[pair] = torch.lerp(odd[pair], 3 * weight * along, self.odd_rate)
        self.inside[0] = rest
        for (a, b), plus, minus in zip(PAIRS, even, odd):
            torch.add(plus, minus, out=self.inside[a]).mul_(.5)
            torch.sub(plus, minus, out=self.inside[b]).mul_(.5)

    def bounce(self):
        """What comes back from walls, in the order of the links; it is also written to where it streams from.
        Interpolation would lose up to 2 % of the flow at curved walls, so the links of a sample share the loss."""
        flat = self.f.view(-1)
        leaves = flat[self.first]
        back = torch.lerp(flat[self.second], leaves, self.share)
        gain = torch.zeros_like(self.link_share).index_add_(0, self.sample, back - leaves)
        back -= (gain * self.link_share)[self.sample]
        flat[self.slot] = back
        return back

    def fill_ghosts(self, speed):
        """Populations of the cells beyond both ends; links fill the corners."""
        f = self.f
        Y = f.shape[-1] - 2
        linear, square = self.enters
        excess = speed * linear + speed ** 2 * square
        for i, (k, opposite) in enumerate(zip(IN, OUT)):
            low, high = max(0, -C_Y[k]), Y - max(0, C_Y[k])
            leaves = f[opposite, :, 1, 1 + low + C_Y[k]:1 + high + C_Y[k]]
            torch.add(leaves, excess[i, :, low:high], out=f[k, :, 0, 1 + low:1 + high])
        density, u, v = moments(f[:, :, -2, 1:-1])                   # (B, Y)
        wave = 3 ** .5 * (u.mean(1, keepdim=True) - speed * self.inflow)
        for k in OUT:
            torch.add(f[k, :, -2, 1:-1], WEIGHT[k] * (wave - density), out=f[k, :, -1, 1:-1])

    def fields(self):
        """Velocity along x and y and pressure, (B, X, Y, 3), 0 outside the fluid."""
        density, u, v = moments(self.inside)
        return torch.stack([u, v, density / 3], -1).where(self.fluid[..., None], 0.)     # walls hold anything

    def forces(self, label, n):
        """Force of the fluid on each of n obstacles, (B, n, 2): momentum that their links take up in the next
        step. label (B, X, Y): number of the obstacle that is nearest to a cell."""
        X, Y = self.fluid.shape[1:]
        links = self.obstacle_links
        first = self.first[links]
        k = first // self.f[0].numel()
        cell = first % self.f[0].numel()
        sample = cell // ((X + 2) * (Y + 2))
        x = cell // (Y + 2) % (X + 2) - 1
        y = cell % (Y + 2) - 1
        weight, c_x, c_y = torch.tensor([WEIGHT, C_X, C_Y], device=k.device, dtype=torch.float64)[:, k]
        taken = self.bounce()[links].double() + self.f.view(-1)[first] + 2 * weight
        total = torch.zeros(len(self.fluid) * n, 2, device=k.device, dtype=torch.float64)
        total.index_add_(0, sample * n + label[sample, x, y], taken[:, None] * torch.stack([c_x, c_y], 1))
        return total.view(-1, n, 2)
