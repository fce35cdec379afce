"""The companions in JupyterLab: the page shows what Python says, by mouse and by keyboard."""

from __future__ import annotations

import html
import re
from io import BytesIO

import pytest
from axe_playwright_python.sync_playwright import Axe
from matplotlib.image import imread

from tests.browser.lab import open_notebook

pytestmark = pytest.mark.browser

# Runs here and in the notebook: two kernels with the same model.
SETUP = """
import torch
from qwen2_edu import ChatSession, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from qwen2_edu.viz.chat import chat, seen, transcript
from qwen2_edu.viz.masks import masks, picture
from qwen2_edu.viz.sampling import sampling
from qwen2_edu.viz.tokens import tokens

torch.manual_seed(0)
torch.set_num_threads(1)
tokenizer = Qwen2Tokenizer(
    {bytes([b]): b for b in range(256)},
    added_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    chat_template="{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>\\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}",
)
sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "vocab_size": 300}
window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
config = Qwen2Config(**sizes, num_attention_heads=6, num_key_value_heads=2, **window)
model = Qwen2ForCausalLM(config).eval()
with torch.no_grad():  # speaks letters mostly
    model.lm_head.weight *= 5
    model.lm_head.weight[97:123] *= 6
"""
TEXT = "Hi <b>there</b>\n你 🦜 مرحبا <|im_end|>"
TYPED = "a <|im_end|> and <b>bold</b>"
CELLS = [
    SETUP,
    f"tokens(tokenizer, {TEXT!r})",
    "tokens(tokenizer, 'Hi', live=True)",
    "sampling(model, tokenizer, 'hello', temperature=0.9, top_k=6)",
    "masks(config, 9, layer=1, padding=1)",
    "chat(model, tokenizer, do_sample=False, max_new_tokens=12)",
    f"tokens(tokenizer, {TEXT!r}, model=model)",
]


@pytest.fixture(scope="module")
def python():
    names = {}
    exec(SETUP, names)
    return names


@pytest.fixture(scope="module")
def page(jupyterlab, new_page):
    page = new_page()
    page.set_viewport_size({"width": 1400, "height": 2600})
    open_notebook(page, *jupyterlab, "companions.ipynb", CELLS)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.get_by_text("what the model sees").wait_for()
    return page


def cell(page, number):
    return page.locator(".jp-Notebook .jp-CodeCell").nth(number)


def titles(page_html):
    found = re.findall(r'class="q2-t"[^>]* title="([^"]*)"', page_html)
    return [html.unescape(title) for title in found]


def test_tokens_by_mouse_and_by_keyboard(page, python):
    boxes = cell(page, 1).locator(".q2-t")
    expected = titles(python["tokens"](python["tokenizer"], TEXT).html)
    assert boxes.evaluate_all("boxes => boxes.map(b => b.title)") == expected
    shown = "b => getComputedStyle(b, '::after').content"
    assert boxes.nth(2).evaluate(shown) == "none"
    boxes.nth(2).hover()
    assert boxes.nth(2).evaluate(shown) == f'"{expected[2]}"'
    page.mouse.move(0, 0)
    boxes.nth(0).focus()
    page.keyboard.press("Tab")
    assert boxes.nth(1).evaluate("b => b === document.activeElement")
    assert boxes.nth(1).evaluate(shown) == f'"{expected[1]}"'
    tops = boxes.evaluate_all("boxes => boxes.map(b => b.getBoundingClientRect())")
    line_end = expected.index("id 10, 1 byte: 0A")
    assert tops[line_end + 1]["top"] > tops[line_end]["top"]  # a new line after a newline
    arabic = [i for i, t in enumerate(expected) if "bytes of “م”" in t]
    lefts = [tops[i]["left"] for i in arabic]
    assert lefts == sorted(lefts)  # in the order of the ids, whatever the script


def test_tokens_tell_how_likely_the_model_held_them(page, python):
    """By mouse and by keyboard; the colour is the stronger, the less a token was expected."""
    boxes, ids = cell(page, 6).locator(".q2-t"), python["tokenizer"](TEXT, return_tensors="pt")
    with python["torch"].no_grad():
        logs = python["model"](ids.input_ids).logits[0, :-1].log_softmax(-1)  # (T - 1, V)
    expected = logs.gather(1, ids.input_ids[0, 1:, None])[:, 0].tolist()
    told = [one.split(", ")[-1] for one in boxes.evaluate_all("boxes => boxes.map(b => b.title)")]
    assert told[0] == "given"
    found = [float(one.removeprefix("log-probability ")) for one in told[1:]]
    assert found == pytest.approx(expected, abs=0.006)
    grounds = boxes.evaluate_all("boxes => boxes.map(b => getComputedStyle(b).backgroundColor)")
    parts = [float(re.findall(r"[\d.]+", ground)[-1]) for ground in grounds]  # its opacity
    assert parts[0] == 0 and len(set(parts)) > 5
    dark = sorted(range(1, len(told)), key=lambda i: found[i - 1])
    assert [parts[i] for i in dark] == sorted(parts[1:], reverse=True)
    mean = sum(expected) / len(expected)
    cell(page, 6).get_by_text(f"mean log-probability {mean:.2f}, the stronger").wait_for()
    shown = "b => getComputedStyle(b, '::after').content"
    boxes.nth(3).hover()
    assert boxes.nth(3).evaluate(shown).strip('"').endswith(told[3])
    page.mouse.move(0, 0)
    boxes.nth(3).focus()
    page.keyboard.press("Tab")
    assert boxes.nth(4).evaluate("b => b === document.activeElement")
    assert boxes.nth(4).evaluate(shown).strip('"').endswith(told[4])


def test_live_tokens(page, python):
    live = cell(page, 2)
    live.locator("textarea").fill("Ho!\n")
    live.get_by_title("id 10, 1 byte: 0A").wait_for()
    expected = titles(python["tokens"](python["tokenizer"], "Ho!\n").html)
    assert live.locator(".q2-t").evaluate_all("b => b.map(b => b.title)") == expected
    live.locator("textarea").fill("")
    live.get_by_text("No text yet.").wait_for()


def numbers(text):
    return re.findall(r"\d\.\d{4}|(?<=\s)0(?=\s)", text)


def test_sampling_sliders_and_draws(page, python):
    here = cell(page, 3)
    twin = python["sampling"](
        python["model"], python["tokenizer"], "hello", temperature=0.9, top_k=6
    )
    rows = here.locator(".q2-bars tbody tr")

    def agrees():
        below = repr(twin.static()).splitlines()[16:]
        page.wait_for_function(
            "text => [...document.querySelectorAll('.q2-say')].some(s => s.innerText === text)",
            arg="\n".join(below),
        )
        table = [row.inner_text().replace("\n", "\t") for row in rows.all()]
        said = repr(twin.static()).splitlines()[1:16]
        assert [numbers(f"{row} ") for row in table] == [numbers(f"{row} ") for row in said]
        assert here.locator(".q2-say").inner_text().splitlines() == below

    agrees()
    keys = {"temperature": "ArrowRight", "top_k": "ArrowLeft", "top_p": "ArrowLeft"}
    for i, name in enumerate(twin.sliders):
        if name in keys:
            here.locator(".noUi-handle").nth(i).focus()
            page.keyboard.press(keys[name])
            step = twin.sliders[name].step * (1 if keys[name] == "ArrowRight" else -1)
            twin.sliders[name].value = round(twin.sliders[name].value + step, 6)
            here.get_by_text(f"{name} {twin.sliders[name].value:g}").first.wait_for()
            agrees()
    for _ in range(3):
        twin.draw()
        here.get_by_role("button", name="draw").click()
        here.get_by_text(f"draw {len(twin.drawn)}:").wait_for()
    agrees()
    for name, act in (
        ("append", twin.append),
        ("append", twin.append),
        ("take back", twin.take_back),
    ):
        act()
        here.get_by_role("button", name=name).focus()
        page.keyboard.press("Enter")
        agrees()
    here.locator("textarea").first.fill("")
    here.get_by_role("alert").get_by_text("the text is empty").wait_for()


def test_masks_sliders(page, python):
    here = cell(page, 4)
    alt = "img => img.alt"
    moves = [("cached", 3, "ArrowRight"), ("window", 1, "ArrowLeft"), ("layer", 0, "ArrowLeft")]
    options = {"layer": 1, "padding": 1, "cached": 0, "window": 4}
    for name, place, key in moves:
        here.locator(".noUi-handle").nth(place).focus()
        page.keyboard.press(key)
        options[name] += 1 if key == "ArrowRight" else -1
        given = {k: v for k, v in options.items() if k != "window" or options["layer"] == 1}
        shown = python["picture"](python["config"], 9, **given)
        here.get_by_alt_text(f"{shown.title}. {shown.caption}", exact=True).wait_for()
        assert here.locator("img").evaluate(alt) == f"{shown.title}. {shown.caption}"


def test_a_table_too_wide_can_be_scrolled(page):
    cell(page, 3).locator("textarea").first.fill("hello")
    try:
        page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
        page.set_viewport_size({"width": 600, "height": 2600})
        region = cell(page, 3).get_by_role("region", name="next tokens")
        last = region.get_by_role("columnheader", name="removed by")
        edge = "e => e.getBoundingClientRect().right"
        output = cell(page, 3).locator(".jp-OutputArea").evaluate(edge)
        assert region.evaluate(edge) <= output < last.evaluate(edge)
        region.focus()
        for _ in range(20):
            page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "([last, region]) => last.getBoundingClientRect().right"
            " <= region.getBoundingClientRect().right + 1",
            arg=[last.element_handle(), region.element_handle()],
        )
    finally:
        page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
        page.set_viewport_size({"width": 1400, "height": 2600})


@pytest.mark.parametrize(("theme", "ground", "ink"), [("Dark", 17, 238), ("Light", 255, 0)])
def test_the_picture_follows_the_theme(page, theme, ground, ink):
    name = f"JupyterLab {theme}"
    page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: '{name}'}})")
    page.wait_for_selector(f"body[data-jp-theme-name='{name}']", state="attached")
    image = cell(page, 4).locator("img")
    for _ in range(40):  # JupyterLab may be fading it in
        shades = imread(BytesIO(image.screenshot()))[..., :3].mean(-1) * 255  # (height, width)
        inked = shades.max() if theme == "Dark" else shades.min()
        if abs(shades[0, 0] - ground) < 2 and abs(inked - ink) < 9:
            return
        page.wait_for_timeout(250)
    pytest.fail(f"the picture's ground is {shades[0, 0]:.0f} and its ink {inked:.0f}")


def test_chat(page, python):
    here = cell(page, 5)
    typing = here.get_by_placeholder("Say something")
    here.get_by_text("what the model sees").click()
    typing.fill(TYPED)
    messages = [{"role": "user", "content": TYPED}]
    draft = titles(python["seen"](python["tokenizer"], messages).html)
    here.get_by_title(draft[-1]).first.wait_for()
    assert here.locator(".q2-t").evaluate_all("b => b.map(b => b.title)") == draft
    assert sum(title.endswith("control token") for title in draft) == 3

    session = python["ChatSession"](python["model"], python["tokenizer"], do_sample=False)
    answer = session.send(TYPED, max_new_tokens=12)
    typing.press("Enter")
    here.get_by_text(answer).wait_for()
    assert here.locator(".q2-user").inner_text() == f"user\n{TYPED}"
    assert here.locator(".q2-user b").count() == 1  # its own; what was typed is no markup

    here.get_by_text("settings").click()
    here.get_by_label("max_new_tokens").fill("4000")
    here.get_by_label("max_new_tokens").press("Enter")
    typing.fill("Go on")
    here.get_by_role("button", name="send").click()
    stop = here.get_by_role("button", name="stop")
    page.wait_for_function("() => document.querySelectorAll('.q2-assistant').length === 2")
    stop.click()
    here.locator("button:has-text('send'):enabled").wait_for()
    heard = here.locator(".q2-assistant").last.inner_text().removeprefix("assistant\n")
    assert 0 < len(heard) < 4000 and here.locator(".q2-mark").last.inner_text() == "stopped here"
    assert here.get_by_label("temperature").is_disabled()
    here.get_by_label("max_new_tokens").fill("12")
    here.get_by_label("max_new_tokens").press("Enter")
    again = session.send("Go on", max_new_tokens=12)
    here.get_by_role("button", name="regenerate").click()
    here.get_by_text(again, exact=False).last.wait_for()
    here.locator("button:has-text('send'):enabled").wait_for()
    here.locator(".q2-mark").last.get_by_text("max_new_tokens = 12").wait_for()
    here.get_by_role("button", name="regenerate").click()
    here.get_by_text("The same answer again").wait_for()
    here.locator("button:has-text('look inside'):enabled").focus()  # once the answer is done
    page.keyboard.press("Enter")
    here.get_by_text("just before the first word").wait_for()
    here.locator(".qx-maps canvas").first.wait_for()  # the first of all is hidden at so few heads
    asked = session.messages[:-1]
    options = {"add_generation_prompt": True, "return_dict": False}
    head = python["tokenizer"].apply_chat_template(asked, **options)
    here.locator(f".qx-readout:has-text('Query {len(head) - 1} ')").wait_for()
    here.get_by_role("button", name="clear").click()
    here.locator(".qx").wait_for(state="detached")
    here.get_by_text("Nothing was said yet.").first.wait_for()
    here.get_by_role("button", name="send").click()
    here.get_by_text("Type a message first.").wait_for()


def test_code_in_an_answer_is_code_and_markup_is_letters(new_page, python):
    answer = "```python\nif a < b:\n    c\n```\n<img src=x onerror=document.title='hit'> **so**"
    page = new_page()
    page.set_content(python["transcript"]([{"role": "assistant", "content": answer}], ["cut"]))
    code = page.locator("pre code")
    assert code.inner_text() == "if a < b:\n    c\n"
    assert "monospace" in code.evaluate("e => getComputedStyle(e).fontFamily")
    assert page.locator("img").count() == 0 and page.title() != "hit"
    assert page.locator("strong").inner_text() == "so"
    assert page.locator(".q2-mark").inner_text() == "cut"


@pytest.mark.parametrize("theme", ["color:#000;background:#fff", "color:#fff;background:#111"])
def test_static_pages_in_light_and_dark(new_page, python, theme):
    """In a page of their own, where axe can judge the contrast of every text."""
    names = python
    messages = [{"role": "user", "content": TYPED}, {"role": "assistant", "content": "Yes."}]
    bars = names["sampling"](names["model"], names["tokenizer"], "hello", top_k=6)
    typed = names["tokens"](names["tokenizer"], TEXT)
    pages = (typed, bars.static(), names["seen"](names["tokenizer"], messages))
    page = new_page()
    body = names["transcript"](messages) + "".join(shown.html for shown in pages)
    page.set_content(f'<body style="{theme}"><main>{body}</main></body>')
    assert page.locator(".q2-t").count() > 50 and page.locator(".q2-bars").count() == 1
    assert serious(page, "main") == []


def serious(page, context):
    found = Axe().run(page, context=context).response["violations"]
    return [
        (v["id"], node["html"])
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


def test_nothing_strayed_and_nothing_serious_for_assistive_tools(page):
    for ours in (".q2-tokens", ".q2-end", ".q2-say"):
        assert serious(page, ours) == []
    assert page.errors == [] and page.strayed == []
