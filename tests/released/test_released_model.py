"""The released weights, run here: ours = transformers = llama.cpp, in every way we can compute.

Reference values come from transformers, by its own reader (see conftest), and from llama.cpp, as
recorded in tests/goldens/released_gguf.json with the engine and its settings.
"""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from qwen2_edu import Qwen2Config, Qwen2Tokenizer, StaticCache
from qwen2_edu.behaviour import find_heads
from qwen2_edu.files.gguf_model import config_fields
from qwen2_edu.files.released import fetch_released, find_released

from .bugs import BUGS
from .reference import BEAM_NEW, CHAT, NEW, PROMPTS, TEXTS, assemble, hash_of

pytestmark = pytest.mark.released
FP32 = 1e-4  # logits are of the order of 20; sums in another order differ by some 1e-5


@pytest.fixture(scope="session")
def golden(goldens):
    return goldens("released_gguf")


@pytest.fixture(scope="session")
def model(reference, model):
    """Ours, loaded when transformers has answered and is gone: that keeps the lane small."""
    return model


def logits_of(model, answer, **options):
    """Logits at the positions that chose the continuation, (n, V), as those of the answer."""
    with torch.no_grad():
        return model(answer.ids[:, :-1], logits_to_keep=len(answer.greedy), **options).logits[0]


# -- the file --------------------------------------------------------------------------------------


def test_the_file_is_the_released_one(released_file, file, golden):
    assert fetch_released(progress=False) == find_released() == released_file
    assert released_file.stat().st_size == golden["bytes"]
    found = [stored.format.name for stored in file.tensors.values()]
    assert {name: found.count(name) for name in set(found)} == golden["tensors"]["by_type"]
    assert sum(math.prod(s.shape) for s in file.tensors.values()) == golden["parameters"]


def test_every_number_is_theirs(model, reference):
    """630 million of them, bit for bit: 291 tensors, unpacked by the `gguf` package for them."""
    assert {
        name: hash_of(tensor) for name, tensor in model.state_dict().items()
    } == reference.hashes
    assert len(reference.hashes) == 291


MEASURE = r"""
import re, sys, torch
from qwen2_edu.files.gguf import GGUFFile
peak = lambda: 1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
before = peak()
tensors = GGUFFile(sys.argv[1]).read_all(dtype=torch.bfloat16)
print((peak() - before) / sum(tensor.nbytes for tensor in tensors.values()))
"""


def test_reading_takes_the_memory_of_the_result(released_file):
    command = [sys.executable, "-c", MEASURE, str(released_file)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(result.stdout) < 1.1


def test_config(file, golden, reference):
    fields = config_fields(file)
    assert {name: fields[name] for name in golden["config"]} == golden["config"]
    ours = Qwen2Config.from_dict(fields).to_dict()
    same = set(ours) & set(reference.config) - {"rms_norm_eps", "torch_dtype", "architectures"}
    assert {"vocab_size", "hidden_size", "eos_token_id", "pad_token_id", "bos_token_id"} <= same
    theirs = {name: reference.config[name] for name in same}
    for name in ("max_window_layers", "sliding_window"):  # of no effect where nothing slides
        theirs[name] = ours[name]
    assert {name: ours[name] for name in same} == theirs
    assert ours["rope_theta"] == reference.config["rope_parameters"]["rope_theta"]
    assert ours["rms_norm_eps"] == pytest.approx(reference.config["rms_norm_eps"], rel=1e-7)


def test_tokenizer(tokenizer, golden, reference):
    for text, ids in reference.tokens.items():
        assert tokenizer(text).input_ids == ids, text
    assert list(reference.tokens) == TEXTS
    assert tokenizer.special_tokens_map == reference.tokenizer["special_tokens_map"]
    assert tokenizer.chat_template == reference.tokenizer["chat_template"]
    added = {
        i: (t.content, t.special, t.normalized) for i, t in tokenizer.added_tokens_decoder.items()
    }
    assert added == reference.tokenizer["added"]
    kinds = {int(i): (t["content"], t["gguf_type"] == 3) for i, t in golden["added_tokens"].items()}
    assert {i: token[:2] for i, token in added.items()} == kinds


def test_vocabulary_is_the_released_one(tokenizer):
    released = Qwen2Tokenizer.from_pretrained("qwen2")
    assert tokenizer.vocab == released.vocab and tokenizer.merges == released.merges


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(tokenizer, reference, name):
    """Cutting by our tokenizer, with special tokens and the chat template, gives their ids."""
    prompt = PROMPTS[name]
    if prompt is CHAT:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)
        ids = getattr(ids, "input_ids", ids)
    else:
        ids = tokenizer(prompt).input_ids
    assert list(ids) == reference.answers[name].prompt.tolist()


# -- the model is transformers' --------------------------------------------------------------------


@pytest.mark.parametrize("name", PROMPTS)
def test_logits(model, reference, name):
    answer = reference.answers[name]
    ours = logits_of(model, answer)
    assert (ours - answer.logits).abs().max() <= FP32
    assert ours.argmax(-1).tolist() == answer.greedy.tolist()


@pytest.fixture(scope="session")
def generated(model, tokenizer, reference):
    """Our greedy continuation of all prompts, in one left-padded batch: rows of new ids."""
    tokenizer.padding_side = "left"
    rows = [answer.prompt.tolist() for answer in reference.answers.values()]
    T = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (T - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows])
    new = model.generate(ids, mask, max_new_tokens=NEW, do_sample=False)[:, T:]
    return dict(zip(PROMPTS, new.tolist(), strict=True))


@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_ids_in_a_left_padded_batch(generated, reference, tokenizer, name):
    greedy = reference.answers[name].greedy.tolist()
    rest = [tokenizer.pad_token_id] * (NEW - len(greedy))  # after the end token
    assert generated[name] == greedy + rest


def test_left_padding_changes_nothing(model, reference):
    answer = reference.answers["code"]
    pads = torch.full((1, 7), 151643)
    padded, mask = (
        torch.cat((pads, answer.ids[:, :-1]), 1),
        torch.ones(1, 7 + answer.ids.shape[1] - 1),
    )
    mask[:, :7] = 0
    with torch.no_grad():
        logits = model(padded, mask.long(), logits_to_keep=NEW).logits[0]
    assert (logits - answer.logits).abs().max() <= FP32


@pytest.mark.parametrize("cache", ["dynamic", "static", "chunks"])
def test_a_cache_gives_the_logits_of_the_whole(model, reference, cache):
    """One token at a time, or in pieces; what comes out is what transformers computes at once."""
    answer, steps = reference.answers["Chinese"], 12
    ids = answer.ids[:, : len(answer.prompt) + steps - 1]
    T = ids.shape[1]
    cuts = [0, 3, 4, 11, T] if cache == "chunks" else [0, *range(len(answer.prompt), T + 1)]
    past = StaticCache(model.config, T) if cache == "static" else None
    logits = []
    with torch.no_grad():
        for start, end in zip(cuts, cuts[1:], strict=False):
            out = model(ids[:, start:end], past_key_values=past, use_cache=True)
            past = out.past_key_values
            logits.append(out.logits[0])
    ours = torch.cat(logits)[-steps:]
    assert (ours - answer.logits[:steps]).abs().max() <= FP32


def test_a_static_cache_generates_the_same(model, reference):
    answer, steps = reference.answers["Arabic"], 12
    new = model.generate(
        answer.prompt[None], max_new_tokens=steps, do_sample=False, cache_implementation="static"
    )
    assert new[0, len(answer.prompt) :].tolist() == answer.greedy[:steps].tolist()


def test_beam_search(model, reference):
    prompt = reference.answers["prose"].prompt[None]
    new = model.generate(prompt, max_new_tokens=BEAM_NEW, num_beams=3, do_sample=False)
    assert new[0, prompt.shape[1] :].tolist() == reference.beam


@pytest.mark.parametrize("name", ["chat", "code"])
def test_eager_attention(model, reference, name):
    config = Qwen2Config.from_dict(model.config.to_dict(), attn_implementation="eager")
    eager, answer = assemble(config, model.state_dict()), reference.answers[name]
    assert (logits_of(eager, answer) - answer.logits).abs().max() <= FP32


@pytest.fixture(scope="module")
def rounded(file):
    """Ours with its weights in bfloat16."""
    config = Qwen2Config.from_dict(config_fields(file))
    return assemble(config, file.read_all(dtype=torch.bfloat16))


def test_bfloat16(rounded, reference):
    """Rounding the weights to 8 bits moves logits by tenths, and keeps nearly every choice."""
    answer = reference.answers["code"]
    ours = logits_of(rounded, answer).float()
    assert (ours.argmax(-1) == answer.greedy).float().mean() >= 0.9
    assert FP32 < (ours - answer.logits).abs().mean() < 0.5


@pytest.mark.parametrize("name", ["prose", "code"])
def test_fast_bfloat16_chooses_as_plain_but_for_ties(rounded, reference, name):
    """200 tokens by the kernels: each is the plain model's first choice, or ties with it within two
    steps of a bfloat16 of that size (8 bits: the two differ in where they round).
    """
    ids = rounded.generate(
        reference.answers[name].prompt[None], max_new_tokens=200, min_new_tokens=200, fast=True
    )
    with torch.no_grad():
        logits = rounded(ids[:, :-1], logits_to_keep=200).logits[0].float()  # (200, V)
    logits[:, rounded.config.eos_token_id] = -math.inf
    chosen = logits.gather(1, ids[0, -200:, None])[:, 0]
    best = logits.amax(-1)
    step = 2.0 ** (best.abs().log2().floor() - 7)
    assert ((best - chosen) / step).max() <= 2
    assert (best == chosen).float().mean() >= 0.9


# -- the model is llama.cpp's ----------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_llama_cpp(model, tokenizer, golden, number):
    """Its log-probabilities of the eight likeliest tokens, at 24 steps, on the same tensors."""
    case = golden["dequantised_fp32"]["cases"][number]
    prompt = tokenizer(case["prompt"]).input_ids
    ids = torch.tensor([prompt + case["tokens"][:-1]])
    with torch.no_grad():
        logits = model(ids, logits_to_keep=len(case["tokens"])).logits[0]
    ours = logits.log_softmax(-1)
    for at, top in enumerate(case["top8"]):
        for token_id, log_probability in top:
            assert ours[at, token_id].item() == pytest.approx(log_probability, abs=1e-3)
    logits[:, [151643, 151645]] = -math.inf  # it was told never to end
    assert logits.argmax(-1).tolist() == case["tokens"]
    assert tokenizer.decode(case["tokens"]) == case["text"]


def test_heads_that_nobody_led(model):
    """What lesson 14 says of this model, beside the small one whose first heads were led."""
    found = find_heads(model)
    best = {name: found.best(name) for name in ("previous_token", "induction", "first_token")}
    assert {name: (head.layer, head.head, round(head.score, 2)) for name, head in best.items()} == {
        "previous_token": (8, 7, 0.93),
        "induction": (16, 2, 0.94),
        "first_token": (11, 13, 0.83),
    }


# -- planted bugs ----------------------------------------------------------------------------------

# These two do something else to the last token of a pass, so that one pass over a whole text is not
# what writing it token by token computes.
NOT_IN_ONE_PASS = ("noncausal", "rope_q_off_by_one")


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(model, reference, goldens, bug, monkeypatch):
    """Each moves the logits by far more than rounding does. Five leave 48 tokens of code as they
    were: who looks at the text alone does not see them.
    """
    plant, answer = BUGS[bug], reference.answers["code"]
    changes = plant if isinstance(plant, dict) else {}
    config = Qwen2Config.from_dict(model.config.to_dict() | changes)
    # Matrices are shared with the sound model; vectors, some of which are set to 0, are copied.
    tensors = {n: t.clone() if t.ndim == 1 else t for n, t in model.state_dict().items()}
    spoilt = assemble(config, tensors)
    if not changes:
        plant(spoilt, monkeypatch)
    logits = logits_of(spoilt, answer)
    largest = (logits - answer.logits).abs().max().item()
    others = (logits.argmax(-1) != answer.greedy).nonzero().flatten().tolist()
    recorded = goldens("released_bugs")["bugs"][bug]["code"]
    assert largest > 100 * FP32
    assert largest == pytest.approx(recorded["largest"], rel=0.02)
    if bug not in NOT_IN_ONE_PASS:
        assert (others[0] if others else None) == recorded["first"]


def test_bugs_that_a_text_does_not_show(goldens):
    """One of them shows in none of six texts of 48 tokens, each of them in the logits."""
    bugs = goldens("released_bugs")["bugs"]
    assert bugs.keys() == BUGS.keys()
    silent = {bug for bug, row in bugs.items() if row["code"]["first"] is None}
    assert silent == {"eps1e-5", "eps_outside", "layernorm", "tied_head", "untied_embedding"}
    everywhere = {
        bug for bug in silent if all(cell["first"] is None for cell in bugs[bug].values())
    }
    assert everywhere == {"eps_outside"}
