"""Text before it is encoded: is it whole, and what does its NFC form stand for?

NFC is the form of Unicode in which "é" has one spelling, however it was typed.
"""

from __future__ import annotations

import unicodedata
from typing import Any

import regex

# A character and all that NFC may fuse with it: marks, and later parts of a Korean syllable.
CLUSTER = regex.compile(r"(?s).[\p{M}\u1160-\u11FF]*")


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
