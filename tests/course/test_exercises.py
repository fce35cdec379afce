"""Each exercise knows its answer, and each mistake that it claims to know gets its own hint."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest

from qwen2_edu.course.exercises import Exercise, check, exercises_of

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted(path.stem[2:] for path in (ROOT / "qwen2_edu" / "course").glob("ex[0-9][0-9].py"))
EXERCISES = [exercise for lesson in LESSONS for exercise in exercises_of(lesson).values()]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FEWEST, MOST, FEWEST_WRONG = 3, 5, 3


def solutions_of(lesson: str) -> dict:
    path = ROOT / "notebooks" / "solutions" / f"lesson_{lesson}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SOLUTIONS


def faults(exercise: Exercise, solution) -> list[str]:
    """What is wrong with an exercise; empty if nothing is."""
    found = []
    if (verdict := exercise.judge(solution)) != "PASS":
        found.append(f"the solution: {verdict}")
    if exercise.judge(...) != "not attempted":
        found.append("an untouched stub counts as an attempt")
    if exercise.cases and exercise.judge(lambda *_: ...) != "not attempted":
        found.append("an untouched function counts as an attempt")
    if len(exercise.wrong) < FEWEST_WRONG:
        found.append(f"{len(exercise.wrong)} wrong answers, at least {FEWEST_WRONG}")
    for hint, wrong in exercise.wrong.items():
        if (verdict := exercise.judge(wrong)) != f"not yet: {hint}":
            found.append(f"the wrong answer with hint {hint!r}: {verdict}")
        if "\n" in hint or len(hint.split()) < 4:
            found.append(f"{hint!r} is no hint: one line of at least four words")
    return found


def faults_of_notebook(notebook: dict, exercises: list[str], solutions: dict) -> list[str]:
    """Does the notebook ask for exactly these exercises, untouched?"""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found, asked = [], []
    for cell in cells:
        source = "".join(cell["source"])
        shown = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        for name, given in re.findall(r"\bcheck\.(ex\w+)\((\w*)", source):
            asked.append(name)
            if f"{name}  not attempted" not in shown:
                found.append(f"{name} is stored as attempted")
            solution = solutions.get(name)
            if inspect.isfunction(solution) and solution.__name__ != given:
                found.append(f"{name} checks {given}, its solution is {solution.__name__}")
    if sorted(asked) != sorted(exercises):
        found.append(f"asks for {sorted(asked)}, the exercises are {sorted(exercises)}")
    return found


# --- the exercises as they are


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
def test_exercise(exercise):
    solutions = solutions_of(exercise.name[2:4])
    assert exercise.name in solutions, "it has no solution"
    assert faults(exercise, solutions[exercise.name]) == []


@pytest.mark.parametrize("lesson", LESSONS)
def test_exercises_are_numbered_and_a_few(lesson):
    names = list(exercises_of(lesson))
    asked = [name for name in names if not name.endswith("_0")]  # 0: the lesson's own piece
    assert names == [*sorted(set(names) - set(asked)), *asked]
    assert asked == [f"ex{lesson}_{i}" for i in range(1, len(asked) + 1)]
    assert lesson == "00" or FEWEST <= len(asked) <= MOST
    assert list(solutions_of(lesson)) == names


@pytest.mark.parametrize("lesson", LESSONS)
def test_solutions_say_why(lesson):
    path = ROOT / "notebooks" / "solutions" / f"lesson_{lesson}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            before = path.read_text(encoding="utf-8").splitlines()[max(node.lineno - 3, 0) :]
            commented = any(line.lstrip().startswith("#") for line in before[: 2 + node.end_lineno])
            assert ast.get_docstring(node) or commented, f"{node.name} does not say why"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_asks_for_its_exercises(path):
    notebook, lesson = json.loads(path.read_text(encoding="utf-8")), path.stem[:2]
    if lesson == "00" and lesson not in LESSONS:
        return  # the tour may do without
    assert lesson in LESSONS, f"{path.stem} has no exercises: qwen2_edu/course/ex{lesson}.py"
    exercises = list(exercises_of(lesson))
    assert faults_of_notebook(notebook, exercises, solutions_of(lesson)) == []


def test_tab_completion_lists_them():
    assert {exercise.name for exercise in EXERCISES} <= set(dir(check))
    for exercise in EXERCISES:
        assert callable(getattr(check, exercise.name))


# --- and the test itself: each rule is broken once

DOUBLE = {
    "name": "ex99_1",
    "title": "Double it",
    "answer": lambda x: 2 * x,
    "cases": [(1.0,), (3.0,)],
    "wrong": {
        "That is the square of x.": lambda x: x * x,
        "That is half of x.": lambda x: x / 2,
        "That is x as it came.": lambda x: x,
    },
}


@pytest.mark.parametrize(
    "changes, solution, says",
    [
        ({}, lambda x: 3 * x, "the solution: not yet"),
        ({"wrong": {"That is half of x.": lambda x: x / 2}}, None, "1 wrong answers"),
        ({"cases": [(0.0,)]}, None, "the wrong answer with hint"),  # too weak to tell them apart
        (
            {"wrong": {**DOUBLE["wrong"], "That one is right.": lambda x: x + x}},
            None,
            "That one is right.': PASS",
        ),
        (
            {"wrong": {**DOUBLE["wrong"], "A half once more.": lambda x: 0.5 * x}},
            None,
            "the wrong answer with hint 'A half once more.': not yet: That is half",
        ),
        ({"wrong": {"no": DOUBLE["answer"]}}, None, "'no' is no hint"),
        (
            {"wrong": {**DOUBLE["wrong"], "This one stops with an error.": lambda x: x[0]}},
            None,
            "TypeError",
        ),
    ],
)
def test_each_fault_is_found(changes, solution, says):
    right = DOUBLE["answer"]
    assert faults(Exercise(**DOUBLE), right) == []
    assert says in "; ".join(faults(Exercise(**{**DOUBLE, **changes}), solution or right))


def cell(source, text):
    outputs = [{"output_type": "stream", "name": "stdout", "text": [text]}]
    return {"cell_type": "code", "metadata": {}, "source": [source], "outputs": outputs}


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    "source, shown, says",
    [
        ("check.ex99_1(double)", "ex99_1  not attempted\n", None),
        ("check.ex99_1(double)", "ex99_1  PASS\n", "stored as attempted"),
        ("check.ex99_1(double)", "", "stored as attempted"),
        ("check.ex99_1(twice)", "ex99_1  not attempted\n", "its solution is double"),
        ("check.ex99_2(double)", "ex99_2  not attempted\n", "asks for ['ex99_2']"),
        ("pass", "", "asks for []"),
    ],
)
def test_each_fault_of_a_notebook_is_found(source, shown, says):
    found = faults_of_notebook({"cells": [cell(source, shown)]}, ["ex99_1"], {"ex99_1": double})
    assert (found == []) if says is None else len(found) == 1 and says in found[0]
