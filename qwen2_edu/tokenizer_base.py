"""All of a Qwen2 tokenizer but the merging: special tokens, offsets, decoding, the surface.

`Qwen2Tokenizer` (from scratch) and `Qwen2TokenizerFast` (compiled) inherit it and add one method,
`_encode_text`, which turns plain text into ids. So they cannot differ in anything else.

The way of a text: added tokens are cut out of it first; the rest is brought to Unicode's form NFC
(one spelling for "é", however it was typed), cut into pieces, and merged.
"""

from __future__ import annotations

import codecs
import os
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from . import chat, tokenizer_files
from .batching import NO_LIMIT, BatchEncoding, batch, one_of
from .bpe import BYTE_TO_CHAR, merges_of, ranks_of, text_to_token, token_to_text

# A character and all that NFC may fuse with it: marks, and later parts of a Korean syllable.
_CLUSTER = regex.compile(r"(?s).[\p{M}\u1160-\u11FF]*")


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in a text as it stands, before any splitting.

    special: dropped by `decode(..., skip_special_tokens=True)`.
    normalized: looked for in the NFC form of the text, instead of in the text itself.
    """

    content: str
    special: bool = False
    normalized: bool = False


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


class Finder:
    """Finds fixed strings in a text: the leftmost, and the longest of those that start there."""

    def __init__(self, id_of: Mapping[str, int]):
        self.id_of = dict(id_of)
        longest_first = sorted(id_of, key=len, reverse=True)
        self.pattern = regex.compile("|".join(map(regex.escape, longest_first)) or "(?!)")

    def cuts(self, text: str, ignore: Container[int] = ()) -> Iterator[tuple[int, int, int | None]]:
        """Cut a text: (start, end, id) of what was found, (start, end, None) of all between."""
        end = 0
        for match in self.pattern.finditer(text) if self.id_of else ():
            token_id = self.id_of[match.group()]
            if token_id in ignore:
                continue
            if end < match.start():
                yield end, match.start(), None
            yield match.start(), match.end(), token_id
            end = match.end()
        if end < len(text):
            yield end, len(text), None


def _part(name: str) -> tuple[property, property]:
    """The two attributes of a token that plays a part: `eos_token` and `eos_token_id`."""

    def set_token(self, token: str | None) -> None:
        if token is not None and self._id_of(token) is None:
            raise ValueError(
                f"{token!r} is not in the vocabulary, so it cannot be the {name}: "
                f"use add_special_tokens({{{name!r}: {token!r}}})"
            )
        self._parts[name] = token

    def set_id(self, token_id: int | None) -> None:
        token = None if token_id is None else self.convert_ids_to_tokens(token_id)
        if token_id is not None and token is None:
            raise ValueError(f"no token has the id {token_id}, so it cannot be the {name}")
        self._parts[name] = token

    def get_id(self) -> int | None:
        return None if self._parts[name] is None else self._id_of(self._parts[name])

    return property(lambda self: self._parts[name], set_token), property(get_id, set_id)


class TokenizerBase:
    """The surface that both tokenizers share. Options are named, and behave, as in transformers.

    Args:
        vocab: token -> id, tokens as bytes; all 256 single bytes must be there.
        merges: (left, right) in the order of training. None = the order of the ids is that order,
            as in the released vocabulary.
        added_tokens: tokens matched as they stand, a plain string being special. They get the next
            ids; a dict {id: token} chooses them.
        bos_token, eos_token, unk_token, pad_token: which tokens play these parts.
        additional_special_tokens: further tokens for `all_special_tokens`.
        chat_template: Jinja source, or a dict of several by name.
        model_max_length: what `truncation=True` cuts to without a `max_length`.
        padding_side, truncation_side: "right" or "left".
        split_special_tokens: read special tokens in a text as plain text.
        config: further entries of tokenizer_config.json, kept for `save_pretrained`.
    """

    bos_token, bos_token_id = _part("bos_token")
    eos_token, eos_token_id = _part("eos_token")
    unk_token, unk_token_id = _part("unk_token")
    pad_token, pad_token_id = _part("pad_token")

    def __init__(
        self,
        vocab: Mapping[bytes, int],
        merges: Iterable[tuple[bytes, bytes]] | None = None,
        *,
        added_tokens: Iterable[str | AddedToken] | Mapping[int, str | AddedToken] = (),
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        pad_token: str | None = None,
        additional_special_tokens: Sequence[str] = (),
        chat_template: str | dict[str, str] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        split_special_tokens: bool = False,
        config: Mapping[str, Any] | None = None,
    ):
        self.vocab = dict(vocab)
        self._merges = None if merges is None else list(merges)
        self._ranks = self.vocab if merges is None else ranks_of(self._merges)
        self._token_of = {token_id: token for token, token_id in self.vocab.items()}
        for token in [*(bytes([byte]) for byte in range(256)), *self._ranks]:
            if token not in self.vocab:
                what = "the single byte" if len(token) == 1 else "what a merge makes,"
                raise ValueError(f"the vocabulary lacks {what} {token!r}")
        if len(self._token_of) < len(self.vocab):
            raise ValueError("two tokens of the vocabulary have the same id")

        self._added: dict[str, AddedToken] = {}
        self._added_ids: dict[str, int] = {}
        with_ids = isinstance(added_tokens, Mapping)
        for item in added_tokens.items() if with_ids else ((None, t) for t in added_tokens):
            self._add(item[1], item[0], special=True)
        self._find_added()

        self._parts: dict[str, str | None] = {}
        self.bos_token, self.eos_token = bos_token, eos_token
        self.unk_token, self.pad_token = unk_token, pad_token
        self.additional_special_tokens = list(additional_special_tokens)
        self.chat_template = chat_template
        self.model_max_length = NO_LIMIT if model_max_length is None else model_max_length
        self.padding_side = one_of("padding_side", padding_side, ("right", "left"))
        self.truncation_side = one_of("truncation_side", truncation_side, ("right", "left"))
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
            FileNotFoundError: no such place, or files missing there.
            ValueError: files that are malformed, or of another kind of tokenizer.
        """
        from .hub import resolve

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
        return tokenizer_files.write_vocabulary(self, save_directory, filename_prefix)

    def save_pretrained(
        self, save_directory: str | os.PathLike, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write those two, tokenizer.json and tokenizer_config.json; returns their paths."""
        return tokenizer_files.write_all(self, save_directory, filename_prefix)

    # ------------------------------------------------------------------------- the vocabulary

    @property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The merges in order. If the vocabulary came without, they are worked out now."""
        if self._merges is None:
            self._merges = merges_of(self.vocab)
        return self._merges

    @property
    def vocab_size(self) -> int:
        """Number of tokens, without those added."""
        return len(self.vocab)

    def __len__(self) -> int:
        return len(self._token_of)

    def __repr__(self) -> str:
        parts = [f"{name}={token!r}" for name, token in self.special_tokens_map.items()]
        sizes = [f"vocab_size={self.vocab_size}", f"added_tokens={len(self._added)}"]
        return f"{type(self).__name__}({', '.join(sizes + parts)})"

    def get_vocab(self) -> dict[str, int]:
        """token -> id, tokens spelled as in vocab.json, with those added."""
        return {self._spell(token_id): token_id for token_id in self._token_of}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """id -> added token."""
        return {i: self._added[content] for content, i in self.get_added_vocab().items()}

    def get_added_vocab(self) -> dict[str, int]:
        """token -> id of the added tokens."""
        return dict(sorted(self._added_ids.items(), key=lambda item: item[1]))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The tokens that play a part, such as {"eos_token": "<|im_end|>"}."""
        return {name: token for name, token in self._parts.items() if token is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens that play a part, and the additional ones."""
        tokens = [*self.special_tokens_map.values(), *self.additional_special_tokens]
        return list(dict.fromkeys(tokens))

    @property
    def all_special_ids(self) -> list[int]:
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def add_tokens(
        self,
        new_tokens: str | AddedToken | Sequence[str | AddedToken],
        special_tokens: bool = False,
    ) -> int:
        """Add tokens that are matched whole wherever they stand. Their ids follow the highest one.

        Args:
            new_tokens: one or more. A plain string is looked for in the NFC form of a text; or, if
                special, in the text as it is.
            special_tokens: dropped by `skip_special_tokens`.

        Returns:
            How many are new. Then call `model.resize_token_embeddings(len(tokenizer))`.
        """
        before = len(self._added)
        for token in [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else new_tokens:
            self._add(token, None, special_tokens)
        self._find_added()
        return len(self._added) - before

    def add_special_tokens(self, special_tokens_dict: Mapping[str, Any]) -> int:
        """Add special tokens, and say which part they play.

        Args:
            special_tokens_dict: {"pad_token": "<pad>", "additional_special_tokens": ["<a>", "<b>"]}

        Returns:
            How many are new.
        """
        extras = ("additional_special_tokens", "extra_special_tokens")
        new = 0
        for name, value in special_tokens_dict.items():
            one_of("a special token's part", name, (*self._parts, *extras))
            new += self.add_tokens(value, special_tokens=True)
            values = [value] if isinstance(value, (str, AddedToken)) else value
            contents = [t.content if isinstance(t, AddedToken) else t for t in values]
            if name in extras:
                self.additional_special_tokens = contents
            else:
                setattr(self, name, contents[0])
        return new

    def _add(self, token: str | AddedToken, token_id: int | None, special: bool) -> None:
        if isinstance(token, str):
            token = AddedToken(token, special=special, normalized=not special)
        if not token.content:
            raise ValueError("an added token cannot be empty")
        known = self._id_of(token.content)
        if token_id is None:
            token_id = max(self._token_of) + 1 if known is None else known
        data = token.content.encode()
        holder = self._token_of.setdefault(token_id, data)
        if known not in (None, token_id) or (known is None and holder != data):
            other = f"it has id {known}" if known is not None else f"that is {holder!r}"
            raise ValueError(f"{token.content!r} cannot be added as id {token_id}: {other}")
        self._added[token.content], self._added_ids[token.content] = token, token_id

    def _find_added(self) -> None:
        """Prepare the search for added tokens."""
        ids, added = self._added_ids, self._added
        self._as_written = Finder({t: i for t, i in ids.items() if not added[t].normalized})
        self._in_nfc = Finder(
            {unicodedata.normalize("NFC", t): i for t, i in ids.items() if added[t].normalized}
        )
        self._special_ids = {i for t, i in ids.items() if added[t].special}
        # In a chat, these come from the template only: all but words added to the vocabulary.
        words = {t for t in ids if not added[t].special and (t[0].isalnum() or t[-1].isalnum())}
        self._controls = Finder({t: i for t, i in ids.items() if t not in words})
        self._content_of = {i: t for t, i in ids.items()}

    def _id_of(self, token: str) -> int | None:
        if token in self._added_ids:
            return self._added_ids[token]
        try:
            return self.vocab.get(text_to_token(token))
        except ValueError:
            return None

    def _spell(self, token_id: int) -> str | None:
        if token_id in self._content_of:
            return self._content_of[token_id]
        token = self._token_of.get(token_id)
        return None if token is None else token_to_text(token)

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | None | list[int | None]:
        """Ids of tokens as `tokenize` spells them; an unknown one gives `unk_token_id`."""
        if isinstance(tokens, str):
            token_id = self._id_of(tokens)
            return self.unk_token_id if token_id is None else token_id
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | None | list[str | None]:
        """Tokens of ids, spelled as in vocab.json; None for an id that no token has."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(ids, int):
            return self._spell(ids)
        skip = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._spell(token_id) for token_id in ids if token_id not in skip]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """The text that tokens stand for, spelled as by `tokenize`."""
        alphabet = set(BYTE_TO_CHAR.values())
        parts = [
            token.encode()
            if token in self._added or set(token) - alphabet
            else text_to_token(token)
            for token in tokens
        ]
        return b"".join(parts).decode("utf-8", errors="replace")

    # ---------------------------------------------------------------------------- text to ids

    def __call__(
        self,
        text: str | Sequence[str],
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
            TypeError: not text.
            ValueError: a lone surrogate; options that do not go together; rows of several lengths
                that shall be a tensor.
        """
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

    def encode(self, text: str, **options: Any) -> list[int]:
        """The ids of a text; options as in `__call__`."""
        return self(text, **options)["input_ids"]

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
        _check_text(text)
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
            origin = _origins(text[start:end])[skip : skip + len(run)]
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
            ValueError: a negative id.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [ids] if isinstance(ids, int) else list(ids)
        if ids and not isinstance(ids[0], int) and getattr(ids[0], "ndim", 1):
            return [self.decode(row, skip_special_tokens) for row in ids]
        data = self._bytes(map(int, ids), skip_special_tokens)
        return data.decode("utf-8", errors="replace")

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """The texts of rows of ids: lists, or a tensor (B, T)."""
        texts = self.decode(sequences, skip_special_tokens)
        return [texts] if isinstance(texts, str) else texts

    def stream_decoder(self, skip_special_tokens: bool = False) -> StreamDecoder:
        """Decode ids as they come: `.push(id)`, and at the end `.flush()`."""
        return StreamDecoder(self, skip_special_tokens)

    def apply_chat_template(self, conversation: Sequence, *args: Any, **options: Any) -> Any:
        """Render a conversation with the chat template: see `chat.apply_chat_template`."""
        return chat.apply_chat_template(self, conversation, *args, **options)


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a text must be a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        raise ValueError(
            f"a lone surrogate, U+{ord(text[at]):04X}, at position {at} of the text, near "
            f"{text[max(0, at - 10) : at + 10]!r}: half a character cannot be encoded"
        ) from None


def _origins(text: str) -> list[tuple[int, int]]:
    """Of which characters of `text`, (start, end), was each character of its NFC form made?"""
    if unicodedata.is_normalized("NFC", text):
        return [(i, i + 1) for i in range(len(text))]
    origins = []
    for cluster in _CLUSTER.finditer(text):
        start, end = cluster.span()
        nfc = unicodedata.normalize("NFC", cluster.group())
        if nfc == cluster.group():
            origins += [(i, i + 1) for i in range(start, end)]
        else:
            origins += [(start, end)] * len(nfc)
    return origins
