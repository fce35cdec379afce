"""Text generation: one loop that answers a token per row and step; all else stands on it.

Nothing here knows what a token means. A tokenizer is needed only to watch for stop strings, to
stream text, and to never choose an id beyond its last token, where a release pads its embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from . import sampling
from .cache import Cache, DynamicCache, StaticCache
from .checks import check_ids, check_kind, warn_caller
from .decoding.beam import beam_search
from .decoding.settings import GenerationConfig, effective_settings
from .decoding.streaming import StopStrings, TextPieces


def prefill(model: Any, input_ids: Tensor, cache: Cache, mask: Tensor | None = None) -> Tensor:
    """Read the part of the prompt that `cache` does not hold; answer the logits after it, (B, V).

    Args:
        input_ids: (B, T), what the cache holds included.
        mask: bool (B, T), False = padding; None = nothing padded.
    """
    held = cache.get_seq_length()
    new = None if mask is None or mask[:, held:].all() else mask[:, held:]
    options = {} if new is None else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, held:]}
    options |= {"attention_mask": new, "past_key_values": cache, "logits_to_keep": 1}
    out = model(input_ids[:, held:], **options)
    if new is not None:  # count real tokens alone from here on, as transformers' generate does
        cache.pads = (~mask).sum(-1, keepdim=True)
    return out.logits[:, -1]


def decode(model: Any, token: Tensor, cache: Cache) -> Tensor:
    """Read one more token of each row, (B,); answer the logits after it, (B, V).

    No mask is needed: the cache remembers where its padding is.
    """
    return model(token[:, None], past_key_values=cache, logits_to_keep=1).logits[:, -1]


def choose(
    logits: Tensor,
    s: GenerationConfig,
    seen: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The next token of each row, (B,), from logits (B, V); `seen`, bool (B, V), are penalised."""
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
    """The loop: the next id of each row, (B * num_return_sequences,), until all rows have ended."""
    s, cache, ids, mask = request.settings, request.cache, request.input_ids, request.attention_mask
    logits = prefill(model, ids, cache, mask)  # (B, V)
    if s.num_return_sequences > 1:  # the prompt was read once; only now each answer gets its row
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(s.num_return_sequences)
        cache.reorder(rows)
        logits, ids, mask = logits[rows], ids[rows], None if mask is None else mask[rows]
    seen = None if s.repetition_penalty == 1 else sampling.seen_tokens(ids, logits.shape[-1], mask)
    stops = StopStrings(request.tokenizer, s.stop_strings, ids, mask) if s.stop_strings else None
    ends, ended = ids.new_tensor(s.eos_token_id), torch.zeros_like(ids[:, 0], dtype=torch.bool)
    may_end, limit = bool(s.eos_token_id or stops), request.vocab_limit

    for left in reversed(range(request.steps)):
        allowed = None if seen is None else seen[:, :limit]
        token = choose(logits[:, :limit], s, allowed, request.generator)  # (B,)
        token = token.where(
            ~ended, s.pad_token_id or 0
        )  # without a padding id there is one row, or no end
        ended = ended | torch.isin(token, ends)
        if stops is not None:
            ended = ended | stops.reached(token)
        yield token
        if left == 0 or (may_end and ended.all()):
            return
        if seen is not None:
            seen.scatter_(1, token[:, None], True)
        logits = decode(request.reader, token, cache)


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
            closes. transformers' streamers fit.
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
        TypeError, ValueError: an unknown option; inputs or options that cannot be.

    Warns:
        UserWarning: an option has no effect, some rows look padded and there is no mask, the text
            may go beyond `max_position_embeddings`.
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


def stream_ids(model: Any, *inputs: Tensor | None, **options: Any) -> Iterator[Tensor]:
    """`generate` as an iterator: the new id of each row, (B * num_return_sequences,), per step.

    What cannot be is refused at once, not at the first step.
    """
    request = prepare(model, *inputs, **options)
    _refuse_beams(request.settings, "an iterator")
    return next_tokens(model, request)


def stream(
    model: Any, tokenizer: Any, input_ids: Tensor, skip_special_tokens: bool = True, **options: Any
) -> Iterator[str]:
    """`generate` for one prompt, (1, T), as an iterator of text.

    A piece never ends within a character, nor within what may become a stop string. Together the
    pieces are the text of the answer that `generate` returns. Options as there.
    """
    request = prepare(model, input_ids, tokenizer=tokenizer, **options)
    s, rows = request.settings, len(request.input_ids)
    _refuse_beams(s, "an iterator")
    if rows * s.num_return_sequences != 1:
        answers = f"{s.num_return_sequences} to each of {rows}"
        raise ValueError(f"stream() gives one answer to one prompt, not {answers}: see stream_ids")
    text = TextPieces(tokenizer, s.stop_strings, skip_special_tokens)
    return text.of(int(token) for token in next_tokens(model, request))


def _refuse_beams(s: GenerationConfig, what: str) -> None:
    if s.num_beams > 1:
        raise ValueError(f"num_beams={s.num_beams} decides at the end: {what} needs num_beams=1")


# -- a call, checked and completed before anything is computed -------------------------------------


@dataclass
class Request:
    """All that a run needs, checked."""

    settings: GenerationConfig
    input_ids: Tensor  # (B, T)
    attention_mask: Tensor | None  # bool (B, T), None = nothing padded
    cache: Cache
    steps: int  # new tokens at most
    vocab_limit: int | None
    generator: torch.Generator | None
    tokenizer: Any
    reader: Any  # of single tokens: the model, or its compiled twin


def prepare(
    model: Any,
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    *,
    generation_config: GenerationConfig | dict[str, Any] | None = None,
    tokenizer: Any = None,
    vocab_limit: int | None = None,
    generator: torch.Generator | None = None,
    compiled: Any = None,
    **options: Any,
) -> Request:
    """Check the arguments of `generate`, which see, and fill in what was not said."""
    s = effective_settings(model, generation_config, **options)
    check_kind("attention_mask", attention_mask, Tensor, "a tensor (B, T)")
    check_kind("past_key_values", past_key_values, Cache, "a cache of qwen2_edu")
    check_kind("vocab_limit", vocab_limit, Integral, "an integer")
    check_kind("generator", generator, torch.Generator, "a torch.Generator")
    input_ids = _checked_prompt(model, input_ids, s)
    mask = _checked_mask(attention_mask, input_ids, s)
    T, longest = input_ids.shape[1], model.config.max_position_embeddings
    steps = s.max_length - T if s.max_new_tokens is None else s.max_new_tokens
    if steps < 1:
        raise ValueError(f"max_length={s.max_length} leaves no room after a prompt of {T} tokens")
    if T + steps > longest:
        goes = f"a prompt of {T} and {steps} new tokens go past max_position_embeddings={longest}"
        warn_caller(f"{goes}: beyond it the text is likely to get worse")
    rows = len(input_ids) * s.num_return_sequences
    if s.stop_strings and tokenizer is None:
        raise ValueError(f"stop_strings={s.stop_strings} need tokenizer=…, to read the ids as text")
    if s.stop_strings and s.pad_token_id is None and rows > 1:
        raise ValueError(f"{rows} rows that stop at their own time need pad_token_id=… to fill up")
    if tokenizer is not None:
        vocab_limit = min(tokenizer.vocab_limit, vocab_limit or tokenizer.vocab_limit)
    if s.seed is not None:
        if generator is not None:
            raise ValueError(f"seed={s.seed} and generator=… say the same thing: give one")
        generator = torch.Generator(input_ids.device).manual_seed(s.seed)
    cache, kind = past_key_values, s.cache_implementation
    if cache is None and kind == "static":
        cache = StaticCache(model.config, T + steps, input_ids.device)
    elif cache is None:
        cache = DynamicCache(model.config)
    elif kind is None:
        _check_cache(cache, T, steps, mask)
    else:
        raise ValueError(f"past_key_values is a cache: leave out cache_implementation={kind!r}")
    if compiled is not None and not isinstance(cache, StaticCache):
        raise ValueError("compiled=… needs a cache of fixed size: cache_implementation='static'")
    reader = model if compiled is None else compiled
    return Request(s, input_ids, mask, cache, steps, vocab_limit, generator, tokenizer, reader)


def _checked_prompt(model: Any, input_ids: Tensor | None, s: GenerationConfig) -> Tensor:
    if input_ids is None:
        input_ids = torch.zeros(1, 0, dtype=torch.long, device=model.device)
    if isinstance(input_ids, Tensor) and input_ids.ndim == 2 and input_ids.shape[1] == 0:
        if s.bos_token_id is None:
            raise ValueError("the prompt is empty and there is no bos_token_id to begin with")
        input_ids = input_ids.new_full((len(input_ids), 1), s.bos_token_id)
    check_ids(input_ids, model.config.vocab_size, wait=True)
    if input_ids.device != model.device:
        where = f"input_ids are on {input_ids.device} and the model on {model.device}"
        raise ValueError(f"{where}: pass input_ids.to(model.device)")
    return input_ids.long()


def _checked_mask(mask: Tensor | None, input_ids: Tensor, s: GenerationConfig) -> Tensor | None:
    """The mask as bool if it hides anything, else None: attention without one is faster."""
    if mask is None:
        padded = [s.pad_token_id in both_ends for both_ends in input_ids[:, [0, -1]].tolist()]
        if any(padded) and not all(padded):
            found = f"a row begins or ends with the padding id {s.pad_token_id}, read as text"
            warn_caller(f"{found}: pass the tokenizer's attention_mask too")
        return None
    if mask.shape != input_ids.shape:
        shapes = f"{tuple(mask.shape)} must have the shape of input_ids {tuple(input_ids.shape)}"
        raise ValueError(f"attention_mask {shapes}, cached tokens included")
    mask = mask.bool()
    if not mask[:, -1].all():
        row = int(mask[:, -1].int().argmin())
        found = f"row {row} of attention_mask ends in padding, where its answer should begin"
        raise ValueError(f'{found}: tokenize with padding_side="left"')
    return None if mask.all() else mask


def _check_cache(cache: Cache, T: int, steps: int, mask: Tensor | None) -> None:
    held = cache.get_seq_length()
    if held >= T:
        counts = f"the cache holds {held} tokens and input_ids {T}"
        raise ValueError(f"{counts}: pass those and a new one, or first call cache.crop({T - 1})")
    if isinstance(cache, StaticCache) and T + steps - 1 > cache.max_length:  # the last is not read
        needed = f"a prompt of {T} and {steps} new tokens do not fit a cache of {cache.max_length}"
        raise ValueError(f"{needed}: make it larger, or max_new_tokens smaller")
    shown = torch.zeros(1) if mask is None else (~mask[:, :held]).sum(-1).cpu()
    known = torch.as_tensor(cache.pads).flatten().cpu()
    if held and bool((shown != known).any()):
        counts = f"{known.tolist()} padding tokens a row, attention_mask shows {shown.tolist()}"
        raise ValueError(f"the cache holds {counts}: pass the mask of the whole sequence")
