"""pretrained.py and devices.py: options, saving without harm, counting, resizing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from qwen2_edu import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForQuestionAnswering,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
)
from qwen2_edu.files import devices, disk
from qwen2_edu.files.checksums import file_hash, write_sums

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CLASSES = [
    Qwen2Model,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2ForQuestionAnswering,
]


@pytest.fixture
def model(small_config, randomise):
    return randomise(Qwen2ForCausalLM(small_config(tie_word_embeddings=True)), seed=5)


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def same(a, b):
    pairs = zip(a.named_parameters(), b.named_parameters(), strict=True)
    return all(n == m and torch.equal(p, q) for (n, p), (m, q) in pairs)


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("shard", ["5GB", "30kB"])
def test_every_class_comes_back(cls, shard, small_config, randomise, tmp_path):
    model = randomise(cls(small_config(num_labels=3)))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = cls.from_pretrained(tmp_path)
    assert same(loaded, model)
    assert not loaded.training and not any(m.training for m in loaded.modules())
    assert loaded.config.architectures == [cls.__name__]
    assert model.config.architectures is None  # saving leaves the model alone


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("hidden_sizes", "did you mean hidden_size"),
        ("dtyp", "did you mean dtype"),
        ("lucky", "the options are attn_implementation, .*verify; and fields of the config"),
        ("load_in_8bit", "load the original, with quantize='int8' or 'int4'"),
        ("trust_remote_code", "it is never needed, as no remote code is run; leave it out"),
    ],
)
def test_unknown_option(folder, option, hint):
    with pytest.raises(TypeError, match=f"from_pretrained has no option '{option}': {hint}"):
        Qwen2ForCausalLM.from_pretrained(folder, **{option: True})


def test_config_and_overrides(folder, model):
    loaded = Qwen2ForCausalLM.from_pretrained(folder, rms_norm_eps=0.5, attn_implementation="eager")
    assert loaded.config.rms_norm_eps == 0.5 and loaded.config.attn_implementation == "eager"
    assert Qwen2ForCausalLM.from_pretrained(folder).config.attn_implementation == "sdpa"
    own = Qwen2Config.from_pretrained(folder, rope_theta=7.0, attn_implementation="eager")
    loaded = Qwen2ForCausalLM.from_pretrained(folder, config=own, dtype="bfloat16")
    assert loaded.config.rope_theta == 7.0 and loaded.config.attn_implementation == "eager"
    loaded.config.rope_theta = 8.0
    assert own.rope_theta == 7.0 and own.dtype == torch.float32  # the caller's config is not ours
    loaded = Qwen2ForCausalLM.from_pretrained(folder, config=own, attn_implementation="sdpa")
    assert loaded.config.attn_implementation == "sdpa"
    with pytest.raises(
        ValueError, match=r"38 mismatched: .*shape \(97, 48\), the model needs \(97, 96\)"
    ):
        Qwen2ForCausalLM.from_pretrained(folder, hidden_size=96)


def test_two_names_of_dtype(folder):
    assert Qwen2ForCausalLM.from_pretrained(folder, torch_dtype="bfloat16").dtype == torch.bfloat16
    assert Qwen2ForCausalLM.from_pretrained(folder, torch_dtype="auto").dtype == torch.float32
    with pytest.raises(TypeError, match="give one of the two"):
        Qwen2ForCausalLM.from_pretrained(folder, dtype="float16", torch_dtype="bfloat16")


def test_quantised_checkpoint(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantised"):
        Qwen2ForCausalLM.from_pretrained(folder)


def test_generation_config_travels(folder, model, tmp_path_factory):
    special = {"eos_token_id": 1, "pad_token_id": 2, "bos_token_id": 0}  # of the config
    (folder / "generation_config.json").unlink()
    assert Qwen2ForCausalLM.from_pretrained(folder).generation_config.to_dict() == special
    text = '{\n  "do_sample": true,\n  "eos_token_id": [\n    5,\n    6\n  ],\n  "top_k": 20\n}\n'
    (folder / "generation_config.json").write_text(text)
    loaded = Qwen2ForCausalLM.from_pretrained(folder)
    assert loaded.generation_config.eos_token_id == [5, 6]
    copy = tmp_path_factory.mktemp("copy")
    loaded.save_pretrained(copy)
    assert (copy / "generation_config.json").read_text() == text


def test_parts_of_memory_are_not_meta(folder):
    loaded = Qwen2ForCausalLM.from_pretrained(folder)
    ids = torch.arange(6)[None]
    assert loaded(ids).logits.isfinite().all()
    assert not any(t.is_meta for t in [*loaded.parameters(), *loaded.buffers()])


# -- where it goes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["cpu", torch.device("cpu"), {"": "cpu"}, "auto", None])
def test_device_map(folder, model, place):
    assert same(Qwen2ForCausalLM.from_pretrained(folder, device_map=place), model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "'gpu' is no device: try"),
        ({"device_map": "balanced"}, "'balanced' is no device"),
        ({"device": "cuda:99"}, "no device 'cuda:99' here: torch sees"),
        ({"device": "cpu", "device_map": "auto"}, "give one of the two"),
        ({"device_map": {"model": "cpu", "lm_head": "cuda:0"}}, "lives on one device"),
        ({"device_map": {}}, "lives on one device"),
        ({"device": "auto"}, "'auto' is no device"),
    ],
)
def test_wrong_places(folder, options, message):
    with pytest.raises(ValueError, match=message):
        Qwen2ForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    ("free", "chosen"),
    [
        ({"cuda:1": 12e9, "cuda:0": 8e9, "cpu": 99e9}, "cuda:1"),
        ({"cuda:0": 10.9e9, "mps": 11e9, "cpu": 99e9}, "mps"),
        ({"cuda:0": 8e9, "cpu": 99e9}, "cpu"),
        ({"cpu": None}, "cpu"),  # a system that does not say
    ],
)
def test_auto_takes_the_best_with_room(monkeypatch, free, chosen):
    monkeypatch.setattr(devices, "free_memory", lambda: free)
    assert devices.choose_device(None, "auto", int(10e9)) == torch.device(chosen)


def test_auto_without_room(monkeypatch, folder):
    monkeypatch.setattr(devices, "free_memory", lambda: {"cuda:0": 100e3, "cpu": 200e3})
    # 58,224 parameters of 4 bytes, a tenth on top: 256 kB. In bfloat16 half of that.
    with pytest.raises(
        MemoryError, match="needs about 0.0 GB.*cuda:0 has 0.0 GB.*dtype='bfloat16'"
    ):
        Qwen2ForCausalLM.from_pretrained(folder, device_map="auto")
    small = Qwen2ForCausalLM.from_pretrained(folder, device_map="auto", dtype="bfloat16")
    assert small.device.type == "cpu"
    monkeypatch.setattr(devices, "free_memory", lambda: {"cuda:0": 8e9, "cpu": 16e9})
    with pytest.raises(MemoryError) as caught:
        devices.choose_device(None, "auto", int(15.2e9))
    for part in (
        "16.7 GB",
        "cuda:0 has 8.0 GB",
        "cpu has 16.0 GB",
        "a smaller model",
        "device_map='cpu'",
    ):
        assert part in str(caught.value)


def test_free_memory_is_true():
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < devices.free_memory()["cpu"] < total


def test_most_free_card_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ([5, 9, 7][i], 10))
    assert list(devices.free_memory())[:3] == ["cuda:1", "cuda:2", "cuda:0"]


# -- saving ----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
@pytest.mark.parametrize("shard", ["5GB", "50kB"])
def test_every_file_has_the_mode_that_the_umask_gives(model, tmp_path, umask, shard):
    before = os.umask(umask)
    try:
        model.save_pretrained(tmp_path, max_shard_size=shard)
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_settings_that_are_a_dict_are_saved(model, tmp_path):
    settings, model.generation_config = model.generation_config, {"top_k": 7}
    try:
        model.save_pretrained(tmp_path)
    finally:
        model.generation_config = settings
    assert Qwen2ForCausalLM.from_pretrained(tmp_path).generation_config.top_k == 7


def test_released_layout(model, folder, tmp_path_factory):
    assert sorted(files(folder)) == ["config.json", "generation_config.json", SINGLE]
    header = (folder / SINGLE).read_bytes()[8:2000]
    assert b'"__metadata__":{"format":"pt"}' in header
    sharded = tmp_path_factory.mktemp("sharded")
    model.save_pretrained(sharded, max_shard_size="50kB")
    index = json.loads((sharded / INDEX).read_text())
    assert index["metadata"] == {"total_size": 4 * 58224}
    shards = sorted(set(index["weight_map"].values()))
    n = len(shards)
    assert shards == [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)] and n > 3
    assert sorted(files(sharded)) == sorted(
        [*shards, "config.json", "generation_config.json", INDEX]
    )
    sizes = [(sharded / s).stat().st_size for s in shards]
    assert max(sizes) < 52_000


@pytest.mark.parametrize(("first", "then"), [("50kB", "5GB"), ("5GB", "50kB"), ("40kB", "100kB")])
def test_an_older_save_is_wholly_replaced(model, tmp_path, first, then, randomise):
    (tmp_path / "tokenizer.json").write_text("{}")
    model.save_pretrained(tmp_path, max_shard_size=first)
    randomise(model, seed=9).save_pretrained(tmp_path, max_shard_size=then)
    assert same(Qwen2ForCausalLM.from_pretrained(tmp_path), model)
    fresh = tmp_path / "fresh"
    model.save_pretrained(fresh, max_shard_size=then)
    expected = files(fresh)
    shutil.rmtree(fresh)
    assert files(tmp_path) == {**expected, "tokenizer.json": b"{}"}


def test_parameters_that_are_views_are_saved(model, tmp_path):
    """Rows of a longer table, as one that was cut by hand; and a matrix that lies transposed."""
    wide = torch.cat((model.model.embed_tokens.weight, torch.ones(9, 48))).detach()
    model.model.embed_tokens.weight = nn.Parameter(wide[:97])
    model.tie_weights()
    matrix = model.model.layers[0].mlp.up_proj
    matrix.weight = nn.Parameter(matrix.weight.detach().T.contiguous().T)
    model.save_pretrained(tmp_path)
    assert same(Qwen2ForCausalLM.from_pretrained(tmp_path), model)


@pytest.fixture(params=["exchanged", "one by one"])
def way(request, monkeypatch):
    """The two ways in which files come: where folders cannot be exchanged, they move one by one."""
    if request.param == "one by one":
        monkeypatch.setattr(disk, "_exchange", lambda *_: False)
    return request.param


@pytest.mark.parametrize("first", ["5GB", "50kB"])
@pytest.mark.parametrize("then", ["5GB", "50kB"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_anywhere_the_old_files_stay(
    model, tmp_path, monkeypatch, randomise, first, then, error, way
):
    """Every write and every rename fails once; the folder must be byte for byte what it was. Only
    the last rename has done it all."""
    randomise(model, seed=9).save_pretrained(tmp_path / "new", max_shard_size=then)
    new = files(tmp_path / "new")
    tmp_path = tmp_path / "folder"
    randomise(model, seed=5).save_pretrained(tmp_path, max_shard_size=first)
    before = files(tmp_path)
    randomise(model, seed=9)
    real = {safetensors.torch: safetensors.torch.save_file, os: os.replace}

    def run(module, name, fail_at, after):
        calls = 0

        def broken(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls - 1 == fail_at and not after:
                raise error
            result = real[module](*args, **kwargs)
            if calls - 1 == fail_at:
                raise error
            return result

        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            model.save_pretrained(tmp_path, max_shard_size=then)
        return calls

    for module, name in ((safetensors.torch, "save_file"), (os, "replace")):
        for after in (False, True):
            for step in range(100):
                try:
                    run(module, name, step, after)
                except type(error):
                    found = files(tmp_path)
                    assert found == before or (after and name == "replace" and found == new)
                    if found == before:
                        continue
                break
            assert step < 100 and (step or name == "replace")
            assert files(tmp_path) == new
            model2 = Qwen2ForCausalLM.from_pretrained(tmp_path)
            assert same(model2, model)
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            for file, data in before.items():
                (tmp_path / file).write_bytes(data)


@pytest.mark.parametrize("step", range(8))
def test_a_dying_disk_loses_nothing(model, tmp_path, monkeypatch, randomise, step):
    """From one rename on, all fail, those that would put the old files back too. Once the disk is
    well again, the next save, whatever it saves, begins by putting them back."""
    whole, tmp_path = tmp_path, tmp_path / "folder"
    monkeypatch.setattr(disk, "_exchange", lambda *_: False)
    model.save_pretrained(tmp_path, max_shard_size="50kB")
    old = files(tmp_path)
    before = set(old.values())
    randomise(model, seed=9)
    real, calls = os.replace, iter(range(100))

    def broken(*args):
        if next(calls) >= step:
            raise OSError("gone")
        real(*args)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="gone"):
        patch.setattr(os, "replace", broken)
        model.save_pretrained(tmp_path)
    left = {p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    assert before <= left
    disk.write_whole(tmp_path / "README.md", b"hello")
    assert files(tmp_path).items() >= old.items()
    assert os.listdir(whole) == ["folder"]
    Qwen2ForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("sub", ["", "/deeper"])
def test_unwritable_folder(model, tmp_path, sub):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="cannot save into .*file") as caught:
        model.save_pretrained(f"{tmp_path}/file{sub}")
    assert "choose a folder" in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_wrong_shard_size_harms_nothing(model, folder):
    before = files(folder)
    with pytest.raises(ValueError, match="Supported units are TB, GB, MB, KB. Got 'big'"):
        model.save_pretrained(folder, max_shard_size="big")
    assert files(folder) == before


# -- verify=True -----------------------------------------------------------------------------------


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_checksums_agree_with_the_system(folder):
    write_sums(folder)
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder)
    assert done.returncode == 0
    blob = subprocess.run(
        ["git", "hash-object", folder / "config.json"], capture_output=True, text=True, check=True
    )
    assert file_hash(folder / "config.json", "git") == blob.stdout.strip()


@pytest.mark.parametrize("shard", ["5GB", "50kB"])
def test_verify_finds_one_flipped_byte(model, tmp_path, shard):
    model.save_pretrained(tmp_path, max_shard_size=shard)
    with pytest.raises(FileNotFoundError, match="nothing to compare .*SHA256SUMS does not exist"):
        Qwen2ForCausalLM.from_pretrained(tmp_path, verify=True)
    names = sorted(files(tmp_path))
    done = subprocess.run(["sha256sum", *names], cwd=tmp_path, capture_output=True, check=True)
    (tmp_path / "SHA256SUMS").write_bytes(done.stdout)
    assert same(Qwen2ForCausalLM.from_pretrained(tmp_path, verify=True), model)
    for name in names:
        for at in (0, len((tmp_path / name).read_bytes()) // 2, -1):
            flip(tmp_path / name, at)
            with pytest.raises(ValueError, match=f"{name} is damaged or altered"):
                Qwen2ForCausalLM.from_pretrained(tmp_path, verify=True)
            flip(tmp_path / name, at)
    Qwen2ForCausalLM.from_pretrained(tmp_path, verify=True)


def test_verify_wants_every_weight_file_listed(folder):
    sums = folder / "SHA256SUMS"
    sums.write_text(f"{file_hash(folder / 'config.json')}  config.json\n")
    with pytest.raises(FileNotFoundError, match="SHA256SUMS does not list it"):
        Qwen2ForCausalLM.from_pretrained(folder, verify=True)
    sums.write_text(f"{file_hash(folder / SINGLE).upper()} *./{SINGLE}\n")  # weights alone will do
    Qwen2ForCausalLM.from_pretrained(folder, verify=True)
    sums.write_text("no hash here\n")
    with pytest.raises(ValueError, match="SHA256SUMS, line 1: 'no hash here'"):
        Qwen2ForCausalLM.from_pretrained(folder, verify=True)


# -- counting, resizing, switches ------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_num_parameters_and_repr(small_config, tied):
    model = Qwen2ForCausalLM(small_config(tie_word_embeddings=tied))
    block = 48 * 48 * 2 + 16 * 48 * 2 + 48 + 16 * 2 + 3 * 48 * 80 + 2 * 48
    rest = 3 * block + 48 + (0 if tied else 97 * 48)
    assert model.num_parameters() == rest + 97 * 48
    assert model.num_parameters(exclude_embeddings=True) == rest
    model.model.norm.weight.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == rest + 97 * 48 - 48
    assert f"{rest + 97 * 48:,} parameters, float32, on cpu" in repr(model)
    assert model.to(torch.bfloat16).dtype == torch.bfloat16 and model.device.type == "cpu"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [120, 50, 97])
def test_resize(small_config, randomise, tied, size, tmp_path):
    model = randomise(Qwen2ForCausalLM(small_config(tie_word_embeddings=tied))).bfloat16()
    embedding = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings().weight.detach().clone()
    kept = min(size, 97)
    assert model.resize_token_embeddings(size) is model.get_input_embeddings()
    assert model.config.vocab_size == model.model.config.vocab_size == size
    for layer, old in ((model.model.embed_tokens, embedding), (model.lm_head, head)):
        assert layer.weight.shape == (size, 48) and layer.weight.dtype == torch.bfloat16
        assert torch.equal(layer.weight[:kept], old[:kept])
        assert layer.weight.requires_grad
        if size > 97:
            assert torch.equal(layer.weight[97:], old.float().mean(0).bfloat16().expand(23, -1))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert f"Embedding({size}, 48)" in repr(model) and f"out_features={size}" in repr(model)
    assert model(torch.arange(kept)[None]).logits.shape[-1] == size
    model.save_pretrained(tmp_path)
    assert same(Qwen2ForCausalLM.from_pretrained(tmp_path), model)


def test_resize_without_head_and_to_nothing(small_config):
    model = Qwen2ForTokenClassification(small_config())
    model.resize_token_embeddings(120)
    assert model.get_output_embeddings() is None
    assert model(torch.tensor([[119]])).logits.shape == (1, 1, 2)
    with pytest.raises(ValueError, match="new_num_tokens must be"):
        model.resize_token_embeddings(0)


def test_embeddings_can_be_replaced(small_config):
    model = Qwen2ForCausalLM(small_config(tie_word_embeddings=True))
    new = nn.Embedding(97, 48)
    model.set_input_embeddings(new)
    assert model.model.embed_tokens is new and model.lm_head.weight is new.weight
    head = nn.Linear(48, 97, bias=False)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head
    with pytest.raises(ValueError, match="Qwen2Model has no head over the vocabulary"):
        model.model.set_output_embeddings(head)


def test_init_weights(small_config):
    model = Qwen2ForCausalLM(small_config(initializer_range=0.1, hidden_size=192, vocab_size=500))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(9.0)
    model.init_weights()
    for name, p in model.named_parameters():
        if "norm" in name:
            assert (p == 1).all()
        elif name.endswith("bias"):
            assert (p == 0).all()
        else:
            assert 0.09 < p.std() < 0.11 and abs(p.mean()) < 0.01, name


@pytest.mark.parametrize("cls", CLASSES)
def test_gradient_checkpointing_switch(cls, small_config):
    model = cls(small_config())
    trunk = model if cls is Qwen2Model else getattr(model, cls.base_model_prefix)
    assert model.base_model is trunk
    model.gradient_checkpointing_enable()
    assert trunk.gradient_checkpointing is True
    model.gradient_checkpointing_disable()
    assert trunk.gradient_checkpointing is False


def test_gradient_checkpointing_changes_no_gradient(small_config, randomise):
    model = randomise(Qwen2ForCausalLM(small_config())).train()
    ids = torch.arange(20)[None]
    gradients = []
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        switch()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
