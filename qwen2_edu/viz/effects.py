"""What do changes cause? The explorer's question to `causes`, answered in plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..causes import Edit, Trace, ablate, cut, effect, follow, patch
from .given import encode
from .labels import chance, token_labels
from .record import Recording


def trace_of(model: Any, recording: Recording) -> Trace:
    """One pass over what the explorer shows, its padding left out."""
    ids = torch.tensor(recording.ids)[recording.real]
    return follow(model, ids[None].to(model.device))


def trace_of_other(model: Any, tokenizer: Any, recording: Recording, text: str) -> Trace:
    """The same of another text, with the tokens that were generated after the first one.

    Raises:
        ValueError: it has not as many tokens, so that places in one are none in the other.
    """
    ids, _ = encode(tokenizer, text)
    ids = torch.cat((ids[0], torch.tensor(recording.ids[recording.prompt :], dtype=torch.long)))
    new, wanted = len(recording.ids) - recording.prompt, int(recording.real.sum())
    if len(ids) != wanted:
        counts = f"the other text has {len(ids) - new} tokens and this one {wanted - new}"
        raise ValueError(f"{counts}: change words for words of as many tokens")
    return follow(model, ids[None].to(model.device))


@torch.no_grad()
def changed(
    trace: Trace,
    tokenizer: Any,
    recording: Recording,
    query: int,
    *,
    off: Sequence[tuple[int, int]] = (),
    to: str = "zero",
    cuts: Sequence[tuple[int | None, int | None, int, int]] = (),
    patches: Sequence[tuple[int, int | str, int]] = (),
    other: Trace | None = None,
) -> dict[str, Any]:
    """What would the model say after a token if all this were so?

    Args:
        query: a place in the explorer's text, padding counted, as all places here.
        off: heads, (layer, head). to: what they say instead, as in `causes.ablate`.
        cuts: (layer, head, query, key), a key that a query cannot see; None = all layers or heads.
        patches: (layer, part, place), taken from `other`; part as in `causes.patch`.

    Returns:
        "token": the one asked about, that comes next, or after the last token the likeliest;
        "delta": what its logit gains; "chances": its probability before and after; "before" and
        "after": the five likeliest, each a word, its id and its probability.

    Raises:
        ValueError: a place that is padding; a layer, head or part that is not there.
    """

    def position(place: int) -> int:
        if not recording.real[place]:
            raise ValueError(f"token {place} is padding: the model says nothing there")
        return int(recording.real[:place].sum())

    config = trace.model.config
    edits: list[Edit] = [ablate(trace, *head, to) for head in off]
    for layer, head, seeing, seen in cuts:
        edits += [
            cut(trace, one, each, position(seeing), position(seen))
            for one in (range(config.num_hidden_layers) if layer is None else [layer])
            for each in (range(config.num_attention_heads) if head is None else [head])
        ]
    edits += [patch(trace, other, layer, part, [position(at)]) for layer, part, at in patches]
    at = position(query)
    before = trace.logits(at)
    last = query == len(recording.ids) - 1 or not recording.real[query + 1]
    token = int(before.argmax()) if last else recording.ids[query + 1]
    found = effect(trace, edits, token, at)
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
