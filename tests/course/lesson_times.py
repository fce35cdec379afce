"""How long does each lesson take under nbval? Said at the end. Over 60 seconds is slow, or over 90
where the lesson opens the released model; half as much again fails the run.

A plugin of the run: pytest -p tests.course.lesson_times
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

LIMIT, WITH_RELEASED = 60, 90  # seconds on two cores, starting the kernel included
PATIENCE = 1.5
seconds: Counter[str] = Counter()  # notebook -> wall time of its cells


def limit(file: str) -> int:
    opens = 'from_pretrained(\\"released\\"' in Path(file).read_text(encoding="utf-8")  # as JSON
    return WITH_RELEASED if opens else LIMIT


def pytest_sessionstart():
    seconds.clear()


def pytest_runtest_logreport(report):
    file = report.nodeid.partition("::")[0]
    if file.endswith(".ipynb"):
        seconds[file] += report.duration


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.OK and any(
        time > PATIENCE * limit(file) for file, time in seconds.items()
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if seconds:
        terminalreporter.section("wall time of the lessons")
    for file, time in sorted(seconds.items()):
        most = limit(file)
        verdict = f"  slow: over {most} s" if time > most else ""
        if time > PATIENCE * most:
            verdict = f"  FAILED: over {PATIENCE * most:.0f} s"
        terminalreporter.write_line(f"{time:6.1f} s  {file}{verdict}", red=bool(verdict))
