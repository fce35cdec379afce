"""The settings of a released `generation_config.json`; which of them a call of `generate` obeys."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from ..checks import (
    Range,
    check_json,
    check_numbers,
    checked,
    did_you_mean,
    one_of,
    plain,
    refuse_unknown,
    warn_caller,
)
from ..files.disk import read_json, read_text, write_whole
from ..hub import resolve, take_options

COUNT, AMOUNT, ROWS = Range(1, whole=True), Range(0, whole=True), Range(1, 2**20, whole=True)
ID, SEED = Range(-(2**31), 2**31 - 1, whole=True), Range(-(2**63), 2**64 - 1, whole=True)
GREEDY = "for the likeliest at each step pass do_sample=False"
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
DRAWN = ("temperature", "top_k", "top_p", "min_p")
NOTED = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")


def option(otherwise: Any = None, allowed: Range | None = None) -> Any:
    """A field that is None until it is said: what holds then, as in transformers 5, and which
    numbers may be.
    """
    return field(default=None, metadata={"otherwise": otherwise, "allowed": allowed})


@checked
@dataclass
class GenerationConfig:
    """How to continue a text. None = not said here: the model's file, then `DEFAULTS`, decide.

    do_sample: draw the next token; False = take the most likely one (greedy).
    temperature, top_k, top_p, min_p: shape the distribution drawn from; see `sampling`.
        top_k 0 = every token.
    repetition_penalty: above 1 makes tokens of prompt and answer less likely; greedy obeys it too.
    no_repeat_ngram_size: no n tokens in a row may come twice; 0 = they may.
    bad_words_ids: lists of ids that must not come.
    remove_invalid_values: replace NaN by 0 and infinities by the largest numbers.
    max_new_tokens: how many at most; max_length is the same with the prompt counted, and obeyed
        only if max_new_tokens is said nowhere, the model's file included, as in transformers.
    min_new_tokens: no end before; min_length with the prompt counted.
    max_time: seconds after which to stop; at least one token comes.
    eos_token_id: the id, or several, that end a row; [] = none.
    pad_token_id: fills a row that has ended.
    bos_token_id: begins an empty prompt.
    stop_strings: the text, or several, that end a row.
    num_beams, length_penalty, early_stopping: of beam search; see `beam`.
    num_return_sequences: answers to each prompt.
    seed: of the generator that draws.
    cache_implementation: "dynamic" or "static".
    prompt_lookup_num_tokens: guess so many tokens ahead from the text itself; see `speculation`.
    use_cache: False = read the whole text anew for each token.
    return_dict_in_generate: answer a `GenerateOutput` with what the `output_…` ask for.
    extra: what else the file holds, kept as it is.
    """

    do_sample: bool | None = option(False)
    temperature: float | None = option(1.0, Range(0, above=True, hint=GREEDY))
    top_k: int | None = option(50, Range(0, whole=True, hint="0 keeps every token"))
    top_p: float | None = option(1.0, Range(0, 1, above=True, hint="1.0 keeps every token"))
    min_p: float | None = option(0.0, Range(0, 1, hint="0 keeps every token"))
    repetition_penalty: float | None = option(1.0, Range(0, above=True, hint="1.0 changes nothing"))
    no_repeat_ngram_size: int | None = option(0, Range(0, whole=True, hint="0 lets them repeat"))
    bad_words_ids: list[list[int]] | None = None
    remove_invalid_values: bool | None = option(False)
    max_new_tokens: int | None = option(20, COUNT)
    max_length: int | None = option(None, COUNT)
    min_new_tokens: int | None = option(None, AMOUNT)
    min_length: int | None = option(0, AMOUNT)
    max_time: float | None = option(None, Range(0))
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = option(None, ID)
    bos_token_id: int | None = option(None, ID)
    stop_strings: str | list[str] | None = None
    num_beams: int | None = option(1, ROWS)
    length_penalty: float | None = option(1.0, Range(-64, 64))
    early_stopping: bool | str | None = option(False)
    num_return_sequences: int | None = option(1, ROWS)
    seed: int | None = option(None, SEED)
    cache_implementation: str | None = None
    prompt_lookup_num_tokens: int | None = option(None, COUNT)
    use_cache: bool | None = option(True)
    return_dict_in_generate: bool | None = option(False)
    output_scores: bool | None = option(False)
    output_logits: bool | None = option(False)
    output_hidden_states: bool | None = option(False)
    output_attentions: bool | None = option(False)
    extra: dict[str, Any] = field(default_factory=dict)

    _order = ()  # the fields as they stood in the file
    _end = "\n"  # some releases end the file with a newline, some do not

    def __new__(cls, *_: Any, **given: Any) -> GenerationConfig:
        refuse_unknown("GenerationConfig", given, (*OPTIONS, "extra"), INSTEAD)
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        """Fields of transformers that are not offered are kept, and refused when a call meets them;
        what neither has is a TypeError.
        """
        if name in HINTS or name[:1] == "_":
            check_json({name: plain(value)}, HINTS)
            super().__setattr__(name, value)
        elif name in (*INSTEAD, *UNREAD, *self.extra):
            self.extra[name] = value
        else:
            refuse_unknown("GenerationConfig", [name], OPTIONS)

    def __getattr__(self, name: str) -> Any:
        if name in INSTEAD or name in vars(self).get("extra", {}):
            return self.extra.get(name)
        raise AttributeError(f"GenerationConfig has no {name}: {did_you_mean(name, OPTIONS)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "") -> GenerationConfig:
        """From the parsed file. Unknown fields are kept, and the order of all. ValueError: a field
        of the wrong type, with the file `where` it stands.
        """
        extra = plain(dict(values))
        check_json(extra, HINTS, where)
        known = {name: extra.pop(name) for name in OPTIONS if name in extra}
        config = cls(**known, extra=extra)
        config._order = tuple(values)
        return config

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], **options: Any
    ) -> GenerationConfig | None:
        """What a model's `generation_config.json` says, None without one.

        Args:
            name_or_path: as in `hub.resolve`; beside a GGUF file the file counts too.
            **options: of `hub.resolve`, and fields to set.

        Raises:
            OSError, ValueError: no such model; the file is no JSON object, or a field cannot be.
        """
        place = resolve(name_or_path, "generation", **take_options(options))
        refuse_unknown("from_pretrained", options, OPTIONS, INSTEAD)
        path = (place if place.is_dir() else place.parent) / "generation_config.json"
        if not path.is_file():
            return None
        config = cls.from_dict(read_json(path), str(path))
        config._end = "\n" if read_text(path).endswith("\n") else ""
        for name, value in options.items():
            setattr(config, name, value)
        return config

    def to_dict(self) -> dict[str, Any]:
        """What was said, in the order of the file it came from; what was added later follows."""
        own = {name: getattr(self, name) for name in OPTIONS}
        said = {n: value for n, value in own.items() if value is not None or n in self._order}
        said |= self.extra
        order = dict.fromkeys((*self._order, *said))
        return plain({name: said[name] for name in order if name in said})

    def to_json(self) -> str:
        """The text of `generation_config.json`, laid out as the releases lay it out."""
        return json.dumps(self.to_dict(), indent=2) + self._end

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write `generation_config.json`, whole or not at all. Returns its path."""
        return write_whole(Path(folder) / "generation_config.json", self.to_json().encode())

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items())
        return f"GenerationConfig({said})"


_FIELDS = {f.name: f.metadata for f in fields(GenerationConfig) if f.name != "extra"}
OPTIONS = tuple(_FIELDS)
DEFAULTS = {name: about.get("otherwise") for name, about in _FIELDS.items()}
RANGES = {name: about["allowed"] for name, about in _FIELDS.items() if about.get("allowed")}
HINTS = get_type_hints(GenerationConfig)
# Why some options of transformers are not offered here. They may be None, False or 0, or 1 for the
# `FACTORS`: then they do nothing.
_WHY = {
    "transformers' class of this purpose fits as logits_processor=[…]": """begin_suppress_tokens
        encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
        exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id guidance_scale
        negative_prompt_attention_mask negative_prompt_ids prefix_allowed_tokens_fn
        renormalize_logits sequence_bias suppress_tokens top_h typical_p watermarking_config""",
    "of searches there is num_beams=… alone": """constraints diversity_penalty dola_layers
        force_words_ids num_beam_groups penalty_alpha""",
    "assistant_model=… is all there is to say": """assistant_early_exit assistant_tokenizer
        speculation_type""",
    "no code from elsewhere is run": "custom_generate trust_remote_code",
    "beams are always read together": "low_memory",
    "a prompt is read as it is": "token_healing",
    "a long prompt is read in parts of one size": "prefill_chunk_size",
    "fast=True compiles where that pays": "compile_config",
    "each process generates by itself": "synced_gpus",
    "positions are counted from attention_mask": "position_ids",
    "Qwen2 has no types of tokens": "token_type_ids",
}
INSTEAD = {name: why for why, names in _WHY.items() for name in names.split()}
FACTORS = "encoder_repetition_penalty guidance_scale typical_p num_beam_groups".split()
# Arguments of `generate` that are no settings; the last two say what is so here anyway.
ARGUMENTS = """input_ids attention_mask inputs inputs_embeds past_key_values generation_config
tokenizer vocab_limit generator fast assistant_model streamer logits_processor stopping_criteria
disable_compile logits_to_keep""".split()
UNREAD = ("transformers_version", "_from_model_config")  # what a file says about itself


def effective_settings(
    model: Any, generation_config: GenerationConfig | dict[str, Any] | None = None, **options: Any
) -> GenerationConfig:
    """What a call `generate(..., **options)` will obey: options over `generation_config` over the
    model's over `DEFAULTS`, field by field, as transformers decides.

    Args:
        model: its `generation_config` counts, and its `config` for special ids named nowhere else.
        **options: fields of `GenerationConfig`; None = not said. Other arguments of `generate` are
            passed over.

    Raises:
        TypeError, ValueError: an unknown option; a value or a combination that cannot be.

    Warns:
        UserWarning: an option of the call has no effect.
    """
    if not hasattr(model, "generation_config"):
        kind = type(model).__name__
        raise TypeError(f"model must be a Qwen2ForCausalLM, which can generate, not a {kind}")
    offered = [name for name in options if name not in INSTEAD]
    refuse_unknown("generate()", offered, (*OPTIONS, *ARGUMENTS))
    call = plain({name: value for name, value in options.items() if name not in ARGUMENTS})
    said: dict[str, Any] = {}
    for layer in (_fields(model.generation_config), _fields(generation_config), call):
        said |= {name: value for name, value in layer.items() if value is not None}
    for name, why in INSTEAD.items():
        if name in said and said[name] != (name in FACTORS):  # True is 1, False is 0
            raise ValueError(f"{name}={said[name]!r} is not offered by qwen2_edu: {why}")
    otherwise = DEFAULTS | {name: getattr(model.config, name) for name in SPECIAL}
    if "max_length" in said:
        del otherwise["max_new_tokens"]
    held = {name: said.get(name, otherwise.get(name)) for name in OPTIONS}
    for name in ("eos_token_id", "stop_strings"):
        held[name] = _listed(held[name])
    idle = {} if held["do_sample"] is True else dict.fromkeys(DRAWN, Range())  # may be anything
    check_numbers(held, RANGES | idle)
    settings = GenerationConfig(**held)
    if settings.pad_token_id is None and settings.eos_token_id:
        settings.pad_token_id = settings.eos_token_id[0]  # as transformers does
    _check(settings, model.config.vocab_size)
    _warn_of_no_effect(settings, call)
    return settings


def _fields(config: Any) -> dict[str, Any]:
    """What a configuration says: ours, transformers', or a dict."""
    if isinstance(config, dict):
        refuse_unknown("generation_config", config, OPTIONS, also=(*INSTEAD, *UNREAD))
        return plain(config)
    if config is not None and not callable(getattr(config, "to_dict", None)):
        raise TypeError(f"generation_config must be a GenerationConfig or a dict, not {config!r}")
    return {} if config is None else plain(config.to_dict())


def _listed(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    return [] if value is None else [value]


def _check(s: GenerationConfig, vocab_size: int) -> None:
    for end in s.eos_token_id:
        check_numbers({"eos_token_id": end}, {"eos_token_id": ID})
    for word in s.bad_words_ids or ():
        if not word or not 0 <= min(word) <= max(word) < vocab_size:
            raise ValueError(f"bad_words_ids hold {word}: each is ids from 0 to {vocab_size - 1}")
    one_of("early_stopping", s.early_stopping, (True, False, "never"))
    one_of("cache_implementation", s.cache_implementation, (None, "dynamic", "static"))
    K, R, stops = s.num_beams, s.num_return_sequences, s.stop_strings
    faults = {
        f"stop_strings must not be empty, as in {stops}": "" in stops,
        f"stop_strings={stops} do not go with num_beams={K}: pass 1": K > 1 and stops,
        f"num_return_sequences={R} is more than num_beams={K}: raise num_beams": R > K > 1,
        f"num_return_sequences={R} greedy answers would all be the same: pass do_sample=True or "
        f"num_beams={R}": K == 1 < R and not s.do_sample,
    }
    if fault := next((fault for fault, found in faults.items() if found), ""):
        raise ValueError(fault)


def _warn_of_no_effect(s: GenerationConfig, call: dict[str, Any]) -> None:
    needs = {}
    if not s.do_sample:  # temperature=0 asks for what greedy does
        drawing = [name for name in (*DRAWN, "seed") if call.get(name)]
        needs |= dict.fromkeys(drawing, "do_sample=True")
    if s.num_beams == 1:
        needs |= dict.fromkeys(("length_penalty", "early_stopping"), "num_beams above 1")
    if s.max_new_tokens is not None:
        needs["max_length"] = f"max_new_tokens={s.max_new_tokens} to be said nowhere"
    if not s.return_dict_in_generate:
        needs |= dict.fromkeys(NOTED, "return_dict_in_generate=True")
    idle = [n for n in needs if call.get(n) is not None and call[n] != DEFAULTS.get(n)]
    if idle:
        why = "; ".join(f"{name}={call[name]!r} needs {needs[name]}" for name in idle)
        warn_caller(f"no effect: {why}")
