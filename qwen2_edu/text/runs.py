"""A text cut into runs, before any splitting: added tokens, and what lies between, in NFC.

An added token is matched whole, as it stands. The rest is brought to NFC, the form of Unicode in
which "é" has one spelling, however it was typed; where that rewrites characters, `origins_of` tells
which ones of the text each of the new ones stands for.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import regex

from .unicode import nfc

# A character and all that NFC may fuse with it: marks, and later parts of a Korean syllable.
CLUSTER = regex.compile(r"(?s).[\p{M}\u1160-\u11FF]*")


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in a text as it stands, before any splitting."""

    content: str
    special: bool = False  # dropped by `decode(..., skip_special_tokens=True)`
    normalized: bool = False  # looked for in the NFC form of the text, not in the text itself


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

    It stands in text[start:end], whose NFC form holds it from character `skip` on.
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

    `as_written` finds those that stand in the text itself, `in_nfc` those in its NFC form.
    """
    check_text(text)
    for start, end, token_id in as_written.cuts(text, ignore):
        if token_id is not None:
            yield Run(text[start:end], token_id, start, end)
            continue
        normal = nfc(text[start:end])
        for a, b, token_id in in_nfc.cuts(normal, ignore):
            yield Run(normal[a:b], token_id, start, end, a)


def check_text(text: Any) -> None:
    """Refuse what is not a string (TypeError), or holds half a character (ValueError)."""
    if not isinstance(text, str):
        raise TypeError(f"a text must be a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        found = f"U+{ord(text[at]):04X}, at position {at}, near {text[max(0, at - 10) : at + 10]!r}"
        raise ValueError(f"lone surrogate, {found}: leave out such half characters") from None


def origins_of(text: str) -> list[tuple[int, int]]:
    """Of which characters of `text`, (start, end), was each character of its NFC form made?"""
    if nfc(text) == text:
        return [(i, i + 1) for i in range(len(text))]
    origins = []
    for cluster in CLUSTER.finditer(text):
        start, end = cluster.span()
        normal = nfc(cluster.group())
        one_by_one = [(i, i + 1) for i in range(start, end)]
        origins += one_by_one if normal == cluster.group() else [(start, end)] * len(normal)
    return origins
