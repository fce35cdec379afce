"""A Chromium and a JupyterLab that reach this machine and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
# Every name but this machine's fails to resolve; there is no proxy to ask instead.
OFFLINE = [
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--no-proxy-server",
]
PATIENCE = int(os.environ.get("PATIENCE_MS", 240_000))  # for a machine with other work to do


def find_chromium(playwright: Any) -> str:
    """The system's, or else the one that playwright has installed.

    Raises:
        FileNotFoundError: neither is there.
    """
    for path in (*map(shutil.which, NAMES), playwright.chromium.executable_path):
        if path and Path(path).exists():
            return path
    raise FileNotFoundError(
        "Chromium is missing: apt-get install chromium, or python -m playwright install chromium"
    )


@contextmanager
def running_chromium() -> Iterator[Any]:
    """The browser, headless; FileNotFoundError if it is not installed."""
    with sync_playwright() as playwright:
        options = {"executable_path": find_chromium(playwright), "timeout": PATIENCE}
        browser = playwright.chromium.launch(
            args=["--no-sandbox", "--disable-gpu", *OFFLINE], **options
        )
        yield browser
        browser.close()


@contextmanager
def running_jupyterlab(home: Path) -> Iterator[tuple[str, Path]]:
    """A JupyterLab of its own, all its files in `home`: its address, and where notebooks go."""
    folder = home / "notebooks"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={folder}",
        "--IdentityProvider.token=browser-test",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=None",
        "--LabApp.extension_manager=readonly",  # the other kind asks the network
        "--LanguageServerManager.autodetect=False",
        f"--LabApp.user_settings_dir={home / 'settings'}",
        f"--LabApp.workspaces_dir={home / 'workspaces'}",
    ]
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *settings]
    with open(home / "server.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/api", server, home / "server.log")
        yield address, folder
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)  # it ends its kernels first
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def open_notebook(page: Any, address: str, folder: Path, name: str, cells: list[str]) -> None:
    """Write a notebook of code cells, show it and wait until its kernel can be used."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, folder / name)
    show_notebook(page, address, name)


def show_notebook(page: Any, address: str, name: str) -> None:
    """Show a notebook of the lab's folder and wait until its kernel can be used."""
    page.goto(f"{address}/lab/tree/{name}?token=browser-test&reset")  # without earlier tabs
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    page.wait_for_function(
        """name => { const shown = window.jupyterapp?.shell.currentWidget;
        return shown?.context?.path === name && shown.sessionContext?.session?.kernel }""",
        arg=name,
    )


def run_cell(page: Any) -> None:
    """Run the active cell of the notebook and go to the next."""
    page.evaluate("jupyterapp.commands.execute('notebook:run-cell-and-select-next')")


def wait_for_kernel(page: Any) -> None:
    """Wait until what runs in the notebook is done."""
    kernel = "jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    page.wait_for_function(f"{kernel}.status === 'idle'")


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(PATIENCE // 500):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


if __name__ == "__main__":  # .ci/run asks whether there is a Chromium
    with sync_playwright() as playwright:
        print(find_chromium(playwright))
