"""The exercises of lesson 01: byte-level BPE."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from itertools import pairwise

from ..bpe import BYTE_TO_CHAR, merge, token_to_text
from .exercises import Exercise


def spelling(text: str) -> str:
    """A text in the byte alphabet."""
    return token_to_text(text.encode())


def longest_match(piece: bytes, vocab: Mapping[bytes, int]) -> list[bytes]:
    """From the left, the longest token that fits, again and again."""
    tokens = []
    while piece:
        length = next(n for n in range(len(piece), 0, -1) if piece[:n] in vocab)
        tokens.append(piece[:length])
        piece = piece[length:]
    return tokens


def longest_anywhere(piece: bytes, vocab: Mapping[bytes, int]) -> list[bytes]:
    """The longest token in the piece, wherever it stands, then what is left and right of it."""
    if not piece:
        return []
    spans = [(i, j) for i in range(len(piece)) for j in range(i + 1, len(piece) + 1)]
    fits = [(i, j) for i, j in spans if piece[i:j] in vocab]
    i, j = max(fits, key=lambda span: (span[1] - span[0], -span[0]))
    left, right = longest_anywhere(piece[:i], vocab), longest_anywhere(piece[j:], vocab)
    return [*left, piece[i:j], *right]


def longest_from_right(piece: bytes, vocab: Mapping[bytes, int]) -> list[bytes]:
    tokens = []
    while piece:
        length = next(n for n in range(len(piece), 0, -1) if piece[-n:] in vocab)
        tokens.insert(0, piece[-length:])
        piece = piece[:-length]
    return tokens


def three_at_most(piece: bytes, vocab: Mapping[bytes, int]) -> list[bytes]:
    return longest_match(piece, {token: rank for token, rank in vocab.items() if len(token) <= 3})


def stream(chunks: Sequence[bytes]) -> list[str]:
    """The text that can be shown after each chunk."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(chunk) for chunk in chunks]


def stream_all_or_nothing(chunks: Sequence[bytes]) -> list[str]:
    """Whole characters are held back together with the unfinished one behind them."""
    shown, held = [], b""
    for chunk in chunks:
        held += chunk
        try:
            shown.append(held.decode())
            held = b""
        except UnicodeDecodeError:
            shown.append("")
    return shown


def stream_from_the_start(chunks: Sequence[bytes]) -> list[str]:
    """After each chunk, all the text so far."""
    texts = stream(chunks)
    return ["".join(texts[: i + 1]) for i in range(len(texts))]


_shared = codecs.getincrementaldecoder("utf-8")("replace")


def stream_shared(chunks: Sequence[bytes]) -> list[str]:
    """One decoder for all texts: what one left torn goes into the next."""
    return [_shared.decode(chunk) for chunk in chunks]


def groups(digits: str) -> list[str]:
    """Groups of three digits from the right."""
    first = len(digits) % 3
    starts = [0] * (first > 0) + list(range(first, len(digits), 3))
    return [digits[a:b] for a, b in zip(starts, [*starts[1:], len(digits)], strict=True)]


def groups_from_the_left(digits: str) -> list[str]:
    return [digits[i : i + 3] for i in range(0, len(digits), 3)]


SAVING = (151_936 - 256) * 896  # rows fewer, times E; the table is tied, so there is only one
# In abcd BPE takes bc first; in cdab the longest token is dab, but cd stands further left.
# From the right abc is a, bc. A token of five bytes is there for those who stop at three.
SMALL = {b"a": 0, b"b": 1, b"c": 2, b"d": 3, b"bc": 4, b"ab": 5, b"cd": 6, b"dab": 7, b"dabcd": 8}


def highest_first(piece: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    return merge(piece, {token: -rank for token, rank in ranks.items()}) if piece else []


def one_merge(piece: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The best pair once, and no more."""
    tokens = [piece[i : i + 1] for i in range(len(piece))]
    pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(tokens)) if a + b in ranks]
    if pairs:
        _, i = min(pairs)
        tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
    return tokens


def rightmost_first(piece: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Of equal ranks the last one in the piece."""
    tokens = [piece[i : i + 1] for i in range(len(piece))]
    while found := [i for i, (a, b) in enumerate(pairwise(tokens)) if a + b in ranks]:
        i = min(found, key=lambda i: (ranks[tokens[i] + tokens[i + 1]], -i))
        tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
    return tokens


def from_the_left(piece: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The first pair that is a token, whatever its rank, until there is none."""
    tokens = [piece[i : i + 1] for i in range(len(piece))]
    while found := [i for i, (a, b) in enumerate(pairwise(tokens)) if a + b in ranks]:
        tokens[found[0] : found[0] + 2] = [tokens[found[0]] + tokens[found[0] + 1]]
    return tokens


EXERCISES = [
    Exercise(
        name="ex01_0",
        title="Merge",
        answer=merge,
        cases=[
            (b"abcd", SMALL),
            (b"dabcd", SMALL),
            (b"bcd", SMALL),
            (b"cdab", SMALL),
            (b"dcb", SMALL | {b"dcb": 9}),  # no two neighbours lead to it
            (b"a", SMALL),
            (b"aaa", SMALL | {b"aa": 9}),  # aa fits twice
        ],
        wrong={
            "This merges once. Go on until no pair of neighbours is a token.": one_merge,
            "This merges the first pair from the left. The pair with the lowest rank goes first.": (
                from_the_left
            ),
            "The highest rank goes first here. Early merges have low ranks, and they come first.": (
                highest_first
            ),
            "Where a rank fits twice, as in aaa, the leftmost pair goes first.": rightmost_first,
            "That is the longest match. BPE does not look for long tokens, it replays merges.": (
                longest_match
            ),
        },
    ),
    Exercise(
        name="ex01_1",
        title="Spelling",
        answer=spelling,
        cases=[(" hi",), (" né",), ("a\nb",), ("老",)],
        wrong={
            "Only the space is replaced. Every byte has a character: what about é and the line "
            "break?": lambda text: text.replace(" ", "Ġ"),
            "This looks up characters. The alphabet is one of bytes, so encode the text first.": (
                lambda text: "".join(BYTE_TO_CHAR.get(ord(char), char) for char in text)
            ),
            "The bytes are read as Latin-1, but the hidden ones have other characters: see "
            "BYTE_TO_CHAR.": lambda text: text.encode().decode("latin-1"),
        },
    ),
    Exercise(
        name="ex01_2",
        title="The longest match",
        answer=longest_match,
        cases=[
            (b"abcd", SMALL),
            (b"cdab", SMALL),
            (b"dabab", SMALL),
            (b"abc", SMALL),
            (b"adabcd", SMALL),
        ],
        wrong={
            "This is BPE: the lowest rank goes first. The longest match does not look at ranks.": (
                merge
            ),
            "This takes the longest token anywhere in the piece. Take the longest at its start.": (
                longest_anywhere
            ),
            "This goes from the right. The longest token is wanted that the piece begins with.": (
                longest_from_right
            ),
            "Tokens may be longer than three bytes. Begin with the whole piece.": three_at_most,
            "This takes the shortest token, always a byte. Try the long ones first.": (
                lambda piece, vocab: [bytes([byte]) for byte in piece]
            ),
            "Only the first token is there. Go on with the rest.": (
                lambda piece, vocab: longest_match(piece, vocab)[:1]
            ),
        },
    ),
    Exercise(
        name="ex01_3",
        title="A stream",
        answer=stream,
        cases=[
            ([b"We", b"'ll be "],),
            ([b" \xe8", b"\x80", b"\x81!"],),
            ([b"hi \xf0\x9f", b"\x91\x8b"],),
            ([b"ok \xf0\x9f\x91"],),
            ([b"We", b"'ll be "],),  # once more: nothing may be left over from the text before
        ],
        wrong={
            "Each chunk is decoded alone, so a torn character becomes U+FFFD. Keep its bytes for "
            "the next chunk.": lambda chunks: [chunk.decode(errors="replace") for chunk in chunks],
            "Torn characters are dropped. Keep their bytes for the next chunk.": (
                lambda chunks: [chunk.decode(errors="ignore") for chunk in chunks]
            ),
            "Nothing is lost, but whole characters wait for the torn one behind them. Show them at "
            "once.": stream_all_or_nothing,
            "Right, until a text ends in a torn character: its bytes go into the next text. Make a "
            "new decoder, or an empty rest, in each call.": stream_shared,
            "This is all the text so far, each time. Answer only what is new.": (
                stream_from_the_start
            ),
        },
    ),
    Exercise(
        name="ex01_4",
        title="Digits, from the right",
        answer=groups,
        cases=[("7",), ("2024",), ("1234567",), ("123456",), ("0012",)],
        wrong={
            "These are groups from the left. The last group must be the full one.": (
                groups_from_the_left
            ),
            "The groups are right, but in reverse order.": lambda digits: groups(digits)[::-1],
            "Each group is backwards. If you turned the string round, turn the groups back too.": (
                lambda digits: [group[::-1] for group in groups(digits)]
            ),
            "The digits that are left over on the left are missing.": (
                lambda digits: [group for group in groups(digits) if len(group) == 3]
            ),
            "With a multiple of three, there is no empty group in front.": (
                lambda digits: [*([""] if len(digits) % 3 == 0 else []), *groups(digits)]
            ),
        },
    ),
    Exercise(
        name="ex01_5",
        title="The price of a vocabulary",
        answer=SAVING,
        cases=None,
        wrong={
            "Twice too many. Count numbers, not their bytes, and the table once: in Qwen2-0.5B the "
            "output matrix is tied to it.": 2 * SAVING,
            "That is bytes in fp32. How many numbers are it?": 4 * SAVING,
            "The table has more rows than there are tokens. How many? See the cost cell.": (
                (151_646 - 256) * 896
            ),
            "The table has more rows than there are tokens. How many, with those that are spare?": (
                (151_643 - 256) * 896
            ),
            "That is the whole table. 256 rows of it stay.": 151_936 * 896,
        },
        tolerance=0,
    ),
]
