"""Heads other than the language model: one label per text, one per token, or a span of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from .config import Qwen2Config
from .model import CausalLMOutput, Count, Qwen2Model, mean_loss
from .outputs import Output
from .pretrained import Qwen2PreTrainedModel


@dataclass(repr=False)
class ClassifierOutput(CausalLMOutput):
    """logits: (B, labels) for a text, (B, T, labels) for tokens; loss: mean over the labels."""


@dataclass(repr=False)
class SpanOutput(Output):
    """start_logits, end_logits: (B, T), is this token the first, or the last, of the answer?"""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Qwen2ForSequenceClassification(Qwen2PreTrainedModel):
    """One label per text, read off its last real token: the only one that has seen all others."""

    fresh_heads = ("score.weight",)

    def __init__(self, config: Qwen2Config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.init_weights(self.score)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **options: Any,
    ) -> ClassifierOutput:
        """Classify B texts. Arguments as in `Qwen2Model.forward`, and:

        Args:
            attention_mask: (B, T), 0 = padding on either side. It alone tells where a text ends:
                transformers asks for `config.pad_token_id` even then, and so misses the end of a
                text that really ends in that token, as one may whose padding is <|endoftext|>.
                Without a mask that id does tell; padding on the left is then read as text. Several
                texts with neither are a ValueError. Embeddings without a mask are all text.
            labels: (B,) class ids; (B, labels) of 0 and 1 for several labels at once; floats for
                regression. `config.problem_type` says which; unset, it follows from the number of
                labels and their dtype.
        """
        out = self.model(input_ids, attention_mask, **options)
        logits = self.score(out.last_hidden_state)  # (B, T, labels)
        B, T, _ = logits.shape
        if attention_mask is not None:
            real = attention_mask[:, -T:].bool()
        elif input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        elif B == 1 or input_ids is None:
            real = logits.new_ones(B, T)
        else:
            raise ValueError(f"where do {B} texts end? Give attention_mask or config.pad_token_id")
        last = (torch.arange(T, device=real.device) * real).argmax(-1)  # (B,)
        logits = logits[torch.arange(B, device=logits.device), last]  # (B, labels)
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config, num_items_in_batch)
        return ClassifierOutput(
            loss, logits, out.past_key_values, out.hidden_states, out.attentions
        )


class Qwen2ForTokenClassification(Qwen2PreTrainedModel):
    """One label per token."""

    fresh_heads = ("score.weight", "score.bias")

    def __init__(self, config: Qwen2Config):
        super().__init__(config)
        rates = [config.extra.get(name) for name in ("classifier_dropout", "hidden_dropout")]
        bias = config.extra.get("token_classification_bias", True)
        self.model = Qwen2Model(config)
        self.dropout = nn.Dropout(next((rate for rate in rates if rate is not None), 0.1))
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=bias)
        self.init_weights(self.score)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **options: Any,
    ) -> ClassifierOutput:
        """As `Qwen2Model.forward`, and labels: (B, T) class ids, -100 = not counted."""
        out = self.model(input_ids, attention_mask, **options)
        logits = self.score(self.dropout(out.last_hidden_state))  # (B, T, labels)
        loss = None
        if labels is not None:
            loss = mean_loss(logits, labels, num_items_in_batch)
        return ClassifierOutput(
            loss, logits, out.past_key_values, out.hidden_states, out.attentions
        )


class Qwen2ForQuestionAnswering(Qwen2PreTrainedModel):
    """The first and last token of the answer within the text."""

    fresh_heads = ("qa_outputs.weight", "qa_outputs.bias")
    base_model_prefix = "transformer"

    def __init__(self, config: Qwen2Config):
        super().__init__(config)
        self.transformer = Qwen2Model(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.init_weights(self.qa_outputs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **options: Any,
    ) -> SpanOutput:
        """As `Qwen2Model.forward`, and start_positions, end_positions: (B,). As transformers has
        it: from T on not counted, a negative one is 0, and the loss needs both.
        """
        out = self.transformer(input_ids, attention_mask, **options)
        start, end = self.qa_outputs(out.last_hidden_state).unbind(-1)  # (B, T) each
        loss = None
        if start_positions is not None and end_positions is not None:
            T, loss = start.shape[1], 0
            for scores, at in ((start, start_positions), (end, end_positions)):
                at = at.flatten().clamp(0, T)
                loss = loss + mean_loss(scores, at.where(at < T, -100), num_items_in_batch) / 2
        return SpanOutput(loss, start, end, out.hidden_states, out.attentions)


def classification_loss(
    logits: Tensor, labels: Tensor, config: Qwen2Config, count: Count = None
) -> Tensor:
    """The loss that `config.problem_type` names, or that labels (B,) or (B, labels) imply; fp32.
    `count` as in `mean_loss`: transformers' heads take no notice of it here, so that its Trainer
    gives accumulated batches too much weight.
    """
    kind, logits = config.problem_type, logits.float()
    if kind is None and config.num_labels == 1:
        kind = "regression"
    elif kind is None and labels.dtype in (torch.int64, torch.int32):
        kind = "single_label_classification"
    if kind == "single_label_classification":
        return mean_loss(logits, labels.flatten(), count)
    if labels.numel() != logits.numel() or labels.device != logits.device:
        found = f"labels {labels.dtype} {tuple(labels.shape)} on {labels.device} do not fit logits"
        several = f"{tuple(logits.shape)} on {logits.device}: give a number for each"
        raise ValueError(f"{found} {several}, or, for one class a text, integers")
    measure = mse_loss if kind == "regression" else binary_cross_entropy_with_logits
    loss = measure(logits, labels.float().reshape(logits.shape))
    return loss if count is None else loss * labels.numel() / count
