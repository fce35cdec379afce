"""Exercises that check themselves: `check.ex03_1(my_rotate)` says PASS, or what went wrong.

An untouched stub answers `...` (Ellipsis), so it counts as not attempted. Whatever a learner's
function does, the answer is one line, never a stack trace.
"""

from __future__ import annotations

import copy
import dis
import pkgutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from ..checks import did_you_mean
from .lesson import current_lesson
from .verdicts import difference, kind, short

_NAMES = [name for _, name, _ in pkgutil.iter_modules([str(Path(__file__).parent)])]


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: ex, lesson, number: "ex03_1".
        title: a few words for the list of `check.progress()`.
        answer: the right function; without cases, the right value.
        cases: the arguments of each call, as tuples. None if a value is asked for.
        wrong: hint -> the function (or value) of somebody who made the mistake that it explains.
        tolerance: largest absolute difference between floating-point numbers.
        without: what the task rules out -> the hint. A name that the code may not use, or "loop".
    """

    name: str
    title: str
    answer: Any
    cases: Sequence[tuple] | None = None
    wrong: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5
    without: Mapping[str, str] = field(default_factory=dict)

    def judge(self, answer: Any) -> str:
        """ "PASS", "not attempted", or "not yet: " and a hint, in one line."""
        if answer is ...:
            return "not attempted"
        if self.cases and not callable(answer):
            return (
                f"not yet: expected a function, got {kind(answer)}. "
                "Pass its name alone, without brackets"
            )
        try:
            got, touched = self._try(answer)
            if any(value is ... for value in got):
                return "not attempted"
            if touched:
                return (
                    f"not yet: case {touched} came back changed. Leave what you are given as it "
                    "is, and work on a copy: x.clone(), list(x)"
                )
            for hint in [self.without[name] for name in self.without if uses(answer, name)]:
                return f"not yet: {hint}"
            differs = self._compare(got, self.answer)
        except (Exception, SystemExit) as error:
            return f"not yet: {_in_one_line(error, answer)}"
        if not any(differs):
            return "PASS"
        for hint, wrong in self.wrong.items():
            with suppress(Exception):  # a mistake that fails on some case has no output to match
                if not any(self._compare(got, wrong)):
                    return f"not yet: {hint}"
        return "not yet: " + self._explain(got, differs)

    def _try(self, answer: Any) -> tuple[list, int]:
        """What an answer gives on every case, each with arguments of its own; and the number of
        the first case whose arguments it changed, 0 if none.
        """
        if not self.cases:
            return [as_meant(answer, self.answer)], 0
        got, touched = [], 0
        for number, arguments in enumerate(self.cases, start=1):
            mine = copy.deepcopy(arguments)
            got.append(answer(*mine))
            if not touched and bits(mine) != bits(arguments):
                touched = number
        return got, touched

    def _compare(self, got: list, answer: Any) -> list[str]:
        pairs = zip(got, self._try(answer)[0], strict=True)
        return [difference(alike(one, other), other, self.tolerance) for one, other in pairs]

    def _explain(self, got: list, differs: list[str]) -> str:
        first = next(i for i, text in enumerate(differs) if text)
        if not self.cases:  # do not give the answer away
            same = type(got[0]) is type(self.answer)
            return f"it is not {short(got[0])}" if same else differs[0].split("\n")[0]
        if got[first] is None:
            return "your function returned None. Does it end in a return?"
        arguments = ", ".join(
            text if len(text := short(argument)) < 40 else kind(argument)
            for argument in self.cases[first]
        )
        says = "; ".join(differs[first].split("\n"))
        return f"case {first + 1} of {len(got)}, called with {arguments}: {says}"


class Checks:
    """`check.exNN_M(answer)` for each exercise of each lesson, and `check.progress()`."""

    def __init__(self):
        self._verdicts: dict[str, str] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        exercise = exercises_of(name[2:4]).get(name)
        if exercise is None:
            hint = did_you_mean(name, dir(self), "press tab after `check.` for a list")
            raise AttributeError(f"there is no exercise {name}: {hint}")

        def judge(*answer: Any) -> None:
            if len(answer) == 1:
                says = exercise.judge(answer[0])
                if self._verdicts.get(name) != "PASS":  # once solved, it stays solved
                    self._verdicts[name] = says
            else:
                says = f"not yet: give it one answer, as check.{name}(mine); not {len(answer)}"
            print(f"{name}  {says}")

        judge.__name__, judge.__doc__ = name, exercise.title
        return judge

    def __dir__(self) -> list[str]:
        lessons = sorted(name[2:] for name in _NAMES if name[:2] == "ex" and name[2:].isdigit())
        return [name for lesson in lessons for name in exercises_of(lesson)] + ["progress"]

    def progress(self) -> None:
        """Print how far this lesson's exercises are. What was solved once is done."""
        lesson = current_lesson()
        exercises = exercises_of(lesson[:2]).values()
        if not lesson:
            print('Call setup("03_rope"), with the name of the lesson, first.')
            return
        states = [self._verdicts.get(e.name, "not attempted").split(":")[0] for e in exercises]
        print(f"{lesson}: {states.count('PASS')} of {len(states)} done")
        for exercise, state in zip(exercises, states, strict=True):
            state = "done" if state == "PASS" else state
            print(f"  {exercise.name}  {state:13}  {exercise.title}")


def alike(one: Any, other: Any) -> Any:
    """`one` in the dtype of `other`, if both are integers or both floating-point numbers: how wide
    they are is no matter of right and wrong.
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        kinds = [
            (x.is_floating_point(), x.is_complex(), x.dtype == torch.bool) for x in (one, other)
        ]
        return one.to(other.dtype) if kinds[0] == kinds[1] else one
    return one


def as_meant(typed: Any, value: Any) -> Any:
    """What somebody typed, read as the kind of value asked for: "3" is 3, and capitals are free."""
    if isinstance(typed, str) and isinstance(value, str):
        return value if typed.lower().split() == value.lower().split() else typed
    if isinstance(typed, str) and isinstance(value, (int, float)):
        with suppress(ValueError):
            return type(value)(typed)
    return typed


def bits(value: Any) -> Any:
    """What a value holds, to the last bit: a tensor's bytes, and those of what it contains."""
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous().flatten()
        return value.dtype, tuple(value.shape), held.view(torch.uint8).numpy().tobytes()
    if isinstance(value, Mapping):
        return [(key, bits(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return repr(value) if isinstance(value, (str, bytes, int, float, bool)) else None


def uses(answer: Any, name: str) -> bool:
    """Does the code of a function say this name, or, for "loop", jump back to an earlier line?"""
    code = getattr(answer, "__code__", None)
    codes = [code] if code else []
    while codes:
        code = codes.pop()
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
        if name in code.co_names:
            return True
        steps = dis.get_instructions(code) if name == "loop" else ()
        if any("JUMP" in step.opname and step.argval < step.offset for step in steps):
            return True
    return False


def exercises_of(lesson: str) -> dict[str, Exercise]:
    """The exercises of a lesson, "03", by name; none if it has none."""
    if f"ex{lesson}" not in _NAMES:
        return {}
    module = import_module(f".ex{lesson}", __package__)
    return {exercise.name: exercise for exercise in module.EXERCISES}


def _in_one_line(error: BaseException, answer: Any) -> str:
    """The error, and the line of the learner's code where it left it."""
    says = (str(error).strip().split("\n")[0] or "no message")[:160]
    text = f"{type(error).__name__}: {says}"
    code = getattr(answer, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if code and frame.filename == code.co_filename]
    if theirs and theirs[-1].line:
        text += f". It came from line {theirs[-1].lineno} of your cell: {theirs[-1].line}"
    return text


check = Checks()
