"""The exercises of lesson 03: rotary position embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .exercises import Exercise


def turn(x: Tensor, angle: float) -> Tensor:
    """Turn pairs (..., 2) by `angle` radians against the clock."""
    a, b = x[..., 0], x[..., 1]
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)


def overwritten(x: Tensor, angle: float) -> Tensor:
    """The first feature is replaced before the second has used it."""
    cos, sin = math.cos(angle), math.sin(angle)
    first = x[..., 0] * cos - x[..., 1] * sin
    return torch.stack((first, first * sin + x[..., 1] * cos), dim=-1)


def wavelengths(D: int, theta: float) -> Tensor:
    """Positions until each of the D/2 pairs has turned once."""
    return 2 * math.pi * theta ** (torch.arange(0, D, 2) / D)


def positions(cached: int, T: int) -> Tensor:
    """Positions (1, T) of T new tokens behind `cached` old ones."""
    return torch.arange(cached, cached + T)[None]


def to_halves(weight: Tensor, H: int) -> Tensor:
    """Rows (H*D, E) of a projection for interleaved rotation -> rows for rotation by halves."""
    D, E = weight.shape[0] // H, weight.shape[1]
    return weight.view(H, D // 2, 2, E).transpose(1, 2).reshape(H * D, E)


def to_neighbours(weight: Tensor, H: int) -> Tensor:
    D, E = weight.shape[0] // H, weight.shape[1]
    return weight.view(H, 2, D // 2, E).transpose(1, 2).reshape(H * D, E)


GROWTH = (0.1 * math.log(8) + 1) ** 2


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, D) turned by halves; cos and sin (B, 1, T, D), each angle twice."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotate_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    quarter = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + quarter * sin


def rotate_into_turns(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The right numbers, but first, second, first, second in place of two halves."""
    return torch.stack(rotate(x, cos, sin).chunk(2, -1), dim=-1).flatten(-2)


def rotate_unsigned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin


def rotation_case(B: int, H: int, T: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    x = (torch.arange(B * H * T * D).view(B, H, T, D) * 7 % 11).float() - 5
    angles = torch.arange(1, T + 1)[:, None] * 100.0 ** (-torch.arange(0, D, 2) / D)
    angles = torch.cat((angles, angles), dim=-1).expand(B, 1, T, D)
    return x, angles.cos(), angles.sin()


EXERCISES = [
    Exercise(
        name="ex03_0",
        title="Turn queries and keys",
        answer=rotate,
        cases=[rotation_case(1, 2, 3, 8), rotation_case(2, 1, 4, 4)],
        wrong={
            "Neighbours are paired here. In this layout number i belongs to number i + D/2.": (
                rotate_neighbours
            ),
            "The quarter turn is (x, y) -> (-y, x): one of its two halves changes sign.": (
                rotate_unsigned
            ),
            "This turns the other way. The sign belongs to the half that comes to the front.": (
                lambda x, cos, sin: rotate(x, cos, -sin)
            ),
            "The halves come back in turns, as neighbours. Put them one behind the other: cat.": (
                rotate_into_turns
            ),
            "cos and sin have changed places.": lambda x, cos, sin: rotate(x, sin, cos),
        },
        tolerance=1e-4,
    ),
    Exercise(
        name="ex03_1",
        title="Turn one pair",
        answer=turn,
        cases=[
            (torch.tensor([1.0, 0.0]), math.pi / 2),
            (torch.tensor([[3.0, 1.0], [-1.0, 2.0], [0.5, 0.0]]), 0.7),
        ],
        wrong={
            "This turns the other way. Which of the two sines carries the minus?": (
                lambda x, angle: turn(x, -angle)
            ),
            "The angle is in radians already; there is nothing to convert.": (
                lambda x, angle: turn(x, math.radians(angle))
            ),
            "The second number is computed from the new first one. It needs the old one.": (
                overwritten
            ),
        },
    ),
    Exercise(
        name="ex03_2",
        title="Wavelengths",
        answer=wavelengths,
        cases=[(8, 100.0), (4, 10000.0), (16, 50.0)],
        wrong={
            "These are the speeds, in radians per position. How many positions make a full turn?": (
                lambda D, theta: 1 / theta ** (torch.arange(0, D, 2) / D)
            ),
            "Later hands are slower, so their wavelengths are longer. These get shorter.": (
                lambda D, theta: 2 * math.pi / theta ** (torch.arange(0, D, 2) / D)
            ),
            "One over the speed is the time for one radian. A full turn has more of them.": (
                lambda D, theta: theta ** (torch.arange(0, D, 2) / D)
            ),
            "The hands are too fast: pair i has exponent 2i/D, not i/D.": (
                lambda D, theta: 2 * math.pi * theta ** (torch.arange(0, D // 2) / D)
            ),
            "There are D/2 hands, one for each pair, not D.": (
                lambda D, theta: 2 * math.pi * theta ** (torch.arange(0, D) / D)
            ),
        },
        tolerance=1e-2,
    ),
    Exercise(
        name="ex03_3",
        title="Where new tokens stand",
        answer=positions,
        cases=[(0, 3), (5, 1), (5, 4)],
        wrong={
            "This starts again at 0, though keys are cached already.": (
                lambda cached, T: torch.arange(T)[None]
            ),
            "One too few: the last cached key stands at cached - 1, and the next one?": (
                lambda cached, T: torch.arange(cached - 1, cached - 1 + T)[None]
            ),
            "One too many: positions are counted from 0.": (
                lambda cached, T: torch.arange(cached + 1, cached + 1 + T)[None]
            ),
        },
    ),
    Exercise(
        name="ex03_4",
        title="Convert the weights",
        answer=to_halves,
        cases=[
            (torch.arange(48.0).view(16, 3), 2),
            (torch.arange(36.0).view(18, 2), 3),
        ],
        wrong={
            "The whole matrix was sorted at once. Each head has its own D rows.": (
                lambda weight, H: to_halves(weight, 1)
            ),
            "This is the way back, from halves to neighbours.": to_neighbours,
            "Nothing has moved. A reshape there and back keeps the order; transpose in between.": (
                lambda weight, H: weight
            ),
        },
        tolerance=0,
    ),
    Exercise(
        name="ex03_5",
        title="How much scores grow",
        answer=GROWTH,
        cases=None,
        wrong={
            "That is the factor on cos and sin. A score is a product of a turned query and a "
            "turned key.": 0.1 * math.log(8) + 1,
            "Twice is not squared: the two factors are multiplied.": 2 * (0.1 * math.log(8) + 1),
            "The logarithm is the natural one.": (0.1 * math.log10(8) + 1) ** 2,
        },
        tolerance=1e-3,
    ),
]
