"""What a file of right answers to a lesson's exercises is asked, whichever lesson it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from qwen2_edu.course.exercises import exercises_of


def questions(lessons: str, right: dict[str, list], others: Sequence[tuple[str, Any]]) -> list:
    """Three tests: each right answer passes; each exercise has four; mistakes that nobody foresaw
    are refused all the same, and told nothing false.

    Args:
        lessons: whose exercises they are, "09" or "10 11".
        right: answers in several styles to each exercise.
        others: (exercise, wrong answer that no hint knows).
    """

    exercises = {k: v for lesson in lessons.split() for k, v in exercises_of(lesson).items()}

    @pytest.mark.parametrize("name", right)
    def test_right_in_any_style(name: str):
        exercise = exercises[name]
        for answer in right[name]:
            assert exercise.judge(answer) == "PASS", answer

    def test_every_exercise_is_answered():
        assert sorted(right) == sorted(exercises)
        assert min(map(len, right.values())) >= 4  # loop, einsum, torch, numpy, where they fit

    @pytest.mark.parametrize("name, answer", others)
    def test_other_mistakes_are_shown_a_case(name: str, answer: Callable):
        says = exercises[name].judge(answer)
        assert says.startswith("not yet: case ") and "called with" in says

    return [
        test_right_in_any_style,
        test_every_exercise_is_answered,
        test_other_mistakes_are_shown_a_case,
    ]
