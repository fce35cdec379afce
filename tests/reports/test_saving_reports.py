"""Saves that are killed, or meet another: the folder is the old one or the new one, never a third.

Python announces every call to the system that opens, makes, moves, links or removes something
(audit events). A child saves, and is killed by SIGKILL at the n-th, for each n until one saves to
its end.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import threading
import time

import pytest
import torch
import transformers

from qwen2_edu import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2ForTokenClassification
from qwen2_edu.files import disk, weights
from qwen2_edu.training import TrainingSettings, train

EVENTS = ("os.", "open", "shutil.", "ctypes.", "tempfile.")


def make(value: float, **changes):
    """A model whose parameters and config say which it is."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 1e4 + value}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes | changes))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)
    model.generation_config = GenerationConfig(top_k=int(value))
    return model


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def killed_at(n, save):
    """Run `save` in a child that is killed at its n-th event; True if it came to its end."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event, _):
            nonlocal count
            count += event.startswith(EVENTS)
            if count == n + 1:
                count += 1  # to kill is such an event too
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            save()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == 0


SHARDS = {"max_shard_size": "8kB"}
WAYS = {  # name: (how the old one was saved, how the new one is, its changes)
    "file by file": ({}, {}, {}),
    "shards by shards": (SHARDS, SHARDS, {}),
    "file by shards": ({}, SHARDS, {}),
    "shards by a file of another size": (SHARDS, {}, {"hidden_size": 32, "vocab_size": 80}),
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_every_call(tmp_path, way):
    before, after, changes = WAYS[way]
    new_model, folder = make(2, **changes), tmp_path / "folder"
    new_model.save_pretrained(tmp_path / "new", **after)
    new = files(tmp_path / "new")
    make(1).save_pretrained(folder, **before)
    others = {"README.md": b"mine", "sub/deeper/log.txt": b"mine too", "tokenizer.json": b"{}"}
    for name, data in others.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "link").symlink_to("README.md")
    old, found = files(folder), []
    for n in range(1000):
        done = killed_at(n, lambda: new_model.save_pretrained(folder, **after))
        now = files(folder)
        assert {name: now.pop(name) for name in (*others, "link")} == {**others, "link": b"mine"}
        found.append(now == new)
        assert found[-1] or now == {k: v for k, v in old.items() if k in now}, f"killed at {n}"
        assert found[-1] or len(now) == len(old) - len(others) - 1
        if found[-1] and not done:
            make(1).save_pretrained(folder, **before)
            assert files(folder) == old, "what was killed left something"
        if done:
            break
    assert 40 < n < 1000 and found == sorted(found) and found[-1]
    make(2, **changes).save_pretrained(folder, **after)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "new"], "drafts stayed"
    ours = Qwen2ForCausalLM.from_pretrained(folder)
    theirs = transformers.Qwen2ForCausalLM.from_pretrained(folder)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_killed_where_files_move_one_by_one(tmp_path, monkeypatch):
    """There a kill may leave a folder that does not load; the next save first puts it right."""
    monkeypatch.setattr(disk, "_exchange", lambda *_: False)
    folder, states = tmp_path / "folder", []
    make(2).save_pretrained(tmp_path / "new", **SHARDS)
    new = files(tmp_path / "new")
    for n in range(1000):
        make(1).save_pretrained(folder)
        old = files(folder)
        done = killed_at(n, lambda: make(2).save_pretrained(folder, **SHARDS))
        now = files(folder)
        if now not in (old, new):
            with pytest.raises(OSError, match=r"has (no config|neither)|is missing"):
                Qwen2ForCausalLM.from_pretrained(folder)
        states.append(now == new)
        disk.write_whole(folder / "x", b"")
        (folder / "x").unlink()
        loaded = Qwen2ForCausalLM.from_pretrained(folder)
        value = 2 if states[-1] else 1
        assert all((p == value).all() for p in loaded.parameters())
        assert loaded.config.rope_theta == 1e4 + value and loaded.generation_config.top_k == value
        if done:
            break
    assert n > 40 and states == sorted(states) and states[-1]


@pytest.mark.parametrize("first", [{}, SHARDS])
@pytest.mark.parametrize("then", [{}, SHARDS])
def test_a_folder_saved_twice_reads_as_the_second(tmp_path, first, then):
    make(1).save_pretrained(tmp_path / "twice", **first)
    (tmp_path / "twice" / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    second = Qwen2ForTokenClassification(make(2).config)  # has no settings of generation
    second.save_pretrained(tmp_path / "twice", **then)
    second.save_pretrained(tmp_path / "once", **then)
    assert files(tmp_path / "twice") == files(tmp_path / "once")
    assert Qwen2ForTokenClassification.from_pretrained(tmp_path / "twice").generation_config is None


def test_the_folder_keeps_its_mode_and_the_working_folder_stays(tmp_path, monkeypatch):
    folder = tmp_path / "m"
    folder.mkdir(mode=0o750)
    make(1).save_pretrained(folder, **SHARDS)
    make(2).save_pretrained(folder)
    assert folder.stat().st_mode & 0o777 == 0o750
    monkeypatch.chdir(folder)
    make(3).save_pretrained(".", **SHARDS)
    assert os.getcwd() == str(folder) and sorted(os.listdir(".")) == sorted(os.listdir(folder))
    assert (Qwen2ForCausalLM.from_pretrained(".").lm_head.weight == 3).all()
    assert os.listdir(tmp_path) == ["m"]


def test_savers_take_turns_and_readers_see_one_of_them(tmp_path):
    """Threads stand in for processes: a lock is held by an open file, whoever opened it."""
    folder, models, faults = tmp_path / "m", {v: make(v) for v in (1, 2, 3)}, []
    models[1].save_pretrained(folder)
    stop = threading.Event()

    def attempt(work):
        while not stop.is_set():
            try:
                work()
            except BaseException as error:
                faults.append(error)
                stop.set()

    def save(value, how):
        return lambda: models[value].save_pretrained(folder, **how)

    def load():
        loaded = Qwen2ForCausalLM.from_pretrained(folder)
        value = loaded.generation_config.top_k
        assert loaded.config.rope_theta == 1e4 + value
        assert all((p == value).all() for p in loaded.parameters())

    jobs = [save(1, {}), save(2, SHARDS), save(3, SHARDS), load]
    threads = [threading.Thread(target=attempt, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    stop.wait(3)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults, faults
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_save_that_leaves_the_folder_its_number_and_time_is_seen(tmp_path, monkeypatch, gone):
    """What savers who take turns can come to: number and time of a folder that was removed."""
    folder, opened = tmp_path / "m", weights.safe_open
    make(1).save_pretrained(folder)
    number, time_then = folder.stat().st_ino, folder.stat().st_mtime_ns
    monkeypatch.setattr(disk, "_exchange", lambda *_: False)  # the files move, the folder stays

    def save_between(*args, **options):
        monkeypatch.setattr(weights, "safe_open", opened)
        make(2).save_pretrained(folder, **SHARDS)
        os.utime(folder, ns=(time_then, time_then))
        if gone:  # in torch's words, whose open comes after that of safetensors
            torch.UntypedStorage.from_file(str(folder / "model.safetensors"), False, 8)
        return opened(folder / "model-00001-of-00004.safetensors", **options)

    monkeypatch.setattr(weights, "safe_open", save_between)
    loaded = Qwen2ForCausalLM.from_pretrained(folder)
    assert (folder.stat().st_ino, folder.stat().st_mtime_ns) == (number, time_then)
    assert loaded.config.rope_theta == 1e4 + 2 and loaded.generation_config.top_k == 2
    assert all((p == 2).all() for p in loaded.parameters())


def test_a_save_inside_another_is_refused_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.locked.__wrapped__, "__defaults__", (0.2,))
    start = time.monotonic()
    with pytest.raises(BlockingIOError, match="cannot save into .*being written"):
        with disk.locked(tmp_path):
            make(1).save_pretrained(tmp_path)
    assert time.monotonic() - start < 5 and os.listdir(tmp_path) == []


def test_a_folder_removed_while_it_is_waited_for(tmp_path):
    """Nothing is left to hold, and no file is closed twice: its number may be another's by then."""
    (folder := tmp_path / "m").mkdir()
    found = []

    def wait():
        with disk.locked(folder) as ours:
            found.append(ours)

    with disk.locked(folder):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.1)
        folder.rmdir()
        waiting.join()
    assert found == [False]


def test_a_full_disk_is_an_os_error_with_the_path(tmp_path):
    """The largest file that may be written stands in for the room on a disk."""
    make(1).save_pretrained(tmp_path / "m")
    before = files(tmp_path / "m")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=f"cannot save into {tmp_path / 'm'} .*make room"
        ) as caught:
            make(2).save_pretrained(tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert files(tmp_path / "m") == before and os.listdir(tmp_path) == ["m"]


# -- trainings -------------------------------------------------------------------------------------

BATCHES = [{"input_ids": torch.arange(8)[None] + i} for i in range(6)]
BATCHES = [batch | {"labels": batch["input_ids"]} for batch in BATCHES]
SETTINGS = TrainingSettings(steps=3, learning_rate=0.01, warmup_steps=0)


def test_two_trainings_in_one_folder(tmp_path):
    class Second:
        """In the middle of the first, another training wants the folder."""

        def __len__(self):
            return len(BATCHES)

        def __getitem__(self, i):
            if i == 1:
                with pytest.raises(BlockingIOError, match="another training .*choose another"):
                    train(make(1), BATCHES, SETTINGS, folder=tmp_path, progress=False)
            return BATCHES[i]

    log = train(make(1), Second(), SETTINGS, folder=tmp_path, progress=False)
    lines = (tmp_path / "training.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == log and len(log) == 3
    assert train(make(1), BATCHES, SETTINGS, folder=tmp_path, progress=False) == log  # let go of


def test_a_model_saved_into_the_folder_of_its_training(tmp_path):
    """The folder is exchanged while the log is open and held."""

    class Saves:
        def __getitem__(self, i):
            if i == 2:
                make(2).save_pretrained(tmp_path)
            return BATCHES[i]

    log = train(make(1), Saves(), SETTINGS, folder=tmp_path, progress=False)
    lines = (tmp_path / "training.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == log
    assert (Qwen2ForCausalLM.from_pretrained(tmp_path).lm_head.weight == 2).all()
