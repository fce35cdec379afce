"""Calls that people make to load a model, and files that lie; right values from transformers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import qwen2_edu
from qwen2_edu import AutoModelForCausalLM, AutoModelForSequenceClassification
from qwen2_edu.files import weights

IDS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(1))
SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.uniform_(0.5, 1.5) if "norm" in name else p.normal_(0, 0.15)
    model.save_pretrained(tmp_path)
    return tmp_path


def same_logits(folder, ours, **options):
    theirs = transformers.Qwen2ForCausalLM.from_pretrained(folder, **options).eval()
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=1e-4)


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


NEUTRAL = {"use_safetensors": True, "low_cpu_mem_usage": True, "trust_remote_code": False}
NEUTRAL |= {"force_download": False, "torch_dtype": "float32", "quantization_config": None}
NEUTRAL |= {
    "load_in_8bit": False,
    "output_loading_info": False,
    "subfolder": "",
    "weights_only": True,
}


def test_neutral_arguments(folder):
    ours = AutoModelForCausalLM.from_pretrained(pretrained_model_name_or_path=folder, **NEUTRAL)
    same_logits(folder, ours)
    kept = {"safe_serialization": True, "push_to_hub": False, "is_main_process": True}
    ours.save_pretrained(save_directory=folder, max_shard_size="5GB", **kept)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("use_safetensors", False, "pickle"),
        ("trust_remote_code", True, "never needed"),
        ("load_in_4bit", True, "load the original"),
        ("tp_plan", "auto", "one device"),
        ("variant", "fp16", "model\\*.safetensors"),
        ("quantization_config", object(), "load the original"),
        ("attn_implementation", "flash_attention_2", "sdpa"),
        ("config", {"hidden_size": 1}, "must be Qwen2Config"),
    ],
)
def test_other_values_are_refused_with_the_reason(folder, name, value, why):
    with pytest.raises((TypeError, ValueError), match=f"{name}.*{why}"):
        AutoModelForCausalLM.from_pretrained(folder, **{name: value})


def test_a_pickle_is_not_written(folder):
    with pytest.raises(
        TypeError, match="save_pretrained has no option 'safe_serialization'.*pickle"
    ):
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(
            folder, safe_serialization=False
        )


def test_fewer_layers_than_the_checkpoint_has(folder):
    with pytest.warns(UserWarning, match="also holds layers from 2 on: not read") as caught:
        ours = AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=2)
    assert len(caught) == 1 and caught[0].filename == __file__
    edit(folder, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    same_logits(folder, ours)


def test_foreign_heads(folder):
    path = folder / "model.safetensors"
    more = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.zeros(1)}
    save_file(load_file(path) | more, path, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="also holds v_head: not read"):
        ours = AutoModelForCausalLM.from_pretrained(folder)
    same_logits(folder, ours)


def test_heads_of_another_size(folder):
    with pytest.warns(UserWarning, match="score.weight"):
        three = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    three.save_pretrained(folder)
    with pytest.raises(ValueError, match="1 mismatched: score.weight"):
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
    with pytest.warns(UserWarning, match="score.weight: newly initialised"):
        five = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=5, ignore_mismatched_sizes=True
        )
    assert five.score.weight.shape == (5, 32) and five.score.weight.std() > 0
    assert torch.equal(five.model.norm.weight, three.model.norm.weight)


@pytest.mark.parametrize("layers", [4, 9_999])
def test_more_layers_than_the_headers_show(folder, monkeypatch, layers):
    built = []
    monkeypatch.setattr(weights, "load_weights", lambda *_, **__: built.append(1))
    edit(folder, num_hidden_layers=layers, layer_types=None)
    with pytest.raises(ValueError, match=f"num_hidden_layers is {layers}, but .* of 3 layers"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert not built


@pytest.mark.parametrize("text", ["[" * 100_000, '{"weight_map": ' + "[" * 100_000, "9" * 9_999])
def test_an_index_that_is_no_index(folder, text):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_that_is_rewritten_in_place(folder, mmap):
    """As the docstring says: a mapped model follows its file, mmap=False does not."""
    path = folder / "model.safetensors"
    model = AutoModelForCausalLM.from_pretrained(folder, mmap=mmap)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with open(path, "r+b") as file:
        file.seek(-64, 2)
        file.write(b"\0" * 64)
    stays = all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert stays is not mmap


@pytest.mark.parametrize("name", [None, 3, ["tiny"]])
def test_what_is_no_name(name):
    with pytest.raises(TypeError, match="name_or_path must be"):
        AutoModelForCausalLM.from_pretrained(name)


def test_the_names_of_auto_classes():
    for kind in ("", "ForCausalLM", *(f"For{k}Classification" for k in ("Sequence", "Token"))):
        ours = getattr(qwen2_edu, f"AutoModel{kind}")
        assert ours.__name__ == f"Qwen2{kind or 'Model'}"
    assert qwen2_edu.AutoModelForQuestionAnswering is qwen2_edu.Qwen2ForQuestionAnswering


def test_importing_brings_nothing_heavy():
    code = "import sys, qwen2_edu; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"transformers", "huggingface_hub", "typer", "gguf", "tiktoken", "safetensors"}
    assert not heavy & set(done.stdout.split())
