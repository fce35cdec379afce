"""The fuzz lane, for some seconds: it runs, each family finds a fault, and a seed comes again."""

from __future__ import annotations

import pytest

from tests.fuzz import cases, lane

# What is broken for each family, and by what.
FAULTS = {
    "models": ("qwen2_edu.layers.RMSNorm.forward", lambda self, x: x * self.weight),
    "reading": ("qwen2_edu.text.runs.nfc", lambda text: text[1:]),
    "damage": ("qwen2_edu.text.files.read_json", lambda path: {}[path.name]),
}


@pytest.mark.parametrize("name", cases.FAMILIES)
def test_a_round_holds(name):
    assert lane.play(name, seed=1, cases=5) == 5


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_comes_again(name, monkeypatch, capsys):
    monkeypatch.setattr(lane, "ROUND", 20)
    monkeypatch.setattr(lane, "PHASES", lane.PHASES[:1])  # nothing is made small
    with monkeypatch.context() as broken:
        broken.setattr(*FAULTS[name])
        assert lane.fuzz(5, 0, [name]) == {name: -1}
        said = capsys.readouterr().out
        assert f"--seed 5 {name}" in said and "case={" in said
    assert lane.main([name, "--seed", "5"]) == 0
