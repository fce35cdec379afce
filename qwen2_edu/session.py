"""A conversation with a model: it remembers what was said, and reads nothing twice."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, get_type_hints

import torch
from torch import Tensor

from .cache import Cache, DynamicCache, StaticCache
from .checks import check_json, checked, refuse_unknown
from .decoding.request import Request
from .decoding.settings import GenerationConfig, effective_settings
from .decoding.speculation import WholeCache
from .decoding.streaming import TextPieces
from .generation import stream_ids
from .model import Qwen2ForCausalLM
from .text.surface import Surface
from .text.templates import QWEN2_5_TEMPLATE, QWEN2_TEMPLATE

# Arguments of `generate` that are no settings: what a turn hands on, and what it makes itself.
PASSED = "generator vocab_limit fast assistant_model logits_processor stopping_criteria".split()
MADE = "input_ids attention_mask inputs inputs_embeds past_key_values tokenizer streamer".split()
EACH_BY_ITSELF = (QWEN2_TEMPLATE, QWEN2_5_TEMPLATE)  # templates: no turn changes another's text


@checked
class ChatSession:
    """Talk to a chat model, turn by turn.

    Each turn reads what the chat template writes of the whole conversation, so an answer is the one
    that the model would give if it read everything anew. It does not: keys and values of the tokens
    that have not changed since the last turn are kept; and where each turn's text is its own, as in
    Qwen2's templates, only new turns are rendered. What people typed is text: it cannot open or
    close a turn.

    Args:
        model, tokenizer: a Qwen2ForCausalLM and its tokenizer, which has a chat template.
        system: the system message; None = what the template says by itself.
        **options: of `generate`, for every turn, with its errors. `max_new_tokens` is 512 unless
            the model's settings say otherwise; <|im_end|> ends an answer besides `eos_token_id`.

    `messages` is the conversation, dicts with `role` and `content`. Edit it between turns if you
    like: the next turn reads anew from the first change on. `turn_ids` are those of the last
    turn: what was read, then the answer as it came, its end token included.
    """

    def __init__(
        self, model: Qwen2ForCausalLM, tokenizer: Surface, system: str | None = None, **options: Any
    ):
        self.model, self.tokenizer, self.system = model, tokenizer, system
        self.arguments = self._taken(options)
        config = options.pop("generation_config", None)
        self.options = options
        self.settings = self._session_settings(config)
        self._turn_options({})  # what cannot be is refused now, not at the first turn
        self.reset()

    def reset(self) -> None:
        """Start anew; only the system message stays."""
        self.told: tuple = (None, [], [])  # template, messages and ids of the last turn
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        self._forget()

    def send(self, text: str, **options: Any) -> str:
        """Say `text`; returns the answer. `options` as in `generate`, for this turn alone."""
        return "".join(self.stream(text, **options))

    def stream(self, text: str, **options: Any) -> Iterator[str]:
        """Say `text`; yields the answer in pieces of whole characters.

        Whoever stops early, or is interrupted, finds what was answered so far in the conversation.
        A turn without any answer leaves no trace.
        """
        check_json({"messages": self.messages}, {"messages": list[dict]})
        question = {"role": "user", "content": text}
        options = self._turn_options(options)
        ids = self._rendered([*self.messages, question])
        self.turn_ids = ids  # grows as the answer comes
        prompt = torch.tensor([ids], device=self.model.device)  # (1, T)
        s, cache = options["generation_config"], self._cache_for(ids)
        needed = s.max_length if s.max_new_tokens is None else len(ids) + s.max_new_tokens
        guesses = bool(s.prompt_lookup_num_tokens or options.get("assistant_model"))
        if needed > cache.max_length or (guesses and not isinstance(cache, WholeCache)):
            cache = self._forget(needed, guesses)
        tokens = stream_ids(self.model, prompt, past_key_values=cache, **options)
        pieces = TextPieces(self.tokenizer, s.stop_strings)
        return self._answer(question, ids, pieces.of(_noted(tokens, ids)))

    def undo(self) -> str:
        """Take back the last question and its answer; returns it. ValueError: nothing was asked."""
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise ValueError("there is no turn to take back: nothing was asked yet")
        question = self.messages[asked[-1]]["content"]
        del self.messages[asked[-1] :]
        return question

    def regenerate(self, **options: Any) -> str:
        """Ask the last question again; returns the new answer."""
        before = self.messages.copy()
        question = self.undo()
        kept = len(self.messages)
        try:
            return self.send(question, **options)
        finally:
            if len(self.messages) == kept:  # refused, or stopped before the first word
                self.messages[:] = before

    def _rendered(self, messages: list[dict]) -> list[int]:
        """The ids of a conversation and the head of an answer. Of one that goes on from the last,
        with a template that writes each turn by itself, only the new turns are rendered.
        """
        write = partial(self.tokenizer.apply_chat_template, return_dict=False)
        key = (self.tokenizer.chat_template, self.tokenizer.get_added_vocab())
        if key[0] not in EACH_BY_ITSELF or not {"<|im_start|>", "<|im_end|>"} <= key[1].keys():
            return write(messages, add_generation_prompt=True)
        was, told, ids = self.told
        if was != key or messages[: len(told)] != told:
            told, ids = [], []
        system = {"role": "system", "content": ""}  # else the template would write its own
        later = copy.deepcopy(messages[len(told) :])
        new = write([system, *later] if told else later, add_generation_prompt=True)
        start = key[1]["<|im_start|>"]  # where the turns begin, and the head of the answer
        ids = ids + (new[new.index(start, 1) :] if told else new)
        self.told = key, told + later, ids[: -new[::-1].index(start) - 1]
        return ids

    def _answer(self, question: dict, ids: list[int], pieces: Iterator[str]) -> Iterator[str]:
        said, whole = "", False
        try:
            for piece in pieces:
                said += piece
                yield piece
            whole = True
        except BaseException as end:
            if not isinstance(end, GeneratorExit):  # a pass may have stored some keys and not all
                self._forget()
            raise
        finally:
            if said or whole:
                self.messages += [question, {"role": "assistant", "content": said}]
            self.read = ids[: self.cache.get_seq_length()]

    def _session_settings(self, config: Any) -> GenerationConfig:
        """The session's options, over `config` or the model's, over what suits a conversation."""
        file = config or self.model.generation_config or {}
        said = {**(file if isinstance(file, dict) else file.to_dict()), **self.options}
        length = {} if {"max_new_tokens", "max_length"} & said.keys() else {"max_new_tokens": 512}
        return effective_settings(self.model, config, **self.options, **length)

    def _turn_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a turn: its own, over the session's. Only its own may warn."""
        arguments = {**self.arguments, **self._taken(options), "tokenizer": self.tokenizer}
        config = options.pop("generation_config", None)
        base = self._session_settings(config) if config else self.settings
        if options.get("max_length") is not None:  # a turn's own limit, in either spelling
            base = replace(base, max_new_tokens=None)
        s = effective_settings(self.model, base, **options)
        if s.num_beams > 1 or s.num_return_sequences > 1:
            both = f"num_beams={s.num_beams} and num_return_sequences={s.num_return_sequences}"
            raise ValueError(f"{both} must be 1: a turn has one answer, given word by word")
        end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        if end is not None:
            s.eos_token_id = [*s.eos_token_id, end]
        return {**arguments, "generation_config": s}

    def _taken(self, options: dict[str, Any]) -> dict[str, Any]:
        """What goes to `generate` as it is, taken out of a turn's options, or the session's."""
        made = dict.fromkeys(MADE, "each turn has its own")
        refuse_unknown("ChatSession", [name for name in MADE if name in options], (), made)
        taken = {name: options.pop(name) for name in PASSED if options.get(name) is not None}
        check_json(taken, get_type_hints(Request.__init__))
        return taken

    def _cache_for(self, ids: list[int]) -> Cache:
        """The cache, cut back to what `ids` begins with; at least the last id is left to read."""
        kept = 0
        while kept < min(len(self.read), len(ids) - 1) and self.read[kept] == ids[kept]:
            kept += 1
        try:
            self.cache.crop(kept)
            self.read = self.read[:kept]
        except ValueError:  # sliding layers cannot go back that far
            self._forget()
        return self.cache

    def _forget(self, needed: int = 0, guesses: bool = False) -> Cache:
        """Start a new cache; `read` are the ids that the cache holds. On a GPU a fast step is
        recorded for a cache of fixed size: it gets room for `needed` tokens, and as many again.
        `guesses`: it must go back where one was wrong.
        """
        config, self.read = self.model.config, []
        if guesses:
            self.cache: Cache = WholeCache(config)
        elif self.arguments.get("fast") and self.model.device.type == "cuda":
            self.cache = StaticCache(config, max(1024, 2 * needed), self.model.device)
        else:
            self.cache = DynamicCache(config)
        return self.cache


def _noted(tokens: Iterator[Tensor], read: list[int]) -> Iterator[int]:
    """The ids as numbers, each appended to `read` as it passes."""
    for token in tokens:
        read.append(int(token))
        yield read[-1]
