"""Tokens that are matched whole in a text, before it is split: what they are, and finding them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import regex


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
