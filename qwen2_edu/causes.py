"""What does a part of the model *cause*? Shares of a logit, and what changes with a part.

    trace = follow(model, input_ids)  # one pass, kept; everything below starts from it
    attribution(trace, token_id).heads  # (L, H): what each head adds to the logit; no pass
    effect(trace, [ablate(trace, 3, 2), cut(trace, 1, 4, query=9, key=5)], token_id).delta

An effect computes again only what can differ: from the first edited layer up, from the first
edited position on. Nothing is changed in the model, so threads may share it, and traces too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import weighted_values
from .capture import capture
from .checks import Range, check_ids, check_numbers, one_of
from .masks import additive, visible
from .quantize import Packed


class Trace(NamedTuple):
    """A text, (1, T), and what flowed, a tensor for each layer: "stream", before the layer, one
    more after all, and "mlp", its answer, (1, T, E); "keys" and "values", (1, G, T, D); "weights",
    (1, H, T, T); "heads", what each says, before the output matrix, (1, H, T, D)."""

    model: nn.Module
    input_ids: Tensor
    flow: dict[str, list[Tensor]]

    def logits(self, position: int = -1) -> Tensor:
        """For the token after a position: (V,), fp32."""
        x = self.flow["stream"][-1][0, position]
        return self.model.lm_head(self.model.model.norm(x)).float()


class Attribution(NamedTuple):
    """Shares of a logit, which is the sum of them all."""

    embedding: Tensor  # (), the token's own
    heads: Tensor  # (L, H), what each fetched
    biases: Tensor  # (L, H), of their values, said wherever a head looks
    mlps: Tensor  # (L,)


class Effect(NamedTuple):
    """After the change."""

    delta: float  # of the token's logit
    top: list[tuple[int, float]]  # the five likeliest ids, with their probabilities
    logits: Tensor  # (V,)


class Edit(NamedTuple):
    """What flows at `place` in a layer becomes `new` at these positions, in one head or in all of
    the stream. Of "weights", `new` says which keys stay; they share what the others had."""

    layer: int
    place: str
    head: int | None
    positions: list[int]
    new: Tensor


@torch.no_grad()
def follow(model: nn.Module, input_ids: Tensor) -> Trace:
    """Read one text without padding, (1, T), in one pass. ValueError: it is not that."""
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or not hasattr(model, "lm_head"):
        given = f"{type(model).__name__}, input_ids {tuple(input_ids.shape)}"
        raise ValueError(f"{given}: expected a causal language model and one text, (1, T)")
    check_ids(input_ids, model.config.vocab_size)
    trace = Trace(model, input_ids, {"stream": [model.model.embed_tokens(input_ids)]})
    return trace._replace(flow=_read(trace))


@torch.no_grad()
def attribution(trace: Trace, token_id: int, position: int = -1) -> Attribution:
    """Who speaks for this token after this position? The final norm divides by one number, the one
    it really used. Who speaks through a later part gets nothing here; `effect` sees that too.

    Source: direct logit attribution: Elhage et al., 2021, transformer-circuits.pub/2021/framework.
    """
    _readable(trace, token_id, position)
    model, config, flow = trace.model, trace.model.config, trace.flow
    H, G, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    scale = (flow["stream"][-1][0, position].float().pow(2).mean() + model.model.norm.eps).rsqrt()
    direction = model.model.norm.weight.float() * model.lm_head.weight[token_id].float() * scale
    attentions = [layer.self_attn for layer in model.model.layers]
    along = torch.stack([direction @ a.o_proj.weight.float() for a in attentions]).view(-1, H, D)
    bias = torch.stack([a.v_proj.bias.float() for a in attentions]).view(-1, G, D)
    biases = (along * bias.repeat_interleave(H // G, 1)).sum(-1)  # rows of weights sum to one
    said = torch.stack([heads[0, :, position].float() for heads in flow["heads"]])  # (L, H, D)
    mlps = torch.stack([mlp[0, position].float() for mlp in flow["mlp"]]) @ direction
    embedding = flow["stream"][0][0, position].float() @ direction
    return Attribution(embedding, (along * said).sum(-1) - biases, biases, mlps)


def ablate(trace: Trace, layer: int, head: int, to: str = "zero") -> Edit:
    """Switch a head off: it says nothing ("zero"), or at every position what it says on average
    over the positions of this text, which later layers are used to ("mean")."""
    said = _there(trace, "heads", layer, head)  # (T, D)
    new = said.mean(0) if one_of("to", to, ("zero", "mean")) == "mean" else said.new_zeros(1)
    return Edit(layer, "heads", head, list(range(len(said))), new)


def cut(trace: Trace, layer: int, head: int, query: int, key: int) -> Edit:
    """Hide a key from a query in one head, as a mask would: the other keys share its weight. A
    query with nothing left to see says nothing.

    Source: attention knockout: Geva et al., arXiv:2304.14767.
    """
    T = len(_there(trace, "weights", layer, head))
    if not 0 <= key <= query < T:
        raise ValueError(f"query={query}, key={key}: expected 0 ≤ key ≤ query < {T}")
    stays = torch.arange(T, device=trace.input_ids.device) != key
    return Edit(layer, "weights", head, [query], stays)


def patch(
    trace: Trace, source: Trace, layer: int, part: int | str, positions: Sequence[int] | None = None
) -> Edit:
    """Put in what flowed in another text, as long as this one. part: the number of a head, "mlp",
    or "stream", before the layer. positions: None = all.

    Source: activation patching: Vig et al., arXiv:2004.12265; Meng et al., arXiv:2202.05262.
    """
    head = part if isinstance(part, int) else None
    place = "heads" if head is not None else one_of("part", part, ("mlp", "stream"))
    old, new = (_there(one, place, layer, head) for one in (trace, source))
    if len(old) != len(new):
        raise ValueError(f"texts of {len(old)} and of {len(new)} tokens: expected the same length")
    for position in positions or ():
        check_numbers({"position": position}, {"position": Range(-len(new), len(new) - 1, True)})
    rows = [range(len(new))[p] for p in (range(len(new)) if positions is None else positions)]
    return Edit(layer, place, head, rows, new[rows])


@torch.no_grad()
def effect(trace: Trace, edits: Sequence[Edit], token_id: int, position: int = -1) -> Effect:
    """What do these changes together do to the token after a position? At most one pass."""
    T = _length(trace, token_id, position)
    position, before = range(T)[position], trace.logits(position)
    after, first = before, min((p for edit in edits for p in edit.positions), default=position + 1)
    if first <= position:  # else nothing changes, or only the future
        changed = _read(trace, edits, min(edit.layer for edit in edits), first)
        after = trace._replace(flow=changed).logits(position - first)
    chances, ids = after.softmax(-1).topk(5)
    top = list(zip(ids.tolist(), chances.tolist(), strict=True))
    return Effect((after - before)[token_id].item(), top, after)


def _readable(trace: Trace, token_id: int, position: int) -> None:
    _length(trace, token_id, position)
    if any(isinstance(part, Packed) for part in trace.model.modules()):
        why = "attribution multiplies a model's matrices, and these are quantised"
        raise ValueError(f"{why}: load it without quantize=, or use effect()")


def _length(trace: Trace, token_id: int, position: int) -> int:
    """How many tokens does the text have? ValueError if there is no such token or position."""
    T, V = trace.input_ids.shape[1], trace.model.config.vocab_size
    ranges = {"token_id": Range(0, V - 1, whole=True), "position": Range(-T, T - 1, whole=True)}
    check_numbers({"token_id": token_id, "position": position}, ranges)
    return T


def _there(trace: Trace, place: str, layer: int, head: int | None) -> Tensor:
    """What flowed at a place, (T, …); ValueError if there is no such layer or head."""
    L, H = trace.model.config.num_hidden_layers, trace.model.config.num_attention_heads
    if not (0 <= layer < L and 0 <= (head or 0) < H):
        raise ValueError(f"layer {layer}, head {head}: there are {L} layers of {H} heads")
    return trace.flow[place][layer][0] if head is None else trace.flow[place][layer][0, head]


class _Memory(list):
    """Stands where a cache stands: keys and values of earlier positions, then the new ones too."""

    def update(self, k: Tensor, v: Tensor, layer: int) -> list[Tensor]:
        self[:] = [torch.cat((*old, new), 2) for old, new in zip(self, (k, v), strict=True)]
        return self


def _read(trace: Trace, edits: Sequence[Edit] = (), start: int = 0, first: int = 0) -> dict:
    """The blocks laid open, from layer `start` up and position `first` on: the flow there."""
    model, flow = trace.model.model, {}
    x = trace.flow["stream"][start][:, first:].clone()  # (1, T - first, E)
    places = torch.arange(trace.input_ids.shape[1], device=x.device)[None]
    rope, windows = model.rotary_emb(places[:, first:], x.dtype), model.config.window_by_type
    seen = {kind: visible(places[:, first:], places, window) for kind, window in windows.items()}

    def passes(name: str, i: int, tensor: Tensor) -> Tensor:
        for edit in edits:
            if (edit.layer, edit.place) == (i, name):
                part = tensor[0] if edit.head is None else tensor[0, edit.head]  # a view
                rows = [p - first for p in edit.positions]
                if name == "weights":
                    kept = part[rows] * edit.new
                    whole = kept.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
                    part[rows] = kept / whole
                else:
                    part[rows] = edit.new
        flow.setdefault(name, []).append(tensor)
        return tensor

    for i, layer in list(enumerate(model.layers))[start:]:
        x, attention = passes("stream", i, x), layer.self_attn
        names = ("keys", "values")
        memory = _Memory([trace.flow[name][i][:, :, :first]] if first else [] for name in names)
        with capture(attention) as record:
            mask = additive(seen[model.config.layer_types[i]], x.dtype)
            attention(layer.input_layernorm(x), *rope, mask, memory)
        k, v = (passes(name, i, tensor) for name, tensor in zip(names, memory, strict=True))
        heads = passes("heads", i, weighted_values(passes("weights", i, record.attentions[0]), v))
        x = x + attention.o_proj(heads.transpose(1, 2).flatten(2))  # (1, T, H*D) -> (1, T, E)
        x = x + passes("mlp", i, layer.mlp(layer.post_attention_layernorm(x)))
    passes("stream", len(model.layers), x)
    return flow
