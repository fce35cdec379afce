"""The exercises of lesson 06: sliding windows and the mixed stack."""

from __future__ import annotations

import torch
from torch import Tensor

from .exercises import Exercise


def pairs(T: int, window: int) -> int:
    """How many query-key pairs are visible in a text of T tokens?"""
    full = min(T, window)
    return T * full - full * (full - 1) // 2


def slides(layers: int, use_sliding_window: bool, max_window_layers: int) -> list[bool]:
    """For each layer, bottom first: does it slide?"""
    return [use_sliding_window and i >= max_window_layers for i in range(layers)]


def ring(read: int, window: int) -> list[int]:
    """The position in each slot after `read` tokens; -1 = empty."""
    slots = [-1] * window
    for position in range(read):
        slots[position % window] = position
    return slots


def ring_from_one(read: int, window: int) -> list[int]:
    """Token 0 goes to slot 1."""
    slots = [-1] * window
    for position in range(read):
        slots[(position + 1) % window] = position
    return slots


def in_order(read: int, window: int) -> list[int]:
    """The last tokens, oldest first."""
    kept = list(range(max(0, read - window), read))
    return kept + [-1] * (window - len(kept))


def earliest(position: int, sliding: list[bool], window: int) -> int:
    """The first position that `position` has heard of, through these layers."""
    return max(0, position - len(sliding) * (window - 1)) if all(sliding) else 0


def cache_bytes(layers: int, sliding: int, G: int, D: int, window: int, tokens: int) -> int:
    """Keys and values in bf16, `sliding` of the layers keeping no more than the window."""
    return 2 * G * D * 2 * ((layers - sliding) * tokens + sliding * min(window, tokens))


def sees(q_pos: Tensor, k_pos: Tensor, window: int | None) -> Tensor:
    """(B, T) and (B, S) -> bool (B, 1, T, S): which keys may each query see?"""
    q, k = q_pos[:, None, :, None], k_pos[:, None, None, :]
    seen = (k >= 0) & (k <= q)
    return seen if window is None else seen & (k > q - window)


def sees_padding(q_pos: Tensor, k_pos: Tensor, window: int | None) -> Tensor:
    q, k = q_pos[:, None, :, None], k_pos[:, None, None, :]
    return (k <= q) if window is None else (k <= q) & (k > q - window)


def by_place(q_pos: Tensor, k_pos: Tensor, window: int | None) -> Tensor:
    """Asks where a key lies, not which position it has."""
    at = torch.arange(k_pos.shape[1])[None].expand_as(k_pos)
    return sees(q_pos, torch.where(k_pos < 0, -1, at), window)


Q_POS = torch.tensor([[-1, -1, 0, 1], [5, 6, 7, 8]])
K_POS = torch.tensor([[-1, -1, 0, 1, 2, -1], [6, 7, 8, 3, 4, 5]])  # padding; a ring

EXERCISES = [
    Exercise(
        name="ex06_0",
        title="The visibility rule",
        answer=sees,
        cases=[(Q_POS, K_POS, 3), (Q_POS, K_POS, None), (Q_POS, K_POS, 1)],
        wrong={
            "One too many: the window counts the query itself, so k > q - window.": (
                lambda q, k, window: sees(q, k, None if window is None else window + 1)
            ),
            "Padding is seen: -1 is not in the future of anybody. There is a third condition.": (
                sees_padding
            ),
            "This asks where a key lies. In a ring, keys lie out of order: ask for its position.": (
                by_place
            ),
            "A token may see itself: k <= q.": (
                lambda q, k, window: (
                    sees(q, k, window) & (k[:, None, None, :] < q[:, None, :, None])
                )
            ),
            "Right, but turned round: True means that the query may look.": (
                lambda q, k, window: ~sees(q, k, window)
            ),
        },
    ),
    Exercise(
        name="ex06_1",
        title="Count the squares",
        answer=pairs,
        cases=[(8, 3), (5, 1), (32_768, 4_096), (4, 9)],
        wrong={
            "The first queries have fewer keys behind them than the window is wide.": (
                lambda T, window: T * window
            ),
            "Nearly: the first queries have fewer keys behind them than the window is wide.": (
                lambda T, window: T * min(T, window)
            ),
            "This counts all of the past. The window hides most of it.": (
                lambda T, window: T * (T + 1) // 2
            ),
            "The window counts the query itself, so it reaches window - 1 tokens back.": (
                lambda T, window: pairs(T, window + 1)
            ),
            "And if the window is wider than the text? It cannot see more than T tokens.": (
                lambda T, window: T * window - window * (window - 1) // 2
            ),
        },
        without={
            "loop": "Right or not, this goes through the text token by token. Find a formula."
        },
    ),
    Exercise(
        name="ex06_2",
        title="Which layers slide",
        answer=slides,
        cases=[(6, True, 4), (6, False, 2), (3, True, 3), (4, True, 70), (3, True, 0)],
        wrong={
            "These are the lower layers. The upper ones slide, whatever the name suggests.": (
                lambda layers, use, first: [use and i < first for i in range(layers)]
            ),
            "There is a switch as well: use_sliding_window off, and no layer slides.": (
                lambda layers, use, first: [i >= first for i in range(layers)]
            ),
            "One too few: layers are counted from 0, so layer max_window_layers slides.": (
                lambda layers, use, first: [use and i > first for i in range(layers)]
            ),
            "max_window_layers counts the full layers below, not the sliding ones above.": (
                lambda layers, use, first: [use and i >= layers - first for i in range(layers)]
            ),
        },
    ),
    Exercise(
        name="ex06_3",
        title="What the ring holds",
        answer=ring,
        cases=[(5, 3), (2, 4), (12, 4), (11, 4), (0, 2)],
        wrong={
            "Nothing is moved in a ring: a new token overwrites one slot, the rest stay.": in_order,
            "Token 0 goes to slot 0: the slot is the position mod the window.": ring_from_one,
            "One token too many: `read` tokens stand at positions 0 to read - 1.": (
                lambda read, window: ring(read + 1, window)
            ),
            "A slot that nothing was written to holds -1, and there are always `window` slots.": (
                lambda read, window: [position for position in ring(read, window) if position >= 0]
            ),
        },
    ),
    Exercise(
        name="ex06_4",
        title="How far the whisper goes",
        answer=earliest,
        cases=[
            (50, [True] * 4, 8),
            (10, [True] * 4, 8),
            (50, [False, True, True], 8),
            (50, [True, False], 8),
            (9, [True] * 3, 1),
        ],
        wrong={
            "The window counts the query itself: each layer adds window - 1 tokens of reach.": (
                lambda position, sliding, window: (
                    max(0, position - len(sliding) * window) if all(sliding) else 0
                )
            ),
            "This is what one layer sees. The one below it has looked further for each key.": (
                lambda position, sliding, window: (
                    max(0, position - window + 1) if all(sliding) else 0
                )
            ),
            "One full layer hears everything, wherever in the stack it is.": (
                lambda position, sliding, window: max(0, position - sum(sliding) * (window - 1))
            ),
            "No text begins before position 0.": (
                lambda position, sliding, window: (
                    position - len(sliding) * (window - 1) if all(sliding) else 0
                )
            ),
        },
    ),
    Exercise(
        name="ex06_5",
        title="Bytes in a mixed cache",
        answer=cache_bytes,
        cases=[
            (28, 14, 4, 128, 4_096, 32_768),
            (8, 4, 2, 24, 64, 40),
            (24, 0, 2, 64, 4_096, 10_000),
        ],
        wrong={
            "That is half of it: every key has a value beside it.": (
                lambda *sizes: cache_bytes(*sizes) // 2
            ),
            "A text shorter than the window fills only part of the ring.": (
                lambda layers, sliding, G, D, window, tokens: (
                    4 * G * D * ((layers - sliding) * tokens + sliding * window)
                )
            ),
            "The full layers are missing. They still keep every token.": (
                lambda layers, sliding, G, D, window, tokens: (
                    4 * G * D * sliding * min(window, tokens)
                )
            ),
            "The sliding layers are missing. They keep up to `window` tokens each.": (
                lambda layers, sliding, G, D, window, tokens: (
                    4 * G * D * (layers - sliding) * tokens
                )
            ),
        },
    ),
]
