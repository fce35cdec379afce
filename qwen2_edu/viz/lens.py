"""The logit lens in words: what would come next if the stream were read off on its way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import Range, check_numbers
from . import record
from .labels import chance, token_labels

LENS_ROWS = 3000  # of a page: each is a product with the whole vocabulary


@torch.no_grad()
def lens_rows(model: Any, tokenizer: Any, hidden: Tensor, count: int = 5) -> list[list[dict]]:
    """The likeliest next tokens, so many, read off the stream at any places of it.

    Args:
        hidden: (rows, E), such as one token after each layer.
    """
    rows = []
    for some in hidden.split(256):  # (256, V) at a time: V is large
        best = record.predictions(model, some).topk(count)
        words = iter(token_labels(tokenizer, best.indices.flatten().tolist()))
        for chances in best.values.tolist():
            rows.append([chance(word, p) for p, word in zip(chances, words, strict=False)])
    return rows


def lens_places(read: int, tokens: int, every: int | None) -> list[int]:
    """Which places of the stream does a page's lens read? 0 = the embedding, then after layers.

    Args:
        read: how many there are; 0 for a model without a head over the vocabulary.
        every: so many layers apart, counted from the last; 0 = none; None = as LENS_ROWS allow.
    """
    check_numbers({"lens": every}, {"lens": Range(0, whole=True)})
    if every is None:
        every = math.ceil(read * tokens / LENS_ROWS)
    return list(range(read - 1, -1, -every))[::-1] if every else []


def lens_sentence(read: int, places: Sequence[int]) -> str:
    """What does the lens of a page leave out? Nothing to say if it reads all places."""
    if not places:
        return "The logit lens was left out of this page; to_html(lens=1) writes it too."
    if len(places) == read:
        return ""
    steps = {b - a for a, b in zip(places, places[1:], strict=False)}
    where = f"every {steps.pop()} layers" if steps else "after the last layer alone"
    return f"This page reads the stream off {where}; to_html(lens=1) reads it after each."
