"""A model back to disk as a release is laid out, and never half of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from .weights import INDEX, SINGLE


def parse_size(size: int | str) -> int:
    """Bytes in "5GB", "500 MB" or "1GiB"; kB, MB, GB count in thousands, KiB, MiB, GiB in 1024s."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", str(size).strip().upper())
    if isinstance(size, bool) or not match or float(match[1]) <= 0:
        raise ValueError(f"a size is a number of bytes or a text like '5GB', not {size!r}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " "))


def write_weights(model: nn.Module, folder: Path, max_shard_size: int | str = "5GB") -> None:
    """Write a model's parameters as a release is laid out: one file, or shards and an index.

    A tied parameter is written once, under its first name. A tensor is never split, so a shard
    exceeds `max_shard_size` only by being a single tensor.
    """
    limit = parse_size(max_shard_size)
    shards: list[dict[str, Tensor]] = [{}]
    filled = total = 0
    for name, tensor in model.named_parameters():  # a tied parameter comes once
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor.detach()
        filled += tensor.nbytes
        total += tensor.nbytes
    n = len(shards)
    names = [SINGLE] if n == 1 else [shard_name(i, n) for i in range(1, n + 1)]
    for name, shard in zip(names, shards, strict=True):
        local = {tensor: t.cpu().contiguous() for tensor, t in shard.items()}
        path = folder / name
        path.touch()
        mode = path.stat().st_mode  # of an ordinary new file: safetensors makes a private one
        save_file(local, path, metadata={"format": "pt"})  # which other readers ask for
        path.chmod(mode)
    if n > 1:
        pairs = zip(names, shards, strict=True)
        weight_map = {tensor: name for name, shard in pairs for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def shard_name(i: int, n: int) -> str:
    """The released name of shard i of n, counted from 1."""
    return f"model-{i:05d}-of-{n:05d}.safetensors"


def is_weight_file(name: str) -> bool:
    """Is this a name that `write_weights` gives?"""
    shard = re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name)
    return name in (SINGLE, INDEX) or shard is not None


@contextlib.contextmanager
def replacing(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a checkpoint into the folder this yields; on leaving, it replaces that in `directory`.

    If anything fails on the way, `directory` is as it was. Other files there are not touched.

    Raises:
        OSError: the folder cannot be written.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
    except OSError as error:
        reason = f"cannot save into {directory} ({error.strerror}): choose a folder you may use"
        raise OSError(error.errno, reason) from error
    new, old = draft / "new", draft / "old"
    new.mkdir()
    old.mkdir()
    try:
        yield new
        _swap(new, directory, old)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        for folder in (old, draft):
            with contextlib.suppress(OSError):
                folder.rmdir()  # fails, and so keeps it, if an old file could not be put back
        raise
    shutil.rmtree(draft, ignore_errors=True)


def _swap(new: Path, directory: Path, old: Path) -> None:
    """Move the files of a finished save to their place; on any failure put the old ones back.

    The entry, which is the single file or the index, is the first to leave and the last to come:
    whoever reads the folder in between finds no checkpoint, never a mixture of two.
    """
    arriving = sorted((p.name for p in new.iterdir()), key=lambda name: name in (SINGLE, INDEX))
    leaving = [p.name for p in directory.iterdir() if is_weight_file(p.name) or p.name in arriving]
    leaving.sort(key=lambda name: name not in (SINGLE, INDEX))
    moves = [(directory / name, old / name) for name in leaving]
    moves += [(new / name, directory / name) for name in arriving]
    started: list[tuple[Path, Path]] = []
    try:
        for move in moves:
            started.append(move)
            os.replace(*move)
    except BaseException:
        for source, target in reversed(started):
            if not source.exists():  # the last move may or may not have happened
                target.replace(source)
        raise
