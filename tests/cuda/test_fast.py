"""`fast=True` on a GPU: steps that are recorded and replayed answer what plain ones do."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch

from qwen2_edu import (
    AutoTokenizer,
    ChatSession,
    Qwen2ForCausalLM,
    StaticCache,
)
from qwen2_edu.decoding.fast import GraphStep
from qwen2_edu.quantize import quantize

pytestmark = pytest.mark.cuda
W = 8  # the window of the mixed stack


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "seed": 3},
        {"num_beams": 3},
        {"do_sample": True, "seed": 3, "num_return_sequences": 2},
        {"repetition_penalty": 1.3, "return_dict_in_generate": True, "output_logits": True},
    ],
    ids=str,
)
def test_ids_equal_plain_steps(model_of, batch, stack, options):
    """Padded rows, past the window; what is kept of each step is not overwritten by the next."""
    model, (ids, mask) = model_of(stack).to("cuda"), (part.cuda() for part in batch)
    told = {"do_sample": False, "max_new_tokens": 2 * W, "eos_token_id": None, **options}
    plain = model.generate(ids, mask, **told)
    fast = model.generate(ids, mask, fast=True, **told)
    if "output_logits" in options:
        for a, b in zip(plain.logits, fast.logits, strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)
        plain, fast = plain.sequences, fast.sequences
    assert fast.tolist() == plain.tolist()


@pytest.mark.parametrize("kind", ["int8", "int4"])
@torch.no_grad()
def test_quantised_weights(model_of, kind):
    model = quantize(model_of("full").to("cuda"), kind)
    prompt, new = torch.randint(3, 97, (1, 9)).cuda(), torch.randint(3, 97, (6, 1, 1)).cuda()
    caches = [StaticCache(model.config, 32, "cuda") for _ in range(2)]
    for cache in caches:
        model(prompt, past_key_values=cache)
    step = GraphStep(model, caches[1])
    for token in new:
        right = model(token, past_key_values=caches[0]).logits
        torch.testing.assert_close(step(token, caches[1]).logits, right, atol=2e-4, rtol=2e-4)
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == 15


@torch.no_grad()
def test_bf16_errs_no_more_than_plain_steps(small_config, randomise):
    """A long text in 32 parts, heads of 64, a group of 7, rows that no power of two divides."""
    sizes = {"hidden_size": 448, "intermediate_size": 608, "vocab_size": 1003, "head_dim": 64}
    config = small_config(**sizes, num_attention_heads=7, num_key_value_heads=1)
    exact = randomise(Qwen2ForCausalLM(config)).bfloat16().float().to("cuda")
    rounded = Qwen2ForCausalLM(config).bfloat16().eval().to("cuda")
    rounded.load_state_dict(exact.state_dict())
    ids = torch.randint(3, 1003, (1, 2500)).cuda()
    caches = [StaticCache(config, 4096, "cuda") for _ in range(3)]
    for model, cache in zip((exact, rounded, rounded), caches, strict=True):
        model(ids, past_key_values=cache)
    right = exact(ids[:, :1], past_key_values=caches[0]).logits
    plain = rounded(ids[:, :1], past_key_values=caches[1]).logits
    fast = GraphStep(rounded, caches[2])(ids[:, :1], caches[2]).logits
    assert (fast - right).abs().mean() < 1.3 * (plain - right).abs().mean()


def test_threads_do_not_disturb_each_other(model_of):
    model, found = model_of("mixed").to("cuda"), {}
    told = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    texts = [torch.randint(3, 97, (1, n)).cuda() for n in (5, 9, 14)]
    right = [model.generate(ids, **told).tolist() for ids in texts]

    def run(i):
        found[i] = [model.generate(texts[i], fast=True, **told).tolist() for _ in range(3)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == {i: [right[i]] * 3 for i in range(3)}


def test_a_chat_grows_past_its_first_cache(small_config, randomise, recwarn):
    """Random weights, whose logits lie far apart, so that rounding decides nothing."""
    tokenizer, answers = AutoTokenizer.from_pretrained("tiny"), []
    config = small_config(vocab_size=len(tokenizer), max_position_embeddings=8192)
    model = randomise(Qwen2ForCausalLM(config)).to("cuda")
    for fast in (False, True):
        told = {"do_sample": False, "max_new_tokens": 20, "fast": fast}
        session = ChatSession(model, tokenizer, **told)
        answers.append([session.send(text) for text in ("Finn had a bottle. " * 120, "Why?") * 2])
        if fast:
            assert type(session.cache) is StaticCache and session.cache.max_length > 1024
    assert answers[0] == answers[1]
    assert not [w for w in recwarn if "no effect" in str(w.message)]


def test_a_model_that_is_no_longer_used_leaves_memory(small_config, randomise):
    model = randomise(Qwen2ForCausalLM(small_config())).to("cuda")
    model.generate(torch.randint(3, 97, (1, 7)).cuda(), fast=True, max_new_tokens=5)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
