"""What the caller gave: is it a model that can be looked into, which text, which layers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import Qwen2Config
from ..pretrained import Qwen2PreTrainedModel


def check_model(model: Any) -> None:
    """Refuse what cannot be recorded.

    Raises:
        TypeError: not a model of this package. ValueError: it is under torch.compile.
    """
    compiled = isinstance(model, torch.nn.Module) and (
        type(model).__name__ == "OptimizedModule"
        or any(part._compiled_call_impl is not None for part in model.modules())
    )
    if compiled:
        raise ValueError(
            "this model is under torch.compile, which has fixed how it computes attention: pass "
            "the model it was made from, or load it again"
        )
    if not isinstance(model, Qwen2PreTrainedModel):
        raise TypeError(
            f"model must be one of qwen2_edu, such as Qwen2ForCausalLM, not {type(model).__name__}"
        )


def encode(tokenizer: Any, text_or_messages: Any) -> tuple[Tensor, Tensor]:
    """A text, a list of messages, or what a tokenizer made of one text: ids (1, T), real (T,).

    Raises:
        TypeError: something else. ValueError: nothing to read, or several rows.
    """
    given = text_or_messages
    if isinstance(given, str):
        given = tokenizer([given])
    elif isinstance(given, Sequence) and given and all(isinstance(m, Mapping) for m in given):
        asks = given[-1].get("role") != "assistant"
        given = tokenizer.apply_chat_template([given], add_generation_prompt=asks)
    elif isinstance(given, (list, tuple)) and not given:
        raise ValueError("there are no messages: the explorer needs at least one token to draw")
    if not isinstance(given, Mapping) or "input_ids" not in given:
        raise TypeError(
            "text_or_messages must be a text, a list of messages or the tokenizer's result for one "
            f"text, not {type(given).__name__}"
        )
    ids = torch.as_tensor(given["input_ids"], dtype=torch.long)
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.shape[0] != 1:
        raise ValueError(f"the explorer shows one text, not {ids.shape[0]} rows: pass one of them")
    real = torch.as_tensor(given.get("attention_mask", torch.ones_like(ids))).reshape(-1).bool()
    if not real.any():
        raise ValueError("the text is empty: the explorer needs at least one token to draw")
    return ids, real.to(ids.device)


def choose_layers(config: Qwen2Config, layers: Sequence[int] | None) -> list[int]:
    """The layers to keep, in order; None = all. Raises ValueError for one that is not there."""
    count = config.num_hidden_layers
    chosen = sorted(set(range(count) if layers is None else layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise ValueError(f"layers={layers!r}: choose some of 0 to {count - 1}, or None for all")
    return chosen
