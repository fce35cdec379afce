"""Two attention explorers in a row that choose together: two texts, or two models on one text."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
from ipywidgets import HBox
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from .explorer import AttentionExplorer
from .palette import drawable
from .static import display_apart

LINKED = ("layer", "head", "query", "key")
_READINGS = count(1)


class SideBySide(HBox):
    """Two explorers in a row; where the widget is gone or never came, a picture of them."""

    def _ipython_display_(self) -> None:
        if self.comm is not None:  # it is not closed
            picture = {"image/png": base64.b64encode(self.png()).decode()}
            display_apart(self._repr_mimebundle_() | picture)

    def __repr__(self) -> str:
        return "SideBySide: " + " | ".join(one.data["title"] for one in self.children)

    def png(self) -> bytes:
        """The figure of each explorer under its name, the left one above."""
        parts = []
        for one in self.children:
            figure = one.static()
            name = Figure(figsize=(figure.get_figwidth(), 0.4))
            name.text(0.01, 0.3, drawable(one.beside["name"]), weight="bold")
            for part in (name, figure):
                part.set_dpi(72)
                canvas = FigureCanvasAgg(part)
                canvas.draw()
                parts.append(np.asarray(canvas.buffer_rgba()))
        widest = max(part.shape[1] for part in parts)
        room = [((0, 0), (0, widest - part.shape[1]), (0, 0)) for part in parts]
        parts = [np.pad(*each, constant_values=255) for each in zip(parts, room, strict=True)]
        file = io.BytesIO()
        imsave(file, np.concatenate(parts), format="png")
        return file.getvalue()


def side_by_side(
    left: AttentionExplorer, right: AttentionExplorer, *, names: tuple[str, str] | None = None
) -> SideBySide:
    """Show two explorers beside each other; what is chosen in one is chosen in the other.

        one, two = (attention_explorer(model, tokenizer, text) for text in texts)
        side_by_side(one, two)

    A query or a key is a place in the text; what the other explorer does not have stays as it was.
    Each then has a switch that draws its map minus the other's, where their cells are the same.

    Args:
        left, right: of one model and two texts, or of two models whose tokenizers agree.
        names: what stands over each, such as ("before", "after"); None = its text, or if the models
            are two, its layers, parameters and dtype.

    Raises:
        TypeError: no explorer. ValueError: one explorer twice; tokenizers that cut differently;
            not two names.
    """
    for one in (left, right):
        if not isinstance(one, AttentionExplorer):
            raise TypeError(f"expected what attention_explorer made, not {type(one).__name__}")
    if left is right:
        raise ValueError("left and right are one explorer: make a second one")
    if names is not None and (isinstance(names, str) or len(names) != 2):
        raise ValueError(f"names={names!r}: expected two, of the left and of the right explorer")
    if any(
        getattr(left.tokenizer, part) != getattr(right.tokenizer, part)
        for part in ("vocab", "added_tokens_decoder")
    ):
        raise ValueError(
            f"the tokenizers differ, {len(left.tokenizer)} and {len(right.tokenizer)} tokens: a "
            "place in one text is none in the other. Compare models that share a tokenizer"
        )

    def follow(change: dict[str, Any], other: AttentionExplorer) -> None:
        if change["new"] is None or change["new"] in other.choices(change["name"]):
            setattr(other, change["name"], change["new"])

    left.observe(lambda change: follow(change, right), LINKED)
    right.observe(lambda change: follow(change, left), LINKED)
    for name in LINKED:
        follow({"name": name, "new": getattr(left, name)}, right)
    for one, other in ((left, right), (right, left)):
        one.other = other
        one.observe(lambda _: meet(left, right, names), "data")  # it has read another text
    meet(left, right, names)
    return SideBySide([left, right])


def meet(left: AttentionExplorer, right: AttentionExplorer, names: Sequence[str] | None) -> None:
    """Tell each explorer about the other one, and whether a difference can be drawn."""
    why, turn = no_difference(left, right), next(_READINGS)
    names = names or what_differs(left, right)
    for one, side, name in ((left, "right", names[0]), (right, "left", names[1])):
        about = {"side": side, "name": name, "why": why, "turn": turn}
        one.beside = about | {"first": one.other.recording.first}


def what_differs(left: AttentionExplorer, right: AttentionExplorer) -> list[str]:
    """What tells one from the other: its text, or its model."""
    if left.model is right.model:
        return [f"“{one.data['text']}”" for one in (left, right)]
    told = []
    for model in (left.model, right.model):
        note = model.config.extra.get("quantization_config", {})
        kind = note.get("kind") or str(model.dtype).removeprefix("torch.")
        layers, parameters = model.config.num_hidden_layers, model.num_parameters()
        told.append(f"{layers} layers, {parameters:,} parameters, {kind}")
    return told


def no_difference(left: AttentionExplorer, right: AttentionExplorer) -> str:
    """Why the cells of their maps are not the same ones; "" = they are."""
    measured = [one.recording for one in (left, right)]
    for what, (here, there) in {
        "tokens": [len(r.ids) for r in measured],
        "heads": [r.maps.shape[1] for r in measured],
        "key/value heads": [one.model.config.num_key_value_heads for one in (left, right)],
    }.items():
        if here != there:
            return f"{here} {what} on the left, {there} on the right."
    if measured[0].layers != measured[1].layers:
        shown = [", ".join(map(str, r.layers)) for r in measured]
        return f"layers {shown[0]} on the left, {shown[1]} on the right."
    return ""
