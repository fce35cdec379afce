"""From documents to batches: short documents share a row, and batch i depends on i alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import checked
from .text.surface import Surface


def chat_documents(
    tokenizer: Surface, conversations: Sequence[Sequence[Mapping[str, Any]]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Conversations as ids, with labels only where the assistant speaks, its <|im_end|> included.

    Returns (documents, labels) for `pack`; -100 = not counted. ValueError: a conversation without
    an answer to learn from.
    """
    encoded = tokenizer.apply_chat_template(
        conversations, return_dict=True, return_assistant_tokens_mask=True
    )
    documents, labels = encoded["input_ids"], []
    for n, (ids, speaks) in enumerate(zip(documents, encoded["assistant_masks"], strict=True)):
        if not any(speaks):
            raise ValueError(f"conversation {n} has no answer of the assistant to learn from")
        labels.append([i if answer else -100 for i, answer in zip(ids, speaks, strict=True)])
    return documents, labels


def pack(
    documents: Sequence[Sequence[int]], length: int, labels: Sequence[Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Lay documents into rows so that little room is wasted and none is cut without need.

    Longest first, each goes to the row that has the least room for it, or to a new one. What is
    longer than a row is cut, and its pieces count as documents of their own. The room left in a row
    is one more document, of token 0, which counts for nothing.

    Args:
        length: T, of a row.
        labels: for each document as many labels as ids, -100 = not counted; None = every token.

    Returns:
        input_ids, position_ids and labels, (rows, T). Positions begin at 0 with each document,
        by which the model tells them apart, and its first label is -100: what stands before it in
        the row does not predict it.

    Raises:
        ValueError: no documents, an empty one, or labels that do not fit.

    Source: best-fit packing, Ding et al., Fewer Truncations Improve Language Modeling,
        arXiv:2404.10830.
    """
    labels = documents if labels is None else labels
    if not 1 <= length <= 2**27 or not documents or len(documents) != len(labels):
        given = f"length {length}, {len(documents)} documents, {len(labels)} labels"
        raise ValueError(f"{given}: give a length of 1 to 2**27, documents, and labels for each")
    pieces = []
    for n, (ids, wanted) in enumerate(zip(documents, labels, strict=True)):
        if not len(ids) or len(ids) != len(wanted):
            raise ValueError(f"document {n} has {len(ids)} ids and {len(wanted)} labels")
        for i in range(0, len(ids), length):
            pieces.append((list(ids[i : i + length]), [-100, *wanted[i + 1 : i + length]]))

    rows: list[tuple[list[int], list[int], list[int]]] = []  # ids, positions, labels
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the room they have
    for ids, wanted in sorted(pieces, key=lambda piece: -len(piece[0])):
        n = len(ids)
        room = next((room for room in range(n, length + 1) if with_room[room]), length)
        if not with_room[room]:
            with_room[room].append(len(rows))
            rows.append(([], [], []))
        row = with_room[room].pop()
        with_room[room - n].append(row)
        for column, more in zip(rows[row], (ids, range(n), wanted), strict=True):
            column.extend(more)
    for ids, positions, wanted in rows:
        room = length - len(ids)
        ids += [0] * room
        positions += range(room)
        wanted += [-100] * room
    columns = zip(("input_ids", "position_ids", "labels"), zip(*rows, strict=True), strict=True)
    return {name: torch.tensor(column) for name, column in columns}


@checked
class Shuffled:
    """Endless batches of rows, {name: (rows, …)} as of `pack`: item i depends on seed and i alone.

    Every row comes once, in random order, then all once more in another order, and so on.
    """

    def __init__(self, rows: Mapping[str, Tensor], batch_size: int, seed: int = 0):
        self.rows, self.batch_size, self.seed = dict(rows), batch_size, seed
        self.count = _count(rows, batch_size)
        self._round, self._order = None, torch.empty(0)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        numbers = range(i * self.batch_size, (i + 1) * self.batch_size)
        picks = torch.stack([self._pick(*divmod(number, self.count)) for number in numbers])
        return {name: tensor[picks] for name, tensor in self.rows.items()}

    def _pick(self, round: int, place: int) -> Tensor:
        if round != self._round:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + round) % 2**64)
            self._round, self._order = round, torch.randperm(self.count, generator=generator)
        return self._order[place]


def in_order(rows: Mapping[str, Tensor], batch_size: int) -> list[dict[str, Tensor]]:
    """All rows once, as they stand, as batches; the last may be smaller. To evaluate on."""
    starts = range(0, _count(rows, batch_size), batch_size)
    return [{name: t[i : i + batch_size] for name, t in rows.items()} for i in starts]


def _count(rows: Mapping[str, Tensor], batch_size: int) -> int:
    sizes = {name: len(tensor) for name, tensor in rows.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values() or batch_size < 1:
        given = f"batches of {batch_size} rows from {sizes}"
        raise ValueError(f"{given}: all must have as many rows, and at least 1")
    return next(iter(sizes.values()))
