"""A call of `generate`, checked and completed before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Annotated, Any

import torch
from torch import Tensor

from ..cache import Cache, DynamicCache, StaticCache
from ..checks import Range, checked, warn_caller
from ..compare import first_not_finite
from ..pretrained import Qwen2PreTrainedModel
from ..sampling import draw
from ..text.surface import Surface
from .fast import fast_reader
from .outputs import GenerateOutput, Recorder
from .processors import Processor, obeyed, processors
from .settings import GenerationConfig, effective_settings
from .speculation import Assistant, PromptLookup, WholeCache
from .streaming import StopStrings

Criterion = Callable[[Tensor, Any], Any]  # ids (B, T), scores so far or None -> bool (B,)


class Request:
    """All that a run of `generate` needs, from its arguments, which see.

    model, reader: what reads the prompt, and single tokens: the model, a recorder or a fast step.
    settings, steps, each: what holds for this call; new tokens at most; rows that a prompt gets.
    prompt: the ids as they were given, (B, T).
    input_ids, inputs_embeds, attention_mask: the same with all padding on the left, (B, T),
        (B, T, E) or None, bool (B, T) or None if nothing is padded. T of the ids is 0 where the
        prompt is embeddings alone.
    cache: None = the whole text is read anew for each token.
    processors, criteria: what changes the logits, and what ends a row.
    drafter: who guesses tokens ahead, or None; `accepted`: how many of each guess were kept.
    """

    @checked  # not the whole class: most of it runs at each step
    def __init__(
        self,
        model: Any,
        input_ids: Any = None,  # checked with the vocabulary
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        *,
        inputs: Any = None,
        inputs_embeds: Tensor | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
        tokenizer: Surface | None = None,
        vocab_limit: Annotated[int | None, Range(1, whole=True)] = None,
        generator: torch.Generator | None = None,
        fast: bool | None = False,
        assistant_model: Qwen2PreTrainedModel | None = None,
        logits_processor: Iterable[Processor] | None = None,
        stopping_criteria: Iterable[Criterion] | None = None,
        **options: Any,
    ):
        began = time.monotonic()
        self.model = self.reader = model
        self.settings = s = effective_settings(model, generation_config, **options)
        hook = vars(model).get("prepare_inputs_for_generation")
        if hook is not None and getattr(hook, "__self__", None) is not model:
            why = "was replaced, as prompt tuning does, and generate() does not ask it: use LoRA"
            raise ValueError(f"prepare_inputs_for_generation {why}, or the model's forward pass")
        if inputs is not None and input_ids is not None:
            raise ValueError("inputs and input_ids are the same thing: give one")
        self.inputs_embeds = inputs_embeds
        ids = inputs if input_ids is None else input_ids
        self.prompt = self.input_ids = self._ids(ids, attention_mask)
        B, T = self.shape = (self.prompt if inputs_embeds is None else inputs_embeds).shape[:2]
        if getattr(ids, "shape", None) == getattr(attention_mask, "shape", None) == (B, 0):
            attention_mask = None  # of the empty prompt, in whose place stands the bos token
        self.attention_mask = self._mask(attention_mask)
        self.steps = self._steps(T)
        self.drafter, self.accepted = self._drafter(assistant_model, fast), []
        self.cache = self._cache(past_key_values, fast)
        self._move_padding_left(0 if past_key_values is None else past_key_values.get_seq_length())

        if s.seed is not None and generator is not None:
            raise ValueError(f"seed={s.seed} and generator=… say the same thing: give one")
        if s.seed is not None:
            generator = torch.Generator(model.device).manual_seed(s.seed)
        self.generator = generator
        self.each, mask = max(s.num_beams, s.num_return_sequences), self.attention_mask
        ids = self.input_ids.repeat_interleave(self.each, 0)
        mask = None if mask is None else mask.repeat_interleave(self.each, 0)
        self.criteria = self._criteria(tokenizer, ids, mask, began, stopping_criteria or ())
        V, known = model.config.vocab_size, None if tokenizer is None else tokenizer.vocab_limit
        limit = min(n for n in (V, vocab_limit, known) if n is not None)
        T = ids.shape[1]
        self.processors = processors(s, T, mask if T else None, logits_processor or (), V, limit)
        self.record = Recorder(model, s)
        if s.return_dict_in_generate:
            self.model = self.reader = self.record
        if fast:
            watched = "states or maps were asked for" if self.record.asked else ""
            self.reader = fast_reader(model, self.cache, watched) or self.model

    # -- the arguments, checked --------------------------------------------------------------------

    def _ids(self, ids: Any, mask: Tensor | None) -> Tensor:
        """The ids of the prompt, (B, T); beside embeddings those that go with them, or (B, 0)."""
        model, embeds, bos = self.model, self.inputs_embeds, self.settings.bos_token_id
        check = partial(model.base_model._embed, attention_mask=mask, wait=True)
        if embeds is not None:
            check(None, embeds)
            if ids is None:
                return torch.zeros(len(embeds), 0, dtype=torch.long, device=model.device)
        if ids is None:
            ids = torch.zeros(1, 0, dtype=torch.long, device=model.device)
        if isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[1] == 0:
            if bos is None:
                raise ValueError("the prompt is empty: give a text, or bos_token_id=…")
            ids = ids.new_full((len(ids), 1), bos)
        check(ids)
        if embeds is not None and ids.shape != embeds.shape[:2]:
            shapes = f"{tuple(ids.shape)} do not go with inputs_embeds {tuple(embeds.shape)}"
            raise ValueError(f"input_ids {shapes}: give one id for each, or none")
        return ids.long()

    def _mask(self, mask: Tensor | None) -> Tensor | None:
        """The mask as bool if it hides anything, else None: attention without one is faster."""
        if mask is None and self.prompt.shape[1]:
            pad = self.settings.pad_token_id
            padded = [pad in both_ends for both_ends in self.prompt[:, [0, -1]].tolist()]
            if any(padded) and not all(padded):
                found = f"a row begins or ends with the padding id {pad}, read as text"
                warn_caller(f"{found}: pass the tokenizer's attention_mask too")
        if mask is not None and mask.shape != self.shape:
            shapes = f"{tuple(mask.shape)} must have the shape of input_ids {tuple(self.shape)}"
            raise ValueError(f"attention_mask {shapes}, cached tokens included")
        return None if mask is None or mask.bool().all() else mask.bool()

    def _steps(self, T: int) -> int:
        s, longest = self.settings, self.model.config.max_position_embeddings
        steps = s.max_length - T if s.max_new_tokens is None else s.max_new_tokens
        if steps < 1:
            counts = f"max_length={s.max_length} counts the prompt too, which has {T} tokens"
            raise ValueError(f"{counts}: pass a larger one, or max_new_tokens=…")
        if T + steps > longest:
            goes = f"a prompt of {T} and {steps} new tokens go past max_position_embeddings="
            warn_caller(f"{goes}{longest}: beyond it the text is likely to get worse")
        if s.min_new_tokens is None:
            s.min_new_tokens = max(0, s.min_length - T)
        return steps

    def _drafter(self, assistant: Any, fast: bool) -> PromptLookup | Assistant | None:
        s, lookup, rows = self.settings, self.settings.prompt_lookup_num_tokens, self.shape[0]
        if assistant is None and lookup is None:
            return None
        if assistant is not None and lookup is not None:
            raise ValueError("assistant_model and prompt_lookup_num_tokens: give one of them")
        asked = f"prompt_lookup_num_tokens={lookup}" if assistant is None else "assistant_model"
        if rows * s.num_return_sequences * s.num_beams != 1:
            counts = f"{rows} rows, {s.num_return_sequences} answers each, {s.num_beams} beams"
            raise ValueError(f"{asked} continues one row, once, without beams, not {counts}")
        if not s.use_cache or self.inputs_embeds is not None:
            need = "ids and a cache: no inputs_embeds, no use_cache=False"
            raise ValueError(f"{asked} needs {need}")
        if s.output_hidden_states or s.output_attentions:
            raise ValueError(f"{asked} keeps no states and maps: leave out the one or the other")
        return PromptLookup(lookup) if assistant is None else Assistant(assistant, fast)

    def _cache(self, cache: Cache | None, fast: bool) -> Cache | None:
        s, model, (B, T) = self.settings, self.model, self.shape
        kind, needed = s.cache_implementation, T + self.steps
        if not s.use_cache and self.inputs_embeds is None:
            if cache is not None or kind is not None:
                raise ValueError("past_key_values and cache_implementation need use_cache=True")
            return None
        if cache is None:
            fixed = fast and self.drafter is None and model.device.type == "cuda"
            if fixed or kind == "static":
                return StaticCache(model.config, needed, model.device)
            return (DynamicCache if self.drafter is None else WholeCache)(model.config)
        held, mask = cache.get_seq_length(), self.attention_mask
        if kind is not None:
            raise ValueError(f"past_key_values is a cache: leave out cache_implementation={kind!r}")
        if held >= T:
            counts = f"the cache holds {held} tokens and input_ids {T}: pass those and a new one"
            raise ValueError(f"{counts}, or first call cache.crop({T - 1})")
        cache._check_room(B, needed - 1 - held)  # the last token is not read
        shown = torch.zeros(1) if mask is None else (~mask[:, :held]).sum(-1).cpu()
        known = torch.as_tensor(cache.pads).flatten().cpu()
        if held and bool((shown != known).any()):
            counts = f"{known.tolist()} padding tokens a row, attention_mask shows {shown.tolist()}"
            raise ValueError(f"the cache holds {counts}: pass the mask of the whole sequence")
        return cache

    def _move_padding_left(self, held: int) -> None:
        """Of the columns from `held` on, which no cache holds yet: so each row goes on from its
        last token, wherever its padding stood.
        """
        if (mask := self.attention_mask) is None:
            return
        if not mask[:, held:].any(-1).all():
            row = int(mask[:, held:].any(-1).int().argmin())
            raise ValueError(f"row {row} of attention_mask shows no token to go on from")
        order = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape).clone()
        order[:, held:] = held + mask[:, held:].int().sort(stable=True).indices
        self.attention_mask = mask.gather(1, order)
        if self.prompt.shape[1]:
            self.input_ids = self.prompt.gather(1, order)
        if self.inputs_embeds is not None:
            self.inputs_embeds = self.inputs_embeds.take_along_dim(order[..., None], 1)

    def _criteria(
        self, tokenizer: Any, ids: Tensor, mask: Tensor | None, began: float, own: Iterable
    ) -> list[Criterion]:
        """Stop strings, end tokens, the caller's, the time; `ids`, `mask`: of each answer."""
        s, criteria = self.settings, [partial(obeyed, f, "stopping_criteria") for f in own]
        if s.stop_strings and tokenizer is None:
            need = f"stop_strings={s.stop_strings} need tokenizer=…"
            raise ValueError(f"{need}, to read the ids as text")
        if (criteria or s.stop_strings) and s.pad_token_id is None and len(ids) > 1:
            rows = f"{len(ids)} rows that stop at their own time"
            raise ValueError(f"{rows} need pad_token_id=… to fill up")
        if s.eos_token_id:
            ends = ids.new_tensor(s.eos_token_id)
            criteria.insert(0, lambda ids, scores: torch.isin(ids[:, -1], ends))
        if s.stop_strings:
            criteria.insert(0, StopStrings(tokenizer, s.stop_strings, ids, mask))
        if s.max_time is not None:
            criteria.append(lambda ids, scores: time.monotonic() - began > s.max_time)
        return criteria

    # -- while it runs -----------------------------------------------------------------------------

    def spread(self, logits: Tensor) -> Tensor:
        """The prompt was read once, and these are its logits, (B, V); from here on each answer, or
        beam, has a row of its own: (B * each, V).
        """
        if self.each == 1:
            return logits
        rows = torch.arange(len(logits), device=logits.device).repeat_interleave(self.each)
        self.input_ids = self.input_ids[rows]
        if self.attention_mask is not None:
            self.attention_mask = self.attention_mask[rows]
        for part in (self.cache, self.record):
            if part is not None:
                part.reorder(rows)
        return logits[rows]

    def processed(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Logits, (B, V), after all that settings and caller do to them, in float32."""
        return reduce(lambda scores, process: process(ids, scores), self.processors, logits.float())

    def scores(self, ids: Tensor, logits: Tensor) -> Tensor:
        """What the next tokens are chosen from, (B, V): the model's logits, processed.

        ValueError: they hold NaN or infinities, or nothing is left to choose from.
        """
        scores, sound = self.unchecked(ids, logits)
        if not sound:
            raise self.unsound(ids, logits)
        return scores

    def unchecked(self, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """`scores`, and are they sound? bool (), still on the device: to look is to wait for it."""
        logits = logits.float()
        self.record.keep(logits=logits)
        scores = self.processed(ids, logits)
        self.record.keep(scores=scores)
        # A beam may come to nothing, not all of a prompt. NaN is larger than any number.
        best = scores.reshape(len(scores) // self.settings.num_beams, -1).amax(-1)
        sound = best.isfinite().all()
        return scores.where(sound, 0), sound  # a GPU that draws from NaN could not be used again

    def unsound(self, ids: Tensor, logits: Tensor) -> ValueError:
        """What is wrong with logits that follow ids."""
        if logits.isfinite().all():
            why = "no token is left to choose from: the settings and processors removed them all"
            return ValueError(why)
        read = {"input_ids": ids} if self.prompt.shape[1] else {"inputs_embeds": self.inputs_embeds}
        where = first_not_finite(self.record.model, **read)
        return ValueError(f"the model's logits are not finite numbers: {where}")

    def choose(self, scores: Tensor) -> Tensor:
        """The next token of each row, (B,), from scores (B, V): drawn, or the most likely one."""
        return draw(scores, self.generator) if self.settings.do_sample else scores.argmax(-1)

    def ended(self, ids: Tensor, hits: Tensor | None = None) -> Tensor:
        """Which rows end with their newest token, or were `hits` before? (B, T) -> bool (B,)."""
        hits = ids.new_zeros(len(ids), dtype=torch.bool) if hits is None else hits
        scores = self.record.kept.get("scores")  # so far, if they were asked for
        return reduce(lambda hits, criterion: hits | criterion(ids, scores), self.criteria, hits)

    def answer(self, sequences: Tensor, **more: Tensor) -> Any:
        """What `generate` returns."""
        if not self.settings.return_dict_in_generate:
            return sequences
        accepted = None if self.drafter is None else tuple(self.accepted)
        more |= {"past_key_values": self.cache, "accepted": accepted}
        return GenerateOutput(sequences, **self.record.kept, **more)
