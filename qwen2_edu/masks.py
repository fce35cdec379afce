"""The one visibility rule. Causal masks, windows, padding, rings and packed documents are cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

BLOCK = 1024  # queries of a long text whose mask is made at once


def visible(
    query_positions: Annotated[Tensor, "ints B T"],
    key_positions: Annotated[Tensor, "ints B S"],
    window: Annotated[int | Tensor | None, "ints B T"] = None,
    causal: bool = True,
) -> Tensor:
    """Which keys may each query see?

    Args:
        query_positions: absolute token positions, (B, T); -1 = padding.
        key_positions: (B, S); -1 = padding or an empty cache slot. Any order: a ring cache stores
            them turned.
        window: tokens visible including the query itself; None = no limit. A tensor (B, T) gives
            each query its own: that is how packed documents stay apart (`tokens_of_own_document`).
        causal: False = what comes after is seen too, and a window reaches as far to both sides: as
            transformers has it, `window` tokens before and `window` after.

    Returns:
        Bool (B, 1, T, S), True = may attend.

    Source: sliding windows as in Mistral 7B, arXiv:2310.06825, section 2.
    """
    q, k = query_positions[:, None, :, None], key_positions[:, None, None, :]
    seen = (k >= 0) & (k <= q) if causal else (k >= 0).expand(-1, -1, q.shape[2], -1)
    if window is not None:
        reach = window[:, None, :, None] if isinstance(window, Tensor) else window
        seen = seen & (k > q - reach) if causal else seen & ((k - q).abs() <= reach)
    return seen


class LongMask(NamedTuple):
    """The mask of a long text, made for one block of queries at a time: whole, it would grow as the
    square of the text. Fields as in `visible`; queries stand in order, `dtype` as in `additive`.
    """

    queries: Tensor
    keys: Tensor
    window: int | Tensor | None
    causal: bool
    dtype: torch.dtype

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """(queries, keys, mask) of each block: no key is left out that one of its queries sees."""
        T, S = self.queries.shape[1], self.keys.shape[1]
        for start in range(0, T, BLOCK):
            rows, columns = slice(start, min(start + BLOCK, T)), slice(0, S)
            if self.causal and S == T:  # nothing was read before, so keys stand in order too
                first = start - self.window + 1 if isinstance(self.window, int) else 0
                columns = slice(max(first, 0), rows.stop)
            reach = self.window[:, rows] if isinstance(self.window, Tensor) else self.window
            seen = visible(self.queries[:, rows], self.keys[:, columns], reach, self.causal)
            yield rows, columns, additive(seen, self.dtype)

    def whole(self) -> Tensor:
        """All of it, (B, 1, T, S): for who must have every weight."""
        return additive(visible(*self[:4]), self.dtype)


def additive(seen: Annotated[Tensor, "bools …"], dtype: torch.dtype) -> Tensor:
    """What to add to the scores: 0 where a query may look, a huge negative number elsewhere. Bool
    (B, 1, T, S) -> (B, 1, T, S) of `dtype`.

    Not -inf: a padding query sees nothing, a softmax over -inf alone is NaN, and NaN spreads. With
    a finite number its weights are even over all keys, and nobody reads what it answers.
    """
    hidden = torch.finfo(dtype).min / 2  # half, so that adding a score cannot overflow
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, hidden)


def tokens_of_own_document(position_ids: Annotated[Tensor, "ints B T"]) -> Tensor:
    """How many tokens of its own document has each token, itself included? (B, T) -> (B, T), such
    as 0 1 2 0 1 -> 1 2 3 1 2.

    A document starts wherever a position does not follow its left neighbour's. Used as a window,
    the answer keeps documents that were packed into one row from seeing each other.
    """
    index = torch.arange(position_ids.shape[1], device=position_ids.device)
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids.diff(dim=-1) != 1
    return index + 1 - torch.where(starts, index, 0).cummax(dim=-1).values
