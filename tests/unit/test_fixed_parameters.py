"""The strongest proof: models filled without a random generator, answers recorded from elsewhere.

First they must hold; then every bug of the list, planted one at a time, must break them.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm

from qwen2_edu import Qwen2Config, Qwen2ForCausalLM
from qwen2_edu import attention as attention_module
from qwen2_edu import layers as layers_module
from qwen2_edu import masks as masks_module
from qwen2_edu.attention import eager_attention
from qwen2_edu.layers import RMSNorm
from qwen2_edu.masks import additive, visible
from qwen2_edu.rope import apply_rope

SLICES = ("tied", "sliding_window")
SLIDING_ONLY = {"window_off_by_one"}


def make(golden, backend="sdpa", **changes):
    """The model of a slice, its parameters filled by the goldens' rule."""
    model = Qwen2ForCausalLM(
        Qwen2Config(**{**golden["config"], **changes}, attn_implementation=backend)
    )
    state = model.state_dict()
    names = sorted(state)
    if golden["config"]["tie_word_embeddings"]:
        names.remove("lm_head.weight")
    for j, name in enumerate(names):
        k = torch.arange(state[name].numel(), dtype=torch.float64)
        u = torch.sin(12.9898 * k + 78.233 * (j + 1)) * 43758.5453
        u = 2 * (u - u.floor()) - 1
        if "norm" in name:
            value = 1 + 0.25 * u
        else:
            value = (0.5 if name.endswith("bias") else 0.05 if "embed" in name else 0.25) * u
        state[name].copy_(value.view_as(state[name]))
    return model.eval()


def input_ids():
    i = torch.arange(24)
    return torch.stack([(7 * i**2 + 3 * i + 1) % 128, (11 * i**2 + 5 * i + 2) % 128])


@torch.no_grad()
def check(model, golden):
    """Every recorded number that `model` misses, as text."""
    ids = input_ids()
    out = model(ids, labels=ids)
    logits = out.logits
    found = {
        "loss": (out.loss.item(), 1e-5),
        "logits_mean": (logits.mean().item(), 1e-6),
        "logits_abs_mean": (logits.abs().mean().item(), 1e-6),
        "logits_std": (logits.std().item(), 1e-6),
        "logits_0_last_first8": (logits[0, -1, :8].tolist(), 5e-6),
        "logits_1_5_first8": (logits[1, 5, :8].tolist(), 5e-6),
        "argmax_row0": (logits[0].argmax(-1).tolist(), 0),
    }
    return [
        f"{name}: {value} is not {golden[name]}"
        for name, (value, tolerance) in found.items()
        if value != pytest.approx(golden[name], abs=tolerance, rel=0)
    ]


@pytest.fixture(scope="module")
def golden(goldens):
    return goldens("fixed_parameters")


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", SLICES)
def test_forward(golden, name, backend):
    assert check(make(golden[name], backend), golden[name]) == []


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", SLICES)
def test_generation(golden, name, cache):
    model, prompt = make(golden[name]), input_ids()[:1, :8]
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}
    if cache == "static":
        options["cache_implementation"] = "static"
    new = model.generate(prompt, **options)[0, 8:]
    assert new.tolist() == golden[name]["greedy16"]
    new = model.generate(prompt, repetition_penalty=1.3, **options)[0, 8:]
    assert new.tolist() == golden[name]["greedy16_reppen1_3"]


@pytest.mark.parametrize("name", SLICES)
def test_beam_search(golden, name):
    new = make(golden[name]).generate(
        input_ids()[:1, :8], max_new_tokens=16, num_beams=3, do_sample=False, eos_token_id=None
    )
    assert new[0, 8:].tolist() == golden[name]["beam3_16"]


@pytest.mark.parametrize("name", SLICES)
def test_left_padding(golden, name):
    """The recorded difference between a padded row and the row alone is rounding; so is ours."""
    model, ids = make(golden[name]), input_ids()[:1]
    padded = torch.cat((torch.zeros(1, 5, dtype=ids.dtype), ids), dim=1)
    mask = torch.cat((torch.zeros(1, 5, dtype=ids.dtype), torch.ones_like(ids)), dim=1)
    with torch.no_grad():
        difference = (model(padded, attention_mask=mask).logits[:, 5:] - model(ids).logits).abs()
    assert difference.max() < 10 * golden[name]["left_pad_diff"]


# -- planted bugs ----------------------------------------------------------------------------------


def zero_biases(*names):
    def plant(model, patch):
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") and name.split(".")[-2] in names:
                parameter.data.zero_()

    return plant


def norm_forward(forward):
    return lambda model, patch: patch.setattr(RMSNorm, "forward", forward)


def eps_outside(self, x):
    return self.weight * (x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps))


def layernorm(self, x):
    return self.weight * layer_norm(x, x.shape[-1:], eps=self.eps)


def rms_no_weight(self, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def rms_weight_plus_one(self, x):
    return (1 + self.weight) * rms_no_weight(self, x)


def rope_with(change):
    return lambda model, patch: patch.setattr(attention_module, "apply_rope", change)


def rope_interleaved(x, cos, sin):
    half = x.shape[-1] // 2
    c, s = cos[..., :half], sin[..., :half]
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * c - odd * s, even * s + odd * c), dim=-1).flatten(-2)


def attend_with(change):
    """Wrap the backend of every layer: change(q, k, v, mask, scale) -> the same, spoilt."""

    def plant(model, patch):
        for layer in model.model.layers:

            def attend(q, k, v, mask, scale, dropout=0.0, self=layer.self_attn):
                return eager_attention(*change(q, k, v, mask, scale))

            layer.self_attn.attend = attend

    return plant


def gqa_tile(q, k, v, mask, scale):
    times = q.shape[1] // k.shape[1]
    return q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1), mask, scale


def with_mask(rule):
    """Replace the causal part of the mask; a window that was there stays."""

    def change(q, k, v, mask, scale):
        B, _, T, _ = q.shape
        at = torch.arange(T)
        old = torch.zeros(B, 1, T, T) if mask is None else mask
        past = (at[None] <= at[:, None])[None, None]
        hidden_by_window = (old < -1) & past
        return q, k, v, additive(rule(at[:, None], at[None]) & ~hidden_by_window, q.dtype), scale

    return attend_with(change)


def rope_q_off_by_one(model, patch):
    calls = []

    def rotate(x, cos, sin):
        calls.append(None)
        if len(calls) % 2 == 0:  # keys come second
            return apply_rope(x, cos, sin)
        return apply_rope(x, cos.roll(-1, 2), sin.roll(-1, 2))

    patch.setattr(attention_module, "apply_rope", rotate)


def swap(first, second, where):
    def plant(model, patch):
        for layer in model.model.layers:
            block = where(layer)
            a, b = getattr(block, first), getattr(block, second)
            setattr(block, first, b)
            setattr(block, second, a)

    return plant


def scaled_embedding(model, patch):
    embedding = model.model.embed_tokens
    embedding.forward = lambda ids: nn.Embedding.forward(embedding, ids) * math.sqrt(64)


def window_off_by_one(model, patch):
    def wider(q, k, window, causal):
        return visible(q, k, None if window is None else window + 1, causal)

    patch.setattr(masks_module, "visible", wider)


def no_final_norm(model, patch):
    model.model.norm = nn.Identity()


BUGS = {
    "eps1e-5": {"rms_norm_eps": 1e-5},
    "theta1e4": {"rope_theta": 1e4},
    "eps_outside": norm_forward(eps_outside),
    "layernorm": norm_forward(layernorm),
    "rms_no_weight": norm_forward(rms_no_weight),
    "rms_w+1": norm_forward(rms_weight_plus_one),
    "embed_scale": scaled_embedding,
    "no_q_bias": zero_biases("q_proj"),
    "no_k_bias": zero_biases("k_proj"),
    "no_v_bias": zero_biases("v_proj"),
    "no_bias": zero_biases("q_proj", "k_proj", "v_proj"),
    "no_rope": rope_with(lambda x, cos, sin: x),
    "rope_interleaved": rope_with(rope_interleaved),
    "rope_q_off_by_one": rope_q_off_by_one,
    "gqa_tile": attend_with(gqa_tile),
    "scale_d": attend_with(lambda q, k, v, mask, scale: (q, k, v, mask, scale**2)),
    "scale_hidden": attend_with(lambda q, k, v, mask, scale: (q, k, v, mask, 64**-0.5)),
    "mask_strict": with_mask(lambda q, k: k < q),
    "noncausal": with_mask(lambda q, k: (k >= 0) & (q >= 0)),
    "norm_swapped": swap("input_layernorm", "post_attention_layernorm", lambda layer: layer),
    "gate_up_swapped": swap("gate_proj", "up_proj", lambda layer: layer.mlp),
    "gelu": lambda model, patch: patch.setattr(layers_module, "silu", gelu),
    "no_final_norm": no_final_norm,
    "window_off_by_one": window_off_by_one,
}


def test_every_listed_bug_is_planted(golden):
    assert set(BUGS) == set(golden["mutants_each_slice_must_catch"])


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_caught(golden, name, bug, monkeypatch):
    plant = BUGS[bug]
    with torch.no_grad():
        if isinstance(plant, dict):
            model = make(golden[name], **plant)
        else:
            model = make(golden[name])
            plant(model, monkeypatch)
    caught = check(model, golden[name])
    if name == "tied" and bug in SLIDING_ONLY:
        assert caught == []  # nothing slides in this slice
    else:
        assert len(caught) >= 3, f"{bug} went unnoticed but for {caught}"


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("harmless", ["same", "same_mask"])
def test_the_planting_itself_changes_nothing(golden, name, harmless, monkeypatch):
    model = make(golden[name])
    plants = {
        "same": attend_with(lambda *args: args),
        "same_mask": with_mask(lambda q, k: k <= q),
    }
    plants[harmless](model, monkeypatch)
    assert check(model, golden[name]) == []
