"""Where do two models part ways? Two that should agree are followed side by side, part by part.

print(compare(ours, theirs, input_ids))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Row(NamedTuple):
    """A station and the largest absolute difference there."""

    station: str
    difference: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; as text, a table.

    rows: in the order in which a model computes.
    tolerance: the difference that counts as rounding.
    """

    rows: list[Row]
    tolerance: float

    @property
    def first(self) -> str | None:
        """The first station that differs by more than rounding, or None. NaN always differs."""
        beyond = (row.station for row in self.rows if not row.difference <= self.tolerance)
        return next(beyond, None)

    def __str__(self) -> str:
        width = max(len(row.station) for row in self.rows) + 2
        rounding = f"≤ {self.tolerance:g}"
        lines = [f"{'station':{width}}max|Δ|"]
        for station, difference in self.rows:
            shown = rounding if difference <= self.tolerance else f"{difference:.2g}"
            lines.append(f"{station:{width}}{shown}{'  <- first' * (station == self.first)}")
        return "\n".join(lines)

    __repr__ = __str__  # a notebook shows the table


def compare(
    model_a: nn.Module, model_b: nn.Module, input_ids: Tensor, tolerance: float = 1e-5
) -> Comparison:
    """At which station do two causal language models first differ?

    Give both the same numeric type and eval mode, or rounding and dropout will be the answer.

    Args:
        model_a, model_b: of this package or of transformers, in any mixture, on any devices.
        input_ids: (B, T).
        tolerance: the largest absolute difference that counts as rounding.

    Raises:
        ValueError: the two have other layers or widths, so there is nothing to compare.
    """
    a, b = stations(model_a, input_ids), stations(model_b, input_ids)
    if len(a) != len(b):
        raise ValueError(f"models of {len(a) // 2 - 1} and {len(b) // 2 - 1} layers")
    rows = []
    for name in a:
        if a[name].shape != b[name].shape:
            shapes = f"{tuple(a[name].shape)} and {tuple(b[name].shape)}"
            raise ValueError(f"{name}: shapes {shapes} cannot be compared")
        gap = torch.where(a[name] == b[name], 0.0, (a[name] - b[name]).abs())
        rows.append(Row(name, gap.max().item()))
    return Comparison(rows, tolerance)


def stations(model: nn.Module, input_ids: Tensor) -> dict[str, Tensor]:
    """What flows from part to part of a causal language model, in float64 on the CPU.

    Each station is what the next part reads. It is noted just before that part runs, so the model
    needs no help: the names of the parts are the released ones.

    Returns:
        "embeddings"; for each layer i "layer i, after attention" and "layer i, after MLP", the
        residual stream; "final norm", what it answers: all (B, T, E). "logits", (B, T, V).

    Raises:
        ValueError: the model passed a station by, or two stations are read by one and the same
            module.
    """
    names, readers = ["embeddings"], []
    for i, layer in enumerate(model.model.layers):
        names += [f"layer {i}, after attention", f"layer {i}, after MLP"]
        readers += [layer.input_layernorm, layer.post_attention_layernorm]
    names, readers = [*names, "final norm"], [*readers, model.model.norm, model.lm_head]
    if len(set(readers)) < len(readers):
        raise ValueError("two stations are read by one module: give each place a module of its own")

    seen: dict[str, Tensor] = {}

    def note(name: str):
        return lambda module, inputs: seen.update({name: _plain(inputs[0])})

    hooks = [r.register_forward_pre_hook(note(n)) for n, r in zip(names, readers, strict=True)]
    try:
        with torch.no_grad():
            logits = model(input_ids.to(model.device), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if missed := [name for name in names if name not in seen]:
        raise ValueError(f"{type(model).__name__} never passed the station {missed[0]!r}")
    return {name: seen[name] for name in names} | {"logits": _plain(logits)}


def _plain(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64, copy=True)
