"""What lessons use: `setup`, the verdicts, and `check` in front of whatever a learner writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy
import pytest
import torch

from qwen2_edu.course import caught, check, equal, exercises, setup
from qwen2_edu.course.exercises import Exercise
from qwen2_edu.course.lesson import LESSONS
from qwen2_edu.course.verdicts import difference

ROOT = Path(__file__).resolve().parents[2]
NAN, INF = float("nan"), float("inf")
ones, zeros, tensor = torch.ones, torch.zeros, torch.tensor


# --- setup


def test_setup_repeats_itself(settings_put_back):
    draws = []
    for _ in range(2):
        colours = setup("03_rope")
        draws.append((torch.rand(2).tolist(), numpy.random.rand()))
    assert draws[0] == draws[1]
    assert torch.get_num_threads() == 1
    assert str(tensor([1e-6, 1000.0])) == "tensor([   0.0000, 1000.0000])"
    assert matplotlib.colors.is_color_like(colours.blue)
    assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(vars(colours).values())


def test_setup_says_nothing(settings_put_back, capfd):
    import logging
    import warnings

    setup("00_tour")
    warnings.warn("a library complains", stacklevel=1)
    logging.getLogger("matplotlib.font_manager").warning("building the font cache")
    assert capfd.readouterr() == ("", "")


def test_setup_works_in_plain_python_and_leaves_the_backend_alone():
    code = (
        "from qwen2_edu.course import *; setup('03_rope'); check.progress();"
        "import sys; assert 'IPython' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert result.returncode == 0 and result.stderr == b"", result.stderr.decode()


@pytest.mark.parametrize("name, says", [("03_ropes", "did you mean 03_rope"), (3, "18_traps")])
def test_unknown_lesson(name, says):
    with pytest.raises(ValueError, match=says):
        setup(name)


def test_every_notebook_is_a_lesson():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} <= set(LESSONS)
    assert [name[:2] for name in LESSONS] == [f"{i:02}" for i in range(19)]


# --- verdicts

SAME = [
    (ones(2), ones(2) + 1e-7, "PASS  max|Δ| ≤ 1e-05"),
    (tensor([1.0, INF]), tensor([1.0, INF]), "PASS  max|Δ| ≤ 1e-05"),
    (ones(2), numpy.ones(2), "PASS  max|Δ| ≤ 1e-05"),
    ([[1.0, 2.0]], tensor([[1.0, 2.0]]), "PASS  max|Δ| ≤ 1e-05"),
    (ones(2, requires_grad=True), [1, 1], "PASS  equal"),
    (0.1 + 0.2, 0.3, "PASS  max|Δ| ≤ 1e-05"),
    ([ones(2), ones(3)], [ones(2), ones(3)], "PASS  max|Δ| ≤ 1e-05"),
    (torch.polar(ones(1), ones(1)), torch.polar(ones(1), ones(1)), "PASS  max|Δ| ≤ 1e-05"),
    (3, 3, "PASS  equal"),
    (2**80, 2**80, "PASS  equal"),
    ("a", "a", "PASS  equal"),
    ([1, "a", None, b"b"], (1, "a", None, b"b"), "PASS  equal"),
    ([[1], [2, 3]], [[1], [2, 3]], "PASS  equal"),
    ([], [], "PASS  equal"),
    ({"a": {1, 2}}, {"a": {2, 1}}, "PASS  equal"),
]
DIFFERENT = [
    (ones(2), tensor([1.0, 2.5]), "max|Δ| = 1.5 > 1e-05", "largest at [1]: 1, expected 2.5"),
    (ones(2), ones(2) + 2e-5, "max|Δ| = 2e-05 > 1e-05", ""),
    (zeros(2, 2), tensor([[0, 1.0], [3, 0]]), "max|Δ| = 3 > 1e-05", "at [1, 0]: 0, expected 3"),
    (tensor([1.0, NAN]), ones(2), "NaN", "first at [1]"),
    (ones(1), tensor([NAN]), "NaN in the reference", "first at [0]"),
    (tensor([NAN]), tensor([NAN]), "NaN", ""),
    (tensor([INF]), tensor([-INF]), "max|Δ| = inf > 1e-05", ""),
    (ones(1) * 1j, ones(1) * 2j, "max|Δ| = 1 > 1e-05", ""),
    (ones(2), ones(2, 1), "shape (2,), expected (2, 1)", ""),
    (ones(1), ones(1).double(), "dtype float32, expected float64", ""),
    (tensor([1, 2, 4]), tensor([1, 3, 5]), "2 of 3 differ", "first at [1]: 2, expected 3"),
    (7, 8, "7, expected 8", ""),
    (2**80, 2**80 + 1, "1208925819614629174706176, expected 1208925819614629174706177", ""),
    (2.0, 3.5, "max|Δ| = 1.5 > 1e-05", "2, expected 3.5"),
    (["a", "b"], ["a", "c"], "item 1: 'b', expected 'c'", ""),
    (["a", "x", "b"], ["a", "b"], "3 items, expected 2", "difference at 1: 'x', expected 'b'"),
    ([[1], [2, 3]], [[1], [2, 4]], "item 1: 1 of 2 differ", "first at [1]: 3, expected 4"),
    ({"a": 1.0}, {"b": 1.0}, "keys ['a'], expected ['b']", ""),
    ({"a": "x"}, {"a": "y"}, "item 'a': 'x', expected 'y'", ""),
    (None, ones(2), "None, expected a tensor (2,)", ""),
    ("1", 1, "a str, expected an int", ""),
    ("x" * 99 + "a", "x" * 99 + "b", f"behind '{'x' * 20}': 'a', expected 'b'", ""),
    (tensor(NAN), tensor(1.0), "NaN", ""),
    ([ones(2), ones(3)], [ones(2), zeros(3)], "item 1: max|Δ| = 1 > 1e-05", ""),
]


@pytest.mark.parametrize("ours, reference, says", SAME, ids=str)
def test_equal(ours, reference, says, capsys):
    equal(ours, reference)
    assert capsys.readouterr().out == says + "\n"


@pytest.mark.parametrize("ours, reference, brief, where", DIFFERENT, ids=str)
def test_different(ours, reference, brief, where, capsys):
    with pytest.raises(AssertionError) as error:
        equal(ours, reference)
    first, _, second = str(error.value).partition("\n")
    assert first == brief and where in second
    assert capsys.readouterr().out == ""


def test_tolerance(capsys):
    equal(1.0, 1.1, tolerance=0.2)
    equal(ones(2), ones(2), tolerance=0)
    assert capsys.readouterr().out == "PASS  max|Δ| ≤ 0.2\nPASS  equal\n"
    assert difference(ones(1), ones(1) + 1e-6, tolerance=0).startswith("max|Δ| = 9.5e-07 > 0")


def test_caught(capsys):
    with caught("a wrong sign"):
        equal(ones(2), -ones(2))
    with caught("a bad value"):
        raise ValueError("must be positive\nmore")
    with caught("silence"):
        raise AssertionError
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "CAUGHT  a wrong sign: max|Δ| = 2 > 1e-05",
        "CAUGHT  a bad value: must be positive",
        "CAUGHT  silence: AssertionError",
    ]


def test_nothing_caught_fails_the_cell():
    with pytest.raises(AssertionError, match="not caught: a mistake that is none"):
        with caught("a mistake that is none"):
            equal(1, 1)


def test_other_errors_are_not_caught():
    with pytest.raises(KeyError), caught("a slip in the lesson itself"):
        {}["a"]


# --- whatever a learner writes gets one line

DOUBLE = Exercise(
    name="ex03_1",
    title="Double it",
    answer=lambda x: 2 * x,
    cases=[(ones(2),), (tensor([3.0, 4.0]),)],
    wrong={"That is the square of x.": lambda x: x * x},
)
COUNT = Exercise(name="ex03_2", title="Count", answer=6, wrong={"You counted the biases twice.": 8})


def recursive(x):
    return recursive(x)


def index(x):
    y = 1
    return y[x]


def changes_its_argument(x):
    x *= 2
    return x


def half_done(x):
    return ... if x[0] == 3 else x


def leaves(x):
    raise SystemExit


class Odd:
    def __eq__(self, other):
        raise KeyError("odd")


JUDGED = [
    (DOUBLE, lambda x: x + x, "PASS"),
    (DOUBLE, changes_its_argument, "not yet: case 1 came back changed"),
    (DOUBLE, lambda x: ..., "not attempted"),
    (DOUBLE, ..., "not attempted"),
    (DOUBLE, half_done, "not attempted"),
    (DOUBLE, lambda x: x * x, "not yet: That is the square of x."),
    (DOUBLE, lambda x: None, "not yet: your function returned None. Does it end in a return?"),
    (DOUBLE, ones(2), "not yet: expected a function, got a tensor (2,). Pass its name alone"),
    (DOUBLE, lambda: 1, "not yet: TypeError: <lambda>() takes 0 positional arguments but 1 was"),
    (DOUBLE, recursive, "not yet: RecursionError: maximum recursion depth exceeded"),
    (DOUBLE, index, "of your cell: return y[x]"),
    (DOUBLE, leaves, "not yet: SystemExit"),
    (DOUBLE, lambda x: "two", "not yet: case 1 of 2, called with tensor([1., 1.]): a str,"),
    (DOUBLE, lambda x: 2 * x[:1], "shape (1,), expected (2,)"),
    (DOUBLE, lambda x: (2 * x).double(), "PASS"),
    (DOUBLE, lambda x: (2 * x).long(), "dtype int64, expected float32"),
    (DOUBLE, lambda x: 3 * x, "max|Δ| = 1 > 1e-05; largest at [0]: 3, expected 2"),
    (DOUBLE, lambda x: Odd(), "not yet: "),
    (COUNT, ..., "not attempted"),
    (COUNT, 6, "PASS"),
    (COUNT, 6.0, "PASS"),
    (COUNT, tensor(6), "PASS"),
    (COUNT, 8, "not yet: You counted the biases twice."),
    (COUNT, 7, "not yet: it is not 7"),
    (COUNT, "6", "PASS"),
    (COUNT, "six", "not yet: a str, expected an int"),
    (COUNT, None, "not yet: None, expected an int"),
    (COUNT, lambda: 6, "not yet: a function, expected an int"),
]


@pytest.mark.parametrize("exercise, answer, says", JUDGED)
def test_judge(exercise, answer, says):
    verdict = exercise.judge(answer)
    assert says in verdict and "\n" not in verdict and len(verdict) < 320
    assert verdict.split(":")[0] in ("PASS", "not attempted", "not yet")


def test_a_wrong_number_is_not_given_the_right_one():
    assert "6" not in COUNT.judge(7)


def test_interrupting_still_works():
    def stopped(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DOUBLE.judge(stopped)


@pytest.fixture
def lesson_of_two(monkeypatch, settings_put_back):
    found = {exercise.name: exercise for exercise in (DOUBLE, COUNT)}
    monkeypatch.setattr(exercises, "exercises_of", lambda lesson: found if lesson == "03" else {})
    monkeypatch.setattr(check, "_verdicts", {})


def test_check_prints_one_line_and_progress(lesson_of_two, capsys):
    setup("03_rope")
    check.ex03_1(lambda x: 2 * x)
    check.ex03_2(8)
    check.ex03_2()
    check.ex03_2(7, 8)
    assert capsys.readouterr().out.splitlines() == [
        "ex03_1  PASS",
        "ex03_2  not yet: You counted the biases twice.",
        "ex03_2  not yet: give it one answer, as check.ex03_2(mine); not 0",
        "ex03_2  not yet: give it one answer, as check.ex03_2(mine); not 2",
    ]
    check.progress()
    check.ex03_2(...)
    check.progress()
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == [
        "03_rope: 1 of 2 done",
        "  ex03_1  done           Double it",
        "  ex03_2  not yet        Count",
    ]
    assert out[4:] == [
        "03_rope: 1 of 2 done",
        "  ex03_1  done           Double it",
        "  ex03_2  not attempted  Count",
    ]


@pytest.mark.parametrize(
    "later, says",
    [
        (lambda x: x * x, "ex03_1  not yet: That is the square of x."),
        (..., "ex03_1  not attempted"),
        (lambda x: 1 / 0, "ex03_1  not yet: ZeroDivisionError"),
    ],
)
def test_solved_once_stays_solved(later, says, lesson_of_two, capsys):
    setup("03_rope")
    check.ex03_1(lambda x: 3 * x)
    check.ex03_1(lambda x: 2 * x)
    check.ex03_1(later)  # the verdict is about this try, the progress about the best one
    check.progress()
    out = capsys.readouterr().out.splitlines()
    assert out[2].startswith(says)
    assert out[3:5] == ["03_rope: 1 of 2 done", "  ex03_1  done           Double it"]


def test_progress_before_setup(settings_put_back, capsys):
    check.progress()
    assert "first" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ex99_1", "ex3_1", "progres", "x"])
def test_misspelt_exercise(name):
    with pytest.raises(AttributeError, match=f"there is no exercise {name}: "):
        getattr(check, name)
    assert not hasattr(check, "_repr_html_")
