"""The kernels and the fast step: what they compute, beside torch; when they stand aside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear

from qwen2_edu import DynamicCache, Qwen2ForCausalLM, StaticCache, capture, kernels
from qwen2_edu.decoding.fast import FastStep, why_slow
from qwen2_edu.layers import RMSNorm
from qwen2_edu.quantize import quantize, round_int4, round_int8, unpack

needs_kernels = pytest.mark.skipif(bool(kernels.why_not()), reason=kernels.why_not() or "built")
W = 8
STACKS = {
    "full": {},
    "mixed": {"use_sliding_window": True, "sliding_window": W, "max_window_layers": 1},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
}
# Largest error allowed, in standard deviations of what is right: sums are taken in other orders,
# and beside 4-bit weights the input is rounded to 8 bits.
CLOSE = {"float32": 1e-5, "bfloat16": 0.02, "int8": 1e-3, "int4": 0.05}


@pytest.fixture(scope="module")
def model_of(small_config, randomise):
    def make(stack="full", dtype=torch.float32, kind=None, **changes):
        sizes = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 16}
        model = randomise(Qwen2ForCausalLM(small_config(**sizes, **STACKS[stack], **changes)))
        model.to(dtype)
        return model if kind is None else quantize(model, kind)

    return make


def matrix(kind, N, K):
    """A matrix as the kernel takes it: weights, scales; and the same as torch has it."""
    whole = torch.randn(N, K)
    if kind in ("int8", "int4"):
        packed = {"int8": round_int8, "int4": round_int4}[kind](whole)
        return packed[0], packed[1], unpack(*packed)
    whole = whole.to(getattr(torch, kind))
    return whole, None, whole


@needs_kernels
@pytest.mark.parametrize("M", [1, 2, 5, 9])
@pytest.mark.parametrize("K", [32, 96, 160, 896])
@pytest.mark.parametrize("kind", CLOSE)
def test_products(kind, K, M):
    dtype = torch.float32 if kind != "bfloat16" else torch.bfloat16
    x, bias = torch.randn(1, M, K).to(dtype), torch.randn(40).to(dtype)
    weight, scales, whole = matrix(kind, 40, K)
    out = torch.ops.qwen2_edu.linear(x, [weight], [scales], [bias])
    right = linear(x.double(), whole.double(), bias.double())
    assert out.shape == (1, M, 40) and out.dtype == dtype
    assert (out - right).abs().max() < CLOSE[kind] * right.std()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_matrices_after_a_norm(dtype):
    """As the modules do it, of rows that do not lie one behind the other, too."""
    x = torch.randn(2, 6, 64).to(dtype)[:, ::2]
    a, b, bias = (torch.randn(size).to(dtype) for size in ((40, 64), (8, 64), 8))
    norm = RMSNorm(64, 1e-5).to(dtype)
    norm.weight.data.normal_()
    right = torch.cat((linear(norm(x), a), linear(norm(x), b, bias)), -1)
    lists = [a, b], [None, None], [None, bias]
    out = torch.ops.qwen2_edu.linear(x, *lists, norm.weight, norm.eps)
    close = {torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    assert (out - right).abs().max() <= close * right.std()


@needs_kernels
def test_a_matrix_that_does_not_fit_is_refused():
    with pytest.raises(RuntimeError, match="does not fit 64 features"):
        torch.ops.qwen2_edu.linear(torch.randn(1, 64), [torch.randn(8, 32)], [None], [None])


@needs_kernels
def test_rows_do_not_depend_on_their_neighbours():
    """Speculation reads several tokens where plain decoding reads one: the same bits."""
    for kind in ("bfloat16", "int8", "int4"):
        weight, scales, _ = matrix(kind, 40, 896)
        x = torch.randn(7, 896, dtype=torch.bfloat16)
        run = lambda x, m=(weight, scales): torch.ops.qwen2_edu.linear(  # noqa: E731
            x, [m[0]], [m[1]], [None]
        )
        assert torch.equal(run(x), torch.cat([run(row) for row in x.split(1)])), kind


@needs_kernels
def test_it_compiles_and_leaves_small_numbers():
    weight, scales, whole = matrix("int8", 40, 64)

    def product(x):
        return torch.ops.qwen2_edu.linear(x, [weight], [scales], [None]) * 2

    x = torch.randn(1, 64)
    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), product(x))
    assert torch.tensor(1e-40) * 0.5 != 0  # the library was not linked to flush them


# -- the step --------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", [None, "int8"])
@pytest.mark.parametrize("stack", STACKS)
@torch.no_grad()
def test_step_equals_the_model(model_of, stack, kind, static):
    """Left padding, one token and several, far past the window."""
    model = model_of(stack, kind=kind)
    step = FastStep(model)
    ids = torch.randint(3, 97, (3, 3 * W))
    mask = torch.arange(3 * W) >= torch.tensor([0, 5, W + 3])[:, None]
    caches = [
        StaticCache(model.config, 64) if static else DynamicCache(model.config) for _ in range(2)
    ]
    for cache in caches:
        model(ids, mask, past_key_values=cache)
    for T in (1, 1, 3, 1, 4, 1):
        new = torch.randint(3, 97, (3, T))
        right = model(new, past_key_values=caches[0]).logits
        out = step(new, past_key_values=caches[1]).logits
        assert (out - right).abs().max() < {None: 1e-4, "int8": 5e-3}[kind] * right.std()
    assert caches[0].get_seq_length() == caches[1].get_seq_length()


@needs_kernels
@torch.no_grad()
def test_biases_and_norms_that_are_not_usual(model_of):
    """The step takes what the modules have, wherever they have it."""
    model = model_of()
    layer, ids = model.model.layers[0], torch.randint(3, 97, (1, 6))
    parts = layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.down_proj, model.lm_head
    for part in parts:
        part.bias = torch.nn.Parameter(torch.randn(len(part.weight)))
    layer.post_attention_layernorm.eps, model.model.norm.eps = 0.5, 2.0
    caches = DynamicCache(model.config), DynamicCache(model.config)
    right, out = model(ids, past_key_values=caches[0]), FastStep(model)(ids, caches[1])
    torch.testing.assert_close(out.logits, right.logits, rtol=1e-4, atol=1e-4)


@needs_kernels
@torch.no_grad()
def test_step_in_bf16(model_of):
    model = model_of(dtype=torch.bfloat16)
    ids, step = torch.randint(3, 97, (1, 20)), FastStep(model)
    caches = DynamicCache(model.config), DynamicCache(model.config)
    for cache in caches:
        model(ids, past_key_values=cache)
    right = model.float()(torch.cat((ids, ids[:, :1]), 1)).logits[:, -1]
    model.bfloat16()
    plain = model(ids[:, :1], past_key_values=caches[0]).logits[:, -1]
    fast = step(ids[:, :1], past_key_values=caches[1]).logits[:, -1]
    assert (fast - right).abs().mean() < 1.3 * (plain - right).abs().mean()


def test_it_says_why_not(model_of):
    model = model_of()
    if not kernels.why_not():
        assert why_slow(model) == ""
    assert why_slow(model.train()) == "the model is in training mode"
    model.eval()
    with capture(model):
        assert why_slow(model) == "somebody watches the attention maps"
    handle = model.model.layers[1].register_forward_hook(lambda *_: None)
    assert why_slow(model) == "model.layers.1 has hooks, which would not be called"
    handle.remove()
    model.model.norm.forward = lambda x: x
    assert why_slow(model).startswith("model.norm has hooks")
    del model.model.norm.forward
    model.lm_head = torch.nn.Sequential()
    model.lm_head.__class__ = type("Mine", (torch.nn.Sequential,), {"__module__": "elsewhere"})
    assert why_slow(model) == "lm_head is a Mine"
    assert why_slow(model_of(dtype=torch.float16)) == "there are no kernels for torch.float16"


# -- building --------------------------------------------------------------------------------------

BUILD = "from qwen2_edu import kernels; print(repr(kernels.why_not()))"


def build(home, **environment):
    """What a fresh process says, with its libraries in `home`."""
    root = Path(kernels.__file__).parents[2]
    env = {**os.environ, "TORCH_EXTENSIONS_DIR": str(home), "PYTHONPATH": str(root), **environment}
    run = [sys.executable, "-c", BUILD]
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_compiler(tmp_path):
    said = build(tmp_path, PATH=str(tmp_path), CXX="")
    assert said == "'no C++ kernels: there is no C++ compiler on the PATH (c++, g++ or clang++)'"


@needs_kernels
def test_what_is_broken_is_not_used(tmp_path):
    """A library cut off, and one changed, are passed over; the whole one is taken."""
    kept = tmp_path / "qwen2_edu"
    kept.mkdir()
    whole = next(kernels.home().glob("*.so"))
    for path in kernels.home().glob("*.so"):
        (kept / path.name).write_bytes(path.read_bytes()[:-1])
    stand_in = tmp_path / "c++"
    stand_in.write_text(
        "#!/bin/sh\necho 'gemv.cpp:1: error: this compiler is of no use' >&2; exit 1\n"
    )
    stand_in.chmod(0o755)
    said = build(tmp_path, CXX=str(stand_in))
    assert said.endswith("fails: gemv.cpp:1: error: this compiler is of no use'")
    for path in kernels.home().glob("*.so"):
        (kept / path.name).write_bytes(path.read_bytes())
    assert whole.exists() and build(tmp_path, CXX=str(stand_in)) == "''"
