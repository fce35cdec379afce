"""The attention explorer: from the call to the first paint, from head to head, and its bytes.

A JupyterLab is started, and a headless Chromium opens a notebook in it, as in the browser tests.
The peers, bertviz and circuitsvis, get the same weights; install them for this script only. What
they write loads its JavaScript from the network, so only the making is timed.

    python benchmarks/explorer.py [--rounds 5] [--json figures.json]
    python benchmarks/explorer.py --only browser --model released --lengths 120
    python benchmarks/explorer.py --only scale      # random maps of the large models' shapes
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from qwen2_edu import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from qwen2_edu.viz import attention_explorer  # noqa: E402
from tests.browser.lab import (  # noqa: E402
    PATIENCE,
    open_notebook,
    run_cell,
    running_chromium,
    running_jupyterlab,
)

SHAPES = [(24, 14, 2), (28, 28, 4), (80, 64, 8)]  # layers, heads, key/value heads: 0.5B, 7B, 72B
LOAD = """
import time, torch
from qwen2_edu import AutoModelForCausalLM, AutoTokenizer
from qwen2_edu.viz import attention_explorer
model = AutoModelForCausalLM.from_pretrained({name!r})
tokenizer = AutoTokenizer.from_pretrained({name!r})
ids = torch.arange(100, 612)[None]
attention_explorer(model, tokenizer, {{"input_ids": ids[:, :8]}}).close()  # the first call warms up
calls = enumerate({lengths})
"""
SHOW = """
number, length = next(calls)
print(f"call {number} at {time.time() * 1000}")
attention_explorer(model, tokenizer, {"input_ids": ids[:, :length]})
"""
# When was the map on the screen? A second frame after it was drawn; the clock is the kernel's.
PAINTED = """(call) => new Promise((resolve) => {
  const look = () => {
    const outputs = [...document.querySelectorAll(".jp-OutputArea")];
    const output = outputs.find((area) => area.textContent.includes(`call ${call} at`));
    const painted = output?.querySelector(".qx-maps canvas[aria-label]");
    if (!painted) return requestAnimationFrame(look);
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(Date.now())));
  };
  look();
})"""
CHOOSE = """([layer, head]) => new Promise((resolve) => {
  const root = [...document.querySelectorAll(".qx")].at(-1);
  const start = performance.now();
  root.querySelector(`[data-layer="${layer}"][data-head="${head}"]`).click();
  const look = () => {
    const told = root.querySelector(".qx-maps canvas").getAttribute("aria-label");
    if (!told.startsWith(`Layer ${layer}, head ${head}`)) return requestAnimationFrame(look);
    requestAnimationFrame(() => resolve(performance.now() - start));
  };
  look();
})"""

# A key on the map or on the chosen head, until another map has been drawn.
PRESS = """async ([place, key]) => {
  const root = [...document.querySelectorAll(".qx")].at(-1);
  const map = root.querySelector(".qx-maps canvas"), before = map.getAttribute("aria-label");
  const heads = root.querySelector(".qx-heads");
  const options = heads.querySelectorAll("[role=option]");
  const chosen = heads.querySelector("[aria-selected=true]") ?? options[0];
  const at = place === "map" ? map : chosen, start = performance.now();
  at.focus();
  at.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  while (map.getAttribute("aria-label") === before && performance.now() - start < 30000) {
    await new Promise(requestAnimationFrame);
  }
  await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 512], help="in tokens")
    parser.add_argument("--only", choices=["sizes", "browser", "peers", "scale"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name, lengths, rounds = arguments.model, arguments.lengths, arguments.rounds
    kinds = {
        "sizes": lambda: sizes(name, lengths),
        "browser": lambda: in_the_browser(name, lengths, rounds),
        "peers": lambda: peers(name, lengths, rounds),
        "scale": lambda: scale(rounds),
    }
    figures = {kind: measure() for kind, measure in kinds.items() if arguments.only in (None, kind)}
    report(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def sizes(name: str, lengths: list[int]) -> dict[int, dict[str, float]]:
    """MB of the page, and of one layer on its way."""
    model, tokenizer = load(name)
    found = {}
    for length in lengths:
        shown = attention_explorer(model, tokenizer, {"input_ids": tokens(length)})
        page = len(shown.to_html().encode())
        found[length] = {"page": page / 1e6, "layer": len(shown.payload(0)) / 1e6}
    return found


@contextmanager
def notebook(*cells: str) -> Iterator[Any]:
    """The page of a notebook of these cells in JupyterLab, of which the first has been run."""
    with (
        tempfile.TemporaryDirectory() as home,
        running_jupyterlab(Path(home)) as running,
        running_chromium() as browser,
    ):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(PATIENCE)
        open_notebook(page, *running, "bench.ipynb", list(cells))
        run_cell(page)
        yield page


def painted(page: Any, call: int) -> float:
    """Milliseconds from what a cell prints, "call 3 at 17…", to the explorer on the screen."""
    end = page.evaluate(PAINTED, call)
    printed = page.locator(".jp-OutputArea-output", has_text=f"call {call} at").inner_text()
    return end - float(re.search(r"at ([\d.]+)", printed)[1])


def in_the_browser(name: str, lengths: list[int], rounds: int) -> dict[int, dict[str, float]]:
    """Milliseconds from the call to the paint, and from a click on a head to its map."""
    calls = [length for length in lengths for _ in range(rounds)]
    paints, first, again = ({length: [] for length in lengths} for _ in range(3))
    with notebook(LOAD.format(name=name, lengths=calls), SHOW) as page:
        for call, length in enumerate(calls):
            page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")
            paints[length].append(painted(page, call))
            # Above 100 heads it opens on a ranking: the grid has them all.
            page.locator(".qx").last.get_by_label("Heads by").select_option("layer")
            first[length].append(page.evaluate(CHOOSE, [3, 1]))  # its layer has to be fetched
            again[length] += [page.evaluate(CHOOSE, [layer, 2]) for layer in (0, 3)]
    kinds = {"call to paint": paints, "head of a new layer": first, "head of a known layer": again}
    return {n: {kind: statistics.median(by[n]) for kind, by in kinds.items()} for n in lengths}


def scale(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds to the first paint of random maps of 120 tokens, and from a key to its map."""
    calls = [shape for shape in SHAPES for _ in range(rounds)]
    load = "import time\nfrom tests.browser.shapes import random_explorer\n"
    show = """number, shape = next(calls)
explorer = random_explorer(*shape, 120)
print(f"call {number} at {time.time() * 1000}")
explorer"""
    found: dict[str, dict[str, list[float]]] = {}
    with notebook(f"{load}calls = enumerate({calls})", show) as page:
        for call, shape in enumerate(calls):
            page.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
            paint = painted(page, call)
            by = found.setdefault("{} layers of {} heads".format(*shape), {})
            by.setdefault("paint", []).append(paint)
            keys = [("map", "ArrowUp"), ("map", "ArrowLeft"), ("head", "ArrowRight")] * 2
            for place, key in keys:
                by.setdefault(f"key on the {place}", []).append(page.evaluate(PRESS, [place, key]))
                page.wait_for_timeout(300)
            page.locator(".qx").last.get_by_label("Heads by").select_option("layer")
            page.wait_for_timeout(1000)
            for key in ("ArrowDown", "ArrowRight") * 2:
                by.setdefault("key in the grid", []).append(page.evaluate(PRESS, ["head", key]))
                page.wait_for_timeout(300)
    return {
        shape: {kind: statistics.median(times) for kind, times in by.items()}
        for shape, by in found.items()
    }


def peers(name: str, lengths: list[int], rounds: int) -> dict[str, dict[int, list[float]]]:
    """Milliseconds to make what is shown, and its MB: ours as a page, the peers' as HTML."""
    model, tokenizer = load(name)
    found: dict[str, dict[int, list[float]]] = {}
    for length in lengths:
        for maker, make in makers(model, tokenizer, tokens(length)).items():
            found.setdefault(maker, {})[length] = [timed(make, rounds), len(make().encode()) / 1e6]
    return found


def makers(model, tokenizer, ids: torch.Tensor) -> dict[str, Callable[[], str]]:
    """Each tool that is installed, as a function that answers HTML."""
    with torch.no_grad():
        maps = model(ids, output_attentions=True).attentions  # each (1, H, T, T)
    texts = tokenizer.convert_ids_to_tokens(ids[0])
    found = {
        "qwen2_edu": lambda: attention_explorer(model, tokenizer, {"input_ids": ids}).to_html()
    }
    if importlib.util.find_spec("bertviz"):
        from bertviz import model_view

        found["bertviz model_view"] = lambda: model_view(maps, texts, html_action="return").data
    if importlib.util.find_spec("circuitsvis"):
        from circuitsvis.attention import attention_patterns

        found["circuitsvis, one layer"] = lambda: str(attention_patterns(texts, maps[0][0]))
    return found


def timed(make: Callable[[], str], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        make()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def load(name: str) -> tuple:
    return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)


def tokens(length: int) -> torch.Tensor:
    return torch.arange(100, 100 + length)[None]


def report(figures: dict) -> None:
    for length, size in figures.get("sizes", {}).items():
        print(f"{length} tokens: page {size['page']:.2f} MB, layer {size['layer']:.2f} MB")
    for kind in ("browser", "scale"):
        for what, row in figures.get(kind, {}).items():
            told = ", ".join(f"{step} {ms:.0f}" for step, ms in row.items())
            what = what if kind == "scale" else f"{what} tokens"
            print(f"In JupyterLab, medians in ms, {what}: {told}")
    for maker, rows in figures.get("peers", {}).items():
        told = ", ".join(f"{n}: {ms:.0f} ms {mb:.2f} MB" for n, (ms, mb) in rows.items())
        print(f"Making it, ms and MB of HTML, {maker}: {told}")
    for peer in ("bertviz", "circuitsvis"):
        if "peers" in figures and not importlib.util.find_spec(peer):
            print(f"{peer}: not measured, since it is not installed")


if __name__ == "__main__":
    main()
