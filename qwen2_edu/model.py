"""The whole model: token ids in, logits for the next token out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint

from .attention import RECORDS, Qwen2Attention
from .cache import Cache, DynamicCache, StaticCache
from .capture import capture
from .checks import Range, check_ids, refuse_unknown
from .config import FULL, Qwen2Config
from .layers import RMSNorm, SwiGLU
from .masks import BLOCK, LongMask, tokens_of_own_document
from .outputs import Output
from .pretrained import Qwen2PreTrainedModel
from .rope import RotaryEmbedding

Count = Annotated[int | Tensor | None, Range(1, 2**53)]
ARGUMENTS = """input_ids attention_mask position_ids past_key_values inputs_embeds use_cache
output_attentions output_hidden_states return_dict labels logits_to_keep""".split()
INSTEAD = {  # what callers of transformers pass
    "is_causal": "set it in the configuration",
    "cache_position": "the cache counts by itself",
    "token_type_ids": "Qwen2 does not tell segments apart: leave it out",
    "shift_labels": "pass labels, which are shifted here",
}


@dataclass(repr=False)
class ModelOutput(Output):
    """last_hidden_state: (B, T, E), after the final norm; hidden_states: the embeddings, then each
    layer's output, the last after the final norm; attentions: of each layer, (B, H, T, S). What was
    not asked for is None.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(repr=False)
class CausalLMOutput(Output):
    """logits: (B, T, V), or the positions that `logits_to_keep` names; loss: mean nats a label."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Qwen2DecoderLayer(nn.Module):
    """One block: attention, then the MLP. Each reads a normed copy of the stream and adds to it."""

    def __init__(self, config: Qwen2Config, layer_idx: int):
        super().__init__()
        self.self_attn = Qwen2Attention(config, layer_idx)
        self.mlp = SwiGLU(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        """x: (B, T, E) -> (B, T, E); the other arguments as in `Qwen2Attention`."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2Model(Qwen2PreTrainedModel):
    """The trunk: embeddings, the blocks, a final norm. It carries `Qwen2ForCausalLM` or a head."""

    def __init__(self, config: Qwen2Config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Qwen2DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self.gradient_checkpointing = bool(config.extra.get("gradient_checkpointing"))
        self.checkpointing_options = {}
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **unknown: Any,
    ) -> ModelOutput:
        """Read T more tokens.

        Args:
            input_ids: (B, T), or give `inputs_embeds` (B, T, E) instead.
            attention_mask: (B, T), 0 = padding; None = all real. Of (B, past + T), as transformers
                wants it, the last T columns are new; the others must be as the cache read them.
            position_ids: (B, T) or (1, T) for the rotary embedding; None counts the columns, but
                for padding on the left. Without a mask and a cache, a position that does not follow
                its neighbour starts a new document, unseen by others; with one it only rotates.
            past_key_values: a cache; None starts one if `use_cache`.
            use_cache: None = as configured, but never while training, while exporting, or for
                packed documents.
            output_attentions, output_hidden_states: None = as the configuration says.
            return_dict: False = a plain tuple of what is not None.

        Raises:
            ValueError: both or none of ids and embeddings, or shapes that do not fit.
            TypeError: an unknown argument.
        """
        if unknown:
            given = [name for name, value in unknown.items() if value is not None]
            refuse_unknown("forward()", given, ARGUMENTS, INSTEAD)
        if output_attentions is None:
            output_attentions = self.config.extra.get("output_attentions")
        if output_hidden_states is None:
            output_hidden_states = self.config.extra.get("output_hidden_states")
        places = {"attention_mask": attention_mask, "position_ids": position_ids}
        x = self._embed(input_ids, inputs_embeds, **places)  # (B, T, E)
        alone = attention_mask is None and past_key_values is None and not use_cache
        own = self._own_documents(position_ids, x, alone and self.config.is_causal)
        cache = self._choose_cache(past_key_values, use_cache, own is not None)
        rope_positions, masks = self._place(x, attention_mask, position_ids, cache, own)
        cos, sin = self.rotary_emb(rope_positions, x.dtype)

        keep_little = self.gradient_checkpointing and self.training and cache is None
        options = {"use_reentrant": False, **self.checkpointing_options}
        states = [x] if output_hidden_states else None
        with capture(self) if output_attentions else nullcontext() as record:
            for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
                if keep_little and not RECORDS.get():  # else the way back would be recorded too
                    x = checkpoint(layer, x, cos, sin, masks[kind], **options)
                else:
                    x = layer(x, cos, sin, masks[kind], cache)
                if states is not None:
                    states.append(x)
        x = self.norm(x)
        if cache is not None:
            cache.advance(x.shape[1])
        return ModelOutput(
            last_hidden_state=x,
            past_key_values=cache,
            hidden_states=(*states[:-1], x) if states is not None else None,
            attentions=tuple(record.attentions) if record is not None else None,
        )

    def _embed(self, input_ids: Any, inputs_embeds: Tensor | None = None, **more: Any) -> Tensor:
        _check_inputs(self, input_ids, inputs_embeds, **more)
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def _own_documents(self, position_ids: Tensor | None, x: Tensor, alone: bool) -> Tensor | None:
        """`tokens_of_own_document` where positions alone tell documents apart, else None."""
        if position_ids is None:
            return None
        B, T, _ = x.shape
        if tuple(position_ids.shape) not in ((1, T), (B, T)):
            shape = tuple(position_ids.shape)
            raise ValueError(f"position_ids {shape} do not fit {B} rows of {T} tokens")
        own = tokens_of_own_document(position_ids) if alone else None
        if alone and not torch.compiler.is_compiling() and (own[:, -1] == T).all():
            return None  # one document a row after all
        return own

    def _choose_cache(self, cache, use_cache: bool | None, packed: bool) -> Cache | None:
        if cache is not None:
            layers = len(cache.layers) if isinstance(cache, Cache) else type(cache).__name__
            if layers != self.config.num_hidden_layers:
                raise ValueError(
                    f"past_key_values must be a DynamicCache or StaticCache of "
                    f"{self.config.num_hidden_layers} layers, this is {layers}"
                )
            return cache
        if use_cache is None:
            idle = self.training or packed or torch.compiler.is_exporting()
            use_cache = self.config.use_cache and not idle
        return DynamicCache(self.config) if use_cache else None

    def _place(self, x: Tensor, attention_mask, position_ids, cache: Cache | None, own):
        """Where do the new tokens stand, and what may they see? Arguments as in `forward`; `own` as
        `tokens_of_own_document` answers, or None.

        A *slot* is a column of the cache, padding included. A *position* is the slot of a real
        token, -1 for padding: it decides what is seen. The *rotary* position leaves out padding on
        the left, so that a row counts as if it stood alone.

        Returns:
            Rotary positions, (B, T), and for each kind of layer a mask (B, 1, T, S) or None.
        """
        B, T, _ = x.shape
        start, pads = (0, 0) if cache is None else (cache.length, cache.pads)
        slots = (start + torch.arange(T, device=x.device)).expand(B, T)
        positions = slots
        if attention_mask is not None:
            real = _new_columns(attention_mask, B, T, start)
            if torch.compiler.is_compiling() or not real.all():  # all real is the faster case
                leading = (real.cumsum(-1) == 0) & (pads == start)  # nothing real came before
                pads = pads + leading.cumsum(-1)  # (B, T)
                positions = slots.where(real, -1)
        if position_ids is None:
            position_ids = (slots - pads).clamp(min=0)
        if cache is not None:
            keys = cache.place(positions)
            if isinstance(pads, Tensor):
                cache.pads = pads[:, -1:]
            if attention_mask is not None and attention_mask.shape[1] > T:
                _check_past(attention_mask.bool(), keys)
        else:
            keys = dict.fromkeys(self.config.window_by_type, positions)

        causal, compiling = self.config.is_causal, torch.compiler.is_compiling()
        plain = own is None and positions is slots and not isinstance(pads, Tensor)
        plain = plain and not isinstance(cache, StaticCache)
        masks: dict[str, Tensor | LongMask | None] = {}
        for kind, window in self.config.window_by_type.items():
            S = keys[kind].shape[1]
            if plain and (T == 1 or (T == S and causal)) and (window is None or S <= window):
                masks[kind] = None  # one new token, or all: plain causal, which needs no mask
                continue
            reach: int | Tensor | None = window
            if own is not None:
                reach = own if window is None else own.clamp(max=window)
            mask = LongMask(slots, keys[kind], reach, causal, x.dtype)
            masks[kind] = mask if T > BLOCK and not compiling else mask.whole()
        return position_ids, masks


def _check_inputs(
    trunk: nn.Module, input_ids: Any, inputs_embeds: Any, wait: bool = False, **beside: Any
) -> None:
    """Refuse what a trunk cannot read, or is not where it is; `wait` as in `check_ids`."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds, not both and not neither")
    device = trunk.device
    for name, x in {"input_ids": input_ids, "inputs_embeds": inputs_embeds, **beside}.items():
        if isinstance(x, Tensor) and x.device != device:
            where = f"{name} must be on {device}, as the model is, not on {x.device}"
            raise ValueError(f"{where}: pass {name}.to(model.device)")
    if isinstance(input_ids, Tensor) and input_ids.ndim == 1:
        shape = tuple(input_ids.shape)
        raise ValueError(f"input_ids must be (B, T), {shape} is one row: pass input_ids[None]")
    if inputs_embeds is None:
        return check_ids(input_ids, trunk.config.vocab_size, wait)
    shape, E, kind = tuple(inputs_embeds.shape), trunk.config.hidden_size, inputs_embeds.dtype
    if len(shape) != 3 or 0 in shape or shape[2] != E:
        raise ValueError(f"inputs_embeds must be (B, T, {E}), not {shape}")
    if kind != trunk.dtype and not torch.is_autocast_enabled(device.type):
        raise ValueError(f"inputs_embeds are {kind} and the model {trunk.dtype}: convert them")


def _check_past(mask: Tensor, keys: dict[str, Tensor]) -> None:
    """Refuse a mask (B, past + T) that has other padding than the cache has read."""
    for kind, held in {} if torch.compiler.is_compiling() else keys.items():
        wrong = ((held >= 0) & ~mask.gather(1, held.clamp(0, mask.shape[1] - 1))).any()
        if wrong or (kind == FULL and ((held >= 0).sum(-1) != mask.sum(-1)).any()):
            raise ValueError(
                "attention_mask and the cache disagree on which cached tokens are padding: a cache "
                "keeps what it has read, so pass the same mask again, or start another cache"
            )


def _new_columns(attention_mask: Tensor, B: int, T: int, start: int | Tensor) -> Tensor:
    """The last T columns of a mask (B, T) or (B, past + T), as bool."""
    shape = tuple(attention_mask.shape)
    if torch.compiler.is_compiling():  # the length of a static cache cannot be looked at
        fits = len(shape) == 2 and shape[0] == B and shape[1] >= T
    else:
        fits = shape in ((B, T), (B, int(start) + T))
    if not fits:
        cached = f", or ({B}, {start + T}), the {start} cached ones too" if start else ""
        raise ValueError(
            f"attention_mask {shape} does not fit: expected ({B}, {T}), one entry for each new "
            f"token{cached}"
        )
    return attention_mask[:, -T:].bool()


class Qwen2ForCausalLM(Qwen2PreTrainedModel):
    """The language model: the trunk and a linear head onto the vocabulary. In the small releases
    the head is the embedding matrix itself (`tie_word_embeddings`).
    """

    loss_type = "ForCausalLM"  # by which transformers' Trainer knows that labels are shifted here

    def __init__(self, config: Qwen2Config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.init_weights(self.lm_head)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the head be the embedding matrix itself, if the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        **options: Any,
    ) -> CausalLMOutput:
        """Logits for the token after each position. Arguments as in `Qwen2Model.forward`, and:

        Args:
            labels: (B, T) ids, -100 = not counted; position t is judged on label t + 1. Padding
                counts unless its labels are -100.
            logits_to_keep: only the last n positions (0 = all), or a tensor of positions.
            num_items_in_batch: what the sum of the losses is divided by; None = the labels counted.
        """
        past = past_key_values
        out = self.model(input_ids, attention_mask, position_ids, past, inputs_embeds, **options)
        whole = isinstance(logits_to_keep, Tensor) and logits_to_keep.ndim > 0
        keep = logits_to_keep if whole else slice(-int(logits_to_keep or 0), None)
        logits = self.lm_head(out.last_hidden_state[:, keep])  # (B, T, V)
        loss = None
        if labels is not None:
            loss = next_token_loss(logits, labels, num_items_in_batch)
        return CausalLMOutput(loss, logits, out.past_key_values, out.hidden_states, out.attentions)

    def generate(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Continue `input_ids`, (B, T) -> (B, T + new); options as in `generation.generate`."""
        from .generation import generate

        return generate(self, input_ids, attention_mask, **options)


def next_token_loss(
    logits: Annotated[Tensor, "floats B T V"],
    labels: Annotated[Tensor, "ints B T"],
    count: Count = None,
) -> Tensor:
    """Mean cross-entropy in nats of each label given what came before it; fp32. Logits (B, T, V),
    labels (B, T) with -100 = not counted -> (); `count` as in `mean_loss`.
    """
    following = pad(labels, (0, 1), value=-100)[..., 1:]  # (B, T): the label of the next position
    return mean_loss(logits, following, count)


def mean_loss(logits: Tensor, labels: Tensor, count: Count = None) -> Tensor:
    """Cross-entropy of logits (..., classes) and labels (...), -100 = not counted; fp32. The sum
    over labels is divided by `count`, None = their number: a trainer that adds up the gradients of
    several batches counts the labels of all.
    """
    _check_labels(labels, logits)
    logits, labels = logits.float().flatten(0, -2), labels.long().flatten()
    loss = cross_entropy(logits, labels, reduction="sum")
    return loss / (labels.ne(-100).sum() if count is None else count)


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    """Refuse labels that are not an integer for each place of the logits (..., classes), one of the
    classes or -100. As with ids, what lies on a GPU is not looked at.
    """
    places, last = tuple(logits.shape[:-1]), logits.shape[-1] - 1
    whole = not (labels.is_floating_point() or labels.is_complex())
    if (labels.shape, labels.device) != (places, logits.device) or not whole:
        found = f"labels {labels.dtype} {tuple(labels.shape)} on {labels.device}"
        fit = f"do not fit logits {tuple(logits.shape)} on {logits.device}: give integers {places}"
        raise ValueError(f"{found} {fit}")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels[(labels != -100) & ((labels < 0) | (labels > last))]
        if len(wrong):
            raise ValueError(f"labels hold {wrong[0]}: each is from 0 to {last}, or -100")
