"""The exercises of lesson 16: making it fast."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .exercises import Exercise

# Else torch.compile first builds a program only to see what the processor can, and starts helpers
# for one small loop: half of its time.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# What a W is, and how it becomes a float: a bf16 is the upper half of one.
FRONT = """#include <cstdint>
struct bf16 {
    uint16_t bits;
    operator float() const {
        uint32_t wide = uint32_t(bits) << 16;
        float x;
        __builtin_memcpy(&x, &wide, 4);
        return x;
    }
};
using W = %s;
extern "C" void product(const W* w, const float* x, float* y, long N, long K);
"""
W = {torch.float32: "float", torch.bfloat16: "bf16", torch.int8: "int8_t"}
SIGNATURE = "void product(const W* w, const float* x, float* y, long N, long K)"


def compiler() -> str:
    """The path of a C++ compiler; "" if there is none."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), "")


class compiled:
    """C++ as a Python function: w (N, K) in fp32, bf16 or int8, x (K,) -> y (N,), fp32.

    It is compiled when it is first called, once for each kind of weights. An untouched source,
    `...`, gives a function that answers `...`.

    Args:
        source: C++ that defines
            void product(const W* w, const float* x, float* y, long N, long K)

    Raises:
        ValueError: when called; it does not compile, and the message says why.
        RuntimeError: when called; there is no compiler.
    """

    def __init__(self, source: Any):
        self.source, self.built = source, {}

    def __call__(self, w: Tensor, x: Tensor) -> Any:
        if self.source is ...:
            return ...
        if w.dtype not in self.built:
            self.built[w.dtype] = _built(FRONT % W[w.dtype] + self.source)
        w, x, y = w.contiguous(), x.float().contiguous(), torch.full((len(w),), math.nan)
        places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (w, x, y)]
        self.built[w.dtype](*places, *map(ctypes.c_long, w.shape))
        return y


def _built(source: str) -> Any:
    if not compiler():
        raise RuntimeError("no C++ compiler here: write it in Python, def my_product(w, x)")
    with tempfile.TemporaryDirectory() as folder:
        text, library = Path(folder) / "product.cpp", Path(folder) / "product.so"
        text.write_text(source, encoding="utf-8")
        options = ["-O3", "-march=native", "-fopenmp-simd", "-shared", "-fPIC"]
        command = [compiler(), *options, str(text), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise ValueError("C++: " + (errors or ["no reason given"])[0].split("error: ")[-1])
        try:
            return ctypes.CDLL(str(library)).product
        except AttributeError:
            raise ValueError(f"C++: there is no function {SIGNATURE}") from None


# --- 0, the product of one row


def product(w: Tensor, x: Tensor) -> Tensor:
    """y[n] = sum over k of w[n, k] * x[k], added in fp32."""
    return w.float() @ x.float()


def all_in_one_sum(w: Tensor, x: Tensor) -> Tensor:
    return product(w, x).cumsum(0)


def rows_begin_at_n(w: Tensor, x: Tensor) -> Tensor:
    return product(w.flatten().unfold(0, len(x), 1)[: len(w)], x)


def by_columns(w: Tensor, x: Tensor) -> Tensor:
    return product(w.flatten().view(w.shape[1], w.shape[0]).T, x)


# --- 1, two pieces of a softmax


def merged(m1: Tensor, s1: Tensor, o1: Tensor, m2: Tensor, s2: Tensor, o2: Tensor) -> tuple:
    """Largest score, sum of exp(score - largest), and the sum of the values so weighted."""
    m = torch.maximum(m1, m2)
    a, b = (m1 - m).exp(), (m2 - m).exp()
    return m, a * s1 + b * s2, a * o1 + b * o2


def not_rescaled(m1: Tensor, s1: Tensor, o1: Tensor, m2: Tensor, s2: Tensor, o2: Tensor) -> tuple:
    return torch.maximum(m1, m2), s1 + s2, o1 + o2


def sums_alone(m1: Tensor, s1: Tensor, o1: Tensor, m2: Tensor, s2: Tensor, o2: Tensor) -> tuple:
    return *merged(m1, s1, o1, m2, s2, o2)[:2], o1 + o2


def first_alone(m1: Tensor, s1: Tensor, o1: Tensor, m2: Tensor, s2: Tensor, o2: Tensor) -> tuple:
    m = torch.maximum(m1, m2)
    a = (m1 - m).exp()
    return m, a * s1 + s2, a * o1 + o2


def other_sign(m1: Tensor, s1: Tensor, o1: Tensor, m2: Tensor, s2: Tensor, o2: Tensor) -> tuple:
    m = torch.maximum(m1, m2)
    a, b = (m - m1).exp(), (m - m2).exp()
    return m, a * s1 + b * s2, a * o1 + b * o2


def divided(m1: Tensor, s1: Tensor, o1: Tensor, m2: Tensor, s2: Tensor, o2: Tensor) -> tuple:
    m, s, o = merged(m1, s1, o1, m2, s2, o2)
    return m, s, o / s


# --- 2, what a pass yields


def kept(guess: list[int], best: list[int]) -> list[int]:
    """The guesses up to the first wrong one, and the model's own token behind them."""
    n = next((i for i, token in enumerate(guess) if token != best[i]), len(guess))
    return best[: n + 1]


def equal_anywhere(guess: list[int], best: list[int]) -> list[int]:
    same = sum(a == b for a, b in zip(guess, best, strict=False))
    return best[: same + 1]


def all_or_nothing(guess: list[int], best: list[int]) -> list[int]:
    return best if guess == best[:-1] else best[:1]


# --- 3, rounding in groups


def rounded(row: Tensor, bits: int, group: int) -> Tensor:
    """The row after rounding: each group of numbers is integers times one scale."""
    return _rounded(row, bits, group)


def _rounded(
    row: Tensor,
    bits: int,
    group: int,
    farthest: Callable = lambda w: w.abs().amax(-1, keepdim=True),
    whole: Callable = torch.round,
    steps: int = -1,
) -> Tensor:
    w = row.view(-1, group)
    scale = farthest(w) / (2 ** (bits - 1) + steps)
    return (whole(w / scale) * scale).flatten()


# --- 4, the speed to expect


def speed(blocks: int, head: int, bits: int, group: int, bandwidth: float) -> float:
    """Tokens a second: the blocks at `bits` with fp16 scales by group, the head in int8."""
    return bandwidth / (blocks * bits / 8 + blocks / group * 2 + head)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def piece(S: int, shift: float) -> tuple[Tensor, Tensor, Tensor]:
    """(largest, sum, weighted values) of S made-up scores."""
    scores, values = random(S) + shift, random(S, 3)
    weights = (scores - scores.max()).exp()
    return scores.max(), weights.sum(), weights @ values


EXERCISES = [
    Exercise(
        name="ex16_0",
        title="The product of one row",
        answer=product,
        cases=[
            (random(3, 4), random(4)),
            (random(2, 70), random(70)),
            (random(5, 9).bfloat16(), random(9)),
        ],
        wrong={
            "Each row begins with a sum of 0: set it inside the outer loop.": all_in_one_sum,
            "Row n begins K numbers after row n - 1, at w[n * K].": rows_begin_at_n,
            "A matrix lies in memory row by row: number k of row n is at n * K + k.": by_columns,
            "The last product of each row is missing: k goes up to K - 1, and takes it along.": (
                lambda w, x: product(w[:, :-1], x[:-1])
            ),
            "Add to the sum with +=. This keeps the last product alone.": (
                lambda w, x: w[:, -1].float() * x[-1]
            ),
            "The weights alone are added up. Multiply each with its number of x.": (
                lambda w, x: w.float().sum(1)
            ),
        },
        tolerance=1e-4,
    ),
    Exercise(
        name="ex16_1",
        title="Two pieces of a softmax",
        answer=merged,
        cases=[
            (*piece(4, 0.0), *piece(5, 1.5)),
            (*piece(6, 3.0), *piece(2, -1.0)),
            (*piece(3, 0.0), *piece(7, 0.0)),
        ],
        wrong={
            "Each sum is relative to its own largest score. Rescale before you add.": not_rescaled,
            "The values must be rescaled like the sums.": sums_alone,
            "The second piece may have the smaller scores: rescale both.": first_alone,
            "The other way round: times exp(old - new), which is 1 at most.": other_sign,
            "Do not divide yet. More pieces may come, so o stays a sum.": divided,
        },
    ),
    Exercise(
        name="ex16_2",
        title="What a pass yields",
        answer=kept,
        cases=[
            ([4, 7, 9], [4, 7, 2, 5]),
            ([3, 8], [3, 8, 1]),
            ([6, 2, 5], [1, 2, 5, 9]),
            ([], [7]),
            ([1, 5, 2, 8], [1, 6, 2, 8, 3]),
        ],
        wrong={
            "Behind the last kept guess the model has a token of its own: it is free.": (
                lambda guess, best: kept(guess, best)[:-1]
            ),
            "After the first wrong guess the model has read another text: keep nothing more.": (
                equal_anywhere
            ),
            "The first guesses may be right though a later one is wrong: keep those.": (
                all_or_nothing
            ),
            "These are the guesses as they came. Somebody must check them.": (
                lambda guess, best: [*guess, best[-1]]
            ),
            "At the first wrong guess comes the token of the model, not the guess.": (
                lambda guess, best: (guess + best[-1:])[: len(kept(guess, best))]
            ),
        },
        tolerance=0,
    ),
    Exercise(
        name="ex16_3",
        title="Rounding by groups",
        answer=rounded,
        cases=[
            (torch.tensor([0.1, -0.7, 0.2, 0.3, 5.0, -1.2, 0.4, 2.2]), 4, 4),
            (random(64), 8, 32),
            (-random(12).abs(), 3, 6),
        ],
        wrong={
            "One scale for the whole row. Every group has its own.": (
                lambda row, bits, group: rounded(row, bits, len(row))
            ),
            "The number farthest from 0 may be negative: take abs() before the largest.": (
                lambda row, bits, group: _rounded(
                    row, bits, group, farthest=lambda w: w.amax(-1, keepdim=True)
                )
            ),
            "Of 2 ** bits integers half are negative: the largest is 2 ** (bits - 1) - 1.": (
                lambda row, bits, group: rounded(row, bits + 1, group)
            ),
            "One step too many: the largest integer is 2 ** (bits - 1) - 1.": (
                lambda row, bits, group: _rounded(row, bits, group, steps=0)
            ),
            "To the nearest integer, please. This cuts off what stands behind the point.": (
                lambda row, bits, group: _rounded(row, bits, group, whole=torch.trunc)
            ),
            "These are the integers. Multiply them by the scale of their group.": (
                lambda row, bits, group: (
                    rounded(row, bits, group).view(-1, group)
                    / (row.view(-1, group).abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1))
                ).flatten()
            ),
        },
        tolerance=1e-4,
    ),
    Exercise(
        name="ex16_4",
        title="The speed to expect",
        answer=speed,
        cases=[
            (357_826_560, 136_134_656, 4, 32, 20e9),
            (6_525_618_176, 544_997_376, 4, 128, 100e9),
            (357_826_560, 136_134_656, 8, 64, 10e9),
        ],
        wrong={
            "The scales are read too: two bytes for each group.": (
                lambda blocks, head, bits, group, bandwidth: speed(
                    blocks, head, bits, math.inf, bandwidth
                )
            ),
            "Those are bits. A byte has eight.": (
                lambda blocks, head, bits, group, bandwidth: (
                    bandwidth / (blocks * bits + blocks / group * 2 + head)
                )
            ),
            "The head is read in every step as well, at one byte a number.": (
                lambda blocks, head, bits, group, bandwidth: speed(
                    blocks, 0, bits, group, bandwidth
                )
            ),
            "The head stays in int8: one byte a number, whatever the blocks have.": (
                lambda blocks, head, bits, group, bandwidth: speed(
                    blocks, head * bits // 8, bits, group, bandwidth
                )
            ),
            "A scale belongs to a group, so there are blocks / group of them.": (
                lambda blocks, head, bits, group, bandwidth: speed(blocks, head, bits, 1, bandwidth)
            ),
            "These are the seconds for one token. Turn it round.": (
                lambda blocks, head, bits, group, bandwidth: (
                    1 / speed(blocks, head, bits, group, bandwidth)
                )
            ),
        },
        tolerance=1e-3,
    ),
]
