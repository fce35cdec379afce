"""Where do two models part ways? `print(compare(ours, theirs, input_ids))` follows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; as text, a table."""

    differences: dict[str, float]  # the largest at each station, in the order of computing
    tolerance: float  # the difference that counts as rounding

    @property
    def first(self) -> str | None:
        """The first station that differs by more than rounding, or None. NaN always differs."""
        return next((name for name, x in self.differences.items() if not x <= self.tolerance), None)

    def __str__(self) -> str:
        width = max(map(len, self.differences)) + 2
        lines = [f"{'station':{width}}max|Δ|"]
        for station, difference in self.differences.items():
            shown = f"≤ {self.tolerance:g}" if difference <= self.tolerance else f"{difference:.2g}"
            lines.append(f"{station:{width}}{shown}{'  <- first' * (station == self.first)}")
        return "\n".join(lines)

    __repr__ = __str__  # a notebook shows the table


def compare(
    model_a: nn.Module, model_b: nn.Module, input_ids: Tensor, tolerance: float = 1e-5
) -> Comparison:
    """At which station do two causal language models first differ?

    They may be of this package or of transformers, in one numeric type and in eval mode, or
    rounding and dropout will be the answer; input_ids (B, T). ValueError: they differ in layers or
    widths.
    """
    a, b = stations(model_a, input_ids), stations(model_b, input_ids)
    if len(a) != len(b):
        raise ValueError(f"models of {len(a) // 2 - 1} and {len(b) // 2 - 1} layers")
    differences = {}
    for (name, x), y in zip(a.items(), b.values(), strict=True):
        if x.shape != y.shape:
            raise ValueError(f"{name}: shapes {tuple(x.shape)} and {tuple(y.shape)} cannot agree")
        gap = torch.where(x == y, 0.0, (x - y).abs())  # two infinities are equal too
        differences[name] = gap.max().item()
    return Comparison(differences, tolerance)


def first_not_finite(model: nn.Module, input_ids: Tensor | None = None, **inputs: Any) -> str:
    """Where does a pass first hold NaN or an infinity, and which weights do? Of a model that cannot
    be followed, as when it is quantised, the weights alone are looked at.
    """
    try:
        passed = stations(model, input_ids, **inputs).items()
        found = [name for name, x in passed if not x.isfinite().all()]
    except ValueError:
        found = []
    weights = model.state_dict().items()
    bad = [name for name, x in weights if x.is_floating_point() and not x.isfinite().all()]
    said = [f"first at {found[0]!r}"] if found else []
    return ", ".join(said + [f"{name} holds some" for name in bad[:3]]) or "not so in a second pass"


def stations(model: nn.Module, input_ids: Tensor | None = None, **inputs: Any) -> dict[str, Tensor]:
    """What flows from part to part of a causal language model, in float64 on the CPU.

    Each station is what the next part reads, noted just before that part runs.

    Returns:
        "embeddings"; for each layer i "layer i, after attention" and "layer i, after MLP", the
        residual stream; "final norm", what it answers: all (B, T, E). "logits", (B, T, V).

    Raises:
        ValueError: the model passed a station by, or one module reads two of them.
    """
    if not hasattr(model, "lm_head"):
        raise ValueError(f"model must be a causal language model, not a {type(model).__name__}")
    readers, station = {}, "embeddings"
    for i, layer in enumerate(model.model.layers):
        readers[station] = layer.input_layernorm
        readers[f"layer {i}, after attention"] = layer.post_attention_layernorm
        station = f"layer {i}, after MLP"
    readers |= {station: model.model.norm, "final norm": model.lm_head}
    if len(set(readers.values())) < len(readers):
        raise ValueError("two stations are read by one module: give each place a module of its own")
    seen: dict[nn.Module, Tensor] = {}

    def note(reader: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[reader] = inputs[0].to("cpu", torch.float64, copy=True)

    hooks = [reader.register_forward_pre_hook(note) for reader in readers.values()]
    try:
        with torch.no_grad():
            if input_ids is not None:
                inputs["input_ids"] = input_ids.to(model.device)
            logits = model(**inputs, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if missed := [station for station, reader in readers.items() if reader not in seen]:
        raise ValueError(f"{type(model).__name__} never passed the station {missed[0]!r}")
    found = {station: seen[reader] for station, reader in readers.items()}
    return found | {"logits": logits.to("cpu", torch.float64)}
