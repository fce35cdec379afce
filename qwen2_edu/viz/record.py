"""What the attention explorer shows, as plain data: no widget, no figure, no JavaScript.

One array holds everything that is drawn of a text: for each layer and head the weight with which
each query looks at each key. After `generate` its rows are the ones that decoding with a cache
really computed, one token at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from .. import behaviour
from ..cache import DynamicCache
from ..capture import capture
from ..config import SLIDING, Qwen2Config
from ..generation import decode, stream_ids
from ..masks import visible
from ..model import Qwen2ForCausalLM
from ..pretrained import Qwen2PreTrainedModel
from ..quantize import Packed, unpack
from .opening import opening

SEEN, FUTURE, OUTSIDE, PADDING = range(4)  # may a query look at a key, and if not, why?
THUMBNAIL = 40  # pixels of a head in the overview, each way; half as many above 1,000 heads
BEHAVIOURS = {  # of `behaviour`: name -> label, and what it says, for the reader
    "previous_token": ("previous token", "mean weight on the token just before"),
    "induction": ("induction", "mean weight on what followed this token when it last occurred"),
    "first_token": ("first token", "mean weight on the first token of the text"),
    "entropy": ("entropy", "in nats: 0 = looks at one key, more = spreads its weight"),
    "reach": ("reach", "in tokens: how far back it looks on average; small = local"),
}
VIEWS = {  # which weights are shown: name -> label, and what it says, for the reader
    "raw": ("raw", ""),
    "rest": (
        "without the first token",
        "Each row without its weight on the first token, where heads look that have nothing to "
        "look for; the others share 1.",
    ),
    "value": (
        "by value ‖w·v·W_O‖",
        "Each row's shares of ‖w·v·W_O‖, the length of what the head really adds for each key.",
    ),
}


@dataclass
class Step:
    """One step of generation: what was drawn after reading up to `position`."""

    position: int
    token_id: int
    probability: float  # of the model, before temperature and cuts
    alternatives: list[tuple[int, float]]  # the likeliest ids and their probabilities


@dataclass
class Recording:
    """All that was measured while a model read, and perhaps continued, one text of T tokens."""

    ids: list[int]
    real: Tensor  # bool (T,), False = padding
    layers: list[int]  # which layers of the model the maps are of
    maps: Tensor  # uint8 (layers, H, T, T), see `to_bytes`
    scores: dict[str, Tensor]  # a name of BEHAVIOURS -> (layers, H)
    view_scores: dict[str, dict[str, Tensor]]  # the same under each other of VIEWS
    thumbnails: dict[str, Tensor]  # a name of VIEWS -> uint8 (layers, H, n, n)
    norms: Tensor  # (layers, H, T): ‖v·W_O‖ of each key, as each query head would add it
    hidden: Tensor  # (all layers + 1, T, E): the residual stream before the first block, after each
    prompt: int  # how many tokens were given; the others were generated
    opens: tuple[int, int, int, int]  # layer, head, query and key, see `opening`
    steps: list[Step] = field(default_factory=list)
    cache_error: float | None = None  # max|Δ| between rows decoded with the cache and a full pass

    @property
    def first(self) -> int:
        """The first token that is no padding."""
        return int(self.real.int().argmax())


# -- measuring -------------------------------------------------------------------------------------


@torch.no_grad()
def record_text(
    model: Qwen2PreTrainedModel, input_ids: Tensor, real: Tensor, layers: Sequence[int]
) -> Recording:
    """Let the model read a text in one pass.

    Args:
        input_ids: (1, T).
        real: bool (T,), False = padding.
        layers: whose maps to keep.
    """
    maps, hidden = full_pass(model, input_ids, real, layers)
    return _recording(model, input_ids[0], real, layers, maps, hidden)


@torch.no_grad()
def record_generation(
    model: Any,
    tokenizer: Any,
    input_ids: Tensor,
    real: Tensor,
    layers: Sequence[int],
    **options: Any,
) -> Recording:
    """Let the model continue a text, and keep the attention row of each token as it was decoded.

    Then read prompt and answer again in one pass, to see that the cached rows are the same.

    Args:
        tokenizer: none but its tokens are generated.
        input_ids, real, layers: as in `record_text`.
        **options: of `generate`.

    Raises:
        TypeError: an unknown option. ValueError: options that do not go together, several answers.
    """
    if not isinstance(model, Qwen2ForCausalLM):
        raise TypeError(f"{type(model).__name__} cannot generate: pass a Qwen2ForCausalLM")
    if options.get("num_return_sequences", 1) != 1:
        raise ValueError("the explorer follows one answer: leave out num_return_sequences")
    left = real.int().argsort(stable=True)  # where `generate` puts padding
    input_ids, real = input_ids[:, left], real[left]
    prompt, cache, kinds = input_ids.shape[1], DynamicCache(model.config), model.config.layer_types
    new, blocks, states = [], [], []  # of each pass: the token drawn, its maps, its hidden states

    def keep(key_positions: Callable[[str], Tensor]) -> None:
        held = {kind: key_positions(kind)[0].clone() for kind in set(kinds)}  # a ring goes on
        blocks.append([(record.attentions[i][0], held[kinds[i]]) for i in layers])
        states.append(torch.stack([state[0] for state in record.hidden_states]))
        record.attentions.clear(), record.hidden_states.clear()

    with capture(model) as record:
        tokens = stream_ids(
            model,
            input_ids,
            mask_of(real),
            tokenizer=tokenizer,
            past_key_values=cache,
            **{"num_return_sequences": 1, **options},
        )
        for token in tokens:  # before each, the model has read the prompt, then one token a time
            # The prompt meets its keys in order, even those that a ring has overwritten since.
            keep(cache.key_positions if new else lambda kind: positions_of(real)[None])
            new.append(token)
        decode(model, new[-1], cache)  # so that the last token has a row as well
        keep(cache.key_positions)

    ids = torch.cat((input_ids[0], *new))
    T = len(ids)
    real = torch.cat((real, real.new_ones(T - prompt)))
    maps = torch.stack(
        [
            torch.cat([in_token_order(*block[i], T) for block in blocks], 1)
            for i in range(len(layers))
        ]
    )
    maps[:, :, ~real] = 0
    full, _ = full_pass(model, ids[None], real, layers)
    recording = _recording(model, ids, real, layers, maps, torch.cat(states, 1), prompt)
    recording.cache_error = float((maps - full).abs().max())
    for position, token_id in enumerate(recording.ids[prompt:], prompt - 1):
        chances = predictions(model, recording.hidden[-1, position])
        best = chances.topk(min(5, len(chances)))
        alternatives = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        recording.steps.append(Step(position, token_id, float(chances[token_id]), alternatives))
    return recording


def full_pass(
    model: Qwen2PreTrainedModel, input_ids: Tensor, real: Tensor, layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The maps (layers, H, T, T), rows of padding 0, and the hidden states (all + 1, T, E)."""
    with capture(model) as record:
        model.base_model(input_ids, mask_of(real), use_cache=False)
    maps = torch.stack([record.attentions[i][0].float() for i in layers])
    maps[:, :, ~real] = 0
    return maps, torch.cat(record.hidden_states)


def in_token_order(weights: Tensor, key_positions: Tensor, length: int) -> Tensor:
    """Put the columns of a map where their tokens stand: a ring holds its keys in turned order.

    Shape:
        weights (H, T, S), key_positions (S,) with -1 = padding or empty -> (H, T, length)
    """
    real = key_positions >= 0
    ordered = weights.new_zeros(*weights.shape[:2], length, dtype=torch.float32)
    ordered[:, :, key_positions[real]] = weights[:, :, real].float()
    return ordered


def predictions(model: Any, hidden: Tensor) -> Tensor:
    """Next-token probabilities read off the residual stream, (…, E) -> (…, V), in fp32.

    After the last block that is the model's own answer; after earlier ones, the logit lens: what
    the model would say if the other blocks were left out.

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """
    return model.lm_head(model.model.norm(hidden)).float().softmax(-1)


def _recording(
    model: Any,
    ids: Tensor,
    real: Tensor,
    layers: Sequence[int],
    maps: Tensor,
    hidden: Tensor,
    prompt: int | None = None,  # None = all
) -> Recording:
    prompt = prompt or len(ids)
    opens = opening(model, ids, real[:prompt], layers, maps, hidden)
    norms = torch.stack([value_norms(model, i, hidden[i]) for i in layers]).cpu()
    ids, real, maps = ids.cpu(), real.cpu(), maps.cpu()
    scores = behaviour_scores(maps[:, :, real][..., real], ids[real])
    first, small, others = int(real.int().argmax()), {"raw": thumbnails(to_bytes(maps))}, {}
    for view in ("rest", "value"):
        seen = weigh(maps, view, first, norms)
        small[view] = thumbnails(to_bytes(seen))
        kept = real.clone()
        kept[first] = view != "rest"
        others[view] = behaviour_scores(seen[:, :, kept][..., kept], ids[kept])
    others["rest"]["first_token"] = torch.full(maps.shape[:2], torch.nan)  # it is left out
    given = (to_bytes(maps), scores, others, small, norms)
    return Recording(ids.tolist(), real, list(layers), *given, hidden, prompt, opens)


def value_norms(model: Any, layer: int, stream: Tensor) -> Tensor:
    """How long is what each head would add, if it looked at one token alone? (T, E) -> (H, T).

    Source: Kobayashi et al., Attention is Not Only a Weight, arXiv:2004.10102.
    """
    block, config = model.base_model.layers[layer], model.config
    H, D = config.num_attention_heads, config.head_dim
    values = block.self_attn.v_proj(block.input_layernorm(stream)).float()
    values = values.view(len(stream), -1, D).repeat_interleave(H // config.num_key_value_heads, 1)
    part = block.self_attn.o_proj  # quantised or not
    out = unpack(part.weight, part.scales) if isinstance(part, Packed) else part.weight
    out = out.float().view(-1, H, D)  # (E, H, D)
    gram = torch.einsum("ehc,ehd->hcd", out, out)  # ‖W v‖² = vᵀ WᵀW v
    return torch.einsum("thc,hcd,thd->ht", values, gram, values).clamp(min=0).sqrt()


def weigh(maps: Tensor, view: str, first: int, norms: Tensor) -> Tensor:
    """Weights as one of VIEWS shows them; each row sums to 1, or to 0 where nothing is left.

    Args:
        maps: (layers, H, rows, T).
        first: which token is the first.
        norms: (layers, H, T).
    """
    if view == "raw":
        return maps
    if view == "rest":
        scaled = maps.clone()
        scaled[..., first] = 0
    else:
        scaled = maps * norms[:, :, None]
    total = scaled.sum(-1, keepdim=True)
    return scaled / total.where(total > 0, 1)


def looking(recording: Recording, query: int, key: int, view: str = "raw") -> Tensor:
    """Which heads look from this query to this key? The weight of each, (layers, H)."""
    row = from_bytes(recording.maps[:, :, query : query + 1])
    return weigh(row, view, recording.first, recording.norms)[:, :, 0, key]


def behaviour_scores(maps: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """How each head behaves on this text, name -> (layers, H); NaN where that cannot be said.

    Args:
        maps: (layers, H, T, T), of tokens without padding.
        ids: (T,).
    """
    if len(ids) < 2:  # one token has no choice where to look
        return {name: torch.full(maps.shape[:2], torch.nan) for name in BEHAVIOURS}
    return behaviour.all_scores(maps[:, None], ids[None])  # B = 1


# -- what a picture needs --------------------------------------------------------------------------


def to_bytes(weights: Tensor) -> Tensor:
    """Weights from 0 to 1 as bytes: 255 times the square root, rounded.

    The square root spreads the small weights, of which attention has most: 1/512 becomes 11, which
    is drawn, and not 0. Back by (byte/255)², within 0.002 of the weight up to a weight of 0.25 and
    within 0.004 above.
    """
    return weights.clamp(0, 1).sqrt_().mul_(255).round_().to(torch.uint8).cpu()


def from_bytes(data: Tensor) -> Tensor:
    """The weights that `to_bytes` stored."""
    return (data / 255) ** 2


def thumbnails(maps: Tensor, side: int | None = None) -> Tensor:
    """Small copies of the maps, uint8 (layers, H, T, T) -> (layers, H, n, n), n ≤ side.

    A pixel is the largest weight of its cells, so that thin lines stay visible.

    Args:
        side: None = THUMBNAIL, and half as much above 1,000 heads.
    """
    if side is None:
        side = THUMBNAIL if maps.shape[0] * maps.shape[1] <= 1000 else THUMBNAIL // 2
    if maps.shape[-1] <= side:
        return maps
    return torch.stack([adaptive_max_pool2d(m.float(), side).to(torch.uint8) for m in maps])


def mask_of(real: Tensor) -> Tensor | None:
    """The attention mask (1, T) that a model wants; None = nothing is padding."""
    return None if real.all() else real[None]


def positions_of(real: Tensor) -> Tensor:
    """Where each token stands, (T,); -1 = padding, as the visibility rule wants it."""
    return torch.arange(len(real), device=real.device).where(real, -1)


def effective_mask(real: Tensor, window: int | None) -> Tensor:
    """`reasons` of a whole text of its own: (T, T)."""
    at = positions_of(real)
    return reasons(at, at, window)


def reasons(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """May each query look at each key, and if not, why? uint8 (T, S) of SEEN, FUTURE, …

    The visibility rule decides; this names its reason. A query or key that is padding comes first,
    then the future, then the window.

    Args:
        queries, keys: positions (T,) and (S,); -1 = padding.
    """
    at = queries[None], keys[None]
    causal, seen = visible(*at)[0, 0], visible(*at, window)[0, 0]
    why = torch.full(seen.shape, OUTSIDE, dtype=torch.uint8)
    why[~causal] = FUTURE
    why[seen] = SEEN
    why[queries < 0] = PADDING
    why[:, keys < 0] = PADDING
    return why


def why_this_kind(config: Qwen2Config, layer: int) -> str:
    """Why does this layer slide, or not? In words, with the numbers of the configuration."""
    slides, first = config.layer_types[layer] == SLIDING, config.max_window_layers
    if slides != (config.use_sliding_window and layer >= first):
        return "config.layer_types says so"
    if not config.use_sliding_window:
        return "use_sliding_window is off"
    return f"{layer} {'≥' if slides else '<'} max_window_layers = {first}"
