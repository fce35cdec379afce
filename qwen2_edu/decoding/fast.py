"""A decode step that costs what reading the weights costs.

The step goes through the operators of `kernels`, two a layer; nothing is traced or compiled, so
there is nothing to wait for. On a CPU it takes whatever cache the model uses. On a GPU the cache is
of fixed size, and the step is recorded once for it, as a CUDA graph.
"""

from __future__ import annotations

import timeit
from functools import partial
from threading import Lock
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .. import kernels
from ..attention import RECORDS
from ..cache import Cache, StaticCache
from ..checks import warn_caller
from ..quantize import FEW, GROUP, PackedLinear

KNOWN = ("qwen2_edu.", "torch.")  # what a part may be made by
RECORDING = Lock()  # one thread records at a time; others may go on with what is recorded


class FastStep:
    """Reads a few tokens, on a GPU one, as a Qwen2ForCausalLM does for which `why_slow` is ""."""

    def __init__(self, model: nn.Module):
        self.model, self.trunk = model, model.model
        self.ops = ops = kernels.operators(model.device.type)
        self.recorded = model.device.type == "cuda"  # then the cache is fixed, and has its memory
        self.few = 1 if self.recorded else FEW
        # Between a layer's q, k, v and its attention stands the cache. So a call of the kernel goes
        # from an attention to what comes before the next one, or, after the last, to the head.
        layers = self.trunk.layers
        heads = [[getattr(layer.self_attn, f"{name}_proj") for name in "qkv"] for layer in layers]
        heads.append([model.lm_head])
        norms = [*(layer.input_layernorm for layer in layers), self.trunk.norm]
        before = {"norm": norms[0].weight, "eps": norms[0].eps}
        self.first = partial(ops.linear, **matrices(heads[0]), **before)
        self.rests = []
        for layer, after, norm in zip(layers, heads[1:], norms[1:], strict=True):
            mlp, inner = layer.mlp, layer.post_attention_layernorm
            parts = [layer.self_attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj, *after]
            more = {"norms": [inner.weight, norm.weight], "eps": [inner.eps, norm.eps]}
            self.rests.append(partial(ops.block, **matrices(parts), **more))
        reaches = model.config.window_by_type.items()
        self.windows = {kind: reach or 1 << 40 for kind, reach in reaches}

    @torch.no_grad()
    def __call__(
        self, input_ids: Tensor, past_key_values: Cache, logits_to_keep: int = 0, **options: Any
    ) -> Any:
        """As `Qwen2ForCausalLM.forward`, to which it leaves what is more than a few tokens."""
        B, T = input_ids.shape
        if B * T > self.few or any(value is not None for value in options.values()):
            options |= {"past_key_values": past_key_values, "logits_to_keep": logits_to_keep}
            return self.model(input_ids, **options)
        config, cache = self.model.config, past_key_values
        H, G, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        x = self.trunk.embed_tokens(input_ids)  # (B, T, E)
        slots = (cache.length + torch.arange(T, device=x.device)).expand(B, T).contiguous()
        keys = {kind: at.contiguous() for kind, at in cache.place(slots).items()}  # (B, S)
        angles = self.trunk.rotary_emb((slots - cache.pads).clamp(min=0), x.dtype)
        cos, sin = (part.expand(B, 1, T, D).reshape(B * T, D) for part in angles)
        y = self.first(x)  # (B, T, (H + 2G) * D)
        for i, rest in enumerate(self.rests):
            kind = config.layer_types[i]
            q, k, v = y.view(B, T, H + 2 * G, D).split((H, G, G), dim=2)  # (B, T, H or G, D)
            if self.recorded:
                k, v = (columns.data for columns in cache.layers[i])  # (B, G, S, D)
                self.ops.keep_(y, cos, sin, k, v, slots)
            else:
                self.ops.rotate_(y, cos, sin, H + G)
                k, v = cache.update(k.transpose(1, 2), v.transpose(1, 2), i)  # (B, G, S, D)
            x, y = rest(x, q, k, v, slots, keys[kind], self.windows[kind])  # y: at last (B, T, V)
        cache.advance(T)
        return SimpleNamespace(logits=y[:, -logits_to_keep:], past_key_values=cache)


class GraphStep:
    """Reads one token a row on a GPU: a step recorded as a CUDA graph, and replayed.

    A step of a small model is some hundreds of kernels of a few microseconds; a replay starts them
    all in one call. The recording belongs to its cache, whose memory it reads and writes. Several
    rows are multiplied by PyTorch: there the model's own step is what is recorded.
    """

    def __init__(self, model: nn.Module, cache: StaticCache):
        self.model, self.cache, self.graph = model, cache, None
        exact = model.dtype == torch.float64
        self.step = model if exact or kernels.why_not("cuda") else FastStep(model)

    def __call__(self, input_ids: Tensor, past_key_values: Cache, **options: Any) -> Any:
        if input_ids.shape[1] > 1:
            return self.model(input_ids, past_key_values=past_key_values, **options)
        if self.graph is None:  # by now the prompt has been read, and the cache has its memory
            self._record(input_ids.clone())
        self.token.copy_(input_ids)
        self.graph.replay()
        return SimpleNamespace(logits=self.logits.clone(), past_key_values=self.cache)

    def _record(self, token: Tensor) -> None:
        """A first step loads kernels, on a stream of its own; a second is only noted down. What is
        written now the replay writes again, so the clock alone has to be set back.
        """
        cache, side, graph = self.cache, torch.cuda.Stream(token.device), torch.cuda.CUDAGraph()
        pads, inputs = cache.pads, {"past_key_values": cache, "logits_to_keep": 1}
        with RECORDING, torch.cuda.device(token.device):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.step(token, **inputs)
                cache.advance(-1)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                logits = self.step(token, **inputs).logits
        self.token, self.logits, self.graph, cache.pads = token, logits, graph, pads


def fast_reader(model: nn.Module, cache: Cache | None, why: str = "") -> Any:
    """What reads tokens fast in place of `model`; None, and a warning, where nothing can."""
    why = why or ("there is no cache" if cache is None else why_slow(model))
    if not why and model.device.type == "cuda":
        if model.model.rotary_emb.dynamic:
            why = "the model's rotary frequencies change with the length of a text"
        elif isinstance(cache, StaticCache):
            return GraphStep(model, cache)
        else:
            why = "a recorded step needs a cache of fixed size: cache_implementation='static'"
    if why:
        warn_caller(f"fast=True has no effect: {why}")
        return None
    return FastStep(model)


def matrices(layers: list[nn.Module]) -> dict[str, list[Tensor | None]]:
    """What the kernel wants of each layer; scales and biases are None where it has none."""
    scales = [getattr(layer, "scales", None) for layer in layers]
    biases = [layer.bias for layer in layers]
    return {"weights": [layer.weight for layer in layers], "scales": scales, "biases": biases}


def why_slow(model: nn.Module) -> str:
    """Why this model cannot take the fast step, in a clause; "" if it can."""
    device, named = model.device.type, dict(model.named_modules())
    parts = named.values()
    if model.training:
        return "the model is in training mode"
    if any(record.layers.intersection(parts) for record in RECORDS.get()):
        return "somebody watches the attention maps"
    for name, part in named.items():
        why = ""
        if part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__:
            why = "has hooks, which would not be called"
        elif not type(part).__module__.startswith(KNOWN):
            why = f"is a {type(part).__qualname__}"
        elif type(part) is PackedLinear and part.in_features % GROUP:
            why = f"has rows of {part.in_features}, and the kernels want groups of {GROUP}"
        if why:
            return f"{name or 'the model'} {why}"
    kinds = {type(parameter) for part in parts for parameter in part._parameters.values()}
    if kinds - {nn.Parameter, type(None)}:
        return "its parameters are spread over devices"
    if device not in ("cpu", "cuda"):
        return f"there are no kernels for {device}"
    if device == "cpu" and model.dtype not in kernels.FORMATS:
        return f"there are no kernels for {model.dtype}"
    return kernels.why_not() if device == "cpu" else ""


def faster_dtype() -> tuple[torch.dtype, str]:
    """Is a CPU faster in bfloat16 or in float32? Measured on products such as a prompt's, in a few
    milliseconds; answers the dtype, and a sentence. (One token at a time bf16 is never slower:
    there the bytes count.)
    """
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(64, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        best[dtype] = min(timeit.repeat(lambda x=x, w=weight: linear(x, w), number=1))
    dtype, other = sorted(best, key=best.get)
    name, slower = (str(d).removeprefix("torch.") for d in (dtype, other))
    return dtype, f"{name}, whose products take less time than those in {slower} on this processor"
