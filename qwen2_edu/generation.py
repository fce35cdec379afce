"""Text generation: one loop that answers a token per row and step; all else stands on it.

Nothing here knows what a token means. A tokenizer is needed only to watch for stop strings, to
stream text, and to never choose an id beyond its last token, where a release pads its embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import sampling
from .cache import Cache
from .decoding.beam import beam_search
from .decoding.effective import effective_settings
from .decoding.request import Request, prepare
from .decoding.settings import GenerationConfig
from .decoding.streaming import StopStrings, TextPieces

__all__ = ["GenerationConfig", "effective_settings", "generate", "stream", "stream_ids"]


def prefill(model: Any, input_ids: Tensor, cache: Cache, mask: Tensor | None = None) -> Tensor:
    """Read the part of the prompt that `cache` does not hold; answer the logits after its end.

    Args:
        input_ids: (B, T), what the cache holds included.
        mask: bool (B, T), False = padding; None = nothing padded.

    Returns:
        (B, V)
    """
    held = cache.get_seq_length()
    new = None if mask is None or mask[:, held:].all() else mask[:, held:]
    out = model(input_ids[:, held:], attention_mask=new, past_key_values=cache, logits_to_keep=1)
    return out.logits[:, -1]


def decode(model: Any, token: Tensor, cache: Cache) -> Tensor:
    """Read one more token of each row, (B,); answer the logits after it, (B, V)."""
    return model(token[:, None], past_key_values=cache, logits_to_keep=1).logits[:, -1]


def choose(
    logits: Tensor,
    s: GenerationConfig,
    seen: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The next token of each row, as the settings say.

    Shape:
        logits (B, V), seen: bool (B, V), the tokens to penalise -> (B,)
    """
    if seen is not None:
        logits = sampling.repetition_penalty(logits.float(), seen, s.repetition_penalty)
    if not s.do_sample:
        return logits.argmax(-1)
    logits = sampling.temperature(logits.float(), s.temperature)
    if s.top_k > 0:
        logits = sampling.top_k(logits, s.top_k)
    if s.top_p < 1:
        logits = sampling.top_p(logits, s.top_p)
    if s.min_p > 0:
        logits = sampling.min_p(logits, s.min_p)
    return sampling.draw(logits, generator)


@torch.no_grad()  # not inference_mode: nobody could train on its tensors, or continue its caches
def next_tokens(model: Any, request: Request) -> Iterator[Tensor]:
    """The loop: yields the next id of each row until every row has ended, or `steps` times.

    Shape:
        (B * num_return_sequences,) each
    """
    s, cache, ids, mask = request.settings, request.cache, request.input_ids, request.attention_mask
    logits = prefill(model, ids, cache, mask)  # (B, V)
    if s.num_return_sequences > 1:  # the prompt was read once; only now each answer gets its row
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(s.num_return_sequences)
        cache.reorder(rows)
        logits, ids, mask = logits[rows], ids[rows], None if mask is None else mask[rows]
    penalised = s.repetition_penalty != 1
    seen = sampling.seen_tokens(ids, logits.shape[-1], mask) if penalised else None
    stops = StopStrings(request.tokenizer, s.stop_strings, ids, mask) if s.stop_strings else None
    ends = torch.tensor(s.eos_token_id, dtype=torch.long, device=ids.device)
    fill = 0 if s.pad_token_id is None else s.pad_token_id  # without one, there is just one row
    may_end = bool(s.eos_token_id or stops)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    step = model if request.compiled is None else request.compiled
    limit = request.vocab_limit

    for left in reversed(range(request.steps)):
        allowed = None if seen is None else seen[:, :limit]
        token = choose(logits[:, :limit], s, allowed, request.generator)  # (B,)
        if may_end:
            token = token.where(~ended, fill)
            ended = ended | torch.isin(token, ends)
            if stops is not None:
                ended = ended | stops.reached(token)
        yield token
        if left == 0 or (may_end and ended.all()):
            return
        if seen is not None:
            seen.scatter_(1, token[:, None], True)
        logits = decode(step, token, cache)


def generate(
    model: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    streamer: Any = None,
    **options: Any,
) -> Tensor:
    """Continue each row of `input_ids`.

    Args:
        model: a Qwen2ForCausalLM. Its mode is left as it is: in training mode it drops out.
        input_ids: (B, T); None or T = 0 begins with the bos token.
        attention_mask: (B, T), 0 = padding, which must be on the left; None = nothing is padded.
        streamer: `.put(ids)` gets the prompt, then the ids of each step, on the CPU; `.end()`
            closes. transformers' streamers fit, and `streaming.TextStreamer`.
        past_key_values: a cache to continue. `input_ids` are the whole sequence; what the cache
            holds is not read again.
        tokenizer: needed for `stop_strings`; ids beyond its last token are never chosen.
        vocab_limit: never choose this id or a higher one.
        generator: draws the tokens; or give `seed`. None = torch's global generator.
        compiled: reads the single tokens in place of `model`, with a static cache:
            `torch.compile(model, fullgraph=True, dynamic=False)`.
        generation_config: used in place of the model's.
        **options: fields of `GenerationConfig`. They win over the model's, which win over
            `DEFAULTS`; `effective_settings(model, **options)` shows what holds.

    Returns:
        Prompts and answers, (B * num_return_sequences, T + longest answer). A row that has ended is
        filled with the padding id. A stop string ends its row after the token that completes it.

    Raises:
        TypeError: an unknown option; near matches are named.
        ValueError: inputs or options that cannot be, with values and way out.

    Warns:
        UserWarning: an option has no effect, a padded row has no mask, or prompt and answer may
            exceed `max_position_embeddings`.
    """
    if streamer is not None and not callable(getattr(streamer, "put", None)):
        raise TypeError(f"a streamer has put(ids) and end(), a {type(streamer).__name__} has not")
    request = prepare(model, input_ids, attention_mask, **options)
    s = request.settings
    if s.num_beams > 1:
        if streamer is not None:
            _refuse_beams(s, "a streamer")
        return beam_search(model, request, prefill, decode)
    columns = [request.input_ids.repeat_interleave(s.num_return_sequences, 0)]
    if streamer is not None:
        streamer.put(columns[0].cpu())
    for token in next_tokens(model, request):
        columns.append(token[:, None])
        if streamer is not None:
            streamer.put(token.cpu())
    if streamer is not None:
        streamer.end()
    return torch.cat(columns, dim=1)


def stream_ids(
    model: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """`generate` as an iterator: the new id of each row, (B * num_return_sequences,), per step.

    Raises:
        ValueError: with beams; else as `generate`, and at once, not at the first step.
    """
    request = prepare(model, input_ids, attention_mask, **options)
    _refuse_beams(request.settings, "an iterator")
    return next_tokens(model, request)


def stream(
    model: Any,
    tokenizer: Any,
    input_ids: Tensor,
    *,
    skip_special_tokens: bool = True,
    **options: Any,
) -> Iterator[str]:
    """`generate` for one prompt, (1, T), as an iterator of text.

    A piece never ends within a character, nor within what may become a stop string. Together the
    pieces are the text of the answer that `generate` returns. Options as there.
    """
    request = prepare(model, input_ids, tokenizer=tokenizer, **options)
    s, rows = request.settings, len(request.input_ids)
    _refuse_beams(s, "an iterator")
    if rows * s.num_return_sequences != 1:
        raise ValueError(
            f"text streams one answer to one prompt, not {s.num_return_sequences} to each of "
            f"{rows}: call stream() for each, or stream_ids()"
        )
    text = TextPieces(tokenizer, s.stop_strings, skip_special_tokens)
    return text.of(int(token) for token in next_tokens(model, request))


def _refuse_beams(s: GenerationConfig, what: str) -> None:
    if s.num_beams > 1:
        raise ValueError(
            f"{what} cannot follow num_beams={s.num_beams}: which beam wins is known at the end"
        )
