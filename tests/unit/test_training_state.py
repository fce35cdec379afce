"""training_state.py: a run killed at any moment ends as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen2_edu import Qwen2ForCausalLM, Qwen2ForTokenClassification, training
from qwen2_edu.files import training_state
from qwen2_edu.packing import Shuffled
from qwen2_edu.training import TrainingSettings, train

SETTINGS = {
    "steps": 7,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "accumulation": 2,
    "evaluate_every": 2,
    "save_every": 3,
}


def settings(**changes):
    return TrainingSettings(**{**SETTINGS, **changes})


def rows(seed=0):
    ids = torch.randint(3, 97, (10, 12), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.masked_fill(ids % 5 == 0, -100)}


def make(kind=Qwen2ForCausalLM, seed=0, **changes):
    """A model whose dropout makes the random generator matter."""
    from qwen2_edu import Qwen2Config

    torch.manual_seed(seed)
    sizes = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": 0.2}
    return kind(Qwen2Config(**{**sizes, "tie_word_embeddings": True, **changes}))


def run(folder, model=None, batches=None, progress=False, **changes):
    """Train, or go on. Another run's beginning values must not matter to a run that goes on."""
    model = make(seed=int((folder / "state.safetensors").exists())) if model is None else model
    batches = Shuffled(rows(), 4) if batches is None else batches
    held_out = [rows(seed=9)]
    log = train(
        model, batches, settings(**changes), held_out=held_out, folder=folder, progress=progress
    )
    return model, log


def read_log(folder):
    lines = (folder / "training.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def without_time(log):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in log]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupted: its parameters, its log and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    model, log = run(folder)
    return model, log, folder


def assert_same(folder, result, whole):
    model, log = result
    expected_model, expected_log, expected_folder = whole
    for (name, p), q in zip(model.named_parameters(), expected_model.parameters(), strict=True):
        assert torch.equal(p, q), f"{name} differs"
    assert without_time(log) == without_time(expected_log)
    assert read_log(folder) == log
    seconds = [line["seconds"] for line in log]
    assert seconds == sorted(seconds)
    tensors = load_file(folder / "state.safetensors")
    for name, tensor in load_file(expected_folder / "state.safetensors").items():
        assert torch.equal(tensors.pop(name), tensor), f"{name} of the state differs"
    assert not tensors and sorted(os.listdir(folder)) == sorted(os.listdir(expected_folder))


# --- killed and resumed


class Killed(BaseException):
    """Not an Exception: what is killed does not clean up after itself, so nothing may catch it."""


def half_of_it(save_file, tensors, path, metadata):
    save_file(tensors, path, metadata)
    os.truncate(path, os.path.getsize(path) // 2)


MOMENTS = {  # name: (owner, attribute, what still happens at the fatal call)
    "before a batch": (Shuffled, "__getitem__", None),
    "before the optimiser": (torch.optim.AdamW, "step", None),
    "after the optimiser": (torch.optim.AdamW, "step", lambda f, *a: f(*a)),
    "in the evaluation": (training, "evaluate", None),
    "before the log": (training_state.Run, "write", None),
    "after the log": (training_state.Run, "write", lambda f, *a: f(*a)),
    "before the save": (training_state, "save_file", None),
    "half way through the save": (training_state, "save_file", half_of_it),
    "before the sync": (os, "fsync", None),
    "before the rename": (os, "replace", None),
    "after the rename": (os, "replace", lambda f, *a: f(*a)),
    "after the save": (training_state.Run, "save", lambda f, *a: f(*a)),
}


def kill_at(patch, moment, call):
    owner, name, still = MOMENTS[moment]
    original, calls = getattr(owner, name), []

    def fatal(*args):
        calls.append(args)
        if len(calls) < call:
            return original(*args)
        if still:
            still(original, *args)
        raise Killed

    patch.setattr(owner, name, fatal)


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment(whole, tmp_path, monkeypatch, moment, call):
    with pytest.raises(Killed), monkeypatch.context() as patch:
        kill_at(patch, moment, call)
        run(tmp_path)
    assert_same(tmp_path, run(tmp_path), whole)


@pytest.mark.parametrize("moment", ["before a batch", "after the log", "before the rename"])
def test_killed_again_and_again(whole, tmp_path, monkeypatch, moment):
    kills = 0
    for call in (2, 1, 5, 1, 2):
        with monkeypatch.context() as patch:
            kill_at(patch, moment, call)
            try:
                run(tmp_path)
            except Killed:
                kills += 1
    assert kills >= 2
    assert_same(tmp_path, run(tmp_path), whole)


@pytest.mark.parametrize("rest", ['{"step": 7, "lo', '{"step": 4, "loss": 1.0}\n', "\x00\x00"])
def test_lines_beyond_the_state_are_cut_off(whole, tmp_path, monkeypatch, rest):
    with pytest.raises(Killed), monkeypatch.context() as patch:
        kill_at(patch, "after the save", 2)  # the state of step 3
        run(tmp_path)
    with open(tmp_path / "training.jsonl", "a", encoding="utf-8") as file:
        file.write(rest)
    assert_same(tmp_path, run(tmp_path), whole)


SCRIPT = """
import sys, time, torch
sys.path[:0] = [{root!r}, {here!r}]
torch.set_num_threads(1)
import test_training_state as t
from pathlib import Path
class Slow(t.Shuffled):
    def __getitem__(self, i):
        time.sleep(0.02)
        return super().__getitem__(i)
t.run(Path(sys.argv[1]), batches=Slow(t.rows(), 4))
"""


def test_sigkill(whole, tmp_path):
    here = Path(__file__).resolve()
    script = SCRIPT.format(root=str(here.parents[2]), here=str(here.parent))
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    log, deadline = tmp_path / "training.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 4):
        assert process.poll() is None and time.monotonic() < deadline, "it never got that far"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert_same(tmp_path, run(tmp_path), whole)


def test_a_finished_run_is_not_run_again(whole, tmp_path, capsys):
    _, _, folder = whole
    shutil.copytree(folder, tmp_path / "copy")
    before = files(tmp_path / "copy")

    class OnlyToIdentify(Shuffled):
        def __getitem__(self, i):
            assert i in (0, 13), "a batch was trained on"
            return super().__getitem__(i)

    result = run(tmp_path / "copy", batches=OnlyToIdentify(rows(), 4), progress=True)
    assert "7/7" in capsys.readouterr().err
    assert_same(tmp_path / "copy", result, whole)
    assert files(tmp_path / "copy") == before
    assert not result[0].training


def test_no_folder_changes_nothing(whole):
    model, expected, _ = whole
    again = make(seed=0)
    log = train(again, Shuffled(rows(), 4), settings(), held_out=[rows(seed=9)], progress=False)
    assert without_time(log) == without_time(expected)
    assert all(map(torch.equal, again.parameters(), model.parameters()))


# --- refused, and nothing harmed


@pytest.fixture
def half_done(tmp_path, monkeypatch):
    """A run killed after step 5, in a folder that also holds an older checkpoint."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"older weights")
    (folder / "config.json").write_text("{}")
    with pytest.raises(Killed), monkeypatch.context() as patch:
        kill_at(patch, "after the log", 5)
        run(folder)
    return folder


OTHERS = {
    "a setting": ({"learning_rate": 0.02}, r"learning_rate \(settings\) was 0.01, now it is 0.02"),
    "more steps": ({"steps": 8}, r"steps \(settings\) was 7, now it is 8"),
    "a config field that changes no shape": (
        {"model": make(rope_theta=500.0)},
        r"rope_theta \(config\) was 10000.0, now it is 500.0",
    ),
    "an optional field": (
        {"model": make(use_sliding_window=True, sliding_window=4, max_window_layers=1)},
        r"\(config\) was .*, now it is ",
    ),
    "another width": (
        {"model": make(hidden_size=32)},
        r"hidden_size \(config\) was 16, now it is 32",
    ),
    "another class": (
        {"model": make(Qwen2ForTokenClassification)},
        r"class \(model\) was 'Qwen2ForCausalLM', now it is 'Qwen2ForTokenClassification'",
    ),
    "frozen": (
        {"model": make().requires_grad_(False)},
        r"\(parameters\) was '\[97, 16\]', now it is '\[97, 16\] frozen'",
    ),
    "data": (
        {"batches": Shuffled(rows(), 4, seed=1)},
        r"sha256 of batch 0 \(data\) was '\w+', now",
    ),
    "batch size": ({"batches": Shuffled(rows(), 5)}, r"sha256 of batch 0 \(data\) was '\w+', now"),
}
OTHERS["frozen"][0]["model"].model.norm.requires_grad_(True)


@pytest.mark.parametrize("other", OTHERS)
def test_the_state_of_another_run(half_done, other):
    changes, message = OTHERS[other]
    before = files(half_done)
    model = changes.setdefault("model", make())
    values = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=f"another run: .*{message}") as caught:
        run(half_done, **changes)
    assert str(half_done / "state.safetensors") in str(caught.value)
    assert "choose another folder" in str(caught.value)
    assert files(half_done) == before
    assert all(map(torch.equal, model.parameters(), values)), "the model was changed"


@pytest.mark.parametrize("kept", [0.0, 4, 0.1, 0.5, 0.9, -1])
def test_truncated_state(whole, half_done, kept):
    state = half_done / "state.safetensors"
    good, size = state.read_bytes(), state.stat().st_size
    os.truncate(state, size + kept if kept == -1 else kept if kept == 4 else int(size * kept))
    before, model = files(half_done), make()
    values = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="is no sound training state .*begin anew") as caught:
        run(half_done, model)
    assert str(state) in str(caught.value)
    assert files(half_done) == before
    assert all(map(torch.equal, model.parameters(), values)), "the model was changed"
    state.write_bytes(good)  # a copy in its place, as the message says
    run(half_done)
    assert (half_done / "model.safetensors").read_bytes() == b"older weights"


def test_a_checkpoint_is_no_state(half_done):
    make().save_pretrained(half_done / "other")
    shutil.copy(half_done / "other" / "model.safetensors", half_done / "state.safetensors")
    with pytest.raises(ValueError, match="is no sound training state"):
        run(half_done)


def test_a_log_without_its_state(half_done):
    (half_done / "state.safetensors").unlink()
    before = files(half_done)
    with pytest.raises(FileExistsError, match="training.jsonl of an earlier run.*remove the log"):
        run(half_done)
    assert files(half_done) == before


@pytest.mark.parametrize("sub", ["", "/run"])
def test_unwritable_folder(tmp_path, sub):
    (tmp_path / "file").write_text("mine")
    model = make()
    values = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(OSError, match=r"cannot save into .*file.*choose a folder"):
        run(Path(f"{tmp_path}/file{sub}"), model)
    assert (tmp_path / "file").read_text() == "mine"
    assert all(map(torch.equal, model.parameters(), values)), "it began to work"


def test_a_full_disk_leaves_the_older_state(whole, half_done, monkeypatch):
    before = (half_done / "state.safetensors").read_bytes()

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), monkeypatch.context() as patch:
        patch.setattr(training_state, "save_file", full)
        run(half_done)
    assert (half_done / "state.safetensors").read_bytes() == before
    model, log = run(half_done)
    assert without_time(log) == without_time(whole[1])
