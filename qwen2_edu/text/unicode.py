"""What Unicode says of characters, the same for every engine and version, and in linear time.

`regex`, `tiktoken` and `tokenizers` each bring the tables of some version of Unicode. Qwen2 is read
with those of Unicode 16, of `tokenizers` and `tiktoken`. A newer `regex` takes 17,480 more code
points for letters and digits; so where Unicode 16 has no character, `pieces` shows it none.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from itertools import accumulate, groupby, pairwise
from pathlib import Path

import regex

from ..bpe import split

# Where code points without a character begin in Unicode 16, and where they end, in turn.
_EDGES = [int(edge, 16) for edge in (Path(__file__).parent / "unassigned.txt").read_text().split()]
_NO_CHARACTER = "\uffff"  # of no class, in every version
_assigned: set[str] = set()  # characters that were looked up and are in Unicode 16
_MARKS = regex.compile(r"\p{M}{32,}")


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
