"""What users of such software met in `config.json`: fields that change the computation, numbers of
other libraries, values of the wrong type, changes that an older spelling in the file outdid. What
is right is what transformers computes from the same folder.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
import transformers

import qwen2_edu
from qwen2_edu import Qwen2Config

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, randomise):
    """A small model that transformers saved; `folder(**changes)` edits its config.json."""
    place = tmp_path_factory.mktemp("model")
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL))
    randomise(model).save_pretrained(place)
    written = json.loads((place / "config.json").read_text())

    def edited(**changes):
        (place / "config.json").write_text(json.dumps({**written, **changes}))
        return place

    return edited


def both(place, cls="Qwen2ForCausalLM", **changes):
    ours = getattr(qwen2_edu, cls).from_pretrained(place, **changes)
    theirs = getattr(transformers, cls).from_pretrained(place, **changes)
    return ours, theirs.eval()


def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


# -- fields that change the computation are obeyed or refused --------------------------------------

WINDOW = {"use_sliding_window": True, "sliding_window": 5, "layer_types": None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("stack", [{}, WINDOW | {"max_window_layers": 1}])
@torch.no_grad()
def test_is_causal_false_sees_both_ways(folder, stack, attention):
    """As gte-Qwen2 says it. Padding on either side stays unseen."""
    place = folder(is_causal=False, **stack)
    ours, theirs = both(place, attn_implementation=attention)
    ids = torch.randint(0, 97, (2, 17))
    close(ours(ids).logits, theirs(ids).logits)
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % 97
    assert not torch.allclose(ours(ids).logits[:, -2], ours(changed).logits[:, -2])
    for pads in ([0, 4], [3, 0]):
        mask = (torch.arange(17) >= torch.tensor(pads)[:, None]).long()
        for side in (mask, mask.flip(1)):
            positions = (side.cumsum(-1) - 1).clamp(min=0)
            want = theirs(ids, attention_mask=side, position_ids=positions, use_cache=False).logits
            close(ours(ids, side).logits[side.bool()], want[side.bool()])


@torch.no_grad()
def test_is_causal_false_with_a_cache_reads_on_as_transformers_does(folder):
    ours, theirs = both(folder(is_causal=False))
    ids = torch.randint(0, 97, (1, 12))
    want = theirs(ids[:, :7], use_cache=True)
    got = ours(ids[:, :7], use_cache=True)
    for part in (ids[:, 7:8], ids[:, 8:]):
        want = theirs(part, past_key_values=want.past_key_values, use_cache=True)
        got = ours(part, past_key_values=got.past_key_values)
        close(got.logits, want.logits)


def test_is_causal_is_written_only_where_it_is_false(tmp_path):
    assert "is_causal" not in Qwen2Config().to_dict()
    Qwen2Config(is_causal=False).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["is_causal"] is False
    assert transformers.AutoConfig.from_pretrained(tmp_path).is_causal is False


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic"])
@torch.no_grad()
def test_the_trained_length_may_stand_beside_the_rope_parameters(folder, kind):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    ours, theirs = both(folder(rope_parameters=rope, original_max_position_embeddings=16))
    ids = torch.randint(0, 97, (1, 20))
    close(ours(ids).logits, theirs(ids).logits)
    plain, _ = both(folder(rope_parameters=rope))
    assert torch.allclose(ours(ids).logits, plain(ids).logits) is (kind != "yarn")
    assert ours.config.to_dict()["original_max_position_embeddings"] == 16


@pytest.mark.parametrize(
    "field",
    [{"partial_rotary_factor": 0.5}, {"use_mrope": True}, {"use_qk_norm": True}, {"logit_scale": 2}]
    + [{"attn_logit_softcapping": 50.0}, {"num_experts": 8}, {"per_layer_config": {"1": {}}}]
    + [{"attention_chunk_size": 8}, {"tie_last_hidden_states": False}, {"alibi": True}]
    + [{"add_cross_attention": True}, {"use_bidirectional_attention": True}],
)
def test_what_would_change_the_computation_is_refused(folder, field):
    ((name, value),) = field.items()
    with pytest.raises(ValueError, match=rf"{name}=.*changes what a model computes.*config.json"):
        Qwen2Config.from_pretrained(folder(**field))
    with pytest.raises(ValueError, match=name):
        Qwen2Config(**field)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "field",
    [{"attention_bias": True}, {"attention_bias": False}, {"mlp_bias": False}, {"alibi": False}]
    + [{"mm_hidden_size": 1024}, {"mm_vision_tower": "siglip"}, {"image_token_id": 5}]
    + [{"use_mrope": False}, {"partial_rotary_factor": 1.0}, {"num_experts": None}]
    + [{"pretraining_tp": 1}, {"vision_config": {}}, {"auto_map": {"AutoModel": "m.Q"}}]
    + [{"_attn_implementation_autoset": True}, {"layer_norm_eps": 1e-6}]
    + [{"num_kv_heads": 2}, {"unsloth_fixed": True}, {"original_max_position_embeddings": 32}]
    + [{"text_vocab_size": 5}, {"output_attentions": False}, {"use_attention_bias": True}],
)
@torch.no_grad()
def test_harmless_fields_draw_no_warning_and_change_nothing(folder, field):
    place = folder(**field)
    ids = torch.arange(9)[None]
    ours = qwen2_edu.Qwen2ForCausalLM.from_pretrained(place)
    assert field.items() <= ours.config.to_dict().items()
    close(ours(ids).logits, qwen2_edu.Qwen2ForCausalLM.from_pretrained(folder())(ids).logits)


def test_a_slip_of_the_hand_is_still_pointed_out(folder):
    with pytest.warns(UserWarning, match="did you mean sliding_window"):
        Qwen2Config.from_pretrained(folder(sliding_windw=8))
    with pytest.warns(UserWarning, match="did you mean num_hidden_layers"):
        Qwen2Config.from_pretrained(folder(), num_layers=2)


# -- numbers of other libraries --------------------------------------------------------------------


def test_numbers_of_numpy_and_torch(tmp_path):
    config = Qwen2Config(
        **{name: np.int64(value) for name, value in SMALL.items()},
        rope_theta=np.float32(1e4),
        eos_token_id=[np.int64(1), torch.tensor(2)],
        tie_word_embeddings=np.bool_(True),
        id2label={np.int64(0): "a", np.int32(1): "b"},
        my_field=np.arange(3),
    )
    assert config == Qwen2Config(
        **SMALL, eos_token_id=[1, 2], tie_word_embeddings=True, id2label={0: "a", 1: "b"},
        my_field=[0, 1, 2],
    )  # fmt: skip
    config.pad_token_id = np.int64(0)  # set later: seen when it is saved
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["pad_token_id"], written["my_field"]) == (0, [0, 1, 2])
    assert transformers.AutoConfig.from_pretrained(tmp_path).id2label == {0: "a", 1: "b"}


# -- values of the wrong type ----------------------------------------------------------------------

WRONG = [("attention_dropout", None), ("attention_dropout", "0.1"), ("max_window_layers", None)]
WRONG += [("max_window_layers", "4"), ("layer_types", 5), ("layer_types", [[]] * 3)]
WRONG += [("head_dim", "x"), ("id2label", ["a"]), ("id2label", {"a": "b"}), ("id2label", {"0": 1})]
WRONG += [("num_labels", "3"), ("num_labels", 0), ("num_labels", 10**8), ("num_labels", True)]
WRONG += [("rope_parameters", 5), ("rope_scaling", [1]), ("rms_norm_eps", 10**400), ("self", 1)]
WRONG += [("vocab_size", 10**30), ("num_hidden_layers", 200_000), ("hidden_size", "32")]
WRONG += [("hidden_act", 3), ("hidden_act", ["silu"]), ("use_cache", "yes"), ("model_type", [])]
WRONG += [("eos_token_id", "1"), ("eos_token_id", [None]), ("dtype", 5), ("dtype", {})]
WRONG += [("sliding_window", "8"), ("initializer_range", float("nan")), ("problem_type", 3)]
WRONG += [("architectures", "Qwen2ForCausalLM"), ("rope_parameters", {"rope_theta": float("inf")})]
WRONG += [("is_causal", 0), ("label2id", {"a": "b"}), ("tie_word_embeddings", 1)]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_a_value_of_the_wrong_type_is_a_value_error_with_file_and_field(folder, name, value):
    place = folder(**{name: value})
    field = {"dtype": "torch_dtype", "rope_parameters": "rope_"}.get(name, name)
    with pytest.raises(ValueError, match=rf"(?s){field}.*{place}") as caught:
        Qwen2Config.from_pretrained(place)
    assert len(str(caught.value)) < 600


ROPE = [{"rope_type": "yarn", "factor": 8.0, "beta_fast": "x"}, {"rope_type": ["yarn"]}]
ROPE += [{"rope_type": "yarn", "factor": 10**400}, {"rope_type": "linear", "factor": "2"}]
ROPE += [{"rope_type": "yarn", "factor": 2.0, "truncate": "no"}, {"type": {"a": 1}, "factor": 2.0}]
ROPE += [{"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}, {"rope_type": "mrope"}]
ROPE += [{"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": "64"}]
ROPE += [{"rope_type": "yarn", "factor": 2.0, "attention_factor": [1]}]


@pytest.mark.parametrize("rope", ROPE, ids=str)
def test_a_wrong_rope_value_is_a_value_error(folder, rope):
    with pytest.raises(ValueError), torch.device("meta"):
        qwen2_edu.Qwen2ForCausalLM(Qwen2Config.from_pretrained(folder(rope_parameters=rope)))


@pytest.mark.parametrize("depth", [100, 5_000, 200_000])
def test_deep_nesting_is_a_value_error(folder, depth):
    place = folder()
    (place / "config.json").write_text(
        '{"model_type": "qwen2", "x": ' + "[" * depth + "]" * depth + "}"
    )
    with pytest.raises(ValueError, match=r"(?s)config.json"):
        Qwen2Config.from_pretrained(place)


def test_a_number_of_thousands_of_digits_is_a_value_error(folder):
    place = folder()
    (place / "config.json").write_text('{"vocab_size": ' + "9" * 5000 + "}")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        Qwen2Config.from_pretrained(place)


# -- what is written reads back, and changes win ---------------------------------------------------


@torch.no_grad()
def test_head_dim_is_saved_where_heads_do_not_divide_the_width(tmp_path, randomise):
    config = Qwen2Config(
        **{**SMALL, "num_attention_heads": 3, "num_key_value_heads": 1}, head_dim=10
    )
    model = randomise(qwen2_edu.Qwen2ForCausalLM(config))
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    ours, theirs = both(tmp_path)
    close(ours(ids).logits, theirs(ids).logits)
    close(ours(ids).logits, model(ids).logits)
    assert "head_dim" not in Qwen2Config(**SMALL, head_dim=8).to_dict()
    assert Qwen2Config(**SMALL, head_dim=16).to_dict()["head_dim"] == 16


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    "changes",
    [{"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}]
    + [{"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}, {"rope_scaling": YARN}],
)
def test_changes_win_over_the_file_in_either_spelling(folder, changes):
    v5 = {"dtype": "float16", "rope_parameters": {"rope_type": "default", "rope_theta": 7e3}}
    v4 = {"torch_dtype": "float16", "rope_theta": 7e3}
    del v5["dtype"], v4["torch_dtype"]
    for written in (v5, v4):
        config = Qwen2Config.from_dict({**SMALL, **written, "torch_dtype": "float16"}, **changes)
        fresh = Qwen2Config(**changes)
        for name in changes:
            if name in ("rope_parameters", "rope_theta"):
                assert config.rope_theta == 5e5
            elif name == "rope_scaling":
                assert config.rope_parameters == {**YARN, "rope_theta": 7e3}
            else:
                assert config.dtype == fresh.dtype == torch.bfloat16


@torch.no_grad()
def test_a_change_of_the_window_wins_over_the_layer_types_that_transformers_wrote(folder):
    """transformers 5 writes layer_types into every file."""
    place = folder()
    assert json.loads((place / "config.json").read_text())["layer_types"] == ["full_attention"] * 3
    config = Qwen2Config.from_pretrained(
        place, use_sliding_window=True, sliding_window=4, max_window_layers=1
    )
    assert config.layer_types == ["full_attention"] + ["sliding_attention"] * 2
    assert (
        Qwen2Config.from_pretrained(place, num_hidden_layers=2).layer_types
        == ["full_attention"] * 2
    )


def test_labels_that_change(folder):
    config = Qwen2Config.from_pretrained(folder(num_labels=3), id2label={0: "no", 1: "yes"})
    assert (config.num_labels, config.label2id) == (2, {"no": 0, "yes": 1})
    config.num_labels = 4
    theirs = transformers.Qwen2Config(id2label={0: "no", 1: "yes"})
    theirs.num_labels = 4
    assert (config.id2label, config.label2id) == (theirs.id2label, theirs.label2id)
    with pytest.raises(ValueError, match=r"num_labels must be an integer in \[1, 1,048,576\]"):
        config.num_labels = 10**8


@torch.no_grad()
def test_a_window_of_null_is_no_window(folder):
    place = folder(
        use_sliding_window=True, sliding_window=None, max_window_layers=1, layer_types=None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = both(place)
    assert ours.config.layer_types == theirs.config.layer_types == ["full_attention"] * 3
    ids = torch.arange(20)[None]
    close(ours(ids).logits, theirs(ids).logits)
