"""What the tests of the course share: `setup` changes global settings, so they are put back."""

from __future__ import annotations

import os
import warnings

import matplotlib
import pytest
import torch

from qwen2_edu.course import check, lesson


@pytest.fixture
def settings_put_back(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(lesson, "_current", "")
    monkeypatch.setattr(check, "_verdicts", {})
    with warnings.catch_warnings(), matplotlib.rc_context():
        yield
    torch.set_printoptions(profile="default")
