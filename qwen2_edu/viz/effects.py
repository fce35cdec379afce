"""What is lost without some heads? The explorer's question to `causes`, answered in plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..causes import Trace, ablate, effect, follow
from .labels import chance, token_labels
from .record import Recording


def trace_of(model: Any, recording: Recording) -> Trace:
    """One pass over what the explorer shows, its padding left out."""
    ids = torch.tensor(recording.ids)[recording.real]
    return follow(model, ids[None].to(model.device))


@torch.no_grad()
def without(
    trace: Trace,
    tokenizer: Any,
    recording: Recording,
    heads: Sequence[tuple[int, int]],
    query: int,
    to: str = "zero",
) -> dict[str, Any]:
    """What would the model say after a token if these heads, (layer, head), were off?

    Args:
        query: a place in the explorer's text, padding counted.
        to: what an ablated head says instead, as in `causes.ablate`.

    Returns:
        "token": the one asked about, that comes next, or after the last token the likeliest;
        "delta": what its logit gains; "chances": its probability before and after; "before" and
        "after": the five likeliest, each a word, its id and its probability.

    Raises:
        ValueError: a query that is padding; a head that is not there.
    """
    if not recording.real[query]:
        raise ValueError(f"token {query} is padding: the model says nothing after it")
    position = int(recording.real[:query].sum())
    before = trace.logits(position)
    last = query == len(recording.ids) - 1 or not recording.real[query + 1]
    token = int(before.argmax()) if last else recording.ids[query + 1]
    found = effect(trace, [ablate(trace, *head, to) for head in heads], token, position)
    chances = [logits.softmax(-1) for logits in (before, found.logits)]
    top = chances[0].topk(5)
    tops = [list(zip(top.indices.tolist(), top.values.tolist(), strict=True)), found.top]
    words = token_labels(tokenizer, [token, *(i for five in tops for i, _ in five)])
    pairs = zip(words[1:], tops[0] + tops[1], strict=True)
    rows = [chance(word, p) for word, (_, p) in pairs]
    return {
        "token": words[0]["text"],
        "id": token,
        "comes": not last,
        "delta": round(found.delta, 4),
        "chances": [round(float(each[token]), 5) for each in chances],
        "before": rows[:5],
        "after": rows[5:],
    }
