"""Asked for (`-m browser`) and not possible means failed; not asked for, a run says so."""

from __future__ import annotations

import signal

import pytest

from tests.browser.lab import PATIENCE, running_chromium, running_jupyterlab


@pytest.fixture(scope="session")
def chromium():
    with running_chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def new_page(chromium):
    """`new_page()`: a tab that notes every error, and every address that is not this machine."""
    pages = []

    def open_page(url="about:blank"):
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.errors, page.strayed = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda request: _note_strays(page, request.url))
        page.goto(url)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()


def _note_strays(page, url):
    here = ("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "data:", "blob:", "about:")
    if not url.startswith(here):
        page.strayed.append(url)


@pytest.fixture(scope="session")
def jupyterlab(tmp_path_factory):
    """A running JupyterLab: its address, and the folder of its notebooks."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who is ended ends it too
    with running_jupyterlab(tmp_path_factory.mktemp("jupyter")) as running:
        yield running
