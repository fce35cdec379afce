"""What several files need: a hint for a misspelt name, and a file that is written whole."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """Which known names may be meant? In a sentence: "did you mean top_k or top_p?"

    Args:
        otherwise: the answer if no name is like it.
        cutoff: how alike, from 0 to 1; see `difflib.get_close_matches`.
    """
    near = get_close_matches(name, list(known), cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file under a temporary name and rename it: a reader finds the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(data)
    draft.replace(path)
    return path
