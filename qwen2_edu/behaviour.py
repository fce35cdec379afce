"""What does a head do? Numbers that say it, from attention maps alone, and the heads that lead.

    found = find_heads(model)
    found.scores["induction"]  # (L, H)
    found.best("induction")  # the head that scores highest: layer, head, score

Every measure takes weights (..., B, H, T, T) as `capture` records them, with rows that sum to one,
and answers (..., H): one layer's map (B, H, T, T) gives (H,), a stack of layers (L, B, H, T, T)
gives (L, H). It is a mean over all texts and all queries but the first of each text, which has no
choice: it sees itself alone. Texts have no padding; what a window hides has weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .capture import capture
from .checks import one_of


def entropy(weights: Tensor) -> Tensor:
    """How evenly does a head look? 0 = at one key; log n = at n keys alike. In nats, (..., H).

    Source: Clark et al., What Does BERT Look At?, arXiv:1906.04341, section 3.3.
    """
    weights = _checked(weights)
    return _mean(torch.special.entr(weights).sum(-1))  # entr(w) is -w log w, and 0 at w = 0


def to_first_token(weights: Tensor) -> Tensor:
    """How much weight goes to the first token, where heads look that have nothing to look for?
    (..., H), from 0 to 1; a sliding layer may not see it.

    Source: attention sinks: Xiao et al., arXiv:2309.17453, section 3.1.
    """
    return _mean(_checked(weights)[..., 0])


def previous_token(weights: Tensor) -> Tensor:
    """How much weight goes to the token just before the query? (..., H), from 0 to 1.

    Source: previous token heads: Elhage et al., A Mathematical Framework for Transformer Circuits,
        2021, transformer-circuits.pub/2021/framework.
    """
    # Query t looks at key t - 1: the diagonal below the main one, (..., B, H, T - 1).
    before = _checked(weights).diagonal(-1, dim1=-2, dim2=-1)
    return before.mean(-1).mean(-2)


def induction(weights: Tensor, input_ids: Tensor) -> Tensor:
    """How much weight goes to the token that came next, the last time this token was there?

    In "… red kite … red" that is the weight from the second "red" on "kite": a head that looks
    there can copy what came next. Only queries count whose token was there before, and not just one
    place before: then what came next is the query itself. On random tokens said twice nothing but
    induction can score high. input_ids (B, T) -> (..., H), from 0 to 1; NaN without such a query.

    Source: Olsson et al., In-context Learning and Induction Heads, arXiv:2209.11895: prefix
        matching; Elhage et al., 2021.
    """
    weights = _checked(weights)
    (*_, B, _, T, _), shape = weights.shape, tuple(input_ids.shape)
    if shape != (B, T):
        found = f"input_ids {shape} do not fit weights {tuple(weights.shape)}"
        raise ValueError(f"{found}: expected ({B}, {T})")
    place = torch.arange(T, device=input_ids.device)
    same = input_ids[:, :, None] == input_ids[:, None, :]  # (B, T, T)
    earlier = same & (place[None, :] < place[:, None])
    last = torch.where(earlier, place, -1).amax(-1)  # (B, T): where it was before; -1 = nowhere
    counts = (last >= 0) & (last < place - 1)  # (B, T)
    after = (last + 1)[:, None, :, None].expand(*weights.shape[:-1], 1)  # (..., B, H, T, 1)
    looked = weights.gather(-1, after)[..., 0] * counts[:, None]  # (..., B, H, T)
    return looked.sum(-1).sum(-2) / counts.sum()


def reach(weights: Tensor) -> Tensor:
    """How far back does a head look on average? In tokens, (..., H); 0 = at the query itself.

    Source: attention distance: Dosovitskiy et al., arXiv:2010.11929, section 4.5.
    """
    weights = _checked(weights)
    place = torch.arange(weights.shape[-1], device=weights.device)
    distance = (place[:, None] - place).clamp(min=0)  # (T, T); the future has no weight
    return _mean((weights * distance).sum(-1))


def all_scores(weights: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
    """Every measure, by name: (..., H) each."""
    return {
        "entropy": entropy(weights),
        "first_token": to_first_token(weights),
        "previous_token": previous_token(weights),
        "induction": induction(weights, input_ids),
        "reach": reach(weights),
    }


def _checked(weights: Tensor) -> Tensor:
    """Whole maps of whole texts, in fp32."""
    shape = tuple(weights.shape)
    if weights.ndim < 4 or shape[-1] != shape[-2] or shape[-1] < 2:
        whole = "with T of at least 2, as a pass over whole texts without a cache gives them"
        raise ValueError(f"weights must be (..., B, H, T, T) {whole}, not {shape}")
    return weights.float()


def _mean(of_queries: Tensor) -> Tensor:
    """(..., B, H, T) -> (..., H): the mean over texts and all queries but the first."""
    return of_queries[..., 1:].mean(-1).mean(-2)


class Head(NamedTuple):
    layer: int
    head: int
    score: float


@dataclass(frozen=True)
class HeadScores:
    """scores: name of a measure -> (L, H). input_ids: (B, T), what they were measured on."""

    scores: dict[str, Tensor]
    input_ids: Tensor

    def ranked(self, name: str) -> list[Head]:
        """All heads, the highest score first."""
        scores = self.scores[one_of("name", name, list(self.scores))]
        order = scores.flatten().argsort(descending=True, stable=True).tolist()
        places = [divmod(i, scores.shape[1]) for i in order]
        return [Head(layer, head, float(scores[layer, head])) for layer, head in places]

    def best(self, name: str) -> Head:
        """The head with the highest score."""
        return self.ranked(name)[0]


def repeated_tokens(ids: Sequence[int], rows: int, period: int, seed: int = 0) -> Tensor:
    """Different random tokens, then the same once more: (rows, 2 * period)."""
    if not 1 <= rows <= 2**20 or not 2 <= period <= len(set(ids)):
        n = len(set(ids))
        raise ValueError(f"period={period} must be from 2 to {n} ids, rows={rows} from 1 to 2**20")
    ids = torch.as_tensor(sorted(set(ids)))
    generator = torch.Generator().manual_seed(seed % 2**64)
    drawn = [ids[torch.randperm(len(ids), generator=generator)[:period]] for _ in range(rows)]
    return torch.stack(drawn).repeat(1, 2)


@torch.no_grad()
def find_heads(
    model: nn.Module,
    *,
    ids: Sequence[int] | None = None,
    rows: int = 16,
    period: int = 25,
    seed: int = 0,
) -> HeadScores:
    """Score every head by every measure, on random tokens said twice: what comes next can be known
    in the second half alone, and there only by looking up what came next in the first.

    Args:
        model: with or without a head over the vocabulary.
        ids: tokens to draw from; None = all but the special ones that the config names.
        rows: B, how many such texts.
        period: how many tokens are said twice. What came next stands period - 1 tokens back, so a
            sliding layer can show induction only if its window is at least `period`.

    Returns:
        The scores (L, H) of entropy, first_token, previous_token, induction and reach.
    """
    with capture(model) as record:  # which refuses what has no heads
        if ids is None:
            c = model.config
            named = (c.bos_token_id, c.eos_token_id, c.pad_token_id)
            special = {i for one in named for i in (one if isinstance(one, list) else [one])}
            ids = [i for i in range(c.vocab_size) if i not in special]
        input_ids = repeated_tokens(ids, rows, period, seed).to(model.device)
        model(input_ids, use_cache=False)
    weights = torch.stack(record.attentions)  # (L, B, H, T, T)
    scores = all_scores(weights, input_ids)
    return HeadScores({name: score.cpu() for name, score in scores.items()}, input_ids)
