"""What `generate` does to logits before it chooses: the functions of `sampling`, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import sampling

Processor = Callable[[Tensor, Tensor], Tensor]  # ids (B, T), logits (B, V) -> logits (B, V)


def known(logits: Tensor, limit: int, size: int) -> Tensor:
    """Logits of `size` ids, -inf from `limit` on: there a release has rows of padding, or a smaller
    model none.
    """
    if logits.shape[-1] == size <= limit:
        return logits
    logits = logits[:, :limit]
    return pad(logits, (0, size - logits.shape[-1]), value=-torch.inf)


def obeyed(function: Callable, option: str, ids: Tensor, scores: Any) -> Tensor:
    """What a caller's function answers: new logits, or which rows end. TypeError: neither."""
    answer = function(ids, scores)
    answer = torch.tensor(answer) if isinstance(answer, bool) else answer
    kind, shape = getattr(answer, "dtype", type(answer).__name__), getattr(answer, "shape", ())
    if option == "stopping_criteria":
        fits, wanted = kind == torch.bool and shape in ((), (len(ids),)), f"bool ({len(ids)},)"
    else:
        fits = getattr(kind, "is_floating_point", False) and shape == scores.shape
        wanted = f"floats {tuple(scores.shape)}"
    if not fits:
        raise TypeError(f"{option} must answer a tensor, {wanted}, not {kind} {tuple(shape)}")
    return answer


def keep(logits: Tensor, least: int, cut: Tensor) -> Tensor:
    """What was cut off of logits, but for the `least` best of them."""
    return cut if least == 1 else logits.where(sampling.top_k(logits, least) > -torch.inf, cut)


def processors(
    s: Any,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    own: Iterable[Processor] = (),
    size: int | None = None,
    limit: int = 0,
) -> list[Processor]:
    """What the settings ask for, a `GenerationConfig`: functions of (ids, logits), in their order.

    Args:
        prompt_length: how many of the ids are the prompt.
        attention_mask: of the prompt, (B, T), False = padding.
        own: the caller's, which come before those that only shape what is drawn from.
        size, limit: of `known`; None = all that there are.
    """
    penalty, n, draws = float(s.repetition_penalty), s.no_repeat_ngram_size, s.do_sample
    heat, seen = float(s.temperature), partial(sampling.seen_tokens, attention_mask=attention_mask)
    least, ends = prompt_length + (s.min_new_tokens or 0), [[end] for end in s.eos_token_id or ()]
    # With beams more than the ends must be left: one token that goes on, as in transformers.
    least_kept = 1 if (s.num_beams or 1) == 1 else 1 + max(1, len(ends))
    words = [word for word in s.bad_words_ids or () if word not in ends]
    steps = [  # when, and what; beams are ranked by the sum of their log probabilities
        (size is not None, lambda ids, x: known(x, limit, size)),
        ((s.num_beams or 1) > 1, lambda ids, x: x.log_softmax(-1)),
        (
            penalty != 1,
            lambda ids, x: sampling.repetition_penalty(x, seen(ids, x.shape[-1]), penalty),
        ),
        (n, lambda ids, x: sampling.no_repeated_ngrams(x, ids, n)),
        (words, lambda ids, x: sampling.without(x, ids, words)),
        (
            ends and s.min_new_tokens,
            lambda ids, x: sampling.without(x, ids, ends) if ids.shape[1] < least else x,
        ),
        (s.remove_invalid_values, lambda ids, x: x.nan_to_num(0.0)),
        *((True, partial(obeyed, function, "logits_processor")) for function in own),
        (draws and s.temperature != 1, lambda ids, x: sampling.temperature(x, heat)),
        (draws and s.top_k > 0, lambda ids, x: sampling.top_k(x, max(s.top_k, least_kept))),
        (draws and s.top_p < 1, lambda ids, x: keep(x, least_kept, sampling.top_p(x, s.top_p))),
        (draws and s.min_p > 0, lambda ids, x: keep(x, least_kept, sampling.min_p(x, s.min_p))),
    ]
    return [step for wanted, step in steps if wanted]
