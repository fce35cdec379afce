"""The released vocabulary, loaded once for all tests of a module's own."""

from __future__ import annotations

import pytest

from qwen2_edu.tokenizer import Qwen2Tokenizer, Qwen2TokenizerFast

# Tests must not change these; `fresh` is for those that do.
SLOW = Qwen2Tokenizer.from_pretrained("qwen2")
FAST = Qwen2TokenizerFast.from_pretrained("qwen2")


@pytest.fixture(scope="session")
def slow():
    return SLOW


@pytest.fixture(scope="session")
def fast():
    return FAST


@pytest.fixture(scope="session", params=["slow", "fast"])
def tokenizer(request):
    """Each of the two tokenizers in turn."""
    return {"slow": SLOW, "fast": FAST}[request.param]


@pytest.fixture(scope="session")
def mini_parts():
    """Vocabulary and merges of a tokenizer with all bytes, a few merges and one special token."""
    extra = [
        "Ġl",
        "Ġn",
        "Ġlo",
        "Ġlow",
        "er",
        "Ġlowest",
        "Ġnewer",
        "Ġwider",
        "01",
        ";}",
        ";}Ċ",
        "Ïĵ",
    ]
    merges = ["Ġ l", "Ġl o", "Ġlo w", "e r", "0 1", "; }", ";} Ċ", "Ï ĵ"]
    return extra, merges
