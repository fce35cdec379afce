"""What `generate` does to logits before it chooses: the functions of `sampling`, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor

from .. import sampling

Processor = Callable[[Tensor, Tensor], Tensor]  # ids (B, T), logits (B, V) -> logits (B, V)


def processors(
    s: Any,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    own: Iterable[Processor] = (),
) -> list[Processor]:
    """What the settings ask for, a `GenerationConfig`: functions of (ids, logits), in their order.

    Args:
        prompt_length: how many of the ids are the prompt.
        attention_mask: of the prompt, (B, T), False = padding.
        own: the caller's, which come before those that only shape what is drawn from.
    """
    steps: list[Processor] = []
    least, ends = prompt_length + (s.min_new_tokens or 0), [[end] for end in s.eos_token_id or ()]
    if s.repetition_penalty != 1:
        seen = partial(sampling.seen_tokens, attention_mask=attention_mask)
        penalty = s.repetition_penalty
        steps.append(lambda ids, x: sampling.repetition_penalty(x, seen(ids, x.shape[-1]), penalty))
    if s.no_repeat_ngram_size:
        steps.append(lambda ids, x: sampling.no_repeated_ngrams(x, ids, s.no_repeat_ngram_size))
    if words := [word for word in s.bad_words_ids or () if word not in ends]:
        steps.append(lambda ids, x: sampling.without(x, ids, words))
    if ends and s.min_new_tokens:
        steps.append(lambda ids, x: sampling.without(x, ids, ends) if ids.shape[1] < least else x)
    if s.remove_invalid_values:
        steps.append(lambda ids, x: x.nan_to_num(0.0))
    steps += own
    if s.do_sample:
        if s.temperature != 1:
            steps.append(lambda ids, x: sampling.temperature(x, s.temperature))
        if s.top_k > 0:
            steps.append(lambda ids, x: sampling.top_k(x, s.top_k))
        if s.top_p < 1:
            steps.append(lambda ids, x: sampling.top_p(x, s.top_p))
        if s.min_p > 0:
            steps.append(lambda ids, x: sampling.min_p(x, s.min_p))
    return steps
