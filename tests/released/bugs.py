"""Bugs that people make, planted in the released model: those of the fixed-parameter test, with
the widths of this model, and those that a GGUF file invites.
"""

from __future__ import annotations

import math

from torch import nn

from tests.unit.test_fixed_parameters import BUGS as SMALL
from tests.unit.test_fixed_parameters import attend_with

E = 896


def scaled_embedding(model, patch):
    embedding = model.model.embed_tokens
    embedding.forward = lambda ids: nn.Embedding.forward(embedding, ids) * math.sqrt(E)


def tied_head(model, patch):
    """The file has a head of its own: the same matrix of the release, quantised another way."""
    model.lm_head.weight = model.model.embed_tokens.weight


def untied_embedding(model, patch):
    """The other way round: the head, which has more bits, used for both."""
    model.model.embed_tokens.weight = model.lm_head.weight


def rows_of_llama(model, patch):
    """Undo a permutation of query and key rows that Llama's files have, and Qwen2's have not."""
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            for name in ("weight", "bias"):
                value = getattr(projection, name).data
                D = layer.self_attn.head_dim
                pairs = value.view(-1, D // 2, 2, *value.shape[1:]).transpose(1, 2)
                setattr(projection, name, nn.Parameter(pairs.reshape(value.shape)))


BUGS = {name: plant for name, plant in SMALL.items() if name != "window_off_by_one"}
BUGS |= {
    "embed_scale": scaled_embedding,
    "scale_hidden": attend_with(lambda q, k, v, mask, scale: (q, k, v, mask, E**-0.5)),
    "tied_head": tied_head,
    "untied_embedding": untied_embedding,
    "rows_of_llama": rows_of_llama,
}
