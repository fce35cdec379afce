"""Which settings a call of `generate` obeys: its own, the model's, or the defaults."""

from __future__ import annotations

import sys
import warnings
from numbers import Integral, Real
from typing import Any

from ..checks import did_you_mean
from .settings import DEFAULTS, OPTIONS, GenerationConfig

# Options of transformers that are not offered here, with the value at which they do nothing.
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(
        "assistant_model bad_words_ids begin_suppress_tokens constraints force_words_ids max_time "
        "exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id penalty_alpha "
        "logits_processor prefix_allowed_tokens_fn prompt_lookup_num_tokens sequence_bias top_h "
        "stopping_criteria suppress_tokens watermarking_config".split()
    ),
    **dict.fromkeys(
        "output_attentions output_hidden_states output_logits output_scores remove_invalid_values "
        "renormalize_logits return_dict_in_generate token_healing".split(),
        False,
    ),
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale", "typical_p"), 1.0),
    **dict.fromkeys(("diversity_penalty", "epsilon_cutoff", "eta_cutoff"), 0.0),
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "no_repeat_ngram_size"), 0),
    **dict.fromkeys(("min_length", "min_new_tokens"), 0),
    "num_beam_groups": 1,
    "use_cache": True,
}
# Arguments of `generate` that are no settings.
ARGUMENTS = (
    "input_ids attention_mask past_key_values generation_config tokenizer vocab_limit generator "
    "compiled streamer"
).split()


def effective_settings(
    model: Any,
    generation_config: GenerationConfig | dict[str, Any] | None = None,
    **options: Any,
) -> GenerationConfig:
    """What a call `generate(..., **options)` will obey: options over the model's over `DEFAULTS`.

    Args:
        model: its `generation_config` counts, and its `config` for special ids named nowhere else.
        generation_config: used instead of the model's.
        **options: fields of `GenerationConfig`; None = not said.

    Raises:
        TypeError: an unknown option; near matches are named.
        ValueError: an option or combination that cannot be, with values and way out.

    Warns:
        UserWarning: an option of the call has no effect.
    """
    for name in options:
        if name not in OPTIONS and name not in NEUTRAL:
            hint = did_you_mean(name, (*OPTIONS, *ARGUMENTS), f"it has {', '.join(OPTIONS)}")
            raise TypeError(f"generate() has no option {name!r}; {hint}")
    base = generation_config or model.generation_config or {}
    said = dict(base if isinstance(base, dict) else base.to_dict())
    call = {name: value for name, value in options.items() if value is not None}
    if "max_length" in call and "max_new_tokens" not in call:
        said["max_new_tokens"] = None  # the call's limit wins over the file's in either spelling
    said |= call
    for name, neutral in NEUTRAL.items():
        if said.get(name) is not None and said[name] != neutral:
            raise ValueError(f"{name}={said[name]!r} is not offered by qwen2_edu: leave it out")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if said.get(name) is None:
            said[name] = getattr(model.config, name)
    settings = GenerationConfig(**{name: said.get(name) for name in OPTIONS})
    for name, default in DEFAULTS.items():
        limited = name == "max_new_tokens" and settings.max_length is not None
        if getattr(settings, name) is None and not limited:
            setattr(settings, name, default)
    settings.eos_token_id = _listed(settings.eos_token_id)
    settings.stop_strings = _listed(settings.stop_strings)
    if settings.pad_token_id is None and settings.eos_token_id:
        settings.pad_token_id = settings.eos_token_id[0]  # as transformers does
    _check_values(settings)
    _check_combinations(settings)
    _warn_of_no_effect(settings, call)
    return settings


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def check_type(name: str, value: Any, kind: type, said: str) -> None:
    """Raises ValueError unless `value` is of a kind, or None."""
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name} must be {said}, not {value!r}")


def warn_caller(text: str) -> None:
    """Warn at the line that called the package, however deep in it we are."""
    ours, level, frame = __package__.split(".")[0], 1, sys._getframe()
    while frame and (frame.f_globals.get("__package__") or "").split(".")[0] == ours:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def _check_values(s: GenerationConfig) -> None:
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty"):
        check_type(name, getattr(s, name), Real, "a number")
    for name in ("seed", "bos_token_id", "pad_token_id"):
        check_type(name, getattr(s, name), Integral, "an integer")
    for number in s.eos_token_id:
        if not isinstance(number, Integral):
            raise ValueError(f"eos_token_id must be an integer or a list of them, not {number!r}")
    check_type("do_sample", s.do_sample, bool, "True or False")
    if s.do_sample and not s.temperature > 0:
        raise ValueError(
            f"temperature must be above 0 to sample, not {s.temperature}: for the most likely "
            "token at each step pass do_sample=False"
        )
    if s.do_sample and not 0 < s.top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], not {s.top_p}: 1.0 keeps every token")
    if s.do_sample and (not isinstance(s.top_k, int) or s.top_k < 0):
        raise ValueError(
            f"top_k must be a whole number, 0 or more, not {s.top_k!r}: 0 keeps every token"
        )
    if s.do_sample and not 0 <= s.min_p <= 1:
        raise ValueError(f"min_p must be in [0, 1], not {s.min_p}: 0 keeps every token")
    if not s.repetition_penalty > 0:
        raise ValueError(
            f"repetition_penalty must be above 0, not {s.repetition_penalty}: 1.0 changes nothing"
        )
    for name in ("max_new_tokens", "max_length", "num_beams", "num_return_sequences"):
        value = getattr(s, name)
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{name} must be a positive integer, not {value!r}")
    if s.early_stopping not in (True, False, "never"):
        raise ValueError(f"early_stopping must be True, False or 'never', not {s.early_stopping!r}")
    if s.cache_implementation not in (None, "dynamic", "static"):
        raise ValueError(
            f"cache_implementation must be 'dynamic' or 'static', not {s.cache_implementation!r}"
        )
    for text in s.stop_strings:
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop_strings must be texts, not empty, not {text!r}")


def _check_combinations(s: GenerationConfig) -> None:
    K, R = s.num_beams, s.num_return_sequences
    if K > 1 and s.do_sample:
        raise ValueError(
            f"num_beams={K} looks for the most probable text, do_sample=True draws one: pass "
            "do_sample=False or num_beams=1"
        )
    if K > 1 and s.stop_strings:
        raise ValueError(f"stop_strings={s.stop_strings} cannot be watched with num_beams={K}")
    if K > 1 and R > K:
        raise ValueError(f"num_return_sequences={R} is more than num_beams={K}: raise num_beams")
    if K == 1 and R > 1 and not s.do_sample:
        raise ValueError(
            f"num_return_sequences={R} greedy answers would all be the same: pass do_sample=True "
            f"or num_beams={R}"
        )


def _warn_of_no_effect(s: GenerationConfig, call: dict[str, Any]) -> None:
    idle = []
    if not s.do_sample:  # temperature=0 asks for what greedy does
        idle += [n for n in ("temperature", "top_k", "top_p", "min_p", "seed") if call.get(n)]
    if s.num_beams == 1:
        idle += [n for n in ("length_penalty", "early_stopping") if n in call]
    if "max_new_tokens" in call:
        idle += [n for n in ("max_length",) if n in call]
    idle = [n for n in idle if call[n] != DEFAULTS.get(n)]
    if idle:
        need = {"max_length": "only one of max_new_tokens and max_length"}
        need |= dict.fromkeys(("length_penalty", "early_stopping"), "num_beams above 1")
        why = [f"{n}={call[n]!r} needs {need.get(n, 'do_sample=True')}" for n in idle]
        warn_caller(f"no effect: {'; '.join(why)}")
