"""What a model costs, worked out from its configuration alone: parameters and memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .config import FULL, SLIDING, Qwen2Config
from .model import Qwen2ForCausalLM
from .pretrained import Undrawn

SHOWN = """num_hidden_layers hidden_size intermediate_size num_attention_heads num_key_value_heads
head_dim vocab_size max_position_embeddings tie_word_embeddings rope_parameters dtype"""
PARTS = {"embed_tokens": "embedding", "self_attn": "attention", "mlp": "MLP", "norm": "norms"}


def parameters_by_part(config: Qwen2Config) -> dict[str, int]:
    """How many numbers do "embedding", "attention", "MLP", "norms" and "head" hold? A tied head
    counts as embedding.
    """
    with torch.device("meta"), Undrawn():  # tensors have shapes and no memory
        model = Qwen2ForCausalLM(config)
    numbers = dict.fromkeys((*PARTS.values(), "head"), 0)
    for name, parameter in model.named_parameters():  # what is tied comes once
        part = next((PARTS[key] for key in PARTS if key in name), "head")
        numbers[part] += parameter.numel()
    return numbers


def cache_by_kind(config: Qwen2Config, tokens: int) -> dict[str, int]:
    """How many numbers does the cache keep of a text, in "full_attention" and "sliding_attention"?

    A layer keeps G keys and G values of width D a token; a sliding one, of its window's alone.
    """
    per_token = 2 * config.num_key_value_heads * config.head_dim
    kept = {FULL: tokens, SLIDING: min(tokens, config.sliding_window or tokens)}
    return {kind: config.layer_types.count(kind) * per_token * n for kind, n in kept.items()}


def tables(config: Qwen2Config) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Configuration, parameters and memory for people to read: (heads, rows) of each table."""
    rows = [[name, str(getattr(config, name))] for name in SHOWN.split()]
    sliding = [str(i) for i, kind in enumerate(config.layer_types) if kind == SLIDING]
    rows += [["layers that slide", ", ".join(sliding) or "none"]]
    rows += [["their window", f"{config.sliding_window} tokens"]] if sliding else []
    yield ["Configuration", ""], rows

    parts = parameters_by_part(config)
    total, inner = sum(parts.values()), parts["attention"] + parts["MLP"] + parts["norms"]
    numbers = {**parts, "total": total, "non-embedding": inner}
    rows = [[part, f"{n:,}", f"{n / total:.1%}"] for part, n in numbers.items()]
    yield ["Parameters", "numbers", "share"], rows

    memory = {"weights": total}
    for kind, window in config.window_by_type.items():
        layers = f"{config.layer_types.count(kind)} {kind.split('_')[0]} layers"
        memory[f"cache of 1,000 tokens, {layers}"] = cache_by_kind(config, 1000)[kind]
        if window is not None:
            memory[f"at most, {window:,} tokens"] = cache_by_kind(config, window)[kind]
    rows = [[name, *(f"{n * s / 1e6:,.2f} MB" for s in (4, 2))] for name, n in memory.items()]
    yield ["Memory", "float32", "bfloat16, float16"], rows
