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

    The head, of those shown, that fetches most of the logit of the answer from other tokens, and
    the one it fetches most of it from; to look at the first token, or at the query itself, is no
    news. If no head fetches any, or nobody can tell, the strongest look that is news.

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
        there = rows.index_fill(-1, torch.tensor([first, query], device=rows.device), 0)
        parts = fetched(model, token, layers, there, hidden[:, :T])  # (layers, H, T)
        place, head = divmod(int(parts.sum(-1).argmax()), parts.shape[1])
        if parts[place, head].sum() > 0:
            return layers[place], head, query, int(parts[place, head].argmax())
    row = news(rows, [first, query, max(query - 1, 0)], [first, query])
    place, head, key = torch.unravel_index(row.argmax(), row.shape)
    return layers[int(place)], int(head), query, int(key)


def fetched(model: Any, token: int, layers: Sequence[int], rows: Tensor, hidden: Tensor) -> Tensor:
    """What each head adds directly to a logit by looking at each key, (layers, H, T). Its sums are
    those of `causes.attribution`, but for the factor of the final norm, which all heads share. It
    needs no pass.

    Args:
        rows: the weights of one query, (layers, H, T); 0 where a look is not to count.
        hidden: (all layers + 1, T, E).
    """
    T, D = hidden.shape[1], model.config.head_dim
    H, G = model.config.num_attention_heads, model.config.num_key_value_heads
    direction = model.model.norm.weight.float() * model.lm_head.weight[token].float()  # (E,)
    parts = []
    for i, row in zip(layers, rows, strict=True):
        block = model.model.layers[i]
        part, output = block.self_attn.v_proj, block.self_attn.o_proj.weight.float()
        values = (part(block.input_layernorm(hidden[i])) - part.bias).float().view(T, G, D)
        wanted = (direction @ output).view(G, H // G, D)  # what of a value the logit reads
        parts.append(row * torch.einsum("tgd,gjd->gjt", values, wanted).reshape(H, T))
    return torch.stack(parts)


def news(rows: Tensor, *without: list[int]) -> Tensor:
    """Rows of weights without the first of these sets of keys that leaves any; else all of them."""
    for keys in without:
        left = rows.index_fill(-1, torch.tensor(keys, device=rows.device), 0)
        if left.any():
            return left
    return rows
