"""A lesson as it is opened: JupyterLab must not take it for changed before anybody typed."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from tests.browser.lab import show_notebook

pytestmark = pytest.mark.browser
LESSON = Path(__file__).parents[2] / "notebooks" / "02_embeddings_rmsnorm.ipynb"


@pytest.mark.parametrize("kept", [True, False])
def test_opening_a_lesson_does_not_mark_it_as_changed(new_page, jupyterlab, kept):
    """And without what the kernel says of itself it would: so the check can fail."""
    address, folder = jupyterlab
    notebook = json.loads(LESSON.read_text(encoding="utf-8"))
    language = notebook["metadata"]["language_info"]
    language["version"] = platform.python_version()  # as stored, for whoever has the pinned one
    if not kept:
        notebook["metadata"]["language_info"] = {"name": "python"}
    name = f"opened_{kept}.ipynb"
    (folder / name).write_text(json.dumps(notebook), encoding="utf-8")
    page = new_page()
    show_notebook(page, address, name)
    notebook = "jupyterapp.shell.currentWidget"
    page.evaluate(f"{notebook}.sessionContext.session.kernel.info.then(() => true)")
    page.wait_for_timeout(500)  # for JupyterLab to do with it what it does
    assert page.evaluate(f"{notebook}.context.model.dirty") is not kept
