"""The tokens of a tokenizer: which there are, their ids and spellings, the parts they play."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from ..bpe import BYTE_TO_CHAR, merges_of, ranks_of, text_to_token, token_to_text
from ..checks import check_json, checked, one_of, plain
from .runs import AddedToken, Finder, check_text

Token = str | AddedToken


class Part:
    """An attribute that names the token of a part, `eos_token`; or its id, `eos_token_id`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.part, self.by_id = name.removesuffix("_id"), name.endswith("_id")

    def __get__(self, vocabulary: Vocabulary, owner: type) -> str | int | None:
        token = vocabulary._parts[self.part]
        return vocabulary._id_of(token) if self.by_id and token is not None else token

    def __set__(self, vocabulary: Vocabulary, value: str | int | None) -> None:
        by_id, value = self.by_id and value is not None, plain(value)
        check_json({self.part: value}, {self.part: int if by_id else str | None})
        token = vocabulary.convert_ids_to_tokens(value) if by_id else value
        if value is not None and (token is None or vocabulary._id_of(token) is None):
            what = f"no token has the id {value}" if by_id else f"{value!r} is no token"
            raise ValueError(f"{what}, so it cannot be the {self.part}: use add_special_tokens")
        vocabulary._parts[self.part] = token


@checked
class Vocabulary:
    """The tokens that training made, and those added to them: added ones are matched whole.

    Args:
        vocab: token -> id, tokens as bytes. A ValueError if a single byte or what a merge makes is
            missing, or if two tokens share an id.
        merges: (left, right) in the order of training; None = that of the ids, as in the release.
        added_tokens: tokens matched as they stand, a plain string being special. They get the next
            ids; a dict {id: token} chooses them.
        bos_token, eos_token, unk_token, pad_token: which tokens play these parts.
        additional_special_tokens: further tokens for `all_special_tokens`.
    """

    bos_token, bos_token_id = Part(), Part()
    eos_token, eos_token_id = Part(), Part()
    unk_token, unk_token_id = Part(), Part()
    pad_token, pad_token_id = Part(), Part()

    def __init__(
        self,
        vocab: Mapping[bytes, int],
        merges: Iterable[tuple[bytes, bytes]] | None = None,
        *,
        added_tokens: Iterable[Token] | Mapping[int, Token] = (),
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        pad_token: str | None = None,
        additional_special_tokens: Sequence[str] = (),
    ):
        self.vocab = self._ranks = dict(vocab)
        if merges is not None:
            self.merges = list(merges)
            self._ranks = ranks_of(self.merges)
        self._token_of = {token_id: token for token, token_id in self.vocab.items()}
        self._limit = max(self._token_of, default=-1) + 1
        for token in [*(bytes([byte]) for byte in range(256)), *self._ranks]:
            if token not in self.vocab:
                what = "the single byte" if len(token) == 1 else "what a merge makes,"
                raise ValueError(f"the vocabulary lacks {what} {token!r}")
        if len(self._token_of) < len(self.vocab):
            raise ValueError("two tokens of the vocabulary have the same id")

        self._added: dict[int, AddedToken] = {}
        self._added_ids: dict[str, int] = {}
        if isinstance(added_tokens, Mapping):
            for token_id, token in added_tokens.items():
                self._add(token, token_id, special=True)
            added_tokens = ()
        self.add_tokens(added_tokens, special_tokens=True)
        self._parts = {"bos_token": bos_token, "eos_token": eos_token}
        self._parts |= {"unk_token": unk_token, "pad_token": pad_token}
        self.additional_special_tokens = list(additional_special_tokens)
        new = [t for t in self.all_special_tokens if self._id_of(t) is None or t in self._added_ids]
        self.add_tokens(new, special_tokens=True)  # what plays a part is special, and is there

    @cached_property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The merges in order. If the vocabulary came without, they are worked out now."""
        return merges_of(self.vocab)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, without those added."""
        return len(self.vocab)

    @property
    def vocab_limit(self) -> int:
        """The highest id + 1: what bounds ids, as these may have gaps; `len` counts tokens."""
        return self._limit

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
        """id -> added token, in the order of the ids."""
        return dict(sorted(self._added.items()))

    def get_added_vocab(self) -> dict[str, int]:
        """token -> id of the added tokens, in the order of the ids."""
        return {token.content: i for i, token in self.added_tokens_decoder.items()}

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

    @property
    def _skipped(self) -> set[int]:
        """What `skip_special_tokens` leaves out: special by its flag, or by the part it plays."""
        return self._special_ids | set(self.all_special_ids)

    def add_tokens(self, new_tokens: Token | Iterable[Token], special_tokens: bool = False) -> int:
        """Add tokens; their ids follow the highest one. A plain string is looked for in the NFC
        form of a text; or, if special, in the text as it is, and then `skip_special_tokens` drops
        it. Returns how many are new: if any, `model.resize_token_embeddings(self.vocab_limit)`.
        """
        before = len(self._added)
        for token in [new_tokens] if isinstance(new_tokens, Token) else new_tokens:
            self._add(token, None, special_tokens)
        ids, added = self._added_ids, self._added
        in_nfc = {t: i for t, i in ids.items() if added[i].normalized}
        self._in_nfc = Finder({unicodedata.normalize("NFC", t): i for t, i in in_nfc.items()})
        self._as_written = Finder({t: i for t, i in ids.items() if t not in in_nfc})
        self._special_ids = special = {i for i in added if added[i].special}
        # In a chat, these come from the template only: all but words added to the vocabulary.
        words = {t for t in ids if t[0].isalnum() or t[-1].isalnum()}
        self._controls = Finder({t: i for t, i in ids.items() if i in special or t not in words})
        return len(added) - before

    def add_special_tokens(self, special_tokens_dict: Mapping[str, Token | Sequence[Token]]) -> int:
        """Add special tokens, as {"pad_token": "<pad>", "additional_special_tokens": ["<a>"]} says
        which part they play; returns how many are new.
        """
        extras = ("additional_special_tokens", "extra_special_tokens")
        new = 0
        for name, value in special_tokens_dict.items():
            one_of("a special token's part", name, (*self._parts, *extras))
            if name not in extras:
                check_json({name: value}, {name: Token})
            new += self.add_tokens(value, special_tokens=True)
            values = [value] if isinstance(value, Token) else value
            contents = [t.content if isinstance(t, AddedToken) else t for t in values]
            if name in extras:
                self.additional_special_tokens = contents
            else:
                setattr(self, name, contents[0])
        return new

    def _add(self, token: Token, token_id: int | None, special: bool) -> None:
        if isinstance(token, str):
            token = AddedToken(token, special=special, normalized=not special)
        check_text(token.content)
        if not token.content:
            raise ValueError("an added token cannot be empty")
        known = self._id_of(token.content)
        if token_id is None:
            token_id = self._limit if known is None else known
        holder = self._token_of.setdefault(token_id, token.content.encode())
        if known not in (None, token_id) or (known is None and holder != token.content.encode()):
            other = f"it has id {known}" if known is not None else f"that is {holder!r}"
            raise ValueError(f"{token.content!r} cannot be added as id {token_id}: {other}")
        was = self._added.get(token_id, token)
        if was.special and not token.special:
            token = was  # once special, always special
        self._added[token_id], self._added_ids[token.content] = token, token_id
        self._limit = max(self._limit, token_id + 1)

    def _id_of(self, token: str) -> int | None:
        if token in self._added_ids:
            return self._added_ids[token]
        try:
            return self.vocab.get(text_to_token(token))
        except ValueError:
            return None

    def _spell(self, token_id: int) -> str | None:
        if token_id in self._added:
            return self._added[token_id].content
        token = self._token_of.get(token_id)
        return None if token is None else token_to_text(token)

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | None | list[int | None]:
        """Ids of tokens as `tokenize` spells them; an unknown one gives `unk_token_id`."""
        single, unknown = isinstance(tokens, str), self.unk_token_id
        found = [self._id_of(token) for token in ([tokens] if single else tokens)]
        ids = [unknown if token_id is None else token_id for token_id in found]
        return ids[0] if single else ids

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | None | list[str | None]:
        """Tokens of ids, spelled as in vocab.json; None for an id that no token has."""
        if isinstance(ids, int):
            return self._spell(ids)
        skip = self._skipped if skip_special_tokens else ()
        return [self._spell(token_id) for token_id in ids if token_id not in skip]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """The text that tokens stand for, spelled as by `tokenize`."""
        alphabet, data = set(BYTE_TO_CHAR.values()), bytearray()
        for token in tokens:
            as_it_is = token in self._added_ids or set(token) - alphabet
            data += token.encode() if as_it_is else text_to_token(token)
        return data.decode("utf-8", errors="replace")
