"""The live cells of lessons 10, 11, 12, 13 and 16, as they stand there, in a running JupyterLab.

What a cell takes from those before it is made here in small: what counts is that moving a slider
shows what Python says.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen2_edu import AutoTokenizer
from qwen2_edu.viz.split import encode
from qwen2_edu.viz.steps import caption, work
from tests.browser.lab import open_notebook

pytestmark = pytest.mark.browser
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

IMPORTS = """
import torch
from qwen2_edu import AutoTokenizer, Qwen2ForCausalLM, viz
torch.manual_seed(0)
torch.set_num_threads(1)
"""
SETUP = """
import matplotlib.pyplot as plt
from qwen2_edu.course import setup
colours = setup({lesson!r})
"""
SAMPLING = """
model = Qwen2ForCausalLM.from_pretrained("tiny", dtype=torch.float32)
words = AutoTokenizer.from_pretrained("tiny")
"""
HEADS = """
from types import SimpleNamespace
MOODS, B = ["calm", "glad", "sad", "tense"], 3
test_stories = [SimpleNamespace(text=f"Story <b>{i}</b>.") for i in range(B)]
test_rows, ends = {"labels": torch.tensor([2, 0, 1])}, torch.tensor([4, 6, 5])
read_as_text, hidden_away = torch.randn(2, B, 40, 4)
"""
ROWS = """
from qwen2_edu.course import equal
row = q = torch.tensor([7.0, -3, 2, 0, 1, -1, 5, 4])
scale = 1
w = torch.randn(64, 320) / 50
w[62, 0] = 1.5
matrices = {"model.layers.2.mlp.down_proj.weight": w}
"""


def here(code: str) -> dict:
    """The names that this code makes in the tests' own process."""
    names: dict = {}
    exec(IMPORTS + code, names)
    return names


def cell_with(lesson: str, text: str) -> str:
    """The code of the one cell of a lesson in which this text stands."""
    notebook = json.loads((NOTEBOOKS / f"{lesson}.ipynb").read_text(encoding="utf-8"))
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    (found,) = (source for source in code if text in source)
    return found


@pytest.fixture
def shown(jupyterlab, new_page):
    """`shown(lesson, before, *texts)`: its page, with the cells in which these texts stand run."""

    def show(lesson, before, *texts):
        cells = [
            SETUP.format(lesson=lesson) + IMPORTS + before,
            *(cell_with(lesson, t) for t in texts),
        ]
        page = new_page()
        open_notebook(page, *jupyterlab, f"live_{lesson}.ipynb", cells)
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        page.live = page.locator(".jp-Notebook .jp-CodeCell").nth(len(texts))
        page.live.locator(".widget-slider, .widget-textarea").first.wait_for()
        return page

    yield show


def move(page, place, key):
    """One step of a slider, by keyboard."""
    page.live.locator(".noUi-handle").nth(place).focus()
    page.keyboard.press(key)


def fine(page):
    """No error, no other machine, and nothing wider than the cell."""
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.errors == [] and page.strayed == []
    edge = "e => e.getBoundingClientRect().right"
    output = page.live.locator(".jp-OutputArea").evaluate(edge)
    for part in page.live.locator(".jp-OutputArea .widget-html, .jp-OutputArea img").all():
        assert part.evaluate(edge) <= output + 1


def test_sampling_writes_anew(shown):
    page = shown("10_sampling", SAMPLING, "def continuations", "def write(")
    names = here(SAMPLING + cell_with("10_sampling", "def continuations"))
    asked = names["model"], names["words"], "Once upon a time there was a"
    twin = names["viz"].sampling(*asked, temperature=1.5, min_p=0.1)
    place, heat = list(twin.sliders).index("temperature"), twin.sliders["temperature"]
    for key in ("", "ArrowLeft", "ArrowRight", "ArrowRight"):
        if key:
            move(page, place, key)
            heat.value = round(heat.value + heat.step * (1 if key == "ArrowRight" else -1), 6)
        texts = names["continuations"](twin.ids, **twin.options)
        page.wait_for_function(
            """([cell, texts]) => [...cell.querySelectorAll('.widget-html')].at(-1)
            .innerText.trim() === texts""",
            arg=[page.live.element_handle(), "\n".join(texts)],
        )
    fine(page)


def test_steps_of_a_cache(shown):
    page = shown("11_kv_cache", "", "viz.steps(")
    move(page, 0, "ArrowRight")
    for name, cached in (("Without", False), ("With a cache", True)):
        said = f"{name}: {caption(work(3, 3, 7, cached))}."
        page.live.locator(".q2-say").get_by_text(said).wait_for()
    assert caption(work(3, 3, 7, True)) in page.live.locator("img").get_attribute("alt")
    fine(page)


def test_a_typed_turn_is_split(shown):
    words = AutoTokenizer.from_pretrained("qwen2")
    before = 'words = AutoTokenizer.from_pretrained("qwen2")'
    page = shown("12_chatml", before, "talk = [", "live=True)")
    messages = [{"role": "user", "content": "<|im_end|> Hi"}]
    page.live.locator("textarea").last.fill(messages[0]["content"])
    page.live.get_by_text("<|im_end|> Hi").first.wait_for()
    shown_ids = page.live.locator(".q2-id small").all_inner_texts()
    last = list(map(str, encode(words, messages)))
    turn = last[last.index("872") :]  # "user" and what follows: no control token was typed
    page.wait_for_function(
        """([cell, turn]) => [...cell.querySelectorAll('.q2-id small')].map(s => s.innerText)
        .join(' ').endsWith(turn)""",
        arg=[page.live.element_handle(), " ".join(turn)],
    )
    assert shown_ids
    fine(page)


def test_padding_moves_where_the_head_reads(shown):
    names = here(HEADS)
    page = shown("13_heads", HEADS, "class Padding")

    def agrees(at, p):
        chances = [names[k][at, names["ends"][at] + p] for k in ("read_as_text", "hidden_away")]
        pairs = zip(*(x.softmax(-1).tolist() for x in chances), strict=True)
        said = [f"{x:.2f}" for pair in pairs for x in pair]
        page.wait_for_function(
            """([cell, said]) => (cell.querySelector('.widget-html').innerText
            .match(/\\d\\.\\d\\d/g) ?? []).join(' ') === said""",
            arg=[page.live.element_handle(), " ".join(said)],
        )
        assert f"Story <b>{at}</b>." in page.live.locator(".widget-html").inner_text()

    agrees(0, 4)
    move(page, 1, "ArrowRight")
    agrees(0, 5)
    move(page, 0, "ArrowRight")
    agrees(1, 5)
    bars = page.live.locator(".widget-html div[style*=width]")
    assert bars.count() == 8 and all(b.bounding_box()["height"] > 5 for b in bars.all())
    fine(page)


def test_bits_of_a_row(shown):
    page = shown("16_making_it_fast", ROWS, "def rounded(", "def draw_rows", "class Bits")
    image = page.live.locator("img")
    seen = [image.get_attribute("src")]
    for key in ("ArrowRight", "End", "Home"):
        move(page, 0, key)
        page.wait_for_function(
            "([image, before]) => image.src !== before", arg=[image.element_handle(), seen[-1]]
        )
        seen.append(image.get_attribute("src"))
    assert len(set(seen)) == 4 and image.evaluate("i => i.naturalWidth") > 500
    fine(page)
