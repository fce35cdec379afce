"""A notebook that is opened again when its kernel is gone: what is left of the explorer."""

from __future__ import annotations

import json
import re

import nbformat
import pytest
from nbconvert import HTMLExporter

from tests.browser.lab import open_notebook, run_cell, wait_for_kernel
from tests.browser.test_explorer import SETUP, eventually, readout, selected

pytestmark = pytest.mark.browser
TOGGLE = "jupyterapp.commands.execute('@jupyter-widgets/jupyterlab-manager:saveWidgetState')"
LINE = "AttentionExplorer: 19 + 6 generated tokens, 3 layers of 6 query heads on 2 key heads"
SENTENCE = "Run this cell to look around in the explorer."
WATCH = """(() => {
  window.flashes = 0;
  const look = () => {
    const parts = document.querySelectorAll(".qx-still, .jp-OutputArea-output img");
    window.flashes += [...parts].some((one) => one.offsetHeight);
    requestAnimationFrame(look);
  };
  look();
})()"""


def left_behind(page, *before):
    """The sentence and the picture are seen, after these lines, and nothing else."""
    image = page.locator(".jp-OutputArea-output img")
    image.wait_for()
    assert image.evaluate("i => i.naturalWidth") > 500
    outputs = page.locator(".jp-OutputArea-output:visible")
    eventually(lambda: [t.strip() for t in outputs.all_inner_texts()], [*before, SENTENCE, ""])
    assert page.locator(".qx").count() == 0 and page.errors == []


def alive(page):
    """The explorer is seen; the sentence and the picture are not, and were not before it came."""
    page.wait_for_selector(".qx-heads [role=option]")
    outputs = page.locator(".jp-OutputArea-child")
    eventually(outputs.count, 3)
    assert [one.is_visible() for one in outputs.all()] == [True, False, False]
    assert page.evaluate("flashes") == 0


@pytest.fixture(scope="module", params=[False, True], ids=["as it comes", "state saved"])
def saved(request, jupyterlab, new_page):
    """A notebook that was run and saved: its address, its file, and what it showed."""
    page, (address, folder) = new_page(), jupyterlab
    name = f"reopened {request.param}.ipynb"
    open_notebook(page, address, folder, name, [f"{SETUP}explorer"])
    page.evaluate(WATCH)
    if request.param:
        page.evaluate(TOGGLE)
    try:
        run_cell(page)
        alive(page)
        shown = [readout(page), selected(page)]
        wait_for_kernel(page)
        page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    finally:
        if request.param:
            page.evaluate(TOGGLE)
    page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")
    assert ("widgets" in nbformat.read(folder / name, 4).metadata) is request.param
    return f"{address}/lab/tree/{name}?token=browser-test&reset", folder / name, shown


def test_a_trusted_notebook_without_its_kernel(new_page, saved):
    """JupyterLab asks for the widget, which comes back where Settings ▸ Save Widget State
    Automatically is on; where it does not, its error is not what is seen.
    """
    page, (url, path, shown) = new_page(), saved
    page.add_init_script(WATCH)
    page.goto(url)
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    if "widgets" not in nbformat.read(path, 4).metadata:
        page.get_by_text("Error displaying widget: model not found").wait_for(state="attached")
        left_behind(page)
    else:
        alive(page)
        eventually(lambda: [readout(page), selected(page)], shown)
        layer, number = shown[1]
        page.locator(f"[data-layer='{layer}'][data-head='{(number + 1) % 6}']").click()
        page.get_by_role("heading", name=f"Layer {layer}, head {(number + 1) % 6}").wait_for()
        page.locator(f"[data-layer='{(layer + 1) % 3}'][data-head='0']").click()
        page.locator(".qx-notice").get_by_text("Waiting for the kernel").wait_for()
    assert page.evaluate("jupyterapp.shell.currentWidget.content.widgets[0].model.trusted")
    assert page.strayed == []


def test_an_untrusted_notebook_shows_the_picture(new_page, saved):
    page, (url, path, _) = new_page(), saved
    notebook = json.loads(path.read_text())
    notebook["cells"][0]["outputs"][0]["data"]["text/plain"] = "changed"  # not what was signed
    path.with_name(f"sent {path.name}").write_text(json.dumps(notebook))
    page.goto(url.replace("tree/", "tree/sent "))
    left_behind(page, "changed")
    assert page.strayed == []
    assert not page.evaluate("jupyterapp.shell.currentWidget.content.widgets[0].model.trusted")


def test_a_page_made_of_the_notebook_shows_the_picture(new_page, saved, tmp_path):
    """As nbconvert and nbviewer do it. A saved widget wants the network, and the picture is there
    until it comes.
    """
    page, (_, path, _) = new_page(), saved
    html, _ = HTMLExporter().from_filename(str(path))
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    left_behind(page, *[LINE] * ("widgets" not in nbformat.read(path, 4).metadata))


def test_what_is_stored_for_pages_that_run_nothing(saved):
    """GitHub takes of each output the first kind that it knows, and drops the style sheet."""
    outputs = nbformat.read(saved[1], 4).cells[0].outputs
    known = ["text/html", "image/png", "text/plain"]
    taken = [next(kind for kind in known if kind in one.data) for one in outputs]
    assert taken == ["text/plain", "text/html", "image/png"]
    assert outputs[0].data["text/plain"] == LINE
    seen = re.sub(r"<style>.*</style>", "", outputs[1].data["text/html"], flags=re.S)
    assert re.sub(r"<[^>]*>", "", seen).strip() == SENTENCE
    assert json.dumps(outputs).count("iVBORw0KGgo") == 1  # a PNG in base64: stored once
