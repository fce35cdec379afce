"""The exercises of lesson 05: grouped queries."""

from __future__ import annotations

import torch
from torch import Tensor

from .exercises import Exercise


def repeat_kv(k: Tensor, n: int) -> Tensor:
    """Each key head n times in a row: (B, G, S, D) -> (B, G*n, S, D)."""
    return k.repeat_interleave(n, dim=1)


def bill(layers: int, H: int, G: int, D: int, tokens: int) -> int:
    """Bytes of the cache: a key and a value per layer, head and token, 2 bytes each."""
    return 2 * layers * G * D * tokens * 2


def merge(weight: Tensor, H: int, G: int) -> Tensor:
    """(H*D, E) -> (G*D, E), the mean over the heads of each group."""
    D, E = weight.shape[0] // H, weight.shape[1]
    return weight.view(G, H // G, D, E).mean(dim=1).reshape(G * D, E)


def every_gth(weight: Tensor, H: int, G: int) -> Tensor:
    """The mean over heads g, g + G, g + 2G, …, as if heads were tiled."""
    D, E = weight.shape[0] // H, weight.shape[1]
    return weight.view(H // G, G, D, E).mean(dim=0).reshape(G * D, E)


def neighbouring_rows(weight: Tensor, H: int, G: int) -> Tensor:
    """The mean over H/G rows in a row, whichever head they belong to."""
    return weight.view(-1, H // G, weight.shape[1]).mean(dim=1)


def first_of_group(weight: Tensor, H: int, G: int) -> Tensor:
    D, E = weight.shape[0] // H, weight.shape[1]
    return weight.view(G, H // G, D, E)[:, 0].reshape(G * D, E)


LEFT = 80 * 10**9 - 7_615_616_512 * 2  # bytes beside the weights
TEXT = bill(28, 28, 4, 128, 32_768)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention: q (B, H, T, D), k and v (B, G, T, D) -> (B, H, T, D)."""
    n = q.shape[1] // k.shape[1]
    return _many_heads(q, repeat_kv(k, n), repeat_kv(v, n))


def tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n = q.shape[1] // k.shape[1]
    return _many_heads(q, k.repeat(1, n, 1, 1), v.repeat(1, n, 1, 1))


def one_for_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _many_heads(q, k[:, :1], v[:, :1])


def wrong_way_back(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    (B, H, T, D), G = q.shape, k.shape[1]
    return grouped(q, k, v).view(B, G, H // G, T, D).transpose(1, 2).reshape(B, H, T, D)


def _many_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:]).triu(1).bool()
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ v


def without_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n = q.shape[1] // k.shape[1]
    scores = q @ repeat_kv(k, n).mT / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ repeat_kv(v, n)


def grouped_case(B: int, H: int, G: int, T: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    numbers = (torch.arange(B * (H + 2 * G) * T * D).view(B, -1, T, D) * 13 % 17 - 8) / 4
    q, k, v = numbers.split((H, G, G), dim=1)
    return q, k, v


EXERCISES = [
    Exercise(
        name="ex05_0",
        title="Grouped-query attention",
        answer=grouped,
        cases=[
            grouped_case(1, 4, 2, 3, 4),
            grouped_case(2, 6, 2, 4, 2),
            grouped_case(1, 2, 2, 3, 2),
        ],
        wrong={
            "Query heads in a row share a key/value head: 0, 0, 1, 1 and not 0, 1, 0, 1.": tiled,
            "Every query sees the whole text here. Hide the keys that come after it.": without_mask,
            "All query heads got key/value head 0.": one_for_all,
            "The right numbers at the wrong heads: the answers came back in another order.": (
                wrong_way_back
            ),
        },
        tolerance=1e-4,
    ),
    Exercise(
        name="ex05_1",
        title="Which head answers?",
        answer=lambda h, H, G: h // (H // G),
        cases=[(h, H, G) for H, G in ((4, 2), (28, 4), (6, 6), (8, 1)) for h in range(H)],
        wrong={
            "This deals the heads out like tiles. Query heads in a row share a key/value head.": (
                lambda h, H, G: h % G
            ),
            "That divides by the number of key/value heads. How many query heads share one?": (
                lambda h, H, G: h // G
            ),
            "This is the place within the group, not the number of the key/value head.": (
                lambda h, H, G: h % (H // G)
            ),
            "Heads have whole numbers: divide with // instead of /.": (
                lambda h, H, G: h / (H // G)
            ),
        },
    ),
    Exercise(
        name="ex05_2",
        title="Copy the heads",
        answer=repeat_kv,
        cases=[
            (torch.arange(24.0).view(1, 2, 3, 4), 3),
            (torch.arange(32.0).view(2, 2, 4, 2), 2),
        ],
        wrong={
            "The copies of a head must stand together: 0, 0, 1, 1 and not 0, 1, 0, 1.": (
                lambda k, n: k.repeat(1, n, 1, 1)
            ),
            "The tokens were repeated. Heads are dimension 1.": (
                lambda k, n: k.repeat_interleave(n, dim=2)
            ),
            "The texts were repeated. Heads are dimension 1.": (
                lambda k, n: k.repeat_interleave(n, dim=0)
            ),
            "The shape is right, but tokens and heads got mixed: put the copies behind the heads "
            "before you reshape.": (
                lambda k, n: k.repeat_interleave(n, dim=2).reshape(
                    k.shape[0], -1, k.shape[2], k.shape[3]
                )
            ),
        },
        tolerance=0,
    ),
    Exercise(
        name="ex05_3",
        title="The bill",
        answer=bill,
        cases=[(28, 28, 4, 128, 32_768), (24, 14, 2, 64, 1), (2, 8, 8, 16, 10)],
        wrong={
            "You counted keys for each query head. How many key/value heads are there?": (
                lambda layers, H, G, D, tokens: bill(layers, H, H, D, tokens)
            ),
            "Half of it is missing: a key and a value are kept, and each number takes 2 bytes.": (
                lambda layers, H, G, D, tokens: layers * G * D * tokens * 2
            ),
            "This is for a single layer.": (
                lambda layers, H, G, D, tokens: bill(1, H, G, D, tokens)
            ),
            "Queries are not kept, only keys and values.": (
                lambda layers, H, G, D, tokens: layers * (H + 2 * G) * D * tokens * 2
            ),
        },
    ),
    Exercise(
        name="ex05_4",
        title="Merge the heads",
        answer=merge,
        cases=[
            (torch.arange(48.0).view(16, 3).square(), 4, 2),
            (torch.arange(36.0).view(18, 2).square(), 6, 2),
        ],
        wrong={
            "You merged every G-th head. The heads of a group are neighbours.": every_gth,
            "You averaged rows that lie side by side. They are features of one head; the same "
            "feature of the next head is D rows further down.": neighbouring_rows,
            "You kept the first head of each group. The mean of them all is wanted.": (
                first_of_group
            ),
            "That is the sum of a group. Divide it by the number of its heads.": (
                lambda weight, H, G: merge(weight, H, G) * (H // G)
            ),
        },
    ),
    Exercise(
        name="ex05_5",
        title="How many fit?",
        answer=LEFT // TEXT,
        cases=None,
        wrong={
            "That is how many would fit with keys for each of the 28 query heads.": (
                LEFT // (7 * TEXT)
            ),
            "You forgot the weights: they take their share of the 80 GB first.": (
                80 * 10**9 // TEXT
            ),
            "The last text does not fit whole: round down.": LEFT // TEXT + 1,
            "Here a GB is 10⁹ bytes, not 2³⁰.": (80 * 2**30 - 7_615_616_512 * 2) // TEXT,
            "A key is kept and also a value: a text takes twice as much.": LEFT // (TEXT // 2),
        },
    ),
]
