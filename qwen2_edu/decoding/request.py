"""A call of `generate`, checked and completed before anything is computed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..attention import RECORDS
from ..cache import Cache, DynamicCache, StaticCache
from ..checks import check_ids, check_kind, warn_caller
from ..compare import first_not_finite
from .fast import fast_reader, needs_fixed_cache
from .outputs import Recorder
from .processors import Processor, processors
from .settings import GenerationConfig, effective_settings
from .speculation import Assistant, PromptLookup, WholeCache, choose_drafter
from .streaming import StopStrings

Criterion = Callable[[Tensor, Any], Any]  # ids (B, T), scores so far or None -> bool (B,)


@dataclass
class Request:
    """All that a run needs, checked. The padding of `input_ids` is on the left; their T is 0 where
    the prompt is embeddings alone. `cache` None = the whole text is read anew for each token.
    """

    model: Any  # reads the prompt
    reader: Any  # reads single tokens: the model, or its compiled twin
    settings: GenerationConfig
    prompt: Tensor  # (B, T), as it was given
    input_ids: Tensor  # (B, T)
    inputs_embeds: Tensor | None  # (B, T, E)
    attention_mask: Tensor | None  # bool (B, T), None = nothing padded
    cache: Cache | None
    steps: int  # new tokens at most
    vocab_limit: int | None
    processors: list[Processor]
    criteria: list[Criterion]
    generator: torch.Generator | None
    record: Recorder | None
    drafter: PromptLookup | Assistant | None = None  # guesses tokens ahead

    def reorder(self, rows: Tensor) -> None:
        """After the prompt was read: row i goes on from what row rows[i] was; rows may repeat."""
        self.input_ids = self.input_ids[rows]
        if self.attention_mask is not None:
            self.attention_mask = self.attention_mask[rows]
        for part in (self.cache, self.record):
            if part is not None:
                part.reorder(rows)

    def scores(self, ids: Tensor, logits: Tensor) -> Tensor:
        """What the next tokens are chosen from, (B, V): the model's logits, processed.

        ValueError: they hold NaN or infinities, or nothing is left to choose from.
        """
        scores, limit = logits.float(), self.vocab_limit
        if self.record is not None:
            self.record.keep(logits=scores.clone())
        if limit is not None and limit < scores.shape[-1]:
            beyond = scores.shape[-1] - limit
            scores = pad(scores[:, :limit], (0, beyond), value=-torch.inf)
        if self.settings.num_beams > 1:  # they are ranked by the sum of their log probabilities
            scores = scores.log_softmax(-1)
        for process in self.processors:
            scores = process(ids, scores)
        best = scores.amax(-1)  # NaN is larger than any number
        if self.settings.num_beams > 1:  # a beam may come to nothing, not all of a prompt
            best = best.view(-1, self.settings.num_beams).amax(-1)
        if not math.isfinite(best.sum().item()):
            raise ValueError(self._what_is_wrong(ids, logits))
        if self.record is not None:
            self.record.keep(scores=scores)
        return scores

    def _what_is_wrong(self, ids: Tensor, logits: Tensor) -> str:
        if logits.isfinite().all():
            return "no token is left to choose from: the settings and processors removed them all"
        model = self.model if self.record is None else self.record.model
        alone = self.inputs_embeds is not None and self.prompt.shape[1] == 0
        read = {"inputs_embeds": self.inputs_embeds} if alone else {"input_ids": ids}
        where = first_not_finite(model, **read)
        return f"the model's logits are not finite numbers: {where}"

    def ended(self, ids: Tensor) -> Tensor:
        """Which rows end with their newest token? (B, T) -> bool (B,)."""
        hits = torch.zeros_like(ids[:, 0], dtype=torch.bool)
        scores = self.record.scores() if self.record is not None else None
        for criterion in self.criteria:
            hits = hits | criterion(ids, scores)
        return hits

    def answer(self, sequences: Tensor, **more: Tensor) -> Any:
        """What `generate` returns."""
        if self.record is None:
            return sequences
        accepted = None if self.drafter is None else tuple(self.drafter.accepted)
        return self.record.output(sequences, self.cache, accepted=accepted, **more)


def prepare(
    model: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    *,
    inputs: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    generation_config: GenerationConfig | dict[str, Any] | None = None,
    tokenizer: Any = None,
    vocab_limit: int | None = None,
    generator: torch.Generator | None = None,
    compiled: Any = None,
    fast: bool = False,
    assistant_model: Any = None,
    drafter: PromptLookup | Assistant | None = None,
    logits_processor: Iterable[Processor] = (),
    stopping_criteria: Iterable[Criterion] = (),
    **options: Any,
) -> Request:
    """Check the arguments of `generate`, which see, and fill in what was not said."""
    began = time.monotonic()
    s = effective_settings(model, generation_config, **options)
    check_kind("attention_mask", attention_mask, Tensor, "a tensor (B, T)")
    check_kind("past_key_values", past_key_values, Cache, "a cache of qwen2_edu")
    check_kind("vocab_limit", vocab_limit, Integral, "an integer")
    check_kind("generator", generator, torch.Generator, "a torch.Generator")
    if inputs is not None and input_ids is not None:
        raise ValueError("inputs and input_ids are the same thing: give one")
    ids, held = inputs if input_ids is None else input_ids, 0
    if inputs_embeds is None or ids is not None:
        ids = _checked_prompt(model, ids, s)
    if inputs_embeds is not None:
        ids = _check_embeddings(model, ids, inputs_embeds)
    shape = (ids if inputs_embeds is None else inputs_embeds).shape[:2]
    mask, T = _checked_mask(attention_mask, shape, ids, s), shape[1]
    longest = model.config.max_position_embeddings
    steps = s.max_length - T if s.max_new_tokens is None else s.max_new_tokens
    if steps < 1:
        raise ValueError(f"max_length={s.max_length} leaves no room after a prompt of {T} tokens")
    if T + steps > longest:
        goes = f"a prompt of {T} and {steps} new tokens go past max_position_embeddings={longest}"
        warn_caller(f"{goes}: beyond it the text is likely to get worse")
    if s.min_new_tokens is None:
        s.min_new_tokens = max(0, s.min_length - T)
    if s.seed is not None:
        if generator is not None:
            raise ValueError(f"seed={s.seed} and generator=… say the same thing: give one")
        generator = torch.Generator(model.device).manual_seed(s.seed)
    if tokenizer is not None:
        vocab_limit = min(tokenizer.vocab_limit, vocab_limit or tokenizer.vocab_limit)

    drafter = choose_drafter(drafter, assistant_model, s.prompt_lookup_num_tokens, fast)
    if drafter is not None:
        _check_speculation(ids, s, inputs_embeds)
    cache, kind = past_key_values, s.cache_implementation
    if not s.use_cache and inputs_embeds is None:
        if cache is not None or kind is not None:
            raise ValueError("past_key_values and cache_implementation need use_cache=True")
    elif cache is None and (kind == "static" or (fast and needs_fixed_cache(model, drafter))):
        cache = StaticCache(model.config, T + steps, model.device)
    elif cache is None and drafter is not None:
        cache = WholeCache(model.config)
    elif cache is None:
        cache = DynamicCache(model.config)
    elif kind is None:
        _check_cache(cache, shape, steps, mask)
        held = cache.get_seq_length()
    else:
        raise ValueError(f"past_key_values is a cache: leave out cache_implementation={kind!r}")
    if compiled is not None:
        _check_compiled(model, cache, s)
    prompt = ids
    if mask is not None:
        ids, inputs_embeds, mask = _padded_left(ids, inputs_embeds, mask, held)

    criteria = [*stopping_criteria]
    if s.stop_strings and tokenizer is None:
        raise ValueError(f"stop_strings={s.stop_strings} need tokenizer=…, to read the ids as text")
    rows = len(ids) * s.num_return_sequences
    if (criteria or s.stop_strings) and s.pad_token_id is None and rows > 1:
        raise ValueError(f"{rows} rows that stop at their own time need pad_token_id=… to fill up")
    each = max(s.num_beams, s.num_return_sequences)
    all_ids, all_masks = (x if x is None else x.repeat_interleave(each, 0) for x in (ids, mask))
    if s.eos_token_id:
        ends = ids.new_tensor(s.eos_token_id)
        criteria.insert(0, lambda ids, scores: torch.isin(ids[:, -1], ends))
    if s.stop_strings:
        criteria.insert(0, StopStrings(tokenizer, s.stop_strings, all_ids, all_masks))
    if s.max_time is not None:
        criteria.append(lambda ids, scores: time.monotonic() - began > s.max_time)
    chain = processors(s, ids.shape[1], all_masks if ids.shape[1] else None, logits_processor)
    record = Recorder(model, s) if s.return_dict_in_generate else None
    asked = model if record is None else record
    reader = asked if compiled is None else compiled
    if fast and compiled is None:
        watched = "states or maps were asked for" if record and record.asked else ""
        reader = fast_reader(model, cache, watched) or asked
    return Request(
        model=asked,
        reader=reader,
        settings=s,
        prompt=prompt,
        input_ids=ids,
        inputs_embeds=inputs_embeds,
        attention_mask=mask,
        cache=cache,
        steps=steps,
        vocab_limit=vocab_limit,
        processors=chain,
        criteria=criteria,
        generator=generator,
        record=record,
        drafter=drafter,
    )


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


def _check_embeddings(model: Any, input_ids: Tensor | None, embeddings: Tensor) -> Tensor:
    """The ids that go with the embeddings, (B, T), or (B, 0) if none were given."""
    check_kind("inputs_embeds", embeddings, Tensor, "a tensor (B, T, E)")
    shape, (E, dtype, device) = (
        embeddings.shape,
        (model.config.hidden_size, model.dtype, model.device),
    )
    if len(shape) != 3 or 0 in shape or shape[2] != E:
        raise ValueError(f"inputs_embeds must be (B, T, {E}), not {tuple(shape)}")
    if embeddings.dtype != dtype or embeddings.device != device:
        found = f"inputs_embeds are {embeddings.dtype} on {embeddings.device}"
        raise ValueError(f"{found} and the model {dtype} on {device}: convert them")
    if input_ids is None:
        return torch.zeros(shape[0], 0, dtype=torch.long, device=device)
    if input_ids.shape != shape[:2]:
        shapes = f"{tuple(input_ids.shape)} do not go with inputs_embeds {tuple(shape)}"
        raise ValueError(f"input_ids {shapes}: give one id for each, or none")
    return input_ids


def _checked_mask(
    mask: Tensor | None, shape: torch.Size, input_ids: Tensor, s: GenerationConfig
) -> Tensor | None:
    """The mask as bool if it hides anything, else None: attention without one is faster."""
    if mask is None and input_ids.shape[1]:
        padded = [s.pad_token_id in both_ends for both_ends in input_ids[:, [0, -1]].tolist()]
        if any(padded) and not all(padded):
            found = f"a row begins or ends with the padding id {s.pad_token_id}, read as text"
            warn_caller(f"{found}: pass the tokenizer's attention_mask too")
    if mask is None:
        return None
    if mask.shape != shape:
        shapes = f"{tuple(mask.shape)} must have the shape of input_ids {tuple(shape)}"
        raise ValueError(f"attention_mask {shapes}, cached tokens included")
    return None if mask.bool().all() else mask.bool()


def _padded_left(ids: Tensor, embeds: Tensor | None, mask: Tensor, held: int) -> tuple:
    """Ids, embeddings and mask with the padding of the columns from `held` on, which no cache holds
    yet, moved to their left: each row goes on from its last token, wherever its padding stood.
    """
    if not mask[:, held:].any(-1).all():
        row = int(mask[:, held:].any(-1).int().argmin())
        raise ValueError(f"row {row} of attention_mask shows no token to go on from")
    order = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape).clone()
    order[:, held:] = held + mask[:, held:].int().sort(stable=True).indices
    if embeds is not None:
        embeds = embeds.take_along_dim(order[..., None], 1)
    return (ids.gather(1, order) if ids.shape[1] else ids), embeds, mask.gather(1, order)


def _check_cache(cache: Cache, shape: torch.Size, steps: int, mask: Tensor | None) -> None:
    held, (B, T) = cache.get_seq_length(), shape
    if held >= T:
        counts = f"the cache holds {held} tokens and input_ids {T}"
        raise ValueError(f"{counts}: pass those and a new one, or first call cache.crop({T - 1})")
    if isinstance(cache, StaticCache) and T + steps - 1 > cache.max_length:  # the last is not read
        needed = f"a prompt of {T} and {steps} new tokens do not fit a cache of {cache.max_length}"
        raise ValueError(f"{needed}: make it larger, or max_new_tokens smaller")
    rows = len(next(iter(cache.positions.values())).data) if held else B
    if rows != B:
        raise ValueError(f"the cache holds {rows} rows and the prompt {B}: reorder() the cache")
    shown = torch.zeros(1) if mask is None else (~mask[:, :held]).sum(-1).cpu()
    known = torch.as_tensor(cache.pads).flatten().cpu()
    if held and bool((shown != known).any()):
        counts = f"{known.tolist()} padding tokens a row, attention_mask shows {shown.tolist()}"
        raise ValueError(f"the cache holds {counts}: pass the mask of the whole sequence")


def _check_speculation(ids: Tensor, s: GenerationConfig, embeds: Tensor | None) -> None:
    if len(ids) * s.num_return_sequences * s.num_beams != 1:
        counts = f"{len(ids)} rows, {s.num_return_sequences} answers each, {s.num_beams} beams"
        raise ValueError(f"speculation continues one row, once, without beams, not {counts}")
    if not s.use_cache or embeds is not None:
        raise ValueError("speculation needs ids and a cache: no inputs_embeds, no use_cache=False")
    if s.output_hidden_states or s.output_attentions:
        raise ValueError("speculation keeps no states and maps: leave out the one or the other")


def _check_compiled(model: Any, cache: Cache | None, s: GenerationConfig) -> None:
    if not isinstance(cache, StaticCache):
        raise ValueError("compiled=… needs a cache of fixed size: cache_implementation='static'")
    inside = {*model.modules()}
    if any(record.layers & inside for record in RECORDS.get()):
        raise ValueError("capture() sees nothing of compiled steps: leave out compiled=…")
    if s.output_hidden_states or s.output_attentions:
        raise ValueError("a compiled step keeps no states and maps: leave out compiled=…")
