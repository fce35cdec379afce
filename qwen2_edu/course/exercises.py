"""Exercises that check themselves: `check.ex03_1(my_rotate)` says PASS, or what went wrong.

An untouched stub answers `...` (Ellipsis), so it counts as not attempted. Whatever a learner's
function does, the answer is one line, never a stack trace.
"""

from __future__ import annotations

import copy
import pkgutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

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
    """

    name: str
    title: str
    answer: Any
    cases: Sequence[tuple] | None = None
    wrong: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5

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
            got = self._outputs(answer)
            if any(value is ... for value in got):
                return "not attempted"
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

    def _outputs(self, answer: Any) -> list:
        """What an answer gives on every case. Each call gets arguments of its own."""
        if not self.cases:
            return [answer]
        return [answer(*copy.deepcopy(arguments)) for arguments in self.cases]

    def _compare(self, got: list, answer: Any) -> list[str]:
        pairs = zip(got, self._outputs(answer), strict=True)
        return [difference(one, other, self.tolerance) for one, other in pairs]

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
