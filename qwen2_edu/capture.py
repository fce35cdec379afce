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

from .attention import RECORDS, Qwen2Attention
from .checks import checked


@dataclass(eq=False)
class Record:
    """What the captured passes left behind, in the order they ran.

    attentions: for each pass and layer (B, H, T, S), after softmax and before dropout; the layers
        of pass n begin at [n * L], with L layers. Where a sliding layer decodes from a full ring,
        its keys stand in slot order, which `Cache.key_positions` tells. Rows of padding mean
        nothing: a query that sees no key spreads evenly over all.
    hidden_states: for each pass L + 1 tensors (B, T, E), the residual stream before the first
        block and after each. (`output_hidden_states` shows the last one after the final norm.)
    layers: the attention layers that are recorded.
    """

    attentions: list[Tensor] = field(default_factory=list)
    hidden_states: list[Tensor] = field(default_factory=list)
    layers: frozenset[nn.Module] = field(default=frozenset(), repr=False)


@checked
@contextmanager
def capture(model: nn.Module) -> Iterator[Record]:
    """Record what happens inside `model` while the `with` block runs, in this thread alone.

    Each layer computes the eager formula, which keeps its weights, in place of its backend.
    Results change by rounding alone. Captures may be nested: each records what it is around.

    Raises:
        ValueError: the model is compiled (its graph would record nothing) or has no attention
            layers.
    """
    if type(model).__name__ == "OptimizedModule" or getattr(model, "_compiled_call_impl", None):
        fixed = "this model is under torch.compile, which has fixed its backend"
        raise ValueError(f"{fixed}: capture the model it was made from")
    layers = frozenset(module for module in model.modules() if isinstance(module, Qwen2Attention))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Qwen2Attention layers to record")
    record = Record(layers=layers)

    def keep(x: Tensor) -> None:
        if record in RECORDS.get():  # another thread's pass runs through the same blocks
            record.hidden_states.append(x)

    blocks = [block for block in model.modules() if layers.intersection(block.children())]
    hooks = [block.register_forward_hook(lambda block, inputs, out: keep(out)) for block in blocks]
    if blocks:
        hooks += [blocks[0].register_forward_pre_hook(lambda block, inputs: keep(inputs[0]))]
    token = RECORDS.set((*RECORDS.get(), record))
    try:
        yield record
    finally:
        RECORDS.reset(token)
        for hook in hooks:
            hook.remove()
