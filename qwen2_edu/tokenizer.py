"""`Qwen2Tokenizer`: the released tokenizer from scratch, on the pure functions of `bpe.py`."""

from __future__ import annotations

from typing import Any

from .bpe import merge, split
from .tokenizer_base import TokenizerBase


class Qwen2Tokenizer(TokenizerBase):
    """Text to ids and back, every step in Python.

    Most pieces of natural text come again and again, so each is merged once and remembered: that
    makes up for the interpreter, and this class is as fast as compiled ones on such text.

    The arguments are those of `TokenizerBase`.
    """

    CACHE_PIECES = 100_000  # then start anew: memory stays bounded, the frequent is soon back
    CACHE_PIECE_LENGTH = 100

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._cache: dict[str, list[int]] = {}

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = []
        known = self._cache
        for piece in split(text):
            ids += known.get(piece) or self._encode_piece(piece)
        return ids

    def _encode_piece(self, piece: str) -> list[int]:
        data = piece.encode()
        # A piece that is a token needs no merging: its own bytes lead to it (see `bpe.ranks_of`).
        tokens = [data] if data in self._ranks else merge(data, self._ranks)
        ids = [self.vocab[token] for token in tokens]
        if len(piece) <= self.CACHE_PIECE_LENGTH:
            if len(self._cache) >= self.CACHE_PIECES:
                self._cache.clear()
            self._cache[piece] = ids
        return ids

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cache": {}}
