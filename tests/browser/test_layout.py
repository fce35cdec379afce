"""Where the parts of the explorer stand: faults that were seen once, and must not come back."""

from __future__ import annotations

import pytest

from tests.browser.shapes import random_explorer
from tests.browser.test_explorer import eventually

pytestmark = pytest.mark.browser
# The ink of each text, not its box: the pairs of neighbours in a line that touch.
TOUCHING = """texts => {
  const ink = texts.filter((one) => one.offsetParent).map((one) => {
    const range = document.createRange();
    range.selectNodeContents(one);
    return { text: one.textContent, ...range.getBoundingClientRect().toJSON() };
  });
  return ink.slice(1).map((right, i) => [ink[i], right]).filter(([left, right]) =>
    left.top < right.bottom && right.top < left.bottom && right.left < left.right + 1)
    .map((pair) => pair.map((one) => one.text));
}"""


@pytest.fixture(scope="module", params=[(24, 14, 2), (28, 28, 4)], ids=str)
def page(request, new_page, tmp_path_factory):
    """The page of an explorer of so many layers, heads and key/value heads."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    page = new_page(random_explorer(*request.param).to_html(path, lens=0).as_uri())
    page.wait_for_selector(".qx-heads [role=option]")
    page.shape = request.param
    return page


@pytest.mark.parametrize("width", [380, 760, 1280])
def test_captions_of_two_digits_do_not_collide(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    layers, heads, _ = page.shape
    page.get_by_label("Heads by").select_option("cell")
    captions = page.locator(".qx-ranking small")
    eventually(captions.count, 100)
    widest = [text for text in captions.all_inner_texts() if text.startswith(f"{layers - 4}·1")]
    assert widest and captions.evaluate_all(TOUCHING) == []
    page.get_by_label("Heads by").select_option("layer")
    numbers = page.locator(".qx-numbers small")
    eventually(numbers.count, heads)
    assert numbers.last.inner_text() == f"{heads - 1}" and numbers.evaluate_all(TOUCHING) == []
    names = page.locator(".qx-name b, .qx-bracket > span")
    assert names.count() > layers and names.evaluate_all(TOUCHING) == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (1920, 1080), (700, 900)])
def test_text_and_bars_stand_above_heads_and_map(page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate("scrollTo(0, 0)")
    edge = "one => { const { top, bottom } = one.getBoundingClientRect(); return [top, bottom] }"
    above = [page.locator(place).evaluate(edge) for place in (".qx-text", ".qx-tops")]
    below = [page.locator(place).first.evaluate(edge) for place in (".qx-heads", ".qx-maps")]
    assert all(top >= 0 and top < bottom for top, bottom in (*above, *below))
    assert max(bottom for _, bottom in above) <= min(top for top, _ in below)
    assert max(bottom for _, bottom in above) <= height / 2  # in sight, with room for a map
    if width > 760:  # the bars stand beside the text
        assert above[0][0] < above[1][1] and above[1][0] < above[0][1]


def test_a_notice_keeps_its_padding(page):
    """The rule that takes the margins of all paragraphs off must not take it."""
    notice = page.locator(".qx-notice").first
    notice.evaluate("one => { one.textContent = 'Waiting for the kernel' }")
    room = """one => { const range = document.createRange(); range.selectNodeContents(one);
        const [ink, all] = [range, one].map((part) => part.getBoundingClientRect());
        return [ink.left - all.left, ink.top - all.top, all.bottom - ink.bottom] }"""
    left, top, bottom = notice.evaluate(room)
    assert left >= 10 and min(top, bottom) >= 4
    below = """one => one.nextElementSibling.getBoundingClientRect().top
        - one.getBoundingClientRect().bottom"""
    assert notice.evaluate(below) >= 8
