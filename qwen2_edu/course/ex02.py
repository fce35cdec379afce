"""The exercises of lesson 02: embeddings and RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..layers import RMSNorm
from .exercises import Exercise


def lookup_gradient(ids: Tensor, upstream: Tensor, V: int) -> Tensor:
    """The gradient of the table (V, E), from ids (T,) and the gradient of their vectors (T, E)."""
    return one_hot(ids, V).to(upstream.dtype).T @ upstream


def overwritten(ids: Tensor, upstream: Tensor, V: int) -> Tensor:
    """The last occurrence of a word replaces the earlier ones."""
    gradient = torch.zeros(V, upstream.shape[1])
    for t, i in enumerate(ids.tolist()):
        gradient[i] = upstream[t]
    return gradient


def averaged(ids: Tensor, upstream: Tensor, V: int) -> Tensor:
    count = one_hot(ids, V).sum(0).clamp(min=1)
    return lookup_gradient(ids, upstream, V) / count[:, None]


def undo(y: Tensor, weight: Tensor, mean_square: Tensor, eps: float) -> Tensor:
    """x (T, E) from its norm y (T, E) and the one number per vector that the norm took, (T, 1)."""
    return y / weight * (mean_square + eps).sqrt()


def norm_gradient(x: Tensor, weight: Tensor, upstream: Tensor, eps: float) -> Tensor:
    """The gradient of x (T, E), as autograd has it."""
    norm = RMSNorm(x.shape[-1], eps)
    norm.weight.data.copy_(weight)
    leaf = x.clone().requires_grad_()
    norm(leaf).backward(upstream)
    return leaf.grad


def one_over_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def root_is_constant(x: Tensor, weight: Tensor, upstream: Tensor, eps: float) -> Tensor:
    return upstream * weight * one_over_rms(x, eps)


def weight_came_late(x: Tensor, weight: Tensor, upstream: Tensor, eps: float) -> Tensor:
    """The part along x is taken from `upstream` before the weight is on it."""
    scale = one_over_rms(x, eps)
    unit = x * scale
    return weight * scale * (upstream - unit * (upstream * unit).mean(-1, keepdim=True))


def summed(x: Tensor, weight: Tensor, upstream: Tensor, eps: float) -> Tensor:
    scale = one_over_rms(x, eps)
    unit, g = x * scale, upstream * weight
    return scale * (g - unit * (g * unit).sum(-1, keepdim=True))


X = torch.tensor([[3.0, -1.0, 1.0, 5.0], [4.0, -2.0, 0.0, 4.0]])
TINY = torch.tensor([[0.001, 0.002, -0.001, 0.0], [0.0, 0.001, 0.0, 0.0]])
WEIGHT = torch.tensor([0.5, 2.0, 1.5, -1.0])
UPSTREAM = torch.tensor([[1.0, 0.5, -1.0, 2.0], [-0.5, 1.0, 3.0, 1.0]])
MATRIX = torch.arange(16.0).view(4, 4) - 7


def projected(x: Tensor, weight: Tensor, upstream: Tensor, eps: float) -> Tensor:
    h = upstream * weight
    along = (h * x).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True)
    return one_over_rms(x, eps) * (h - x * along)


def undo_case(x: Tensor, eps: float) -> tuple:
    return x * one_over_rms(x, eps) * WEIGHT, WEIGHT, x.pow(2).mean(-1, keepdim=True), eps


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (T, E) to root-mean-square 1 in fp32, back to its dtype, then times the weight (E,)."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def low_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


EXERCISES = [
    Exercise(
        name="ex02_0",
        title="RMSNorm",
        answer=rms_norm,
        cases=[
            (X, WEIGHT, 1e-6),
            (TINY, WEIGHT, 1e-6),
            (300 * X.half(), WEIGHT.half(), 1e-6),
            ((0.77 * X).bfloat16(), (1.37 * WEIGHT).bfloat16(), 1e-6),
        ],
        wrong={
            "Right in fp32. In 16 bits, do the squares, the mean and the root in fp32.": low_norm,
            "The weight comes after the rounding: back to x's dtype first, then multiply.": (
                lambda x, weight, eps: rms_norm(x.float(), weight.float(), eps).to(x.dtype)
            ),
            "ε stands outside the root. Tiny vectors show the difference.": (
                lambda x, weight, eps: (
                    weight
                    * (x.float() / (x.float().pow(2).mean(-1, keepdim=True).sqrt() + eps)).to(x)
                )
            ),
            "The weight is missing.": lambda x, weight, eps: rms_norm(x, weight / weight, eps),
            "That takes the mean away first, which is LayerNorm.": (
                lambda x, weight, eps: rms_norm(x - x.mean(-1, keepdim=True), weight, eps)
            ),
            "That is the sum of the squares. The mean is wanted, over the last dimension.": (
                lambda x, weight, eps: (
                    weight
                    * (x.float() * torch.rsqrt(x.float().pow(2).sum(-1, keepdim=True) + eps)).to(x)
                )
            ),
        },
        tolerance=1e-4,
    ),
    Exercise(
        name="ex02_1",
        title="Norm a vector without a computer",
        answer=[0.2, 1.4, 2.0, 2.0],
        cases=None,
        wrong={
            "That divides by the length of the vector. The root is taken of the *mean* square.": (
                [0.1, 0.7, 1.0, 1.0]
            ),
            "That divides by the mean square itself. Take its root first.": (
                [0.04, 0.28, 0.4, 0.4]
            ),
            "The unit vector is right. Now the weight, number by number.": [0.2, 1.4, 1.0, 1.0],
        },
        tolerance=1e-3,
    ),
    Exercise(
        name="ex02_2",
        title="What the table learns",
        answer=lookup_gradient,
        cases=[
            (torch.tensor([0, 1, 2, 3, 0, 4]), torch.arange(24.0).view(6, 4) - 9, 6),
            (torch.tensor([2, 2, 2]), torch.tensor([[1.0, -1.0], [0.5, 2.0], [4.0, 0.0]]), 3),
        ],
        wrong={
            "A word that stands twice keeps its last gradient only. Row 0 needs the sum of both "
            "(and `gradient[ids] += upstream` does not add twice either).": overwritten,
            "A repeated word gets the average here. Two uses pull twice as hard: add them up.": (
                averaged
            ),
            "Row t of this belongs to a position. The table wants a row for each word: row i is "
            "the sum of `upstream` where word i stands.": lambda ids, upstream, V: (
                torch.nn.functional.one_hot(ids, V).float() @ upstream
            ),
        },
    ),
    Exercise(
        name="ex02_3",
        title="Undo the norm",
        answer=undo,
        cases=[undo_case(X, 1e-6), undo_case(TINY, 1e-6)],
        wrong={
            "Right for ordinary vectors, wrong for tiny ones. What else stood under the root?": (
                lambda y, weight, mean_square, eps: y / weight * mean_square.sqrt()
            ),
            "The weight was multiplied in after the root. It has to come out again.": (
                lambda y, weight, mean_square, eps: y * (mean_square + eps).sqrt()
            ),
            "The norm divided by a root, not by the mean square.": (
                lambda y, weight, mean_square, eps: y / weight * (mean_square + eps)
            ),
            "This divides by the root once more. To undo, multiply.": (
                lambda y, weight, mean_square, eps: y / weight * (mean_square + eps).rsqrt()
            ),
        },
    ),
    Exercise(
        name="ex02_4",
        title="Fold the weight away",
        answer=lambda weight, matrix: matrix * weight,
        cases=[
            (WEIGHT, MATRIX),
            (torch.tensor([2.0, 0.5]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
        ],
        wrong={
            "This scales the rows, which are the outputs. The weight acts on the inputs.": (
                lambda weight, matrix: matrix * weight[:, None]
            ),
            "Dividing takes the weight out. The matrix has to do the weight's work itself.": (
                lambda weight, matrix: matrix / weight
            ),
            "A vector came out: @ adds the features up. Scaling keeps the matrix a matrix.": (
                lambda weight, matrix: matrix @ weight
            ),
        },
    ),
    Exercise(
        name="ex02_5",
        title="The gradient of the norm",
        answer=norm_gradient,
        cases=[(X, WEIGHT, UPSTREAM, 1e-6), (TINY, WEIGHT, UPSTREAM * 0.001, 1e-6)],
        wrong={
            "This treats the root as a constant. It depends on x too, so a part is missing.": (
                root_is_constant
            ),
            "Put the weight on the incoming gradient first, then take away the part along x.": (
                weight_came_late
            ),
            "The part along x is too large: the root is taken of a mean, so there is a 1/E.": (
                summed
            ),
            "Right for ordinary vectors. With ε the result is not quite at a right angle: the part "
            "along x carries s³, not s over the squared length.": projected,
        },
        tolerance=1e-4,
        without={
            name: "Right, but autograd did it. Find the formula, and let autograd check you."
            for name in ("autograd", "backward", "vjp", "vjp_fn", "jacrev")
        },
    ),
]
