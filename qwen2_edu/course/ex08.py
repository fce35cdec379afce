"""The exercises of lesson 08: the full model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..attention import eager_attention
from .exercises import Exercise

Part = Callable[[Tensor], Tensor]


def suspect(model: nn.Module) -> nn.Module:
    """A copy of a language model with one bug in it. Look here only after exercises 4 and 5."""
    bad = copy.deepcopy(model)

    def attend(q, k, v, mask, scale, dropout=0.0):
        return eager_attention(q, k, v, mask, scale**2)  # 1/D instead of 1/sqrt(D)

    bad.model.layers[1].self_attn.attend = attend
    return bad


def tensors(layers: int, tied: bool) -> int:
    """How many tensors a weight file holds."""
    return 12 * layers + (2 if tied else 3)


def next_ids(logits: Tensor, lengths: list[int]) -> Tensor:
    """The winner after the last real token of each row; logits (B, T, V) -> (B,)."""
    rows = [logits[b, length - 1].argmax() for b, length in enumerate(lengths)]
    return torch.stack(rows)


def first_difference(rows: list[tuple[str, float]], tolerance: float) -> str | None:
    """The first station beyond the tolerance; NaN is beyond any."""
    return next((name for name, gap in rows if not gap <= tolerance), None)


def largest_difference(rows: list[tuple[str, float]], tolerance: float) -> str | None:
    """Where it is worst, which is seldom where it began."""
    name, gap = max(rows, key=lambda row: float("inf") if row[1] != row[1] else row[1])
    return None if gap <= tolerance else name


def blind_to_nan(rows: list[tuple[str, float]], tolerance: float) -> str | None:
    """NaN > x is false, whatever x is."""
    return next((name for name, gap in rows if gap > tolerance), None)


def nan_first(rows: list[tuple[str, float]], tolerance: float) -> str | None:
    """NaN anywhere is reported before a difference that came earlier."""
    return next((name for name, gap in rows if gap != gap), None) or blind_to_nan(rows, tolerance)


def last_sound(rows: list[tuple[str, float]], tolerance: float) -> str | None:
    """The station before the one that was asked for."""
    found = None
    for name, gap in rows:
        if not gap <= tolerance:
            return found
        found = name
    return None


LOGITS = torch.arange(3 * 4 * 5).view(3, 4, 5).mul(7).remainder(11).float()
LENGTHS = [3, 2, 1]
EARLY = [("embeddings", 0.0), ("attention", 0.002), ("MLP", 0.3), ("logits", 0.1)]
BOTH = [("embeddings", 0.0), ("attention", 0.002), ("MLP", float("nan")), ("logits", 0.5)]
SPOILT = [("embeddings", 0.0), ("attention", 1e-7), ("MLP", float("nan")), ("logits", 0.5)]


def flow(ids: Tensor, table: Tensor, blocks: list, norm: Part) -> Tensor:
    """ids (B, T) -> logits (B, T, V), with a tied table (V, E)."""
    x = table[ids]
    for attention, mlp, first, second in blocks:
        x = x + attention(first(x))
        x = x + mlp(second(x))
    return norm(x) @ table.T


def flow_without(ids: Tensor, table: Tensor, blocks: list, norm: Part) -> Tensor:
    return flow(ids, table, blocks, lambda x: x)


def flow_stream(ids: Tensor, table: Tensor, blocks: list, norm: Part) -> Tensor:
    kept = []
    flow(ids, table, blocks, lambda x: kept.append(norm(x)) or norm(x))
    return kept[0]


def flow_first_block(ids: Tensor, table: Tensor, blocks: list, norm: Part) -> Tensor:
    return flow(ids, table, blocks[:1], norm)


def flow_without_sums(ids: Tensor, table: Tensor, blocks: list, norm: Part) -> Tensor:
    x = table[ids]
    for attention, mlp, first, second in blocks:
        x = mlp(second(attention(first(x))))
    return norm(x) @ table.T


def flow_side_by_side(ids: Tensor, table: Tensor, blocks: list, norm: Part) -> Tensor:
    x = table[ids]
    for attention, mlp, first, second in blocks:
        x = x + attention(first(x)) + mlp(second(x))
    return norm(x) @ table.T


def flow_post_norm(ids: Tensor, table: Tensor, blocks: list, norm: Part) -> Tensor:
    x = table[ids]
    for attention, mlp, first, second in blocks:
        x = first(x + attention(x))
        x = second(x + mlp(x))
    return norm(x) @ table.T


def flow_mlp_first(ids: Tensor, table: Tensor, blocks: list, norm: Part) -> Tensor:
    x = table[ids]
    for attention, mlp, first, second in blocks:
        x = x + mlp(second(x))
        x = x + attention(first(x))
    return norm(x) @ table.T


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def _before(x: Tensor) -> Tensor:
    """Stands for attention: each token hears the mean of what came, itself included."""
    return x.cumsum(-2) / torch.arange(1, x.shape[-2] + 1)[:, None]


_BLOCKS = [
    (_before, lambda x: x.flip(-1).sin(), _unit, lambda x: 0.5 * _unit(x)),
    (lambda x: 2 * _before(x), torch.cos, lambda x: 1.5 * _unit(x), _unit),
]
_TABLE = (torch.arange(24.0).view(6, 4) * 5 % 7 - 3) / 2

EXERCISES = [
    Exercise(
        name="ex08_0",
        title="From ids to logits",
        answer=flow,
        cases=[
            (torch.tensor([[0, 3, 5], [2, 2, 1]]), _TABLE, _BLOCKS, lambda x: 2 * _unit(x)),
            (torch.tensor([[4]]), _TABLE, _BLOCKS[:1], _unit),
        ],
        wrong={
            "The last norm is missing: the head reads a normed stream.": flow_without,
            "That is post-norm. A block norms what a part reads, and adds to the stream itself.": (
                flow_post_norm
            ),
            "The MLP goes first here. In a block, attention comes before it.": flow_mlp_first,
            "Only the first block was run.": flow_first_block,
            "Parts replace the stream here. Each one adds to it.": flow_without_sums,
            "The MLP reads the stream from before attention. It should see what attention added.": (
                flow_side_by_side
            ),
            "That is the stream. Hold it against every row of the table: one product is left.": (
                flow_stream
            ),
        },
        tolerance=1e-4,
    ),
    Exercise(
        name="ex08_1",
        title="Tensors in a file",
        answer=tensors,
        cases=[(24, True), (28, False), (3, True), (80, False)],
        wrong={
            "A tied head is not stored a second time, an untied one is.": (
                lambda layers, tied: 12 * layers + 3
            ),
            "An untied head is a tensor of its own.": lambda layers, tied: 12 * layers + 2,
            "Nine in a layer? The biases of q, k and v are tensors too.": (
                lambda layers, tied: 9 * layers + (2 if tied else 3)
            ),
            "The other way round: the tied head is the one that is not stored.": (
                lambda layers, tied: 12 * layers + (3 if tied else 2)
            ),
            "There is one more norm than the layers have: it stands behind the last one.": (
                lambda layers, tied: 12 * layers + (1 if tied else 2)
            ),
        },
        tolerance=0,
    ),
    Exercise(
        name="ex08_2",
        title="The next token of each row",
        answer=next_ids,
        cases=[(LOGITS, LENGTHS), (LOGITS.flip(0), [1, 1, 3])],
        wrong={
            "This reads the last column, which is padding in the shorter rows.": (
                lambda logits, lengths: logits[:, -1].argmax(-1)
            ),
            "One too far: a row of n tokens ends at position n - 1.": (
                lambda logits, lengths: torch.stack(
                    [logits[b, n].argmax() for b, n in enumerate(lengths)]
                )
            ),
            "This is what follows the first token of each row, not the last.": (
                lambda logits, lengths: logits[:, 0].argmax(-1)
            ),
        },
        tolerance=0,
    ),
    Exercise(
        name="ex08_3",
        title="The first difference",
        answer=first_difference,
        cases=[
            (EARLY, 1e-5),
            (SPOILT, 1e-5),
            (EARLY, 1.0),
            (EARLY, 0.01),
            (EARLY, 0.002),
            (BOTH, 1e-5),
        ],
        wrong={
            "This is the largest difference. What begins small may grow: take the first.": (
                largest_difference
            ),
            "NaN slips through, since every comparison with it is false. Turn the test round.": (
                blind_to_nan
            ),
            "NaN is reported first, though a station before it differs already.": nan_first,
            "A difference as large as the tolerance is not beyond it. Only a larger one is.": (
                lambda rows, tolerance: next((n for n, gap in rows if not gap < tolerance), None)
            ),
            "This is the last station that is still right, one too early.": last_sound,
        },
        tolerance=0,
    ),
    Exercise(
        name="ex08_4",
        title="Where is the bug?",
        answer="layer 1, after attention",
        wrong={
            "The logits are where it arrives. Which row of the table is the first to differ?": (
                "logits"
            ),
            "Layers are counted from 0, as in the table.": "layer 2, after attention",
            "The MLP hands on what was wrong before it. Look one row up.": "layer 1, after MLP",
        },
    ),
    Exercise(
        name="ex08_5",
        title="Which bug is it?",
        answer=3,
        wrong={
            "Without its value bias, even a token that sees nobody but itself says something "
            "else. What did position 0 tell you?": 1,
            "A head that reads the wrong values is wrong at position 0 too. What did you see "
            "there?": 2,
            "The output matrix is used at every position. Is every position wrong?": 4,
        },
    ),
]
