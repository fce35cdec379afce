"""The helpers that several files share."""

from __future__ import annotations

import os

import pytest

from qwen2_edu.checks import did_you_mean
from qwen2_edu.files.disk import write_whole


def test_hints():
    known = ("top_k", "top_p", "seed")
    assert did_you_mean("topk", known) == "did you mean top_k or top_p?"
    assert did_you_mean("topk", known, cutoff=0.8) == "did you mean top_k?"
    assert did_you_mean("xyz", known, "there are three") == "there are three"
    assert did_you_mean("xyz", known) == ""


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "file"
    assert write_whole(path, b"one") == path
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("gone")))
        with pytest.raises(OSError, match="gone"):
            write_whole(path, b"two")
    assert path.read_bytes() == b"one"
    write_whole(path, b"two")
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == {"file": b"two"}
