"""The lane for a machine with a GPU (`make test-cuda`): parity, caches, generation, precision.

Without a GPU these tests fail, they do not skip: who asks for this lane wants to know.
"""

from __future__ import annotations

import json

import pytest
import torch

from qwen2_edu import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    StaticCache,
    capture,
)
from qwen2_edu.tiny import train
from qwen2_edu.training import TrainingSettings
from qwen2_edu.viz import attention_explorer

pytestmark = pytest.mark.cuda
W = 8  # the window of the mixed stack
# Mean error allowed, in standard deviations of the logits.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_logits_equal_the_cpu_in_fp32(model_of, batch, stack, backend, dtype):
    ids, mask = batch
    with torch.no_grad():
        # The same rounded weights in both: what differs is the arithmetic.
        expected = model_of(stack, backend, dtype).float()(ids, mask).logits
        model = model_of(stack, backend, dtype).to("cuda")
        logits = model(ids.cuda(), mask.cuda()).logits
    assert logits.device.type == "cuda" and logits.dtype == dtype
    difference = (logits.float().cpu() - expected)[mask.bool()].abs().mean()
    assert difference < TOLERANCE[dtype] * expected.std()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_logits_equal_transformers(model_of, batch, stack, backend):
    import transformers

    ours = model_of(stack, backend)
    config = transformers.Qwen2Config(**ours.config.to_dict(), attn_implementation=backend)
    theirs = transformers.Qwen2ForCausalLM(config)
    theirs.load_state_dict(ours.state_dict())
    ids, mask = batch
    ids, mask = ids.cuda(), mask.cuda()
    with torch.no_grad():
        a = ours.cuda()(ids, mask).logits[mask.bool()]
        b = theirs.cuda().eval()(ids, mask).logits[mask.bool()]
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_cached_steps_equal_one_pass(model_of, stack, kind):
    model = model_of(stack).to("cuda")
    ids = torch.randint(3, 97, (2, 3 * W)).cuda()
    room = {} if kind is DynamicCache else {"max_length": 3 * W, "device": "cuda"}
    cache = kind(model.config, **room)
    with torch.no_grad():
        pieces = [
            model(p, past_key_values=cache).logits for p in ids.split([5, 1, 1, W + 2, 1, 6], 1)
        ]
        whole = model(ids).logits
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"num_beams": 3}])
def test_generate_equals_the_cpu(model_of, batch, stack, options):
    ids, mask = batch
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, **options}
    expected = model_of(stack).generate(ids, attention_mask=mask, **settings)
    found = model_of(stack).to("cuda").generate(ids.cuda(), attention_mask=mask.cuda(), **settings)
    assert found.tolist() == expected.tolist()


def test_compiled_static_decoding(model_of):
    """One graph for every step: the same ids, and no compilation after the second step."""
    model = model_of("mixed").to("cuda")
    prompt = torch.randint(3, 97, (1, 7)).cuda()
    expected = model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)
    step = torch.compile(model, fullgraph=True, dynamic=False)
    cache = StaticCache(model.config, 32, device="cuda")
    with torch.no_grad():
        token = model(prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
        found = [token]
        for i in range(11):
            with torch._dynamo.config.patch(error_on_recompile=i > 1):
                token = step(token, past_key_values=cache).logits[:, -1:].argmax(-1)
            found.append(token)
    assert torch.cat(found, 1).tolist() == expected[:, 7:].tolist()


def test_capture_on_the_gpu(model_of, batch):
    model, (ids, mask) = model_of("mixed").to("cuda"), batch
    with torch.no_grad(), capture(model) as record:
        model(ids.cuda(), mask.cuda())
    assert {weights.device.type for weights in record.attentions} == {"cuda"}


def test_explorer_of_a_model_on_the_gpu():
    model = AutoModelForCausalLM.from_pretrained("tiny", device_map="cuda")
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    given = tokenizer("Finn had a pink bottle.", return_tensors="pt").to("cuda")
    shown = attention_explorer(model, tokenizer, given, max_new_tokens=3, do_sample=False)
    assert "3 generated tokens" in repr(shown)
    assert "8 layers of 8 query heads" in shown.to_html()


def test_the_recipe_of_the_shipped_checkpoint_runs(tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    monkeypatch.setattr(train, "learn_vocabulary", lambda: tokenizer)
    monkeypatch.setattr(train, "HELD_OUT", 8)
    stage = train.Stage(TrainingSettings(steps=2), tables=40, words_only=True)
    folder = train.make(
        tmp_path, stages={"copying": stage}, device="cuda", compiled=False, progress=False
    )
    log = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2] and log[-1]["held_out_loss"] < 12
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
