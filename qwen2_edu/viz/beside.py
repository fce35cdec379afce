"""Two attention explorers in a row that choose together: two texts, or two models on one text."""

from __future__ import annotations

from itertools import count
from typing import Any

from ipywidgets import HBox

from .explorer import AttentionExplorer

LINKED = ("layer", "head", "query", "key")
_READINGS = count(1)


def side_by_side(left: AttentionExplorer, right: AttentionExplorer) -> HBox:
    """Show two explorers beside each other; what is chosen in one is chosen in the other.

        one, two = (attention_explorer(model, tokenizer, text) for text in texts)
        side_by_side(one, two)

    A query or a key is a place in the text; what the other explorer does not have stays as it was.
    Each then has a switch that draws its map minus the other's, where their cells are the same.

    Args:
        left, right: of one model and two texts, or of two models whose tokenizers agree.

    Raises:
        TypeError: no explorer. ValueError: one explorer twice; tokenizers that cut differently.
    """
    for one in (left, right):
        if not isinstance(one, AttentionExplorer):
            raise TypeError(f"expected what attention_explorer made, not {type(one).__name__}")
    if left is right:
        raise ValueError("left and right are one explorer: make a second one")
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
        one.observe(lambda _: meet(left, right), "data")  # it has read another text
    meet(left, right)
    return HBox([left, right])


def meet(left: AttentionExplorer, right: AttentionExplorer) -> None:
    """Tell each explorer about the other one, and whether a difference can be drawn."""
    why, turn = no_difference(left, right), next(_READINGS)
    for one, side in ((left, "right"), (right, "left")):
        one.beside = {"side": side, "why": why, "first": one.other.recording.first, "turn": turn}


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
