"""A string that knows who wrote each of its characters, whatever a template does with it.

A chat template pastes together text of its own, control tokens among it, and what people typed. In
what comes out the two may look alike. So what the template brings is a `Traced`: a string, and
beside it one byte a character that says where this comes from. Adding, slicing, trimming, cutting,
replacing and joining carry these bytes along, and give the same text as those of any string.

A plain string was typed by people, and so is whatever any other operation makes: what is forgotten
can at worst turn a control token into letters, never letters into a control token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

TYPED, SAID, WRITTEN = 0, 1, 2  # by people; by the assistant; by the template
WHO = 3  # the bits that tell these
SPOKEN, LAST = 4, 8  # more bits: what {% generation %} holds; what follows the last message


class Traced(str):
    """`text`, all of it of one origin, or of one for each character; without, typed by people."""

    __slots__ = ("_origins",)

    def __new__(cls, text: str = "", origins: bytes | int = TYPED) -> Traced:
        new = str.__new__(cls, text)
        new._origins = origins if isinstance(origins, bytes) else bytes([origins]) * len(new)
        return new

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return join("", (self, other))

    def __radd__(self, other: str) -> str:
        return join("", (other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: int | slice) -> str:
        text = str.__getitem__(self, key)  # whatever cannot be a key fails here
        kept = key if isinstance(key, slice) else slice(key, key + 1 or None)
        return Traced(text, self._origins[kept])

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> str:
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(str.removesuffix(self, suffix))]

    def split(self, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        return self._parts(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        return self._parts(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._parts(str.splitlines(self, keepends), None)

    def partition(self, sep: str, /) -> tuple[str, ...]:
        return tuple(self._parts(str.partition(self, sep), ""))

    def rpartition(self, sep: str, /) -> tuple[str, ...]:
        return tuple(self._parts(str.rpartition(self, sep), ""))

    def replace(self, old: str, new: str, count: int = -1, /) -> str:
        if not old or not isinstance(new, str):
            return str.replace(self, old, new, count)
        return join(new, self.split(old, count))

    def join(self, parts: Iterable[str], /) -> str:
        return join(self, parts)

    def _parts(self, parts: Iterable[str], gap: str | None) -> list[str]:
        """These parts of this string, `gap` apart; None = blanks or line ends, of any length."""
        found, at = [], 0
        for part in parts:
            at = str.index(self, part, at) if gap is None else at
            found.append(self[at : at + len(part)])
            at += len(part) + len(gap or "")
        return found


Traced.__name__ = "str"  # as Python calls it where a template fails


def origins(text: str) -> bytes:
    """Where each character of a string comes from: WRITTEN, … and further bits."""
    return text._origins if isinstance(text, Traced) else bytes(len(text))


def join(between: str, parts: Iterable[str]) -> str:
    """`between.join(parts)`, with the origins of all."""
    parts = list(parts)
    text = str.join(between, parts)
    if isinstance(between, Traced) or any(isinstance(part, Traced) for part in parts):
        return Traced(text, origins(between).join(map(origins, parts)))
    return text
