"""The one visibility rule. Causal masks, windows, padding, rings and packed documents are cases."""

from __future__ import annotations

import torch
from torch import Tensor


def visible(
    query_positions: Tensor, key_positions: Tensor, window: int | Tensor | None = None
) -> Tensor:
    """Which keys may each query see?

    Args:
        query_positions: absolute token positions, (B, T); -1 = padding.
        key_positions: (B, S); -1 = padding or an empty cache slot. Any order: a ring cache stores
            them turned.
        window: tokens visible including the query itself; None = no limit. A tensor (B, T) gives
            each query its own: that is how packed documents stay apart (`tokens_of_own_document`).

    Returns:
        Bool (B, 1, T, S), True = may attend.

    Source: sliding windows as in Mistral 7B, arXiv:2310.06825, section 2.
    """
    q, k = query_positions[:, None, :, None], key_positions[:, None, None, :]
    seen = (k >= 0) & (k <= q)
    if window is not None:
        reach = window[:, None, :, None] if isinstance(window, Tensor) else window
        seen = seen & (k > q - reach)
    return seen


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to the scores: 0 where a query may look, a huge negative number elsewhere.

    Not -inf: a padding query sees nothing, a softmax over -inf alone is NaN, and NaN spreads. With
    a finite number its weights are even over all keys, and nobody reads what it answers.

    Shape:
        (B, 1, T, S) bool -> (B, 1, T, S) of `dtype`.
    """
    hidden = torch.finfo(dtype).min / 2  # half, so that adding a score cannot overflow
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, hidden)


def tokens_of_own_document(position_ids: Tensor) -> Tensor:
    """How many tokens of its own document has each token, itself included? 0 1 2 0 1 -> 1 2 3 1 2.

    A document starts wherever a position does not follow its left neighbour's. Used as a window,
    the answer keeps documents that were packed into one row from seeing each other.

    Shape:
        (B, T) -> (B, T)
    """
    index = torch.arange(position_ids.shape[1], device=position_ids.device)
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids.diff(dim=-1) != 1
    return index + 1 - torch.where(starts, index, 0).cummax(dim=-1).values
