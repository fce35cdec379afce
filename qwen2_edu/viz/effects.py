"""What do changes cause? The explorer's question to `causes`, answered in plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..causes import Edit, Trace, ablate, attribution, cut, effect, follow, patch
from .given import encode
from .labels import chance, token_labels
from .opening import why_no_shares
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
        has = f"{len(ids) - new} token{'s' * (len(ids) - new != 1)}"
        counts = f"the other text has {has} and this one {wanted - new}"
        raise ValueError(f"{counts}: change words for words of as many tokens")
    return follow(model, ids[None].to(model.device))


def position_of(recording: Recording, place: int) -> int:
    """Where a token stands without padding. ValueError: it is padding."""
    if not recording.real[place]:
        raise ValueError(f"token {place} is padding: the model says nothing there")
    return int(recording.real[:place].sum())


def asked(
    trace: Trace, recording: Recording, query: int, token: int | None = None
) -> tuple[int, int, bool]:
    """The position asked about, the token asked about after it, and whether it comes next.

    Args:
        query: a place in the explorer's text, padding counted.
        token: its id; None = the one that comes next, or after the last token the likeliest.
    """
    at, ids = position_of(recording, query), recording.ids
    last = query == len(ids) - 1 or not recording.real[query + 1]
    if token is None:
        token = int(trace.logits(at).argmax()) if last else ids[query + 1]
    return at, token, not last and token == ids[query + 1]


def likeliest(tokenizer: Any, logits: Tensor) -> list[dict[str, Any]]:
    """The five likeliest tokens, each a word, its id and its probability."""
    top = logits.softmax(-1).topk(5)
    words = token_labels(tokenizer, top.indices.tolist())
    return [chance(word, p) for word, p in zip(words, top.values.tolist(), strict=True)]


@torch.no_grad()
def changed(
    trace: Trace,
    tokenizer: Any,
    recording: Recording,
    query: int,
    *,
    token: int | None = None,
    off: Sequence[tuple[int, int]] = (),
    to: str = "zero",
    cuts: Sequence[tuple[int | None, int | None, int, int]] = (),
    patches: Sequence[tuple[int, int | str, int]] = (),
    other: Trace | None = None,
) -> dict[str, Any]:
    """What would the model say after a token if all this were so?

    Args:
        query: a place in the explorer's text, padding counted, as all places here.
        token: see `asked`.
        off: heads, (layer, head). to: what they say instead, as in `causes.ablate`.
        cuts: (layer, head, query, key), a key that a query cannot see; None = all layers or heads.
        patches: (layer, part, place), taken from `other`; part as in `causes.patch`.

    Returns:
        "token": the one asked about, and whether it "comes" next; "delta": what its logit gains;
        "direct": what the heads that are off add to it directly, None = there is no telling;
        "chances": its probability before and after; "before" and "after": `likeliest`.

    Raises:
        ValueError: a place that is padding; a layer, head or part that is not there.
    """
    config = trace.model.config
    edits: list[Edit] = [ablate(trace, *head, to) for head in off]
    for layer, head, seeing, seen in cuts:
        edits += [
            cut(trace, one, each, *(position_of(recording, place) for place in (seeing, seen)))
            for one in (range(config.num_hidden_layers) if layer is None else [layer])
            for each in (range(config.num_attention_heads) if head is None else [head])
        ]
    edits += [
        patch(trace, other, layer, part, [position_of(recording, place)])
        for layer, part, place in patches
    ]
    at, token, comes = asked(trace, recording, query, token)
    found, before = effect(trace, edits, token, at), trace.logits(at)
    direct = None
    if off and not why_no_shares(trace.model):
        added = attribution(trace, token, at).heads
        direct = round(sum(float(added[head]) for head in {tuple(head) for head in off}), 4)
    return {
        "token": token_labels(tokenizer, [token])[0]["text"],
        "id": token,
        "comes": comes,
        "delta": round(found.delta, 4),
        "direct": direct,
        "chances": [round(float(each.softmax(-1)[token]), 5) for each in (before, found.logits)],
        "before": likeliest(tokenizer, before),
        "after": likeliest(tokenizer, found.logits),
    }
