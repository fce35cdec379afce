"""Solutions to lesson 03. Try first: the checker's hints point further than you might think."""

import math

import torch


def my_apply_rope(x, cos, sin):
    # Number i is paired with number i + D/2, so the quarter turn of all pairs swaps two blocks,
    # with a minus on the one that comes to the front.
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def my_turn(x, angle):
    # Both new numbers need both old ones, so take the old ones out first.
    # Turning against the clock, the minus goes with the sine in the first number.
    a, b = x[..., 0], x[..., 1]
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)


def my_wavelengths(D, theta):
    # Pair i turns by theta ** (-2i/D) radians per position, and a full turn is 2 pi radians.
    # The quotient of the two is the number of positions a turn takes.
    speed = theta ** -(torch.arange(0, D, 2) / D)
    return 2 * math.pi / speed


def my_positions(cached, T):
    # The cached keys stand at 0 ... cached - 1, so the first new token stands at `cached`.
    # The leading 1 is the batch: every row has these positions.
    return torch.arange(cached, cached + T)[None]


def my_to_halves(weight, H):
    # Row 2i of a head is the first of pair i, row 2i + 1 the second: view them as (pair, which).
    # Swapping these two axes puts all the firsts before all the seconds, head by head.
    D, E = weight.shape[0] // H, weight.shape[1]
    return weight.view(H, D // 2, 2, E).transpose(1, 2).reshape(H * D, E)


# cos and sin carry the factor 0.1 ln 8 + 1, so a turned query does, and so does a turned key.
# Their product, the score, carries it twice.
my_growth = (0.1 * math.log(8) + 1) ** 2

SOLUTIONS = {
    "ex03_0": my_apply_rope,
    "ex03_1": my_turn,
    "ex03_2": my_wavelengths,
    "ex03_3": my_positions,
    "ex03_4": my_to_halves,
    "ex03_5": my_growth,
}
