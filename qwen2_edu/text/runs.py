"""A text cut into runs: added tokens, and what lies between, in NFC; and these runs into pieces.

An added token is matched whole, as it stands. The rest is brought to NFC, the form of Unicode in
which "é" has one spelling, however it was typed; where that rewrites characters, `origins_of` tells
which ones of the text each of the new ones stands for.

`regex`, `tiktoken` and `tokenizers` each bring the tables of some version of Unicode. Qwen2 is read
with those of Unicode 16, of `tokenizers` and `tiktoken`. A newer `regex` takes 17,480 more code
points for letters and digits; so where Unicode 16 has no character, `pieces` shows it none.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import regex

from ..bpe import split

# A character and all that NFC may fuse with it: marks, and later parts of a Korean syllable.
CLUSTER = regex.compile(r"(?s).[\p{M}\u1160-\u11FF]*")
# Where code points without a character begin in Unicode 16, and where they end, in turn.
_EDGES = [int(edge, 16) for edge in (Path(__file__).parent / "unassigned.txt").read_text().split()]
_NO_CHARACTER = "\uffff"  # of no class, in every version
_assigned: set[str] = set()  # characters that were looked up and are in Unicode 16
_MARKS = regex.compile(r"\p{M}{32,}")


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


def nfc(text: str) -> str:
    """A text in NFC. `unicodedata` sorts a run of marks in a time that grows with its square: so
    long runs come to it sorted.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _MARKS.sub(_in_order, text))


def _in_order(run: regex.Match) -> str:
    """Marks decomposed and in canonical order; one of class 0 is passed by no other."""
    marks = "".join(unicodedata.normalize("NFD", mark) for mark in run.group())
    groups = groupby(marks, key=lambda mark: unicodedata.combining(mark) > 0)
    return "".join("".join(sorted(g, key=unicodedata.combining) if m else g) for m, g in groups)


def pieces(text: str) -> list[str]:
    """Cut a text by `bpe.split`, which takes characters newer than Unicode 16 for no letters.

    What is cut is the text itself: joined, the pieces are the text again.
    """
    if text.isascii() or not (unseen := set(text) - _assigned):
        return split(text)
    newer = {ord(char) for char in unseen if bisect_right(_EDGES, ord(char)) % 2}
    _assigned.update(char for char in unseen if ord(char) not in newer)
    cut = split(text.translate(dict.fromkeys(newer, _NO_CHARACTER)))
    return [text[a:b] for a, b in pairwise(accumulate(map(len, cut), initial=0))]
