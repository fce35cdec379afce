"""Explorers of any shape: random maps in a constructed record, and hardly a model behind them."""

from __future__ import annotations

import torch

from qwen2_edu import Qwen2Config, Qwen2ForCausalLM
from qwen2_edu.tokenizer import Qwen2TokenizerFast
from qwen2_edu.viz import explorer, record


@torch.no_grad()
def random_explorer(layers: int, heads: int, groups: int, length: int = 64, seed: int = 0):
    """An AttentionExplorer of so many layers and heads over a text of single letters."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=257,
        hidden_size=2 * heads,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
    )
    model, vocab = Qwen2ForCausalLM(config).eval(), {bytes([i]): i for i in range(256)}
    tokenizer = Qwen2TokenizerFast(vocab, [], added_tokens={256: "<|end|>"})
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = torch.randn(layers, heads, length, length) * 2
    maps = scores.masked_fill(future, -torch.inf).softmax(-1)
    ids, real = torch.randint(97, 123, (length,)), torch.ones(length, dtype=torch.bool)
    stream = torch.randn(layers + 1, length, 2 * heads)
    made = record._recording(model, ids, real, range(layers), maps, stream)
    return explorer.AttentionExplorer(model, tokenizer, lambda _: made, "")
