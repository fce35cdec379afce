"""Text as it comes: watch for stop strings, hand out whole characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


class StopStrings:
    """Which rows have just completed one of the `strings`?

    A string may begin in the prompt. The newest token must complete it, and may go on after it.
    """

    def __init__(self, tokenizer: Any, strings: list[str], ids: Tensor, mask: Tensor | None = None):
        self.strings, self.reach = strings, max(map(len, strings))
        self.decoders = [tokenizer.stream_decoder() for _ in ids]
        self.tails = []  # the last characters of each row
        near = max(len(text.encode()) for text in strings)  # a token has at least one byte
        for row, decoder in enumerate(self.decoders):
            prompt = ids[row] if mask is None else ids[row][mask[row]]
            self.tails.append("".join(map(decoder.push, prompt[-near:].tolist()))[-self.reach :])

    def __call__(self, ids: Tensor, scores: Any = None) -> Tensor:
        """Read the newest id of each row, (B, T) -> bool (B,)."""
        hits = [self._push(row, token) for row, token in enumerate(ids[:, -1].tolist())]
        return torch.tensor(hits, device=ids.device)

    def _push(self, row: int, token: int) -> bool:
        before = self.tails[row]
        text = before + self.decoders[row].push(token)
        self.tails[row] = text[-self.reach :]
        return any(text.find(s, max(0, len(before) - len(s) + 1)) >= 0 for s in self.strings)


class TextPieces:
    """Turns the ids of one row into text, piece by piece; the pieces together are the text.

    A piece never ends within a character, nor within a stop string that may yet be completed.
    Control tokens such as <|im_end|> are left out unless `skip_special_tokens` is False.
    """

    def __init__(
        self, tokenizer: Any, stop_strings: Iterable[str] = (), skip_special_tokens: bool = True
    ):
        self.decoder, self.held = tokenizer.stream_decoder(skip_special_tokens), ""
        self.stop_strings = tuple(stop_strings)
        self.beginnings = tuple(s[:n] for s in self.stop_strings for n in range(1, len(s)))

    def push(self, token: int) -> str:
        """Take one more id; answer the text that is certain by now."""
        text = self.held + self.decoder.push(token)
        certain = len(text)
        if not any(s in text for s in self.stop_strings):
            certain -= max((len(b) for b in self.beginnings if text.endswith(b)), default=0)
        self.held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """No more ids will come: answer the rest."""
        text, self.held = self.held + self.decoder.flush(), ""
        return text

    def of(self, ids: Iterable[int]) -> Iterator[str]:
        """The pieces of a whole answer; empty ones are left out."""
        yield from filter(None, map(self.push, ids))
        yield from filter(None, [self.flush()])
