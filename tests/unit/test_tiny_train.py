"""The recipe of the shipped checkpoint: what it feeds, and that a small run of it ends well."""

from __future__ import annotations

import json

import pytest
import torch

from qwen2_edu import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from qwen2_edu.hub import resolve
from qwen2_edu.tiny import train
from qwen2_edu.tiny.conversations import conversations
from qwen2_edu.training import TrainingSettings

SHORT = TrainingSettings(steps=2, evaluate_every=1, save_every=1)
FOLDER = resolve("tiny", "model")
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "max_window_layers": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("tiny")


def small(folder, tokenizer, monkeypatch, **changes):
    monkeypatch.setattr(train, "learn_vocabulary", lambda: tokenizer)
    monkeypatch.setattr(train, "CONFIG", train.CONFIG | SIZES)
    stages = dict.fromkeys(("copying", "reading", "chatting"), SHORT)
    counts = {"n_echoes": 20, "n_documents": 40, "n_conversations": 30}
    return train.make(folder, **stages | counts | changes, compiled=False, progress=False)


def test_vocabulary_is_the_shipped_one(tokenizer):
    learned = train.learn_vocabulary()
    assert learned.get_vocab() == tokenizer.get_vocab()
    assert learned.chat_template == tokenizer.chat_template
    assert [learned.convert_tokens_to_ids(t) for t in train.SPECIAL_TOKENS] == [3997, 3998, 3999]


def test_configuration_is_the_shipped_one():
    shipped = Qwen2Config.from_pretrained("tiny")
    ours = Qwen2Config(**train.CONFIG)
    for name in train.CONFIG:
        assert getattr(shipped, name) == getattr(ours, name), name
    kinds = ["full_attention"] * 4 + ["sliding_attention"] * 4
    assert shipped.layer_types == kinds and shipped.dtype == "bfloat16"


def test_checkpoint_is_small_and_complete():
    names = {path.name for path in FOLDER.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "vocab.json"}
    assert names >= {"merges.txt", "tokenizer.json", "tokenizer_config.json", "training.jsonl"}
    assert names >= {"README.md", "loss.png"}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 16e6
    settings = json.loads((FOLDER / "generation_config.json").read_text())
    assert settings["do_sample"] and settings["eos_token_id"] == [3999, 3997]


def test_only_the_assistant_counts_in_a_talk(tokenizer):
    talks = list(conversations("train", 40))
    rows = train.talk_rows(tokenizer, talks)
    counted = rows["labels"] != -100
    answers = tokenizer.decode(rows["labels"][counted].tolist())
    for messages in talks:
        for message in messages:
            inside = message["content"] + "<|im_end|>" in answers
            assert inside or message["role"] == "user"
    assert "<|im_start|>" not in answers and 0.05 < counted.float().mean() < 0.6


def test_echoes_count_from_the_second_time():
    rows = train.echo_rows(50)
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        period = int((labels == -100).sum())
        assert 8 <= period <= 64
        assert torch.equal(ids[period:], ids[:-period])
        assert torch.equal(labels[period:], ids[period:])
    assert int(rows["input_ids"].max()) < 3997, "no special tokens"


def test_led_attention_finds_its_own_kind():
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**train.CONFIG))
    plain = Qwen2ForCausalLM(Qwen2Config(**train.CONFIG))
    train.lead_attention(model)

    def alike(model):  # how much queries of head 0 resemble keys, and outputs resemble values
        a = model.model.layers[3].self_attn
        q, k, v = a.q_proj.weight[:24], a.k_proj.weight[:24], a.v_proj.weight[:24]
        pairs = (q, k), (v, a.o_proj.weight[:, :24].T)
        return [torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1] for x, y in pairs]

    assert min(alike(model)) > 0.5 and max(alike(plain)) < 0.1
    q = model.model.layers[0].self_attn.q_proj
    assert abs(q.weight[24:48].std() - 0.07) < 0.01, "every other head stays as it was drawn"
    assert 0.7 < q.bias.std() < 1.3


def test_small_run_makes_a_checkpoint_and_goes_on(tmp_path, tokenizer, monkeypatch):
    folder = small(tmp_path, tokenizer, monkeypatch)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == [3999, 3997]
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    log = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == sorted(
        ["copying", "reading", "chatting"] * 2, key=["copying", "reading", "chatting"].index
    )
    assert all("held_out_loss" in line for line in log)
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")

    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "chatting" / "state.safetensors").unlink()
    (tmp_path / "chatting" / "training.jsonl").unlink()  # as if killed before the last stage
    small(tmp_path, tokenizer, monkeypatch)
    assert (folder / "model.safetensors").read_bytes() == weights, "the same to the bit"


@pytest.mark.parametrize("fault", ["truncated", "other config", "not writable"])
def test_bad_runs_leave_the_checkpoint_alone(tmp_path, tokenizer, monkeypatch, fault):
    folder = small(tmp_path, tokenizer, monkeypatch)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    state, target, changes = tmp_path / "reading" / "state.safetensors", tmp_path, {}
    if fault == "truncated":
        state.write_bytes(state.read_bytes()[:-50])
    elif fault == "other config":
        changes = {"reading": TrainingSettings(steps=3)}
    else:
        (tmp_path / "file").touch()
        target = tmp_path / "file" / "below"
    with pytest.raises((ValueError, OSError)) as error:
        small(target, tokenizer, monkeypatch, **changes)
    assert {"truncated": "state.safetensors", "other config": "steps", "not writable": "file"}[
        fault
    ] in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
