"""What to write for a token, so that a reader sees what it is: spaces, half characters and all."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from ..bpe import text_to_token

MARKS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽", "\u3000": "□"}
HALVES = re.compile("[\udc80-\udcff]+")  # how "surrogateescape" writes bytes that are no text


def token_bytes(tokenizer: Any, token_id: int) -> bytes | None:
    """The bytes of a token; None for an id that no token has."""
    spelling = tokenizer.convert_ids_to_tokens(int(token_id))
    if spelling is None or token_id in tokenizer.added_tokens_decoder:
        return None if spelling is None else spelling.encode()
    return text_to_token(spelling)


def visible_text(text: str) -> str:
    """The same text with blanks, controls and lone accents made visible: " a\\n" -> "·a↵"."""
    shown = []
    for i, char in enumerate(text):
        kind = unicodedata.category(char)
        if char in MARKS:
            shown.append(MARKS[char])
        elif kind in ("Cc", "Cf", "Zs", "Zl", "Zp", "Cn", "Co"):
            shown.append(f"‹{ord(char):04X}›")
        else:
            shown.append("◌" + char if i == 0 and kind.startswith("M") else char)
    return "".join(shown)


def token_labels(tokenizer: Any, ids: Sequence[int]) -> list[dict[str, Any]]:
    """For each token `text` to show, its `id`, a `note` on what the text cannot say, `special`.

    A token that ends or begins within a character is shown as its bytes, `‹E7 94›`, and the note
    names the character, as far as the neighbours complete it.
    """
    added = tokenizer.added_tokens_decoder
    pieces = [token_bytes(tokenizer, i) for i in ids]
    labels = []
    for place, (token_id, piece) in enumerate(zip(ids, pieces, strict=True)):
        special = token_id in added and added[token_id].special
        text, note = "", ""
        if piece is None:
            text, note = (
                f"‹id {token_id}›",
                "a spare row of the model, which no token has",
            )
        else:
            text = visible_text(piece.decode(errors="surrogateescape"))
            if HALVES.search(text):
                text = HALVES.sub(lambda run: _hexadecimal(run[0]), text)
                note = _part_of(pieces, place)
        labels.append({"text": text, "id": int(token_id), "note": note, "special": special})
    return labels


def chance(label: dict[str, Any], probability: float) -> dict[str, Any]:
    """One of the tokens that may come next, as the browser is told: a label and its probability."""
    return {"text": label["text"], "id": label["id"], "probability": round(probability, 5)}


def reads_right_to_left(text: str) -> bool:
    """Does the first letter of the text belong to a script written from right to left?"""
    for char in text:
        if (direction := unicodedata.bidirectional(char)) in ("L", "R", "AL"):
            return direction != "L"
    return False


def _hexadecimal(halves: str) -> str:
    return f"‹{halves.encode(errors='surrogateescape').hex(' ').upper()}›"


def _part_of(pieces: Sequence[bytes | None], place: int) -> str:
    """Which character does a token have only bytes of? In words, for its note."""
    before = b"".join(piece or b"" for piece in pieces[max(0, place - 3) : place])
    after = b"".join(piece or b"" for piece in pieces[place + 1 : place + 4])
    own, data = range(len(before), len(before) + len(pieces[place])), before + pieces[place] + after
    decoder, whole, start = codecs.getincrementaldecoder("utf-8")("replace"), [], 0
    for end in range(1, len(data) + 1):
        for char in decoder.decode(data[end - 1 : end]):
            if char != "\ufffd" and end - start > 1 and start < own.stop and end > own.start:
                whole.append(char)
        if decoder.getstate()[0] == b"":
            start = end
    named = " and ".join(f"“{visible_text(char)}”" for char in whole)
    return f"bytes of {named}" if named else "bytes that make no whole character"
