"""Explorers of the released shapes, up to 80 layers of 64 heads, in a running JupyterLab."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe

from benchmarks.explorer import PRESS, painted
from tests.browser.lab import open_notebook, run_cell, wait_for_kernel
from tests.browser.shapes import random_explorer

pytestmark = pytest.mark.browser

MAKE = """
import time
from tests.browser.shapes import random_explorer
explorer = random_explorer({}, {}, {})
"""
SHOW = """
print(f"call 0 at {time.time() * 1000}")
explorer
"""
# What a frame has to look after, and what a key makes anew. Times are measured by
# benchmarks/explorer.py: these counts are what they came from, 5.2 s to paint and 7.8 s for a key.
COUNT = """
window.did = { rects: 0, watched: new Map(), asked: [] };
const { send } = WebSocket.prototype;
WebSocket.prototype.send = function (data) {
  const text = typeof data === "string" ? data : new TextDecoder().decode(data);
  for (const [, layer] of text.matchAll(/"name": ?"layer ([0-9]+)"/g)) did.asked.push(+layer);
  return send.call(this, data);
};
const { fillRect } = CanvasRenderingContext2D.prototype;
CanvasRenderingContext2D.prototype.fillRect = function (...box) {
  did.rects += !this.canvas.closest(".qx-lens"); // it is read row by row
  return fillRect.apply(this, box);
};
for (const [name, note] of [["observe", "add"], ["unobserve", "delete"], ["disconnect", "clear"]]) {
  const act = IntersectionObserver.prototype[name];
  IntersectionObserver.prototype[name] = function (one) {
    if (!did.watched.has(this)) did.watched.set(this, new Set());
    did.watched.get(this)[note](one);
    return act.call(this, one);
  };
}
"""
HELD = """() => ({
  canvases: document.querySelectorAll(".qx canvas").length,
  watched: [...did.watched.values()].flatMap((some) => [...some])
    .filter((one) => one.closest(".qx-heads")).length,
  pictures: document.querySelectorAll(".qx-heads [style*='--picture']").length,
})"""
BEGIN = """() => {
  did.rects = did.elements = did.attributes = 0;
  did.changes = new MutationObserver((all) => {
    for (const { target, addedNodes, attributeName } of all) {
      did.elements += addedNodes.length;
      if (target.classList.contains("qx-heads")) continue; // the shadows at its edges
      did.attributes += ["class", "tabindex", "aria-selected"].includes(attributeName);
    }
  });
  const all = { subtree: true, childList: true, attributes: true };
  did.changes.observe(document.querySelector(".qx-overview"), all);
}"""
END = "() => (did.changes.disconnect(), [did.rects, did.elements, did.attributes])"


@pytest.mark.parametrize("shape", [(24, 14, 2), (28, 28, 4), (80, 64, 8)], ids=str)
def test_many_heads_ask_little_of_a_frame_and_of_a_key(jupyterlab, new_page, shape):
    page, twin, (layers, heads, _) = new_page(), random_explorer(*shape), shape
    page.add_init_script(COUNT)
    open_notebook(page, *jupyterlab, f"{layers}.ipynb", [MAKE.format(*shape), SHOW])
    run_cell(page)
    wait_for_kernel(page)
    run_cell(page)
    painted(page, 0)
    title = page.locator(".qx-maps h3").first
    assert title.inner_text() == f"Layer {twin.layer}, head {twin.head}"
    options = page.locator(".qx-heads [role=option]")
    assert options.count() == 100  # ranked; all of them are in the picture
    assert f"of {heads} heads in {layers} layers" in page.locator(".qx-heat").get_attribute(
        "aria-label"
    )

    def pressed(place, *keys):
        """Rectangles filled in canvases, elements made and marked, in all these keys."""
        page.evaluate(BEGIN)
        for key in keys:
            page.evaluate(PRESS, [place, key])
            page.wait_for_timeout(300)  # as a reader would: what comes next is fetched meanwhile
        rects, elements, attributes = page.evaluate(END)
        # A map's veils and labels; none of the picture of all heads, which has layers * heads.
        assert rects <= 80 * len(keys)
        assert elements == 0 and attributes <= 4 * len(keys)

    held = page.evaluate(HELD)
    assert held["canvases"] <= 3  # the map, the picture of all heads, the lens
    assert held["watched"] + held["pictures"] <= 100
    pressed("head", "ArrowRight", "ArrowRight", "ArrowRight")
    page.evaluate(PRESS, ["map", "ArrowUp"])  # ranked anew: the chosen head need not be among them
    page.wait_for_timeout(1000)
    before = page.evaluate("did.asked.length")
    page.evaluate(PRESS, ["head", "ArrowRight"])
    layer = int(page.locator(".qx-heads [aria-selected=true]").get_attribute("data-layer"))
    asked = page.evaluate("did.asked")
    assert layer in asked[:before] and layer not in asked[before:]  # the map did not have to wait
    page.get_by_label("Heads by").select_option("layer")
    page.wait_for_function(
        "count => document.querySelectorAll('.qx-heads [role=option]').length === count",
        arg=layers * heads,
    )
    page.locator("[data-layer='3'][data-head='5']").click()
    page.get_by_role("heading", name="Layer 3, head 5").wait_for()
    held = page.evaluate(HELD)
    assert held["canvases"] <= 3 and held["watched"] <= layers  # in the grid rows are watched
    pressed("head", "ArrowDown", "ArrowRight", "ArrowDown")
    assert title.inner_text() == "Layer 5, head 6"
    pressed("head", "End", "ArrowUp", "ArrowLeft")
    assert title.inner_text() == f"Layer {layers - 2}, head {heads - 2}"
    drawn = "one => getComputedStyle(one).backgroundImage.startsWith('url(')"
    chosen = page.locator(".qx-heads [aria-selected=true] i")
    page.wait_for_timeout(500)
    assert chosen.evaluate(drawn)  # scrolled into sight, it is drawn
    if layers == 80:
        assert page.evaluate(HELD)["pictures"] <= 70  # and rows that nobody has seen are not
    if layers == 24:
        found = Axe().run(page, context=".qx").response["violations"]
        assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
        page.set_viewport_size({"width": 1280, "height": 900})  # beside its list of files
        page.evaluate("document.querySelector('.qx').scrollIntoView()")
        seen = page.locator(".jp-WindowedPanel-outer").bounding_box()
        for place in (".qx header", ".qx-text", ".qx-maps canvas", ".qx-readout"):
            box = page.locator(place).first.bounding_box()
            assert box["y"] >= seen["y"]
            assert box["y"] + box["height"] <= seen["y"] + seen["height"]
    assert page.errors == page.strayed == []
