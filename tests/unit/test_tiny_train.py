"""The recipe of the shipped checkpoint: what it feeds, and that a small run of it ends well."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, pairwise

import pytest
import torch

from qwen2_edu import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from qwen2_edu.hub import resolve
from qwen2_edu.tiny import train
from qwen2_edu.tiny.conversations import conversations
from qwen2_edu.tiny.drills import drills
from qwen2_edu.tiny.rows import (
    GLUE,
    ROW,
    inferred_rows,
    read_rows,
    table_rows,
    talk_rows,
    words_of_the_world,
)
from qwen2_edu.tiny.world import stories
from qwen2_edu.training import TrainingSettings

SHORT = TrainingSettings(steps=2, evaluate_every=1, save_every=1)
FOLDER = resolve("tiny", "model")
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "max_window_layers": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("tiny")


STAGES = {
    "copying": train.Stage(SHORT, tables=40, words_only=True),
    "reading": train.Stage(SHORT, tables=40, documents=40, drills=20),
    "chatting": train.Stage(SHORT, tables=20, documents=10, drills=4, easy=False, conversations=30),
    "inferring": train.Stage(SHORT, inferred=80),
    "telling": train.Stage(SHORT, documents=20, begun=True, conversations=20, told=10),
}


def small(folder, tokenizer, monkeypatch, **changes):
    monkeypatch.setattr(train, "learn_vocabulary", lambda: tokenizer)
    monkeypatch.setattr(train, "CONFIG", train.CONFIG | SIZES)
    monkeypatch.setattr(train, "HELD_OUT", 8)
    return train.make(folder, stages=STAGES | changes, compiled=False, progress=False)


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
    assert shipped.layer_types == kinds and shipped.torch_dtype == "bfloat16"


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
    rows = talk_rows(tokenizer, talks)
    counted = rows["labels"] != -100
    answers = tokenizer.decode(rows["labels"][counted].tolist())
    for messages in talks:
        for message in messages:
            inside = message["content"] + "<|im_end|>" in answers
            assert inside or message["role"] == "user"
    assert "<|im_start|>" not in answers and 0.05 < counted.float().mean() < 0.6


def documents_of(rows):
    """Each document of packed rows as (ids, labels); what is left of a row is none."""
    ids, positions, labels = (rows[n].flatten() for n in ("input_ids", "position_ids", "labels"))
    starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
    for start, end in pairwise(starts):
        if (labels[start:end] != -100).any():
            yield ids[start:end].tolist(), labels[start:end].tolist()


@pytest.mark.parametrize("words_only", [True, False])
def test_tables_count_what_can_be_looked_up(tokenizer, words_only):
    kinds = Counter()
    glue = {tokenizer.encode(text)[0] for text in GLUE}
    words = set(words_of_the_world(tokenizer)) | glue | {tokenizer.encode(" is")[0]}
    cut = 0
    for ids, labels in documents_of(table_rows(tokenizer, 240, words_only=words_only)):
        counted = [i for i, label in enumerate(labels) if label != -100]
        assert [labels[i] for i in counted] == [ids[i] for i in counted]
        half = len(ids) // 2
        if ids[:half] == ids[half:]:
            kinds["echo"] += 1
            assert counted == list(range(half + 1, 2 * half)) and 4 <= half <= 48
        elif counted == list(range(half + 1, 2 * half, 2)):
            kinds["turned"] += 1
            said = set(zip(ids[1:half:2], ids[:half:2], strict=True))
            assert {(ids[i - 1], ids[i]) for i in counted} == said and 4 <= half <= 24
        else:
            kinds["told"] += 1
            cut += len(ids) == ROW
            pairs = set(pairwise(ids))
            for i in counted:
                assert tokenizer.decode(ids[i - 1]) == " is"
                assert (ids[i], ids[i - 2]) in pairs, "it stood just before what is asked for"
        kinds["words"] += set(ids) <= words
    assert kinds == {"echo": 60, "turned": 120, "told": 60, "words": 240 if words_only else 120}
    assert cut < 6, "the longest end with the row"


def test_only_what_can_be_inferred_counts(tokenizer):
    told = list(stories("train", 60))
    rows = documents_of(inferred_rows(tokenizer, told))
    counted = {tokenizer.decode(ids): [t for t in labels if t != -100] for ids, labels in rows}
    words = {s.text: [s.text[m.start : m.end] for m in s.inferred] for s in told if s.inferred}
    assert {text: tokenizer.decode(ids).split() for text, ids in counted.items()} == words
    assert 10 < len(words) < len(told)


@pytest.mark.parametrize("begun", [False, True])
def test_documents_are_ended_and_begun_too_if_asked(tokenizer, begun):
    texts = ["Mia had a kite.", "Tom had none."]
    rows = [ids for ids, _ in documents_of(read_rows(tokenizer, texts, begun))]
    mark = "<|endoftext|>"
    assert [tokenizer.decode(ids) for ids in rows] == [begun * mark + t + mark for t in texts]


def test_a_stage_has_all_that_it_names_and_takes_each_text_once(tokenizer):
    texts, spoken = ["One.", "Two.", "Three."], list(conversations("train", 3))
    left = iter(texts), iter(spoken)

    def same(stage, seed, *parts):
        rows = train.stage_rows(tokenizer, stage, seed, *left)
        return sorted(documents_of(rows)) == sorted(chain(*map(documents_of, parts)))

    first = train.Stage(
        SHORT, tables=4, documents=1, begun=True, drills=4, conversations=1, told=3, inferred=30
    )
    talks = [*drills("train", 4, 7), spoken[0]]
    talks += conversations("train", 3, 7, kinds=("tell",))
    assert same(
        first,
        7,
        table_rows(tokenizer, 4, 7),
        read_rows(tokenizer, texts[:1], begun=True),
        talk_rows(tokenizer, talks),
        inferred_rows(tokenizer, stories("train", 30, 7)),
    )
    second = train.Stage(SHORT, tables=4, words_only=True, documents=1, drills=4, easy=False)
    assert same(
        second,
        8,
        table_rows(tokenizer, 4, 8, words_only=True),
        read_rows(tokenizer, texts[1:2]),
        talk_rows(tokenizer, drills("train", 4, 8, easy=False)),
    )


def test_glue_is_single_tokens(tokenizer):
    assert [text for text in GLUE if len(tokenizer.encode(text)) > 1] == []


def test_tokens_that_are_not_read_keep_their_embeddings():
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**train.CONFIG | SIZES))
    ids = torch.tensor([[5, 7, 7, 9]])
    weight = model.get_input_embeddings().weight

    def changed():
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return weight.grad.abs().sum(1).nonzero().flatten().tolist()

    with train.only_what_is_read(model, ids):
        assert changed() == [5, 7, 9]
    assert len(changed()) == 4000, "without it, all are pushed"


def test_words_of_the_world_are_single_tokens(tokenizer):
    words = tokenizer.convert_ids_to_tokens(words_of_the_world(tokenizer))
    assert len(words) == len(set(words)) > 100
    assert {"Ġkite", "Ġred", "ĠMia", "Ġsmall"} <= set(words)


@torch.no_grad()
def test_led_attention_looks_back_compares_and_repeats():
    """Untrained, its heads already do what they are led to: how much of their weight goes there?"""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**train.CONFIG, attn_implementation="eager"))
    ids = torch.randperm(3997)[:60].repeat(2)[None]  # each token comes once, then once again
    said_twice = torch.arange(60, 120)

    def shares():  # (layer, head, back): of its weight, what goes so many tokens back
        layers = model(input_ids=ids, output_attentions=True).attentions
        return lambda i, h, back: float(layers[i][0, h][said_twice, said_twice - back].mean())

    looks = [(layer, h, h % 4 + 1) for layer in (0, 4, 7) for h in (0, 1, 2, 4, 5, 6)]
    looks += [(layer, 2, 1) for layer in (1, 2, 3)]
    before, repeat = shares(), (1, 4, 59)
    train.lead_attention(model)
    after = shares()
    for place in [*looks, repeat]:
        assert before(*place) < 0.05 and after(*place) > 0.35, place
    for layer, likes in ((1, 0.3), (2, 0.03), (3, 0.03)):
        for head in (0, 1):
            assert after(layer, head, 60) > likes, "its like"
            assert after(layer, head, 0) < after(layer, head, 60) / 2, "and not itself"
    assert after(0, 3, 1) < 0.1 and after(0, 3, 60) < 0.1, "left to chance"


def test_small_run_makes_a_checkpoint_and_goes_on(tmp_path, tokenizer, monkeypatch):
    folder = small(tmp_path, tokenizer, monkeypatch)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == [3999, 3997]
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    log = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == [name for name in STAGES for _ in range(2)]
    assert all("held_out_loss" in line for line in log)
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")

    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "telling" / "state.safetensors").unlink()
    (tmp_path / "telling" / "training.jsonl").unlink()  # as if killed before the last stage
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
        changes = {"reading": STAGES["reading"]._replace(settings=TrainingSettings(steps=3))}
    else:
        (tmp_path / "file").touch()
        target = tmp_path / "file" / "below"
    with pytest.raises((ValueError, OSError)) as error:
        small(target, tokenizer, monkeypatch, **changes)
    assert {"truncated": "state.safetensors", "other config": "steps", "not writable": "file"}[
        fault
    ] in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
