"""The released vocabulary, loaded once for all tests of a module's own."""

from __future__ import annotations

import threading
from http.server import ThreadingHTTPServer

import pytest

from qwen2_edu.tokenizer import Qwen2Tokenizer, Qwen2TokenizerFast

# Tests must not change these; `fresh` is for those that do.
SLOW = Qwen2Tokenizer.from_pretrained("qwen2")
FAST = Qwen2TokenizerFast.from_pretrained("qwen2")


@pytest.fixture
def serve_hub(monkeypatch):
    """`serve_hub(handler, state)`: a hub on this machine, which the client asks from then on."""
    from huggingface_hub import constants

    servers = []

    def serve(handler, state, **changes):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        server.hub = state
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        told = {
            "ENDPOINT": state.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": state.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in (told | changes).items():
            monkeypatch.setattr(constants, name, value)
        return state

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


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
