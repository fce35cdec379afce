"""What is no argument of a public call is refused by its name: TypeError or ValueError, raised here
and not somewhere in Python or torch.
"""

from __future__ import annotations

import importlib
import inspect
import re
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

import qwen2_edu
from qwen2_edu import (
    ChatSession,
    DynamicCache,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
    attention,
    behaviour,
    bpe,
    causes,
    chat,
    compare,
    costs,
    generation,
    heads,
    hub,
    layers,
    masks,
    packing,
    quantize,
    released_config,
    rope,
    sampling,
    training,
)

CHECKS = qwen2_edu.checks.__file__
OBJECT = object()
LISTED, NAMED = [OBJECT], {"a": OBJECT}
WRONG = [OBJECT, LISTED, 3.5, b"x", NAMED]
# What may be so all the same: a number for a number, bytes for a list of integers.
NUMBERS = (
    "tolerance temperature min_p rope_theta repetition_penalty max_time length_penalty penalty t p "
    "limit eps cos sin tokens".split()
)
RIGHT = dict.fromkeys(NUMBERS, 3.5) | dict.fromkeys(
    ("ids_", "before", "after", "token", "piece"), b"x"
)
RIGHT |= {
    "messages": 3.5,
    "config_": NAMED,
    "activation_checkpointing_kwargs": NAMED,
    "input_ids": LISTED,
    **dict.fromkeys(("fields", "values", "extra"), NAMED),
}
IDS = torch.tensor([[3, 4, 5]])
SMALL = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "pad_token_id": 0}
HEADS = "ForCausalLM ForSequenceClassification ForTokenClassification ForQuestionAnswering".split()
CONFIG_CALLS = ("hidden_size", "rope_theta", "layer_types", "num_labels", "attn_implementation")
LOADING = """dtype device attn_implementation verify torch_dtype mmap quantize
ignore_mismatched_sizes revision cache_dir local_files_only gguf_file config""".split()
SETTINGS = """do_sample temperature top_k top_p min_p repetition_penalty no_repeat_ngram_size
max_new_tokens max_length min_new_tokens min_length max_time stop_strings num_beams length_penalty
early_stopping num_return_sequences seed cache_implementation use_cache return_dict_in_generate
output_scores attention_mask past_key_values inputs_embeds generation_config vocab_limit generator
bad_words_ids eos_token_id pad_token_id bos_token_id remove_invalid_values output_attentions
prompt_lookup_num_tokens tokenizer fast assistant_model logits_processor stopping_criteria streamer
input_ids""".split()
FORWARD = "attention_mask position_ids past_key_values inputs_embeds labels logits_to_keep".split()
READING = """is_split_into_words return_offsets_mapping return_special_tokens_mask padding
truncation split_special_tokens padding_side max_length pad_to_multiple_of return_tensors""".split()
HUGE = """eos_token_id pad_token_id bos_token_id bad_words_ids seed top_k no_repeat_ngram_size
max_new_tokens max_length min_new_tokens min_length num_beams num_return_sequences vocab_limit
prompt_lookup_num_tokens max_time temperature length_penalty repetition_penalty""".split()
PARTS = "bos_token eos_token unk_token pad_token".split()
MAKING = [*PARTS, "vocab", "merges", "added_tokens", "additional_special_tokens", "before", "after"]
MAKING += ["padding_side", "truncation_side"]


@pytest.fixture(scope="module")
def things():
    """A model of each kind, and a tokenizer that may be spoilt."""
    config = Qwen2Config(**SMALL)
    found = {head: getattr(qwen2_edu, f"Qwen2{head}")(config) for head in HEADS}
    found["tokenizer"] = qwen2_edu.AutoTokenizer.from_pretrained("tiny")
    found["tiny"] = qwen2_edu.AutoModelForCausalLM.from_pretrained("tiny")
    found |= dict.fromkeys(("model", "model_a", "model_b"), found["ForCausalLM"])
    found |= dict.fromkeys(("trace", "source"), causes.follow(found["model"], IDS))
    found["settings"] = training.TrainingSettings(steps=1)
    return found


def model(name, head="ForCausalLM"):
    return lambda t, x: getattr(t[head], name)(x)


def text(name):
    return lambda t, x: getattr(t["tokenizer"], name)(x)


HI = [{"role": "user", "content": "Hi"}]
CALL = {"role": "assistant", "content": ""}


def talk(t, messages):
    session = ChatSession(t["tiny"], t["tokenizer"])
    session.messages = messages
    return session


load = qwen2_edu.AutoModelForCausalLM.from_pretrained
# What is called: "where argument" -> a function of the things and a wrong value.
CALLS = {
    "resize new_num_tokens": model("resize_token_embeddings"),
    "save save_directory": model("save_pretrained"),
    "embed embeddings": model("set_input_embeddings"),
    "head head": model("set_output_embeddings"),
    "init part": model("init_weights"),
    "checkpoint activation_checkpointing_kwargs": model("activation_checkpointing_enable"),
    "load name_or_path": lambda t, x: load(x),
    "shards size": lambda t, x: t["ForCausalLM"].save_pretrained("nowhere", x),
    "resolve kind": lambda t, x: hub.resolve("tiny", x),
    "tokenizer name_or_path": lambda t, x: type(t["tokenizer"]).from_pretrained(x),
    "generation name_or_path": lambda t, x: GenerationConfig.from_pretrained(x),
    "session model": lambda t, x: ChatSession(x, t["tokenizer"]),
    "session tokenizer": lambda t, x: ChatSession(t["tiny"], x),
    "session system": lambda t, x: ChatSession(t["tiny"], t["tokenizer"], x),
    **{
        f"session {name}": lambda t, x, name=name: ChatSession(
            t["tiny"], t["tokenizer"], **{name: x}
        )
        for name in "fast generator vocab_limit assistant_model logits_processor".split()
    },
    "session messages": lambda t, x: talk(t, x).send("Hi"),
    "batch batch_index": lambda t, x: t["tokenizer"]([["a"]], is_split_into_words=True).word_ids(x),
    "batch device": lambda t, x: t["tokenizer"]("a", return_tensors="pt").to(x),
    "stream token_id": lambda t, x: t["tokenizer"].stream_decoder().push(x),
    "call tool_calls": lambda t, x: chat.render_chatml({**CALL, "tool_calls": x}),
    "call tool call": lambda t, x: chat.render_chatml({**CALL, "tool_calls": [{"function": x}]}),
    "call in a template, tool call": lambda t, x: t["tokenizer"].apply_chat_template(
        [{**CALL, "tool_calls": [{"function": {"name": x, "arguments": {}}}]}]
    ),
    "config num_labels ": lambda t, x: setattr(Qwen2Config(**SMALL), "num_labels", x),
    "session text": lambda t, x: ChatSession(t["tiny"], t["tokenizer"]).send(x),
    "capture model": lambda t, x: qwen2_edu.capture(x),
    "class config": lambda t, x: qwen2_edu.Qwen2ForCausalLM(x),
    "config fields": lambda t, x: Qwen2Config(x),
    "config fields ": lambda t, x: Qwen2Config.from_dict(x),
    "config path": lambda t, x: Qwen2Config.from_json_file(x),
    "config name_or_path": lambda t, x: Qwen2Config.from_pretrained(x),
    "config directory": lambda t, x: Qwen2Config(**SMALL).save_pretrained(x),
    "config name": lambda t, x: released_config(x),
    "settings values": lambda t, x: GenerationConfig.from_dict(x),
    "settings folder": lambda t, x: GenerationConfig().save_pretrained(x),
    "cache config": lambda t, x: DynamicCache(x),
    "static config": lambda t, x: StaticCache(x, 8),
    "static max_length": lambda t, x: StaticCache(Qwen2Config(**SMALL), x),
    "static device": lambda t, x: StaticCache(Qwen2Config(**SMALL), 8, x),
    "cache length": lambda t, x: DynamicCache(Qwen2Config(**SMALL)).crop(x),
    "cache rows": lambda t, x: DynamicCache(Qwen2Config(**SMALL)).reorder(x),
    "cache kind": lambda t, x: DynamicCache(Qwen2Config(**SMALL)).key_positions(x),
    "read text": text("__call__"),
    "encode text": text("encode"),
    "tokenize text": text("tokenize"),
    "decode ids": text("decode"),
    "decode ids ": text("batch_decode"),
    "pad input_ids": lambda t, x: t["tokenizer"].pad({"input_ids": x}),
    "pad input": text("pad"),
    "tokens ids_": text("convert_ids_to_tokens"),
    "ids tokens": text("convert_tokens_to_ids"),
    "string tokens": text("convert_tokens_to_string"),
    "add new_tokens": text("add_tokens"),
    "special special_tokens_dict": text("add_special_tokens"),
    "special eos_token": lambda t, x: t["tokenizer"].add_special_tokens({"eos_token": x}),
    "save tokenizer save_directory": text("save_pretrained"),
    "save vocabulary save_directory": text("save_vocabulary"),
    "save prefix filename_prefix": lambda t, x: t["tokenizer"].save_pretrained("nowhere", x),
    "chat message": text("apply_chat_template"),
    "render message": lambda t, x: chat.render_chatml(x),
    "check message": lambda t, x: chat.check_messages(x),
    "chat role": lambda t, x: t["tokenizer"].apply_chat_template([{"role": x, "content": "Hi"}]),
    "chat messages": lambda t, x: t["tokenizer"].apply_chat_template(
        [{"role": "user", "content": x}]
    ),
    "chat tools": lambda t, x: t["tokenizer"].apply_chat_template(HI, tools=x),
    "chat template": lambda t, x: t["tokenizer"].apply_chat_template(HI, chat_template=x),
    "chat max_length": lambda t, x: t["tokenizer"].apply_chat_template(HI, max_length=x),
}
for name in PARTS:
    CALLS[f"set {name}"] = lambda t, x, name=name: setattr(t["tokenizer"], name, x)
CALLS["load device "] = lambda t, x: load("tiny", device_map=x)
for name in LOADING:
    CALLS[f"load {name}"] = lambda t, x, name=name: load("tiny", **{name: x})
CALLS["make config_"] = lambda t, x: type(t["tokenizer"])(t["tokenizer"].vocab, config=x)
for name in MAKING:
    CALLS[f"make {name}"] = lambda t, x, name=name: type(t["tokenizer"])(
        **{"vocab": t["tokenizer"].vocab, name: x}
    )
for name in CONFIG_CALLS:
    CALLS[f"config {name}"] = lambda t, x, name=name: Qwen2Config(**{**SMALL, name: x})
for name in READING:
    CALLS[f"read {name}"] = lambda t, x, name=name: t["tokenizer"](
        ["a b", "c"], **{"padding": True, name: x}
    )
for name in SETTINGS:
    CALLS[f"generate {name}"] = lambda t, x, name=name: t["ForCausalLM"].generate(
        **{"input_ids": IDS, "do_sample": name != "num_beams", name: x}
    )
for name in "temperature top_k eos_token_id stop_strings bad_words_ids seed extra".split():
    CALLS[f"settings {name}"] = lambda t, x, name=name: GenerationConfig.from_dict({name: x})
    CALLS[f"settings  {name}"] = lambda t, x, name=name: GenerationConfig(**{name: x})
# What looks inside, learns and packs: of each call the arguments that are right, one after another
# exchanged for a wrong one.
LOGITS, MAPS, TALK = torch.zeros(1, 300), torch.full((1, 2, 3, 3), 0.5), [[{"role": "user"}]]
BYTES = {bytes([byte]): byte for byte in range(256)}
CONFIG, BATCH = Qwen2Config(**SMALL), {"input_ids": IDS, "labels": IDS}
STEP, SEEN = training.TrainingSettings(steps=1), {"logits": LOGITS, "labels": torch.tensor([3])}
ROWS_OF = {"rows": {"input_ids": torch.arange(12).view(4, 3)}, "batch_size": 2}
MEASURES = "entropy to_first_token previous_token reach".split()
EDIT = {"trace": None, "layer": 0, "head": 0}
WHOLE = {
    causes.follow: {"model": None, "input_ids": IDS},
    causes.attribution: {"trace": None, "token_id": 3, "position": -1},
    causes.ablate: {**EDIT, "to": "zero"},
    causes.cut: {**EDIT, "query": 2, "key": 1},
    causes.patch: {"trace": None, "source": None, "layer": 0, "part": 0, "positions": [1]},
    causes.effect: {"trace": None, "edits": [], "token_id": 3, "position": -1},
    behaviour.find_heads: {"model": None, "ids": [*range(3, 90)], "rows": 2, "period": 5},
    **{getattr(behaviour, name): {"weights": MAPS} for name in MEASURES},
    behaviour.induction: {"weights": MAPS, "input_ids": IDS},
    behaviour.all_scores: {"weights": MAPS, "input_ids": IDS},
    behaviour.repeated_tokens: {"ids": [3, 4, 5], "rows": 2, "period": 2, "seed": 0},
    sampling.seen_tokens: {"input_ids": IDS, "vocab_size": 300, "attention_mask": None},
    sampling.repetition_penalty: {"logits": LOGITS, "seen": LOGITS.bool(), "penalty": 1.1},
    sampling.no_repeated_ngrams: {"logits": LOGITS, "input_ids": IDS, "n": 2},
    sampling.without: {"logits": LOGITS, "input_ids": IDS, "words": [[3]]},
    sampling.temperature: {"logits": LOGITS, "t": 0.5},
    sampling.top_k: {"logits": LOGITS, "k": 5},
    sampling.top_p: {"logits": LOGITS, "p": 0.5},
    sampling.min_p: {"logits": LOGITS, "p": 0.5},
    sampling.draw: {"logits": LOGITS, "generator": None},
    bpe.split: {"text": "a"},
    bpe.token_to_text: {"token": b"a"},
    bpe.text_to_token: {"text": "a"},
    bpe.merge: {"piece": b"ab", "ranks": BYTES, "limit": 9},
    bpe.merges_of: {"ranks": BYTES},
    bpe.ranks_of: {"merges": [(b"a", b"b")]},
    bpe.train: {"texts": ["aa"], "vocab_size": 256, "special_tokens": ["<s>"]},
    chat.render_chatml: {"messages": HI, "tools": None, "default_system": "x"},
    chat.choose_template: {"template": "{{ a }}", "own": None},
    packing.chat_documents: {"tokenizer": None, "conversations": TALK},
    costs.parameters_by_part: {"config": CONFIG},
    costs.cache_by_kind: {"config": CONFIG, "tokens": 5},
    costs.tables: {"config": CONFIG},
    training.learning_rate: {"step": 1, "settings": STEP},
    training.make_optimiser: {"model": None, "settings": STEP},
    training.counted_labels: {"model": None, "batch": BATCH},
    training.weighted_losses: {"model": None, "batches": [BATCH], "precision": "auto"},
    compare.stations: {"model": None, "input_ids": IDS},
    compare.first_not_finite: {"model": None, "input_ids": IDS},
    generation.prefill: {"model": None, "input_ids": IDS, "cache": None, "mask": None},
    generation.decode: {"model": None, "token": IDS[0], "cache": None},
    generation.generate: {"model": None, "input_ids": IDS},
    generation.stream_ids: {"model": None},
    generation.stream: {"model": None, "tokenizer": None, "input_ids": IDS},
    generation.effective_settings: {"model": None, "generation_config": None},
    quantize.round_int8: {"weight": LOGITS},
    quantize.round_int4: {"weight": LOGITS},
    quantize.unpack: {"weight": LOGITS.char(), "scales": LOGITS[:, :1]},
    masks.visible: {"query_positions": IDS, "key_positions": IDS, "window": 2, "causal": True},
    masks.additive: {"seen": IDS > 0, "dtype": torch.float32},
    masks.tokens_of_own_document: {"position_ids": IDS},
    rope.rope_frequencies: {"config": CONFIG, "length": 5},
    qwen2_edu.model.next_token_loss: {"logits": LOGITS[None], "labels": IDS, "count": 1},
    qwen2_edu.model.mean_loss: {**SEEN, "count": 1},
    heads.classification_loss: {**SEEN, "config": CONFIG, "count": 1},
    packing.pack: {"documents": [[1, 2, 3]], "length": 4, "labels": [[1, 2, 3]]},
    packing.Shuffled: {**ROWS_OF, "seed": 0},
    packing.in_order: ROWS_OF,
    training.evaluate: {"model": None, "batches": [], "precision": "auto"},
    training.train: {"model": None, "batches": [], "settings": None, "folder": None},
    compare.compare: {"model_a": None, "model_b": None, "input_ids": IDS, "tolerance": 1e-5},
    quantize.quantize: {"model": None, "kind": "int8"},
    layers.RMSNorm: {"width": 16, "eps": 1e-6},
    layers.SwiGLU: {"config": CONFIG},
    rope.RotaryEmbedding: {"config": CONFIG},
    attention.Qwen2Attention: {"config": CONFIG, "layer_idx": 0},
    qwen2_edu.model.Qwen2DecoderLayer: {"config": CONFIG, "layer_idx": 0},
}
# What runs in each layer of each step: looked at once it has failed.
X, TURN = torch.zeros(1, 3, 16), torch.ones(1, 1, 3, 8)
PIECE = {"x": X, "cos": TURN, "sin": TURN, "mask": None, "cache": None}
PAST = DynamicCache(CONFIG)
WHOLE |= {
    layers.RMSNorm(16): {"x": X},
    layers.SwiGLU(CONFIG): {"x": X},
    lambda position_ids: rope.RotaryEmbedding(CONFIG)(position_ids, X.dtype): {"position_ids": IDS},
    attention.Qwen2Attention(CONFIG, 0): PIECE,
    qwen2_edu.model.Qwen2DecoderLayer(CONFIG, 0): PIECE,
    qwen2_edu.Qwen2Model(CONFIG).forward: {"input_ids": IDS, "past_key_values": None},
    PAST.place: {"positions": IDS},
    PAST.update: {"k": TURN, "v": TURN, "layer_idx": 0},
    PAST.advance: {"tokens": 1},
}
ANYTHING_GOES = (
    "causes.patch positions",
    "packing.pack documents",
    "chat.render_chatml messages",
)
for function, right in WHOLE.items():
    what = function if hasattr(function, "__name__") else type(function)
    where = f"{what.__module__.removeprefix('qwen2_edu.')}.{what.__name__}"
    for name in right:
        if f"{where} {name}" not in ANYTHING_GOES:
            CALLS[f"{where} {name}"] = lambda t, x, f=function, r=right, n=name: f(
                **{k: t.get(k, v) for k, v in r.items()} | {n: x}
            )
for head in HEADS:
    names = ["start_positions", "attention_mask"] if "Question" in head else FORWARD
    for name in names[: None if head == "ForCausalLM" else 5]:
        CALLS[f"{head} {name}"] = lambda t, x, name=name, head=head: t[head](
            **{"input_ids": IDS, name: x}
        )


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_type_is_refused_by_name(things, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = call.split()[-1]
    for wrong in WRONG:
        if name in RIGHT and wrong is RIGHT[name]:
            continue
        with pytest.raises((TypeError, ValueError, OSError)) as caught:
            CALLS[call](things, wrong)
        said, where = str(caught.value), traceback.extract_tb(caught.tb)[-1]
        assert name.rstrip("_") in said, (wrong, said)
        assert "qwen2_edu" in Path(where.filename).parts, (wrong, said, where)
        assert "raise" in where.line, (wrong, where)
    assert not [*tmp_path.iterdir()], "something was written"


Q, K, W, M = (torch.zeros(2, *rest) for rest in ((4, 3, 8), (2, 3, 8), (4, 3, 3), (1, 3, 3)))
TWO, IDS_2, HELD = torch.zeros(2, 300), torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3)
FITTING = {  # arguments that fit: each exchanged for others that do not
    attention.attention_weights: {"q": Q, "k": K, "mask": M, "scale": 0.3},
    attention.weighted_values: {"weights": W, "v": K},
    attention.eager_attention: {"q": Q, "k": K, "v": K, "mask": M, "scale": 0.3, "dropout": 0.0},
    attention.sdpa_attention: {"q": Q, "k": K, "v": K, "mask": M, "scale": 0.3, "dropout": 0.0},
    sampling.seen_tokens: {"input_ids": IDS_2, "vocab_size": 300, "attention_mask": HELD},
    sampling.repetition_penalty: {"logits": TWO, "seen": TWO.bool(), "penalty": 1.1},
    sampling.no_repeated_ngrams: {"logits": TWO, "input_ids": IDS_2, "n": 2},
    sampling.without: {"logits": TWO, "input_ids": IDS_2, "words": [[3]]},
    sampling.temperature: {"logits": TWO, "t": 0.5},
    sampling.top_k: {"logits": TWO, "k": 5},
    sampling.top_p: {"logits": TWO, "p": 0.5},
    sampling.min_p: {"logits": TWO, "p": 0.5},
    sampling.draw: {"logits": TWO},
    masks.visible: {"query_positions": IDS_2, "key_positions": IDS_2, "window": IDS_2},
    masks.additive: {"seen": IDS_2 > 0, "dtype": torch.float32},
    masks.tokens_of_own_document: {"position_ids": IDS_2},
    qwen2_edu.model.next_token_loss: {
        "logits": Q[0],
        "labels": torch.ones(4, 3).long(),
        "count": 1,
    },
}
FITTED = [(function, name) for function, right in FITTING.items() for name in right]
DTYPES = (torch.float64, torch.float16, torch.int64, torch.bool)


@pytest.mark.parametrize("function, name", FITTED, ids=lambda x: getattr(x, "__name__", x))
def test_what_does_not_fit_is_refused_with_what_would(function, name):
    right = FITTING[function]
    function(**right)
    value, must, may = right[name], [], []
    if isinstance(value, torch.Tensor):
        strict = name not in ("attention_mask", "seen")
        must = [value.to(torch.complex64), value.sum()] if strict else []
        if sum(isinstance(x, torch.Tensor) for x in right.values()) > 1:
            must.append(value.to("meta"))
        may = [torch.cat([value] * 2, i) for i in range(value.ndim)]
        may += [value[None], value[..., None], value[0], value.flatten()]
        may += [value.to(dtype) for dtype in DTYPES]
    elif name in ("penalty", "t", "k", "p", "n", "vocab_size", "dropout"):
        must, may = [-1, 10**30, -(10**30), float("nan")], [0, 0.5, 2**40]
    for wrong in [*must, *may]:
        try:
            function(**right | {name: wrong})
        except (TypeError, ValueError) as error:
            raised = traceback.extract_tb(error.__traceback__)[-1]
            assert "qwen2_edu" in Path(raised.filename).parts and "raise" in raised.line, error
            assert re.search(" must be | do not fit | hold ", str(error)), error
        else:
            assert not any(wrong is one for one in must), (name, wrong)


def test_tensors_that_do_not_meet_are_refused_and_none_in_silence():
    more = torch.zeros(2, 2, 4, 8)
    three = torch.zeros(2, 3, 3, 8)
    for attend in (attention.eager_attention, attention.sdpa_attention):
        for given, said in (
            ((Q, K, K, M.bool()), r"mask must be torch.float32 \(B, 1, T, S\) .*S=3, not "),
            ((Q, K, more, None), r"v must be .* with B=2, .*S=3, not .* \(2, 2, 4, 8\)"),
            ((Q, three, three, None), r"k must be .* H=4, .*, not torch.float32 \(2, 3, 3, 8\)"),
        ):
            with pytest.raises(ValueError, match=f"^{said}"):
                attend(*given, 0.3)


ROWS = torch.tensor([[3, 4, 5], [6, 7, 8]])
NO_LOGITS = [None, "x", 3.5, [1.0], torch.zeros(300), torch.zeros(2, 299), torch.zeros(2, 1)]
NO_LOGITS += [torch.zeros(2, 300, dtype=torch.bool), torch.zeros(2, 300).numpy()]
NO_STOPS = [None, "x", 1, [True], torch.tensor([True]), torch.zeros(2), torch.zeros(3, 2).bool()]


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(
    "option, answer",
    [("logits_processor", x) for x in NO_LOGITS] + [("stopping_criteria", x) for x in NO_STOPS],
)
def test_a_wrong_answer_of_a_function_is_refused(things, option, answer, beams):
    wanted = "floats" if option == "logits_processor" else "bool"
    call = {option: [lambda ids, scores: answer], "num_beams": beams, "do_sample": False}
    with pytest.raises(TypeError, match=f"^{option} must answer a tensor, {wanted} .*, not "):
        things["ForCausalLM"].generate(ROWS, **call)


@pytest.mark.parametrize("huge", [10**30, -(10**30)])
@pytest.mark.parametrize("value", [lambda n: n, lambda n: [n], lambda n: [[n]]])
@pytest.mark.parametrize("name", HUGE)
def test_a_huge_number_is_refused_or_obeyed(things, name, value, huge):
    """Whatever an integer of 100 bits does, it does not overflow somewhere in torch."""
    beams = {"num_beams": 2} if name == "length_penalty" else {"do_sample": name != "num_beams"}
    try:
        things["ForCausalLM"].generate(IDS, **{"max_time": 0, **beams, name: value(huge)})
    except (TypeError, ValueError) as error:
        assert str(error).startswith(name), error


@pytest.mark.parametrize("length", [10**30, 2**31, 0, -(10**30)])
def test_a_cache_of_an_impossible_length_is_refused_when_made(length):
    with pytest.raises(ValueError, match=rf"^max_length must be from 1 to .*, not {length}$"):
        StaticCache(Qwen2Config(**SMALL), length)


@pytest.mark.parametrize("value", [OBJECT, LISTED, {"a": OBJECT}, {(1, 2): 3}, b"x"])
def test_a_field_that_no_config_file_can_hold_is_refused_when_made(value):
    with pytest.raises(TypeError, match=r"^extra must be what config.json can hold: "):
        Qwen2Config(**SMALL, extra=value)


# Functions that no check stands before: those that `resolve` and `from_pretrained` call; and one
# that answers with a failed check whatever goes wrong.
UNCHECKED = "config.parse_dtype hub.drop_neutral hub.take_options verify.checks".split()


def test_no_public_function_is_forgotten():
    bare = []
    for path in sorted(Path(qwen2_edu.__file__).parent.glob("*.py")):
        if path.stem in ("__init__", "__main__", "cli", "checks"):
            continue
        module = importlib.import_module(f"qwen2_edu.{path.stem}")
        for name, found in vars(module).items():
            own = inspect.isfunction(found) and found.__module__ == module.__name__
            if own and name[0] != "_" and found.__code__.co_filename != CHECKS:
                bare.append(f"{path.stem}.{name}")
    assert sorted(bare) == UNCHECKED


def test_a_place_that_the_text_does_not_have_is_refused(things):
    trace = things["trace"]
    for position in (3, -4, 10**30):
        for call in (
            lambda at: causes.effect(trace, [], 3, at),
            lambda at: causes.patch(trace, trace, 0, "mlp", [at]),
        ):
            with pytest.raises(ValueError, match=rf"^position must be .*\[-3, 2\], not {position}"):
                call(position)
    with pytest.raises(ValueError, match=r"^token_id must be .*\[0, 299\], not 300"):
        causes.effect(trace, [], 300)


ARRAYS = [np.array([]), np.array([1, 2]), torch.zeros(0), torch.ones(2)]
ARRAYS += [torch.ones(1, 2, device="meta")]
FLAGS = """add_generation_prompt continue_final_message tokenize return_dict padding
return_assistant_tokens_mask padding_side truncation return_tensors""".split()


@pytest.mark.parametrize("name", FLAGS)
def test_an_array_is_no_flag(things, name):
    for wrong in ARRAYS:
        with pytest.raises((TypeError, ValueError), match=rf"^{name} must be "):
            things["tokenizer"].apply_chat_template(HI, **{name: wrong})
    things["tokenizer"](["a b", "c"], padding=True, padding_side=None)  # None = its own
    with pytest.raises(TypeError, match="^tools must be "):
        things["tokenizer"].apply_chat_template(HI, tools=ARRAYS[-1])


@pytest.mark.parametrize("name", ["use_cache", "output_attentions", "output_hidden_states"])
def test_an_array_is_no_flag_of_a_pass(things, name):
    for wrong in (*ARRAYS[:4], "no", 1):
        with pytest.raises(ValueError, match=rf"^{name} must be bool . None, not "):
            things["ForSequenceClassification"](IDS, **{name: wrong})
    things["ForSequenceClassification"](IDS, **{name: np.bool_(False)})


def test_a_tensor_without_numbers_is_refused_like_any_other(things):
    meta = ARRAYS[-1]
    for name in (
        "resize new_num_tokens",
        "read text",
        "load dtype",
        "sampling.top_k k",
        "settings seed",
    ):
        with pytest.raises((TypeError, ValueError), match=name.split()[-1]):
            CALLS[name](things, meta)


COUNTS = {
    "rows": lambda n: behaviour.find_heads(Qwen2ForCausalLM(CONFIG), rows=n),
    "rows ": lambda n: behaviour.repeated_tokens(range(9), n, 3),
    "period": lambda n: behaviour.repeated_tokens(range(9), 3, n),
    "step": lambda n: training.learning_rate(n, STEP),
    "length": lambda n: packing.pack([[1, 2]], n),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_cannot_be_is_refused(name):
    for wrong in (0, -1, np.int64(-3), 10**30, -(10**30)):
        with pytest.raises(ValueError, match=f"{name.strip()}.*{wrong}"):
            COUNTS[name](wrong)


def test_whatever_number_is_a_seed():
    rows = [
        [behaviour.repeated_tokens(range(9), 2, 3, seed) for seed in (0, np.int64(3), 2**80 + 3)],
        [packing.Shuffled(ROWS_OF["rows"], 4, seed)[0]["input_ids"] for seed in (1, 10**30, -5)],
    ]
    assert torch.equal(rows[0][1], rows[0][2]) and not torch.equal(*rows[0][:2])
    assert {len(batch) for batch in rows[1]} == {4}


def test_every_item_of_shuffled_rows_depends_on_its_number_alone():
    first, later = packing.Shuffled(**ROWS_OF), packing.Shuffled(**ROWS_OF)
    assert torch.equal(first[-1]["input_ids"], (later[3], later[-1])[1]["input_ids"])


def test_an_id_is_an_id_whatever_holds_it(things):
    for one in (70, np.int64(70), torch.tensor(70)):
        assert things["tokenizer"].stream_decoder().push(one) == "g"


def test_a_precision_is_one_of_those_there_are(things):
    with pytest.raises(ValueError, match="^precision must be one of .*'bf16'.*, not 'fp8'"):
        training.evaluate(things["tiny"], [BATCH], "fp8")


@pytest.mark.parametrize("call", [behaviour.find_heads, compare.stations, causes.follow])
def test_what_is_no_model_with_heads_is_refused(call):
    ids = {} if call is behaviour.find_heads else {"input_ids": IDS}
    with pytest.raises(ValueError, match="^(model must be a causal language model, not a )?Linear"):
        call(torch.nn.Linear(2, 2), **ids)


def test_content_that_no_template_reads_is_text():
    for field, wrong in (("content", 5), ("content", [{"text": "a"}]), ("tool_calls", "abc")):
        with pytest.raises(ValueError, match=f"^message 0: {field} must be "):
            chat.render_chatml([{"role": "assistant", "content": "a", field: wrong}])
    assert chat.render_chatml(HI[0]) == chat.render_chatml(HI)


def test_a_template_is_text_from_the_moment_it_is_set(things):
    for wrong in (5, ["a"], {"default": 5}):
        with pytest.raises(ValueError, match="^chat_template must be str "):
            things["tokenizer"].chat_template = wrong


def test_a_head_speaks_for_tokens_and_places_that_there_are(things):
    trace = causes.follow(Qwen2ForCausalLM(CONFIG), IDS)
    for token, position in ((-1, -1), (300, -1), (10**30, -1), (3, 3), (3, -4), (3, 10**30)):
        with pytest.raises(ValueError, match=r"^(token_id|position) must be an integer in \["):
            causes.attribution(trace, token, position)


def test_half_a_character_is_no_token(things):
    for call in (
        lambda t: t.add_tokens("\ud800"),
        lambda t: t.add_special_tokens({"eos_token": "\ud800"}),
    ):
        with pytest.raises(ValueError, match="^lone surrogate, U\\+D800"):
            call(things["tokenizer"])


def test_a_batch_of_nothing_has_nothing_to_learn_from(things):
    with pytest.raises(ValueError, match="none of these 1 batches has a label"):
        training.evaluate(things["tiny"], [{}])


def test_arguments_that_do_not_bind_are_told_what_there_is():
    for call in (lambda: Qwen2Config(1, 2), lambda: Qwen2Config.from_json_file(), released_config):
        with pytest.raises(
            TypeError, match=r"^[\w.]+\(.*\).*: (too many|missing a) .*argument"
        ) as c:
            call()
        assert "qwen2_edu" in Path(traceback.extract_tb(c.tb)[-1].filename).parts
