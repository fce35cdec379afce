"""The attention explorer on paper: all heads, and one of them large."""

from __future__ import annotations

from typing import Any

import torch
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from . import record
from .palette import GREY, ORANGE, drawable

HIDDEN = {  # reason -> its name, its hatching
    record.FUTURE: ("future", ""),
    record.OUTSIDE: ("outside the window", "////"),
    record.PADDING: ("padding", "...."),
}
MOST_LABELS = 40  # along a side; beyond it every n-th token is named

# Between the widget and its picture. Both hide where the widget is, or is on its way; and where it
# is not, its error hides. A box is one output, of JupyterLab or of VS Code.
INSTEAD = """<style>.jp-OutputArea-child, .output_container {
  &:has(.qx, > .lm-Panel:not(.jupyter-widgets)) + :has(.qx-still) { &, + * { display: none } }
  &:has(> .jupyter-widgets):has(+ * .qx-still) { display: none }
}</style><p class="qx-still">Run this cell to look around in the explorer.</p>"""


def display_apart(bundle: dict[str, Any]) -> None:
    """A widget's mimebundle; and for where the widget is gone or never came, a sentence and the
    picture that is in the bundle.

    These are outputs of their own. JupyterLab asks for the widget in each notebook that it trusts,
    and where the kernel is gone it says "model not found" and looks no further.
    """
    picture = {"image/png": bundle.pop("image/png")}
    display(bundle, {"text/html": INSTEAD}, picture, raw=True)


def explorer_figure(
    data: dict[str, Any], recording: record.Recording, layer: int, head: int, mask: torch.Tensor
) -> Figure:
    """Thumbnails of all heads, key heads bracketed; beside them the map of one head.

    Args:
        data: from `facts.page_data`.
        mask: of the layer, from `record.effective_mask`, (T, T).
    """
    rows, columns = len(data["layers"]), data["heads"]
    cell = max(0.11, min(0.5, 6.0 / max(rows, columns)))  # inches of a head
    wide, high = columns * cell + 1.3, max(5.4, rows * cell + 1.0)
    figure = Figure(figsize=(wide + 6.0, high), dpi=100)

    def place(left: float, bottom: float, width: float, height: float) -> Axes:
        """In inches. To let matplotlib find places means to lay everything out twice."""
        full, tall = figure.get_size_inches()
        return figure.add_axes((left / full, bottom / tall, width / full, height / tall))

    side, middle = 3.7, (high - 0.9) / 2  # room for labels above the map
    _overview(place(1.1, 0.1, wide - 1.1, high - 0.2), data, recording, layer, head, cell)
    large = place(wide + 1.2, middle - side / 2, side, side)
    bar = place(wide + 1.3 + side, middle - 1.2, 0.12, 2.4)
    _map(large, bar, data, recording, layer, head, mask)
    return figure


def _overview(
    axes: Axes,
    data: dict,
    recording: record.Recording,
    layer: int,
    head: int,
    cell: float,
) -> None:
    """One image of all thumbnails: rows are layers, columns are query heads."""
    small = recording.thumbnails["raw"]  # (layers, H, n, n)
    rows, H = small.shape[:2]
    small = record.thumbnails(small, 640 // max(rows, H) + 8)  # no more pixels than the figure has
    n = small.shape[-1]
    size, gap = H // data["groups"], max(2, n // 10)
    lefts = [h * (n + gap) + h // size * 2 * gap for h in range(H)]
    # One picture of all: hundreds take seconds. The upper triangles are the future: nothing there.
    picture = torch.full((rows, n + gap, lefts[-1] + n), torch.nan)
    seen = small.float().masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), torch.nan)
    for h, x in enumerate(lefts):
        picture[:, :n, x : x + n] = seen[:, h]
    picture = picture.flatten(0, 1)
    box = (0, picture.shape[1], picture.shape[0], 0)
    look = {"cmap": "viridis", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
    axes.imshow(picture.numpy(), extent=box, **look)
    corner = torch.tensor([(x, y * (n + gap)) for y in range(rows) for x in lefts])
    square = torch.tensor(((0, 0), (n, 0), (n, n), (0, n)))
    frames = (corner[:, None] + square).numpy()
    axes.add_collection(PolyCollection(frames, facecolor="none", edgecolor=GREY, lw=0.4))
    place = lefts[head], recording.layers.index(layer) * (n + gap)
    axes.add_patch(Rectangle(place, n, n, fill=False, edgecolor=ORANGE, lw=2))
    every = max(rows, H) // 50 + 1
    for h, x in list(enumerate(lefts))[::every]:
        axes.text(x + n / 2, -gap, f"{h}", ha="center", va="bottom", fontsize=7)
    point = (n + gap) / cell / 72  # a head takes `cell` inches
    above = max(0.75 * n, 9 * point)  # the brackets stand over the numbers
    for g in range(data["groups"]):
        x, end = lefts[g * size], lefts[(g + 1) * size - 1] + n
        y = -above - gap
        axes.plot((x, x, end, end), (y, y - gap, y - gap, y), color="black", lw=0.8)
        name = f"key head {g}" if size > 1 else f"k{g}"
        axes.text((x + end) / 2, y - 2 * gap, name, ha="center", va="bottom", fontsize=8)
    alike = len({layer["badge"] for layer in data["layers"]}) == 1  # the map's title says it
    axes.set_yticks(
        [row * (n + gap) + n / 2 for row in range(0, rows, every)],
        [f"{i['index']}" + f"  {i['badge']}" * (not alike) for i in data["layers"][::every]],
        fontsize=8,
    )
    axes.set(xlim=(-gap, H * (n + gap) + 2 * gap * data["groups"]), xticks=[], ylabel="layer")
    axes.set(ylim=(rows * (n + gap), -above - max(8 * gap, 2 * gap + 14 * point)), aspect="equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _map(
    axes: Axes,
    bar_axes: Axes,
    data: dict,
    recording: record.Recording,
    layer: int,
    head: int,
    mask: torch.Tensor,
) -> None:
    """One head's map with its tokens; what a query cannot see is left white, or hatched."""
    data_bytes = recording.maps[recording.layers.index(layer), head].float()
    T = len(data_bytes)
    drawn = axes.imshow(
        (data_bytes.masked_fill(mask > 0, torch.nan) / 255).numpy(), cmap="viridis", vmin=0, vmax=1
    )
    names = []
    for reason in data["reasons"]:
        name, hatch = HIDDEN[reason]
        if (mask == reason).any() and hatch:
            area = (mask == reason).float().numpy()
            axes.contourf(area, levels=(0.5, 1.5), colors="none", hatches=[hatch])
            names.append(Patch(facecolor="white", edgecolor="black", hatch=hatch, label=name))
    every = -(-T // MOST_LABELS)
    places = range(0, T, every)
    texts = [drawable(data["tokens"][i]["text"][:14]) for i in places]
    axes.set_xticks(places, texts, rotation=90, fontsize=7)
    axes.set_yticks(places, texts, fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    why = next(one for one in data["layers"] if one["index"] == layer)
    key_head = head // (data["heads"] // data["groups"])
    title = f"Layer {layer}, head {head}, key head {key_head}, {why['badge']}"
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    ticks = (0, 0.01, 0.1, 0.25, 0.5, 1)
    label = "weight, spread by its square root"
    bar = axes.figure.colorbar(drawn, cax=bar_axes, label=label)
    bar.set_ticks([w**0.5 for w in ticks], labels=[f"{w:g}" for w in ticks])
    bar.outline.set_visible(False)
    if names:
        look = {"framealpha": 1, "edgecolor": "white"}  # hatching would run through the words
        axes.legend(handles=names, loc="upper right", fontsize=8, **look)
