"""weights.py: every way in which files can be wrong; and nothing is copied when all is well."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen2_edu import (
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
)
from qwen2_edu.files.weights import open_safetensors

GOLDENS = Path(__file__).parent.parent / "goldens" / "hub_and_safetensors.json"
CASES = json.loads(GOLDENS.read_text())["safetensors_malformed"]["cases"]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# -- one file --------------------------------------------------------------------------------------


def entry(shape=(2, 2), offsets=(0, 16), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def packed(header, size=16, before=b"", after=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text = before + text + after
    return struct.pack("<Q", len(text)) + text + b"\0" * size


GOOD = {"t": entry()}
BYTES = {
    "ok": packed(GOOD),
    "empty file": b"",
    "7 bytes": b"\0" * 7,
    "header len > file": struct.pack("<Q", 10_000) + b"{}",
    "header len 2^63": struct.pack("<Q", 2**63) + b"{}",
    "header>100MB": struct.pack("<Q", 100_000_001) + b"{}",
    "not utf8": packed(b"\xff{}"),
    "not json": packed(b'{"a"'),
    "leading space": packed(GOOD, before=b" "),
    "trailing space pad": packed(GOOD, after=b"     "),
    "truncated data": packed(GOOD, 15),
    "trailing data": packed(GOOD, 17),
    "overlap": packed({"a": entry(), "b": entry(offsets=(8, 24))}, 24),
    "hole": packed({"a": entry(), "b": entry(offsets=(20, 36))}, 36),
    "offset reversed": packed({"t": entry(offsets=(16, 0))}),
    "negative offset": packed({"t": entry(offsets=(-16, 0))}),
    "shape mismatch": packed({"t": entry(shape=(2, 3))}),
    "shape overflow": packed({"t": entry(shape=(2**40, 2**40))}),
    "unknown dtype": packed({"t": entry(dtype="F99")}),
    "dup key": packed(
        f'{{"t": {json.dumps(entry())}, "t": {json.dumps(entry(offsets=(16, 32)))}}}'.encode(), 32
    ),
    "metadata non-string": packed({"__metadata__": {"a": 1}, **GOOD}),
    "0-d": packed({"t": entry(shape=(), offsets=(0, 4))}, 4),
    "zero-sized": packed({"t": entry(shape=(0, 4), offsets=(0, 0))}, 0),
    "nan": packed(GOOD, 0) + b"\xff" * 16,
    "name with ../": packed({"../../etc/x": entry()}),
    "negative len": packed({"t": entry(shape=(-2, 2))}),
}


@pytest.mark.parametrize("case", CASES)
def test_malformed_file(case, tmp_path):
    path = tmp_path / SINGLE
    path.write_bytes(BYTES[case])
    expected = CASES[case][0]
    if expected.startswith("OK"):
        with open_safetensors(path) as file:
            assert f"OK { {n: tuple(file.get_tensor(n).shape) for n in file.keys()} }" == expected
    else:
        reason = expected.removeprefix("SafetensorError: ").removesuffix(" at line")
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            open_safetensors(path)
        assert reason in str(caught.value)


# -- whole checkpoints -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(small_config, randomise):
    return randomise(Qwen2ForCausalLM(small_config(tie_word_embeddings=False)), seed=1)


@pytest.fixture
def folder(original, tmp_path):
    original.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def sharded(original, tmp_path):
    original.save_pretrained(tmp_path, max_shard_size="50kB")
    assert len(list(tmp_path.glob("model-*-of-00006.safetensors"))) == 6
    return tmp_path


def rewrite(folder, change):
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file({n: t.clone() for n, t in tensors.items()}, folder / SINGLE)


def same(a, b):
    pairs = zip(a.named_parameters(), b.named_parameters(), strict=True)
    return all(n == m and torch.equal(p, q) for (n, p), (m, q) in pairs)


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


def drop(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


Q = "model.layers.0.self_attn.q_proj.weight"
HERE = f"1 mismatched: {Q} in {SINGLE}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(Q, torch.zeros(48, 47)), f"{HERE}: shape (48, 47), the model needs (48, 48)"),
        (put(Q, torch.zeros(48, 48, dtype=torch.int32)), f"{HERE}: wrong dtype kind I32"),
        (put(Q, torch.zeros(48, 48, dtype=torch.bool)), f"{HERE}: wrong dtype kind BOOL"),
        (put(Q, torch.zeros(48, 48).to(torch.float8_e4m3fn)), f"{HERE}: wrong dtype kind F8_E4M3"),
        (drop(Q), f"1 missing: {Q}"),
        (drop("lm_head.weight"), "1 missing: lm_head.weight"),
        (drop("model.norm.weight", Q), "2 missing: "),
        (put("model.layers.2.norm.weight", torch.ones(2)), "1 unexpected: model.layers.2.norm.w"),
        (put("../../etc/x", torch.zeros(2)), "1 unexpected: ../../etc/x in"),
        (put("model.layers.0.mlp.qweight", torch.zeros(2)), "1 unexpected: "),
        (put("norm.weight", torch.ones(48)), "holds norm.weight, but"),
    ],
)  # fmt: skip
def test_wrong_tensors(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Qwen2ForCausalLM.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_names_no_more_than_five_of_many(folder):
    rewrite(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if "layers.1" in n])
    with pytest.raises(ValueError, match="12 missing: ([^;]*; ){4}[^;]* …"):
        Qwen2ForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("owner", ["model.layers.0.self_attn.", "model.", ""])
def test_old_rotary_buffers_are_ignored(folder, original, owner):
    rewrite(folder, put(f"{owner}rotary_emb.inv_freq", torch.ones(4)))
    assert same(Qwen2ForCausalLM.from_pretrained(folder), original)


def test_truncated_file(folder):
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[:-1])
    with pytest.raises(ValueError, match=f"{SINGLE} is not a sound safetensors file"):
        Qwen2ForCausalLM.from_pretrained(folder)


def test_no_weights_and_pickles(folder):
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FileNotFoundError, match="has neither model.safetensors nor .*pickle"):
        Qwen2ForCausalLM.from_pretrained(folder)


# -- shards ----------------------------------------------------------------------------------------

SHARD = "model-00002-of-00006.safetensors"


def test_shards_load(sharded, original):
    assert not (sharded / SINGLE).exists()
    assert same(Qwen2ForCausalLM.from_pretrained(sharded), original)


def test_missing_and_truncated_shard(sharded):
    data = (sharded / SHARD).read_bytes()
    (sharded / SHARD).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"{SHARD} is not a sound safetensors file"):
        Qwen2ForCausalLM.from_pretrained(sharded)
    (sharded / SHARD).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{SHARD} is missing, .* holds model\.layers\.\d"):
        Qwen2ForCausalLM.from_pretrained(sharded)


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shard",
    ["/etc/passwd", "../x.safetensors", "sub/x.safetensors", "sub\\x.safetensors", "..", "", 7,
     "C:x.safetensors", "pytorch_model-00001-of-00002.bin", "a\0.safetensors", None],
)  # fmt: skip
def test_shard_names_are_plain(sharded, shard):
    edit_index(sharded, lambda weight_map: weight_map.update({Q: shard}))
    with pytest.raises(ValueError, match=re.escape(f"{Q} into {shard!r}: a shard must be a plain")):
        Qwen2ForCausalLM.from_pretrained(sharded)


@pytest.mark.parametrize("shard", [SHARD, SINGLE])
def test_link_that_leaves_the_folder(sharded, shard, tmp_path_factory, original):
    if shard == SINGLE:
        original.save_pretrained(sharded)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.safetensors"
    (sharded / shard).rename(elsewhere)
    (sharded / shard).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"{shard} is a link that leaves its folder"):
        Qwen2ForCausalLM.from_pretrained(sharded)
    (sharded / shard).unlink()
    elsewhere.rename(sharded / "kept.safetensors")
    (sharded / shard).symlink_to("kept.safetensors")  # within the folder: fine
    assert same(Qwen2ForCausalLM.from_pretrained(sharded), original)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 3}', "\xff"],
)
def test_broken_index(sharded, text):
    (sharded / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=f"{INDEX} (is not|holds a)"):
        Qwen2ForCausalLM.from_pretrained(sharded)


def test_what_the_shards_hold_counts_not_what_the_index_says(sharded, original):
    edit_index(sharded, lambda weight_map: weight_map.update({"extra": SHARD}))
    edit_index(sharded, lambda weight_map: weight_map.pop("model.norm.weight"))
    assert same(Qwen2ForCausalLM.from_pretrained(sharded), original)
    tensors = load_file(sharded / SHARD)
    name = next(iter(tensors))
    save_file({n: t for n, t in tensors.items() if n != name}, sharded / SHARD)
    with pytest.raises(ValueError, match=f"1 missing: {name}"):
        Qwen2ForCausalLM.from_pretrained(sharded)
    save_file({**tensors, "model.norm.weight": torch.ones(48)}, sharded / SHARD)
    with pytest.raises(ValueError, match=f"{SHARD}.* has model.norm.weight too|{SHARD} holds"):
        Qwen2ForCausalLM.from_pretrained(sharded)


# -- names, ties, dtypes ---------------------------------------------------------------------------


def test_trunk_and_heads_read_one_another(folder, original, tmp_path_factory):
    trunk = Qwen2Model.from_pretrained(folder)
    assert same(trunk, original.model)
    bare = tmp_path_factory.mktemp("bare")
    trunk.save_pretrained(bare)
    assert "embed_tokens.weight" in load_file(bare / SINGLE)
    with pytest.raises(ValueError, match="1 missing: lm_head.weight"):
        Qwen2ForCausalLM.from_pretrained(bare)
    for source in (folder, bare):
        with pytest.warns(UserWarning, match="has no score.weight: newly initialised") as caught:
            classifier = Qwen2ForSequenceClassification.from_pretrained(source, num_labels=5)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert same(classifier.model, original.model)
        assert classifier.score.weight.shape == (5, 48)
        assert 0.01 < classifier.score.weight.std() < 0.03


def test_half_a_head_is_missing_not_fresh(folder):
    with pytest.warns(UserWarning, match="has no score.bias, score.weight"):
        model = Qwen2ForTokenClassification.from_pretrained(folder)
    assert (model.score.bias == 0).all() and model.score.weight.std() > 0.01
    model.save_pretrained(folder)
    rewrite(folder, drop("score.bias"))
    with pytest.raises(ValueError, match="1 missing: score.bias"):
        Qwen2ForTokenClassification.from_pretrained(folder)


def test_tied_head(small_config, randomise, tmp_path):
    model = randomise(Qwen2ForCausalLM(small_config(tie_word_embeddings=True)))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / SINGLE)
    assert "lm_head.weight" not in stored
    loaded = Qwen2ForCausalLM.from_pretrained(tmp_path)
    assert same(loaded, model) and loaded.lm_head.weight is loaded.model.embed_tokens.weight

    embedding = stored["model.embed_tokens.weight"]
    rewrite(tmp_path, put("lm_head.weight", embedding))  # both, equal: fine
    assert same(Qwen2ForCausalLM.from_pretrained(tmp_path), model)
    rewrite(tmp_path, drop("model.embed_tokens.weight"))  # the head alone serves both
    assert same(Qwen2ForCausalLM.from_pretrained(tmp_path), model)
    rewrite(tmp_path, put("model.embed_tokens.weight", embedding + 1))
    with pytest.raises(ValueError, match="pass tie_word_embeddings=False"):
        Qwen2ForCausalLM.from_pretrained(tmp_path)
    untied = Qwen2ForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=False)
    assert torch.equal(untied.model.embed_tokens.weight, untied.lm_head.weight + 1)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("asked", [None, "auto", "float16", "torch.bfloat16", torch.float32])
def test_dtypes(folder, original, stored, asked):
    rewrite(folder, lambda ts: ts.update({n: t.to(stored) for n, t in ts.items()}))
    config = json.loads((folder / "config.json").read_text())
    del config["torch_dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=asked)
    names = {"float16": torch.float16, "torch.bfloat16": torch.bfloat16, torch.float32: asked}
    expected = names.get(asked, stored)
    assert {p.dtype for p in model.parameters()} == {expected}
    assert model.config.dtype == expected
    reference = original.lm_head.weight.to(stored).to(expected)
    assert torch.equal(model.lm_head.weight, reference)


def test_config_names_the_dtype(folder):
    rewrite(folder, lambda ts: ts.update({n: t.bfloat16() for n, t in ts.items()}))
    assert Qwen2ForCausalLM.from_pretrained(folder).dtype == torch.float32  # as config.json says
    with pytest.raises(ValueError, match="dtype must be 'auto' or one of .*, not 'int8'"):
        Qwen2ForCausalLM.from_pretrained(folder, dtype="int8")


# -- memory ----------------------------------------------------------------------------------------


def mapped_files():
    return Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="only Linux shows its mappings")
def test_weights_are_mapped_not_copied(folder):
    path = str(folder / SINGLE)
    model = Qwen2ForCausalLM.from_pretrained(folder)
    assert path in mapped_files()
    ranges = [row.split()[0] for row in mapped_files().splitlines() if path in row]
    spans = [tuple(int(end, 16) for end in r.split("-")) for r in ranges]
    for name, parameter in model.named_parameters():
        assert any(a <= parameter.data_ptr() < b for a, b in spans), f"{name} was copied"
    half = Qwen2ForCausalLM.from_pretrained(folder, dtype="bfloat16")
    del model, parameter
    assert path not in mapped_files()  # a converted model keeps nothing of the file
    assert half.dtype == torch.bfloat16


def test_training_never_changes_the_file(folder):
    before = (folder / SINGLE).read_bytes()
    model = Qwen2ForCausalLM.from_pretrained(folder)
    assert all(p.requires_grad for p in model.parameters())
    ids = torch.arange(8)[None]
    model(ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    changed = model.lm_head.weight.detach().clone()
    assert (folder / SINGLE).read_bytes() == before
    model.save_pretrained(folder)  # over the very file it is mapped from
    again = Qwen2ForCausalLM.from_pretrained(folder)
    assert torch.equal(again.lm_head.weight, changed)
    assert torch.equal(model.lm_head.weight, changed)
