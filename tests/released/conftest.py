"""The released weights: fetched once, loaded once, and put before transformers once.

Both compute in fp32 on one thread.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen2_edu import Qwen2ForCausalLM, Qwen2Tokenizer
from qwen2_edu.files.gguf import GGUFFile
from qwen2_edu.files.released import fetch_released

from .reference import Reference, ask_transformers


@pytest.fixture(scope="session")
def released_file() -> Path:
    return fetch_released(progress=False)


@pytest.fixture(scope="session")
def file(released_file) -> GGUFFile:
    return GGUFFile(released_file)


@pytest.fixture(scope="session")
def reference(released_file) -> Reference:
    return ask_transformers(released_file)


@pytest.fixture(scope="session")
def model(released_file) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained("released", dtype="float32")


@pytest.fixture(scope="session")
def tokenizer(released_file) -> Qwen2Tokenizer:
    return Qwen2Tokenizer.from_pretrained("released")
