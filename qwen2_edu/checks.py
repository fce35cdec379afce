"""What callers pass, checked in one way: names, choices, numbers, ids; where a warning points."""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib import import_module
from itertools import islice
from numbers import Integral, Number, Real
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import torch
from torch import Tensor


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """Which known names may be meant? "did you mean top_k or top_p?", or `otherwise` if none is."""
    near = get_close_matches(name, list(known), cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def refuse_unknown(
    what: str,
    given: Iterable[str],
    known: Collection[str],
    instead: Mapping[str, str] | None = None,
    also: Collection[str] = (),
) -> None:
    """Raise TypeError for the first option that `what` does not have, with the way out. `instead`
    maps what people know from elsewhere to what to do here; `also`: known, too many to list.
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


DEPTH = 64  # of lists and dicts in one another; what is deeper is no setting


def plain(value: Any, whole: bool = False, depth: int = DEPTH) -> Any:
    """`value` in Python's own types, which every file can hold and every check knows.

    Numbers, arrays and tensors of numpy and torch become int, float, bool or lists of them, however
    deep they lie. `whole`: a float without a fraction becomes an int, as JSON may write a length
    (1e30). ValueError: nested more than 64 deep.
    """
    if depth < 0:
        raise ValueError(f"lists or objects are nested more than {DEPTH} deep: no setting is")
    if isinstance(value, dict):
        return {plain(k): plain(v, whole, depth - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([plain(v, whole, depth - 1) for v in value])
    if callable(convert := getattr(value, "tolist", None)) and not getattr(value, "is_meta", False):
        value = convert()
    return int(value) if whole and isinstance(value, float) and value.is_integer() else value


def check_json(values: Mapping[str, Any], hints: Mapping[str, Any], where: str = "") -> None:
    """Raise ValueError for the first value that is not of the type its field has in `hints`.

    Types are written as annotations: an int is a float too, but a bool is no number. Fields without
    a hint pass. `where`: the file, or what else is at fault.
    """
    for name, value in values.items():
        if not _is_a(value, hints.get(name, Any)):
            said = _wrong(name, value, hints[name])
            raise ValueError(f"{where}: {said}" if where else said)


def checked(function: Any, ours: bool = True, late: bool = False) -> Any:
    """Make a function refuse arguments that are not of the types it is annotated with: a TypeError
    that names the argument; and those that do not fit what annotations say besides (`check_fit`).
    Of many items the first thousand are looked at. Of a class, the public methods and `__init__`.
    Compiled code is not looked at; `ours`: calls of this package are; `late`: a call is looked at
    once it has failed, so that what runs in each layer of each step does not wait for it.
    """
    if isinstance(function, type):
        for name, method in [*vars(function).items()]:
            if name != "__init__" and name.startswith("_"):
                continue
            if inspect.isfunction(method):
                setattr(function, name, checked(method, ours, late and name != "__init__"))
            elif isinstance(method, classmethod):
                setattr(function, name, classmethod(checked(method.__func__, ours, late)))
        return function
    signature, hints = inspect.signature(function), functools.cache(get_type_hints)

    def look(*args: Any, **options: Any) -> inspect.BoundArguments:
        try:
            given = signature.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{call.__qualname__}{signature}: {error}") from None
        kinds = hints(function)
        for name, value in given.arguments.items():
            kind = kinds.get(name, Any)
            if isinstance(value, Number) or not _is_a(value, kind, 1000):
                given.arguments[name] = plain(value)
                if not _is_a(given.arguments[name], kind, 1000):
                    raise TypeError(_wrong(name, value, kind))
        check_fit(given.arguments, hints(function, include_extras=True))
        return given

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling() or (not ours and _is_ours(sys._getframe(1))):
            return function(*args, **options)
        given = look(*args, **options)
        return function(*given.args, **given.kwargs)

    @functools.wraps(function)
    def call_first(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except (TypeError, AttributeError, LookupError, RuntimeError):
            look(*args, **options)
            raise

    return call_first if late else call


def check_calls(modules: str) -> None:
    """Make the public functions of these modules `checked` for callers outside the package, as our
    own calls, some of them made at each step, do not wait for it; and their layers and caches late.
    """
    for module in [import_module(f"{__package__}.{name}") for name in modules.split()]:
        for name, found in [*vars(module).items()]:
            if getattr(found, "__module__", "") != module.__name__ or name[0] == "_":
                continue
            if inspect.isfunction(found):
                setattr(module, name, checked(found, ours=False))
                found.__qualname__ += ".__wrapped__"  # there pickle finds what a layer holds of it
            elif inspect.isclass(found) and not is_dataclass(found):
                checked(found, late=True)


def _wrong(name: str, value: Any, kind: Any) -> str:
    shown, named = repr(value), isinstance(kind, type) and not get_args(kind)
    kind = kind.__name__ if named else re.sub(r"\b(\w+\.)+(?=\w)", "", str(kind))  # no modules
    shown = shown if len(shown) < 80 else shown[:77] + "…"
    return f"{name} must be {kind}, not {shown}"


def _is_a(value: Any, kind: Any, most: int | None = None) -> bool:
    parts = get_args(kind)
    if kind is Any or isinstance(kind, types.UnionType):
        return kind is Any or any(_is_a(value, part, most) for part in parts)
    kind = get_origin(kind) or {None: types.NoneType, float: Real, int: Integral}.get(kind, kind)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
        return False
    if not parts or kind is Callable or not isinstance(value, Collection):
        return True
    if isinstance(value, Mapping):
        pairs = islice(value.items(), most)
        return len(parts) == 2 and all(
            _is_a(k, parts[0], most) and _is_a(v, parts[1], most) for k, v in pairs
        )
    items = islice(value, most) if getattr(value, "ndim", 1) else (None,)  # a tensor of one number
    return all(_is_a(item, parts[0], most) for item in items)


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included unless `above` `low`; `hint`: the way out."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    hint: str = ""

    def __str__(self) -> str:
        noun = "an integer" if self.whole else "a number"
        if self.high < math.inf:
            return f"{noun} in {'(' if self.above else '['}{self.low:,}, {self.high:,}]"
        if self.low == -math.inf:
            return noun
        if self.whole and self.low == 1:
            return "a positive integer"
        return f"{noun} above {self.low:g}" if self.above else f"{noun}, {self.low:g} or more"


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
    """Refuse what is no integer tensor (B, T), or holds ids beyond the vocabulary. Ids on a GPU are
    looked at only if `wait`: it has to be waited for.
    """
    if not isinstance(input_ids, Tensor):
        kind, hint = type(input_ids).__name__, 'a tokenizer makes one with return_tensors="pt"'
        if isinstance(input_ids, Mapping):
            hint = "pass **inputs, or inputs.input_ids"
        raise TypeError(f"input_ids must be a tensor (B, T), not a {kind}: {hint}")
    shape = tuple(input_ids.shape)
    if len(shape) != 2 or 0 in shape or input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids must be integers (B, T), not {input_ids.dtype} {shape}")
    if (wait or input_ids.device.type == "cpu") and not torch.compiler.is_compiling():
        low, high = (int(end) for end in input_ids.aminmax())
        held, last = low if low < 0 else high, vocab_size - 1
        if not 0 <= held <= last:
            raise ValueError(f"input_ids hold {held}; this model's ids are 0 to {last}")


KINDS: dict[str, Callable[[Tensor], bool]] = {
    "tensor": lambda x: True,
    "floats": Tensor.is_floating_point,
    "ints": lambda x: x.dtype in (torch.int64, torch.int32),
    "bools": lambda x: x.dtype == torch.bool,
}


def check_fit(given: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise ValueError for numbers out of their range, and tensors that do not fit one another.

    Annotations say so: Annotated[int, Range(1)], Annotated[Tensor, "floats B T V"]. All lie on one
    device, and floats are of one dtype. A letter is one length wherever it stands, but B may be 1;
    a number is itself; … is whatever comes before; H is a multiple of G.
    """
    said = {n: kind.__metadata__[0] for n, kind in hints.items() if hasattr(kind, "__metadata__")}
    numbers = {n for n, x in given.items() if isinstance(x, Number)}
    check_numbers(given, {n: s for n, s in said.items() if n in numbers and isinstance(s, Range)})
    shapes = {n: s for n, s in said.items() if isinstance(s, str)}
    tensors = {n: x for n, x in given.items() if isinstance(x, Tensor) and n in shapes}
    sizes: dict[str, int] = {}
    for name, x in tensors.items():
        kind, *letters = shapes[name].split()
        floats = [y for y in tensors.values() if y.is_floating_point()] or [x]
        device, dtype = next(iter(tensors.values())).device, floats[0].dtype
        known = ", ".join(f"{w}={n}" for w, n in sizes.items())
        shape, ends = tuple(x.shape), [w for w in letters if w != "…"]
        last = shape[max(0, len(shape) - len(ends)) :] if "…" in letters else shape
        fits = [KINDS[kind](x), x.device == device, len(last) == len(ends)]
        fits += [not x.is_floating_point() or x.dtype == dtype]
        for w, n in zip(ends, last, strict=False):
            size = int(w) if w.isdigit() else sizes.setdefault(w, n)
            fits += [n == size or (w == "B" and n == 1)]
        if not all(fits) or sizes.get("H", 0) % (sizes.get("G") or 1):
            kind = str(dtype) if kind == "floats" and known else kind
            wanted = f"{kind} ({', '.join(letters)}) on {device}{known and ' with '}{known}"
            raise ValueError(f"{name} must be {wanted}, not {x.dtype} {shape} on {x.device}")


def warn_caller(text: str) -> None:
    """Warn at the line that called the package, however deep in it we are."""
    level, frame = 1, sys._getframe()
    while frame and _is_ours(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def _is_ours(frame: types.FrameType) -> bool:
    return (frame.f_globals.get("__package__") or "").partition(".")[0] == __package__
