"""The two tokenizers: text to ids and back, offsets, streams, chats.

`Qwen2Tokenizer` is built from scratch on the pure functions of `bpe.py`; `Qwen2TokenizerFast` gives
the same answers from a compiled engine, `tiktoken`. Both inherit the surface and add one method,
`_encode_text`, which turns plain text into ids. So they cannot differ in anything else.

The way of a text: `text/runs.py` cuts it at added tokens and brings the rest to NFC; that is split
into pieces, and each piece is merged.
"""

from __future__ import annotations

import codecs
import os
import reprlib
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from . import chat
from .bpe import PATTERN, merge
from .checks import one_of, plain, refuse_unknown
from .files.gguf import GGUFFile, open_place
from .files.gguf_model import tokenizer_settings
from .hub import HUB_OPTIONS, INSTEAD, resolve, take_options
from .text import files
from .text.batching import BATCH_OPTIONS, NO_LIMIT, SIDES, BatchEncoding, batch
from .text.runs import origins_of, runs
from .text.unicode import pieces
from .text.vocabulary import Vocabulary

# tiktoken's regular expressions give up on a run of a million white space characters. Half as many
# already fill one of the blocks of this size that a text is cut into.
_BLOCK = 250_000


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
        return self._decoder.decode(b"", final=True)


class TokenizerBase(Vocabulary):
    """The surface that both tokenizers share. Options are named, and behave, as in transformers.

    Args:
        vocab, merges, **tokens: as in `Vocabulary`.
        chat_template: Jinja source, or a dict of several by name.
        model_max_length: what `truncation=True` cuts to without a `max_length`.
        padding_side, truncation_side: "right" or "left".
        split_special_tokens: read special tokens in a text as plain text.
        before, after: ids that `add_special_tokens` puts around each text; Qwen2 has none.
        config: further entries of tokenizer_config.json, kept for `save_pretrained`.
    """

    ARGUMENTS = ("vocab", "merges", "added_tokens", "chat_template", "config")
    ARGUMENTS += ("additional_special_tokens", "before", "after", *files.SAID)
    model_input_names = ("input_ids", "attention_mask")

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
        before: Sequence[int] = (),
        after: Sequence[int] = (),
        config: Mapping[str, Any] | None = None,
        **tokens: Any,
    ):
        super().__init__(vocab, merges, **tokens)
        self.chat_template = chat_template
        self.model_max_length = model_max_length
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.split_special_tokens = split_special_tokens
        self.before, self.after = tuple(before), tuple(after)
        self.config = dict(config or {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("padding_side", "truncation_side"):
            one_of(name, value, SIDES)
        if name == "model_max_length":
            value = NO_LIMIT if value is None else plain(value, whole=True)
        super().__setattr__(name, value)

    def _encode_text(self, text: str) -> list[int]:
        """The ids of plain text in NFC. Each tokenizer has its own way."""
        raise NotImplementedError

    # -- reading and writing

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, **options: Any) -> TokenizerBase:
        """Load a tokenizer: built in ("qwen2"), from a folder, a GGUF file, or from the hub.

        Args:
            **options: revision, token, cache_dir, gguf_file, …, as in `hub.resolve`; and arguments
                of this class, in place of what the files say.

        Raises:
            TypeError: an unknown option.
            FileNotFoundError, ValueError: as `hub.resolve` and `text.files.read_folder`.
        """
        known = {*cls.ARGUMENTS, *HUB_OPTIONS}
        refuse_unknown(f"{cls.__name__}.from_pretrained", options, known, INSTEAD)
        place = open_place(resolve(name_or_path, "tokenizer", **take_options(options)))
        if isinstance(place, GGUFFile):
            said = tokenizer_settings(place)
        elif os.fspath(name_or_path) == "qwen2":
            said = files.read_released(place)
        else:
            said = files.read_folder(place)
        return cls(**{**said, **options})

    def settings(self) -> dict[str, Any]:
        """The arguments that make this tokenizer anew."""
        said = {name: getattr(self, name) for name in self.ARGUMENTS if name != "added_tokens"}
        return said | {"added_tokens": self.added_tokens_decoder}

    def save_vocabulary(
        self, save_directory: str | os.PathLike, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.json and merges.txt as released; returns their paths."""
        return files.write_vocabulary(self.settings(), save_directory, filename_prefix)

    def save_pretrained(
        self, save_directory: str | os.PathLike, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write those two, tokenizer.json and tokenizer_config.json; returns their paths."""
        return files.write_all(self.settings(), save_directory, filename_prefix)

    # -- text to ids

    def __call__(
        self,
        text: str | Sequence[str] | Sequence[Sequence[str]],
        text_pair: None = None,
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
        if not isinstance(text, str) and not isinstance(text, (list, tuple)):
            raise TypeError(f"text must be a string or a list of them, not {type(text).__name__}")
        plain = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        ignore = self._special_ids if plain else ()
        rows = []
        for one in [text] if single else text:
            row = {"input_ids": [], "offset_mapping": [], "word_ids": []}
            for number, part in enumerate(one if is_split_into_words else [one]):
                ids, offsets = self._encode(part, ignore, return_offsets_mapping)
                for name, new in zip(row, (ids, offsets, [number] * len(ids)), strict=True):
                    row[name] += new
            if return_special_tokens_mask:
                row["special_tokens_mask"] = [0] * len(row["input_ids"])
            left_out = {"word_ids"} if not is_split_into_words else set()
            left_out |= set() if return_offsets_mapping else {"offset_mapping"}
            rows.append({name: values for name, values in row.items() if name not in left_out})
        around = {"before": self.before, "after": self.after} if add_special_tokens else {}
        return self._batch(rows, single, {**options, **around})

    def encode(self, text: str, text_pair: None = None, **options: Any) -> list[int]:
        """The ids of a text; options as in `__call__`."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(self, text: str, split_special_tokens: bool | None = None) -> list[str]:
        """The tokens of a text, spelled as in vocab.json: a space is "Ġ"."""
        ids = self.encode(text, split_special_tokens=split_special_tokens)
        return self.convert_ids_to_tokens(ids)

    def pad(
        self,
        encoded_inputs: Mapping | Sequence[Mapping],
        padding: bool | str = True,
        **options: Any,
    ) -> BatchEncoding:
        """Pad what was encoded before, as a collator does; options of `batching.batch`.

        Args:
            encoded_inputs: a row, or rows by name, or a list of rows; further entries, such as
                labels, stay as they are.
        """
        refuse_unknown(f"{type(self).__name__}.pad", options, BATCH_OPTIONS)
        rows = encoded_inputs
        single = isinstance(rows, Mapping) and not isinstance(plain(rows["input_ids"][0]), list)
        if isinstance(rows, Mapping):
            names, columns = list(rows), zip(*rows.values(), strict=True)
            rows = [rows] if single else [dict(zip(names, c, strict=True)) for c in columns]
        rows = [plain(dict(row)) for row in rows]
        return self._batch(rows, single, {"padding": padding, "truncation": False, **options})

    def _batch(self, rows: list[dict], single: bool, options: Mapping[str, Any]) -> BatchEncoding:
        own = {
            "padding_side": options.get("padding_side") or self.padding_side,
            "truncation_side": self.truncation_side,
            "pad_token_id": self.pad_token_id,
            "model_max_length": self.model_max_length,
        }
        return batch(rows, single=single, **{**options, **own})

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

    # -- ids to text

    def _bytes(self, ids: list[int], skip_special_tokens: bool) -> bytes:
        if min(ids, default=0) < 0:
            raise ValueError(f"no token has the id {min(ids)}: leave out labels of -100")
        skip = self._skipped if skip_special_tokens else ()
        return b"".join(self._token_of.get(i, b"") for i in ids if i not in skip)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str | list[str]:
        """The text of an id or of ids (T,), or the texts of a batch (B, T): lists or tensors.

        Bytes that are not UTF-8 become U+FFFD. Ids past the last token, for which models have spare
        rows, become nothing. `clean_up_tokenization_spaces` has no effect, as in transformers:
        a space is text.

        Raises:
            TypeError: not ids, such as tokens or floats.
            ValueError: a negative id.
        """
        ids = token_ids["input_ids"] if isinstance(token_ids, Mapping) else token_ids
        ids = plain(ids)
        ids = [ids] if type(ids) is int else ids
        if isinstance(ids, Iterable) and not isinstance(ids, (str, bytes)):
            ids = list(ids)
            if ids and isinstance(ids[0], (list, tuple)):
                return [self.decode(row, skip_special_tokens) for row in ids]
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            found = f"not {reprlib.repr(token_ids)}: for tokens, use convert_tokens_to_ids first"
            raise TypeError(f"decode takes ids (ints, lists or tensors of ints), {found}")
        return self._bytes(ids, skip_special_tokens).decode("utf-8", errors="replace")

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The texts of rows of ids: lists, or a tensor (B, T)."""
        texts = self.decode(sequences, skip_special_tokens)
        return [texts] if isinstance(texts, str) else texts

    def stream_decoder(self, skip_special_tokens: bool = False) -> StreamDecoder:
        """Decode ids as they come: `.push(id)`, and at the end `.flush()`."""
        return StreamDecoder(self, skip_special_tokens)

    # -- chats

    def apply_chat_template(
        self,
        conversation: Sequence,
        tools: Sequence[Mapping[str, Any]] | None = None,
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
        own_words = set(self._controls.id_of.values()) - self._special_ids
        of_batch = {name: options.pop(name) for name in BATCH_OPTIONS if name in options}
        asked = {
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "find_spoken": mask,
            "special_tokens": self.special_tokens_map,
        }
        controls = self._controls if tokenize else None
        listed = isinstance(conversation, (list, tuple)) and len(conversation) > 0
        batched = listed and isinstance(conversation[0], (list, tuple))
        conversations = conversation if batched else [conversation]
        settings = {**asked, **options}
        spans = [
            chat.spans(template, one, controls, own_words, **settings) for one in conversations
        ]
        if not tokenize:
            texts = [row[0].text for row in spans]
            return texts if batched else texts[0]
        rows = [self._encode_spans(row, mask) for row in spans]
        result = self._batch(rows, not batched, {"truncation": False, **of_batch})
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

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cache": {}}


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
