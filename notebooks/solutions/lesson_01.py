"""Solutions of lesson 01, byte-level BPE. Another way that gives the same is as good."""

from __future__ import annotations

from qwen2_edu.bpe import BYTE_TO_CHAR


def my_merge(piece, ranks):
    # Look at all neighbours again after each merge. `min` takes the lowest rank, and of equal
    # ones the leftmost, since the place is the second number of the pair.
    tokens = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        pairs = [
            (ranks.get(a + b), i) for i, (a, b) in enumerate(zip(tokens, tokens[1:], strict=False))
        ]
        fits = [(rank, i) for rank, i in pairs if rank is not None]
        if not fits:
            return tokens
        _, i = min(fits)
        tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]


def my_spelling(text):
    # The alphabet is one of bytes, so the text is encoded first: é is two bytes, so two signs.
    # `token_to_text(text.encode())` is the same.
    return "".join(BYTE_TO_CHAR[byte] for byte in text.encode())


def my_longest_match(piece, vocab):
    # Try the whole of what is left, then one byte less, and so on. A single byte always fits.
    # On b" lighthouse" this finds b" light" and b"house", which BPE does not.
    tokens = []
    while piece:
        length = len(piece)
        while piece[:length] not in vocab:
            length -= 1
        tokens.append(piece[:length])
        piece = piece[length:]
    return tokens


def my_stream(chunks):
    # The first byte of a character says how long it is, so we know when it is whole. The decoder
    # that `codecs.getincrementaldecoder("utf-8")()` makes does the same.
    shown, held = [], b""
    for chunk in chunks:
        text = ""
        for byte in chunk:
            held += bytes([byte])
            first = held[0]
            length = 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            if len(held) == length:
                text, held = text + held.decode(), b""
        shown.append(text)
    return shown


def my_groups(digits):
    # What does not fill a group of three is on the left. It comes first, and only if it is there.
    # From then on it is the easy case, groups from the left.
    first = len(digits) % 3
    head = [digits[:first]] if first else []
    return head + [digits[i : i + 3] for i in range(first, len(digits), 3)]


# Rows that go, times E = 896. There are 151,936 rows (V of the configuration, spare rows included),
# and one table only, as the output matrix of Qwen2-0.5B is tied to the embedding.
my_saving = (151_936 - 256) * 896

SOLUTIONS = {
    "ex01_0": my_merge,
    "ex01_1": my_spelling,
    "ex01_2": my_longest_match,
    "ex01_3": my_stream,
    "ex01_4": my_groups,
    "ex01_5": my_saving,
}
