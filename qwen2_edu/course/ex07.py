"""The exercises of lesson 07: SwiGLU and the block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from .exercises import Exercise

Function = Callable[[Tensor], Tensor]


def fused_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x (T, E) -> (T, E); gate_up (2F, E) holds the gate on top, down is (E, F)."""
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)  # (T, F) each
    return (silu(gate) * up) @ down.T


def up_on_top(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    up, gate = (x @ gate_up.T).chunk(2, dim=-1)
    return (silu(gate) * up) @ down.T


def interleaved(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    both = x @ gate_up.T
    return (silu(both[:, 0::2]) * both[:, 1::2]) @ down.T


def bent_late(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return silu(gate * up) @ down.T


def opened_only(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (torch.sigmoid(gate) * up) @ down.T


def width(E: int) -> int:
    """The smallest multiple of 128 with 3 * E * F >= 8 * E * E."""
    return -(-8 * E // (3 * 128)) * 128


def block(x: Tensor, attention: Function, mlp: Function, first: Function, second: Function):
    """Pre-norm: each part reads a normed copy and adds to the stream."""
    x = x + attention(first(x))
    return x + mlp(second(x))


def normed_line(x: Tensor, attention: Function, mlp: Function, first: Function, second: Function):
    """The additions go to the normed copies."""
    x = first(x)
    x = second(x + attention(x))
    return x + mlp(x)


def side_by_side(x: Tensor, attention: Function, mlp: Function, first: Function, second: Function):
    """The MLP does not see what attention has added."""
    return x + attention(first(x)) + mlp(second(x))


def no_second_sum(x: Tensor, attention: Function, mlp: Function, first: Function, second: Function):
    """The MLP's output replaces the stream."""
    return mlp(second(x + attention(first(x))))


def old_stream(x: Tensor, attention: Function, mlp: Function, first: Function, second: Function):
    """The MLP reads what attention added, and adds to the stream from before."""
    return x + mlp(second(x + attention(first(x))))


def post_norm(x: Tensor, attention: Function, mlp: Function, first: Function, second: Function):
    """Add first, then norm the sum."""
    x = first(x + attention(x))
    return second(x + mlp(x))


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def _first(x: Tensor) -> Tensor:
    return 1.5 * _unit(x)


def _second(x: Tensor) -> Tensor:
    return 0.5 * _unit(x)


def _attention(x: Tensor) -> Tensor:
    """Each token hears the mean of itself and those before it."""
    return x.cumsum(0) / torch.arange(1, len(x) + 1)[:, None]


def _mlp(x: Tensor) -> Tensor:
    return silu(x) * x.flip(-1)


_chance = torch.Generator().manual_seed(7)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_chance)


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x (T, E) -> (T, E); gate and up (F, E), down (E, F)."""
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


EXERCISES = [
    Exercise(
        name="ex07_0",
        title="SwiGLU",
        answer=swiglu,
        cases=[
            (_random(3, 4), _random(6, 4), _random(6, 4), _random(4, 6)),
            (_random(2, 3), _random(5, 3), _random(5, 3), _random(3, 5)),
        ],
        wrong={
            "Gate and up have changed places. SiLU bends the gate, and up says what passes.": (
                lambda x, gate, up, down: swiglu(x, up, gate, down)
            ),
            "SiLU is missing: this multiplies gate and up as they are.": (
                lambda x, gate, up, down: ((x @ gate.T) * (x @ up.T)) @ down.T
            ),
            "That is a plain sigmoid, the older GLU. SiLU multiplies it by the gate itself.": (
                lambda x, gate, up, down: (torch.sigmoid(x @ gate.T) * (x @ up.T)) @ down.T
            ),
            "SiLU bends the gate alone, before it is multiplied by up.": (
                lambda x, gate, up, down: silu((x @ gate.T) * (x @ up.T)) @ down.T
            ),
            "That is GELU. Qwen2 has SiLU.": (
                lambda x, gate, up, down: (gelu(x @ gate.T) * (x @ up.T)) @ down.T
            ),
            "The two are added. A gate multiplies.": (
                lambda x, gate, up, down: (silu(x @ gate.T) + (x @ up.T)) @ down.T
            ),
        },
        tolerance=1e-4,
    ),
    Exercise(
        name="ex07_1",
        title="SiLU, by hand",
        answer=silu,
        cases=[(torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0]),), (_random(2, 3),)],
        wrong={
            "That is the opening alone, a sigmoid. SiLU multiplies it by x itself.": torch.sigmoid,
            "That is ReLU: exactly 0 for negative numbers. SiLU leaks a little there.": torch.relu,
            "The sign in the exponent: the gate opens for large x, so e to the minus x.": (
                lambda x: x / (1 + torch.exp(x))
            ),
            "That is nearly GELU. Qwen2 has the plain sigmoid, without 1.702.": (
                lambda x: x * torch.sigmoid(1.702 * x)
            ),
            "That is GELU. SiLU multiplies x by its plain sigmoid.": gelu,
        },
        without={
            name: "That is PyTorch's own. Write it with torch.exp or torch.sigmoid."
            for name in ("silu", "SiLU", "silu_", "swish")
        },
    ),
    Exercise(
        name="ex07_2",
        title="One matrix for two",
        answer=fused_mlp,
        cases=[
            (_random(3, 4), _random(12, 4), _random(4, 6)),
            (_random(1, 2), _random(4, 2), _random(2, 2)),
        ],
        wrong={
            "You took the upper half for up. The gate is on top.": up_on_top,
            "You took every other row. Each matrix is one block: rows 0 to F - 1 are the gate.": (
                interleaved
            ),
            "SiLU bends the gate alone, before it is multiplied by up.": bent_late,
            "You opened the gate by a sigmoid. SwiGLU has silu there.": opened_only,
        },
        tolerance=1e-4,
    ),
    Exercise(
        name="ex07_3",
        title="Multiply, with other signs",
        answer=[1.0, -1.0],
        cases=None,
        wrong={
            "That adds silu(a) and silu(-a), no multiple of a. Look at the difference.": [1.0, 1.0],
            "That is the product with its sign turned: check a = b = 1.": [-1.0, 1.0],
            "That is half of it: silu(a) - silu(-a) is a already, not twice a.": [0.5, -0.5],
        },
    ),
    Exercise(
        name="ex07_4",
        title="How wide",
        answer=width,
        cases=[(3072,), (896,), (3584,), (4096,)],
        wrong={
            "That is the width of a plain MLP. A third matrix has to be paid for.": (
                lambda E: 4 * E
            ),
            "This rounds down, so it holds fewer numbers than the plain one. Round up.": (
                lambda E: 8 * E // (3 * 128) * 128
            ),
            "This rounds to the nearest multiple, which may be too small. Round up.": (
                lambda E: round(8 * E / 3 / 128) * 128
            ),
            "The size is right, and it is no multiple of 128 yet.": lambda E: 8 * E // 3,
            "Two thirds of E. It should be two thirds of 4E.": (
                lambda E: -(-2 * E // (3 * 128)) * 128
            ),
        },
    ),
    Exercise(
        name="ex07_5",
        title="The block",
        answer=block,
        cases=[
            (_random(3, 4), _attention, _mlp, _first, _second),
            (5 * _random(2, 6), _attention, _mlp, _first, _second),
        ],
        wrong={
            "You add to the normed copy. Add to the stream itself: the norm is on the branch.": (
                normed_line
            ),
            "The MLP reads the stream from before attention. It should see what attention added.": (
                side_by_side
            ),
            "The last addition is missing: the MLP replaces the stream.": no_second_sum,
            "The parts replace the stream here. Each one adds to it.": (
                lambda x, attention, mlp, first, second: mlp(second(attention(first(x))))
            ),
            "What attention added is lost: the MLP must add to the new stream, not the old one.": (
                old_stream
            ),
            "That is post-norm. Norm what each part reads, not the sum.": post_norm,
            "The two norms are swapped: input_norm comes before attention.": (
                lambda x, attention, mlp, first, second: block(x, attention, mlp, second, first)
            ),
        },
    ),
]
