"""A tokenizer back to disk, in the layout that `tokenizer_files.py` reads: the released bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..bpe import token_to_text
from .files import FIXED, MODEL, NAMED, STEPS

if TYPE_CHECKING:
    from ..tokenizer_base import TokenizerBase


def write_vocabulary(
    tokenizer: TokenizerBase, folder: str | os.PathLike, prefix: str | None = None
) -> tuple[str, ...]:
    """vocab.json and merges.txt; returns their paths."""
    return _write(folder, prefix, _vocabulary_files(*_spell(tokenizer)))


def write_all(
    tokenizer: TokenizerBase, folder: str | os.PathLike, prefix: str | None = None
) -> tuple[str, ...]:
    """vocab.json, merges.txt, tokenizer.json and tokenizer_config.json; returns their paths."""
    vocab, merges = _spell(tokenizer)
    added = {
        token_id: {
            "content": token.content,
            **dict.fromkeys(("single_word", "lstrip", "rstrip"), False),
            "normalized": token.normalized,
            "special": token.special,
        }
        for token_id, token in tokenizer.added_tokens_decoder.items()
    }
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, **token} for token_id, token in added.items()],
        **STEPS,
        "model": {**MODEL, "vocab": vocab, "merges": merges},
    }
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    names = ("additional_special_tokens", "model_max_length", "padding_side", "truncation_side")
    config = {
        **FIXED,
        "clean_up_tokenization_spaces": False,
        **tokenizer.config,
        **{name: getattr(tokenizer, name) for name in (*NAMED, *names, "split_special_tokens")},
        "added_tokens_decoder": {str(token_id): token for token_id, token in added.items()},
        **({} if template is None else {"chat_template": template}),
        "tokenizer_class": "Qwen2Tokenizer",
    }
    files = _vocabulary_files(vocab, merges)
    files["tokenizer.json"] = json.dumps(whole, ensure_ascii=False, indent=2)
    settings = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
    return _write(folder, prefix, files | {"tokenizer_config.json": settings + "\n"})


def _vocabulary_files(vocab: dict[str, int], merges: list[str]) -> dict[str, str]:
    compact = json.dumps(vocab, ensure_ascii=False, separators=(",", ":"))
    return {"vocab.json": compact, "merges.txt": "".join(f"{merge}\n" for merge in merges)}


def _spell(tokenizer: TokenizerBase) -> tuple[dict[str, int], list[str]]:
    ids = sorted(tokenizer.vocab.values())
    merges = [f"{token_to_text(left)} {token_to_text(right)}" for left, right in tokenizer.merges]
    return dict(zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True)), merges


def _write(folder: str | os.PathLike, prefix: str | None, files: dict[str, str]) -> tuple[str, ...]:
    """Write all under other names, then rename: who reads sees old files or new ones, but whole."""
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file, and saving needs a folder")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / (f"{prefix}-{name}" if prefix else name): name for name in files}
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in paths}
    try:
        for path, name in paths.items():
            temporary[path].write_bytes(files[name].encode())
        for path in paths:
            os.replace(temporary[path], path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return tuple(str(path) for path in paths)
