"""The attention explorer as people use it, by mouse and by keyboard, in a running JupyterLab and as
a page opened from disk. What is on the screen is compared with what Python measured.
"""

from __future__ import annotations

import base64
import re
import time

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe

from qwen2_edu.viz import explorer as viz
from qwen2_edu.viz import record
from qwen2_edu.viz.lens import lens_rows
from qwen2_edu.viz.shares import shares_to_choose
from tests.browser.lab import open_notebook, run_cell
from tests.browser.shapes import random_explorer

pytestmark = pytest.mark.browser

SETUP = """
import torch
from pathlib import Path
from qwen2_edu import Qwen2Config, Qwen2ForCausalLM
from qwen2_edu.tokenizer import Qwen2TokenizerFast
from qwen2_edu.viz import attention_explorer

torch.set_num_threads(1)
torch.manual_seed(0)
config = Qwen2Config(vocab_size=257, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
                     num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=128,
                     use_sliding_window=True, max_window_layers=1, sliding_window=8)
model = Qwen2ForCausalLM(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.3)
vocab = {bytes([i]): i for i in range(256)}
tokenizer = Qwen2TokenizerFast(vocab, [], added_tokens={256: "<|end|>"}, pad_token="<|end|>")
text = tokenizer(["a cat\\n saw é cat"], padding="max_length", max_length=19, padding_side="left")
explorer = attention_explorer(model, tokenizer, text, max_new_tokens=6, eos_token_id=[])
"""
SHOW = """
def chosen(_):
    Path("chosen.txt").write_text(f"{explorer.layer} {explorer.head} {explorer.query}")
explorer.observe(chosen, ["layer", "head", "query"])
explorer
"""
BUSY = """
import time
display(attention_explorer(model, tokenizer, "a cat"))
while not Path("go on").exists():
    time.sleep(0.1)
"""
BESIDE = """
from qwen2_edu.viz import side_by_side
side_by_side(*(attention_explorer(model, tokenizer, text) for text in ("a cat", "a b")))
"""
ALIKE = BESIDE.replace("a b", "a dog")
PICTURE = """async (i) => {
  const read = () => getComputedStyle(i).backgroundImage;
  while (read() === "none") await new Promise(requestAnimationFrame);
  return String(new Uint8Array(await (await fetch(read().slice(5, -2))).arrayBuffer()));
}"""
COUNT_PICTURES = """() => {
  window.pictures = 0;
  const kind = CanvasRenderingContext2D.prototype, { putImageData } = kind;
  kind.putImageData = function (...all) { window.pictures++; return putImageData.apply(this, all) };
}"""
PADS, T = 2, 25
# A kernel as anywidget shows it to the page, each question answered by `ask`, which Python gives.
KERNEL = """
const unpack = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const { traits, blobs } = await window.begin(), acts = new Map();
for (const [name, text] of Object.entries(blobs)) traits[name] = unpack(text);
const hear = (event) => acts.get(event) ?? acts.set(event, new Set()).get(event);
render({ el: document.body, model: {
  get: (name) => traits[name], set: (some) => Object.assign(traits, some), save_changes: () => {},
  on: (event, act) => hear(event).add(act), off: (event, act) => hear(event).delete(act),
  send: async (message) => {
    const { content, buffers } = await window.ask(message);
    for (const act of hear("msg:custom")) act(content, buffers.map(unpack));
  },
}});
"""


def live_page(page, explorer):
    """The widget in the whole window, without JupyterLab: `page.asked` notes what it asks for."""
    pack = lambda blob: base64.b64encode(blob).decode()  # noqa: E731
    names = [name for name in explorer.traits(sync=True) if name[0] != "_"]
    names = [name for name in names if name not in ("layout", "tabbable", "tooltip", "comm")]
    traits = {name: getattr(explorer, name) for name in names}
    blobs = {name: pack(traits.pop(name)) for name in names if isinstance(traits[name], bytes)}
    page.asked, sent = [], []
    explorer.send = lambda content, buffers=(): sent.append((content, buffers))

    def ask(message):
        page.asked.append(message["name"])
        explorer._answer(None, message, [])
        content, buffers = sent.pop()
        return {"content": content, "buffers": [*map(pack, buffers)]}

    page.expose_function("begin", lambda: {"traits": traits, "blobs": blobs})
    page.expose_function("ask", ask)
    css = (viz.HERE / "explorer.css").read_text("utf-8")
    head = f"<!DOCTYPE html><style>body {{ margin: 0 }}\n{css}</style>"
    page.set_content(f'{head}<body><script type="module">{viz.MODULE}{KERNEL}</script>')
    page.wait_for_selector(".qx-maps canvas[aria-label]")


@pytest.fixture(scope="module")
def python():
    """What the kernel has, made by the same lines here."""
    names = {}
    exec(SETUP, names)
    assert names["explorer"].recording.real.tolist() == [False] * PADS + [True] * (T - PADS)
    return names["explorer"]


@pytest.fixture(scope="module")
def lab(jupyterlab, new_page):
    """A notebook whose first cell shows the explorer, whose second sets it, and a third."""
    cells = [SETUP + SHOW, "explorer.layer, explorer.head, explorer.query = 2, 1, 5", BUSY]
    cells += [BESIDE, ALIKE]
    page = new_page()
    open_notebook(page, *jupyterlab, "test.ipynb", cells)
    run_cell(page)
    page.wait_for_selector(".qx-heads [role=option]")
    page.folder = jupyterlab[1]
    return page


@pytest.fixture(scope="module")
def disk(python, new_page, tmp_path_factory):
    """The page of to_html(), opened from disk."""
    path = python.to_html(tmp_path_factory.mktemp("page") / "explorer.html")
    page = new_page(path.as_uri())
    page.wait_for_selector(".qx-heads [role=option]")
    return page


@pytest.fixture(params=["lab", "disk"])
def page(request):
    """Each of the two, as it is after opening."""
    page = request.getfixturevalue(request.param)
    while (close := page.get_by_role("button", name="Close layer")).count():
        close.first.click()
    page.get_by_role("tab", name="Generation").click()
    page.get_by_label("Heads by").select_option("layer")
    page.get_by_label("Colours", exact=True).select_option("viridis")
    page.get_by_label("Mask", exact=True).check()
    for _ in range(3):
        page.get_by_label("Zoom out").click()
    page.get_by_label("looks at").check()
    page.get_by_label("Weights", exact=True).select_option("raw")
    page.get_by_label("Map of").select_option("head")
    head(page, 0, 0).click()
    token(page, T - 1).click()
    token(page, 12).click()
    return page


def head(page, layer, number):
    return page.locator(f"[data-layer='{layer}'][data-head='{number}']")


def token(page, place):
    return page.locator(f".qx-text [data-token='{place}']")


def eventually(read, expected):
    """The browser draws a moment after the click."""
    end = time.monotonic() + 60
    while (value := read()) != expected and time.monotonic() < end:
        time.sleep(0.05)
    assert value == expected


def readout(page):
    return page.locator(".qx-readout").inner_text()


def digits(weight):
    return (
        "0"
        if weight == 0
        else "<0.001"
        if weight < 0.0005
        else f"{weight:.{3 if weight < 0.1 else 2}f}"
    )


def said(python, layer, number, query, key):
    """What the readout says of a cell, from what Python measured."""
    r = python.recording
    why = int(python.mask(layer)[query, key])
    weight = float(record.from_bytes(r.maps[r.layers.index(layer), number, query, key]))
    reasons = ["", "in the future", "outside the window", "padding"]
    how = f"hidden: {reasons[why]}" if why else f"weight {digits(weight)}"
    labels = python.data["tokens"]
    names = [f"{i} “{labels[i]['text']}”" for i in (query, key)]
    notes = list(dict.fromkeys(labels[i]["note"] for i in (query, key) if labels[i]["note"]))
    return f"Query {names[0]}, key {names[1]}: {how}" + (f" ({'; '.join(notes)})" if notes else "")


def selected(page):
    chosen = page.locator(".qx-heads [aria-selected=true]")
    return [int(chosen.get_attribute(f"data-{name}")) for name in ("layer", "head")]


def gutter(canvas):
    """The room for labels left of a map and above it, in pixels."""
    return canvas.evaluate("canvas => parseFloat(canvas.style.getPropertyValue('--gutter'))")


def point(page, query, key, which=0):
    """The middle of a cell, in pixels of the canvas."""
    canvas = page.locator(".qx-maps canvas").nth(which)
    canvas.scroll_into_view_if_needed()
    edge = gutter(canvas)
    each = (canvas.bounding_box()["width"] - edge) / T
    return canvas, {"x": edge + (key + 0.5) * each, "y": edge + (query + 0.5) * each}


def pixel(page, query, key):
    canvas, at = point(page, query, key)
    return canvas.evaluate(
        """(canvas, {x, y}) => { const r = canvas.width / canvas.clientWidth;
        return [...canvas.getContext("2d").getImageData(x * r, y * r, 1, 1).data].slice(0, 3) }""",
        at,
    )


# -- the heads -------------------------------------------------------------------------------------


def test_it_shows_what_it_is_about(page, python):
    assert python.data["title"] in page.locator(".qx header").inner_text()
    assert page.locator(".qx-heads [role=option]").count() == 18
    assert [b.strip() for b in page.locator(".qx-bracket > span").all_inner_texts()] == [
        "key head 0",
        "key head 1",
    ]
    headings = page.locator(".qx-heading").all_inner_texts()
    assert headings == [x["heading"] for x in python.data["layers"] if x["heading"]]
    badges = page.locator(".qx-badge").all_inner_texts()
    assert badges == ["full", "sliding 8", "sliding 8"]
    assert page.locator(".qx-notice:not(.qx-why)").inner_text() == ""


def test_a_badge_of_six_digits_leaves_the_pictures_free(page):
    gap = page.locator(".qx-heads .qx-sliding").first.evaluate("""(badge) => {
      badge.textContent = "sliding 131072";  // the releases' own window
      const first = badge.closest("[role=group]").querySelector("[role=option]");
      return first.getBoundingClientRect().left - badge.getBoundingClientRect().right }""")
    assert gap > 0


def test_heads_by_mouse(page, python):
    head(page, 2, 4).click()
    row = python.recording.maps[2, 4, 12].tolist()
    eventually(lambda: readout(page), said(python, 2, 4, 12, row.index(max(row))))
    assert selected(page) == [2, 4]
    note = page.locator(".qx-maps figure").first.inner_text()
    assert "Layer 2, head 4" in note
    assert "key head 1 · sliding 8: 2 ≥ max_window_layers = 1" in note


def looks_at(page):
    """The title of the largest weights of a row, and the first place in it."""
    tops = page.locator(".qx-tops > div").first
    return tops.locator("h3").inner_text(), *tops.locator("li span").all_inner_texts()


def top_keys(python, query):
    """The five keys that layer 1 head 2 looks at most, as the page names them."""
    row, hidden = python.recording.maps[1, 2, query].tolist(), python.mask(1)[query]
    seen = [k for k in range(T) if row[k] and not hidden[k]]
    best = sorted(seen, key=lambda k: -row[k])[:5]
    return [f"{k} “{python.data['tokens'][k]['text']}”" for k in best]


def key_of(page):
    return int(re.search(r"key (\d+)", readout(page))[1])


def test_heads_by_keyboard(page):
    head(page, 0, 0).focus()
    for key, expected in [
        ("ArrowRight", [0, 1]),
        ("ArrowDown", [1, 1]),
        ("ArrowDown", [2, 1]),
        ("ArrowDown", [2, 1]),
        ("ArrowUp", [1, 1]),
        ("ArrowLeft", [1, 0]),
        ("End", [2, 5]),
        ("Home", [0, 0]),
    ]:
        page.keyboard.press(key)
        eventually(lambda: selected(page), expected)
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused.startswith("Layer 0 head 0, key head 0, full. previous token ")


@pytest.mark.parametrize("name", record.BEHAVIOURS)
def test_sorting_and_filtering(page, python, name):
    (told,) = [b for b in python.data["behaviours"] if b["name"] == name]
    scores = {(i, h): score for i, row in enumerate(told["scores"]) for h, score in enumerate(row)}
    expected = torch.tensor(list(scores.values())).view(3, 6)
    assert torch.allclose(expected, python.recording.scores[name], atol=1e-4)
    page.get_by_label("Heads by").select_option(name)
    shown = page.locator(".qx-ranking [role=option]")

    def places():
        return [
            tuple(int(o.get_attribute(f"data-{x}")) for x in ("layer", "head")) for o in shown.all()
        ]

    eventually(lambda: sorted(places()), sorted(scores))
    got = [scores[place] for place in places()]
    assert got == sorted(got, reverse=True)
    assert shown.first.locator("small").inner_text().endswith(f"{got[0]:.2f}")
    page.get_by_label("Order").select_option("low")
    eventually(lambda: [scores[place] for place in places()], sorted(got))
    page.get_by_label("Order").select_option("high")
    slider = page.get_by_label("Keep heads that score")
    slider.focus()
    page.keyboard.press("End")  # only the best
    eventually(shown.count, got.count(got[0]))
    page.keyboard.press("Home")
    eventually(shown.count, 18)
    slider.fill("500")
    limit = (got[0] + got[-1]) / 2
    eventually(shown.count, sum(score >= limit - 1e-9 for score in got))
    told = page.locator(".qx-filter output").inner_text()
    assert f"{shown.count()} of 18" in told and slider.get_attribute("aria-valuetext") == told


@pytest.mark.parametrize("view", ["rest", "value"])
def test_the_weights_that_matter(page, python, view):
    """The switch changes map, readout, bars, thumbnails and scores alike."""
    r = python.recording
    seen = record.weigh(record.from_bytes(r.maps), view, PADS, r.norms)
    head(page, 1, 3).click()
    before = head(page, 1, 3).locator("i").evaluate(PICTURE)
    page.get_by_label("Weights", exact=True).select_option(view)
    canvas, at = point(page, 12, 8)
    canvas.click(position=at)
    page.get_by_label("Mask", exact=True).hover()
    eventually(lambda: readout(page).split(" ")[-1], digits(float(seen[1, 3, 12, 8])))
    byte = int((seen[1, 3, 10, 6].sqrt() * 255).round())
    table = viz.colour_tables()
    assert pixel(page, 10, 6) == list(table[3 * byte : 3 * byte + 3])
    row = seen[1, 3, 12]
    best = sorted(range(T), key=lambda k: -row[k])[:5]
    best = [k for k in best if row[k] > 0]
    shown = page.locator(".qx-tops .qx-bars").first.locator("li b").all_inner_texts()
    assert shown == [digits(float(row[k])) for k in best]
    after = head(page, 1, 3).locator("i").evaluate(PICTURE)
    assert after != before
    page.get_by_label("Heads by").select_option("previous_token")
    (told,) = [b for b in python.data["behaviours"] if b["name"] == "previous_token"]
    top = max(max(row) for row in told["views"][view])
    captions = page.locator(".qx-ranking small").first
    eventually(lambda: captions.inner_text().split("\n")[-1], f"{top:.2f}")
    about = page.locator(".qx-overview > .qx-note").inner_text()
    assert ". Mean weight on the token just before. Under" in about
    if view == "rest":
        page.get_by_label("Heads by").select_option("first_token")
        why = "first token cannot be measured with the weights “without the first token”"
        page.locator(".qx-heads").get_by_text(why).wait_for()


@pytest.mark.parametrize("view", ["raw", "value"])
@pytest.mark.parametrize(("over", "heads"), [("group", [3, 4, 5]), ("layer", [*range(6)])])
def test_the_map_of_a_key_group_and_of_a_layer(page, python, over, heads, view):
    """The mean weights of several heads, in the map, the readout, the bars and the text."""
    r = python.recording
    seen = record.weigh(record.from_bytes(r.maps), view, PADS, r.norms)[1, heads].mean(0)
    head(page, 1, 3).click()
    page.get_by_label("Weights", exact=True).select_option(view)
    switch = page.get_by_label("Map of")
    if over == "group":
        switch.focus()
        page.keyboard.press("ArrowDown")
    else:
        switch.select_option(over)
    canvas, at = point(page, 12, 8)
    canvas.click(position=at)
    page.get_by_label("Mask", exact=True).hover()
    eventually(lambda: readout(page).split(" ")[-1], digits(float(seen[12, 8])))
    assert f"mean of {len(heads)} heads" in readout(page)
    name = {"group": "Layer 1, mean of key group 1", "layer": "Layer 1, mean of all heads"}[over]
    assert page.locator(".qx-maps h3").first.inner_text() == name
    byte = int((seen[10, 6].sqrt() * 255).round())
    table = viz.colour_tables()
    eventually(lambda: pixel(page, 10, 6), list(table[3 * byte : 3 * byte + 3]))
    best = sorted(range(T), key=lambda k: -seen[12, k])[:5]
    shown = page.locator(".qx-tops .qx-bars").first.locator("li b").all_inner_texts()
    assert shown == [digits(float(seen[12, k])) for k in best if seen[12, k] > 0]
    page.get_by_label("Heads by").select_option("cell")  # the ranking stays one of single heads
    looks = record.looking(r, 12, 8, view)
    first = page.locator(".qx-ranking small").first
    eventually(lambda: first.inner_text().split("\n")[-1], f"{float(looks.max()):.2f}")
    switch.select_option("head")


def flagged(page, how):
    """The heads that are marked, or pinned, as (layer, head)."""
    options = page.locator(f".qx-heads .qx-{how}").all()
    read = [[o.get_attribute(f"data-{x}") for x in ("layer", "head")] for o in options]
    return sorted((int(layer), int(number)) for layer, number in read)


@pytest.mark.parametrize("view", ["raw", "value"])
def test_the_mean_of_heads_marked_by_mouse_and_by_keyboard(page, python, view):
    """Of any layers: what one of the marked heads can see is not hidden."""
    r, title = python.recording, page.locator(".qx-maps h3").first
    note, over = page.locator(".qx-maps .qx-note").first, page.get_by_label("Map of")
    page.get_by_label("Weights", exact=True).select_option(view)
    over.select_option("marked")
    eventually(title.inner_text, "Layer 0, head 0: none is marked")
    assert note.inner_text().startswith("Choose a head and press Mark, or the key m on it")
    head(page, 2, 1).click()
    page.get_by_role("button", name="Mark").click()
    eventually(title.inner_text, "1 marked head")
    head(page, 0, 5).focus()
    for key in ("m", "ArrowRight", "m", "m"):  # the second is marked and no more
        page.keyboard.press(key)
    eventually(title.inner_text, "Mean of 2 marked heads")
    assert note.inner_text() == "layer·head 2·1, 0·5"
    assert flagged(page, "marked") == [(0, 5), (2, 1)]
    seen = record.weigh(record.from_bytes(r.maps), view, r.first, r.norms)
    mean = (seen[2, 1] + seen[0, 5]) / 2
    what = {"raw": "weight", "value": "share by value"}[view]
    for query, key in [(20, 18), (20, 4)]:  # the window of 8 hides the second from layer 2
        canvas, at = point(page, query, key)
        canvas.click(position=at)
        expected = f"mean of 2 heads, {what} {digits(float(mean[query, key]))}"
        eventually(lambda: readout(page).split(": ")[-1].split(" (")[0], expected)
    byte, table = int((mean[10, 6].sqrt() * 255).round()), viz.colour_tables()
    eventually(lambda: pixel(page, 10, 6), list(table[3 * byte : 3 * byte + 3]))
    page.get_by_label("Heads by").select_option("entropy")
    eventually(page.locator(".qx-ranking [role=option]").count, 18)
    assert flagged(page, "marked") == [(0, 5), (2, 1)]  # in the ranking too
    head(page, 1, 3).click()
    page.get_by_role("button", name="Compare").click()  # what is kept is a head, and no mean
    titles = page.locator(".qx-maps figure:visible h3").all_inner_texts
    kept = "Layer 1, head 3, kept: now choose another"
    eventually(titles, ["Mean of 2 marked heads", kept])
    page.get_by_role("button", name="Compare").click()
    head(page, 2, 1).focus()
    page.keyboard.press("m")
    eventually(lambda: flagged(page, "marked"), [(0, 5)])
    page.keyboard.press("m")
    page.get_by_role("button", name="Clear marks").click()
    eventually(lambda: flagged(page, "marked"), [])


@pytest.mark.parametrize("view", ["raw", "rest", "value"])
def test_which_heads_look_from_this_query_to_this_key(page, python, view):
    canvas, at = point(page, 12, 9)
    canvas.click(position=at)
    page.get_by_label("Weights", exact=True).select_option(view)
    page.get_by_label("Heads by").select_option("cell")
    looks = record.looking(python.recording, 12, 9, view)
    first = page.locator(".qx-ranking small").first
    place = divmod(int(looks.argmax()), 6)
    expected = f"{place[0]}·{place[1]}\n{float(looks.max()):.2f}"
    eventually(first.inner_text, expected)
    page.locator(".qx-ranking [role=option]").nth(4).click()
    eventually(lambda: key_of(page), 9)  # the question stays
    assert first.inner_text() == expected
    token(page, 17).click()
    eventually(lambda: readout(page)[:8], "Query 17")
    assert key_of(page) == 9  # of another query too, where it can
    token(page, 5).click()
    eventually(lambda: readout(page)[:7], "Query 5")
    assert key_of(page) <= 5


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_a_bar_or_a_token_is_chosen_as_the_key(page, python, by):
    head(page, 1, 2).click()
    bars, keys = page.locator(".qx-tops [role=option]:visible"), top_keys(python, 12)
    shown = page.locator(".qx-tops [aria-selected=true]:visible")
    eventually(shown.inner_text, bars.first.inner_text())
    page.get_by_label("Heads by").select_option("cell")
    best = page.locator(".qx-ranking small").first
    if by == "mouse":
        bars.nth(2).click()
    else:
        bars.first.focus()
        page.keyboard.press("ArrowDown"), page.keyboard.press("ArrowDown")
    key = int(keys[2].split()[0])
    eventually(lambda: readout(page), said(python, 1, 2, 12, key))
    top = float(record.looking(python.recording, 12, key, "raw").max())
    eventually(lambda: best.inner_text().split("\n")[-1], f"{top:.2f}")
    assert bars.nth(2).evaluate("bar => bar === document.activeElement")
    assert bars.nth(2).get_attribute("aria-selected") == "true"
    if by == "mouse":
        token(page, 7).click(modifiers=["Shift"])
    else:
        token(page, 7).press("k")
    eventually(lambda: readout(page), said(python, 1, 2, 12, 7))
    assert page.locator(".qx-text .qx-end").get_attribute("data-token") == "7"
    for place, why in ((20, "in the future"), (0, "padding")):
        token(page, place).press("k")
        names = [f"{i} “{python.data['tokens'][i]['text']}”" for i in (12, place)]
        told = f"No head looks from query {names[0]} to key {names[1]}: hidden, {why}."
        page.locator(".qx-heads").get_by_text(told).wait_for()
    page.get_by_label("is seen by").check()  # then the bars are queries
    token(page, 9).click()
    page.locator(".qx-tops h3").get_by_text("Key 9 “").wait_for()
    query = bars.nth(1).locator("span").inner_text().split()[0]
    if by == "mouse":
        bars.nth(1).click()
    else:
        bars.nth(1).press("Enter")
    eventually(lambda: (readout(page).split()[1], key_of(page)), (query, 9))


# -- the map ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("query", "key"), [(20, 9), (9, 20), (20, 0), (3, 3)])
def test_a_cell_by_mouse(page, python, query, key):
    head(page, 1, 2).click()
    canvas, at = point(page, query, key)
    before = readout(page), looks_at(page)
    canvas.hover(position=at)
    eventually(lambda: readout(page), said(python, 1, 2, query, key))
    label = python.data["tokens"][query]["text"]
    assert looks_at(page) == (f"Query {query} “{label}” looks most at", *top_keys(python, query))
    page.get_by_label("Mask", exact=True).hover()
    eventually(lambda: (readout(page), looks_at(page)), before)
    canvas.click(position=at)
    page.get_by_label("Mask", exact=True).hover()
    eventually(lambda: readout(page), said(python, 1, 2, query, key))


def test_a_cell_by_keyboard(page, python):
    canvas, at = point(page, 10, 4)
    canvas.click(position=at)
    page.get_by_label("Mask", exact=True).hover()
    canvas.focus()
    for press, query, key in [
        ("ArrowRight", 10, 5),
        ("ArrowDown", 11, 5),
        ("ArrowUp", 10, 5),
        ("ArrowLeft", 10, 4),
        ("PageDown", 20, 4),
        ("PageDown", 24, 4),
        ("ArrowDown", 24, 4),
        ("PageUp", 14, 4),
        ("End", 14, 24),
        ("Home", 14, 0),
        ("+", 14, 0),
        ("ArrowRight", 14, 1),
        ("-", 14, 1),
    ]:
        page.keyboard.press(press)
        eventually(lambda: readout(page), said(python, 0, 0, query, key))
    assert said(python, 0, 0, 14, 1) in canvas.get_attribute("aria-label")


def test_the_colours_are_those_of_the_weights(page, python):
    tables = viz.colour_tables()
    head(page, 1, 3).click()
    for name, table in (("viridis", tables[:768]), ("cividis", tables[768:])):
        page.get_by_label("Colours", exact=True).select_option(name)
        for query, key in [(17, 14), (10, 9), (6, 4)]:
            byte = int(python.recording.maps[1, 3, query, key])
            expected = list(table[3 * byte : 3 * byte + 3])
            eventually(lambda at=(query, key): pixel(page, *at), expected)


def test_the_mask_covers_hidden_cells(page):
    hidden = [(9, 20), (20, 5), (20, 0)]  # future, outside the window, padding
    head(page, 1, 3).click()
    nothing = list(viz.colour_tables()[:3])
    assert nothing not in [pixel(page, *cell) for cell in hidden]
    legend = page.locator(".qx-legend > span")
    assert legend.all_inner_texts() == ["in the future", "outside the window", "padding"]
    page.get_by_label("Mask", exact=True).focus()
    page.keyboard.press("Space")
    eventually(lambda: [pixel(page, *cell) for cell in hidden], [nothing] * 3)
    assert legend.count() == 0


def test_zoom_keeps_the_chosen_cell_in_sight(page, python):
    token(page, 20).click()
    page.get_by_label("Zoom in").click()
    page.get_by_label("Zoom in").click()
    canvas = page.locator(".qx-maps canvas").first
    edge = gutter(canvas)
    each = (canvas.bounding_box()["width"] - edge) / 8  # 8 of the 25 tokens
    canvas.hover(position={"x": edge + 2.5 * each, "y": edge + 4.5 * each})
    assert re.match(r"Query (1[3-9]|2\d) ", readout(page))
    row = int(re.match(r"Query (\d+)", readout(page))[1])
    canvas.hover(position={"x": edge + 2.5 * each, "y": edge + 5.5 * each})
    eventually(lambda: int(re.match(r"Query (\d+)", readout(page))[1]), row + 1)
    column = key_of(page)
    page.mouse.wheel(100, 0)
    canvas.hover(position={"x": edge + 2.6 * each, "y": edge + 5.6 * each})
    assert key_of(page) in (column, column + 1)


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_heads_side_by_side(page, python, by):
    figures = page.locator(".qx-maps figure:visible h3")
    compare = page.get_by_role("button", name="Compare")
    legend = page.locator(".qx-legend > span").all_inner_texts

    def choose(layer, number, keep):
        if by == "mouse":
            head(page, layer, number).click()
            if keep:
                compare.click()
        else:
            head(page, layer, number).focus()
            page.keyboard.press("Enter")
            if keep:
                page.keyboard.press("p")

    choose(1, 5, True)
    asks = "Layer 1, head 5, kept: now choose another"
    eventually(figures.all_inner_texts, ["Layer 1, head 5", asks])
    assert compare.get_attribute("aria-pressed") == "true"
    choose(0, 3, False)  # it has no window, but the head that is kept has one
    eventually(figures.all_inner_texts, ["Layer 0, head 3", "Layer 1, head 5, kept"])
    assert legend() == ["in the future", "outside the window", "padding"]
    assert compare.get_attribute("aria-pressed") == "false"
    choose(2, 0, True)
    choose(0, 3, False)
    kept = [f"Layer {at}, kept" for at in ("1, head 5", "2, head 0")]
    eventually(figures.all_inner_texts, ["Layer 0, head 3", *kept])
    assert flagged(page, "pinned") == [(1, 5), (2, 0)]
    for which, (layer, number) in enumerate([(0, 3), (1, 5), (2, 0)]):
        canvas, _ = point(page, 16, 11, which)
        eventually(lambda c=canvas: c.bounding_box()["width"] > 230, True)
        canvas, at = point(page, 16, 11, which)
        canvas.hover(position=at)
        eventually(lambda: readout(page), said(python, layer, number, 16, 11))  # noqa: B023
    assert page.locator(".qx-tops .qx-bars:visible").count() == 3
    close = page.get_by_role("button", name="Close layer")
    if by == "mouse":
        close.first.click()
    else:
        close.first.focus()
        page.keyboard.press("Enter")
    eventually(figures.all_inner_texts, ["Layer 0, head 3", kept[1]])
    assert close.get_attribute("aria-label") == "Close layer 2, head 0"
    if by == "keyboard":  # the next one has the focus, and after the last one the map
        page.keyboard.press("Enter")
        focused = "document.activeElement.getAttribute('aria-label')"
        eventually(lambda: page.evaluate(focused).split(".")[0], "Layer 0, head 3")
    else:
        choose(2, 0, False)
        eventually(lambda: compare.get_attribute("aria-pressed"), "true")
        compare.click()
    eventually(figures.count, 1)
    assert flagged(page, "pinned") == []


def difference(one, less):
    return f"{digits(one)} minus {digits(less)}, difference {'+' if one > less else '−'}" + digits(
        abs(one - less)
    )


def blended(page, gap):
    """The colour of a difference: between the paper's and one of two ends, by its root."""
    read = """name => { const e = document.createElement("i");
        document.querySelector(".qx").append(e);
        e.style.color = `var(${name})`; const { color } = getComputedStyle(e); e.remove();
        return color.match(/[0-9.]+/g).slice(0, 3).map(Number) }"""
    zero, end = (page.evaluate(read, n) for n in ("--paper", "--more" if gap > 0 else "--less"))
    part = round(255 * abs(gap) ** 0.5) / 255
    return [from_ + part * (to - from_) for from_, to in zip(zero, end, strict=True)]


def close(page, cells):
    """Is each cell, (query, key), painted in the colour of its difference?"""
    found = [(pixel(page, *cell), blended(page, gap)) for cell, gap in cells.items()]
    return all(abs(a - b) <= 1 for one in found for a, b in zip(*one, strict=True)) or found


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
@pytest.mark.parametrize("view", ["raw", "value"])
def test_a_head_minus_the_one_that_is_kept(page, python, view, by):
    r = python.recording
    seen = record.weigh(record.from_bytes(r.maps), view, r.first, r.norms)
    page.get_by_label("Weights", exact=True).select_option(view)
    minus, title = page.get_by_label("Minus", exact=True), page.locator(".qx-maps h3").first
    assert not minus.is_visible()  # nothing is kept
    head(page, 1, 5).click()
    page.get_by_role("button", name="Compare").click()
    head(page, 2, 2).click()  # a second one that is kept: which of them is to be said
    page.get_by_role("button", name="Compare").click()
    head(page, 0, 3).click()
    if by == "mouse":
        minus.select_option("layer 1, head 5")
    else:
        minus.focus()
        page.keyboard.press("ArrowDown")
    eventually(title.inner_text, "Layer 0, head 3 − layer 1, head 5")
    assert looks_at(page)[0].startswith("0·3: ")  # the bars are weights
    gaps = seen[0, 3] - seen[1, 5]
    cells = {(q, k): float(gaps[q, k]) for q, k in [(16, 11), (15, 13), (9, 5)]}
    cells[20, 4] = float(seen[0, 3, 20, 4])  # outside the window of the head that is kept
    assert min(cells.values()) < 0 < max(cells.values())
    eventually(lambda: close(page, cells), True)
    what = {"raw": "weight", "value": "share by value"}[view]
    for query, key in [(16, 11), (20, 4)]:
        canvas, at = point(page, query, key)
        canvas.hover(position=at)
        one, less = (float(seen[where][query, key]) for where in [(0, 3), (1, 5)])
        told = f"{what} {difference(one, less)}"
        eventually(lambda: readout(page).split(": ")[-1].split(" (")[0], told)  # noqa: B023
        assert page.locator(".qx-tip:visible").inner_text().endswith(told)
    kept, at = point(page, 16, 11, 1)
    kept.hover(position=at)  # of the other map its weights
    eventually(lambda: "minus" in readout(page), False)
    legend = page.locator(".qx-legend")
    assert "−1 −0.25 0 +0.25 +1" in " ".join(legend.inner_text().split())
    assert "− more weight in layer 1, head 5, + more here" in legend.inner_text()
    canvas, at = point(page, 16, 11)
    canvas.click(position=at)
    eventually(lambda: key_of(page), 11)
    page.evaluate(COUNT_PICTURES)
    canvas.press("ArrowLeft")  # another cell of the same difference: only hatching is made anew
    eventually(lambda: key_of(page), 10)
    assert page.evaluate("window.pictures") % (3 * len(python.data["reasons"])) == 0  # three maps
    minus.select_option("layer 2, head 2")
    eventually(lambda: close(page, {(16, 11): float((seen[0, 3] - seen[2, 2])[16, 11])}), True)
    for _ in range(2):
        page.get_by_role("button", name="Close layer").last.click()
    eventually(title.inner_text, "Layer 0, head 3")
    assert not minus.is_visible() and legend.locator(".qx-scale").count() == 1


def test_the_cursor_is_told_the_cell(page, python):
    canvas, at = point(page, 20, 17)
    canvas.hover(position=at)
    tip = page.locator(".qx-tip:visible")
    _, expected = said(python, 0, 0, 20, 17).split(": ")
    eventually(lambda: tip.inner_text().split(": ")[1], expected.split(" (")[0])
    assert tip.inner_text().startswith("20 “") and "→ 17 “" in tip.inner_text()
    box, place = tip.bounding_box(), canvas.bounding_box()
    assert abs(box["x"] + box["width"] - place["x"] - at["x"]) < 40
    assert abs(box["y"] + box["height"] - place["y"] - at["y"]) < 40
    page.get_by_label("Mask", exact=True).hover()
    eventually(tip.count, 0)


def test_another_head_begins_at_its_own_strongest_key(page, python):
    canvas, at = point(page, 20, 3)
    canvas.click(position=at)
    head(page, 0, 4).click()
    row = python.recording.maps[0, 4, 20].tolist()
    eventually(lambda: readout(page), said(python, 0, 4, 20, row.index(max(row))))


def test_the_wheel_goes_on_where_a_zoomed_map_ends(page):
    token(page, 12).click()
    page.get_by_label("Zoom in").click()
    canvas = page.locator(".qx-maps canvas").first
    took = """canvas => canvas.dispatchEvent(
        new WheelEvent("wheel", {deltaY: 100, cancelable: true, bubbles: true})) === false"""
    taken = [canvas.evaluate(took) for _ in range(12)]
    assert taken[0] and not taken[-1]


def test_the_key_looked_from_keeps_its_colour_apart_from_chances(page):
    hue = "bars => getComputedStyle(bars).getPropertyValue('--hue')"
    chances = page.locator(".qx-steps .qx-bars")
    before = chances.evaluate(hue)
    page.get_by_label("is seen by").check()
    assert chances.evaluate(hue) == before
    assert page.locator(".qx-tops .qx-bars").first.evaluate(hue) != before


# -- the text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["looks at", "is seen by"])
def test_tokens_are_shaded_by_weight(page, python, direction):
    head(page, 1, 2).click()
    page.get_by_label(direction).check()
    token(page, 14).click()
    asks = direction == "looks at"
    maps, mask = python.recording.maps[1, 2], python.mask(1)
    row = [(maps[14, i], mask[14, i]) if asks else (maps[i, 14], mask[i, 14]) for i in range(T)]
    expected = [0 if why else round(int(byte) / 255, 6) for byte, why in row]

    def parts():
        read = "spans => spans.map(s => +(+s.style.getPropertyValue('--part')).toFixed(6))"
        return page.locator(".qx-text [role=option]").evaluate_all(read)

    eventually(parts, expected)
    weights = {i: byte for i, (byte, why) in enumerate(row) if byte and not why}
    best = sorted(weights, key=lambda i: (-int(weights[i]), i))[:5]
    bars = page.locator(".qx-tops .qx-bars").first.locator("li")
    labels = python.data["tokens"]
    assert bars.locator("span").all_inner_texts() == [f"{i} “{labels[i]['text']}”" for i in best]
    values = [digits(float(record.from_bytes(weights[i]))) for i in best]
    assert bars.locator("b").all_inner_texts() == values


def test_tokens_by_keyboard(page):
    token(page, 12).focus()
    chosen = page.locator(".qx-text [aria-selected=true]")
    for key, expected in [("ArrowRight", 13), ("ArrowLeft", 12), ("End", T - 1), ("Home", 0)]:
        page.keyboard.press(key)
        eventually(lambda: int(chosen.get_attribute("data-token")), expected)
    page.keyboard.press("ArrowDown")  # the text has a line break after token 7
    eventually(lambda: int(chosen.get_attribute("data-token")) > 7, True)
    page.get_by_label("looks at").focus()
    page.keyboard.press("ArrowRight")
    eventually(page.get_by_label("is seen by").is_checked, True)


def test_odd_tokens_are_shown_sensibly(page):
    texts = page.locator(".qx-text [role=option]").all_inner_texts()
    assert texts[0] == "<|end|>" and texts[3] == "·" and texts[7] == "↵"
    assert texts[13:15] == ["‹C3›", "‹A9›"]
    assert "bytes of “é”" in token(page, 13).get_attribute("title")


def test_the_chosen_token_is_in_sight(new_page, python, tmp_path):
    """A text that is longer than its box shows the chosen token at first, and where a map leads."""
    text = python.tokenizer(["a b\n" * 60]).input_ids
    shown = viz.attention_explorer(python.model, python.tokenizer, {"input_ids": text}, layers=[1])
    page = new_page(shown.to_html(tmp_path / "long.html").as_uri())
    box = page.locator(".qx-text")
    sight = """(box) => { const [one, all] = [box.querySelector("[aria-selected=true]"), box]
        .map((e) => e.getBoundingClientRect());
        return all.top <= one.top && one.bottom <= all.bottom }"""
    page.wait_for_selector(".qx-text [aria-selected=true]")
    assert box.evaluate("box => box.scrollHeight > 2 * box.clientHeight")
    assert box.evaluate(sight) and box.evaluate("box => box.scrollTop > 0")
    shades = """(box) => ["::before", "::after"].map((edge) =>
        getComputedStyle(box, edge).backgroundImage.startsWith("linear-gradient"))"""
    eventually(lambda: box.evaluate(shades), [True, False])  # it ends below, and goes on above
    page.locator(".qx-maps canvas").first.focus()
    for _ in range(40):
        page.keyboard.press("PageUp")
    eventually(lambda: box.evaluate(sight) and box.evaluate("box => box.scrollTop"), 0)
    eventually(lambda: box.evaluate(shades), [False, True])


# -- generation and lens ---------------------------------------------------------------------------


def test_the_scrubber(page, python):
    told, slider = page.locator(".qx-step"), page.get_by_label("Step of generation")

    def expected(i):
        step = python.data["steps"][i - 1]
        name = f"{step['position']} “{python.data['tokens'][step['position']]['text']}”"
        chance = digits(max(step["probability"], 1e-9))
        return f"Step {i} of 6: after token {name} came “{step['text']}”, probability {chance}"

    slider.focus()
    page.keyboard.press("ArrowRight")  # from the prompt
    eventually(told.inner_text, expected(1))
    page.keyboard.press("End")
    eventually(told.inner_text, expected(6))
    page.keyboard.press("Home")
    eventually(told.inner_text, expected(1))
    page.keyboard.press("ArrowRight")
    eventually(told.inner_text, expected(2))
    page.get_by_label("Step on").click()
    eventually(told.inner_text, expected(3))
    page.get_by_label("Step back").focus()
    page.keyboard.press("Enter")
    eventually(told.inner_text, expected(2))
    step = python.data["steps"][1]
    title = page.locator(".qx-steps h3").inner_text()
    assert title.endswith(", one row, decoded with the cache")
    bars = page.locator(".qx-steps .qx-bars li")
    assert bars.locator("span").all_inner_texts() == [
        f"“{a['text']}”" for a in step["alternatives"]
    ]
    chances = [digits(max(a["probability"], 1e-9)) for a in step["alternatives"]]
    assert bars.locator("b").all_inner_texts() == chances
    assert page.locator(".qx-text .qx-next").get_attribute("data-token") == "20"
    assert page.locator(".qx-text .qx-unwritten").count() == T - 21
    assert said(python, 0, 0, 19, key_of(page)) == readout(page)
    assert python.data["check"] in page.locator(".qx-steps").inner_text()
    assert "equal those of one pass" in python.data["check"]
    token(page, 22).click()
    eventually(told.inner_text, expected(5))


def test_the_logit_lens_follows_the_chosen_token(page, python):
    bars, title = page.locator(".qx-lens .qx-bars"), page.locator(".qx-lens h3")
    page.get_by_role("tab", name="Logit lens").click()
    for place in (15, 6):
        token(page, place).click()
        expected = lens_rows(python.model, python.tokenizer, python.recording.hidden[:, place])
        for layer in (0, 2):
            head(page, layer, 1).click()
            named = f"Likeliest after token {place} “{python.data['tokens'][place]['text']}”"
            eventually(title.inner_text, f"{named}, read off after layer {layer}")
            row = expected[layer + 1]
            texts = bars.locator("li span").all_inner_texts()
            assert texts == [f"“{chance['text']}”" for chance in row]
            chances = [digits(max(chance["probability"], 1e-9)) for chance in row]
            assert bars.locator("li b").all_inner_texts() == chances
    told = page.locator(".qx-lens p").inner_text
    assert "does come is underlined" in told()
    token(page, T - 1).click()  # nothing comes after it
    eventually(lambda: "underlined" in told(), False)


WIDE, HIGH, NAMES = 64, 19, 70  # of the lens's grid, in pixels


def lens_cell(page, place, token):
    """The middle of a cell of the grid, in pixels of its canvas, as far as it is scrolled."""
    left, top = page.locator(".qx-grid").evaluate("box => [box.scrollLeft, box.scrollTop]")
    return {"x": NAMES + (token + 0.5) * WIDE - left, "y": (place + 1.5) * HIGH - top}


def lens_said(python, place, token):
    names, tokens = python.data["lens"], python.data["tokens"]
    before = f"Read off after {names[place]}, token {token} “{tokens[token]['text']}”: "
    if token < PADS:
        return before + "it is padding"
    stream = python.recording.hidden[place, token][None]
    [[best]] = lens_rows(python.model, python.tokenizer, stream, 1)
    return before + f"“{best['text']}” {digits(max(best['probability'], 1e-9))}"


def test_the_lens_as_a_grid_by_mouse_and_by_keyboard(page, python):
    """A cell chooses its token and its layer, and all maps follow."""
    page.get_by_role("tab", name="Logit lens").click()
    grid, told = page.locator(".qx-grid canvas"), page.locator(".qx-lens .qx-read")
    eventually(told.inner_text, lens_said(python, 1, 12))  # the layer and token that are chosen
    grid.click(position=lens_cell(page, 3, 14))
    eventually(told.inner_text, lens_said(python, 3, 14))
    assert selected(page) == [2, 0] and readout(page).startswith("Query 14 ")
    for key, at in [
        ("ArrowLeft", (3, 13)),
        ("ArrowUp", (2, 13)),
        ("ArrowRight", (2, 14)),
        ("ArrowDown", (3, 14)),
        ("ArrowDown", (3, 14)),
        ("End", (3, T - 1)),
        ("ArrowRight", (3, T - 1)),
        ("Home", (3, 0)),
    ]:
        page.keyboard.press(key)
        eventually(told.inner_text, lens_said(python, *at))
        assert lens_said(python, *at) in grid.get_attribute("aria-label")
        assert selected(page) == [at[0] - 1, 0]
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    eventually(told.inner_text, lens_said(python, 0, 0))  # the embedding is no layer of heads
    assert selected(page) == [0, 0]
    head(page, 1, 3).click()  # chosen elsewhere
    eventually(told.inner_text, lens_said(python, 2, 0))
    token(page, 9).click()
    eventually(told.inner_text, lens_said(python, 2, 9))
    grid.hover(position=lens_cell(page, 1, 8))
    assert page.locator(".qx-lens .qx-tip").inner_text() == lens_said(python, 1, 8)
    found = Axe().run(page, context=".qx-lens").response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_the_grid_of_the_lens_is_coloured_by_probability(page, python):
    page.get_by_role("tab", name="Logit lens").click()
    token(page, 8).click()
    grid = page.locator(".qx-grid canvas")
    eventually(page.locator(".qx-lens .qx-read").inner_text, lens_said(python, 1, 8))
    grounds = grid.evaluate(
        """c => { const {color, backgroundColor, caretColor} = getComputedStyle(c);
        return [color, backgroundColor, caretColor] }"""
    )
    ink, paper, hue = (torch.tensor([*map(int, re.findall(r"\d+", c)[:3])]) for c in grounds)
    for place, one in [(0, 8), (1, 9), (3, 10)]:
        at = lens_cell(page, place, one)
        seen = grid.evaluate(
            """(c, {x, y}) => { const r = c.width / c.clientWidth;
            return [...c.getContext("2d").getImageData(x * r, y * r, 1, 1).data].slice(0, 3) }""",
            {"x": at["x"] - 0.5 * WIDE + 2, "y": at["y"] - 7},  # beside its text
        )
        stream = python.recording.hidden[place, one][None]
        [[best]] = lens_rows(python.model, python.tokenizer, stream, 1)
        tint, part = 0.05 * ink + 0.95 * paper, 0.75 * best["probability"]
        assert (torch.tensor(seen) - (part * hue + (1 - part) * tint)).abs().max() <= 3


def test_a_click_on_a_head_goes_before_the_lens(new_page):
    """The kernel does one thing after another, and each row of the lens is one of many products."""
    shown, page = random_explorer(6, 4, 2, 120), new_page()
    live_page(page, shown)
    page.get_by_label("Heads by").select_option("layer")
    head(page, 4, 1).click()  # at once
    page.get_by_role("heading", name="Layer 4, head 1").wait_for()
    assert "layer 4" in page.asked

    def grids():  # the page is asked too, so that its questions are answered meanwhile
        return page.evaluate("1") and [name for name in page.asked if name.startswith("grid")]

    eventually(lambda: len(grids()) >= 4, True)
    assert "lens 119" in page.asked
    places = [[*map(int, name.split()[1:])] for name in grids()]
    assert all(end - start <= 16 for _, start, end in places)  # what a click may have to wait for
    assert (
        places[0][0] == 6 and places[0][1] <= 119 - 5 <= places[0][2] + 16
    )  # in sight, the answer
    token(page, 3).click()
    head(page, 0, 2).click()
    page.get_by_role("heading", name="Layer 0, head 2").wait_for()
    assert "layer 0" in page.asked
    eventually(lambda: len(set(grids())), 7 * 8)  # at last all of it is here
    told = page.locator(".qx-lens .qx-read")
    for place, one in [(6, 3), (1, 3)]:
        stream = shown.recording.hidden[place, one][None]
        [[best]] = lens_rows(shown.model, shown.tokenizer, stream, 1)
        page.locator(".qx-grid canvas").click(position=lens_cell(page, place, one))
        eventually(lambda text=f"“{best['text']}”": text in told.inner_text(), True)
    assert len(page.asked) == len(set(page.asked)) and page.errors == []


def test_the_grid_of_a_long_text_scrolls_in_its_own_box(new_page, tmp_path):
    """24 layers, 120 tokens: the page stays as it is, and what is chosen comes into sight."""
    shown = random_explorer(24, 14, 2, 120)
    page = new_page(shown.to_html(tmp_path / "long.html", lens=1).as_uri())
    page.get_by_role("tab", name="Logit lens").click()
    box, told = page.locator(".qx-grid"), page.locator(".qx-lens .qx-read")
    scrolled = "b => b.scrollHeight - b.scrollTop - b.clientHeight"
    eventually(lambda: box.evaluate(scrolled), 0)  # the last layers at first
    assert page.locator(".qx-lens").evaluate("lens => lens.scrollHeight") < 560
    sizes = box.evaluate("b => [b.scrollWidth, b.scrollHeight, b.clientWidth, b.clientHeight]")
    assert sizes[:2] == [NAMES + 120 * WIDE, 26 * HIGH] and sizes[3] <= 330
    wide = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(wide) and sizes[2] < 1400
    page.locator(".qx-grid canvas").focus()
    for key in ("Home", *["ArrowUp"] * 24, "End", *["ArrowDown"] * 24):
        page.keyboard.press(key)
    told.get_by_text("after layer 23, token 119").wait_for()

    def in_sight(layer, place):
        at = lens_cell(page, layer, place)
        return NAMES < at["x"] < sizes[2] and HIGH < at["y"] < sizes[3]

    eventually(lambda: in_sight(24, 119), True)
    page.keyboard.press("Home")
    told.get_by_text("after layer 23, token 0 ").wait_for()
    eventually(lambda: in_sight(24, 0), True)
    box.hover()
    page.mouse.wheel(0, -2000)
    eventually(lambda: box.evaluate("b => b.scrollTop"), 0)
    page.locator(".qx-grid canvas").click(position=lens_cell(page, 2, 3))
    told.get_by_text("after layer 1, token 3 ").wait_for()
    assert not page.errors


def test_a_page_without_the_lens_says_how_to_get_it(new_page, python, tmp_path):
    page = new_page(python.to_html(tmp_path / "none.html", lens=0).as_uri())
    page.get_by_role("tab", name="Logit lens").click()
    told = "The logit lens was left out of this page; to_html(lens=1) writes it too."
    assert page.locator(".qx-lens").inner_text() == told
    token(page, 5).click()
    assert not page.errors


# -- all of it -------------------------------------------------------------------------------------


def test_the_tab_key_reaches_every_control_once(page):
    page.get_by_label("looks at").focus()
    reached = []
    for _ in range(18):
        reached.append(
            page.evaluate(
                """() => { const e = document.activeElement;
                return e.closest(".qx") && (e.getAttribute("role") || e.localName)
                    + (getComputedStyle(e).outlineStyle !== "none" ? " ringed" : "") }"""
            )
        )
        page.keyboard.press("Tab")
    inside = [name for name in reached if name]
    assert [name.split()[0] for name in inside] == [
        *("input", "button", "input", "button", *["option"] * 2),  # text, its steps, the bars
        *("select", "select", "option"),  # heads
        *("select", *["button"] * 4, "application", "select", "input"),  # map
        "tab",
    ]
    assert all(name.endswith("ringed") for name in inside[1:])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, theme):
    in_lab = page.url.startswith("http")
    if in_lab:
        name = f"JupyterLab {theme.title()}"
        page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: '{name}'}})")
    else:
        page.emulate_media(color_scheme=theme)
    background = "getComputedStyle(document.querySelector('.qx')).backgroundColor"
    brightness = lambda: sum(map(float, re.findall(r"[\d.]+", page.evaluate(background))[:3])) > 380  # noqa: E731
    eventually(brightness, theme == "light")
    head(page, 2, 2).click()
    for sort in ("layer", "entropy"):
        page.get_by_label("Heads by").select_option(sort)
        found = Axe().run(page, context=".qx")
        bad = [v for v in found.response["violations"] if v["impact"] in ("serious", "critical")]
        assert not bad, [(v["id"], v["nodes"][0]["html"], v["nodes"][0]["any"]) for v in bad]


@pytest.fixture(scope="module")
def many_live():
    """A model of the released one's shape, 24 layers of 14 heads on 2: its explorer."""
    names, setup = {}, SETUP
    for old, new in [
        ("num_hidden_layers=3", "num_hidden_layers=24"),
        ("num_attention_heads=6", "num_attention_heads=14"),
        ("hidden_size=48", "hidden_size=56"),
        ("use_sliding_window=True, max_window_layers=1, sliding_window=8", "sliding_window=None"),
    ]:
        assert old in setup
        setup = setup.replace(old, new)
    exec(setup, names)
    return names["explorer"]


@pytest.fixture(scope="module")
def many(many_live, tmp_path_factory):
    """Its page."""
    return many_live.to_html(tmp_path_factory.mktemp("many") / "many.html").as_uri()


def test_many_heads_open_as_a_picture_of_one_score(new_page, many_live, many):
    page = new_page(many)
    heat = page.locator(".qx-heat:visible")
    heat.wait_for()
    ranked = page.locator(".qx-ranking [role=option]")
    eventually(ranked.count, 100)
    best = ranked.first
    opens = many_live.data["opens"]
    looks = record.looking(many_live.recording, opens["query"], opens["key"])
    layer, number = divmod(int(looks.argmax()), 14)
    eventually(lambda: best.locator("small").inner_text().split("\n")[0], f"{layer}·{number}")
    title = page.locator(".qx-maps h3").first
    eventually(title.inner_text, f"Layer {opens['layer']}, head {opens['head']}")
    heat.click(position={"x": 22 + 27 * 5 + 13, "y": 14 + 9 * 7 + 4})
    eventually(lambda: page.locator(".qx-maps h3").first.inner_text(), "Layer 7, head 5")
    assert "this look of 14 heads in 24 layers" in heat.get_attribute("aria-label")
    page.get_by_label("Heads by").select_option("layer")
    eventually(page.locator(".qx-heads [role=option]").count, 336)
    assert heat.count() == 0


def test_the_picture_of_all_heads_by_keyboard(new_page, many):
    """Arrow keys move, a letter does what it does on a head, Enter chooses; the cell is told."""
    page = new_page(many)
    heat, told = page.locator(".qx-heat:visible"), page.locator(".qx-heats output")
    heat.wait_for()
    page.wait_for_selector(".qx-heat[aria-label]")
    title = page.locator(".qx-maps h3").first
    before = title.inner_text()
    layer, number = map(int, re.findall(r"\d+", before))
    page.get_by_label("Keep heads that score").focus()
    page.keyboard.press("Tab")
    assert heat.evaluate("c => c === document.activeElement")
    assert heat.evaluate("c => getComputedStyle(c).outlineStyle") != "none"  # the ring
    at = lambda: [int(n) for n in re.findall(r"\d+", told.inner_text())[:2]]  # noqa: E731
    assert at() == [layer, number]  # the chosen one
    drawn = "c => c.toDataURL()"
    for key, expected in [
        ("PageUp", [0, number]),
        ("Home", [0, 0]),
        ("ArrowUp", [0, 0]),
        ("ArrowLeft", [0, 0]),
        ("ArrowRight", [0, 1]),
        ("ArrowDown", [1, 1]),
        ("End", [1, 13]),
        ("ArrowRight", [1, 13]),
        ("PageDown", [23, 13]),
        ("ArrowUp", [22, 13]),
        ("ArrowLeft", [22, 12]),
    ]:
        picture = heat.evaluate(drawn)
        moves = at() != expected
        page.keyboard.press(key)
        eventually(at, expected)
        assert not moves or heat.evaluate(drawn) != picture  # a frame goes along
        assert heat.get_attribute("aria-label").endswith(told.inner_text())
    assert title.inner_text() == before  # nothing is chosen yet
    page.keyboard.press("m")
    page.get_by_label("Map of").select_option("marked")
    eventually(title.inner_text, "1 marked head")
    page.get_by_label("Map of").select_option("head")
    for key, name in [("Enter", "Layer 0, head 0"), ("Space", "Layer 1, head 0")]:
        heat.focus()
        for move in ("PageUp", "Home", *(["ArrowDown"] if key == "Space" else [])):
            page.keyboard.press(move)
        page.keyboard.press(key)
        eventually(title.inner_text, name)
        assert heat.evaluate("c => c === document.activeElement")
    heat.hover(position={"x": 22 + 27 * 5 + 13, "y": 14 + 9 * 7 + 4})
    eventually(at, [7, 5])
    page.get_by_label("Mask", exact=True).hover()
    eventually(at, [1, 0])
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, context=".qx-overview").response["violations"]
        assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    assert page.errors == []


def test_the_picture_of_all_heads_follows_the_theme(new_page, many):
    """Its numbers are drawn in the ink of the page, and anew when that changes."""
    page = new_page()
    page.emulate_media(color_scheme="light")
    page.goto(many)
    heat = page.locator(".qx-heat:visible")
    heat.wait_for()
    page.wait_for_selector(".qx-heat[aria-label]")
    layer, number = selected(page)
    ring = """(c, [x, y]) => { const r = c.width / c.clientWidth;
        return [...c.getContext("2d").getImageData(x * r, y * r, 1, 1).data].slice(0, 3) }"""
    ringed = lambda i, j: heat.evaluate(ring, [22 + 27 * j, 14 + 9 * i + 4])  # noqa: E731
    assert ringed(layer, number) == [255, 255, 255]  # paper under the ink, on any colour
    page.get_by_role("button", name="Compare").click()
    heat.click(position={"x": 22 + 27 * 5 + 13, "y": 14 + 9 * 7 + 4})
    eventually(lambda: ringed(7, 5), [255, 255, 255])
    assert ringed(layer, number) == [255, 255, 255]  # of a head that is kept, too
    ink = """c => { const r = c.width / c.clientWidth, { data } = c.getContext("2d")
        .getImageData(0, 0, 20 * r, c.height); let most = [0, 0];
        for (let i = 0; i < data.length; i += 4) {
            if (data[i + 3] > most[1]) most = [data[i], data[i + 3]] }
        return most[0] }"""
    eventually(lambda: heat.evaluate(ink) < 60, True)
    page.emulate_media(color_scheme="dark")
    eventually(lambda: heat.evaluate(ink) > 200, True)


def test_keys_may_come_faster_than_layers(new_page, many_live):
    page = new_page()
    live_page(page, many_live)
    ranked = page.locator(".qx-ranking [role=option]")
    ranked.first.focus()
    quick = """() => { for (let i = 0; i < 6; i++) document.activeElement.dispatchEvent(
        new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true, cancelable: true })) }"""
    page.evaluate(quick)  # faster than layers come
    eventually(lambda: ranked.first.get_attribute("aria-selected"), "false")
    assert page.errors == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (1920, 1080)])
def test_head_and_map_are_on_one_screen(new_page, many, width, height):
    page = new_page()
    page.set_viewport_size({"width": width, "height": height})
    page.goto(many)
    page.get_by_label("Heads by").select_option("layer")
    for layer, number in [(0, 0), (23, 13), (11, 7)]:
        page.evaluate("window.scrollTo(0, 0)")
        option = head(page, layer, number)
        option.focus()
        page.keyboard.press("Enter")
        eventually(lambda at=[layer, number]: selected(page), [layer, number])
        assert page.evaluate("window.scrollY") == 0
        for place in (option, page.locator(".qx-maps canvas").first, page.locator(".qx-readout")):
            box = place.bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= height
    canvas = page.locator(".qx-maps canvas").first
    assert abs(canvas.bounding_box()["width"] - gutter(canvas) - 0.41 * height) < 1
    grid, drawn = page.locator(".qx-heads").bounding_box(), page.locator(".qx-maps").bounding_box()
    assert grid["x"] + grid["width"] <= drawn["x"]  # beside it
    assert page.locator(".qx-numbers small").all_inner_texts() == [str(i) for i in range(14)]
    heading = "Full attention in all 24 layers: use_sliding_window is off"
    assert page.locator(".qx-heading").all_inner_texts() == [heading]
    assert page.locator(".qx-badge").count() == 0
    assert "A bracket joins" in page.locator(".qx-overview > .qx-note").inner_text()
    heads = page.locator(".qx-heads")
    shade = "box => getComputedStyle(box, '::after').backgroundImage.startsWith('linear-gradient')"
    for at, hidden in [(9999, False), (0, True)]:  # 24 layers do not fit
        heads.evaluate("(box, at) => { box.scrollTop = at }", at)
        eventually(lambda: heads.evaluate(shade), hidden)
    page.get_by_role("button", name="Compare").click()
    head(page, 10, 3).click()
    pinned = page.locator(".qx-pinned")
    eventually(lambda: pinned.get_attribute("data-head"), "7")


def in_sight(page, *places):
    """Nothing was scrolled, and all of these are within the window."""
    height = page.viewport_size["height"]
    boxes = [page.locator(place).first.bounding_box() for place in places]
    low = [box["y"] + box["height"] for box in boxes]
    assert page.evaluate("scrollY") == 0 and min(b["y"] for b in boxes) >= 0 and max(low) <= height


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (1920, 1080)])
def test_answers_are_on_one_screen(new_page, many_live, width, height, by):
    """What a step, a head that is off and a cut look come to is told in sight of the map."""
    page = new_page()
    page.set_viewport_size({"width": width, "height": height})
    live_page(page, many_live)
    step, answer = page.locator(".qx-step"), page.locator(".qx-large .qx-told:visible")
    assert step.inner_text().startswith("Step 1 of 6") and answer.count() == 0
    if by == "mouse":
        page.get_by_label("Step on").click()
    else:
        page.get_by_label("Step of generation").press("ArrowRight")
    eventually(lambda: step.inner_text()[:11], "Step 2 of 6")
    in_sight(page, ".qx-step", ".qx-scrubber", ".qx-maps canvas", ".qx-readout")
    assert step.bounding_box()["height"] < 30  # a line
    query, key = many_live.data["steps"][1]["position"], key_of(page)
    where = {"off": [(many_live.layer, many_live.head)]}

    def agrees():
        found = many_live.changed(query, **where)
        delta = f"{'−' if found['delta'] < 0 else '+'}{abs(found['delta']):.2f}"
        eventually(lambda: f"its logit changes by {delta}," in answer.inner_text(), True)
        in_sight(page, ".qx-large .qx-told:visible", ".qx-maps canvas", ".qx-readout", ".qx-heat")

    if by == "mouse" and width == 1920:  # lower, the buttons are scrolled to
        page.get_by_role("tab", name="Causes").click()
        page.get_by_role("button", name="Switch off this head").click()
    else:
        page.locator(".qx-heat").press("o")
    agrees()
    page.locator(".qx-maps canvas").first.press("x")
    agrees_with = [(many_live.layer, many_live.head, query, key)]
    where["cuts"] = agrees_with
    agrees()
    assert page.errors == []


@pytest.mark.parametrize("width", [380, 700])
def test_a_narrow_view_stacks_and_hides_no_head_without_a_cue(new_page, many, width):
    page = new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(many)
    page.wait_for_selector(".qx-heat[aria-label]")
    page.locator(".qx-heat").click(position={"x": 22 + 27 * 11 + 5, "y": 14 + 9 * 7 + 4})
    page.get_by_role("heading", name="Layer 7, head 11").wait_for()
    page.get_by_label("Heads by").select_option("layer")
    page.wait_for_selector(".qx-heads [role=option]")
    grid, drawn = page.locator(".qx-heads").bounding_box(), page.locator(".qx-maps").bounding_box()
    assert grid["y"] + grid["height"] <= drawn["y"]
    fits = page.locator(".qx-heads").evaluate("box => box.scrollWidth <= box.clientWidth")
    shadow = page.locator(".qx-heads").evaluate("box => getComputedStyle(box).backgroundImage")
    assert fits if width == 700 else "linear-gradient" in shadow
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_tabs_by_keyboard(page):
    generation, lens = (page.get_by_role("tab", name=n) for n in ("Generation", "Logit lens"))
    generation.focus()
    token(page, 11).click()
    told = page.locator(".qx-lens h3")
    before = told.text_content()
    generation.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".qx-lens .qx-grid").is_visible()
    assert "after token 11 " not in before  # what is not seen is not computed
    told.get_by_text("after token 11 ").wait_for()
    assert not page.locator(".qx-steps").is_visible()
    assert lens.get_attribute("aria-selected") == "true"
    page.keyboard.press("ArrowLeft")
    assert page.locator(".qx-steps").is_visible()


def caused(first, python, query, **changes):
    """The tab says what the same changes come to here."""
    found = python.changed(query, **changes)
    sign = "−" if found["delta"] < 0 else "+"
    chances = [digits(max(p, 1e-9)) for p in found["chances"]]
    off = changes.get("off", [])
    which = "it fetches, the head that is off adds"
    if len(off) > 1:
        which = f"they fetch, the {len(off)} heads that are off add"
    direct = f" Directly, by what {which} {shown_share(found['direct'])}." if off else ""
    label = f"{query} “{python.data['tokens'][query]['text']}”"
    how = "comes next" if found["comes"] else "is likeliest"
    eventually(
        first.locator(".qx-cause .qx-told").inner_text,
        f"After token {label}, “{found['token']}” {how}: its logit changes by "
        f"{sign}{abs(found['delta']):.2f}, its probability from {chances[0]} to {chances[1]}."
        + direct,
    )
    for i, name in enumerate(("before", "after")):
        bars = first.locator(".qx-cause .qx-bars").nth(i).locator("li")
        words = [f"“{row['text']}”" for row in found[name]]
        assert bars.locator("span").all_inner_texts() == words
    return found


def test_heads_off_by_mouse_and_by_keyboard(lab, disk, python):
    """What the answer loses without a head, its group or its layer, as the kernel computes it."""
    first = lab.locator(".jp-CodeCell").first
    off = first.locator(".qx-heads .qx-off")
    told = first.locator(".qx-cause .qx-told")

    def agrees(heads, query, to="zero"):
        named = [tuple(map(int, one.split("."))) for one in heads]
        found = caused(first, python, query, off=named, to=to)
        assert off.count() == len(heads)
        return abs(found["delta"])

    first.get_by_label("Heads by").select_option("layer")
    first.get_by_label("looks at").check()
    head(first, 1, 4).click()
    token(first, 14).click()
    first.get_by_role("tab", name="Causes").click()
    agrees([], 14)
    first.get_by_role("button", name="Switch off this head").click()
    assert agrees(["1.4"], 14) > 0.01
    pressed = first.get_by_role("button", name="Switch off this head")  # the mouse is still on it
    style = "b => [getComputedStyle(b).color, getComputedStyle(b).backgroundColor]"
    ink, ground = (sum(map(int, re.findall(r"\d+", c)[:3])) / 3 for c in pressed.evaluate(style))
    assert abs(ink - ground) > 150
    first.get_by_label("They say").select_option("mean")
    agrees(["1.4"], 14, "mean")
    first.get_by_label("They say").select_option("zero")
    first.get_by_role("button", name="Switch off its key group").click()
    agrees(["1.4", "1.3", "1.5"], 14)
    token(first, T - 1).click()
    agrees(["1.4", "1.3", "1.5"], T - 1)
    first.get_by_role("button", name="Switch off its layer").click()
    agrees([f"1.{i}" for i in range(6)], T - 1)
    token(first, 1).click()
    told.get_by_text("token 1 is padding").wait_for()
    token(first, 14).click()
    first.get_by_role("button", name="Undo all").click()
    agrees([], 14)
    head(first, 1, 4).focus()
    for key in ("o", "ArrowRight", "o"):
        lab.keyboard.press(key)
    agrees(["1.4", "1.5"], 14)
    assert "Off, as layer·head: 1·4, 1·5." in first.locator(".qx-cause").inner_text()
    lab.keyboard.press("o")
    agrees(["1.4"], 14)
    found = Axe().run(lab, context=".qx-cause").response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    first.get_by_role("button", name="Undo all").focus()
    lab.keyboard.press("Enter")
    agrees([], 14)
    assert disk.get_by_role("tab", name="Causes").count() == 0  # a page has no model


def shown_share(value):
    return f"{'' if abs(value) < 0.005 else '−' if value < 0 else '+'}{abs(value):.2f}"


def told_shares(python, found, query, layer, number):
    name = f"{query} “{python.data['tokens'][query]['text']}”"
    best = found["choices"][0]["id"]
    how = (
        "comes next" if found["comes"] else "is likeliest" if found["id"] == best else "could come"
    )
    return (
        f"After token {name}, “{found['token']}” {how}, with a logit of {found['logit']:.2f}: "
        f"head {layer}·{number} adds {shown_share(found['heads'][layer][number])} to it, "
        f"MLP {layer} {shown_share(found['mlps'][layer])}."
    )


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_who_adds_to_a_logit(page, python, by):
    """Heads and MLPs, as a ranking and a picture, by layer, and what they add up to."""
    live = page.url.startswith("http")
    head(page, 1, 4).click()
    token(page, 14).click()
    sort = page.get_by_label("Heads by")
    if by == "mouse":
        page.get_by_role("tab", name="Attribution").click()
        sort.select_option("shares")
    else:
        page.get_by_role("tab", name="Generation").focus()
        page.keyboard.press("ArrowRight"), page.keyboard.press("ArrowRight")
        sort.focus()
        page.keyboard.press("ArrowDown"), page.keyboard.press("ArrowDown")
    told = page.locator(".qx-large .qx-told:visible").first
    ask = (python.traced(), python.tokenizer, python.recording)
    found = shares_to_choose(*ask, 14)
    eventually(told.inner_text, told_shares(python, found, 14, 1, 4))

    def agrees(found):
        seen = [p for p in found["parts"] if p[0] != "rounding" or abs(p[1]) >= 0.005]
        words = [f"{name} {shown_share(value)}" for name, value in seen]
        total = f"= {found['logit']:.2f} the logit"
        spans = page.locator(".qx-sum > span").all_inner_texts
        eventually(lambda: [one.strip() for one in spans()], [*words, total])
        rows = page.locator(".qx-layers tbody tr").all()
        for row, heads, mlp in zip(rows, found["heads"], found["mlps"], strict=True):
            assert row.locator("b").all_inner_texts() == [shown_share(sum(heads)), shown_share(mlp)]
        scores = {(i, j): x for i, row in enumerate(found["heads"]) for j, x in enumerate(row)}
        order = sorted(scores, key=lambda at: -scores[at])
        captions = page.locator(".qx-ranking small").all_inner_texts
        expected = [f"{i}·{j}\n{shown_share(scores[i, j])}" for i, j in order]
        eventually(captions, expected)
        far = max(map(abs, [*scores.values(), *found["mlps"]]))
        ends = page.locator(".qx-heats .qx-scale span").all_inner_texts()
        assert ends == [shown_share(-far), "0", shown_share(far)]
        return far

    far = agrees(found)
    heat, wide = page.locator(".qx-heat"), 390 // 6
    cell = page.locator(".qx-heats output")
    for row, column in [(0, 2), (2, 5), (1, 6)]:  # the last one is an MLP
        x = 22 + wide * column + (6 if column == 6 else 0) + wide / 2
        at = {"x": x, "y": 14 + 14 * row + 6}
        heat.hover(position=at)
        value = found["mlps"][row] if column == 6 else found["heads"][row][column]
        what = "MLP" if column == 6 else f"head {column}"
        eventually(cell.inner_text, f"Layer {row} {what}: {shown_share(value)}")
        read = """(c, {x, y}) => { const r = c.width / c.clientWidth;
            return [...c.getContext("2d").getImageData(x * r, y * r, 1, 1).data].slice(0, 3) }"""
        seen, colour = heat.evaluate(read, at), blended(page, value / far)
        assert max(abs(a - b) for a, b in zip(seen, colour, strict=True)) <= 1
    heat.click(position={"x": 22 + wide * 2.5, "y": 20})
    eventually(told.inner_text, told_shares(python, found, 14, 0, 2))
    heat.focus()
    page.keyboard.press("End")
    eventually(cell.inner_text, f"Layer 0 MLP: {shown_share(found['mlps'][0])}")
    page.keyboard.press("Enter")  # it is no head, and has no map
    page.keyboard.press("ArrowLeft"), page.keyboard.press("Enter")
    eventually(lambda: selected(page), [0, 5])
    page.get_by_label("Order").select_option("low")
    low = min((x, i, j) for i, row in enumerate(found["heads"]) for j, x in enumerate(row))
    first = page.locator(".qx-ranking small").first
    eventually(first.inner_text, f"{low[1]}·{low[2]}\n{shown_share(low[0])}")
    page.get_by_label("Order").select_option("high")
    token(page, T - 1).click()  # nothing comes after it: the likeliest
    found = shares_to_choose(*ask, T - 1)
    eventually(told.inner_text, told_shares(python, found, T - 1, 0, 5))
    agrees(found)
    choice = page.get_by_label("Logit of")
    assert choice.is_visible() == live  # a page has the shares of one token after each
    if live:
        default, other = found["id"], found["choices"][1]["id"]
        if by == "mouse":
            choice.select_option(str(other))
        else:
            choice.focus()
            page.keyboard.press("ArrowDown")
        found = shares_to_choose(*ask, T - 1, other)
        eventually(told.inner_text, told_shares(python, found, T - 1, 0, 5))
        agrees(found)
        head(page, 1, 4).first.focus()
        page.keyboard.press("o")  # and what is caused is told of the same token
        caused = python.changed(T - 1, token=other, off=[(1, 4)])
        answer = page.locator(".qx-large .qx-told:visible").nth(1)
        change = (
            f"“{caused['token']}” could come: its logit changes by {shown_share(caused['delta'])}"
        )
        eventually(lambda: change in answer.inner_text(), True)
        page.keyboard.press("o")
        choice.select_option(str(default))
        agrees(shares_to_choose(*ask, T - 1))
    token(page, 1).click()
    eventually(lambda: "padding: the model says nothing there" in told.inner_text(), True)
    assert page.locator(".qx-layers table").is_hidden() and heat.is_hidden()
    assert ("under Causes" in page.locator(".qx-shares .qx-note").text_content()) == live
    token(page, 14).click()
    eventually(heat.is_visible, True)
    found = Axe().run(page, context=".qx").response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_looks_cut_by_mouse_and_by_keyboard(lab, python):
    first = lab.locator(".jp-CodeCell").first
    first.get_by_role("tab", name="Causes").click()
    first.get_by_role("button", name="Undo all").press("Enter")
    first.get_by_label("looks at").check()
    head(first, 1, 4).click()
    canvas, at = point(first, 14, 11)
    before = pixel(first, 14, 11)
    canvas.click(position=at)
    knife = first.get_by_role("button", name=re.compile("^Cut the look of 14 .* → 11 "))
    knife.click()
    assert abs(caused(first, python, 14, cuts=[(1, 4, 14, 11)])["delta"]) > 0.01
    assert knife.get_attribute("aria-pressed") == "true"
    assert pixel(first, 14, 11) != before  # crossed out on the map
    undo = first.locator(".qx-changes button")
    assert re.fullmatch("cut 14 “.*” → 11 “.*” in 1·4 ✕", undo.inner_text())
    token(first, 18).click()  # another question: the cut stays
    caused(first, python, 18, cuts=[(1, 4, 14, 11)])
    first.get_by_label("Where to cut").select_option("all heads of its layer")
    canvas.click(position=point(first, 18, 16)[1])
    canvas.focus()
    lab.keyboard.press("x")
    both = [(1, 4, 14, 11), (1, None, 18, 16)]
    assert abs(caused(first, python, 18, cuts=both)["delta"]) > 0.01
    assert undo.count() == 2 and "in layer 1 ✕" in undo.nth(1).inner_text()
    lab.keyboard.press("x")  # joined again
    caused(first, python, 18, cuts=both[:1])
    first.get_by_label("Where to cut").select_option("all layers")
    canvas.press("x")
    caused(first, python, 18, cuts=[both[0], (None, None, 18, 16)])
    undo.first.focus()
    lab.keyboard.press("Enter")
    caused(first, python, 18, cuts=[(None, None, 18, 16)])
    assert undo.evaluate("b => b === document.activeElement")  # the next one has the focus
    lab.keyboard.press("Enter")
    assert caused(first, python, 18)["delta"] == 0 and undo.count() == 0
    canvas.click(position=point(first, 14, 17)[1])  # in the future
    knife = first.get_by_role("button", name=re.compile("^Cut the look of 14 .* → 17 "))
    assert (knife.get_attribute("aria-disabled"), knife.get_attribute("title")) == (
        "true",
        "hidden: in the future",
    )
    knife.press("Enter")
    canvas.press("x")
    assert undo.count() == 0
    first.get_by_label("Where to cut").select_option("this head")


def test_another_text_is_put_in_by_mouse_and_by_keyboard(lab, python):
    first = lab.locator(".jp-CodeCell").first
    first.get_by_role("tab", name="Causes").click()
    first.get_by_role("button", name="Undo all").press("Enter")
    head(first, 1, 4).click()
    canvas, at = point(first, 14, 10)
    canvas.click(position=at)
    text = first.get_by_label("Another text, of as many tokens")
    assert text.input_value() == python.data["text"] == "a cat\n saw é cat"
    other = "a cot\n sew é cat"  # tokens 5 and 9 of the padded text
    text.fill(other)
    first.get_by_label("What of it").select_option("the stream before its layer")
    first.get_by_label("At which token").select_option("key")
    first.get_by_role("button", name="Put in what").click()
    patches = [(1, "stream", 10)]
    assert abs(caused(first, python, 14, patches=patches, other=other)["delta"]) > 0.01
    undo = first.locator(".qx-changes button")
    assert undo.inner_text().startswith("put in the stream before layer 1 at 10 “")
    first.get_by_label("What of it").select_option("what this head says")
    first.get_by_label("At which token").select_option("query")
    first.get_by_role("button", name="Put in what").focus()
    lab.keyboard.press("Enter")
    patches.append((1, 4, 14))
    caused(first, python, 14, patches=patches, other=other)
    assert undo.nth(1).inner_text().startswith("put in 1·4 at 14 “")
    first.get_by_label("What of it").select_option("what its layer's MLP says")
    first.get_by_role("button", name="Put in what").click()
    patches.append((1, "mlp", 14))
    caused(first, python, 14, patches=patches, other=other)
    text.fill("a cat")
    text.press("Tab")  # all of them are taken from the new text
    told = "the other text has 5 tokens and this one 17: change words for words of as many tokens"
    refused = first.locator(".qx-cause .qx-notice")
    eventually(refused.inner_text, f"Not put in: {told}")
    assert "5 of 17 tokens" in first.locator(".qx-cause").inner_text()
    caused(first, python, 14, patches=patches, other=other)  # what was asked before stays
    first.get_by_role("button", name="Put in what").click()
    eventually(refused.inner_text, f"Not put in: {told}")
    assert undo.count() == 3
    third = "a dog\n saw é cat"
    text.fill(third)
    text.press("Tab")
    caused(first, python, 14, patches=patches, other=third)
    found = Axe().run(lab, context=".qx-cause").response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    first.get_by_role("button", name="Undo all").focus()
    lab.keyboard.press("Enter")
    assert caused(first, python, 14)["delta"] == 0 and undo.count() == 0
    text.fill("a cat\n saw é cut")
    twice = """(put) => { const part = put.parentNode.querySelector("select");
        for (const what of ["head", "mlp"]) part.value = what, put.click(); }"""
    first.get_by_role("button", name="Put in what").evaluate(twice)  # before the kernel answers
    eventually(undo.count, 2)
    first.get_by_role("button", name="Undo all").click()
    eventually(undo.count, 0)


def test_another_text_by_mouse_and_by_keyboard(jupyterlab, new_page):
    """The text is edited in the widget, and the model reads it: all is drawn anew."""
    page, names = new_page(), {}
    exec(SETUP, names)
    twin = names["explorer"]
    open_notebook(page, *jupyterlab, "edit.ipynb", [f"{SETUP}explorer"])
    run_cell(page)
    page.wait_for_selector(".qx-heads [role=option]")

    def agrees(text):
        twin.read(text)
        title = page.locator(".qx header p")
        eventually(title.inner_text, twin.data["title"])
        words = [label["text"] for label in twin.data["tokens"]]
        assert page.locator(".qx-text [role=option]").all_inner_texts() == words
        opens = twin.data["opens"]
        eventually(lambda: selected(page), [opens["layer"], opens["head"]])
        r, at = twin.recording, [opens[name] for name in ("layer", "head", "query", "key")]
        weight = float(record.from_bytes(r.maps[tuple(at)]))
        eventually(lambda: readout(page).split(" ")[-1], digits(weight))

    edit, box = page.get_by_role("button", name="Edit the text"), page.get_by_label("Text to read")
    assert not box.is_visible()
    edit.click()
    assert box.input_value() == twin.data["text"] == "a cat\n saw é cat"
    box.fill("a dog saw a dog")
    page.get_by_role("button", name="Read it").click()
    agrees("a dog saw a dog")
    page.get_by_role("tab", name="Causes").click()  # asks about the new text
    head(page, 0, 1).focus()
    page.keyboard.press("o")
    changes = twin.changed(twin.query, off=[(0, 1)])["delta"]
    told = f"changes by {'−' if changes < 0 else '+'}{abs(changes):.2f}"
    page.locator(".qx-large .qx-told").get_by_text(told).wait_for()
    edit.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("the end")
    page.keyboard.press("Control+Enter")
    agrees("the end")
    assert edit.evaluate("b => b === document.activeElement")
    edit.click()
    for text, told in [("x" * 600, "the text has 600 tokens"), ("", "the text is empty")]:
        box.fill(text)
        box.press("Control+Enter")
        page.locator(".qx-notice").get_by_text(told).wait_for()
        page.get_by_role("button", name="Cancel").click()
        eventually(page.locator(".qx-notice").first.inner_text, "")  # it was about that text
        edit.click()
    found = Axe().run(page, context=".qx").response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    box.press("Escape")
    assert not box.is_visible()
    agrees("the end")  # it is still there
    assert page.errors == page.strayed == []


def test_a_page_keeps_its_view_in_its_address(new_page, disk, python):
    page = new_page(disk.url.split("#")[0])
    head(page, 1, 4).click()
    token(page, 14).click()
    head(page, 1, 4).focus()
    for key in ("p", "ArrowRight", "p"):  # two heads stay
        page.keyboard.press(key)
    head(page, 2, 1).focus()
    page.keyboard.press("Enter")
    page.get_by_label("Minus", exact=True).select_option("layer 1, head 5")
    page.get_by_label("Weights", exact=True).select_option("value")
    page.get_by_label("Colours", exact=True).select_option("cividis")
    page.get_by_role("button", name="Mark").click()
    page.get_by_label("Heads by").select_option("entropy")
    page.get_by_label("Keep heads that score").fill("400")
    page.get_by_role("tab", name="Logit lens").click()
    page.get_by_label("is seen by").check()
    page.locator(".qx-maps canvas").first.focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowDown")
    eventually(lambda: "query=15" in page.url and "zoom=2" in page.url, True)
    shown = """() => [".qx-readout", ".qx-tops", ".qx-maps"].map((place) =>
        document.querySelector(place).innerText)"""
    expected = page.evaluate(shown)
    assert "Layer 2, head 1 − layer 1, head 5" in expected[2]
    assert all(f"Layer 1, head {at}, kept" in expected[2] for at in (4, 5))
    assert ", difference " in expected[0]
    again = new_page(page.url)
    eventually(lambda: again.evaluate(shown), expected)
    assert again.get_by_label("Heads by").input_value() == "entropy"
    assert again.get_by_role("tab", selected=True).inner_text() == "Logit lens"
    assert again.locator(".qx-grid canvas").is_visible()
    kept = [one.locator(".qx-filter output").inner_text() for one in (page, again)]
    assert kept[0] == kept[1] and "18 of 18" not in kept[0]
    slider = again.get_by_label("Keep heads that score")
    assert slider.input_value() == "400"
    slider.press("Home")
    assert again.get_by_label("Colours", exact=True).input_value() == "cividis"
    assert again.get_by_label("is seen by").is_checked()
    assert again.get_by_label("Minus", exact=True).input_value() == "1.5"
    assert flagged(again, "marked") == [(2, 1)] and flagged(again, "pinned") == [(1, 4), (1, 5)]
    drawn = "canvases => canvases.map((canvas) => canvas.getAttribute('aria-label'))"
    maps = [one.locator(".qx-maps canvas").evaluate_all(drawn) for one in (page, again)]
    assert maps[0] == maps[1]
    again.evaluate("location.hash = 'layer=0&head=5&query=20&zoom=1&head=no&view=odd'")
    eventually(lambda: readout(again).startswith("Query 20 "), True)
    assert again.get_by_role("heading", name="Layer 0, head 5").is_visible()
    odd = "layer=99&head=x&pinned=7&minus=7.1&marked=7.1+x&sort=<b>&tab=causes&keep=1e9"
    wrong = new_page(f"{disk.url.split('#')[0]}#{odd}")
    eventually(lambda: selected(wrong), [python.layer, python.head])
    assert (
        wrong.get_by_role("tab", selected=True).inner_text() == "Generation"
    )  # no model, no causes
    worse = new_page(f"{disk.url.split('#')[0]}#sort=entropy&tab=%00&keep=half")
    eventually(lambda: worse.locator(".qx-filter output").inner_text()[-8:], "18 of 18")
    assert worse.get_by_role("tab", selected=True).inner_text() == "Generation"
    assert worse.errors == wrong.errors == again.errors == page.errors == []


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_a_button_saves_what_is_seen_as_a_page(lab, new_page, tmp_path, by):
    head(lab, 1, 3).click()
    token(lab, 14).click()
    canvas, at = point(lab, 14, 9)
    canvas.click(position=at)
    expected = readout(lab)
    save = lab.locator(".jp-CodeCell").first.get_by_role("button", name="Save as a page")
    with lab.expect_download() as coming:
        if by == "mouse":
            save.click()
        else:
            save.focus()
            lab.keyboard.press("Enter")
    path = tmp_path / coming.value.suggested_filename
    coming.value.save_as(path)
    assert path.name == "attention.html"
    lab.locator(".qx-notice").first.get_by_text("attention.html is saved, 0.2 MB").wait_for()
    page = new_page(path.as_uri())
    page.wait_for_selector(".qx-maps canvas[aria-label]")
    eventually(lambda: readout(page), expected)
    assert page.get_by_role("button", name="Save as a page").count() == 0
    assert page.errors == page.strayed == []


@pytest.fixture
def pair(request, lab):
    """The two explorers that a cell shows, its number by `parametrize`; gone afterwards."""
    lab.evaluate(f"jupyterapp.shell.currentWidget.content.activeCellIndex = {request.param}")
    lab.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
    shown = lab.locator(".jp-CodeCell").nth(request.param).locator(".qx")
    for i in range(2):
        shown.nth(i).locator(".qx-maps canvas[aria-label]").first.wait_for()
    yield shown.nth(0), shown.nth(1)
    lab.evaluate("jupyterapp.commands.execute('notebook:clear-cell-output')")
    shown.first.wait_for(state="detached")


@pytest.mark.parametrize("pair", [3], indirect=True)
def test_two_explorers_stand_side_by_side(lab, pair):
    left, right = pair
    boxes = [one.bounding_box() for one in (left, right)]
    assert all(box["width"] >= 320 for box in boxes), boxes
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] and boxes[0]["y"] == boxes[1]["y"]
    right.locator("[data-layer='2'][data-head='3']").click()  # and they choose together
    for one in (right, left):
        one.get_by_role("heading", name="Layer 2, head 3").wait_for()
    left.locator("[data-layer='1'][data-head='1']").focus()
    lab.keyboard.press("Enter")
    for one in (left, right):
        one.get_by_role("heading", name="Layer 1, head 1").wait_for()
    token(left, 4).click()  # the other text has no fifth token
    eventually(lambda: left.locator(".qx-readout").inner_text()[:7], "Query 4")
    assert not right.locator(".qx-readout").inner_text().startswith("Query 4")
    token(left, 1).click()
    for one in (left, right):
        eventually(lambda one=one: one.locator(".qx-readout").inner_text()[:7], "Query 1")


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
@pytest.mark.parametrize("pair", [3, 4], indirect=True, ids=["shorter", "as long"])
def test_a_key_is_chosen_in_both(lab, pair, by):
    """As far as the other text has that place, whichever of the two it is chosen in."""
    left, right = pair
    size = right.locator(".qx-text [role=option]").count()
    assert size in (3, 5)
    left.locator("[data-layer='1'][data-head='2']").click()

    def choose(one, query, key):
        count = one.locator(".qx-text [role=option]").count()
        canvas = one.locator(".qx-maps canvas").first
        canvas.scroll_into_view_if_needed()
        edge = gutter(canvas)
        each = (canvas.bounding_box()["width"] - edge) / count
        if by == "mouse":
            spot = {"x": edge + (key + 0.5) * each, "y": edge + (query + 0.5) * each}
            canvas.click(position=spot)
        else:
            token(one, query).click()
            for press in ("Home", *["ArrowRight"] * key):
                canvas.press(press)
        one.get_by_role("tab").first.hover()

    def at(one):
        told = one.locator(".qx-readout").inner_text()
        return [int(n) for n in re.match(r"Query (\d+) .*?, key (\d+) ", told).groups()]

    for one, query, key in [(left, 2, 0), (right, 2, 1), (left, 1, 1), (right, 1, 0), (left, 2, 0)]:
        choose(one, query, key)
        for each in (left, right):
            eventually(lambda each=each: at(each), [query, key])
    choose(left, 4, 3)
    eventually(lambda: at(left), [4, 3])
    if size == 5:
        eventually(lambda: at(right), [4, 3])
    else:
        assert at(right)[0] == 2  # it has no such places
        assert by == "keyboard" or at(right)[1] == 0
    token(left, 1).click()  # then each begins at its own strongest key
    for one in (left, right):
        eventually(lambda one=one: at(one)[0], 1)
        bars = one.locator(".qx-tops .qx-bars").first.locator("li span").first
        eventually(lambda one=one, bars=bars: int(bars.inner_text().split()[0]) - at(one)[1], 0)


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
@pytest.mark.parametrize("pair", [4], indirect=True)
def test_one_map_minus_the_one_beside_it(lab, python, pair, by):
    left, right = pair
    twins = [
        viz.attention_explorer(python.model, python.tokenizer, text) for text in ("a cat", "a dog")
    ]

    def agrees(one, query, key, view="raw"):
        maps = [
            record.weigh(record.from_bytes(t.recording.maps), view, 0, t.recording.norms)[1, 2]
            for t in (twins if one is left else twins[::-1])
        ]
        this, less = (float(each[query, key]) for each in maps)
        told = difference(this, less)
        canvas = one.locator(".qx-maps canvas").first
        canvas.scroll_into_view_if_needed()
        edge = gutter(canvas)
        each = (canvas.bounding_box()["width"] - edge) / 5
        spot = {"x": edge + (key + 0.5) * each, "y": edge + (query + 0.5) * each}
        canvas.click(position=spot)
        eventually(lambda: told in one.locator(".qx-readout").inner_text(), True)

    left.locator("[data-layer='1'][data-head='2']").click()
    for one, side in ((left, "right"), (right, "left")):
        minus, title = one.get_by_label("Minus", exact=True), one.locator(".qx-maps h3").first
        eventually(title.inner_text, "Layer 1, head 2")
        if by == "mouse":
            minus.select_option("beside")
        else:
            minus.focus()
            lab.keyboard.press("ArrowDown")
        eventually(title.inner_text, f"Layer 1, head 2 − the {side} explorer")
        agrees(one, 4, 2)
        one.get_by_label("Weights", exact=True).select_option("value")
        agrees(one, 3, 1, "value")
        agrees(one, 4, 3, "value")
        one.get_by_label("Weights", exact=True).select_option("raw")
    canvas, tip = left.locator(".qx-maps canvas").first, left.locator(".qx-tip:visible")
    box = canvas.bounding_box()
    canvas.hover(position={"x": 0.48 * box["width"], "y": 0.95 * box["height"]})
    inside = """tip => {
        const [one, all] = [tip, tip.parentNode].map((e) => e.getBoundingClientRect());
        return all.left <= one.left + 1 && one.right <= all.right + 1 }"""
    assert tip.evaluate(inside)  # it does not cover the other explorer
    found = Axe().run(lab, context=".jp-CodeCell .jp-Cell-outputArea .widget-hbox").response
    assert [v["id"] for v in found["violations"]] == []  # each of the two has its own name

    def read(text):
        right.get_by_role("button", name="Edit the text").click()
        right.get_by_label("Text to read").fill(text)
        right.get_by_label("Text to read").press("Control+Enter")
        twins[1].read(text)
        eventually(lambda: right.locator("header p").inner_text(), twins[1].data["title"])

    notice, title = left.locator(".qx-large .qx-notice"), left.locator(".qx-maps h3").first
    read("a cat sat")  # of another length: it says so, and draws what it has
    why = "No difference can be drawn: 5 tokens on the left, 9 on the right."
    eventually(notice.inner_text, why)
    eventually(lambda: "−" in title.inner_text(), False)
    read("b pig")
    eventually(notice.inner_text, "")
    left.locator("[data-layer='1'][data-head='2']").click()
    agrees(left, 4, 2)


def test_python_and_browser_choose_together(lab):
    head(lab, 1, 4).click()
    token(lab, 9).click()
    chosen = lab.folder / "chosen.txt"
    eventually(lambda: chosen.exists() and chosen.read_text(), "1 4 9")
    lab.locator(".jp-CodeCell .jp-InputPrompt").nth(1).click()
    run_cell(lab)
    eventually(lambda: selected(lab), [2, 1])
    eventually(lambda: re.match(r"Query \d+", readout(lab))[0], "Query 5")


def test_the_notebook_does_not_take_the_keys(lab):
    cells = lab.locator(".jp-CodeCell")
    before = cells.count()
    for place in (head(lab, 0, 0), token(lab, 3), lab.locator(".qx-maps canvas").first):
        place.click()
        for key in ("a", "b", "Enter", "ArrowDown"):  # in command mode "a" and "b" add cells
            lab.keyboard.press(key)
    assert cells.count() == before
    assert lab.locator(".jp-Notebook.jp-mod-commandMode").count() == 1


def test_a_kernel_that_does_not_answer_is_said(lab):
    lab.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 2")
    # It shows a second explorer, and is busy then: without "void" this would wait for its end.
    lab.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
    cell = lab.locator(".jp-CodeCell").nth(2)
    second = cell.locator(".qx")
    second.wait_for()
    second.locator("[data-layer='2'][data-head='0']").click()
    notice = second.locator(".qx-notice:not(.qx-why)")
    notice.get_by_text("Waiting for the kernel: it is busy").wait_for()
    (lab.folder / "go on").touch()
    second.get_by_role("heading", name="Layer 2, head 0").wait_for()
    eventually(notice.inner_text, "")


def test_nothing_went_wrong_and_nothing_left_the_machine(lab, disk):
    for page in (lab, disk):
        assert page.errors == [] and page.strayed == []
