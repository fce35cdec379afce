"""The exercises of lesson 14: the attention-map lab."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .exercises import Exercise


def same_token(weights: Tensor, ids: list[int]) -> float:
    """Mean weight on all earlier copies, over the queries that have one."""
    looked = []
    for t, own in enumerate(ids):
        copies = [s for s in range(t) if ids[s] == own]
        if copies:
            looked.append(weights[t, copies].sum().item())
    return sum(looked) / len(looked)


def with_itself(weights: Tensor, ids: list[int]) -> float:
    """The query's own place is counted too."""
    rows = [t for t, own in enumerate(ids) if own in ids[:t]]
    copies = [[s for s in range(t + 1) if ids[s] == ids[t]] for t in rows]
    looked = [weights[t, s].sum().item() for t, s in zip(rows, copies, strict=True)]
    return sum(looked) / len(looked)


def with_itself_everywhere(weights: Tensor, ids: list[int]) -> float:
    """The query's own place is counted too, so every query seems to have a copy."""
    copies = [[s for s in range(t + 1) if ids[s] == own] for t, own in enumerate(ids)]
    return sum(weights[t, s].sum().item() for t, s in enumerate(copies)) / len(ids)


def over_all_queries(weights: Tensor, ids: list[int]) -> float:
    """Divided by T, though many queries have no copy to look at."""
    repeated = sum(own in ids[:t] for t, own in enumerate(ids))
    return same_token(weights, ids) * repeated / len(ids)


def one_after(weights: Tensor, ids: list[int]) -> float:
    """The weight on what came after each copy."""
    rows = [t for t, own in enumerate(ids) if own in ids[:t]]
    after = [[s + 1 for s in range(t) if ids[s] == ids[t]] for t in rows]
    looked = [weights[t, s].sum().item() for t, s in zip(rows, after, strict=True)]
    return sum(looked) / len(looked)


def last_copy(weights: Tensor, ids: list[int]) -> float:
    """Of several copies the nearest alone."""
    rows = [t for t, own in enumerate(ids) if own in ids[:t]]
    places = [max(s for s in range(t) if ids[s] == ids[t]) for t in rows]
    return weights[rows, places].mean().item()


def maps(T: int, seed: int) -> Tensor:
    """A made-up causal map (T, T)."""
    scores = torch.randn(T, T, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(T, T).triu(1) > 0, -torch.inf).softmax(-1)


def best(scores: Tensor, k: int) -> list[tuple[int, int]]:
    """The k highest as (layer, head), the highest first."""
    order = scores.flatten().argsort(descending=True)[:k].tolist()
    return [divmod(i, scores.shape[1]) for i in order]


def gentle(mixed: Tensor, head: int, D: int) -> Tensor:
    """(B, T, H*D) with one head's D numbers replaced by their mean over texts and positions."""
    out = mixed.clone()
    part = slice(head * D, (head + 1) * D)
    out[..., part] = mixed[..., part].mean((0, 1))
    return out


def gentle_by(mixed: Tensor, part: slice, mean: Tensor | float) -> Tensor:
    """A copy with some of the numbers replaced."""
    out = mixed.clone()
    out[..., part] = mean
    return out


def seeing(slides: list[bool], window: int, evidence: int, query: int) -> list[int]:
    """The layers in which this query sees the evidence."""
    if evidence > query:
        return []
    return [i for i, s in enumerate(slides) if not s or evidence > query - window]


def longest(budget: int, L: int, H: int, each: int) -> int:
    """The longest text whose maps take no more than the budget."""
    return math.isqrt(budget // (L * H * each))


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def before(weights: Tensor) -> Tensor:
    """(L, B, H, T, T) -> (L, H): mean weight on the token just before the query."""
    return weights.diagonal(-1, dim1=-2, dim2=-1).mean((1, 3))


def stack_of_maps(L: int, B: int, H: int, T: int) -> Tensor:
    flat = torch.stack([maps(T, seed) for seed in range(L * B * H)])
    return flat.view(L, B, H, T, T)


EXERCISES = [
    Exercise(
        name="ex14_0",
        title="One token back",
        answer=before,
        cases=[(stack_of_maps(2, 3, 4, 5),), (stack_of_maps(1, 2, 3, 6),)],
        wrong={
            "This is the weight on the query's own token. The one before it is one column left.": (
                lambda weights: weights.diagonal(0, dim1=-2, dim2=-1)[..., 1:].mean((1, 3))
            ),
            "Rows are queries, columns are keys: this looks one token ahead, where nothing is.": (
                lambda weights: weights.diagonal(1, dim1=-2, dim2=-1).mean((1, 3))
            ),
            "Query 0 has no token before it. Divide by the queries that have one, T - 1.": (
                lambda weights: (
                    weights.diagonal(-1, dim1=-2, dim2=-1).sum((1, 3))
                    / (weights.shape[1] * weights.shape[-1])
                )
            ),
            "That is the weight on the first token of the text.": (
                lambda weights: weights[..., 1:, 0].mean((1, 3))
            ),
            "The mean is over texts, and heads stay apart: (L, B, H, T, T) -> (L, H).": (
                lambda weights: weights.diagonal(-1, dim1=-2, dim2=-1).mean((2, 3))
            ),
            "One number is too little: each head of each layer gets a score of its own.": (
                lambda weights: weights.diagonal(-1, dim1=-2, dim2=-1).mean()
            ),
        },
    ),
    Exercise(
        name="ex14_1",
        title="Heads that find the same word",
        answer=same_token,
        cases=[
            (maps(5, 0), [3, 8, 3, 9, 8]),
            (maps(6, 1), [2, 2, 5, 2, 5, 7]),
            (maps(4, 2), [1, 4, 6, 1]),
        ],
        wrong={
            "Every query is a copy of itself. Count only the places before it.": with_itself,
            "A query is no copy of itself, so the first time a word comes there is none.": (
                with_itself_everywhere
            ),
            "Some queries have no earlier copy. Leave them out of the mean as well.": (
                over_all_queries
            ),
            "This is induction: one place after the copy. Here the copy itself is asked for.": (
                one_after
            ),
            "A token may have stood there several times: add up all of its earlier copies.": (
                last_copy
            ),
            "Rows are queries, columns are keys: weights[query, key].": (
                lambda weights, ids: same_token(weights.T, ids)
            ),
        },
    ),
    Exercise(
        name="ex14_2",
        title="The best heads",
        answer=best,
        cases=[(random(3, 4), 5), (random(2, 5), 1), (random(4, 3), 12)],
        wrong={
            "The other way round: the layer comes first, then the head.": (
                lambda scores, k: [pair[::-1] for pair in best(scores, k)]
            ),
            "These are the right heads, the lowest first. Turn them round.": (
                lambda scores, k: best(scores, k)[::-1]
            ),
            "These are the lowest. Sort with the highest first.": (
                lambda scores, k: best(-scores, k)
            ),
            "These are places in the flattened tensor. divmod by H makes (layer, head) of one.": (
                lambda scores, k: scores.flatten().argsort(descending=True)[:k].tolist()
            ),
            "A place in the flattened tensor is layer * H + head: divide by H, not by L.": (
                lambda scores, k: [
                    divmod(i, scores.shape[0])
                    for i in scores.flatten().argsort(descending=True)[:k].tolist()
                ]
            ),
        },
    ),
    Exercise(
        name="ex14_3",
        title="Silence, gently",
        answer=gentle,
        cases=[(random(2, 5, 12), 1, 4), (random(3, 4, 6), 2, 2), (random(1, 3, 8), 0, 4)],
        wrong={
            "Zeros are the rough way. Put the mean of the head's own numbers there.": (
                lambda mixed, head, D: gentle_by(mixed, slice(head * D, (head + 1) * D), 0.0)
            ),
            "A head takes D numbers in a row: from head * D up to (head + 1) * D.": (
                lambda mixed, head, D: gentle_by(
                    mixed, slice(head, head + D), mixed[..., head : head + D].mean((0, 1))
                )
            ),
            "One mean for each of the D numbers, please, not one for all of them.": (
                lambda mixed, head, D: gentle_by(
                    mixed,
                    slice(head * D, (head + 1) * D),
                    mixed[..., head * D : (head + 1) * D].mean(),
                )
            ),
            "The mean goes over texts and positions, so both B and T vanish.": (
                lambda mixed, head, D: gentle_by(
                    mixed,
                    slice(head * D, (head + 1) * D),
                    mixed[..., head * D : (head + 1) * D].mean(1, keepdim=True),
                )
            ),
        },
    ),
    Exercise(
        name="ex14_4",
        title="Who can see it?",
        answer=seeing,
        cases=[
            ([False, False, True, True], 8, 3, 20),
            ([False, True, False, True], 8, 3, 11),
            ([True, True, False], 8, 3, 10),
            ([False, True], 4, 9, 2),
            ([True, False], 4, 5, 5),
        ],
        wrong={
            "The window counts the query itself, so window tokens back is just out of sight.": (
                lambda slides, window, evidence, query: seeing(slides, window + 1, evidence, query)
            ),
            "A query sees itself too: evidence and query may be one place.": (
                lambda slides, window, evidence, query: (
                    [] if evidence == query else seeing(slides, window, evidence, query)
                )
            ),
            "The window reaches window - 1 tokens back, and that last one is still in sight.": (
                lambda slides, window, evidence, query: seeing(slides, window - 1, evidence, query)
            ),
            "slides[i] is True for the layers that have a window. The others see all.": (
                lambda slides, window, evidence, query: seeing(
                    [not s for s in slides], window, evidence, query
                )
            ),
            "Full layers have no window. They see all of the past.": (
                lambda slides, window, evidence, query: seeing(
                    [True] * len(slides), window, evidence, query
                )
            ),
            "What stands after the query is the future, in full layers too.": (
                lambda slides, window, evidence, query: [
                    i for i, s in enumerate(slides) if not s or evidence > query - window
                ]
            ),
            "These are the layers that do not see it.": (
                lambda slides, window, evidence, query: [
                    i
                    for i in range(len(slides))
                    if i not in seeing(slides, window, evidence, query)
                ]
            ),
        },
    ),
    Exercise(
        name="ex14_5",
        title="How long may it be?",
        answer=longest,
        cases=[(1_000_000, 8, 8, 4), (2_097_152, 8, 4, 1), (10**9, 24, 14, 2), (255, 4, 4, 1)],
        wrong={
            "A map has T rows and T columns, so T comes in squared.": (
                lambda budget, L, H, each: budget // (L * H * each)
            ),
            "Each head has a map of its own.": (
                lambda budget, L, H, each: math.isqrt(budget // (L * each))
            ),
            "Each layer has maps of its own.": (
                lambda budget, L, H, each: math.isqrt(budget // (H * each))
            ),
            "A number takes more than one byte here: `each` says how many.": (
                lambda budget, L, H, each: math.isqrt(budget // (L * H))
            ),
            "Not the nearest number: the largest that still fits. Round down.": (
                lambda budget, L, H, each: round(math.sqrt(budget / (L * H * each)))
            ),
            "Rounded up, the maps no longer fit. Round down.": (
                lambda budget, L, H, each: math.ceil(math.sqrt(budget / (L * H * each)))
            ),
        },
    ),
]
