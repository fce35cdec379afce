"""Byte-level byte-pair encoding: from text to tokens, and how the merges are learned.

Three steps, each a pure function:

    split("Hello world")    -> ["Hello", " world"]    pieces, by a regular expression
    " world".encode()       -> b" world"              bytes: 256 of them spell any text
    merge(b" world", ranks) -> [b" world"]            bytes joined into tokens

A vocabulary is `dict[bytes, int]`, token -> id. `ranks` is `dict[bytes, int]`, token -> order in
which training made it. In the released vocabulary both are the same numbers.

What is a letter is for Unicode to say, and each engine has the tables of some version: letters that
are newer than those of `regex`, `tiktoken` or `tokenizers` may be cut differently by them.

Source: Sennrich et al., arXiv:1508.07909 (BPE); Radford et al., "Language Models are Unsupervised
Multitask Learners", 2019 (bytes, and the alphabet below).
"""

from __future__ import annotations

import heapq
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import regex

# How Qwen2 cuts text before any merging: an English contraction; a word and at most one character
# before it; one digit; punctuation and at most one space before it; line breaks; other white space.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PIECES = regex.compile(PATTERN)


def split(text: str) -> list[str]:
    """Which pieces is a text cut into? Joined, they are the text again."""
    return _PIECES.findall(text)


def _byte_alphabet() -> dict[int, str]:
    """One visible character for each byte, as vocabulary files are text, and b"\\n" is not.

    Bytes that already are a visible Latin-1 character stand for themselves; the other 68 take
    U+0100, U+0101, … in turn (so a space becomes "Ġ" and a line break "Ċ").
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}


BYTE_TO_CHAR = _byte_alphabet()

_TO_CHARS = str.maketrans({chr(byte): char for byte, char in BYTE_TO_CHAR.items()})
# Back again; a character that stands for no byte becomes one that Latin-1 cannot encode.
_TO_BYTES = str.maketrans(
    {chr(byte): "\u0100" for byte, char in BYTE_TO_CHAR.items() if chr(byte) != char}
    | {char: chr(byte) for byte, char in BYTE_TO_CHAR.items()}
)


def token_to_text(token: bytes) -> str:
    """How is a token spelled in vocab.json? b" hi" -> "Ġhi"."""
    return token.decode("latin-1").translate(_TO_CHARS)


def text_to_token(text: str) -> bytes:
    """Which bytes does a spelling in vocab.json stand for? "Ġhi" -> b" hi"; if none, ValueError."""
    try:
        return text.translate(_TO_BYTES).encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(f"{text[error.start]!r} in {text!r} stands for no byte") from None


def merge(piece: bytes, ranks: Mapping[bytes, int], limit: float = float("inf")) -> list[bytes]:
    """Which tokens does a piece become? Joined, they are the piece again.

    Start from single bytes. Again and again join the two neighbours whose union has the lowest
    rank, the leftmost of equals, until no two neighbours make a token. Looking through all
    neighbours for the lowest rank each time would cost O(n²). Here each rank keeps the places
    where it may happen, a heap tells the lowest rank, and a linked list the neighbours: O(n log n).

    Args:
        piece: the bytes to merge.
        ranks: token -> rank, higher than the ranks of the two halves it was made of.
        limit: use only merges of a rank below this.
    """
    n = len(piece)
    tokens: list[bytes | None] = [piece[i : i + 1] for i in range(n)]
    before = list(range(-1, n - 1))
    after = list(range(1, n + 1))  # n = no neighbour

    places: dict[int, list[int]] = {}  # rank -> where its left half may be
    for i in range(n - 1):
        rank = ranks.get(piece[i : i + 2], limit)
        if rank < limit:
            places.setdefault(rank, []).append(i)
    heap = list(places)
    heapq.heapify(heap)

    while heap:
        rank = heapq.heappop(heap)
        for i in sorted(places.pop(rank)):
            j = after[i]
            if tokens[i] is None or j == n or ranks.get(tokens[i] + tokens[j]) != rank:
                continue  # one of the halves has been merged with another neighbour since
            tokens[i], tokens[j] = tokens[i] + tokens[j], None
            after[i] = k = after[j]
            if k < n:
                before[k] = i
            for a, b in ((before[i], i), (i, k)):  # the new token and its new neighbours
                if a >= 0 and b < n:
                    new = ranks.get(tokens[a] + tokens[b], limit)
                    if new < limit:
                        if new not in places:
                            places[new] = []
                            heapq.heappush(heap, new)
                        places[new].append(a)
    return [token for token in tokens if token is not None]


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Which merge made each token? Undo the last one: split the token by the ranks below its own.

    Args:
        ranks: token -> rank, as a `*.tiktoken` file lists them. A token that those before it do
            not lead to raises ValueError.

    Returns:
        (left, right) of every token longer than a byte, in rank order.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            halves = merge(token, ranks, limit=rank)
            if len(halves) != 2:
                raise ValueError(f"no merge makes token {token!r} of rank {rank}: {halves}")
            merges.append((halves[0], halves[1]))
    return merges


def ranks_of(merges: Iterable[tuple[bytes, bytes]]) -> dict[bytes, int]:
    """Which rank does each token have, given the merges? The reverse of `merges_of`.

    Only the 256 bytes and the tokens that merges make have a rank: no other is ever produced.
    Ranks say as much as the merges if the bytes of each token lead to the merge that makes it.
    Training makes only such lists; any other raises ValueError, rather than encode differently.
    """
    ranks = {bytes([byte]): i for i, byte in enumerate(BYTE_TO_CHAR)}
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    for i, (left, right) in enumerate(merges):
        if left not in ranks or right not in ranks:
            raise ValueError(f"merge {i}: no earlier merge makes {left!r} or {right!r}")
        token = left + right
        if token in ranks or not _lead_to(left, right, ranks, halves):
            raise ValueError(
                f"merge {i}: {left!r} + {right!r} can never happen, as the merges before it lead "
                "elsewhere; a list made by training holds no such merge"
            )
        ranks[token], halves[token] = 256 + i, (left, right)
    return ranks


def _lead_to(left: bytes, right: bytes, ranks: dict, halves: dict) -> bool:
    """Is `merge(left + right, ranks)` [left, right]? Looking at the seam between them is enough.

    Undo the merges on either side of it, the latest first. The two tokens that then touch stood
    there until the merge just undone; a merge of their own, of lower rank, would have come before.
    """
    limit = float("inf")
    while ranks.get(left + right, limit) >= limit:
        if len(left) == len(right) == 1:
            return True
        if ranks[left] > ranks[right]:
            limit, left = ranks[left], halves[left][1]
        else:  # a tie goes to the merge further left, which is the one across the seam
            limit, right = ranks[right] + 1, halves[right][0]
    return False


def train(
    texts: Iterable[str], vocab_size: int, special_tokens: Iterable[str] = ()
) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]]]:
    """Learn a vocabulary: join the most frequent pair of neighbouring tokens, count again, repeat.

    Each distinct piece is kept once with its count, and after a merge only the pieces that held the
    pair are counted again. Of equally frequent pairs the one with the lower ids wins (left id, then
    right id), so the same texts always give the same vocabulary.

    Args:
        texts: what to learn from.
        vocab_size: number of ids in all: 256 bytes, the merges, and the special tokens.
        special_tokens: never learned from, never split; their ids follow the vocabulary's.

    Returns:
        (vocab, merges): token -> id without the special tokens, and the merges in order.

    Raises:
        ValueError: no room for the special tokens, or too little text for so many merges.
    """
    special_tokens = sorted(special_tokens, key=len, reverse=True)  # the longest match wins
    wanted = vocab_size - 256 - len(special_tokens)
    if wanted < 0:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: 256 bytes and {len(special_tokens)} special "
            f"tokens need {256 + len(special_tokens)}"
        )
    tokens = [bytes([byte]) for byte in BYTE_TO_CHAR]  # id -> token, bytes in the released order
    byte_id = {byte: i for i, byte in enumerate(BYTE_TO_CHAR)}

    counts: Counter[str] = Counter()
    for text in texts:
        for part in regex.split("|".join(map(regex.escape, special_tokens)) or "(?!)", text):
            counts.update(split(unicodedata.normalize("NFC", part)))
    words = [[byte_id[byte] for byte in piece.encode()] for piece in counts]
    frequency = list(counts.values())

    pair_count: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)  # words that may hold a pair
    for w, word in enumerate(words):
        for pair in zip(word, word[1:], strict=False):
            pair_count[pair] += frequency[w]
            where[pair].add(w)
    heap = [(-count, pair) for pair, count in pair_count.items()]
    heapq.heapify(heap)

    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < wanted:
        count, pair = heapq.heappop(heap) if heap else (0, None)
        if pair is not None and -count != pair_count[pair]:
            continue  # counted again since; the fresh entry is in the heap too
        if count > -2:
            raise ValueError(
                f"the texts give only {len(merges)} merges of pairs seen twice, not {wanted}: give "
                f"more text, or a vocab_size of at most {vocab_size - wanted + len(merges)}"
            )
        new = len(tokens)
        left, right = tokens[pair[0]], tokens[pair[1]]
        merges.append((left, right))
        tokens.append(left + right)

        changed = set()
        for w in where.pop(pair):
            old = words[w]
            words[w] = word = _join(old, pair, new)
            if len(word) == len(old):
                continue  # the pair had already gone from this word
            for p in zip(old, old[1:], strict=False):
                pair_count[p] -= frequency[w]
                changed.add(p)
            for p in zip(word, word[1:], strict=False):
                pair_count[p] += frequency[w]
                where[p].add(w)
                changed.add(p)
        for p in changed:
            if pair_count[p] > 0:
                heapq.heappush(heap, (-pair_count[p], p))
    return {token: i for i, token in enumerate(tokens)}, merges


def _join(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace each `pair` in `word` by `new`, left to right."""
    out: list[int] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] = new
        else:
            out.append(token)
    return out
