"""A decode step that costs what reading the weights costs.

On a CPU the step goes through the operators of `kernels/gemv.cpp`, six a block, with whatever cache
the model uses; nothing is traced, so there is nothing to wait for. On a GPU it is the model itself,
compiled once into CUDA graphs, with a cache of fixed size.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from .. import kernels
from ..attention import RECORDS
from ..cache import Cache, StaticCache
from ..checks import warn_caller
from ..quantize import FEW, GROUP, PackedLinear


class FastStep:
    """Reads a few tokens a row as `model(...)` does, on a CPU.

    Args:
        model: a Qwen2ForCausalLM for which `why_slow` answers "".
    """

    def __init__(self, model: nn.Module):
        self.model, self.trunk = model, model.model
        self.blocks = []
        for block in self.trunk.layers:
            attention, mlp = block.self_attn, block.mlp
            qkv = _Product(attention.q_proj, attention.k_proj, attention.v_proj)
            parts = qkv, _Product(attention.o_proj), _Product(mlp.gate_proj, mlp.up_proj)
            norms = block.input_layernorm, block.post_attention_layernorm
            self.blocks.append((*parts, _Product(mlp.down_proj), *norms))
        self.head = _Product(model.lm_head)

    @torch.no_grad()
    def __call__(
        self, input_ids: Tensor, past_key_values: Cache, logits_to_keep: int = 0, **options: Any
    ) -> Any:
        """As `Qwen2ForCausalLM.forward`, to which it leaves what is more than a few tokens."""
        B, T = input_ids.shape
        if B * T > FEW or any(value is not None for value in options.values()):
            options |= {"past_key_values": past_key_values, "logits_to_keep": logits_to_keep}
            return self.model(input_ids, **options)
        config, cache = self.model.config, past_key_values
        H, G, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        x = self.trunk.embed_tokens(input_ids)  # (B, T, E)
        slots = (cache.length + torch.arange(T)).expand(B, T).contiguous()
        keys = {kind: at.contiguous() for kind, at in cache.place(slots).items()}  # (B, S)
        angles = self.trunk.rotary_emb((slots - cache.pads).clamp(min=0), x.dtype)
        cos, sin = (part.expand(B, 1, T, D).reshape(B * T, D) for part in angles)
        for i, (qkv, out, gate_up, down, norm_1, norm_2) in enumerate(self.blocks):
            kind = config.layer_types[i]
            y = qkv(x, norm=norm_1)  # (B, T, (H + 2G) * D)
            torch.ops.qwen2_edu.rotate_(y, cos, sin, H + G)
            q, k, v = y.view(B, T, H + 2 * G, D).split((H, G, G), dim=2)  # (B, T, H or G, D)
            k, v = cache.update(k.transpose(1, 2), v.transpose(1, 2), i)  # (B, G, S, D)
            window = config.window_by_type[kind] or 1 << 40
            y = torch.ops.qwen2_edu.attend(q, k, v, slots, keys[kind], window)  # (B, T, H * D)
            x = out(y, add=x)
            x = down(gate_up(x, norm=norm_2), gated=True, add=x)  # (B, T, E)
        cache.advance(T)
        logits = self.head(x[:, -logits_to_keep:], norm=self.trunk.norm)  # (B, T, V)
        return SimpleNamespace(logits=logits, past_key_values=cache)


class GraphStep:
    """Reads single tokens on a GPU: the model as CUDA graphs, compiled on first use and kept."""

    compiled: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

    def __init__(self, model: nn.Module, cache: StaticCache):
        if model not in self.compiled:
            options = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}
            self.compiled[model] = torch.compile(model.forward, **options)
        self.step, self.fixed = self.compiled[model], False

    def __call__(self, input_ids: Tensor, past_key_values: Cache, **options: Any) -> Any:
        if not self.fixed:  # by now the prompt has been read, and the cache has its memory
            for columns in past_key_values._all_columns():
                torch._dynamo.mark_static_address(columns.data)
            torch._dynamo.mark_static_address(past_key_values.length)
            self.fixed = True
        torch.compiler.cudagraph_mark_step_begin()
        return self.step(input_ids, past_key_values=past_key_values, **options)


def fast_reader(model: nn.Module, cache: Cache | None, why: str = "") -> Any:
    """What reads tokens fast in place of `model`; None, and a warning, where nothing can."""
    why = why or ("there is no cache" if cache is None else why_slow(model))
    if not why and model.device.type == "cuda":
        if isinstance(cache, StaticCache):
            return GraphStep(model, cache)
        why = "a compiled step needs a cache of fixed size: cache_implementation='static'"
    if why:
        warn_caller(f"fast=True has no effect: {why}")
        return None
    return FastStep(model)


class _Product:
    """Matrices that multiply the same input, in one call of the kernel."""

    def __init__(self, *layers: nn.Module):
        self.weights = [layer.weight for layer in layers]
        packed = isinstance(layers[0], PackedLinear)  # then all are
        self.scales = [layer.scales for layer in layers] if packed else []
        self.biases = [] if layers[0].bias is None else [layer.bias for layer in layers]

    def __call__(
        self, x: Tensor, norm: nn.Module | None = None, gated: bool = False, add=None
    ) -> Tensor:
        weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        matrices = self.weights, self.scales, self.biases
        return torch.ops.qwen2_edu.linear(x, *matrices, weight, eps, gated, add)


def why_slow(model: nn.Module) -> str:
    """Why this model cannot take the fast step, in a clause; "" if it can."""
    kind, parts = model.device.type, [*model.modules()]
    if model.training:
        return "the model is in training mode"
    if any(record.layers.intersection(parts) for record in RECORDS.get()):
        return "somebody watches the attention maps"
    for part in parts:
        if why := _why_not(part):
            name = next(name for name, other in model.named_modules() if other is part)
            return f"{name or 'the model'} {why}"
    if kind not in ("cpu", "cuda"):
        return f"there are no kernels for {kind}"
    if kind == "cpu" and model.dtype not in kernels.FORMATS:
        return f"there are no kernels for {model.dtype}"
    return kernels.why_not() if kind == "cpu" else ""


def _why_not(part: nn.Module) -> str:
    if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
        return "has hooks, which would not be called"
    if not type(part).__module__.startswith(("qwen2_edu.", "torch.")):
        return f"is a {type(part).__qualname__}"
    if isinstance(part, PackedLinear) and part.in_features % GROUP:
        return f"has rows of {part.in_features}, and the kernels want groups of {GROUP}"
    spread = any(type(p) not in (nn.Parameter, type(None)) for p in part._parameters.values())
    return "has parameters that are spread over devices" if spread else ""


def faster_dtype() -> tuple[torch.dtype, str]:
    """Is a CPU faster in bfloat16 or in float32? Measured on products such as a prompt's, in a few
    milliseconds; answers the dtype, and a sentence. (One token at a time bf16 is never slower:
    there the bytes count.)
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        given = {"x": torch.ones(64, 512, dtype=dtype), "w": torch.ones(512, 512, dtype=dtype)}
        timer = Timer("x @ w.T", globals=given, num_threads=torch.get_num_threads())
        seconds[dtype] = min(timer.timeit(2).mean for _ in range(3))
    best, other = sorted(seconds, key=seconds.get)
    name, slower = (str(dtype).removeprefix("torch.") for dtype in (best, other))
    return best, f"{name}, whose products take less time than those in {slower} on this processor"
