"""Where the explorer opens: at a head that the answer comes from, not at the largest weight.

On the released model the largest weights are those of layer 0, on punctuation and on neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..quantize import Packed


def why_no_shares(model: Any) -> str:
    """Why can its logits not be taken apart? "" = they can."""
    if model.get_output_embeddings() is None:
        return "This model has no head over the vocabulary."
    if any(isinstance(part, Packed) for part in model.modules()):
        return "Direct attribution reads the matrices, and this model's are quantised."
    return ""


def opening(
    model: Any, ids: Tensor, real: Tensor, layers: Sequence[int], maps: Tensor, hidden: Tensor
) -> tuple[int, int, int, int]:
    """Where to begin: layer, head, query and key.

    The head, of those shown, that adds most to the logit of the answer, and the key that it looks
    at most. If no head adds to it, or nobody can tell, the strongest look that is news.

    Args:
        ids: (T,), and the first token of the answer, if there is one.
        real: bool (T,), False = padding.
        maps: (layers, H, T or more, T or more).
        hidden: (all layers + 1, T or more, E).
    """
    T = len(real)
    query, first = int(real.nonzero()[-1]), int(real.int().argmax())
    rows = maps[:, :, query, :T]  # (layers, H, T)
    if not why_no_shares(model):
        if len(ids) > T:
            token = int(ids[T])
        else:
            token = int(model.lm_head(model.model.norm(hidden[-1, query])).argmax())
        added = fetched(model, token, layers, rows, hidden[:, :T])
        place, head = divmod(int(added.argmax()), added.shape[1])
        if added[place, head] > 0:
            key = int(news(rows[place, head], [first, query]).argmax())
            return layers[place], head, query, key
    row = news(rows, [first, query, max(query - 1, 0)], [first, query])
    place, head, key = torch.unravel_index(row.argmax(), row.shape)
    return layers[int(place)], int(head), query, int(key)


def fetched(model: Any, token: int, layers: Sequence[int], rows: Tensor, hidden: Tensor) -> Tensor:
    """What each head adds directly to a logit, as `causes.attribution` has it, but for the factor
    of the final norm, which all heads share: (layers, H). It needs no pass.

    Args:
        rows: the weights of one query, (layers, H, T).
        hidden: (all layers + 1, T, E).
    """
    T, D = hidden.shape[1], model.config.head_dim
    H, G = model.config.num_attention_heads, model.config.num_key_value_heads
    direction = model.model.norm.weight.float() * model.lm_head.weight[token].float()  # (E,)
    added = []
    for i, row in zip(layers, rows, strict=True):
        block = model.model.layers[i]
        part = block.self_attn.v_proj
        values = (part(block.input_layernorm(hidden[i])) - part.bias).float().view(T, G, D)
        said = torch.einsum("gjt,tgd->gjd", row.view(G, H // G, T), values).view(H, D)
        added.append((said * (direction @ block.self_attn.o_proj.weight.float()).view(H, D)).sum(1))
    return torch.stack(added)


def news(rows: Tensor, *without: list[int]) -> Tensor:
    """Rows of weights without the first of these sets of keys that leaves any; else all of them."""
    for keys in without:
        left = rows.index_fill(-1, torch.tensor(keys, device=rows.device), 0)
        if left.any():
            return left
    return rows
