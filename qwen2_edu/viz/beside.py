"""Two attention explorers in a row that choose together: two texts, or two models on one text."""

from __future__ import annotations

from typing import Any

from ipywidgets import HBox

from .explorer import AttentionExplorer

LINKED = ("layer", "head", "query")


def side_by_side(left: AttentionExplorer, right: AttentionExplorer) -> HBox:
    """Show two explorers beside each other; what is chosen in one is chosen in the other.

        one, two = (attention_explorer(model, tokenizer, text) for text in texts)
        side_by_side(one, two)

    A query is a place in the text; what the other explorer does not have stays as it was.

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
        if change["new"] in other.choices(change["name"]):
            setattr(other, change["name"], change["new"])

    left.observe(lambda change: follow(change, right), LINKED)
    right.observe(lambda change: follow(change, left), LINKED)
    for name in LINKED:
        follow({"name": name, "new": getattr(left, name)}, right)
    return HBox([left, right])
