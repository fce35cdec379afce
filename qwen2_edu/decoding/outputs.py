"""What a run of `generate` hands back besides ids, and who notes it down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..cache import Cache
from ..outputs import Output


@dataclass(repr=False)
class GenerateOutput(Output):
    """What `generate(..., return_dict_in_generate=True)` answers; N rows, with beams B * num_beams.

    sequences: prompts and answers, (B * num_return_sequences, T + longest answer).
    sequences_scores: of beam search, log probability / length ** length_penalty of each answer.
    scores: for each step (N, V), after all processors; log probabilities with beams.
    logits: for each step (N, V), as the model said them, in float32.
    beam_indices: which row each token of an answer was said in, -1 after its end.
    attentions, hidden_states: for each pass the model's, so the first are of the prompt.
    past_key_values: the cache; None with use_cache=False.
    accepted: of speculation, how many guessed tokens each pass kept.
    What was not asked for is None.
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: Cache | None = None
    accepted: tuple[int, ...] | None = None


class Recorder:
    """Stands in for the model and keeps what was asked for of each pass, and of each choice."""

    def __init__(self, model: Any, settings: Any):
        self.model, maps = model, ("attentions", "hidden_states")
        names = ("scores", "logits", *maps) if settings.return_dict_in_generate else ()
        self.kept: dict[str, tuple] = {n: () for n in names if getattr(settings, f"output_{n}")}
        self.asked = {f"output_{name}": True for name in maps if name in self.kept}

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        out = self.model(*inputs, **options, **self.asked)
        self.keep(attentions=out.attentions, hidden_states=out.hidden_states)
        return out

    def keep(self, **values: Any) -> None:
        """Append each value that was asked for; of a tensor, which may yet be changed, a copy."""
        for name in values.keys() & self.kept.keys():
            value = values[name]
            self.kept[name] += (value.clone() if isinstance(value, Tensor) else value,)

    def reorder(self, rows: Tensor) -> None:
        """Make row i of the pass over the prompt what row rows[i] was."""
        for name in self.kept.keys() & {"attentions", "hidden_states"}:
            self.kept[name] = (tuple(x[rows] for x in self.kept[name][0]),)
