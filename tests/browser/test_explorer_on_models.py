"""The explorer's main path on trained weights: the shipped checkpoint and the released model.

What it shows is compared with what the model itself says, in the same kernel and without the
explorer's code: its attention, its streams, its answer, and its logits with a head cut out by hand.
"""

from __future__ import annotations

import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.browser.lab import open_notebook, run_cell, wait_for_kernel
from tests.browser.test_explorer import digits, eventually, head, readout, selected

pytestmark = pytest.mark.browser
NAMES = ["tiny", pytest.param("released", marks=pytest.mark.released)]
TEXT = (
    "Rosa has a blue flag. Ben has a green box.\n"
    "Question: What colour is the flag?\nAnswer: The flag is"
)
SHOW = f"""
import json, torch
from pathlib import Path
from qwen2_edu import AutoModelForCausalLM, AutoTokenizer
from qwen2_edu.viz import attention_explorer

torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(NAME, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(NAME)
text, options = {TEXT!r}, {{"max_new_tokens": 3, "do_sample": False, "repetition_penalty": 1.0}}
explorer = attention_explorer(model, tokenizer, text, **options)
explorer
"""
ASK = """
prompt = tokenizer(text, return_tensors="pt").input_ids
last = prompt.shape[1] - 1
ids = model.generate(prompt, **options)  # (1, T)
key = [tokenizer.decode([i]).strip() for i in ids[0].tolist()].index("blue")
with torch.no_grad():
    out = model(ids, output_attentions=True, output_hidden_states=True)
    maps = torch.cat(out.attentions)  # (layers, H, T, T)
    looks = maps[:, :, last, key]
    layer, head = divmod(int(looks.argmax()), looks.shape[1])
    row, middle = maps[layer, head, last], len(maps) // 2
    stream = out.hidden_states[middle + 1][0, last]
    lens = model.lm_head(model.model.norm(stream)).softmax(-1)
    says = out.logits[0].softmax(-1)
    block, D = model.model.layers[layer].self_attn, model.config.head_dim
    part, kept = block.o_proj, []
    hook = block.v_proj.register_forward_hook(lambda *call: kept.append(call[2][0]))
    model(ids)
    hook.remove()
    group = head * model.config.num_key_value_heads // looks.shape[1]
    values = kept[0].view(len(row), -1, D)[:, group]
    added = row * (values @ part.weight[:, head * D : (head + 1) * D].T).norm(dim=-1)

    def silence(_, inputs):
        inputs[0][..., head * D : (head + 1) * D] = 0

    hook = part.register_forward_pre_hook(silence)
    without = model(ids).logits[0]
    hook.remove()
    names = [tokenizer.decode([i]) for i in (lens.argmax(), *ids[0, last + 1 :])]
Path(NAME + ".json").write_text(json.dumps({
    "T": ids.shape[1], "last": last, "key": key, "layer": layer, "head": head, "middle": middle,
    "shape": list(maps.shape[:2]), "names": names, "look": float(looks.max()),
    "rest": float(row[key] / (1 - row[0])), "value": float(added[key] / added.sum()),
    "lens": float(lens.max()),
    "says": [float(says[at, ids[0, at + 1]]) for at in (last, last + 1)],
    "delta": float((without - out.logits[0])[last, ids[0, last + 1]]),
}))
explorer.to_html(NAME + ".html", lens=0)
"""


@pytest.fixture(scope="module", params=NAMES)
def opened(request, jupyterlab, new_page):
    """A notebook that shows the explorer of a model, what the model says, and the folder."""
    page, (address, folder), name = new_page(), jupyterlab, request.param
    cells = [f"NAME = {name!r}{SHOW}", ASK]
    open_notebook(page, address, folder, f"{name}.ipynb", cells)
    run_cell(page)
    page.wait_for_selector(".qx-heads [role=option]")
    run_cell(page)
    eventually((folder / f"{name}.html").exists, True)
    wait_for_kernel(page)
    yield page, json.loads((folder / f"{name}.json").read_text()), folder / f"{name}.html"
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")


def choose(page, by, one):
    """A head or a button."""
    if by == "mouse":
        one.click()
    else:
        one.focus()
        page.keyboard.press("Enter")


def seen(text):
    """A token as it is shown."""
    return text.replace(" ", "·").replace("\n", "↵")


def near_one(p):
    """A probability; above 0.99 with as many digits as its distance to 1 needs."""
    p = round(p, 5)
    if p <= 0.99:
        return digits(max(p, 1e-9))
    rest = 1 - p
    return (
        ">0.9999" if p == 1 else f"{p:.{next(n for n in range(2, 6) if 10**-n <= rest + 1e-12)}f}"
    )


def near(told, weight, within=0.004):
    """Weights travel as bytes of their roots."""
    return abs(float(told) - weight) <= within


@pytest.mark.parametrize(("by", "theme"), [("mouse", "light"), ("keyboard", "dark")])
def test_which_head_finds_the_word_and_what_is_lost_without_it(opened, by, theme):
    page, model, _ = opened
    layers, heads = model["shape"]
    name = f"JupyterLab {theme.title()}"
    page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: '{name}'}})")
    page.wait_for_selector(f"body[data-jp-theme-name='{name}']", state="attached")
    title = page.locator(".qx header p").inner_text()
    assert title.startswith(f"{model['last'] + 1} + 3 generated tokens, {layers} layers of {heads}")

    page.get_by_role("tab", name="Generation").click()
    told, on = page.locator(".qx-step"), page.get_by_label("Step on")
    page.get_by_label("Step of generation").focus()
    page.keyboard.press("Home")
    for step in (0, 1):
        came = f" came “{seen(model['names'][step + 1])}”, "
        came += f"probability {near_one(model['says'][step])}"
        eventually(lambda n=step + 1: told.inner_text().startswith(f"Step {n} of 3"), True)
        assert told.inner_text().endswith(came)
        choose(page, by, on if step == 0 else page.get_by_label("Step back"))

    canvas = page.locator(".qx-maps canvas").first
    canvas.focus()
    for key in ("Home", *["ArrowRight"] * model["key"]):
        page.keyboard.press(key)
    cell = f"Query {model['last']} “·is”, key {model['key']} “·blue”: "
    eventually(lambda: readout(page).startswith(cell), True)
    page.get_by_label("Heads by").select_option("cell")
    best = page.locator(".qx-ranking [role=option]").first
    place = [model["layer"], model["head"]]
    found = best.locator("small")
    eventually(lambda: found.inner_text().split("\n")[0], f"{place[0]}·{place[1]}")
    assert near(found.inner_text().split("\n")[1], model["look"], 0.009)  # of two digits
    choose(page, by, best)
    eventually(lambda: selected(page), place)
    page.get_by_role("heading", name=f"Layer {place[0]}, head {place[1]}").wait_for()
    for view in ("rest", "value", "look"):
        page.get_by_label("Weights", exact=True).select_option(view.replace("look", "raw"))
        eventually(lambda v=view: near(readout(page).split(" ")[-1], model[v]), True)

    page.get_by_role("tab", name="Logit lens").click()
    lens, gap = page.locator(".qx-lens"), model["middle"] - place[0]
    for _ in range(abs(gap)):
        lens.locator("canvas").press("ArrowDown" if gap > 0 else "ArrowUp")
    lens.locator("h3").get_by_text(f"read off after layer {model['middle']}").wait_for()
    likeliest = lens.locator(".qx-bars li").first
    eventually(likeliest.locator("b").inner_text, near_one(model["lens"]))
    assert likeliest.locator("span").inner_text() == f"“{seen(model['names'][0])}”"
    choose(page, by, best)
    eventually(lambda: selected(page), place)

    page.get_by_role("tab", name="Causes").click()
    choose(page, by, page.get_by_role("button", name="Switch off this head"))
    loss = f"changes by {'−' if model['delta'] < 0 else '+'}{abs(model['delta']):.2f}"
    eventually(lambda: loss in page.locator(".qx-cause .qx-told").inner_text(), True)
    choose(page, by, page.get_by_role("button", name="Undo all"))

    found = Axe().run(page, context=".qx").response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    assert page.errors == page.strayed == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_its_page_opens_as_its_address_says(opened, new_page, theme):
    (_, model, path), page = opened, new_page()
    page.emulate_media(color_scheme=theme)
    view = f"layer={model['layer']}&head={model['head']}&query={model['last']}&key={model['key']}"
    page.goto(f"{path.as_uri()}#{view}")
    page.wait_for_selector(".qx-heads [role=option]")
    eventually(lambda: selected(page), [model["layer"], model["head"]])
    eventually(lambda: near(readout(page).split(" ")[-1], model["look"]), True)
    told = page.locator(".qx-step")
    assert told.inner_text().startswith(f"Step 1 of 3: after token {model['last']} ")
    page.locator(".qx-text [role=option]").nth(2).click()  # no step read it
    eventually(lambda: told.inner_text().startswith("Token 2 “"), True)
    assert told.inner_text().endswith("is part of the prompt")
    assert page.locator(".qx-steps .qx-bars li").count() == 0
    assert page.locator(".qx-text .qx-unwritten").count() == 0
    page.get_by_label("Step on").click()
    eventually(lambda: told.inner_text().startswith("Step 1 of 3"), True)
    page.get_by_label("Heads by").select_option("layer")
    head(page, 1, 2).click()
    eventually(lambda: selected(page), [1, 2])
    page.get_by_label("Weights", exact=True).select_option("value")
    hash_of = lambda: page.evaluate("location.hash")  # noqa: E731
    eventually(lambda: re.findall(r"head=\d+|view=\w+", hash_of()), ["head=2", "view=value"])
    again, expected = new_page(f"{path.as_uri()}{hash_of()}"), readout(page)
    eventually(lambda: readout(again), expected)
    assert selected(again) == [1, 2] and "share by value" in expected
    page.evaluate("location.hash = 'tab=causes'")  # no page can ask a model
    eventually(page.locator("[role=tab][aria-selected=true]").all_inner_texts, ["Generation"])
    found = Axe().run(page, context=".qx").response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    assert page.errors == page.strayed == again.errors == []
