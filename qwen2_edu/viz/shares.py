"""Who adds to a logit? The explorer's question to `causes.attribution`, answered in plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..causes import Trace, attribution
from .effects import asked, likeliest
from .labels import chance, token_labels
from .opening import why_no_shares
from .record import Recording

SHARE = 3  # bytes of a page that the share of one head takes, packed: 2.4 were measured


@torch.no_grad()
def shares(
    trace: Trace, tokenizer: Any, recording: Recording, query: int, token: int | None = None
) -> dict[str, Any]:
    """What adds directly to the logit of a token that may come after another one?

    Args:
        query: a place in the explorer's text, padding counted.
        token: the id asked about; None = the one that comes, after the last token the likeliest.

    Returns:
        "token", "id", "comes": which one, and does it come next; "logit": as the model computes
        it; "parts": what adds up to it, (name, share) each; "heads" (L, H), what they fetched, and
        "mlps" (L,); all to 0.001. The heads' value biases are one part: said wherever they look.

    Raises:
        ValueError: the place is padding; there is no such token; the model is quantised.
    """
    model = trace.model
    if why := why_no_shares(model):
        raise ValueError(why)
    at, token, comes = asked(trace, recording, query, token)
    found = attribution(trace, token, at)
    final = model.model.norm(trace.flow["stream"][-1][0, at]).float()
    logit = float(final @ model.lm_head.weight[token].float())
    parts = {
        "embedding": float(found.embedding),
        "heads": float(found.heads.sum()),
        "value biases": float(found.biases.sum()),
        "MLPs": float(found.mlps.sum()),
    }
    parts["rounding"] = logit - sum(parts.values())  # in bfloat16 it shows
    return {
        "token": token_labels(tokenizer, [token])[0]["text"],
        "id": token,
        "comes": comes,
        "logit": round(logit, 3),
        "parts": [(name, round(share, 3)) for name, share in parts.items()],
        "heads": [[round(share, 3) for share in layer] for layer in found.heads.tolist()],
        "mlps": [round(share, 3) for share in found.mlps.tolist()],
    }


@torch.no_grad()
def shares_to_choose(
    trace: Trace, tokenizer: Any, recording: Recording, query: int, token: int | None = None
) -> dict[str, Any]:
    """The same, and "choices", what else a reader would ask about: the five likeliest tokens, then
    the one that comes and the one asked about, if they are others; as `labels.chance` has them.
    """
    found = shares(trace, tokenizer, recording, query, token)
    at, default, _ = asked(trace, recording, query)
    logits = trace.logits(at)
    choices, chances = likeliest(tokenizer, logits), logits.softmax(-1)
    for one in dict.fromkeys((default, found["id"])):
        if one not in [choice["id"] for choice in choices]:
            choices.append(chance(token_labels(tokenizer, [one])[0], float(chances[one])))
    return found | {"choices": choices}


def shares_of_all(
    trace: Trace, tokenizer: Any, recording: Recording
) -> Sequence[dict[str, Any] | None]:
    """For a page, after each token; None = padding."""
    real = recording.real.tolist()
    return [
        shares(trace, tokenizer, recording, query) if there else None
        for query, there in enumerate(real)
    ]
