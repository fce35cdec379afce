"""What transformers' tests of Qwen2's model classes check, as cases of our own, with the calls as
people write them for transformers: building, forward, caches, losses, embeddings, save and load.

Each case runs on transformers' class and on ours, so that a case that asks for too much shows.

transformers 5.16 runs 152 tests on its own Qwen2 on a CPU (tests/models/qwen2). Run on these
classes, 130 of them pass, once each class declares what is private there (`_supports_sdpa` …),
isinstance knows our outputs, caches and layers, the two checks of a cache's inside are overwritten,
as they ask, and the MLP is SwiGLU. The other 22:

    3  speculation with states and maps              refused: a pass reads several tokens
    3  compile_config, static caches compiled        refused: fast=True compiles where it pays
    2  other sizes than the config's                 a ValueError and a warning here, other words
    2  set_attn_implementation("foo"), multiple 1.3  refused in other words
    2  weights that are missing, an empty file       an error here
    1  masks (B, 1, T, S)                            refused: padding and positions say it
    1  position_ids of generate                      refused: they are counted from the mask
    1  state_dict= and no folder                     refused: load_state_dict
    1  loading within torch.device("meta")           works here
    1  label2id of strings                           become integers here
    5  classes, hooks and source of theirs: GenerationMixin, post_init, what is drawn for missing
       weights, the frequencies as a class of their kind, plans of parallel layers
"""

from __future__ import annotations

import copy
import inspect
import json
import pickle

import pytest
import torch
import transformers

import qwen2_edu

HEADS = (
    "ForCausalLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
CLASSES = ["Qwen2Model", *(f"Qwen2{head}" for head in HEADS)]
SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": 3,
}
BOTH = pytest.mark.parametrize(
    "house", [transformers, qwen2_edu], ids=["transformers", "qwen2_edu"]
)
EACH = pytest.mark.parametrize("name", CLASSES)


def build(house, name="Qwen2ForCausalLM", **fields):
    torch.manual_seed(0)
    return getattr(house, name)(house.Qwen2Config(**{**SMALL, **fields})).eval()


def inputs(rows=3, length=7):
    ids = torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones(rows, length).tril(length - rows).long()}


def labels_for(name, rows=3, length=7):
    if name.endswith("QuestionAnswering"):
        return {
            "start_positions": torch.ones(rows).long(),
            "end_positions": torch.ones(rows).long(),
        }
    return {
        "labels": torch.ones(rows).long() if "Sequence" in name else torch.ones(rows, length).long()
    }


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


# -- forward ---------------------------------------------------------------------------------------


@BOTH
@EACH
def test_forward_signature(house, name):
    assert list(inspect.signature(build(house, name).forward).parameters)[:2] == [
        "input_ids",
        "attention_mask",
    ]


@BOTH
@EACH
@torch.no_grad()
def test_determinism(house, name):
    model = build(house, name)
    close(model(**inputs())[0], model(**inputs())[0], 0)


@BOTH
@EACH
@torch.no_grad()
def test_shapes(house, name):
    shape = {
        "Qwen2Model": (3, 7, 32),
        "Qwen2ForCausalLM": (3, 7, 99),
        "Qwen2ForSequenceClassification": (3, 3),
    }
    shape |= {"Qwen2ForTokenClassification": (3, 7, 3), "Qwen2ForQuestionAnswering": (3, 7)}
    assert tuple(build(house, name)(**inputs())[0].shape) == shape[name]


@BOTH
@EACH
@torch.no_grad()
def test_tuple_and_dict_agree(house, name):
    model = build(house, name)
    for options in ({}, {"output_hidden_states": True}):
        told = {**inputs(), "use_cache": False, **options}
        answer, plain = model(**told, return_dict=True), model(**told, return_dict=False)
        assert isinstance(plain, tuple) and len(plain) == len(answer.to_tuple())
        for a, b in zip(plain, answer.to_tuple(), strict=True):
            [close(x, y) for x, y in zip(a, b, strict=True)]


@BOTH
@EACH
@torch.no_grad()
def test_inputs_embeds(house, name):
    model, told = build(house, name), inputs()
    embeds = model.get_input_embeddings()(told["input_ids"])
    if "Sequence" in name:
        told["attention_mask"] = torch.ones_like(told["attention_mask"])
    got = model(inputs_embeds=embeds, attention_mask=told["attention_mask"])[0]
    close(got, model(**told)[0])


@BOTH
@EACH
def test_neither_and_both_inputs(house, name):
    model = build(house, name)
    with pytest.raises(ValueError):
        model(input_ids=inputs()["input_ids"], inputs_embeds=torch.zeros(3, 7, 32))
    with pytest.raises(ValueError):
        model()


@BOTH
@EACH
@torch.no_grad()
def test_hidden_states(house, name):
    model = build(house, name)
    found = model(**inputs(), output_hidden_states=True).hidden_states
    assert len(found) == 3 and all(tuple(t.shape) == (3, 7, 32) for t in found)
    model.config.output_hidden_states = True
    assert len(model(**inputs()).hidden_states) == 3


@BOTH
@EACH
@torch.no_grad()
def test_attentions(house, name):
    model = build(house, name, attn_implementation="eager")
    found = model(**inputs(), output_attentions=True).attentions
    assert len(found) == 2 and all(tuple(t.shape) == (3, 4, 7, 7) for t in found)


@BOTH
@EACH
def test_gradients_of_states_and_maps(house, name):
    model = build(house, name, attn_implementation="eager")
    out = model(**inputs(), output_hidden_states=True, output_attentions=True)
    out.hidden_states[0].retain_grad()
    out.attentions[0].retain_grad()
    out[0].flatten()[0].backward(retain_graph=True)
    assert out.hidden_states[0].grad is not None and out.attentions[0].grad is not None


@BOTH
@torch.no_grad()
def test_eager_and_sdpa_and_left_padding(house):
    eager, sdpa = (build(house, attn_implementation=name) for name in ("eager", "sdpa"))
    told = inputs()
    told["attention_mask"] = told["attention_mask"].flip(1)
    real = told["attention_mask"].bool()
    close(eager(**told).logits[real], sdpa(**told).logits[real])
    positions = (told["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    row = told["input_ids"][:1, int(real[0].int().argmax()) :]
    close(eager(**told, position_ids=positions).logits[:1, -1], eager(row).logits[:, -1])


@BOTH
@pytest.mark.parametrize("kept", [0, 1, 3, torch.tensor([0, 4])])
@torch.no_grad()
def test_logits_to_keep(house, kept):
    model = build(house)
    whole, some = model(**inputs()).logits, model(**inputs(), logits_to_keep=kept).logits
    close(some, whole[:, kept] if torch.is_tensor(kept) else whole[:, -kept:])


# -- caches ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["Qwen2Model", "Qwen2ForCausalLM"])
@torch.no_grad()
def test_past_key_values(house, name):
    model, told = build(house, name), inputs()
    first = model(**told, use_cache=True)
    more = {"input_ids": torch.full((3, 3), 5), "past_key_values": first.past_key_values}
    mask = torch.cat((told["attention_mask"], torch.ones(3, 3).long()), 1)
    tail = model(**more, attention_mask=mask)[0]
    ids = torch.cat((told["input_ids"], more["input_ids"]), 1)
    close(tail, model(ids, attention_mask=mask)[0][:, -3:])


@BOTH
@torch.no_grad()
def test_masked_past_does_not_matter(house):
    model, ids = build(house, "Qwen2Model"), inputs()["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, 4:] = 0
    first = model(ids, attention_mask=mask, use_cache=True)
    new, changed = torch.full((3, 1), 5), ids.clone()
    changed[:, 5] = 8
    mask = torch.cat((mask, torch.ones(3, 1).long()), 1)
    whole = model(torch.cat((changed, new), 1), attention_mask=mask)[0][:, -1]
    past = model(new, past_key_values=first.past_key_values, attention_mask=mask)[0][:, -1]
    close(past, whole)


@BOTH
@torch.no_grad()
def test_no_cache_on_request(house):
    model = build(house)
    assert model(**inputs(), use_cache=False).past_key_values is None
    assert model(**inputs(), use_cache=True).past_key_values.get_seq_length() == 7


@BOTH
@torch.no_grad()
def test_a_cache_handed_in(house):
    model, ids = build(house), inputs()["input_ids"]
    cache = house.DynamicCache(config=model.config)
    model(ids[:, :4], past_key_values=cache, use_cache=True)
    close(model(ids[:, 4:], past_key_values=copy.deepcopy(cache)).logits, model(ids).logits[:, 4:])
    cache.crop(-2)  # of four
    close(model(ids[:, 2:], past_key_values=cache).logits, model(ids).logits[:, 2:])


# -- losses and training ---------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", CLASSES[1:])
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": True}, {"use_reentrant": False}])
@pytest.mark.filterwarnings("ignore")
def test_training(house, name, checkpointing):
    model = build(house, name).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    out = model(**inputs(), **labels_for(name))
    assert out[0].ndim == 0 and out.loss is out[0]
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@BOTH
def test_input_gradients_can_be_asked_for(house):
    model = build(house).requires_grad_(False)
    model.enable_input_require_grads()
    assert model(**inputs()).logits.requires_grad
    model.disable_input_require_grads()


@BOTH
@pytest.mark.parametrize(
    "problem", ["single_label_classification", "multi_label_classification", "regression"]
)
@pytest.mark.filterwarnings("error")  # a broadcast of the loss would warn
def test_problem_types(house, problem):
    count = 1 if problem == "regression" else 3
    model = build(house, "Qwen2ForSequenceClassification", problem_type=problem, num_labels=count)
    labels = {
        "single_label_classification": torch.tensor([0, 2, 1]),
        "multi_label_classification": torch.eye(3),
        "regression": torch.tensor([[0.1], [0.2], [0.3]]),
    }
    model(**inputs(), labels=labels[problem]).loss.backward()


@BOTH
def test_one_batch_is_learned(house):
    model, ids = build(house).train(), inputs()["input_ids"]
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.6


# -- embeddings and parts --------------------------------------------------------------------------


@BOTH
@EACH
def test_embeddings_get_and_set(house, name):
    model = build(house, name)
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)
    model.set_input_embeddings(torch.nn.Embedding(10, 32))
    assert model.get_input_embeddings().weight.shape == (10, 32)


@BOTH
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [109, 84])
@torch.no_grad()
def test_resize(house, tied, size):
    model = build(house, tie_word_embeddings=tied)
    before = model.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(size)
    kept = min(size, 99)
    assert model.config.vocab_size == size and model.get_output_embeddings().weight.shape[0] == size
    close(model.get_input_embeddings().weight[:kept], before[:kept], 0)
    same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert same == tied
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, size)


@BOTH
def test_new_rows(house):
    model = build(house)
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(100, pad_to_multiple_of=64)
    assert model.config.vocab_size == len(model.lm_head.weight) == 128
    mean = old.mean(0).expand(29, -1)
    close(model.get_input_embeddings().weight[99:], mean, 1e-4)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(pad_to_multiple_of=128).num_embeddings == 128
    model.resize_token_embeddings(400, mean_resizing=False)
    assert 0.015 < model.get_input_embeddings().weight[128:].std() < 0.025


@BOTH
def test_tied_weights_are_one(house):
    model = build(house, tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with torch.no_grad():
        model.lm_head.weight[0] = 7
    assert model.get_input_embeddings().weight[0, 0] == 7


@BOTH
@EACH
def test_initial_values(house, name):
    model = build(house, name, initializer_range=1e-10)
    for key, parameter in model.named_parameters():
        assert round(parameter.mean().item(), 6) in (0.0, 1.0), key


@BOTH
@EACH
def test_counts_and_places(house, name):
    model = build(house, name)
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert model.base_model is getattr(model, model.base_model_prefix, model)


# -- save and load ---------------------------------------------------------------------------------


@BOTH
@EACH
@torch.no_grad()
def test_save_and_load(house, name, tmp_path):
    model = build(house, name)
    model.save_pretrained(tmp_path)
    again = getattr(house, name).from_pretrained(tmp_path)
    close(again(**inputs())[0], model(**inputs())[0], 1e-6)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [name]


@BOTH
@torch.no_grad()
def test_shards(house, tmp_path):
    model = build(house)
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    close(
        house.Qwen2ForCausalLM.from_pretrained(tmp_path)(**inputs()).logits,
        model(**inputs()).logits,
    )


@BOTH
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_trunk_and_head_read_each_other(house, tmp_path):
    model = build(house)
    model.save_pretrained(tmp_path / "head")
    trunk = house.Qwen2Model.from_pretrained(tmp_path / "head")
    close(trunk(**inputs())[0], model.model(**inputs())[0], 1e-6)
    trunk.save_pretrained(tmp_path / "trunk")
    classifier = house.Qwen2ForSequenceClassification.from_pretrained(
        tmp_path / "trunk", num_labels=5
    )
    assert classifier(**inputs()).logits.shape == (3, 5)


@BOTH
@EACH
@torch.no_grad()
def test_bf16_and_half(house, name, tmp_path):
    build(house, name).save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        model = getattr(house, name).from_pretrained(tmp_path, dtype=dtype)
        assert model.dtype == dtype and model(**inputs())[0].dtype == dtype


@BOTH
@torch.no_grad()
def test_copies(house):
    model = build(house)
    want = model(**inputs()).logits
    close(copy.deepcopy(model)(**inputs()).logits, want, 0)
    again = build(house)
    again.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    close(again(**inputs()).logits, want, 0)


@BOTH
def test_config(house, tmp_path):
    config = house.Qwen2Config(**SMALL)
    config.save_pretrained(tmp_path)
    again = house.Qwen2Config.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict() and again.num_labels == 3
    assert house.Qwen2Config.from_dict(config.to_dict()).to_json_string() == config.to_json_string()
    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": "0", "b": "1"}}  # as JSON has it
    written = json.loads(config.to_json_string()) | labels
    (tmp_path / "config.json").write_text(json.dumps(written))
    found = house.Qwen2Config.from_pretrained(tmp_path)
    assert found.id2label == {0: "a", 1: "b"} and found.num_labels == 2
    assert {name: int(i) for name, i in found.label2id.items()} == {"a": 0, "b": 1}
    config.num_labels = 5
    assert len(config.id2label) == len(config.label2id) == 5
    assert config.dtype is None and config.rope_parameters["rope_theta"] == 10000.0


CHANGES = [
    {"num_hidden_layers": 1},
    {"hidden_size": 64},
    {"num_attention_heads": 8, "num_key_value_heads": 4},
    {"head_dim": 16},
    {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3},  # unfit in between
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    {"vocab_size": 120, "tie_word_embeddings": True},
    {"_attn_implementation": "eager", "output_attentions": True},
    {"use_cache": False, "output_hidden_states": True},
    {"a_field_of_ones_own": [1, {"b": None}]},
    {"rope_theta": 1e6},
    {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    {"dtype": torch.bfloat16},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
@torch.no_grad()
def test_a_config_changed_later_is_one_given_so(changes, tmp_path):
    given = build(qwen2_edu, **changes)
    config = qwen2_edu.Qwen2Config(**SMALL)
    for name, value in changes.items():
        setattr(config, name, value)
        assert getattr(config, name) == value
    assert config == given.config and copy.deepcopy(config) == config
    model = qwen2_edu.Qwen2ForCausalLM(config).eval()
    model.load_state_dict(given.state_dict())
    theirs = build(transformers, **changes)
    theirs.load_state_dict(model.state_dict())
    outs = [each(**inputs()) for each in (model, theirs)]
    close(outs[0].logits[:, 3:], outs[1].logits[:, 3:])
    for name in ("attentions", "hidden_states", "past_key_values"):
        assert (getattr(outs[0], name) is None) == (getattr(outs[1], name) is None), name
    config.save_pretrained(tmp_path)
    assert qwen2_edu.Qwen2Config.from_pretrained(tmp_path) == config


def test_lists_changed_in_place_stay_changed():
    config = qwen2_edu.Qwen2Config(
        **{**SMALL, "num_labels": 2}, id2label={0: "a", 1: "b"}, one_of_ours=[1]
    )
    config.layer_types[1], config.id2label[1] = "sliding_attention", "c"
    config.one_of_ours.append(2)
    config.use_cache = False
    assert config.layer_types == ["full_attention", "sliding_attention"]
    assert (config.id2label[1], config.one_of_ours) == ("c", [1, 2])
    config.num_hidden_layers = 1
    assert config.layer_types == ["full_attention"]
    written = transformers.Qwen2Config(**SMALL).to_dict()  # which lists the layers, as version 5
    config = qwen2_edu.Qwen2Config.from_dict(written)
    config.num_hidden_layers = 3
    assert config.layer_types == ["full_attention"] * 3


class Own(qwen2_edu.Qwen2Config):
    rank: int = 8


def test_a_config_of_ones_own():
    config = Own(**SMALL, rank=16)
    assert config.rank == config.to_dict()["rank"] == 16 and Own(**SMALL).rank == 8
    config.rank = 32
    model = qwen2_edu.Qwen2ForCausalLM.from_config(config)
    assert isinstance(model.config, Own) and model.config.rank == 32


def test_all_changes_or_none():
    config = qwen2_edu.Qwen2Config(**SMALL)
    with pytest.raises(ValueError, match="vocab_size"):
        config.update({"use_cache": False, "vocab_size": -1})
    assert config.use_cache
    for name in ("extra", "window_by_type", "check"):
        with pytest.raises(AttributeError, match=f"{name} of a Qwen2Config is no field"):
            setattr(config, name, {})
    with pytest.warns(UserWarning, match="did you mean sliding_window"):
        config.slidng_window = 7


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    for changes in ({"hidden_size": 64}, {"hidden_act": "relu"}, {"num_attention_heads": 8}):
        model = build(qwen2_edu)
        model.config.update(changes)
        with pytest.raises(ValueError, match="by the config|hidden_act|num_attention_heads"):
            model.save_pretrained(tmp_path / "x")
        assert not (tmp_path / "x").exists()
    one, other = (qwen2_edu.Qwen2ForCausalLM(model.config) for model in [build(qwen2_edu)] * 2)
    one.resize_token_embeddings(120)  # and the config of both follows
    with pytest.raises(ValueError, match="embed_tokens.weight is .120, 32., and it is .99, 32."):
        other.save_pretrained(tmp_path / "x")


@BOTH
@EACH
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_whole_model_is_pickled(house, name, attention):
    model = build(house, name, attn_implementation=attention)
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        close(again(**inputs())[0], model(**inputs())[0], 0)


def test_a_config_changed_later_is_looked_at():
    config = qwen2_edu.Qwen2Config(**SMALL)
    for name, value in {"vocab_size": -1, "num_labels": 10**9, "attn_implementation": "x"}.items():
        with pytest.raises(ValueError, match=name):
            setattr(config, name, value)
        assert config == qwen2_edu.Qwen2Config(**SMALL)
    for name, value in {"hidden_act": "gelu", "num_attention_heads": 5, "head_dim": 7}.items():
        config = qwen2_edu.Qwen2Config(**SMALL)
        setattr(config, name, value)
        with pytest.raises(ValueError, match=name):
            qwen2_edu.Qwen2Model(config)
    with pytest.raises(TypeError, match="set as a whole"):
        config.rope_parameters["rope_theta"] = 1e6
    with pytest.raises(AttributeError, match="'num_layer': did you mean num_hidden"):
        config.num_layer  # noqa: B018


@BOTH
def test_attention_is_chosen_later(house):
    model = build(house)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    assert len(model(**inputs(), output_attentions=True).attentions) == 2
    with pytest.raises(ValueError, match="foo"):
        model.set_attn_implementation("foo")
    assert model.config._attn_implementation == "eager"


@BOTH
def test_what_a_class_says_of_itself(house):
    model = build(house)
    auto = house.AutoModelForCausalLM.from_config
    half = house.Qwen2Config(**SMALL, dtype=torch.bfloat16)
    assert half.dtype == auto(half).dtype == torch.bfloat16
    eager = auto(half, dtype=torch.float32, attn_implementation="eager")
    assert eager.dtype == torch.float32 and eager.config._attn_implementation == "eager"
    assert model.can_generate() and not house.Qwen2ForTokenClassification.can_generate()
    assert model.generation_config.eos_token_id == 2 and model.generation_config.top_k is None
    assert model.config.get_text_config() is model.config and not model.config.is_encoder_decoder
    assert not model.is_gradient_checkpointing and not model.is_activation_checkpointing
    model.activation_checkpointing_enable()
    assert model.is_gradient_checkpointing and model.is_activation_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    model.add_model_tags(["trained"])
    assert model.get_decoder() is model.base_model is model.model
    numbers = sum(p.numel() for p in model.parameters())
    assert 0 <= model.get_memory_footprint() - 4 * numbers < 100 and model.vocab_size == 99
    model.config.update({"use_cache": False})
    assert model.config.use_cache is False
    assert build(house, gradient_checkpointing=True).is_gradient_checkpointing
    ids = torch.tensor([[5, 6, 7]])
    cache = model(ids[:, :2], use_cache=True).past_key_values
    one = {"next_sequence_length": 1} if house is transformers else {}
    step = model.prepare_inputs_for_generation(ids, past_key_values=cache, **one)
    assert step["input_ids"].tolist() == [[7]]
    whole = model(ids).logits[:, -1:]
    close(model(input_ids=step["input_ids"], past_key_values=cache).logits, whole, 1e-5)


@BOTH
@pytest.mark.filterwarnings("ignore")
def test_what_loading_says(house, tmp_path):
    build(house).save_pretrained(tmp_path)
    said = {"output_loading_info": True}
    model, info = house.Qwen2ForCausalLM.from_pretrained(tmp_path, **said)
    assert isinstance(model, house.Qwen2ForCausalLM) and not any(info.values())
    model, info = house.Qwen2ForTokenClassification.from_pretrained(tmp_path, **said)
    assert sorted(info["missing_keys"]) == ["score.bias", "score.weight"]
    assert sorted(info["unexpected_keys"]) == ["lm_head.weight"]
    model.save_pretrained(tmp_path)
    more = said | {"num_labels": 7, "ignore_mismatched_sizes": True}
    model, info = house.Qwen2ForTokenClassification.from_pretrained(tmp_path, **more)
    assert len(info["mismatched_keys"]) == 2 and len(model.score.weight) == 7
    assert not info["missing_keys"] and not info["unexpected_keys"]


@BOTH
def test_config_by_the_name_of_a_file(house, tmp_path):
    config = house.Qwen2Config(**SMALL)
    config.to_json_file(tmp_path / "some.json")
    assert house.Qwen2Config.from_json_file(tmp_path / "some.json").to_dict() == config.to_dict()


# -- rope and windows ------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
@torch.no_grad()
def test_rope_scaling(house, kind):
    plain = build(house)
    scaled = build(
        house, rope_parameters={"rope_type": kind, "factor": 10.0, "rope_theta": 10000.0}
    )
    scaled.load_state_dict(plain.state_dict())
    short, long = inputs(1, 10)["input_ids"], inputs(1, 90)["input_ids"]
    same = torch.allclose(plain(short)[0], scaled(short)[0], atol=1e-5)
    assert same == (kind == "dynamic")
    assert not torch.allclose(plain(long)[0], scaled(long)[0], atol=1e-5)


@BOTH
@torch.no_grad()
def test_a_window_hides_what_is_older(house):
    model = build(
        house, use_sliding_window=True, sliding_window=3, max_window_layers=0, num_hidden_layers=1
    )
    ids = inputs(1)["input_ids"]
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % 99
    a, b = model(ids)[0], model(changed)[0]
    close(a[:, 3:], b[:, 3:])
    assert not torch.allclose(a[:, 2], b[:, 2])


@BOTH
@torch.no_grad()
def test_generate_from_a_model_in_training(house):
    model = build(house).train()
    out = model.generate(
        inputs(1)["input_ids"], max_new_tokens=4, do_sample=False, eos_token_id=None
    )
    assert out.shape == (1, 11)


@BOTH
@torch.no_grad()
def test_export(house):
    model = build(house)
    ids = inputs()["input_ids"]
    program = torch.export.export(model, (ids,), {"use_cache": False}, strict=False)
    close(program.module()(ids, use_cache=False).logits, model(ids).logits)
