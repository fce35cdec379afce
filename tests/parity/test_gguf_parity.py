"""What `save_gguf` writes, read by the two programs people take such files to.

llama.cpp keeps its activations in fp16 or 8 bits where the matrices are so, hence only an F32 file
must give our log-probabilities. Whole logits are compared with transformers, in every format.
"""

from __future__ import annotations

import json
import urllib.request

import pytest
import torch

from qwen2_edu import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from qwen2_edu.files.gguf import GGUFFile
from qwen2_edu.files.gguf_model import config_fields, save_gguf

TEXT = "Once upon a time <|im_end|>isn't 1234 café 你好\n\n  x <|im_start|>user\nЖук ok"
WHOLE = 405  # the id of "ce": a token that is text by itself
MESSAGES = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def tokenizer():
    return Qwen2Tokenizer.from_pretrained("tiny")


@pytest.fixture(scope="module")
def saved(small_config, randomise, tokenizer, tmp_path_factory):
    """`saved(dtype, **changes)` -> a small model with the tokenizer's vocabulary, and its file."""

    def make(dtype="F32", **changes):
        sizes = {"hidden_size": 96, "intermediate_size": 160, "vocab_size": 4032}
        ids = {"bos_token_id": None, "eos_token_id": 3999, "pad_token_id": 3997}
        config = small_config(**sizes, **ids, rms_norm_eps=1e-5, **changes)
        model = randomise(Qwen2ForCausalLM(config), seed=3)
        path = tmp_path_factory.mktemp("saved") / "model.gguf"
        return model, save_gguf(model, tokenizer, path, dtype)

    return make


def read(path) -> Qwen2ForCausalLM:
    """The model as our own reader has it, its quantised numbers unpacked."""
    file = GGUFFile(path)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config.from_dict(config_fields(file)))
    model.load_state_dict(file.read_all(), strict=False, assign=True)
    model.tie_weights()
    return model.eval()


@pytest.fixture
def llama():
    """`llama(path)` -> a llama.cpp that computes in fp32 on one thread."""
    import xllamacpp

    def start(path):
        options = xllamacpp.CommonParams()
        options.model.path = str(path)
        options.n_ctx, options.n_parallel, options.verbosity = 128, 1, -1
        options.fit_params = options.warmup = False
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
        options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.flash_attn_type = off
        return xllamacpp.Server(options)

    return start


def ask(server, where, **body):
    """The answer of llama.cpp's own little server, which listens on this machine alone."""
    request = urllib.request.Request(server.listening_address + where, json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@torch.no_grad()
def largest_difference(model, server, prompts) -> float:
    """In nats, over the eight likeliest next tokens of each prompt."""
    worst = 0.0
    for ids in prompts:
        ours = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        asked = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 8}
        # A token that is half a character is not answered at once, so take a whole one: what is
        # told of the likeliest is told from the logits as they were before this.
        asked |= {"logit_bias": [[WHOLE, 1000.0]], "cache_prompt": False}
        answer = server.handle_completions(asked)
        (step,) = answer["choices"][0]["logprobs"]["content"]
        assert len(step["top_logprobs"]) == 8
        for token in step["top_logprobs"]:
            worst = max(worst, abs(ours[token["id"]].item() - token["logprob"]))
    return worst


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 6, "rope_theta": 1e6},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": YARN},
    ],
    ids=["untied", "tied", "ungrouped", "linear", "yarn"],
)
def test_llama_cpp_computes_the_same(saved, llama, tokenizer, changes):
    model, path = saved(**changes)
    ids = tokenizer(TEXT).input_ids
    prompts = [ids[:n] for n in (2, 3, 5, 8, 13, 21, len(ids))] + [ids * 3]
    assert len(prompts[-1]) > 96  # past the length that yarn stretches
    assert largest_difference(model, llama(path), prompts) < 1e-4


@pytest.mark.parametrize("dtype", ["F16", "Q8_0"])
def test_llama_cpp_opens_smaller_formats(saved, llama, tokenizer, dtype):
    _, path = saved(dtype)
    prompts = [tokenizer(TEXT).input_ids[:n] for n in (3, 8, 21)]
    assert largest_difference(read(path), llama(path), prompts) < {"F16": 0.05, "Q8_0": 0.5}[dtype]


def test_llama_cpp_reads_the_tokenizer(saved, llama, tokenizer):
    server = llama(saved()[1])
    assert (
        ask(server, "/tokenize", content=TEXT, parse_special=True)["tokens"]
        == tokenizer(TEXT).input_ids
    )
    prompt = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert ask(server, "/apply-template", messages=MESSAGES)["prompt"] == prompt


@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_the_same(saved, tokenizer, dtype, tied):
    import transformers

    model, path = saved(dtype, tie_word_embeddings=tied)
    place = {"gguf_file": path.name, "local_files_only": True}
    theirs = transformers.Qwen2ForCausalLM.from_pretrained(
        path.parent, **place, dtype=torch.float32
    )
    ours = model if dtype == "F32" else read(path)
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    with torch.no_grad():
        difference = (ours(ids).logits - theirs(ids).logits).abs().max()
    assert difference < 1e-4
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **place)
    assert their_tokenizer(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert their_tokenizer.special_tokens_map == tokenizer.special_tokens_map
    added = their_tokenizer.added_tokens_decoder
    assert {i: (t.content, t.special, t.normalized) for i, t in added.items()} == {
        i: (t.content, t.special, t.normalized) for i, t in tokenizer.added_tokens_decoder.items()
    }
    assert their_tokenizer.chat_template == tokenizer.chat_template
