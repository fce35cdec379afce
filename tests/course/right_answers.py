"""What a file of right answers to a lesson's exercises is asked, whichever lesson it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from qwen2_edu.course.exercises import exercises_of


def questions(lesson: str, right: dict[str, list], others: Sequence[tuple[str, Any]]) -> list:
    """Three tests: each right answer passes; each exercise has some; mistakes that nobody foresaw
    are refused all the same, and told nothing false.

    Args:
        right: answers in several styles to each exercise, in its order.
        others: (exercise, wrong answer that no hint knows).
    """

    @pytest.mark.parametrize("name", right)
    def test_right_in_any_style(name: str):
        exercise = exercises_of(lesson)[name]
        for answer in right[name]:
            assert exercise.judge(answer) == "PASS", answer

    def test_every_exercise_is_answered():
        assert list(right) == list(exercises_of(lesson))

    @pytest.mark.parametrize("name, answer", others)
    def test_other_mistakes_are_shown_a_case(name: str, answer: Callable):
        says = exercises_of(lesson)[name].judge(answer)
        assert says.startswith("not yet: case ") and "called with" in says

    return [
        test_right_in_any_style,
        test_every_exercise_is_answered,
        test_other_mistakes_are_shown_a_case,
    ]
