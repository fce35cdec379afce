"""A notebook that is opened again when its kernel is gone: what is left of the explorer."""

from __future__ import annotations

import json

import pytest

from tests.browser.lab import open_notebook, run_cell, wait_for_kernel
from tests.browser.test_explorer import SETUP, eventually, readout, selected

pytestmark = pytest.mark.browser
TOGGLE = "jupyterapp.commands.execute('@jupyter-widgets/jupyterlab-manager:saveWidgetState')"


@pytest.fixture(params=[False, True], ids=["as it comes", "state saved"])
def saves_state(request):
    return request.param


def test_a_trusted_notebook_without_its_kernel(jupyterlab, new_page, saves_state):
    """JupyterLab asks for the widget, and looks at the picture only where it trusts nothing. The
    widget comes back where Settings ▸ Save Widget State Automatically is on.
    """
    page, (address, folder) = new_page(), jupyterlab
    name = f"reopened {saves_state}.ipynb"
    open_notebook(page, address, folder, name, [f"{SETUP}explorer"])
    if saves_state:
        page.evaluate(TOGGLE)
    try:
        run_cell(page)
        page.wait_for_selector(".qx-heads [role=option]")
        expected = [readout(page), selected(page)]
        wait_for_kernel(page)
        page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    finally:
        if saves_state:
            page.evaluate(TOGGLE)
    page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")
    stored = json.loads((folder / name).read_text())
    assert ("widgets" in stored["metadata"]) is saves_state
    assert "image/png" in stored["cells"][0]["outputs"][0]["data"]  # for GitHub
    page.goto(f"{address}/lab/tree/{name}?token=browser-test&reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    if not saves_state:
        page.get_by_text("Error displaying widget: model not found").wait_for()
        return
    page.wait_for_selector(".qx-heads [role=option]")
    assert page.evaluate("jupyterapp.shell.currentWidget.content.widgets[0].model.trusted")
    eventually(lambda: [readout(page), selected(page)], expected)
    layer, number = expected[1]
    page.locator(f"[data-layer='{layer}'][data-head='{(number + 1) % 6}']").click()
    page.get_by_role("heading", name=f"Layer {layer}, head {(number + 1) % 6}").wait_for()
    page.locator(f"[data-layer='{(layer + 1) % 3}'][data-head='0']").click()
    page.locator(".qx-notice").get_by_text("Waiting for the kernel").wait_for()
    assert page.strayed == []


def test_an_untrusted_notebook_shows_the_picture(jupyterlab, new_page):
    page, (address, folder) = new_page(), jupyterlab
    open_notebook(page, address, folder, "strange.ipynb", [f"{SETUP}explorer"])
    run_cell(page)
    page.wait_for_selector(".qx-heads [role=option]")
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")
    stored = json.loads((folder / "strange.ipynb").read_text())
    stored["cells"][0]["source"] += "\n"  # no longer what was signed
    stored["cells"][0]["outputs"][0]["data"]["text/plain"] = "changed"
    (folder / "sent.ipynb").write_text(json.dumps(stored))
    page.goto(f"{address}/lab/tree/sent.ipynb?token=browser-test&reset")
    page.wait_for_selector(".jp-OutputArea-output img")
    assert page.locator(".jp-OutputArea-output img").evaluate("i => i.naturalWidth") > 500
    assert page.locator(".qx").count() == 0
