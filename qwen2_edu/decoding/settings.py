"""The settings of a released `generation_config.json`; which of them a call of `generate` obeys."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..checks import Range, check_kind, check_numbers, one_of, refuse_unknown, warn_caller
from ..files.disk import read_json, read_text, write_whole

# What holds when neither the call nor the model says otherwise; the values of transformers 5.
DEFAULTS = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
DEFAULTS |= {"repetition_penalty": 1.0, "max_new_tokens": 20, "num_return_sequences": 1}
DEFAULTS |= {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False}


@dataclass
class GenerationConfig:
    """How to continue a text. None = not said here: the model's file, then `DEFAULTS`, decide.

    do_sample: draw the next token; False = take the most likely one (greedy).
    temperature, top_k, top_p, min_p: shape the distribution drawn from; see `sampling`.
        top_k 0 = every token.
    repetition_penalty: above 1 makes tokens of prompt and answer less likely; greedy obeys it too.
    max_new_tokens: how many at most; max_length is the same with the prompt counted.
    eos_token_id: the id, or several, that end a row; [] = none.
    pad_token_id: fills a row that has ended.
    bos_token_id: begins an empty prompt.
    stop_strings: the text, or several, that end a row.
    num_beams, length_penalty, early_stopping: of beam search; see `beam`.
    num_return_sequences: answers to each prompt.
    seed: of the generator that draws.
    cache_implementation: "dynamic" or "static".
    extra: what else the file holds, kept as it is.
    """

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    stop_strings: str | list[str] | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    num_return_sequences: int | None = None
    seed: int | None = None
    cache_implementation: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    _order = ()  # the fields as they stood in the file
    _end = "\n"  # some releases end the file with a newline, some do not

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GenerationConfig:
        """From the parsed file. Unknown fields are kept, and the order of all."""
        extra = dict(values)
        known = {name: extra.pop(name) for name in OPTIONS if name in extra}
        config = cls(**known, extra=extra)
        config._order = tuple(values)
        return config

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> GenerationConfig | None:
        """What the file in `folder` says, None without one. ValueError: it is no JSON object."""
        path = Path(folder) / "generation_config.json"
        if not path.is_file():
            return None
        config = cls.from_dict(read_json(path))
        config._end = "\n" if read_text(path).endswith("\n") else ""
        return config

    def to_dict(self) -> dict[str, Any]:
        """What was said, in the order of the file it came from; what was added later follows."""
        own = {name: getattr(self, name) for name in OPTIONS}
        said = {n: value for n, value in own.items() if value is not None or n in self._order}
        said |= self.extra
        order = dict.fromkeys((*self._order, *said))
        return {name: said[name] for name in order if name in said}

    def to_json(self) -> str:
        """The text of `generation_config.json`, laid out as the releases lay it out."""
        return json.dumps(self.to_dict(), indent=2) + self._end

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write `generation_config.json`, whole or not at all. Returns its path."""
        return write_whole(Path(folder) / "generation_config.json", self.to_json().encode())

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items())
        return f"GenerationConfig({said})"


OPTIONS = tuple(f.name for f in fields(GenerationConfig) if f.name != "extra")

# Options of transformers that are not offered here, by the value at which they do nothing.
UNSET = """assistant_model bad_words_ids begin_suppress_tokens constraints force_words_ids max_time
exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id penalty_alpha top_h
logits_processor prefix_allowed_tokens_fn prompt_lookup_num_tokens sequence_bias stopping_criteria
suppress_tokens watermarking_config""".split()
OFF = """output_attentions output_hidden_states output_logits output_scores remove_invalid_values
renormalize_logits return_dict_in_generate token_healing""".split()
ZERO = """diversity_penalty encoder_no_repeat_ngram_size epsilon_cutoff eta_cutoff min_length
min_new_tokens no_repeat_ngram_size""".split()
ONE = ("encoder_repetition_penalty", "guidance_scale", "num_beam_groups", "typical_p")
NEUTRAL = dict.fromkeys(UNSET) | dict.fromkeys(OFF, False) | dict.fromkeys(ZERO, 0)
NEUTRAL |= dict.fromkeys(ONE, 1) | {"use_cache": True}
# Arguments of `generate` that are no settings.
ARGUMENTS = """input_ids attention_mask past_key_values generation_config tokenizer vocab_limit
generator compiled streamer""".split()

INTEGER, COUNT = Range(whole=True), Range(1, whole=True)
RANGES = {
    **dict.fromkeys(("max_new_tokens", "max_length", "num_beams", "num_return_sequences"), COUNT),
    **dict.fromkeys(("seed", "bos_token_id", "pad_token_id"), INTEGER),
    **dict.fromkeys(("temperature", "top_p", "min_p", "length_penalty"), Range()),
    "repetition_penalty": Range(0, above=True, hint="1.0 changes nothing"),
}
RANGES_TO_SAMPLE = {
    "temperature": Range(0, above=True, hint="for the likeliest at each step pass do_sample=False"),
    "top_k": Range(0, whole=True, hint="0 keeps every token"),
    "top_p": Range(0, 1, above=True, hint="1.0 keeps every token"),
    "min_p": Range(0, 1, hint="0 keeps every token"),
}


def effective_settings(
    model: Any, generation_config: GenerationConfig | dict[str, Any] | None = None, **options: Any
) -> GenerationConfig:
    """What a call `generate(..., **options)` will obey: options over the model's over `DEFAULTS`.

    Args:
        model: its `generation_config` counts, and its `config` for special ids named nowhere else.
        generation_config: used instead of the model's.
        **options: fields of `GenerationConfig`; None = not said.

    Raises:
        TypeError, ValueError: an unknown option; a value or a combination that cannot be.

    Warns:
        UserWarning: an option of the call has no effect.
    """
    given = [name for name in options if name not in NEUTRAL]
    refuse_unknown("generate()", given, (*OPTIONS, *ARGUMENTS))
    base = generation_config or model.generation_config or {}
    said = dict(base if isinstance(base, dict) else base.to_dict())
    call = {name: value for name, value in options.items() if value is not None}
    if "max_length" in call:  # the call's limit wins over the file's in either spelling
        said.pop("max_new_tokens", None)
    said = {name: value for name, value in {**said, **call}.items() if value is not None}
    for name, neutral in NEUTRAL.items():
        if said.get(name, neutral) != neutral:
            raise ValueError(f"{name}={said[name]!r} is not offered by qwen2_edu: leave it out")
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    otherwise = DEFAULTS | {name: getattr(model.config, name) for name in special}
    if "max_length" in said:
        del otherwise["max_new_tokens"]
    settings = GenerationConfig(**{n: said.get(n, otherwise.get(n)) for n in OPTIONS})
    settings.eos_token_id = _listed(settings.eos_token_id)
    settings.stop_strings = _listed(settings.stop_strings)
    if settings.pad_token_id is None and settings.eos_token_id:
        settings.pad_token_id = settings.eos_token_id[0]  # as transformers does
    _check(settings)
    _warn_of_no_effect(settings, call)
    return settings


def _listed(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    return [] if value is None else [value]


def _check(s: GenerationConfig) -> None:
    check_numbers(vars(s), RANGES | (RANGES_TO_SAMPLE if s.do_sample is True else {}))
    for number in s.eos_token_id:
        check_numbers({"eos_token_id": number}, {"eos_token_id": INTEGER})
    check_kind("do_sample", s.do_sample, bool, "True or False")
    one_of("early_stopping", s.early_stopping, (True, False, "never"))
    one_of("cache_implementation", s.cache_implementation, (None, "dynamic", "static"))
    for text in s.stop_strings:
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop_strings must be texts, not empty, not {text!r}")
    K, R = s.num_beams, s.num_return_sequences
    if K > 1 and s.do_sample:
        aims = f"num_beams={K} looks for the most probable text, do_sample=True draws one"
        raise ValueError(f"{aims}: pass do_sample=False or num_beams=1")
    if K > 1 and s.stop_strings:
        raise ValueError(f"stop_strings={s.stop_strings} do not go with num_beams={K}: pass 1")
    if K > 1 and R > K:
        raise ValueError(f"num_return_sequences={R} is more than num_beams={K}: raise num_beams")
    if K == 1 and R > 1 and not s.do_sample:
        same = f"num_return_sequences={R} greedy answers would all be the same"
        raise ValueError(f"{same}: pass do_sample=True or num_beams={R}")


def _warn_of_no_effect(s: GenerationConfig, call: dict[str, Any]) -> None:
    needs = {}
    if not s.do_sample:  # temperature=0 asks for what greedy does
        drawing = [n for n in ("temperature", "top_k", "top_p", "min_p", "seed") if call.get(n)]
        needs |= dict.fromkeys(drawing, "do_sample=True")
    if s.num_beams == 1:
        needs |= dict.fromkeys(("length_penalty", "early_stopping"), "num_beams above 1")
    if "max_new_tokens" in call:
        needs["max_length"] = "only one of max_new_tokens and max_length"
    idle = [name for name in needs if name in call and call[name] != DEFAULTS.get(name)]
    if idle:
        why = "; ".join(f"{name}={call[name]!r} needs {needs[name]}" for name in idle)
        warn_caller(f"no effect: {why}")
