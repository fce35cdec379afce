"""`Qwen2TokenizerFast`: the same answers from a compiled engine, `tiktoken`.

Why tiktoken: it gives the same ids as `tokenizers` several times faster (`benchmarks/tokenizer.py`
measures it) and reads ranks as they are, so the built-in vocabulary loads without working out its
merges first.
"""

from __future__ import annotations

from typing import Any

from .bpe import PATTERN, merge, split
from .tokenizer_base import TokenizerBase

# tiktoken's regular expressions give up on a run of a million white space characters. A run of half
# a million already fills one of the blocks of this size that a text is cut into.
_BLOCK = 250_000


class Qwen2TokenizerFast(TokenizerBase):
    """Text to ids and back, with the splitting and merging done by compiled code.

    The arguments are those of `TokenizerBase`.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._start_engine()

    def _start_engine(self) -> None:
        import tiktoken  # here, so that `import qwen2_edu` does not wait for it

        self._engine = tiktoken.Encoding(
            "qwen2_edu", pat_str=PATTERN, mergeable_ranks=self._ranks, special_tokens={}
        )
        # The engine answers with ranks. In the released vocabulary, ranks are ids.
        same = all(self.vocab[token] == rank for token, rank in self._ranks.items())
        self._id_of_rank = None if same else {r: self.vocab[t] for t, r in self._ranks.items()}

    def _encode_text(self, text: str) -> list[int]:
        starts = range(0, len(text) - _BLOCK + 1, _BLOCK)
        if any(text[i : i + _BLOCK].isspace() for i in starts):
            pieces = (merge(piece.encode(), self._ranks) for piece in split(text))
            return [self.vocab[token] for tokens in pieces for token in tokens]
        ranks = self._engine.encode_ordinary(text)
        if self._id_of_rank is None:
            return ranks
        return [self._id_of_rank[rank] for rank in ranks]

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_engine"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._start_engine()
