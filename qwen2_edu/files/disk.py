"""Files, whole or not at all: one way to read them, one atomic way to replace them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DRAFT = ".saving-"


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
def locked(path: Path, wait: float = 20) -> Iterator[bool]:
    """Hold a file or folder against all who ask as we do. A kill lets go, and no file is left.

    Yields False where the system has no such lock: Windows, some network disks. BlockingIOError:
    another still holds it after `wait` seconds.
    """
    end, ours = time.monotonic() + wait, False
    with contextlib.ExitStack() as held:
        while not ours:
            held.close()  # what the try before has opened
            try:
                handle = os.open(path, os.O_RDONLY)
                held.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ours = os.path.samestat(os.fstat(handle), os.stat(path))  # or was it exchanged?
            except BlockingIOError:
                if time.monotonic() > end:
                    raise BlockingIOError(errno.EAGAIN, f"{path} is being written") from None
                time.sleep(0.01)
            except (OSError, AttributeError):  # which may not even open
                break
        yield ours


@contextlib.contextmanager
def replacing(
    directory: str | os.PathLike[str],
    stale: Callable[[str], bool] = lambda name: False,
    last: tuple[str, ...] = (),
) -> Iterator[Path]:
    """Write files into the folder that this yields; on leaving, they replace those in `directory`.

    Whatever raises on the way, or a kill at any moment, leaves the old files or the new. One file
    takes the other's place; where there are several, a folder with them, and hard links to all that
    stays, is exchanged for `directory`: one rename. Savers take turns, and the next one removes
    what a killed one left. An OSError says if the folder cannot be written.

    Where folders cannot be exchanged (a mount point, the working folder, Windows, NFS), files move
    one by one. A kill on the way leaves a folder that does not load, as it has no entry; the next
    save first puts the old files back.

    Args:
        stale: names of files there that belong to what is replaced, and go with it.
        last: names by which a reader enters, such as an index: where files move one by one, the
            first to leave and the last to come.
    """
    home, draft = Path(os.path.realpath(directory)), None
    with contextlib.ExitStack() as stack:
        try:
            home.mkdir(parents=True, exist_ok=True)
            with locked(home):
                _clear(home)
                draft = Path(tempfile.mkdtemp(prefix=f".{home.name}{DRAFT}", dir=home))
                with contextlib.suppress(OSError):  # a mount point, or a parent that is not ours
                    draft = draft.rename(home.parent / draft.name)
                stack.enter_context(locked(draft))  # so that nobody clears it
            new, old = draft / "new", draft / "old"
            new.mkdir()
            old.mkdir()
            yield new
            for path in new.rglob("*"):
                if path.is_file():
                    with open(path, "rb+") as file:
                        os.fsync(file.fileno())  # a power cut after the rename must find the bytes
            with locked(home):
                _swap(home, draft, stale, last)
            shutil.rmtree(old, ignore_errors=True)  # while `new` says that they have left
        except OSError as error:
            reason = f"cannot save into {directory} ({error.strerror or error})"
            fix = "make room, or choose a folder you may use"
            raise OSError(error.errno, f"{reason}: {fix}") from error
        finally:
            if draft and not list(draft.glob("old/*")):  # else they could not be put back
                shutil.rmtree(draft, ignore_errors=True)


def _clear(home: Path) -> None:
    """Remove the drafts of killed saves. Where files moved one by one, the old ones come back."""
    pattern = re.compile(rf"\.{re.escape(home.name)}{re.escape(DRAFT)}\w{{8}}")
    for place in (home, home.parent):
        for draft in [place / name for name in os.listdir(place) if pattern.fullmatch(name)]:
            with contextlib.suppress(OSError), locked(draft, wait=0) as dead:
                if dead and list(draft.glob("new/*")):  # not all had come
                    for path in draft.glob("old/*"):
                        os.replace(path, home / path.name)
                if dead:
                    shutil.rmtree(draft / "old", ignore_errors=True)
                    shutil.rmtree(draft)


def _swap(home: Path, draft: Path, stale: Callable[[str], bool], last: tuple[str, ...]) -> None:
    """What is in draft/new replaces what it shall in `home`."""
    new, old = draft / "new", draft / "old"
    arriving = sorted(os.listdir(new), key=lambda name: name in last)
    leaving = [name for name in os.listdir(home) if name in arriving or stale(name)]
    leaving.sort(key=lambda name: name not in last)
    changed = {*arriving, *leaving}
    folders = any((place / name).is_dir() for place in (home, new) for name in changed)
    if len(arriving) == len(changed) == 1 and not folders:
        os.replace(new / arriving[0], home / arriving[0])
    elif changed and not _exchange(home, draft, changed):
        moves = [(home / name, old / name) for name in leaving]
        moves += [(new / name, home / name) for name in arriving]
        try:
            for source, target in moves:
                os.replace(source, target)
        except BaseException:
            with contextlib.suppress(BaseException):  # what cannot be put back stays in the draft
                for source, target in reversed(moves):
                    if not source.exists():  # this one has happened
                        os.replace(target, source)
            raise


def _exchange(home: Path, draft: Path, changed: set[str]) -> bool:
    """Swap `home` for a folder that differs in the files `changed`, in one step, if that can be."""
    whole, here = draft / "whole", os.fspath(home)
    link = {"symlinks": True, "copy_function": os.link, "dirs_exist_ok": True}
    try:
        if draft.parent == home or home in (Path.cwd(), *Path.cwd().parents):
            return False
        shutil.copytree(draft / "new", whole, **link)
        rest = {"ignore": lambda folder, _: changed if folder == here else ()}
        shutil.copytree(home, whole, **rest, **link)  # with its mode
        libc, names = ctypes.CDLL(None), (os.fsencode(home), os.fsencode(whole))
        owners = {(stat.st_uid, stat.st_gid) for stat in (home.stat(), whole.stat())}
        if hasattr(libc, "renameat2"):  # Linux; AT_FDCWD, RENAME_EXCHANGE
            failed = len(owners) > 1 or libc.renameat2(-100, names[0], -100, names[1], 2)
        else:
            failed = len(owners) > 1 or libc.renamex_np(*names, 2)  # macOS; RENAME_SWAP
    except (OSError, AttributeError, TypeError):  # Windows has no such library
        return False
    for path in [] if failed else whole.iterdir():  # has another file come meanwhile?
        if path.name not in changed and not os.path.lexists(home / path.name):
            os.replace(path, home / path.name)
    return not failed


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file: who reads finds the old one or the new. Returns its path."""
    with replacing(path.parent) as draft:
        (draft / path.name).write_bytes(data)
    return path
