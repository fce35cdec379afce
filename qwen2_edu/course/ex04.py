"""The exercises of lesson 04: from one head to many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softmax

from .exercises import Exercise


def look(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What one query (D,) fetches from keys and values (S, D)."""
    return softmax(keys @ q / q.shape[0] ** 0.5, dim=0) @ values


def masked(scores: Tensor, diagonal: int) -> Tensor:
    """Softmax over scores (T, S) without those on this diagonal and right of it."""
    future = torch.ones_like(scores).triu(diagonal).bool()
    return softmax(scores.masked_fill(future, torch.finfo(scores.dtype).min), dim=-1)


def aligned(scores: Tensor) -> int:
    """The first diagonal of the future, if the last query is the last key's own."""
    return scores.shape[1] - scores.shape[0] + 1


def weights(scores: Tensor) -> Tensor:
    """Causal weights (T, S) of scaled scores (T, S)."""
    return masked(scores, aligned(scores))


def split(x: Tensor, H: int) -> Tensor:
    """(B, T, H*D) -> (B, H, T, D)."""
    B, T, _ = x.shape
    return x.view(B, T, H, -1).transpose(1, 2)


def leaks(attend: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Does any answer of `attend`, (T, E) -> (T, E), depend on a later row of x?"""
    before = attend(x)
    for t in range(1, len(x)):
        changed = x.clone()
        changed[t:] += 1
        if not torch.allclose(attend(changed)[:t], before[:t]):
            return True
    return False


def changed_last(attend: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    changed = x.clone()
    changed[-1] += 1
    return not torch.allclose(attend(changed)[:-1], attend(x)[:-1])


def first_alone(attend: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    changed = x.clone()
    changed[1:] += 1
    return not torch.allclose(attend(changed)[0], attend(x)[0])


def first_and_last(attend: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    return first_alone(attend, x) or changed_last(attend, x)


def changed_next(attend: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Row t is asked about row t + 1 only."""
    before = attend(x)
    for t in range(1, len(x)):
        changed = x.clone()
        changed[t] += 1
        if not torch.allclose(attend(changed)[t - 1], before[t - 1]):
            return True
    return False


def probed_with_nan(attend: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    for t in range(1, len(x)):
        changed = x.clone()
        changed[t:] = torch.nan
        if attend(changed)[:t].isnan().any():
            return True
    return False


def compared_itself(attend: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    changed = x.clone()
    changed[-1] += 1
    return not torch.allclose(attend(changed), attend(x))


def changed_first(attend: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    changed = x.clone()
    changed[0] += 1
    return not torch.allclose(attend(changed)[1:], attend(x)[1:])


# What may be tested: each mixes the rows of x in its own way.


def with_past(x: Tensor) -> Tensor:
    return masked(x @ x.T, 1) @ x


def with_all(x: Tensor) -> Tensor:
    return softmax(x @ x.T, dim=-1) @ x


def alone(x: Tensor) -> Tensor:
    return 2 * x


def peeking(x: Tensor) -> Tensor:
    """As far as the row after the next."""
    return masked(x @ x.T, 3) @ x


def peeking_once(x: Tensor) -> Tensor:
    """Only the first row does, at the second: no change of the last row shows it."""
    out = with_past(x)
    out[0] = out[0] + x[1:2].sum(dim=0)  # a text of one row is allowed, too
    return out


def peeking_late(x: Tensor) -> Tensor:
    """Only the third row does: the first one is sound."""
    out = with_past(x)
    out[2:3] += x[3:4].sum(dim=0)
    return out


def peeking_last(x: Tensor) -> Tensor:
    """Only the last row but one does."""
    out = with_past(x)
    out[-2:-1] += x[-1:]
    return out


def first_apart(x: Tensor) -> Tensor:
    """Sound, and nobody hears of the first row."""
    return torch.cat((x[:1], with_past(x[1:])))


def peeking_far(x: Tensor) -> Tensor:
    """Each row at the one after the next, and not at the next."""
    out = with_past(x)
    out[:-2] += x[2:]
    return out


ROWS = torch.tensor([[0.1, 0.5], [-0.3, 0.2], [0.4, 0.0], [0.2, -0.6], [-0.1, 0.3]])


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of every head: q, k, v (B, H, T, D) -> (B, H, T, D)."""
    return masked(q @ k.mT / q.shape[-1] ** 0.5, 1) @ v


def columns_share(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The softmax runs over the queries."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:]).triu(1) > 0
    return softmax(scores.masked_fill(future, -torch.inf), dim=-2) @ v


def case(B: int, H: int, T: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.arange(3 * B * H * T * D).view(3, B, H, T, D) * 13 % 17
    q, k, v = (numbers - 8) / 4
    return q, k, v


EXERCISES = [
    Exercise(
        name="ex04_0",
        title="Attention",
        answer=attention,
        cases=[case(1, 2, 3, 4), case(2, 3, 5, 2)],
        wrong={
            "Every word sees the whole text. Hide the future before the softmax.": (
                lambda q, k, v: softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v
            ),
            "The scores are not scaled: divide by the root of D, the last dimension of q.": (
                lambda q, k, v: masked(q @ k.mT, 1) @ v
            ),
            "That divides by D. A dot product of D terms is about the root of D in size.": (
                lambda q, k, v: masked(q @ k.mT / q.shape[-1], 1) @ v
            ),
            "A score of 0 is a score like any other. Which one has an exponential of 0?": (
                lambda q, k, v: softmax((q @ k.mT / q.shape[-1] ** 0.5).tril(), dim=-1) @ v
            ),
            "Each column adds up to 1 here. A row should: softmax over the keys, dim=-1.": (
                columns_share
            ),
            "The future is struck out after the softmax, so rows no longer add up to 1.": (
                lambda q, k, v: softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1).tril() @ v
            ),
            "A word may see itself. The triangle hides one diagonal too many.": (
                lambda q, k, v: masked(q @ k.mT / q.shape[-1] ** 0.5, 0) @ v
            ),
            "These are the weights. One product is left: what do they fetch?": (
                lambda q, k, v: masked(q @ k.mT / q.shape[-1] ** 0.5, 1)
            ),
        },
        tolerance=1e-4,
    ),
    Exercise(
        name="ex04_1",
        title="One look",
        answer=look,
        cases=[
            (
                torch.tensor([1.0, 2.0]),
                torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
                torch.tensor([[3.0, 0.0], [0.0, 3.0], [1.0, -1.0]]),
            ),
            (
                torch.tensor([0.5, -1.0, 2.0, 1.0]),
                torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]]),
                torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 5.0, 0.0, 1.0]]),
            ),
        ],
        wrong={
            "The scores are not scaled: a dot product of D terms is about the root of D in size.": (
                lambda q, keys, values: softmax(keys @ q, dim=0) @ values
            ),
            "The scores are divided by D. Their typical size is the root of D.": (
                lambda q, keys, values: softmax(keys @ q / q.shape[0], dim=0) @ values
            ),
            "The scale is the width of the query, D, not the number of keys, S.": (
                lambda q, keys, values: softmax(keys @ q / len(keys) ** 0.5, dim=0) @ values
            ),
            "These are the weights. One step is left: what do they fetch?": (
                lambda q, keys, values: softmax(keys @ q / q.shape[0] ** 0.5, dim=0)
            ),
            "It mixed the keys. They are what a word is found by, not what it hands over.": (
                lambda q, keys, values: look(q, keys, keys)
            ),
        },
    ),
    Exercise(
        name="ex04_2",
        title="Causal weights",
        answer=weights,
        cases=[
            (torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0], [2.0, 0.0, 1.0]]),),
            (torch.tensor([[0.0, 1.0, 2.0, 5.0], [1.0, 0.0, 3.0, 2.0]]),),
            (torch.tensor([[1.0, 0.0, 2.0]]),),
        ],
        wrong={
            "Rows no longer add up to 1: the future was in the sum. Hide it before the softmax.": (
                lambda scores: softmax(scores, dim=-1).tril(aligned(scores) - 1)
            ),
            "A score of 0 is a score: its exponential is 1. Which score has an exponential of 0?": (
                lambda scores: softmax(scores.tril(aligned(scores) - 1), dim=-1)
            ),
            "A word may see itself. The triangle hides one diagonal too many.": (
                lambda scores: masked(scores, aligned(scores) - 1)
            ),
            "The triangle is aligned top left. With T < S the last query is the last key's own.": (
                lambda scores: masked(scores, 1)
            ),
            "It is the past that is hidden here, not the future.": (
                lambda scores: softmax(
                    scores.masked_fill(
                        torch.ones_like(scores).tril(aligned(scores) - 2).bool(), -torch.inf
                    ),
                    dim=-1,
                )
            ),
            "Softmax runs down the columns. A row is one query, and it shares its own look.": (
                lambda scores: softmax(
                    scores.masked_fill(
                        torch.ones_like(scores).triu(aligned(scores)).bool(), -torch.inf
                    ),
                    dim=0,
                )
            ),
        },
    ),
    Exercise(
        name="ex04_3",
        title="Split into heads",
        answer=split,
        cases=[
            (torch.arange(24.0).view(1, 3, 8), 2),
            (torch.arange(36.0).view(2, 3, 6), 3),
        ],
        wrong={
            "The shape is right and the numbers are mixed up: split the last dimension first, "
            "then swap two dimensions.": lambda x, H: x.view(x.shape[0], H, x.shape[1], -1),
            "It is (B, T, H, D) so far. Which two dimensions have to change places?": (
                lambda x, H: x.view(*x.shape[:2], H, -1)
            ),
            "The numbers of a head lie side by side: of (H, D), H comes first.": (
                lambda x, H: x.view(*x.shape[:2], -1, H).permute(0, 3, 1, 2)
            ),
        },
        tolerance=0,
    ),
    Exercise(
        name="ex04_4",
        title="Write the test",
        answer=leaks,
        cases=[
            (with_past, ROWS),
            (with_all, ROWS),
            (alone, ROWS),
            (peeking, ROWS),
            (peeking_once, ROWS),
            (peeking_late, ROWS),
            (peeking_last, ROWS),
            (peeking_far, ROWS),
            (first_apart, ROWS),
        ],
        wrong={
            "One leak got away: it peeks early in the text, and you changed the last row alone.": (
                changed_last
            ),
            "A later row can leak too: you looked at the first row alone.": first_alone,
            "The first row and the last are sound, and one between them leaks. Try every row.": (
                first_and_last
            ),
            "One leak got away: it looks two words ahead, and you asked each row about the next "
            "one alone. Change all later rows.": changed_next,
            "0 times NaN is NaN: sound attention gives the future a weight of 0, and NaN gets "
            "through all the same. Change the rows by a number.": probed_with_nan,
            "It calls sound attention leaky. A row may depend on itself: compare earlier rows.": (
                compared_itself
            ),
            "It looks the wrong way: later rows may depend on the first. Change a later row.": (
                changed_first
            ),
            "The verdict is upside down: True means that it leaks.": (
                lambda attend, x: not leaks(attend, x)
            ),
        },
    ),
    Exercise(
        name="ex04_5",
        title="Move the bias of the values",
        answer=lambda W_o, b_v: W_o @ b_v,
        cases=[
            (torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([3.0, 1.0])),
            (torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([-1.0, 2.0])),
        ],
        wrong={
            "The output projection still comes after the values. The bias goes through it too.": (
                lambda W_o, b_v: b_v
            ),
            "The matrix is on the wrong side, or transposed: a row of W_o makes one output.": (
                lambda W_o, b_v: b_v @ W_o
            ),
            "These are products without their sum: one number for each row of W_o.": (
                lambda W_o, b_v: W_o * b_v
            ),
        },
    ),
]
