"""The surface of a Qwen2 tokenizer: text to ids and back, offsets, streams, chats.

`Qwen2Tokenizer` (from scratch) and `Qwen2TokenizerFast` (compiled) inherit it and add one method,
`_encode_text`, which turns plain text into ids. So they cannot differ in anything else.

The way of a text: added tokens are cut out of it first; the rest is brought to Unicode's form NFC
(one spelling for "é", however it was typed), cut into pieces, and merged.
"""

from __future__ import annotations

import codecs
import inspect
import os
import reprlib
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from . import chat_encoding
from .checks import did_you_mean
from .text import files as tokenizer_files
from .text import saving as tokenizer_saving
from .text.batching import NO_LIMIT, BatchEncoding, batch, one_of
from .text.normalization import check_text, origins_of
from .text.runs import AddedToken
from .text.vocabulary import Vocabulary

# What transformers knows as an option of from_pretrained, and what stands in its place here.
_INSTEAD = {
    "trust_remote_code": "it is never needed, as no remote code is run; leave it out",
    "use_fast": "Qwen2TokenizerFast is the compiled one, Qwen2Tokenizer the one from scratch, and "
    "both give the same ids; take the class you want",
}


def _side(name: str) -> property:
    """An attribute that is "right" or "left", and refuses anything else."""

    def set_side(self, side: str) -> None:
        self.__dict__[name] = one_of(name, side, ("right", "left"))

    return property(lambda self: self.__dict__[name], set_side)


class StreamDecoder:
    """Decodes ids one at a time, keeping back the bytes of a character not yet whole.

    All that `push` returns, and at the end `flush`, joined, is what `decode` gives for all the ids.
    """

    def __init__(self, tokenizer: TokenizerBase, skip_special_tokens: bool = False):
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this id completes; "" if none is complete yet."""
        return self._decoder.decode(self._tokenizer._bytes([token_id], self._skip))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character cut short. Then start anew."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class TokenizerBase(Vocabulary):
    """The surface that both tokenizers share. Options are named, and behave, as in transformers.

    Args:
        vocab, merges: as in `Vocabulary`.
        chat_template: Jinja source, or a dict of several by name.
        model_max_length: what `truncation=True` cuts to without a `max_length`.
        padding_side, truncation_side: "right" or "left".
        split_special_tokens: read special tokens in a text as plain text.
        config: further entries of tokenizer_config.json, kept for `save_pretrained`.
        **tokens: `added_tokens`, `pad_token`, …: as in `Vocabulary`.
    """

    padding_side = _side("padding_side")
    truncation_side = _side("truncation_side")

    def __init__(
        self,
        vocab: Mapping[bytes, int],
        merges: Iterable[tuple[bytes, bytes]] | None = None,
        *,
        chat_template: str | dict[str, str] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        split_special_tokens: bool = False,
        config: Mapping[str, Any] | None = None,
        **tokens: Any,
    ):
        super().__init__(vocab, merges, **tokens)
        self.chat_template = chat_template
        self.model_max_length = NO_LIMIT if model_max_length is None else model_max_length
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.split_special_tokens = split_special_tokens
        self.config = dict(config or {})

    def _encode_text(self, text: str) -> list[int]:
        """The ids of plain text in NFC. Each tokenizer has its own way."""
        raise NotImplementedError

    # --------------------------------------------------------------------- reading and writing

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> TokenizerBase:
        """Load a tokenizer: built in ("qwen2"), from a folder, or from the hub.

        A folder holds tokenizer.json, or vocab.json and merges.txt, or a *.tiktoken file; and
        mostly tokenizer_config.json.

        Args:
            name_or_path, revision, token, cache_dir, local_files_only: as in `hub.resolve`.
            **overrides: arguments of this class, in place of what the files say.

        Raises:
            TypeError: an option that is none.
            FileNotFoundError: no such place, or files missing there.
            ValueError: files that are malformed, or of another kind of tokenizer.
        """
        from .hub import resolve

        signatures = map(inspect.signature, (Vocabulary, TokenizerBase, cls.from_pretrained))
        options = {name for s in signatures for name in s.parameters} - {"tokens", "overrides"}
        for name in sorted(overrides.keys() - options):
            hint = did_you_mean(name, options, "the options are " + ", ".join(sorted(options)))
            raise TypeError(
                f"{cls.__name__}.from_pretrained has no option {name!r}: "
                + _INSTEAD.get(name, hint)
            )
        place = {"revision": revision, "token": token, "cache_dir": cache_dir}
        folder = resolve(name_or_path, "tokenizer", local_files_only=local_files_only, **place)
        released = os.fspath(name_or_path) == "qwen2"
        read = tokenizer_files.read_released if released else tokenizer_files.read_folder
        settings = read(folder)
        added = {i: AddedToken(**fields) for i, fields in settings["added_tokens"].items()}
        return cls(**{**settings, "added_tokens": added, **overrides})

    def save_vocabulary(
        self, save_directory: str | os.PathLike, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.json and merges.txt as released; returns their paths."""
        return tokenizer_saving.write_vocabulary(self, save_directory, filename_prefix)

    def save_pretrained(
        self, save_directory: str | os.PathLike, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write those two, tokenizer.json and tokenizer_config.json; returns their paths."""
        return tokenizer_saving.write_all(self, save_directory, filename_prefix)

    # ---------------------------------------------------------------------------- text to ids

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        return_offsets_mapping: bool = False,
        split_special_tokens: bool | None = None,
    ) -> BatchEncoding:
        """Turn a text, or a list of texts, into ids.

        Args:
            text: one text, or a batch.
            text_pair: not offered; here to be refused by name.
            add_special_tokens: has no effect, as Qwen2 puts no token before or after a text.
            padding: True or "longest" = to the longest row; "max_length"; False = not at all.
            truncation: True = to `max_length`, or else to `model_max_length`; False = not at all;
                None = only if there is a `max_length` and no padding.
            max_length: in tokens.
            pad_to_multiple_of: pad on to a multiple of this.
            padding_side: "left", as generation needs it, or "right"; None = as the tokenizer says.
            return_tensors: "pt" for tensors (B, T); None for lists.
            return_attention_mask: 1 for a token, 0 for padding.
            return_offsets_mapping: (start, end) of each token's characters in `text`. A token that
                has a part of a character gets the whole, and where NFC rewrote several characters
                together, all of them. Padding gets (0, 0).
            split_special_tokens: read special tokens in the text as plain text.

        Returns:
            `input_ids`, `attention_mask` and `offset_mapping`, each a list per text; one text gives
            plain lists, unless as tensors.

        Raises:
            TypeError: not text, or a pair.
            ValueError: a lone surrogate; options that do not go together; rows of several lengths
                that shall be a tensor.
        """
        if text_pair is not None:
            raise TypeError(
                f"text_pair={text_pair!r}: Qwen2 has no format for pairs of texts; join the two "
                "into one text yourself, or give a list for a batch"
            )
        single = isinstance(text, str)
        if not single and not isinstance(text, (list, tuple)):
            raise TypeError(f"text must be a string or a list of them, not {type(text).__name__}")
        if split_special_tokens is None:
            split_special_tokens = self.split_special_tokens
        ignore = self._special_ids if split_special_tokens else ()
        rows = []
        for one in [text] if single else text:
            if return_offsets_mapping:
                ids, offsets = self._encode_with_offsets(one, ignore)
                rows.append({"input_ids": ids, "offset_mapping": offsets})
            else:
                rows.append({"input_ids": self._encode(one, ignore)})
        return self._batch(
            rows,
            single=single,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_tensors=return_tensors,
            return_attention_mask=return_attention_mask,
        )

    def encode(self, text: str, text_pair: None = None, **options: Any) -> list[int]:
        """The ids of a text; options as in `__call__`."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(self, text: str, split_special_tokens: bool | None = None) -> list[str]:
        """The tokens of a text, spelled as in vocab.json: a space is "Ġ"."""
        ids = self.encode(text, split_special_tokens=split_special_tokens)
        return self.convert_ids_to_tokens(ids)

    def _batch(
        self, rows: list[dict], *, padding_side: str | None = None, **options: Any
    ) -> BatchEncoding:
        return batch(
            rows,
            padding_side=self.padding_side if padding_side is None else padding_side,
            truncation_side=self.truncation_side,
            pad_token_id=self.pad_token_id,
            model_max_length=self.model_max_length,
            **options,
        )

    def _runs(
        self, text: str, ignore: Container[int]
    ) -> Iterator[tuple[str, int | None, int, int, int]]:
        """Cut a text at its added tokens, but for those to ignore.

        Yields:
            (run, token_id, start, end, skip): an added token and its id, or plain text in NFC and
            None. The NFC form of text[start:end] holds the run from character `skip` on.
        """
        check_text(text)
        for start, end, token_id in self._as_written.cuts(text, ignore):
            if token_id is not None:
                yield text[start:end], token_id, start, end, 0
                continue
            nfc = unicodedata.normalize("NFC", text[start:end])
            for a, b, token_id in self._in_nfc.cuts(nfc, ignore):
                yield nfc[a:b], token_id, start, end, a

    def _encode(self, text: str, ignore: Container[int] = ()) -> list[int]:
        ids = []
        for run, token_id, *_ in self._runs(text, ignore):
            ids += self._encode_text(run) if token_id is None else [token_id]
        return ids

    def _encode_with_offsets(
        self, text: str, ignore: Container[int] = ()
    ) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = [], []
        for run, token_id, start, end, skip in self._runs(text, ignore):
            if token_id is None:
                new = self._encode_text(run)
                lengths = [len(self._token_of[i]) for i in new]
            else:
                new, lengths = [token_id], [len(run.encode())]
            ids += new
            origin = origins_of(text[start:end])[skip : skip + len(run)]
            by_byte = [
                place for place, char in zip(origin, run, strict=True) for _ in char.encode()
            ]
            byte = 0
            for length in lengths:
                first, last = by_byte[byte], by_byte[byte + length - 1]
                offsets.append((start + first[0], start + last[1]))
                byte += length
        return ids, offsets

    # ---------------------------------------------------------------------------- ids to text

    def _bytes(self, ids: Iterable[int], skip_special_tokens: bool) -> bytes:
        skip = self._special_ids if skip_special_tokens else ()
        parts = []
        for token_id in ids:
            if token_id < 0:
                raise ValueError(f"no token has the id {token_id}: leave out labels of -100")
            if token_id not in skip:
                parts.append(self._token_of.get(token_id, b""))
        return b"".join(parts)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        """The text of ids, or the texts of rows of ids.

        Args:
            token_ids: an id; a list or tensor (T,) of them; or a batch, (B, T).
            skip_special_tokens: leave special tokens out.

        Returns:
            The text. Bytes that are not UTF-8 become U+FFFD. Ids past the last token, for which
            models have spare rows, become nothing.

        Raises:
            TypeError: not ids, such as tokens or floats.
            ValueError: a negative id.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [ids] if isinstance(ids, int) else ids
        if isinstance(ids, Iterable) and not isinstance(ids, (str, bytes)):
            ids = [i.tolist() if hasattr(i, "tolist") else i for i in ids]
            if ids and not isinstance(ids[0], int):
                return [self.decode(row, skip_special_tokens) for row in ids]
        if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
            raise TypeError(
                "decode takes ids (ints, lists or tensors of ints), not "
                f"{reprlib.repr(token_ids)}: for tokens, use convert_tokens_to_ids first"
            )
        data = self._bytes(ids, skip_special_tokens)
        return data.decode("utf-8", errors="replace")

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """The texts of rows of ids: lists, or a tensor (B, T)."""
        texts = self.decode(sequences, skip_special_tokens)
        return [texts] if isinstance(texts, str) else texts

    def stream_decoder(self, skip_special_tokens: bool = False) -> StreamDecoder:
        """Decode ids as they come: `.push(id)`, and at the end `.flush()`."""
        return StreamDecoder(self, skip_special_tokens)

    def apply_chat_template(self, conversation: Sequence, *args: Any, **options: Any) -> Any:
        """Render a conversation with the chat template: see `chat_encoding.apply_chat_template`."""
        return chat_encoding.apply_chat_template(self, conversation, *args, **options)
