"""What callers pass, checked in one way: names, choices, numbers, ids; where a warning points."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """Which known names may be meant? In a sentence: "did you mean top_k or top_p?"

    Args:
        otherwise: the answer if no name is like it.
        cutoff: how alike, from 0 to 1; see `difflib.get_close_matches`.
    """
    near = get_close_matches(name, list(known), cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def refuse_unknown(
    what: str,
    given: Iterable[str],
    known: Collection[str],
    instead: Mapping[str, str] | None = None,
    also: Collection[str] = (),
) -> None:
    """Raise TypeError for the first option that `what` does not have, with the way out.

    Args:
        instead: {option that people know from elsewhere: what to do here}.
        also: fields of the config, which are known too and too many to list.
    """
    for name in given:
        if name not in known and name not in also:
            listed = "the options are " + ", ".join(sorted(known))
            listed += "; and fields of the config" if also else ""
            hint = (instead or {}).get(name) or did_you_mean(name, {*known, *also}, listed)
            raise TypeError(f"{what} has no option {name!r}: {hint}")


def one_of(what: str, value: Any, allowed: Sequence[Any]) -> Any:
    """`value` if it is allowed, else a ValueError that lists what is."""
    if not any(value is x or (isinstance(value, str) and value == x) for x in allowed):
        raise ValueError(f"{what} must be one of {list(allowed)}, not {value!r}")
    return value


def check_kind(name: str, value: Any, kind: type, said: str) -> None:
    """Raise ValueError unless `value` is of a kind, or None, which stands for "not said"."""
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name} must be {said}, not {value!r}")


class Range(NamedTuple):
    """Which numbers are allowed: from `low` to `high`, both included unless `above` is set, which
    leaves `low` out. `hint`: the way out, for whoever is outside.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    hint: str = ""

    def __str__(self) -> str:
        low, high, whole, above, _ = self
        noun = "an integer" if whole else "a number"
        if high < math.inf:
            return f"{noun} in {'(' if above else '['}{low:g}, {high:g}]"
        if low == -math.inf:
            return noun
        if above:
            return f"{noun} above {low:g}"
        return "a positive integer" if whole and low == 1 else f"{noun}, {low:g} or more"


def check_numbers(values: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Raise ValueError for the first value that is out of its range; None stands for "not said"."""
    for name, allowed in ranges.items():
        value = values[name]
        if value is None:
            continue
        number = isinstance(value, Integral if allowed.whole else Real)
        within = number and not isinstance(value, bool) and allowed.low <= value <= allowed.high
        if not within or (allowed.above and value == allowed.low):
            hint = f": {allowed.hint}" if allowed.hint else ""
            raise ValueError(f"{name} must be {allowed}, not {value!r}{hint}")


def check_ids(input_ids: Any, vocab_size: int, wait: bool = False) -> None:
    """Refuse what is no integer tensor (B, T), or holds ids beyond the vocabulary.

    Args:
        wait: look at the ids on a GPU too, which has to be waited for.
    """
    if not isinstance(input_ids, Tensor):
        hint = 'a tokenizer makes one with return_tensors="pt"'
        if isinstance(input_ids, Mapping):
            hint = "pass **inputs, or inputs.input_ids"
        kind = type(input_ids).__name__
        raise TypeError(f"input_ids must be a tensor (B, T), not a {kind}: {hint}")
    shape = tuple(input_ids.shape)
    if len(shape) != 2 or 0 in shape or input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids must be integers (B, T), not {input_ids.dtype} {shape}")
    if (wait or input_ids.device.type == "cpu") and not torch.compiler.is_compiling():
        low, high = (int(end) for end in input_ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"input_ids hold {low if low < 0 else high}; this model's ids are 0 to "
                f"{vocab_size - 1}: is this tokenizer the model's?"
            )


def warn_caller(text: str) -> None:
    """Warn at the line that called the package, however deep in it we are."""
    ours, level, frame = __package__.split(".")[0], 1, sys._getframe()
    while frame and (frame.f_globals.get("__package__") or "").split(".")[0] == ours:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
