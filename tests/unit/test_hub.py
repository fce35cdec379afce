"""hub.py: names to folders. A small server on this machine plays the hub."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qwen2_edu import Qwen2Config, Qwen2ForCausalLM
from qwen2_edu.files.checksums import file_hash
from qwen2_edu.hub import resolve

COMMIT, OLD = "c0ffee" + "0" * 34, "ba5e" + "1" * 36
TOKEN = "hf_good"


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class StandIn(BaseHTTPRequestHandler):
    """Answers what the client asks: what is this revision, what is in it, give me this file."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub, path = self.server.hub, self.path.split("?")[0]
        hub.requests.append((self.command, path, self.headers.get("Authorization")))
        if hub.status:
            return self.answer(hub.status, b"")
        if found := re.fullmatch(
            r"/api/models/([\w-]+/[\w.-]+)(?:/(revision|tree)/([^/]+))?", path
        ):
            name, what, revision = found.groups()
            files = self.files(name, revision or "main")
            if files is None:
                return None
            commit = OLD if revision in ("v1", OLD) else COMMIT
            if what == "tree":
                return self.answer(
                    200, json.dumps([self.entry(f, d) for f, d in files.items()]).encode()
                )
            siblings = [{"rfilename": f} for f in files]
            body = {"id": name, "sha": commit, "siblings": siblings, "private": False}
            return self.answer(200, json.dumps(body).encode())
        if found := re.fullmatch(r"/([\w-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = found.groups()
            files = self.files(name, revision)
            if files is None:
                return None
            if file not in files:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            data, entry = files[file], self.entry(file, files[file])
            etag = entry.get("lfs", entry)["oid"]
            headers = {
                "ETag": f'"{etag}"',
                "X-Repo-Commit": OLD if revision in ("v1", OLD) else COMMIT,
            }
            if "lfs" in entry:
                headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            if self.command == "GET" and hub.cut:
                data = data[: len(data) // 2]
            return self.answer(200, data, headers)
        return self.answer(404, b"")

    do_HEAD = do_GET

    def files(self, name, revision):
        hub = self.server.hub
        if name == "org/gated" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif name not in hub.repos:
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT, "v1", OLD):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return hub.repos[name]["v1" if revision in ("v1", OLD) else "main"]
        return None

    @staticmethod
    def entry(file, data):
        entry = {"type": "file", "path": file, "size": len(data), "oid": git_sha1(data)}
        if file.endswith((".safetensors", ".bin")):
            entry["lfs"] = {
                "oid": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "pointerSize": 134,
            }
        return entry

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, small_config, randomise):
    folder = tmp_path_factory.mktemp("released")
    model = randomise(Qwen2ForCausalLM(small_config(tie_word_embeddings=True)), seed=3)
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(checkpoint, serve_hub, tmp_path):
    """A hub of four repositories; `hub.requests` records what it was asked."""
    extras = {
        "generation_config.json": b'{"eos_token_id": [1]}',
        "tokenizer.json": b"{}",
        "vocab.json": b"{}",
        "merges.txt": b"",
        "chat_template.jinja": b"",
        "pytorch_model.bin": b"pickle",
        "README.md": b"# hello",
        "onnx/model.safetensors": b"something else",
    }
    full = {**checkpoint, **extras}
    weights = "model.safetensors"
    without = {name: data for name, data in full.items() if name != weights}
    state = SimpleNamespace(requests=[], status=None, cut=False)
    state.repos = {
        "org/model": {"main": full, "v1": {**full, "config.json": b'{"hidden_size": 1}'}},
        "org/gated": {"main": full, "v1": full},
        "org/pickle": {"main": without, "v1": without},
    }
    return serve_hub(StandIn, state, HF_HUB_CACHE=str(tmp_path / "cache"))


def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# -- on this disk ----------------------------------------------------------------------------------


def test_built_in_vocabulary():
    folder = resolve("qwen2", "tokenizer")
    assert file_hash(folder / "qwen.tiktoken").startswith("b2b1b8dfb5cc5f02")
    for kind in ("model", "config"):
        with pytest.raises(ValueError, match="'qwen2' is a tokenizer only"):
            resolve("qwen2", kind)


def test_folder_and_path_objects(tmp_path, monkeypatch):
    assert resolve(tmp_path, "model") == tmp_path
    assert resolve(str(tmp_path), "config") == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve(f"~/{tmp_path.name}", "model") == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert resolve("org/model", "model").is_dir()  # a folder wins over a hub id


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("qwen3", ValueError, "'qwen3' is neither a built-in name"),
        ("", ValueError, "neither a built-in name"),
        ("./nowhere", FileNotFoundError, "no folder './nowhere'"),
        ("/nowhere/at/all", FileNotFoundError, "no folder '/nowhere/at/all'"),
        ("a/b/c", FileNotFoundError, "no folder 'a/b/c'"),
        ("../model", FileNotFoundError, "no folder"),
        ("org/..", ValueError, "'org/..'"),
    ],
)
def test_wrong_names(name, error, message):
    with pytest.raises(error, match=re.escape(message)):
        resolve(name, "model")


def test_wrong_kind_file_and_revision(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of"):
        resolve(tmp_path, "weights")
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ValueError, match="is a file: give the folder"):
        resolve(file, "model")
    with pytest.raises(ValueError, match="revision='v1'"):
        resolve(tmp_path, "model", revision="v1")


# -- from the hub ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("config", {"config.json"}),
        ("tokenizer", {"tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja"}),
        ("model", {"config.json", "generation_config.json", "model.safetensors"}),
    ],
)
def test_only_the_files_needed(hub, kind, files):
    folder = resolve("org/model", kind)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*")} == files


def test_loads_and_is_cached(hub, checkpoint, monkeypatch):
    with pytest.raises(FileNotFoundError, match="not wholly in the hub's cache.*local_files_only"):
        resolve("org/model", "model", local_files_only=True)
    model = Qwen2ForCausalLM.from_pretrained("org/model")
    assert (
        model.num_parameters() == 58224
    )  # 97*48 + 3 * (2*48*48 + 2*16*48 + 80 + 3*48*80 + 96) + 48
    hub.requests.clear()
    resolve("org/model", "model", local_files_only=True)
    offline(monkeypatch)
    again = Qwen2ForCausalLM.from_pretrained("org/model")
    assert not hub.requests
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_a_load_visits_the_hub_once(hub, monkeypatch):
    import qwen2_edu.hub

    visits, once = [], qwen2_edu.hub.resolve
    monkeypatch.setattr(qwen2_edu.hub, "resolve", lambda *a, **o: visits.append(a) or once(*a, **o))
    Qwen2ForCausalLM.from_pretrained("org/model", verify=True)
    assert visits == [("org/model", "model")]


def test_a_gguf_file_of_a_repository(hub, checkpoint, tmp_path):
    from qwen2_edu import AutoTokenizer
    from qwen2_edu.files.gguf_model import save_gguf

    tokenizer = AutoTokenizer.from_pretrained("tiny")
    config = Qwen2ForCausalLM.from_pretrained("org/model").config
    config.vocab_size = len(tokenizer)
    data = save_gguf(Qwen2ForCausalLM(config), tokenizer, tmp_path / "x.gguf").read_bytes()
    hub.repos["org/gguf"] = {"main": {"x.gguf": data, "y.gguf": b"another"}}
    hub.requests.clear()
    model = Qwen2ForCausalLM.from_pretrained("org/gguf", gguf_file="x.gguf")
    assert model.config.hidden_size == 48
    assert len(AutoTokenizer.from_pretrained("org/gguf", gguf_file="x.gguf")) == len(tokenizer)
    assert not any("y.gguf" in path for _, path, _ in hub.requests)
    with pytest.raises(FileNotFoundError, match="has no file 'z.gguf'"):
        Qwen2ForCausalLM.from_pretrained("org/gguf", gguf_file="z.gguf")


def test_a_subfolder(hub, checkpoint, tmp_path):
    for name, data in checkpoint.items():
        hub.repos["org/model"]["main"][f"parts/text/{name}"] = data
    hub.repos["org/model"]["main"]["parts/text/onnx/model.safetensors"] = b"something else"
    model = Qwen2ForCausalLM.from_pretrained("org/model", subfolder="parts/text")
    fetched = {path for _, path, _ in hub.requests if "/resolve/" in path}
    assert all("/parts/text/" in path and "onnx" not in path for path in fetched)
    model.save_pretrained(tmp_path / "deep" / "in")
    for name, cls in {"config.json": Qwen2Config, "model.safetensors": Qwen2ForCausalLM}.items():
        assert (tmp_path / "deep" / "in" / name).is_file()
        cls.from_pretrained(tmp_path, subfolder="deep/in")
        with pytest.raises(FileNotFoundError, match="no folder 'else' in"):
            cls.from_pretrained(tmp_path, subfolder="else")
    assert resolve(tmp_path, "model", subfolder="deep/in/") == tmp_path / "deep" / "in"
    for wrong in ("..", "a/../b", "/etc", "a//b"):
        with pytest.raises(ValueError, match="subfolder must be a path below"):
            resolve(tmp_path, "model", subfolder=wrong)
    with pytest.raises(ValueError, match="subfolder='x' is for folders and hub ids"):
        resolve("tiny", "model", subfolder="x")
    with pytest.raises(FileNotFoundError, match="no.*config.json|on the hub"):
        Qwen2Config.from_pretrained("org/model", subfolder="elsewhere")


def test_revision_token_and_cache_dir(hub, tmp_path):
    folder = resolve(
        "org/model", "config", revision="v1", cache_dir=tmp_path / "elsewhere", token=TOKEN
    )
    assert json.loads((folder / "config.json").read_text()) == {"hidden_size": 1}
    assert (tmp_path / "elsewhere") in folder.parents
    assert {token for _, _, token in hub.requests} == {f"Bearer {TOKEN}"}
    assert resolve("org/gated", "config", token=TOKEN).is_dir()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (
            "org/nothing",
            {},
            FileNotFoundError,
            "'org/nothing' is not on the hub: is it misspelt, or private (token=…)?",
        ),
        ("org/gated", {"token": False}, PermissionError, "'org/gated' is gated: accept its terms"),
        (
            "org/model",
            {"revision": "v9"},
            FileNotFoundError,
            "'org/model' at revision 'v9' is not on the hub: no such branch, tag or commit",
        ),
        ("org/--bad", {}, ValueError, "'org/--bad' cannot be downloaded"),
    ],
)
def test_refusals_of_the_hub(hub, name, options, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        resolve(name, "model", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (401, PermissionError, "refused to this token"),
        (403, PermissionError, "forbidden to this login"),
        (404, FileNotFoundError, "does not find"),
        (429, ConnectionError, "too many requests"),
    ],
)
def test_answers_of_the_hub_say_what_they_are(hub, monkeypatch, status, error, says):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.status = status
    with pytest.raises(error, match=f"'org/model' .*{says}"):
        resolve("org/model", "model", token=TOKEN)


def test_named_templates_are_fetched(hub):
    named = {"additional_chat_templates/rag.jinja": b"x", "onnx/config.json": b"{}"}
    hub.repos["org/model"]["main"] = hub.repos["org/model"]["main"] | named
    folder = resolve("org/model", "tokenizer")
    assert (folder / "additional_chat_templates" / "rag.jinja").read_bytes() == b"x"
    assert not (folder / "onnx").exists()


def test_pickle_only_repository(hub):
    with pytest.raises(
        FileNotFoundError,
        match="'org/pickle' has neither .*safetensors.* pickle .pytorch_model.bin",
    ):
        Qwen2ForCausalLM.from_pretrained("org/pickle")
    assert not any("pytorch_model.bin" in path for _, path, _ in hub.requests)


def test_offline_with_an_empty_cache(hub, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        resolve("org/model", "model")


def test_offline_with_half_a_cache(hub, monkeypatch):
    resolve("org/model", "config")
    offline(monkeypatch)
    assert resolve("org/model", "config").is_dir()
    with pytest.raises(FileNotFoundError, match="not wholly in the hub's cache"):
        resolve("org/model", "model")


def test_closed_network(hub, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as taken:  # a port where nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr("time.sleep", (slept := []).append)
    with pytest.raises(ConnectionError, match=f"cannot reach the hub at {url}") as caught:
        resolve("org/model", "model")
    assert "\n" not in str(caught.value)
    assert sum(slept) < 10


def test_broken_hub_uses_the_cache(hub, monkeypatch):
    hub.status = 503
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ConnectionError, match="503"):
        resolve("org/model", "config")
    hub.status = None
    folder = resolve("org/model", "config")
    hub.status = 503
    assert resolve("org/model", "config") == folder


def test_truncated_download(hub):
    hub.cut = True
    with pytest.raises(ConnectionError, match="'org/model' .*broke off"):
        resolve("org/model", "model")


def test_verify_against_the_hub(hub):
    """The cache names each blob by its hash: that is what the hub published."""
    Qwen2ForCausalLM.from_pretrained("org/model", verify=True)
    folder = resolve("org/model", "model")
    for name in ("model.safetensors", "config.json"):
        blob = (folder / name).resolve()
        good = blob.read_bytes()
        bad = bytearray(good)
        bad[-1 if name == "model.safetensors" else -2] ^= 1
        blob.write_bytes(bad)
        with pytest.raises(ValueError, match=f"{name} is damaged or altered.*now {blob}.damaged"):
            Qwen2ForCausalLM.from_pretrained("org/model", verify=True)
        assert not blob.exists() and Path(f"{blob}.damaged").read_bytes() == bad
        Qwen2ForCausalLM.from_pretrained("org/model", verify=True)  # fetches it again
        assert blob.read_bytes() == good
    Qwen2ForCausalLM.from_pretrained("org/model", verify=True)


def test_a_damaged_blob_that_cannot_be_moved_is_named(hub, monkeypatch):
    blob = (resolve("org/model", "model") / "config.json").resolve()
    blob.write_bytes(b"{}")

    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ValueError, match=f"config.json is damaged or altered.*; delete {blob}, "):
        Qwen2ForCausalLM.from_pretrained("org/model", verify=True)
