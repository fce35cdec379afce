"""Are these the bytes that were published? Hashes of files, compared and written."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .disk import read_text

SUMS = "SHA256SUMS"
HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """The hash of a file: "sha256", or "git", git's name of it: sha-1 over its size and bytes."""
    sha256 = algorithm == "sha256"
    digest = hashlib.sha256() if sha256 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_hashes(
    folder: str | os.PathLike[str], names: Iterable[str], required: bool = True
) -> None:
    """Compare the files of a checkpoint with their recorded hashes, byte for byte.

    Recorded means: in a `SHA256SUMS` beside the files; or by the hub, whose cache names each blob
    by its hash (sha256 of a large file, git's sha-1 of a small one). Names of no file are passed
    over; so are, unless `required`, files without a record.

    Raises:
        FileNotFoundError: a file has nothing to be compared with.
        ValueError: a file differs (the hub's is moved aside), or SHA256SUMS is broken.
    """
    folder = Path(folder)
    recorded = read_sums(folder / SUMS) if (folder / SUMS).is_file() else {}
    for name in names:
        path, blob = folder / name, (folder / name).resolve()
        expected = recorded.get(name)
        if expected is None and blob.parent.name == "blobs" and HASH.fullmatch(blob.name):
            expected = blob.name
        if not path.is_file() or (expected is None and not required):
            continue
        if expected is None:
            raise FileNotFoundError(
                f"verify=True has nothing to compare {path} with: it is not in the hub's cache, "
                f"and {folder / SUMS} does not {'list it' if recorded else 'exist'}"
            )
        actual = file_hash(path, "git" if len(expected) == 40 else "sha256")
        if actual != expected:
            fault = f"{path} is damaged or altered: its hash is {actual}, not {expected}"
            if blob.name == expected:
                with suppress(OSError):  # the cache may be another's
                    blob = blob.rename(f"{blob}.damaged")  # the snapshot's link now leads nowhere
                done = "it is now" if blob.name != expected else "delete"
                fault += f"; {done} {blob}, and the next load fetches it again"
            raise ValueError(fault)


def read_sums(path: Path) -> dict[str, str]:
    """Read a `SHA256SUMS` file, lines of "hash  name" as `sha256sum` prints them."""
    sums = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line)
        if not match:
            raise ValueError(f"{path}, line {number}: {line[:80]!r} is not 'sha256  name'")
        sums[match[2]] = match[1].lower()
    return sums


def write_sums(folder: str | os.PathLike[str]) -> Path:
    """Write `SHA256SUMS` beside a checkpoint, for `verify=True` and `sha256sum --check`."""
    folder = Path(folder)
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".json"))
    lines = (f"{file_hash(folder / name)}  {name}\n" for name in names)
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    return folder / SUMS
