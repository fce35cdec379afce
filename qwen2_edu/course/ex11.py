"""The exercises of lesson 11: the cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from .exercises import Exercise


def step(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """One new token: its mix (H, 1, D), and the keys and values kept from now on, (H, S+1, D)."""
    keys, values = torch.cat((keys, k), 1), torch.cat((values, v), 1)
    weights = (q @ keys.mT / q.shape[-1] ** 0.5).softmax(-1)
    return weights @ values, keys, values


def without_itself(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, ...]:
    weights = (q @ keys.mT / q.shape[-1] ** 0.5).softmax(-1)
    return weights @ values, *step(q, k, v, keys, values)[1:]


def unscaled(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    return step(q * q.shape[-1] ** 0.5, k, v, keys, values)


def by_length(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    return step(q * (q.shape[-1] / (keys.shape[1] + 1)) ** 0.5, k, v, keys, values)


def in_front(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    mixed = step(q, k, v, keys, values)[0]
    return mixed, torch.cat((k, keys), 1), torch.cat((v, values), 1)


def not_kept(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    return step(q, k, v, keys, values)[0], keys, values


def cache_bytes(layers: int, H: int, G: int, D: int, bits: int) -> int:
    """Bytes that one token takes in the cache."""
    return layers * 2 * G * D * bits // 8


def reusable(cached: list[int], ids: list[int]) -> int:
    """How many tokens of a cache serve another text? One token at least must be read."""
    same = 0
    for old, new in zip(cached, ids[:-1], strict=False):
        if old != new:
            break
        same += 1
    return same


def read_nothing(cached: list[int], ids: list[int]) -> int:
    return reusable(cached, [*ids, -1])


def equal_anywhere(cached: list[int], ids: list[int]) -> int:
    return min(sum(a == b for a, b in zip(cached, ids, strict=False)), len(ids) - 1)


def all_or_nothing(cached: list[int], ids: list[int]) -> int:
    return len(cached) if ids[: len(cached)] == cached and len(cached) < len(ids) else 0


def triangle(n: int) -> int:
    return n * (n + 1) // 2


def scores(prompt: int, new: int) -> tuple[int, int]:
    """Scores of one head, without a cache and with it, to write `new` tokens."""
    read = range(prompt, prompt + new)  # the last token that is written is not read any more
    return sum(triangle(n) for n in read), triangle(prompt + new - 1)


KV = torch.Generator().manual_seed(11)
HEADS = [torch.randn(5, 2, n, 4, generator=KV) for n in (1, 3, 6)]
STEPS = [
    (*HEADS[0][:3], HEADS[1][3], HEADS[1][4]),
    (*(3 * HEADS[0][2:5]), HEADS[2][1], HEADS[2][0]),
]

EXERCISES = [
    Exercise(
        name="ex11_1",
        title="One step with a cache",
        answer=step,
        cases=STEPS,
        wrong={
            "The new token sees itself too: add its key and value before you look.": without_itself,
            "The scores are not divided by the square root of D.": unscaled,
            "Divide by the square root of D, the width of a key, not of the number of keys.": (
                by_length
            ),
            "New keys go behind the old ones, so that slot p holds position p.": in_front,
            "Return the longer keys and values, or the next step will not know this token.": (
                not_kept
            ),
        },
        tolerance=1e-5,
    ),
    Exercise(
        name="ex11_2",
        title="Scores, with and without",
        answer=scores,
        cases=[(4, 3), (1, 1), (20, 100), (7, 2)],
        wrong={
            "The token written last is not read any more: nothing is asked after it.": (
                lambda prompt, new: (
                    sum(triangle(n) for n in range(prompt, prompt + new + 1)),
                    triangle(prompt + new),
                )
            ),
            "Causal: a token sees itself and what stands before, half of the square.": (
                lambda prompt, new: (
                    sum(n * n for n in range(prompt, prompt + new)),
                    (prompt + new - 1) ** 2,
                )
            ),
            "The prompt is read as well, in the first step.": (
                lambda prompt, new: (
                    scores(prompt, new)[0] - triangle(prompt),
                    scores(prompt, new)[1] - triangle(prompt),
                )
            ),
            "With a cache the prompt is read too: its own triangle, once.": (
                lambda prompt, new: (
                    scores(prompt, new)[0],
                    scores(prompt, new)[1] - triangle(prompt),
                )
            ),
            "With and without are the wrong way round. Without comes first.": (
                lambda prompt, new: scores(prompt, new)[::-1]
            ),
        },
        tolerance=0,
    ),
    Exercise(
        name="ex11_3",
        title="Bytes for each token",
        answer=cache_bytes,
        cases=[(28, 28, 4, 128, 16), (24, 14, 2, 64, 32), (80, 64, 8, 128, 8)],
        wrong={
            "A key and a value: there are two of them.": (
                lambda layers, H, G, D, bits: cache_bytes(layers, H, G, D, bits) // 2
            ),
            "Only the G key/value heads are kept. Queries are used once.": (
                lambda layers, H, G, D, bits: cache_bytes(layers, H, H, D, bits)
            ),
            "Those are bits. A byte has eight.": (
                lambda layers, H, G, D, bits: 8 * cache_bytes(layers, H, G, D, bits)
            ),
            "Every layer keeps its own keys and values.": (
                lambda layers, H, G, D, bits: cache_bytes(1, H, G, D, bits)
            ),
        },
        tolerance=0,
    ),
    Exercise(
        name="ex11_4",
        title="What can be used again",
        answer=reusable,
        cases=[
            ([1, 2, 3, 4], [1, 2, 5, 4, 6]),
            ([1, 2, 3], [1, 2, 3, 4, 5]),
            ([1, 2, 3], [1, 2, 3]),
            ([1, 2, 3, 4, 5], [1, 2, 3]),
            ([7, 2], [8, 2, 9]),
            ([], [4, 5]),
        ],
        wrong={
            "One token at least must be read, or there are no logits to choose from.": read_nothing,
            "After the first difference nothing fits: later keys have seen the other token.": (
                equal_anywhere
            ),
            "Part of a cache can serve too: crop it to what is common.": all_or_nothing,
        },
        tolerance=0,
    ),
]
