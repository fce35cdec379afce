"""Record attention maps and hidden states without touching the hot path.

with capture(model) as record:
    model(input_ids)
record.attentions[layer]  # (B, H, T, S)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from .attention import Qwen2Attention, attention_weights, weighted_values


@dataclass
class Record:
    """What a captured pass left behind, one entry per layer and pass, in the order they ran.

    attentions: (B, H, T, S) each, after softmax (and before dropout). The S keys of a sliding layer
        that decodes from a full ring stand in slot order; `key_positions` of the cache tells which
        is which.
    """

    attentions: list[Tensor] = field(default_factory=list)


@contextmanager
def capture(model: nn.Module) -> Iterator[Record]:
    """Record the attention weights of every layer of `model`, whatever its backend, while the block
    runs.

    The backend of each layer is swapped for the eager formula, which keeps its weights, and put
    back at the end, also after an error. Results change by rounding alone.

    Raises:
        ValueError: the model is compiled (its graph would not see the swap) or has no attention
            layers.
    """
    if type(model).__name__ == "OptimizedModule":
        raise ValueError(
            "this model is under torch.compile, which has fixed its backend: "
            "capture the model it was made from"
        )
    layers = [module for module in model.modules() if isinstance(module, Qwen2Attention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Qwen2Attention layers to record")
    record = Record()

    def recording(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0
    ) -> Tensor:
        weights = attention_weights(q, k, mask, scale)
        record.attentions.append(weights)
        return weighted_values(drop(weights, dropout) if dropout else weights, v)

    backends = [layer.attend for layer in layers]
    try:
        for layer in layers:
            layer.attend = recording
        yield record
    finally:
        for layer, backend in zip(layers, backends, strict=True):
            layer.attend = backend
