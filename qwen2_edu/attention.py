"""Attention: queries ask, keys answer, values are what is said.

Query heads come in groups: with H query heads and G key/value heads, heads g*H/G … (g+1)*H/G - 1
share key head g. H = G is multi-head, G = 1 multi-query, and what lies between grouped-query.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention, softmax

from .cache import Cache
from .checks import Range
from .config import ATTENTIONS, Qwen2Config
from .masks import LongMask
from .rope import apply_rope

Queries, Keys = Annotated[Tensor, "floats B H T D"], Annotated[Tensor, "floats B G S D"]
Mask, Share = Annotated[Tensor | None, "floats B 1 T S"], Annotated[float, Range(0, 1)]


def attention_weights(q: Queries, k: Keys, mask: Mask, scale: float) -> Tensor:
    """How much does each query look at each key?

    Args:
        q: (B, H, T, D).
        k: (B, G, S, D); G divides H.
        mask: added to the scores, (B, 1, T, S). None = plain causal, the last query being the
            last key.
        scale: 1/sqrt(D), so that scores do not grow with the width.

    Returns:
        (B, H, T, S), rows sum to 1; softmax in fp32, answer in q's dtype.

    Source: Vaswani et al., arXiv:1706.03762, section 3.2.1; groups: arXiv:2305.13245.
    """
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    # The H/G query heads of a group are H/G * T queries to one key head: no key is copied.
    # A power of two, which changes no bit, before the product, lest that overflow in fp16.
    rest, power = math.frexp(scale)  # scale = rest * 2**power
    scores = (q * 2.0**power).reshape(B, G, H // G * T, D) @ k.mT * rest  # (B, G, H/G * T, S)
    scores = scores.view(B, H, T, S)
    if mask is not None:
        scores = scores + mask
    elif T > 1:
        future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
        scores.masked_fill_(future, torch.finfo(scores.dtype).min)
    return softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)


def weighted_values(weights: Annotated[Tensor, "floats B H T S"], v: Keys) -> Tensor:
    """Mix the values: weights (B, H, T, S), v (B, G, S, D) -> (B, H, T, D)."""
    (B, H, T, S), (G, D) = weights.shape, (v.shape[1], v.shape[3])
    return (weights.reshape(B, G, H // G * T, S) @ v).view(B, H, T, D)


def eager_attention(
    q: Queries, k: Keys, v: Keys, mask: Mask, scale: float, dropout: Share = 0.0
) -> Tensor:
    """Attention as the formula says, every weight in memory: the path to read, the source of maps.
    q (B, H, T, D), k and v (B, G, S, D) -> (B, H, T, D).
    """
    weights = attention_weights(q, k, mask, scale)
    return weighted_values(drop(weights, dropout) if dropout else weights, v)


def sdpa_attention(
    q: Queries, k: Keys, v: Keys, mask: Mask, scale: float, dropout: Share = 0.0
) -> Tensor:
    """The same by PyTorch's fused kernels, which never store the weights; same shapes."""
    (H, T), (G, S) = q.shape[1:3], k.shape[1:3]
    causal = bool(mask is None and T > 1)  # bool: to `torch.export` T is a symbol
    if causal and T != S:  # the kernel aligns its triangle top left
        plain = "None means plain causal, as many queries as keys"
        raise ValueError(f"{T} queries over {S} keys need a mask: {plain}")
    return scaled_dot_product_attention(
        q, k, v, mask, dropout, causal, scale=scale, enable_gqa=H != G
    )


BACKENDS = {"sdpa": sdpa_attention, "eager": eager_attention}
assert tuple(BACKENDS) == ATTENTIONS  # what a configuration may name

# The records of the `capture`s around a call. They belong to its context, not to the model, so
# threads that share a model do not see each other's maps.
RECORDS: ContextVar[tuple[Any, ...]] = ContextVar("records", default=())


class Qwen2Attention(nn.Module):
    """Grouped-query attention with rotary positions; biases on q, k and v, none on the output.

    `attend` is the backend. While someone records, the eager formula takes its place, and hands
    over its weights.

    Source: Qwen2 Technical Report, arXiv:2407.10671, section 2.2.1.
    """

    def __init__(self, config: Qwen2Config, layer_idx: int):
        super().__init__()
        E, D = config.hidden_size, config.head_dim
        H, G = config.num_attention_heads, config.num_key_value_heads
        self.layer_idx, self.head_dim, self.dropout = layer_idx, D, config.attention_dropout
        self.q_proj = nn.Linear(E, H * D, bias=True)
        self.k_proj = nn.Linear(E, G * D, bias=True)
        self.v_proj = nn.Linear(E, G * D, bias=True)
        self.o_proj = nn.Linear(H * D, E, bias=False)
        self.attend = BACKENDS[config.attn_implementation]

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | LongMask | None,
        cache: Cache | None = None,
    ) -> Tensor:
        """x: (B, T, E) -> (B, T, E). cos, sin: (B, 1, T, D), the rotation of these T positions;
        mask: (B, 1, T, S), None = plain causal, or a `LongMask`, which is worked off in blocks;
        cache: keys and values seen before, these T join.
        """
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.k_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, G, T, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, G, T, D)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)  # (B, G, S, D)
        scale, dropout = self.head_dim**-0.5, self.dropout if self.training else 0.0
        records = () if torch.compiler.is_compiling() else RECORDS.get()
        if watching := [record for record in records if self in record.layers]:
            mask = mask.whole() if isinstance(mask, LongMask) else mask
            weights = attention_weights(q, k, mask, scale)
            for record in watching:
                record.attentions.append(weights)
            out = weighted_values(drop(weights, dropout) if dropout else weights, v)
        elif isinstance(mask, LongMask):
            parts = [
                self.attend(q[:, :, i], k[:, :, j], v[:, :, j], block, scale, dropout)
                for i, j, block in mask.blocks()
            ]
            out = torch.cat(parts, dim=2)
        else:
            out = self.attend(q, k, v, mask, scale, dropout)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))  # (B, T, H*D) -> (B, T, E)
