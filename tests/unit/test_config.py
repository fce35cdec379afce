"""Every released config.json is read, understood and written back."""

from __future__ import annotations

import json

import pytest
import torch

from qwen2_edu import Qwen2Config, Qwen2ForCausalLM, released_config
from qwen2_edu.config import RELEASES


@pytest.fixture(scope="module")
def released(goldens):
    return goldens("released_files")


@pytest.mark.filterwarnings("error")
def test_every_released_config_round_trips(released):
    for name, entry in released["configs"]["models"].items():
        fields = {k: v for k, v in entry["config"].items()}
        config = Qwen2Config.from_dict(fields)
        assert json.loads(config.to_json_string()) == fields, name
        assert Qwen2Config.from_dict(config.to_dict()) == config


def test_the_table_of_releases_equals_the_released_files(released):
    models = released["configs"]["models"]
    assert set(RELEASES) == {name for name in models if name.startswith("Qwen")}
    for name in RELEASES:
        assert json.loads(released_config(name).to_json_string()) == models[name]["config"], name
    assert released_config("Qwen/Qwen2-7B") == released_config("Qwen2-7B")
    for name, hint in (("Qwen2-8B", "did you mean Qwen2-7B or"), ("x", "known are Qwen2-0.5B, ")):
        with pytest.raises(ValueError, match=f"'{name}': {hint}"):
            released_config(name)


def test_config_files_are_byte_identical(released):
    texts = {
        entry["file"].removesuffix("/config.json"): entry["text"]
        for entry in released["file_hashes"]["rebuilt_byte_exact_here"]
        if entry["file"].endswith("/config.json")
    }
    assert len(texts) == 4
    for name, text in texts.items():
        assert released_config(name).to_json_string() == text
        assert Qwen2Config.from_dict(json.loads(text)).to_json_string() == text


def test_parameter_counts(released):
    """Counted on the meta device: 72 billion parameters without one byte of memory."""
    shapes = {}  # releases of one size have one shape: count each shape once
    for name, entry in released["configs"]["models"].items():
        config = Qwen2Config.from_dict(entry["config"])
        shape = (config.hidden_size, config.num_hidden_layers, config.tie_word_embeddings)
        totals = (entry["params_total"], entry["params_non_embedding"])
        assert shapes.setdefault(shape, (config, totals))[1] == totals, name
    assert len(shapes) == 8  # seven sizes, and the 1.5B distillate whose head is not tied
    for config, totals in shapes.values():
        with torch.device("meta"):
            model = Qwen2ForCausalLM(config)
        head = 0 if config.tie_word_embeddings else model.lm_head.weight.numel()
        body = model.num_parameters(exclude_embeddings=True) - head
        assert (model.num_parameters(), body) == totals


@pytest.mark.parametrize(
    ("v4", "v5"),
    [
        (
            {"torch_dtype": "bfloat16", "rope_theta": 5e5},
            {"dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}},
        ),
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 30},
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 30,
                "layer_types": ["full_attention"] * 30 + ["sliding_attention"] * 2,
            },
        ),
    ],
)
def test_both_spellings(v4, v5):
    assert Qwen2Config(**v4) == Qwen2Config(**v5)


def test_transformers_reads_what_we_write_and_back(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = Qwen2Config(
        num_hidden_layers=4,
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=2,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        torch_dtype="bfloat16",
        num_labels=3,
    )
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.layer_types == ours.layer_types
    assert theirs.num_labels == 3
    assert theirs.rope_parameters["factor"] == 4.0
    theirs.save_pretrained(tmp_path / "back")
    back = Qwen2Config.from_pretrained(tmp_path / "back")
    assert back.layer_types == ours.layer_types
    assert back.rope_parameters == ours.rope_parameters
    assert (back.torch_dtype, back.num_labels, back.sliding_window) == ("bfloat16", 3, 16)


@pytest.mark.filterwarnings("ignore:use_sliding_window is on")
def test_which_layers_slide():
    def kinds(**fields):
        return Qwen2Config(num_hidden_layers=4, sliding_window=8, **fields).layer_types

    assert kinds(max_window_layers=2) == ["full_attention"] * 4  # use_sliding_window is off
    mixed = kinds(use_sliding_window=True, max_window_layers=2)
    assert mixed == ["full_attention"] * 2 + ["sliding_attention"] * 2
    assert kinds(use_sliding_window=True, max_window_layers=9) == ["full_attention"] * 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "6.*multiple.*4"),
        ({"hidden_size": 50, "num_attention_heads": 4}, "50.*multiple.*4"),
        ({"hidden_size": 36, "num_attention_heads": 12}, r"head_dim \(3\) must be even"),
        ({"hidden_act": "gelu"}, "gelu.*silu"),
        ({"vocab_size": 0}, r"vocab_size must be an integer in \[1, 134,217,728\], not 0"),
        ({"hidden_size": 64.0}, "hidden_size must be an integer in .*, not 64.0"),
        ({"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 0}, "not 0"),
        ({"layer_types": ["full"], "num_hidden_layers": 1}, "each 'full_attention' or"),
        ({"attention_dropout": 1.0}, "attention_dropout"),
        ({"problem_type": "ranking"}, "ranking"),
        ({"attn_implementation": "flash"}, "flash"),
        ({"model_type": "llama"}, "llama"),
        ({"rope_theta": 0}, r"rope_theta must be a number in \(0, 1e\+30\], not 0"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps.*not -1.0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be bool, not 'no'"),
        ({"rope_scaling": "linear"}, "rope_scaling must be dict.*, not 'linear'"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Qwen2Config(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": 64}, "did you mean hidden_act or hidden_size"),
        ({"num_layers": 2}, "did you mean num_hidden_layers"),
        ({"use_sliding_window": True, "max_window_layers": 32}, "no layer slides"),
    ],
)
def test_slips_are_pointed_out(fields, message):
    with pytest.warns(UserWarning, match=message) as caught:
        Qwen2Config(**fields)
    assert [warned.filename for warned in caught] == [__file__]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, FileNotFoundError, "config.json"),
        ("{", ValueError, "is not JSON"),
        ("[1]", ValueError, "holds a list"),
        ('{"model_type": "mistral"}', ValueError, "mistral"),
    ],
)
def test_broken_files(tmp_path, text, error, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match=message):
        Qwen2Config.from_pretrained(tmp_path)


def test_labels_and_unknown_fields_are_kept(tmp_path):
    config = Qwen2Config(id2label={"0": "sad", "1": "glad"}, my_field=[1, 2])
    config.save_pretrained(tmp_path)
    back = Qwen2Config.from_pretrained(tmp_path)
    assert back.id2label == {0: "sad", 1: "glad"}
    assert back.label2id == {"sad": 0, "glad": 1}
    assert back.num_labels == 2
    assert back.extra == {"my_field": [1, 2]}
    assert Qwen2Config.from_pretrained(tmp_path, num_labels=3).num_labels == 3
