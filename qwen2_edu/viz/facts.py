"""What the browser is told of a recording besides its weights: words, scores, steps, sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..config import SLIDING
from . import record
from .labels import chance, reads_right_to_left, token_labels


def page_data(model: Any, tokenizer: Any, recording: record.Recording) -> dict[str, Any]:
    """All that the browser shows besides weights: words, scores, steps."""
    r, config = recording, model.config
    H, G, T = config.num_attention_heads, config.num_key_value_heads, len(r.ids)
    new = T - r.prompt
    tokens = f"{r.prompt} + {new} generated tokens" if new else f"{T} token{'s' * (T != 1)}"
    layers = layer_facts(config, r.layers)
    windows = [config.sliding_window] if any(layer["sliding"] for layer in layers) else []
    masks = [record.effective_mask(r.real, window) for window in (None, *windows)]
    head = model.get_output_embeddings() is not None
    opens = dict(zip(("layer", "head", "query", "key"), r.opens, strict=True))
    names = ["embedding", *(f"layer {i}" for i in range(config.num_hidden_layers))]
    return {
        "text": tokenizer.decode(torch.tensor(r.ids)[: r.prompt][r.real[: r.prompt]].tolist()),
        "title": f"{tokens}, {len(r.layers)} layers of {H} query heads on {G} key heads",
        "tokens": token_labels(tokenizer, r.ids),
        "rtl": reads_right_to_left(tokenizer.decode(r.ids, skip_special_tokens=True)),
        "heads": H,
        "groups": G,
        "layers": layers,
        "reasons": sorted({int(why) for mask in masks for why in mask.unique()} - {record.SEEN}),
        "behaviours": [
            {
                "name": name,
                "label": label,
                "help": says,
                "scores": rows(r.scores[name]),
                "views": {view: rows(scores[name]) for view, scores in r.view_scores.items()},
            }
            for name, (label, says) in record.BEHAVIOURS.items()
        ],
        "views": [
            {"name": name, "label": label, "help": says}
            for name, (label, says) in record.VIEWS.items()
        ],
        "first": r.first,
        "opens": opens | {"rows": rows(record.looking(r, opens["query"], opens["key"]))},
        "thumbnail": r.thumbnails["raw"].shape[-1],
        "steps": [_step(tokenizer, step) for step in r.steps],
        "check": check_sentence(r.cache_error, model.dtype, config.num_hidden_layers),
        "lens": names if head else [],
        "lensNote": "" if head else "This model has no head over the vocabulary.",
        "rounded": "",
    }


def layer_facts(config: Any, layers: Sequence[int]) -> list[dict[str, Any]]:
    """For each layer its badge, and why it slides or not; a heading where the kind changes."""
    facts, before = [], None
    kinds = {(config.layer_types[i], record.why_this_kind(config, i)) for i in layers}
    for i in layers:
        sliding = config.layer_types[i] == SLIDING
        badge = f"sliding {config.sliding_window}" if sliding else "full"
        kind = f"Sliding window of {config.sliding_window} tokens" if sliding else "Full attention"
        why = record.why_this_kind(config, i)
        where = f"in all {len(layers)} layers" if len(kinds) == 1 else f"from layer {i} on"
        heading = None if sliding is before else f"{kind} {where}: {why}"
        before = sliding
        facts.append(
            {"index": i, "sliding": sliding, "badge": badge, "why": why, "heading": heading}
        )
    return facts


def rounding_sentence(step: int) -> str:
    """How coarse are the weights of a page? Their bytes, 255·√weight, are multiples of `step`."""
    if step == 1:
        return ""
    return (
        f"To keep this page small its weights are rounded: within {step / 510:.3f} for weights up "
        f"to 0.25, within {step / 255:.3f} above."
    )


def check_sentence(error: float | None, dtype: torch.dtype, layers: int = 8) -> str:
    """Do rows decoded with the cache equal those of one full pass? In words.

    Args:
        error: `Recording.cache_error`; None = nothing was generated.
        dtype: of the model. Numbers of two bytes are rounded after each step, so they can agree
            to about two digits and no better.
        layers: of the model. Each works on rounded numbers and rounds again: more layers, more Δ.
    """
    if error is None:
        return ""
    # The released model's 24 layers measured 7e-5 in fp32; a wrong row is off by 1e-2 and more.
    base = {torch.float64: 1e-5, torch.float32: 5e-5, torch.float16: 0.02}.get(dtype, 0.05)
    limit = base * max(1, layers / 8)
    kind = str(dtype).removeprefix("torch.")
    rounding = f", in {kind}" if dtype.itemsize == 2 else ""
    said = f"those of one pass: max|Δ| = {error:.1g}{rounding}"
    if error <= limit:
        return f"Rows decoded with the cache equal {said}"
    return (
        f"Rows decoded with the cache differ from {said}: rounding in {layers} layers explains "
        f"{limit:.1g}, so the cache may be at fault"
    )


def rows(scores: torch.Tensor) -> list[list[float | None]]:
    return [[_number(score) for score in row] for row in scores.tolist()]


def _step(tokenizer: Any, step: record.Step) -> dict[str, Any]:
    drawn, *others = token_labels(tokenizer, [step.token_id, *(i for i, _ in step.alternatives)])
    chances = [chance(word, p) for word, (_, p) in zip(others, step.alternatives, strict=True)]
    said = chance(drawn, step.probability)
    return {"position": step.position, **said, "alternatives": chances}


def _number(score: float) -> float | None:
    return None if math.isnan(score) else round(score, 4)
