"""Files, whole or not at all: one way to read them, one atomic way to replace them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def read_bytes(path: Path) -> bytes:
    """What the file holds. A file that is not there is named, and the folder that lacks it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} has no {path.name}, which is needed") from None


def read_text(path: Path) -> str:
    """The file as text; line ends stay as they are."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start}") from None


def read_json(path: Path) -> dict:
    """The JSON object that the file holds; ValueError if it holds something else."""
    text = read_text(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # or a number of thousands of digits
        raise ValueError(f"{path} is not JSON ({error}): fetch or save it anew") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not a JSON object")
    return data


@contextlib.contextmanager
def replacing(
    directory: str | os.PathLike[str],
    stale: Callable[[str], bool] = lambda name: False,
    last: tuple[str, ...] = (),
) -> Iterator[Path]:
    """Write files into the folder that this yields; on leaving, they replace those in `directory`.

    A single file is replaced atomically. Of several, whatever raises on the way leaves `directory`
    as it was; a kill between two renames leaves the old ones in `.saving-*/old`. Other files there
    are not touched. An OSError says if the folder cannot be written.

    Args:
        stale: names of files there that belong to what is replaced, and go with it.
        last: names by which a reader enters, such as an index: the first to leave, the last to
            come. Who reads in between finds nothing, never a mixture of two.
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
    moves: list[tuple[Path, Path]] = []
    try:
        yield new
        arriving = sorted((path.name for path in new.iterdir()), key=lambda name: name in last)
        for name in arriving:
            for path in [p for p in [new / name, *(new / name).glob("*")] if p.is_file()]:
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())  # a power cut after the rename must find the bytes
        leaving = [p.name for p in directory.iterdir() if stale(p.name) or p.name in arriving]
        leaving.sort(key=lambda name: name not in last)
        if leaving == arriving and len(arriving) == 1:
            os.replace(new / arriving[0], directory / arriving[0])  # the rename is the whole swap
        else:
            moves = [(directory / name, old / name) for name in leaving]
            moves += [(new / name, directory / name) for name in arriving]
            for source, target in moves:
                os.replace(source, target)
    except BaseException:
        with contextlib.suppress(BaseException):  # what cannot be put back stays in the draft
            for source, target in reversed(moves):
                if not source.exists():  # this one has happened
                    os.replace(target, source)
        shutil.rmtree(new, ignore_errors=True)
        for folder in (old, draft):
            with contextlib.suppress(OSError):
                folder.rmdir()  # fails, and so keeps it, if an old file could not be put back
        raise
    shutil.rmtree(draft, ignore_errors=True)


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file: who reads finds the old one or the new. Returns its path."""
    with replacing(path.parent) as draft:
        (draft / path.name).write_bytes(data)
    return path
