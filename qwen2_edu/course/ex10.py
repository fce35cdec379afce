"""The exercises of lesson 10: sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from .exercises import Exercise

CUT = -torch.inf


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k best of each row, and what ties with the last of them."""
    best = logits.sort(dim=-1, descending=True).values[:, :k]
    return logits.where(logits >= best[:, -1:], CUT)


def without_ties(logits: Tensor, k: int) -> Tensor:
    values, ids = logits.topk(min(k, logits.shape[-1]))
    return torch.full_like(logits, CUT).scatter(1, ids, values)


def one_border(logits: Tensor, k: int) -> Tensor:
    return logits.where(logits >= top_k(logits[:1], k)[0].sort().values[-k:].min(), CUT)


def top_p(logits: Tensor, p: float, keep_last: bool = True) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probabilities reach p."""
    down, order = logits.softmax(-1).sort(dim=-1, descending=True)
    reached = down.cumsum(-1)
    kept = reached - down < p if keep_last else reached <= p
    return logits.where(torch.zeros_like(kept).scatter(1, order, kept), CUT)


def in_vocabulary_order(logits: Tensor, p: float) -> Tensor:
    chances = logits.softmax(-1)
    return logits.where(chances.cumsum(-1) - chances < p, CUT)


def mask_not_brought_back(logits: Tensor, p: float) -> Tensor:
    down = logits.softmax(-1).sort(dim=-1, descending=True).values
    return logits.where(down.cumsum(-1) - down < p, CUT)


def brought_back_by_gather(logits: Tensor, p: float) -> Tensor:
    down, order = logits.softmax(-1).sort(dim=-1, descending=True)
    return logits.where((down.cumsum(-1) - down < p).gather(1, order), CUT)


def only_those_before(logits: Tensor, p: float) -> Tensor:
    down, order = logits.softmax(-1).sort(dim=-1, descending=True)
    kept = down.cumsum(-1) <= p
    kept[:, 0] = True
    return logits.where(torch.zeros_like(kept).scatter(1, order, kept), CUT)


def left_in_order(logits: Tensor, p: float) -> Tensor:
    down = logits.sort(dim=-1, descending=True).values
    return top_p(down, p)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep what is at least p times as likely as the likeliest."""
    chances = logits.softmax(-1)
    return logits.where(chances >= p * chances.amax(-1, keepdim=True), CUT)


def seen(ids: Tensor, mask: Tensor, V: int) -> Tensor:
    """How often does each row hold each token of the vocabulary? (B, V)"""
    ones = torch.nn.functional.one_hot(ids, V)
    return (ones * mask[..., None]).sum(1)


def penalty(logits: Tensor, ids: Tensor, mask: Tensor, penalty: float) -> Tensor:
    """Move the logits of the tokens that a row holds down; padding does not count."""
    moved = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen(ids, mask, logits.shape[-1]) > 0, moved, logits)


def each_time(logits: Tensor, ids: Tensor, mask: Tensor, penalty: float) -> Tensor:
    factor = penalty ** seen(ids, mask, logits.shape[-1])
    return torch.where(logits > 0, logits / factor, logits * factor)


def undone(logits: Tensor, ids: Tensor, mask: Tensor, by: float) -> Tensor:
    """Written token by token: where padding comes last, it puts the old logit back."""
    moved, lower = logits.clone(), torch.where(logits > 0, logits / by, logits * by)
    for row in range(len(ids)):
        for i, real in zip(ids[row].tolist(), mask[row].tolist(), strict=True):
            moved[row, i] = lower[row, i] if real else logits[row, i]
    return moved


def speculation(p: Tensor, q: Tensor) -> tuple[float, Tensor]:
    """How likely is a draft's word accepted, and from what is drawn where it is not?"""
    rest = (p - q).clamp(min=0)
    return torch.minimum(p, q).sum().item(), rest / rest.sum()


def absolute(p: Tensor, q: Tensor) -> tuple[float, Tensor]:
    rest = (p - q).abs()
    return speculation(p, q)[0], rest / rest.sum()


def unclipped(p: Tensor, q: Tensor) -> tuple[float, Tensor]:
    return (q * (p / q)).sum().item(), speculation(p, q)[1]


LOGITS = torch.tensor([[2.0, -1.0, 0.5, 1.0, 0.5, -3.0], [0.0, 4.0, -2.0, 3.0, 2.5, 1.0]])
MORE = torch.tensor([[-0.3, 1.2, 0.1, -2.0], [5.0, -1.0, 0.7, 0.6], [0.2, 0.3, 0.1, 0.15]])
IDS = torch.tensor([[5, 5, 0, 2, 0], [1, 2, 2, 2, 4]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
RIGHT = torch.tensor([[3, 1, 2, 3, 3], [4, 2, 4, 2, 5]])  # padded on the right, with a real token
RIGHT_MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
P = torch.tensor([0.5, 0.3, 0.1, 0.1])
Q = torch.tensor([0.2, 0.3, 0.4, 0.1])
P2 = torch.tensor([0.05, 0.6, 0.35])
Q2 = torch.tensor([0.5, 0.1, 0.4])

EXERCISES = [
    Exercise(
        name="ex10_1",
        title="Top-k",
        answer=top_k,
        cases=[(LOGITS, 2), (LOGITS, 3), (MORE, 1), (MORE, 50)],
        wrong={
            "What is removed becomes -inf. A logit of 0 still has a chance.": (
                lambda logits, k: top_k(logits, k).masked_fill(top_k(logits, k) == CUT, 0.0)
            ),
            "A token that ties with the last of the k stays too: nothing tells them apart.": (
                without_ties
            ),
            "Each row has its own k best: the border is another one in each.": one_border,
            "The k-th best itself stays. You compare with > where >= is meant.": (
                lambda logits, k: logits.where(
                    logits > logits.sort(descending=True).values[:, :k][:, -1:], CUT
                )
            ),
            "These are probabilities. Return logits, so that the next filter can go on.": (
                lambda logits, k: top_k(logits, k).softmax(-1)
            ),
        },
        tolerance=1e-5,
    ),
    Exercise(
        name="ex10_2",
        title="Top-p",
        answer=top_p,
        cases=[(LOGITS, 0.7), (LOGITS, 0.95), (MORE, 0.5), (MORE, 0.05)],
        wrong={
            "The token with which the sum reaches p is needed too, and at least one stays.": (
                lambda logits, p: top_p(logits, p, keep_last=False)
            ),
            "Add up from the likeliest token down, not in the order of the vocabulary.": (
                in_vocabulary_order
            ),
            "Your mask is in sorted order, and the logits are not: bring it back.": (
                mask_not_brought_back
            ),
            "Those are the tokens that have a probability of p alone. Top-p adds them up.": (
                lambda logits, p: logits.where(logits.softmax(-1) >= p, CUT)
            ),
            "These are probabilities. Return logits, so that the next filter can go on.": (
                lambda logits, p: top_p(logits, p).softmax(-1)
            ),
            "The token with which the sum reaches p is missing: look at the sum before it.": (
                only_those_before
            ),
            "gather sorts the mask once more. To bring it back, scatter it along the same ids.": (
                brought_back_by_gather
            ),
            "These logits are sorted. Each token has to stay in its own column.": left_in_order,
        },
        tolerance=1e-5,
    ),
    Exercise(
        name="ex10_3",
        title="Min-p",
        answer=min_p,
        cases=[(LOGITS, 0.1), (LOGITS, 0.3), (MORE, 0.5), (MORE, 0.02), (MORE, 1.0)],
        wrong={
            "The border moves with the likeliest token: p times its probability.": (
                lambda logits, p: logits.where(logits.softmax(-1) >= p, CUT)
            ),
            "Compare probabilities. A fraction of a logit means nothing.": (
                lambda logits, p: logits.where(logits >= p * logits.amax(-1, keepdim=True), CUT)
            ),
            "Each row has its own likeliest token. This is the largest of all rows.": (
                lambda logits, p: logits.where(
                    logits.softmax(-1) >= p * logits.softmax(-1).max(), CUT
                )
            ),
            "These are probabilities. Return logits, so that the next filter can go on.": (
                lambda logits, p: min_p(logits, p).softmax(-1)
            ),
            "What is removed becomes -inf. A logit of 0 still has a chance.": (
                lambda logits, p: min_p(logits, p).masked_fill(min_p(logits, p) == CUT, 0.0)
            ),
            "What is exactly p times as likely stays: at least means >=.": (
                lambda logits, p: logits.where(
                    logits.softmax(-1) > p * logits.softmax(-1).amax(-1, keepdim=True), CUT
                )
            ),
        },
        tolerance=1e-5,
    ),
    Exercise(
        name="ex10_4",
        title="The penalty, without the padding",
        answer=penalty,
        cases=[
            (LOGITS, IDS, MASK, 1.3),
            (LOGITS, IDS, torch.ones_like(MASK), 2.0),
            (-LOGITS, IDS, MASK, 0.8),
            (LOGITS, RIGHT, RIGHT_MASK, 1.5),
        ],
        wrong={
            "A negative logit divided by the penalty goes up. Multiply it.": (
                lambda logits, ids, mask, by: torch.where(
                    seen(ids, mask, logits.shape[-1]) > 0, logits / by, logits
                )
            ),
            "Padding was counted as a token of the text. The mask is 0 there.": (
                lambda logits, ids, mask, by: penalty(logits, ids, torch.ones_like(mask), by)
            ),
            "A token is penalised once, however often it was there.": each_time,
            "Padding was replaced by token 0, and now that one is penalised.": (
                lambda logits, ids, mask, by: penalty(logits, ids * mask, torch.ones_like(mask), by)
            ),
            "The padding's token may stand in the text as well. Here padding undoes its penalty.": (
                undone
            ),
            "This penalty is a factor: nothing is subtracted.": (
                lambda logits, ids, mask, by: torch.where(
                    seen(ids, mask, logits.shape[-1]) > 0, logits - by, logits
                )
            ),
            "Tokens of both rows were put together. Each row has a text of its own.": (
                lambda logits, ids, mask, by: torch.where(
                    (seen(ids, mask, logits.shape[-1]) > 0).any(0),
                    torch.where(logits > 0, logits / by, logits * by),
                    logits,
                )
            ),
        },
        tolerance=1e-5,
    ),
    Exercise(
        name="ex10_5",
        title="What the draft may keep",
        answer=speculation,
        cases=[(P, Q), (Q, P), (P2, Q2), (Q2, P2)],
        wrong={
            "A chance is at most 1: accept with min(1, p / q).": unclipped,
            "That is how often both draw the same word. Here the draft's word is judged.": (
                lambda p, q: ((p * q).sum().item(), speculation(p, q)[1])
            ),
            "Drawing from p again gives words that the draft loves too often.": (
                lambda p, q: (speculation(p, q)[0], p)
            ),
            "Where q is above p nothing is missing: that word gets 0.": absolute,
            "That is where the draft has too much. Look where it has too little: p - q.": (
                lambda p, q: (speculation(p, q)[0], speculation(q, p)[1])
            ),
            "What is drawn from must sum to 1: divide by its sum.": (
                lambda p, q: (speculation(p, q)[0], (p - q).clamp(min=0))
            ),
            "A softmax gives every word some chance, the refused ones too. Divide by the sum.": (
                lambda p, q: (speculation(p, q)[0], (p - q).clamp(min=0).softmax(-1))
            ),
            "The draft does not say all words equally often: weigh min(1, p / q) by q.": (
                lambda p, q: ((p / q).clamp(max=1).mean().item(), speculation(p, q)[1])
            ),
            "These are chances for each word, added up. Weigh each by q first.": (
                lambda p, q: ((p / q).clamp(max=1).sum().item(), speculation(p, q)[1])
            ),
            "First one number is asked for: how often a draft is accepted, over all words.": (
                lambda p, q: ((p / q).clamp(max=1), speculation(p, q)[1])
            ),
            "That is how often a draft is refused.": (
                lambda p, q: (1 - speculation(p, q)[0], speculation(p, q)[1])
            ),
        },
        tolerance=1e-5,
    ),
]
