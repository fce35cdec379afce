"""The helpers that several files share."""

from __future__ import annotations

import inspect
import json
import math
import os
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from qwen2_edu import sampling
from qwen2_edu.checks import check_json, checked, did_you_mean, plain
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


def test_numbers_of_numpy_and_torch_become_pythons_own():
    given = [np.int64(3), np.bool_(True), np.float32(0.5), torch.tensor(7), torch.tensor(True)]
    found = plain(given)
    assert found == [3, True, 0.5, 7, True]
    assert [type(value) for value in found] == [int, bool, float, int, bool]
    assert plain(torch.arange(3)) == plain(np.arange(3)) == [0, 1, 2]
    assert plain({np.int64(1): (np.int32(2), [torch.tensor(3)])}) == {1: (2, [3])}
    assert json.dumps(plain({np.int64(1): np.bool_(False)})) == '{"1": false}'
    kept = ["text", None, 1.5, 10**400, torch.float16, object]
    assert plain(kept) == kept


def test_a_whole_float_is_a_length():
    assert plain(1e30, whole=True) == int(1e30) and type(plain(32768.0, whole=True)) is int
    assert plain(1e30) == 1e30 and plain(0.5, whole=True) == 0.5
    assert plain(math.inf, whole=True) == math.inf and math.isnan(plain(math.nan, whole=True))


def test_what_is_nested_too_deep_is_refused():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        plain(deep)
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        plain({"a": {"b": deep}})


HINTS = {"n": int | None, "x": float, "words": list[str], "on": bool, "d": dict[int, str]}
HINTS |= {"t": str | dict[str, str] | None, "any": Any, "ids": int | list[int] | None}


@pytest.mark.parametrize(
    "right",
    [
        {"n": None, "x": 1, "words": [], "on": False, "d": {}, "any": object()},
        {"n": 3, "x": 0.5, "words": ["a"], "on": True, "d": {1: "a"}, "any": True, "other": 3},
        {"t": {"a": "b"}, "ids": [1, 2]},
        {"t": "a", "ids": None},
    ],
)
def test_values_of_the_right_type_pass(right):
    check_json(right, HINTS)


@pytest.mark.parametrize(
    "wrong",
    [{"n": "3"}, {"n": True}, {"n": 3.0}, {"x": None}, {"x": "0.1"}, {"x": False}, {"words": 5}]
    + [{"words": [5]}, {"words": "ab"}, {"words": [[]]}, {"on": 1}, {"on": None}, {"d": ["a"]}]
    + [{"d": {"1": "a"}}, {"d": {1: 2}}, {"t": 5}, {"t": {"a": 5}}, {"ids": [1, True]}],
)
def test_values_of_the_wrong_type_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^a/config.json: {name} must be .*, not "):
        check_json(wrong, HINTS, "a/config.json")


def test_a_wrong_value_is_said_in_a_line():
    with pytest.raises(ValueError, match=r"n must be int \| None, not \[0, 1, .*…$") as caught:
        check_json({"n": list(range(1000))}, HINTS)
    assert len(str(caught.value)) < 120


def test_a_checked_call_gets_pythons_own_numbers_and_lists():
    @checked
    def call(n: int, x: float, items: list[int], flag: bool, tensor: torch.Tensor):
        return n, x, items, flag, tensor

    one = torch.tensor(7)
    given = call(np.int64(3), x=np.float32(0.5), items=one[None], flag=np.bool_(True), tensor=one)
    assert given == (3, 0.5, [7], True, one) and given[4] is one
    assert [type(value) for value in given[:4]] == [int, float, list, bool]


def test_a_function_stays_itself_under_its_checks():
    assert pickle.loads(pickle.dumps(sampling.top_k)) is sampling.top_k
    assert list(inspect.signature(sampling.top_k).parameters) == ["logits", "k"]
    assert inspect.getsource(sampling.top_k).startswith("def top_k(")
    assert "most likely tokens" in sampling.top_k.__doc__


def test_calls_from_inside_the_package_do_not_wait_for_checks():
    call = "sampling.temperature(numbers, 2)"
    names = {"sampling": sampling, "numbers": np.array([1.0, 2.0])}
    assert eval(call, {**names, "__package__": "qwen2_edu.decoding"}).tolist() == [0.5, 1.0]
    for package in (None, "qwen2_edus", "my.qwen2_edu"):
        with pytest.raises(TypeError, match="^logits must be Tensor, not array"):
            eval(call, {**names, "__package__": package})
