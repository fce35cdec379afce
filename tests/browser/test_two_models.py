"""Two models that share a tokenizer, side by side on one text."""

from __future__ import annotations

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe

from qwen2_edu.viz import record
from tests.browser.lab import open_notebook, run_cell
from tests.browser.test_explorer import SETUP, difference, digits, eventually, gutter

pytestmark = pytest.mark.browser
MORE = """
import copy
second = copy.deepcopy(model)
with torch.no_grad():
    for parameter in second.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.3)
"""
SHOW = """
from qwen2_edu.viz import side_by_side
side_by_side(*(attention_explorer(each, tokenizer, "a cat saw") for each in (model, second)))
"""
T, QUERY, KEY = 9, 8, 5


@pytest.fixture(scope="module")
def maps():
    """Of each model all weights, (layers, H, T, T), as it gives them itself."""
    names: dict = {}
    exec(SETUP + MORE, names)
    ids = names["tokenizer"](["a cat saw"], return_tensors="pt").input_ids
    assert ids.shape == (1, T)
    with torch.no_grad():
        outs = [names[one](ids, output_attentions=True) for one in ("model", "second")]
    return [torch.cat(out.attentions) for out in outs]


@pytest.fixture(scope="module")
def pair(jupyterlab, new_page):
    page = new_page()
    open_notebook(page, *jupyterlab, "models.ipynb", [SETUP + MORE + SHOW])
    run_cell(page)
    shown = page.locator(".jp-CodeCell .qx")
    for i in range(2):
        shown.nth(i).locator(".qx-maps canvas[aria-label]").first.wait_for()
    outputs = page.locator(".jp-OutputArea-child")  # the widgets; a sentence and a picture instead
    eventually(lambda: [one.is_visible() for one in outputs.all()], [True, False, False])
    return page, shown.nth(0), shown.nth(1)


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_each_shows_its_own_weights_and_what_it_has_more_than_the_other(pair, maps, by):
    page, left, right = pair
    layer, number = {"mouse": (1, 2), "keyboard": (2, 4)}[by]
    option = left.locator(f"[data-layer='{layer}'][data-head='{number}']")
    if by == "mouse":
        option.click()
    else:
        option.focus()
        page.keyboard.press("Enter")
    for one in (left, right):  # chosen together
        one.get_by_role("heading", name=f"Layer {layer}, head {number}", exact=True).wait_for()
    bytes_ = [record.from_bytes(record.to_bytes(each)) for each in maps]
    own, other = (float(each[layer, number, QUERY, KEY]) for each in bytes_)
    assert digits(own) != digits(other)  # two models, not one twice
    for one, side in [(left, "Left"), (right, "Right")]:
        where = one.locator("header .qx-where").inner_text()
        assert where.startswith(f"{side}: 3 layers, ") and where.endswith(" parameters, float32")
    for one, here, there, side in [(left, own, other, "right"), (right, other, own, "left")]:
        minus, readout = one.get_by_label("Minus", exact=True), one.locator(".qx-readout")
        canvas = one.locator(".qx-maps canvas").first
        if by == "mouse":
            canvas.scroll_into_view_if_needed()
            edge = gutter(canvas)
            each = (canvas.bounding_box()["width"] - edge) / T
            spot = {"x": edge + (KEY + 0.5) * each, "y": edge + (QUERY + 0.5) * each}
            canvas.click(position=spot)
        else:
            canvas.focus()
            for key in ("Home", *["ArrowRight"] * KEY, *["ArrowDown"] * T):
                page.keyboard.press(key)
        where = f"Query {QUERY} “w”, key {KEY} “·”: weight "
        eventually(readout.inner_text, where + digits(here))
        if by == "mouse":
            minus.select_option("beside")
        else:
            minus.focus()
            page.keyboard.press("ArrowDown")
        title = f"Layer {layer}, head {number} − the {side} explorer"
        eventually(one.locator(".qx-maps h3").first.inner_text, title)
        eventually(readout.inner_text, where + difference(here, there))
        minus.select_option("")
    found = Axe().run(page, context=".widget-hbox").response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    assert page.errors == page.strayed == []
