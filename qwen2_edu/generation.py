"""Text generation: one loop that answers a token per row and step; all else stands on it.

Nothing here knows what a token means. A tokenizer is needed only to watch for stop strings, to
stream text, and to never choose an id beyond its last token, where a release pads its embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .cache import Cache
from .decoding.beam import beam_search
from .decoding.outputs import GenerateOutput, Recorder
from .decoding.request import Request
from .decoding.settings import GenerationConfig, effective_settings
from .decoding.speculation import speculate
from .decoding.streaming import TextPieces
from .text.surface import Surface

__all__ = ["GenerationConfig", "effective_settings"]  # people know them by this module


CHUNK = 1024  # tokens of a prompt read at once: more take more memory, and no less time


def prefill(
    model: Callable,
    input_ids: Annotated[Tensor, "ints B T"],
    cache: Cache | None = None,
    mask: Annotated[Tensor | None, "tensor B M"] = None,
    inputs_embeds: Annotated[Tensor | None, "floats B N E"] = None,
) -> Tensor:
    """Read the part of a text that `cache` does not hold; answer the logits after it, (B, V).

    Args:
        input_ids: (B, T), what the cache holds included.
        mask: bool (B, T), or shorter, False = padding; None = nothing padded.
        inputs_embeds: (B, T, E), read in place of the ids.
    """
    held, T = 0 if cache is None else cache.get_seq_length(), input_ids.shape[1]
    T = T if inputs_embeds is None else inputs_embeds.shape[1]
    options = {"use_cache": cache is not None, "logits_to_keep": 1}
    if mask is not None:
        mask = pad(mask, (0, max(T - mask.shape[1], 0)), value=True)  # an answer's tokens are real
    padded = mask is not None and not mask[:, held:].all()
    places = (mask.cumsum(-1) - 1).clamp(min=0) if padded else None
    whole = cache is None or (isinstance(model, Recorder) and model.asked)  # states of one pass
    step = T if whole else CHUNK
    for start in range(held, T, step):
        new = slice(start, start + step)
        if padded:
            options |= {"position_ids": places[:, new], "attention_mask": mask[:, new]}
        embeds = None if inputs_embeds is None else inputs_embeds[:, new]
        ids = input_ids[:, new] if embeds is None else None
        out = model(ids, past_key_values=cache, inputs_embeds=embeds, **options)
    if padded and cache is not None:  # count real tokens alone from here on, as transformers does
        cache.pads = (~mask).sum(-1, keepdim=True)
    return out.logits[:, -1]


def decode(model: Callable, token: Annotated[Tensor, "ints B"], cache: Cache) -> Tensor:
    """Read one more token of each row, (B,); answer the logits after it, (B, V).

    No mask is needed: the cache remembers where its padding is.
    """
    return model(token[:, None], past_key_values=cache, logits_to_keep=1).logits[:, -1]


def next_tokens(request: Request) -> Iterator[Tensor]:
    """The next id of each row, (B * num_return_sequences,), step by step. ValueError: beams."""
    if (beams := request.settings.num_beams) > 1:
        fix = "an iterator or a streamer needs num_beams=1"
        raise ValueError(f"num_beams={beams} decides at the end: {fix}")
    return _loop(request) if request.drafter is None else speculate(request, prefill)


@torch.no_grad()  # not inference_mode: nobody could train on its tensors, or continue its caches
def _loop(request: Request) -> Iterator[Tensor]:
    """The loop, until all rows have ended."""
    r, s = request, request.settings
    logits = prefill(r.model, r.input_ids, r.cache, r.attention_mask, r.inputs_embeds)
    logits = r.spread(logits)  # (B * num_return_sequences, V)
    ids, ended = r.input_ids, torch.zeros_like(logits[:, 0], dtype=torch.bool)

    for left in reversed(range(r.steps)):
        before = ids, logits
        scores, sound = r.unchecked(*before)  # (B, V)
        token = r.choose(scores)  # (B,)
        if len(token) > 1:  # where there is no padding id there is one row, or no end
            token = token.where(~ended, s.pad_token_id or 0)
        ids = torch.cat((ids, token[:, None]), dim=1)
        ended = r.ended(ids, ended)
        sound, over = torch.stack((sound, ended.all())).tolist()  # the one wait for the device
        if not sound:
            raise r.unsound(*before)
        yield token
        if left == 0 or over:
            return
        if r.cache is None:
            logits = prefill(r.model, ids, mask=r.attention_mask)
        else:
            logits = decode(r.reader, token, r.cache)


def generate(
    model: Any,
    input_ids: Any = None,  # checked with the vocabulary
    attention_mask: Tensor | None = None,
    *,
    streamer: Any = None,
    **options: Any,
) -> Tensor | GenerateOutput:
    """Continue each row of `input_ids`.

    Args:
        model: a Qwen2ForCausalLM. Its mode is left as it is: in training mode it drops out.
        input_ids: (B, T); None or T = 0 begins with the bos token. `inputs` is the same.
        attention_mask: (B, T), 0 = padding; None = nothing is padded. Wherever its padding stands,
            a row is continued after its last token, as if it were alone.
        inputs_embeds: (B, T, E), read in place of ids. Given alone, the answer is the new ids.
        streamer: `.put(ids)` gets the prompt, then the ids of each step, on the CPU; `.end()`
            closes. transformers' streamers fit.
        past_key_values: a cache to continue. `input_ids` are the whole sequence; what the cache
            holds is not read again.
        logits_processor: functions of (ids (B, T), logits (B, V)) that answer new logits.
        stopping_criteria: functions of (ids, scores so far or None) that answer bool (B,): which
            rows end here. transformers' processors and criteria fit.
        tokenizer: needed for `stop_strings`; ids beyond its last token are never chosen.
        vocab_limit: never choose this id or a higher one.
        generator: draws the tokens; or give `seed`. None = torch's global generator.
        fast: read single tokens at the speed of memory, by kernels in C++ on a CPU and in Triton on
            a GPU; where that cannot be, a warning says why. See `decoding.fast`. Ids are the same
            up to rounding: in bf16 one of two tokens that are nearly as likely may be the other.
        assistant_model: a smaller model, that guesses tokens ahead; the answer is the same, up to
            rounding as there. See `decoding.speculation`.
        generation_config: what it says wins over the model's.
        **options: fields of `GenerationConfig`. They win over both, and all over `DEFAULTS`;
            `effective_settings(model, **options)` shows what holds.

    Returns:
        Prompts and answers, (B * num_return_sequences, T + longest answer). A row that has ended is
        filled with the padding id. A stop string ends its row after the token that completes it.
        With `return_dict_in_generate` a `GenerateOutput`.

    Raises:
        TypeError, ValueError: an unknown option; inputs or options that cannot be. ValueError: the
            model's logits hold NaN, with the first layer where it appears.

    Warns:
        UserWarning: an option has no effect, some rows look padded and there is no mask, the text
            may go beyond `max_position_embeddings`.
    """
    if streamer is not None and not callable(getattr(streamer, "put", None)):
        raise TypeError(f"a streamer has put(ids) and end(), a {type(streamer).__name__} has not")
    request = Request(model, input_ids, attention_mask, **options)
    s = request.settings
    if s.num_beams > 1 and streamer is None:
        return beam_search(request, prefill, decode)
    new = next_tokens(request)
    prompt, tokens = request.prompt.repeat_interleave(s.num_return_sequences, 0), []
    tell = (lambda ids: None) if streamer is None else lambda ids: streamer.put(ids.cpu())
    tell(prompt)
    for token in new:
        tokens.append(token)
        tell(token)
    if streamer is not None:
        streamer.end()
    return request.answer(torch.cat((prompt, torch.stack(tokens, 1)), dim=1))


def stream_ids(model: Any, *inputs: Any, **options: Any) -> Iterator[Tensor]:
    """`generate` as an iterator: the new id of each row, (B * num_return_sequences,), per step.

    What cannot be is refused at once, not at the first step.
    """
    return next_tokens(Request(model, *inputs, **options))


def stream(
    model: Any, tokenizer: Surface, input_ids: Any, skip_special_tokens: bool = True, **options: Any
) -> Iterator[str]:
    """`generate` for one prompt, (1, T), as an iterator of text.

    A piece never ends within a character, nor within what may become a stop string. Together the
    pieces are the text of the answer that `generate` returns. Options as there.
    """
    request = Request(model, input_ids, tokenizer=tokenizer, **options)
    new, s, rows = next_tokens(request), request.settings, len(request.input_ids)
    if rows * s.num_return_sequences != 1:
        answers = f"{s.num_return_sequences} to each of {rows}"
        raise ValueError(f"stream() gives one answer to one prompt, not {answers}: see stream_ids")
    text = TextPieces(tokenizer, s.stop_strings, skip_special_tokens)
    return text.of(int(token) for token in new)
