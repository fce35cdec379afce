"""The two tokenizers: text to ids and back, offsets, streams, chats.

`Qwen2Tokenizer` is built from scratch on the pure functions of `bpe.py`; `Qwen2TokenizerFast` gives
the same answers from a compiled engine, `tiktoken`. Both inherit all else, and add one method,
`_encode_text`, which turns plain text into ids. So they cannot differ in anything else. Settings,
files and the way back from ids to text are in `text/surface.py`.

The way of a text: `text/runs.py` cuts it at added tokens, brings the rest to NFC and splits that
into pieces; each piece is merged.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import chain
from typing import Any

from . import chat
from .bpe import PATTERN, merge
from .checks import checked, refuse_unknown
from .text.batching import BATCH_OPTIONS, BatchEncoding, batch
from .text.runs import origins_of, pieces, runs
from .text.surface import Surface

# tiktoken's regular expressions give up on a run of a million white space characters. Half as many
# already fill one of the blocks of this size that a text is cut into.
_BLOCK = 250_000


class TokenizerBase(Surface):
    """Texts and chats to ids, for both tokenizers; options behave as in transformers."""

    def _encode_text(self, text: str) -> list[int]:
        """The ids of plain text in NFC. Each tokenizer has its own way."""
        raise NotImplementedError

    # -- text to ids

    @checked
    def __call__(
        self,
        text: str | Sequence[str] | Sequence[Sequence[str]],
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        is_split_into_words: bool = False,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
        split_special_tokens: bool | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Turn a text, or a list of texts, into ids.

        Args:
            text_pair: not offered; here to be refused by name.
            add_special_tokens: put the tokenizer's own tokens around a text; Qwen2 has none, the
                distilled R1 models have one before it.
            is_split_into_words: each text is a list of words, encoded one by one, with offsets in
                its word; `result.word_ids(i)` tells the words of row i.
            return_special_tokens_mask: 1 for those tokens and padding, 0 for the text's.
            return_offsets_mapping: (start, end) of each token's characters in `text`. A token that
                has a part of a character gets the whole, and where NFC rewrote several characters
                together, all of them. Padding gets (0, 0).
            split_special_tokens: in place of what the tokenizer has.
            **options: padding, truncation, max_length, return_tensors, …: see `batching.batch`.

        Returns:
            `input_ids`, `attention_mask` and `offset_mapping`, each a list per text; one text gives
            plain lists, unless as tensors.

        Raises:
            TypeError: not text, a pair, or an unknown option.
            ValueError: a lone surrogate; options that do not go together.
        """
        refuse_unknown(f"{type(self).__name__}()", options, BATCH_OPTIONS)
        if text_pair is not None:
            way_out = "join the two into one text yourself, or give a list for a batch"
            raise TypeError(f"text_pair={text_pair!r}: Qwen2 has no pairs of texts; {way_out}")
        single = isinstance(text, str)
        if is_split_into_words and isinstance(text, (list, tuple)):
            single = not text or isinstance(text[0], str)
        plain = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        ignore = self._special_ids if plain else ()
        rows = []
        for one in [text] if single else text:
            words = one if is_split_into_words else [one]
            parts = [self._encode(word, ignore, return_offsets_mapping) for word in words]
            row = {"input_ids": [*chain.from_iterable(ids for ids, _ in parts)]}
            if return_offsets_mapping:
                row["offset_mapping"] = [*chain.from_iterable(offsets for _, offsets in parts)]
            if is_split_into_words:
                row["word_ids"] = [i for i, (ids, _) in enumerate(parts) for _ in ids]
            if return_special_tokens_mask:
                row["special_tokens_mask"] = [0] * len(row["input_ids"])
            rows.append(row)
        around = {"before": self.before, "after": self.after} if add_special_tokens else {}
        return batch(self, rows, single, **options, **around)

    def encode(self, text: str, text_pair: None = None, **options: Any) -> list[int]:
        """The ids of a text; options as in `__call__`."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(self, text: str, split_special_tokens: bool | None = None) -> list[str]:
        """The tokens of a text, spelled as in vocab.json: a space is "Ġ"."""
        ids = self.encode(text, split_special_tokens=split_special_tokens)
        return self.convert_ids_to_tokens(ids)

    def _encode(
        self, text: str, ignore: Container[int], with_offsets: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text; and if asked for, (start, end) of each one's characters."""
        ids, offsets = [], []
        for run in runs(text, self._as_written, self._in_nfc, ignore):
            new = self._encode_text(run.text) if run.token_id is None else [run.token_id]
            ids += new
            if not with_offsets:
                continue
            origins = origins_of(text[run.start : run.end])[run.skip :]
            pairs = zip(origins, run.text, strict=False)  # what follows is another run's
            by_byte = [place for place, char in pairs for _ in char.encode()]
            start = 0
            for token_id in new:  # an added token is the whole run, however it is spelled there
                length = len(self._token_of[token_id]) if run.token_id is None else len(by_byte)
                first, last = by_byte[start], by_byte[start + length - 1]
                offsets.append((run.start + first[0], run.start + last[1]))
                start += length
        return ids, offsets

    # -- chats

    @checked
    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        **options: Any,
    ) -> str | list[str] | list[int] | BatchEncoding:
        """Render a conversation, or a batch of them, as text or as ids; `chat.py` says how.

        Args:
            conversation: a list of messages, or one of them; or a list of such lists.
            tools, add_generation_prompt: as in `chat.render_chatml`.
            chat_template: Jinja source, or a name of one; None = the tokenizer's own.
            continue_final_message: leave the last message open, for the model to go on with.
            tokenize: ids, where no control token comes from a message; False = the template's text,
                in which a control token that someone typed looks like the template's.
            return_dict: `input_ids` and `attention_mask` by name; False = only the ids.
            return_assistant_tokens_mask: add `assistant_masks`, 1 where the assistant speaks.
            **options: padding, truncation, …: see `batching.batch`; and what the template reads.

        Raises:
            TypeError, ValueError: as `chat.spans`; options that exclude each other.
        """
        mask = return_assistant_tokens_mask
        if continue_final_message and (add_generation_prompt or mask):
            other = "add_generation_prompt" if add_generation_prompt else "the assistant's mask"
            raise ValueError(f"continue_final_message does not go with {other}: use one of them")
        if mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask needs tokenize=True, return_dict=True")
        template = chat.choose_template(chat_template, self.chat_template, tools)
        of_batch = {name: options.pop(name) for name in BATCH_OPTIONS if name in options}
        options |= {"tools": tools, "add_generation_prompt": add_generation_prompt}
        options |= {"continue_final_message": continue_final_message, "find_spoken": mask}
        options |= {"special_tokens": self.special_tokens_map}
        controls = self._controls if tokenize else None
        first = next(iter(conversation), None) if isinstance(conversation, (list, tuple)) else None
        batched = isinstance(first, (list, tuple))
        talks = conversation if batched else [conversation]
        spans = [chat.spans(template, one, controls, self._special_ids, **options) for one in talks]
        if not tokenize:
            texts = [row[0].text for row in spans]
            return texts if batched else texts[0]
        rows = [self._encode_spans(row, mask) for row in spans]
        result = batch(self, rows, not batched, **{"truncation": False, **of_batch})
        return result if return_dict else result["input_ids"]

    def _encode_spans(self, spans: Sequence[chat.Span], mask: bool) -> dict[str, list[int]]:
        """Ids of a conversation: its control tokens, and plain text between them."""
        ids, speaks = [], []
        plain_only = frozenset(self._controls.id_of.values())
        for text, control, spoken in spans:
            if control is None:
                new, offsets = self._encode(text, plain_only, mask)
            else:
                new, offsets = [control], [(0, len(text))]
            ids += new
            speaks += [int(any(spoken[start:end])) for start, end in offsets]
        return {"input_ids": ids, "assistant_masks": speaks} if mask else {"input_ids": ids}


class Qwen2Tokenizer(TokenizerBase):
    """Text to ids and back, every step in Python.

    Most pieces of natural text come again and again, so each is merged once and remembered: that
    makes up for the interpreter: on such text it is as fast as the compiled `tokenizers`.
    """

    CACHE_PIECES = 100_000  # then start anew: memory stays bounded, the frequent is soon back
    CACHE_PIECE_LENGTH = 100

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._cache: dict[str, list[int]] = {}

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in pieces(text):
            ids += self._cache.get(piece) or self._encode_piece(piece)
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


class Qwen2TokenizerFast(TokenizerBase):
    """Text to ids and back, with the splitting and merging done by compiled code, `tiktoken`.

    It gives the same ids as `tokenizers` several times faster (`benchmarks/tokenizer.py`), and
    reads ranks as they are, so the built-in vocabulary loads without working out its merges.
    """

    def __init__(self, *args: Any, **options: Any):
        import tiktoken  # here, so that `import qwen2_edu` does not wait for it

        super().__init__(*args, **options)
        self._engine = tiktoken.Encoding(
            "qwen2_edu", pat_str=PATTERN, mergeable_ranks=self._ranks, special_tokens={}
        )
        # The engine answers with ranks. In the released vocabulary, ranks are ids.
        same = all(self.vocab[token] == rank for token, rank in self._ranks.items())
        self._id_of_rank = None if same else {r: self.vocab[t] for t, r in self._ranks.items()}

    def _encode_text(self, text: str) -> list[int]:
        starts = range(0, len(text) - _BLOCK + 1, _BLOCK)
        if any(text[i : i + _BLOCK].isspace() for i in starts):
            merged = (merge(piece.encode(), self._ranks) for piece in pieces(text))
            return [self.vocab[token] for tokens in merged for token in tokens]
        ranks = self._engine.encode_ordinary(text)
        return ranks if self._id_of_rank is None else [self._id_of_rank[rank] for rank in ranks]
