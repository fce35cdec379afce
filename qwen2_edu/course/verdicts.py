"""Verdicts: the line that says that two things are equal, or that a planted mistake was caught."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import isfunction
from os.path import commonprefix
from typing import Any

import numpy
import torch
from torch import Tensor


def equal(ours: Any, reference: Any, tolerance: float = 1e-5) -> None:
    """Print PASS if the two agree; the cell fails if they do not.

    Args:
        ours, reference: tensors, numbers, strings, or lists, tuples and dicts of them. Two tensors
            must have one shape and one dtype. NaN equals nothing.
        tolerance: the largest absolute difference allowed between floating-point numbers. Integers
            and strings are compared exactly.

    Raises:
        AssertionError: they differ. The message names the largest difference, or the first one.
    """
    differs = difference(ours, reference, tolerance)
    if differs:
        raise AssertionError(differs)
    exact = not tolerance or not _has_floats(reference)
    print("PASS  equal" if exact else f"PASS  max|Δ| ≤ {tolerance:g}")


@contextmanager
def caught(mistake: str) -> Iterator[None]:
    """Print CAUGHT if the body raises AssertionError or ValueError, as it must.

    Raises:
        AssertionError: nothing was raised, so the check in the body proves nothing.
    """
    try:
        yield
    except (AssertionError, ValueError) as error:
        says = str(error).strip().split("\n")[0] or type(error).__name__
        print(f"CAUGHT  {mistake}: {says}")
    else:
        raise AssertionError(f"not caught: {mistake}. The check passed, so it proves nothing here")


def difference(ours: Any, reference: Any, tolerance: float = 1e-5) -> str:
    """How do the two differ? "" if they do not; else a first line that is the same on every
    machine, and perhaps a second one that says where.
    """
    left, right = _as_tensor(ours), _as_tensor(reference)
    if left is not None and right is not None:
        if isinstance(ours, Tensor) and isinstance(reference, Tensor) and left.dtype != right.dtype:
            return f"dtype {_name(left.dtype)}, expected {_name(right.dtype)}"
        return _between_tensors(left, right, tolerance)
    if isinstance(reference, dict) and isinstance(ours, dict):
        if ours.keys() != reference.keys():
            return f"keys {short(list(ours))}, expected {short(list(reference))}"
        pairs = [(key, ours[key], reference[key]) for key in reference]
    elif isinstance(reference, (list, tuple)) and isinstance(ours, (list, tuple)):
        if len(ours) != len(reference):
            says = f"{len(ours)} item{'s' * (len(ours) != 1)}, expected {len(reference)}"
            return says + _first(ours, reference)
        pairs = list(zip(range(len(ours)), ours, reference, strict=True))
    elif left is not None or right is not None or type(ours) is not type(reference):
        return f"{kind(ours)}, expected {kind(reference)}"
    else:
        return "" if ours == reference else _between_values(ours, reference)
    for index, one, other in pairs:
        differs = difference(one, other, tolerance)
        if differs:
            return f"item {index!r}: {differs}"
    return ""


def kind(value: Any) -> str:
    """What is it? "an int", "None", "a tensor (2, 3)"."""
    if value is None:
        return "None"
    if isinstance(value, (Tensor, numpy.ndarray)):
        return f"a tensor {tuple(value.shape)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def short(value: Any, width: int = 60) -> str:
    """The value in one line, cut after `width` characters."""
    text = value.__name__ if isfunction(value) else " ".join(repr(value).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _as_tensor(value: Any) -> Tensor | None:
    """Numbers, and lists of numbers that make a box, become a tensor; None for all else."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if value is None or isinstance(value, (str, bytes, dict)):
        return None
    try:
        array = numpy.asarray(value)
        return torch.as_tensor(array) if array.dtype.kind in "biufc" and array.size else None
    except (ValueError, TypeError, RuntimeError, OverflowError):
        return None


def _between_tensors(ours: Tensor, reference: Tensor, tolerance: float) -> str:
    if ours.shape != reference.shape:
        return f"shape {tuple(ours.shape)}, expected {tuple(reference.shape)}"
    if _is_exact(ours) and _is_exact(reference):
        wrong = (ours != reference).flatten()
        if not wrong.any():
            return ""
        at, says = int(wrong.int().argmax()), f"{int(wrong.sum())} of {wrong.numel()} differ"
        values = f"{ours.flatten()[at].item()}, expected {reference.flatten()[at].item()}"
        return f"{says}\nfirst at {_where(ours, at)}: {values}" if ours.dim() else values
    wide = torch.complex128 if ours.is_complex() or reference.is_complex() else torch.float64
    one, other = ours.to(wide).flatten(), reference.to(wide).flatten()
    for says, missing in (("NaN", one.isnan()), ("NaN in the reference", other.isnan())):
        if missing.any():
            at = _where(ours, int(missing.int().argmax()))
            return f"{says}\nfirst at {at}" if ours.dim() else says
    gap = torch.where(one == other, 0.0, (one - other).abs())  # equal infinities are equal
    if not gap.numel() or gap.max() <= tolerance:
        return ""
    at = int(gap.argmax())
    place = f"largest at {_where(ours, at)}: " if ours.dim() else ""
    values = f"{one[at].item():.4g}, expected {other[at].item():.4g}"
    return f"max|Δ| = {gap.max().item():.2g} > {tolerance:g}\n{place}{values}"


def _between_values(ours: Any, reference: Any) -> str:
    """Two values that differ, in short; of long texts that begin alike, from where they part."""
    if not isinstance(ours, str) or short(ours) != short(reference):
        return f"{short(ours)}, expected {short(reference)}"
    at = len(commonprefix([ours, reference]))
    one, other = (short(text[at:], 30) for text in (ours, reference))
    return f"behind {ours[max(0, at - 20) : at]!r}: {one}, expected {other}"


def _is_exact(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _where(tensor: Tensor, flat: int) -> list[int]:
    return [int(index) for index in numpy.unravel_index(flat, tuple(tensor.shape))]


def _first(ours: Any, reference: Any) -> str:
    for index, (one, other) in enumerate(zip(ours, reference, strict=False)):
        if difference(one, other, 0):
            return f"\nfirst difference at {index}: {short(one)}, expected {short(other)}"
    return ""


def _has_floats(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    tensor = _as_tensor(value)
    if tensor is not None:
        return not _is_exact(tensor)
    return isinstance(value, (list, tuple)) and any(map(_has_floats, value))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
