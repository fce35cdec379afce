"""A call of `generate`, checked and completed before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..cache import Cache, DynamicCache, StaticCache
from .effective import check_type, effective_settings, warn_caller
from .settings import GenerationConfig


@dataclass
class Request:
    """All that a run needs, checked."""

    settings: GenerationConfig
    input_ids: Tensor  # (B, T)
    attention_mask: Tensor | None  # bool (B, T), None = nothing padded
    cache: Cache
    steps: int  # new tokens at most
    vocab_limit: int | None
    generator: torch.Generator | None
    tokenizer: Any
    compiled: Any


def prepare(
    model: Any,
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    *,
    generation_config: GenerationConfig | dict[str, Any] | None = None,
    tokenizer: Any = None,
    vocab_limit: int | None = None,
    generator: torch.Generator | None = None,
    compiled: Any = None,
    **options: Any,
) -> Request:
    """Check the arguments of `generate`, which see, and fill in what was not said."""
    s = effective_settings(model, generation_config, **options)
    check_type("attention_mask", attention_mask, Tensor, "a tensor (B, T)")
    check_type("past_key_values", past_key_values, Cache, "a cache of qwen2_edu")
    check_type("vocab_limit", vocab_limit, Integral, "an integer")
    check_type("generator", generator, torch.Generator, "a torch.Generator")
    input_ids = _checked_prompt(model, input_ids, s)
    mask = _checked_mask(attention_mask, input_ids, s)
    T = input_ids.shape[1]
    steps = s.max_length - T if s.max_new_tokens is None else s.max_new_tokens
    if steps < 1:
        raise ValueError(f"max_length={s.max_length} leaves no room after a prompt of {T} tokens")
    longest = model.config.max_position_embeddings
    if T + steps > longest:
        warn_caller(
            f"a prompt of {T} and {steps} new tokens go past max_position_embeddings={longest}: "
            "beyond it the text is likely to get worse"
        )
    if s.stop_strings and tokenizer is None:
        raise ValueError(f"stop_strings={s.stop_strings} need tokenizer=…, to read the ids as text")
    rows = len(input_ids) * s.num_return_sequences
    if s.stop_strings and s.pad_token_id is None and rows > 1:
        raise ValueError(f"{rows} rows that stop at their own time need pad_token_id=… to fill up")
    if tokenizer is not None:
        vocab_limit = min(len(tokenizer), vocab_limit or len(tokenizer))
    if s.seed is not None:
        if generator is not None:
            raise ValueError(f"seed={s.seed} and generator=… say the same thing: give one")
        generator = torch.Generator(input_ids.device).manual_seed(s.seed)
    cache = past_key_values
    if cache is None and s.cache_implementation == "static":
        cache = StaticCache(model.config, T + steps, input_ids.device)
    elif cache is None:
        cache = DynamicCache(model.config)
    else:
        _check_cache(cache, T, steps, mask, s)
    if compiled is not None and not isinstance(cache, StaticCache):
        raise ValueError(
            "compiled=… needs a cache of fixed size: pass cache_implementation='static'"
        )
    return Request(s, input_ids, mask, cache, steps, vocab_limit, generator, tokenizer, compiled)


def _checked_prompt(model: Any, input_ids: Tensor | None, s: GenerationConfig) -> Tensor:
    if input_ids is None:
        input_ids = torch.zeros(1, 0, dtype=torch.long, device=model.device)
    if not isinstance(input_ids, Tensor):
        way_out = 'the tokenizer makes one with return_tensors="pt"'
        if isinstance(input_ids, Mapping) and "input_ids" in input_ids:
            way_out = "pass **inputs, or inputs.input_ids"
        kind = type(input_ids).__name__
        raise TypeError(f"input_ids must be a tensor (B, T), not a {kind}: {way_out}")
    if input_ids.ndim != 2 or len(input_ids) == 0 or input_ids.is_floating_point():
        shape = tuple(input_ids.shape)
        raise ValueError(f"input_ids must be integers (B, T), not {input_ids.dtype} {shape}")
    if input_ids.device != model.device:
        raise ValueError(
            f"input_ids are on {input_ids.device} and the model on {model.device}: pass "
            "input_ids.to(model.device)"
        )
    if input_ids.shape[1] == 0:
        if s.bos_token_id is None:
            raise ValueError("the prompt is empty and there is no bos_token_id to begin with")
        input_ids = input_ids.new_full((len(input_ids), 1), s.bos_token_id)
    V = model.config.vocab_size
    low, high = (int(edge) for edge in input_ids.aminmax())
    if low < 0 or high >= V:
        raise ValueError(
            f"input_ids hold {low if low < 0 else high}, but the model's ids go from 0 to {V - 1}: "
            "is this tokenizer the model's?"
        )
    return input_ids.long()


def _checked_mask(mask: Tensor | None, input_ids: Tensor, s: GenerationConfig) -> Tensor | None:
    """The mask as bool if it hides anything, else None: attention without one is faster."""
    if mask is None:
        pad = -1 if s.pad_token_id is None else s.pad_token_id
        padded = (input_ids[:, [0, -1]] == pad).any(-1)
        if padded.any() and not padded.all():
            warn_caller(
                f"a row begins or ends with the padding id {s.pad_token_id} and there is no "
                "attention_mask: it is read as text; pass the tokenizer's attention_mask too"
            )
        return None
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask {tuple(mask.shape)} must have the shape of input_ids "
            f"{tuple(input_ids.shape)}, cached tokens included"
        )
    mask = mask.bool()
    if not mask[:, -1].all():
        row = int((~mask[:, -1]).nonzero()[0])
        raise ValueError(
            f"row {row} of attention_mask ends in padding, where its answer should begin: "
            'tokenize with padding_side="left"'
        )
    return None if mask.all() else mask


def _check_cache(
    cache: Cache, T: int, steps: int, mask: Tensor | None, s: GenerationConfig
) -> None:
    if s.cache_implementation is not None:
        raise ValueError(
            f"cache_implementation={s.cache_implementation!r} makes a cache and past_key_values "
            "is one: give one"
        )
    held = cache.get_seq_length()
    if held >= T:
        raise ValueError(
            f"the cache holds {held} tokens and input_ids {T}: pass the whole sequence with at "
            f"least one token that the cache has not read, or first call cache.crop({T - 1})"
        )
    if isinstance(cache, StaticCache) and T + steps - 1 > cache.max_length:  # the last is not read
        raise ValueError(
            f"a prompt of {T} and {steps} new tokens do not fit a static cache of "
            f"{cache.max_length}: make it larger, or max_new_tokens smaller"
        )
    hidden = torch.zeros(1) if mask is None else (~mask[:, :held]).sum(-1).cpu()
    remembered = torch.as_tensor(cache.pads).flatten().cpu()
    if held and bool((hidden != remembered).any()):
        raise ValueError(
            f"the cache was filled with {remembered.tolist()} padding tokens a row, attention_mask "
            f"shows {hidden.tolist()}: pass the mask of the whole sequence"
        )
