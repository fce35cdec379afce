"""What a tokenizer is and does beside reading text: settings, files, batches, ids back to text."""

from __future__ import annotations

import codecs
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..checks import check_json, checked, one_of, plain, refuse_unknown
from ..files.gguf import GGUFFile, open_place
from ..files.gguf_model import tokenizer_settings
from ..hub import HUB_OPTIONS, INSTEAD, resolve, take_options
from . import files
from .batching import BATCH_OPTIONS, NO_LIMIT, SIDES, BatchEncoding, batch
from .vocabulary import Vocabulary


@checked
class StreamDecoder:
    """Decodes ids one at a time, keeping back the bytes of a character not yet whole.

    All that `push` returns, and at the end `flush`, joined, is what `decode` gives for all the ids.
    """

    def __init__(self, tokenizer: Surface, skip_special_tokens: bool = False):
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this id completes; "" if none is complete yet."""
        return self._decoder.decode(self._tokenizer._bytes([token_id], self._skip))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character cut short. Then start anew."""
        return self._decoder.decode(b"", final=True)


@checked
class Surface(Vocabulary):
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
        model_max_length: float | None = None,
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
        check_json({name: value}, {"chat_template": str | dict[str, str] | None})
        if name == "model_max_length":
            value = NO_LIMIT if value is None else plain(value, whole=True)
        super().__setattr__(name, value)

    # -- reading and writing

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, **options: Any) -> Surface:
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
        return files.write(self.settings(), save_directory, filename_prefix, whole=False)

    def save_pretrained(
        self, save_directory: str | os.PathLike, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write those two, tokenizer.json and tokenizer_config.json; returns their paths."""
        return files.write(self.settings(), save_directory, filename_prefix, whole=True)

    # -- rows to a batch

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
        single = isinstance(encoded_inputs, Mapping)
        rows = [plain(dict(row)) for row in ([encoded_inputs] if single else encoded_inputs)]
        for row in rows:
            check_json({"input_ids": None, **row}, {"input_ids": list})
        if single and isinstance(next(iter(rows[0]["input_ids"]), None), list):
            names, columns = list(rows[0]), zip(*rows[0].values(), strict=True)
            single, rows = False, [dict(zip(names, c, strict=True)) for c in columns]
        return batch(self, rows, single, padding=padding, **{"truncation": False, **options})

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
        ids = plain(token_ids.get("input_ids") if isinstance(token_ids, Mapping) else token_ids)
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
