"""Weights in 8 or 4 bits: half and a third of the memory of bf16, and as much less to read a step.

A weight is kept as a small integer q, and read back as q * scale:

- int8: one scale, fp32, for each row of a matrix; q in -127 … 127.
- int4: one scale, fp16, for each group of 32 in a row; q in -8 … 7. That is GGUF's Q4_0, and a
  GGUF's own Q4_0 and Q8_0 (int8 in groups of 32) are kept as they are, not rounded again.

The matrices of the blocks are quantised, and the embedding with its tied head, or the head of its
own. Embedding and head stay in int8 under "int4" too: they decide between 151,936 tokens, and with
4 bits cost more quality than all blocks together. Norms and biases are few and stay as they are.
So does the dtype in which the model computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, isfinite, nn
from torch.nn.functional import linear

from . import kernels
from .checks import one_of
from .files.blocks import nibbles
from .files.gguf import GGUFFile, empty_for_weights

GROUP = 32
FEW = 12  # rows of input up to which the kernels are taken: faster at 8, slower at 16
AT_ONCE = 1 << 24  # numbers unpacked at a time: the head of a long text must not need its matrix
CACHED = 1 << 19  # numbers rounded at a time: what is in between stays in the processor's cache
NO_TRAINING = "a quantised model cannot be trained: train the original, then quantize() it"


def round_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> int8 (N, K) and fp32 scales (N, 1): the largest of each row becomes ±127."""
    weight = weight.float()
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scales.where(scales > 0, 1)).round().to(torch.int8), scales


def round_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> uint8 (N, K / 2), two numbers a byte, and fp16 scales (N, K / 32).

    Of each group the number farthest from 0 becomes about -8: of several scales near that one, the
    one with the smallest squared error is taken. A byte holds numbers j and j + 16 of a group,
    0 … 15 for -8 … 7.
    """
    groups = weight.float().unflatten(1, (-1, GROUP))  # (N, K/32, 32)
    farthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))

    def numbers(scale: Tensor) -> Tensor:
        return (groups / scale.where(scale != 0, 1)).round_().clamp_(-8, 7)

    best, scales = torch.full_like(farthest, torch.inf), torch.zeros_like(farthest)
    for share in (8.0, 7.6, 7.2, 6.8, 8.4):
        tried = (farthest / -share).half().float()
        error = numbers(tried).mul_(tried).sub_(groups).square_().sum(-1, keepdim=True)
        better = error < best
        best, scales = error.where(better, best), tried.where(better, scales)
    bits = (numbers(scales) + 8).to(torch.uint8)
    packed = bits[..., :16] | bits[..., 16:] << 4  # (N, K/32, 16)
    return packed.flatten(1), scales[..., 0].half()


def unpack(weight: Tensor, scales: Tensor) -> Tensor:
    """Quantised rows as fp32, (N, K): what `round_int8`, `round_int4` or a GGUF file packed."""
    if weight.dtype == torch.uint8:
        q = nibbles(weight.unflatten(-1, (-1, GROUP // 2))).to(torch.int8) - 8  # (N, K/32, 32)
    elif scales.dtype == torch.float32:  # by row
        return weight * scales
    else:
        q = weight.unflatten(-1, (-1, GROUP))
    return (q * scales[..., None].float()).flatten(-2)


class Packed(nn.Module):
    """A quantised matrix (N, K): `weight`, integers, and `scales`, which no `.to(dtype)` rounds."""

    def __init__(self, weight: Tensor, scales: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.shape[1] * (2 if self.weight.dtype == torch.uint8 else 1)

    def train(self, mode: bool = True):
        """ValueError if `mode`: there is nothing to train."""
        if mode:
            raise ValueError(NO_TRAINING)
        return super().train(mode)

    def _apply(self, move: Any, recurse: bool = True):
        exact = self.scales.data
        super()._apply(move, recurse)
        self.scales.data = exact.to(self.scales.device)
        return self

    def extra_repr(self) -> str:
        kind = "int4" if self.weight.dtype == torch.uint8 else "int8"
        by = "row" if self.scales.dtype == torch.float32 else f"group of {GROUP}"
        return f"{len(self.weight)} x {self.in_features}, {kind}, a scale by {by}"


class PackedEmbedding(Packed):
    """The token embedding: ids (B, T) -> (B, T, E), in the dtype of `norm`, the model's."""

    def __init__(self, weight: Tensor, scales: Tensor, norm: nn.Module):
        super().__init__(weight, scales)
        self.norm = (norm,)  # in a tuple it is no part of this module

    def forward(self, ids: Tensor) -> Tensor:
        return unpack(self.weight[ids], self.scales[ids]).to(self.norm[0].weight.dtype)


class PackedLinear(Packed):
    """x (…, K) -> (…, N), in x's dtype: few rows by the kernel, more by unpacking the matrix."""

    def __init__(self, weight: Tensor, scales: Tensor, bias: nn.Parameter | None = None):
        super().__init__(weight, scales)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise ValueError(NO_TRAINING)
        few = x.numel() <= FEW * x.shape[-1] and self.in_features % GROUP == 0
        if few and x.device.type == "cpu" and x.dtype in kernels.FORMATS and not kernels.why_not():
            return torch.ops.qwen2_edu.linear(x, [self.weight], [self.scales], [self.bias])
        step = max(1, AT_ONCE // self.in_features)
        pieces = zip(self.weight.split(step), self.scales.split(step), strict=True)
        out = torch.cat([linear(x, unpack(*piece).to(x.dtype)) for piece in pieces], dim=-1)
        return out if self.bias is None else out + self.bias


class TiedHead(PackedLinear):
    """The head that is the embedding matrix itself."""

    def __init__(self, embedding: PackedEmbedding):
        nn.Module.__init__(self)
        self.weight, self.bias, self.tied = embedding.weight, None, (embedding,)

    scales = property(lambda self: self.tied[0].scales)


@torch.no_grad()
def quantize(model: nn.Module, kind: str, source: GGUFFile | None = None) -> nn.Module:
    """Quantise a model in place, one matrix at a time; returns it, in eval mode.

    Everything but training works as before. `model.config` notes what was done, so that
    `save_pretrained` and `from_pretrained` keep it.

    Args:
        model: a model with a trunk, such as a Qwen2ForCausalLM; heads that classify stay.
        kind: "int8" or "int4".
        source: the file it was loaded from: its Q8_0 (under "int8") and Q4_0 tensors are taken
            over bit for bit.

    Raises:
        ValueError: another kind; a model that is quantised, or cannot be. It is left as it was.
    """
    one_of("quantize", kind, ("int8", "int4"))
    parts = dict(_matrices(model))
    if any(isinstance(part, Packed) for part in parts.values()):
        raise ValueError("this model is quantised already: start from the original")
    for name, part in parts.items():
        if kind == "int4" and part.weight.shape[1] % GROUP:
            rows = f"{name} has rows of {part.weight.shape[1]}"
            raise ValueError(f"int4 packs groups of {GROUP} numbers of a row, {rows}: take int8")
        if not (part.weight.is_floating_point() and all(map(isfinite, part.weight.aminmax()))):
            raise ValueError(f"{name}.weight holds what cannot be rounded, NaN or infinity")
    stored = {} if source is None else source.tensors
    found = {name: stored[f"{name}.weight"].format.name for name in parts if stored}
    forms = _forms(parts, kind, found)
    _replace(model, forms, source)
    kept = {name: form for name, form in forms.items() if form == found.get(name)}
    note = {"quant_method": "qwen2_edu", "kind": kind, "kept": kept}
    model.config.extra["quantization_config"] = note
    return model.eval().requires_grad_(False)


def shape_like_saved(model: nn.Module, note: dict[str, Any]) -> None:
    """Give a model on the meta device the modules of the one that `save_pretrained` wrote with this
    `quantization_config`. ValueError: it was written by something else.
    """
    if note.get("quant_method") != "qwen2_edu" or note.get("kind") not in ("int8", "int4"):
        method = note.get("quant_method")
        raise ValueError(f"weights quantised by {method!r} are not supported: load the original")
    _replace(model, _forms(dict(_matrices(model)), note["kind"], note.get("kept") or {}))
    model.eval().requires_grad_(False)


def _forms(names: Iterable[str], kind: str, found: Mapping[str, str]) -> dict[str, str]:
    """What becomes of each matrix: embedding and head are in int8 whatever the `kind`, and what is
    `found` in GGUF's blocks of so few bits, or fewer, stays in them.
    """
    forms = {name: kind if name.startswith("model.layers.") else "int8" for name in names}
    kept = {"int8": ("Q8_0", "Q4_0"), "int4": ("Q4_0",)}
    return {n: found[n] if found.get(n) in kept[form] else form for n, form in forms.items()}


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts that are quantised, with the names of a causal model's: a tied head is not one."""
    trunk, head = model.base_model, model.get_output_embeddings()
    yield "model.embed_tokens", trunk.embed_tokens
    for name, part in trunk.layers.named_modules():
        if isinstance(part, (nn.Linear, Packed)):
            yield f"model.layers.{name}", part
    if head is not None and head.weight is not trunk.embed_tokens.weight:
        yield "lm_head", head


def _replace(model: nn.Module, forms: dict[str, str], source: GGUFFile | None = None) -> None:
    trunk, head = model.base_model, model.get_output_embeddings()
    tied = head is not None and head.weight is trunk.embed_tokens.weight
    for name, part in list(_matrices(model)):
        form, weight = forms[name], part.weight
        if weight.is_meta:  # it has a shape alone
            numbers = weight[:, ::2].byte() if form in ("int4", "Q4_0") else weight.char()
            packed = numbers, weight[:, :1].float() if form == "int8" else weight[:, ::GROUP].half()
        elif form in ("Q8_0", "Q4_0"):
            packed = [t.to(weight.device) for t in _taken(source, f"{name}.weight", form)]
        else:
            rows = weight.split(max(1, CACHED // weight.shape[1]))
            pieces = map(round_int8 if form == "int8" else round_int4, rows)
            packed = []
            for piece in zip(*pieces, strict=True):
                shape = len(weight), piece[0].shape[1]
                whole = empty_for_weights(shape, piece[0].dtype, weight.device)
                packed.append(torch.cat(piece, out=whole))
        if name == "model.embed_tokens":
            trunk.embed_tokens = PackedEmbedding(*packed, trunk.norm)
        else:
            owner = model if name == "lm_head" else trunk
            owner.set_submodule(name.removeprefix("model."), PackedLinear(*packed, part.bias))
    if tied:
        model.lm_head = TiedHead(trunk.embed_tokens)


def _taken(source: GGUFFile, name: str, form: str) -> tuple[Tensor, Tensor]:
    """A tensor of a GGUF file, its blocks taken apart: scale fp16, then 32 bytes or 16."""
    blocks = source.blocks(name)  # (N, K/32, 34 or 18)
    scales = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    numbers = blocks[..., 2:].flatten(1)
    return (numbers.view(torch.int8) if form == "Q8_0" else numbers), scales.contiguous()
