"""A text cut into runs, before any splitting: added tokens, and what lies between, in NFC.

An added token is matched whole, as it stands. The rest is brought to NFC, the form of Unicode in
which "é" has one spelling, however it was typed; where that rewrites characters, `origins_of` tells
which ones of the text each of the new ones stands for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import regex

# A character and all that NFC may fuse with it: marks, and later parts of a Korean syllable.
CLUSTER = regex.compile(r"(?s).[\p{M}\u1160-\u11FF]*")


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in a text as it stands, before any splitting.

    special: dropped by `decode(..., skip_special_tokens=True)`.
    normalized: looked for in the NFC form of the text, instead of in the text itself.
    """

    content: str
    special: bool = False
    normalized: bool = False


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


class Run(NamedTuple):
    """An added token and its id, or plain text in NFC and None.

    start, end: where it stands in the text; the NFC form of text[start:end] holds the run from
        character `skip` on.
    """

    text: str
    token_id: int | None
    start: int
    end: int
    skip: int = 0


def runs(
    text: str, as_written: Finder, in_nfc: Finder, ignore: Container[int] = ()
) -> Iterator[Run]:
    """Cut a text at its added tokens, but for the ids to ignore.

    Args:
        as_written, in_nfc: find the tokens that stand in the text itself, and in its NFC form.
    """
    check_text(text)
    for start, end, token_id in as_written.cuts(text, ignore):
        if token_id is not None:
            yield Run(text[start:end], token_id, start, end)
            continue
        nfc = unicodedata.normalize("NFC", text[start:end])
        for a, b, token_id in in_nfc.cuts(nfc, ignore):
            yield Run(nfc[a:b], token_id, start, end, a)


def check_text(text: Any) -> None:
    """Refuse what is not a string (TypeError), or holds half a character (ValueError)."""
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


def origins_of(text: str) -> list[tuple[int, int]]:
    """Of which characters of `text`, (start, end), was each character of its NFC form made?"""
    if unicodedata.is_normalized("NFC", text):
        return [(i, i + 1) for i in range(len(text))]
    origins = []
    for cluster in CLUSTER.finditer(text):
        start, end = cluster.span()
        nfc = unicodedata.normalize("NFC", cluster.group())
        if nfc == cluster.group():
            origins += [(i, i + 1) for i in range(start, end)]
        else:
            origins += [(start, end)] * len(nfc)
    return origins
