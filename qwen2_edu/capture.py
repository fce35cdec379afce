"""Record attention maps and hidden states without touching the hot path.

with capture(model) as record:
    model(input_ids)
record.attentions[layer]  # (B, H, T, S)
record.hidden_states[layer]  # (B, T, E)
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
    """What the captured passes left behind, in the order they ran.

    attentions: for each pass and layer (B, H, T, S), after softmax and before dropout; the layers
        of pass n begin at [n * layers]. Where a sliding layer decodes from a full ring, its keys
        stand in slot order, which `Cache.key_positions` tells. Rows of padding mean nothing: a
        query that sees no key spreads evenly over all.
    hidden_states: for each pass layers + 1 tensors (B, T, E), the residual stream before the first
        block and after each. (`output_hidden_states` shows the last one after the final norm.)
    """

    attentions: list[Tensor] = field(default_factory=list)
    hidden_states: list[Tensor] = field(default_factory=list)


@contextmanager
def capture(model: nn.Module) -> Iterator[Record]:
    """Record what happens inside `model` while the `with` block runs.

    The backend of each layer, whichever it is, is swapped for the eager formula, which keeps its
    weights, and put back at the end, also after an error. Results change by rounding alone.

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

    def before_first(block: nn.Module, inputs: tuple) -> None:
        record.hidden_states.append(inputs[0])

    def after_each(block: nn.Module, inputs: tuple, output: Tensor) -> None:
        record.hidden_states.append(output)

    blocks = [block for block in model.modules() if set(block.children()) & set(layers)]
    # Checkpointing would run each block again in the backward pass, and record it again.
    trunks = [part for part in model.modules() if vars(part).get("gradient_checkpointing")]
    backends = [layer.attend for layer in layers]
    hooks = [blocks[0].register_forward_pre_hook(before_first)] if blocks else []
    hooks += [block.register_forward_hook(after_each) for block in blocks]
    try:
        for layer in layers:
            layer.attend = recording
        for trunk in trunks:
            trunk.gradient_checkpointing = False
        yield record
    finally:
        for trunk in trunks:
            trunk.gradient_checkpointing = True
        for layer, backend in zip(layers, backends, strict=True):
            layer.attend = backend
        for hook in hooks:
            hook.remove()
