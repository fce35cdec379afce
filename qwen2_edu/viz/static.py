"""The attention explorer on paper: all heads, and one of them large."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch, Rectangle

from . import record
from .palette import GREY, ORANGE, drawable

HIDDEN = {  # reason -> its name, its hatching
    record.FUTURE: ("future", ""),
    record.OUTSIDE: ("outside the window", "////"),
    record.PADDING: ("padding", "...."),
}
MOST_LABELS = 40  # along a side; beyond it every n-th token is named


def explorer_figure(
    data: dict[str, Any], recording: record.Recording, layer: int, head: int, mask: torch.Tensor
) -> Figure:
    """Thumbnails of all heads, key heads bracketed; beside them the map of one head.

    Args:
        data: from `explorer.page_data`.
        mask: of the layer, from `record.effective_mask`, (T, T).
    """
    rows, columns = len(data["layers"]), data["heads"]
    cell = max(0.24, min(0.5, 5.0 / max(rows, columns)))  # inches
    wide = columns * cell + 1.3
    figure = Figure(
        figsize=(wide + 6.0, max(5.4, rows * cell + 1.0)), dpi=100, layout="constrained"
    )
    left, right = figure.subfigures(1, 2, width_ratios=(wide, 6.0))
    _overview(left, data, recording, layer, head)
    _map(right, data, recording, layer, head, mask)
    return figure


def _overview(
    figure: SubFigure, data: dict, recording: record.Recording, layer: int, head: int
) -> None:
    """One image of all thumbnails: rows are layers, columns are query heads."""
    small = recording.thumbnails["raw"].float()  # (layers, H, n, n)
    rows, H, n, _ = small.shape
    size, gap = H // data["groups"], max(2, n // 10)
    axes = figure.subplots()
    lefts = [h * (n + gap) + h // size * 2 * gap for h in range(H)]
    # One picture of all: hundreds take seconds. The upper triangles are the future: nothing there.
    picture = torch.full((rows * (n + gap), lefts[-1] + n), torch.nan)
    seen = small.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), torch.nan)
    frames = []
    for row in range(rows):
        for h, x in enumerate(lefts):
            y = row * (n + gap)
            picture[y : y + n, x : x + n] = seen[row, h]
            frames.append(Rectangle((x, y), n, n))
    box = (0, picture.shape[1], picture.shape[0], 0)
    look = {"cmap": "viridis", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
    axes.imshow(picture.numpy(), extent=box, **look)
    axes.add_collection(PatchCollection(frames, facecolor="none", edgecolor=GREY, lw=0.4))
    place = lefts[head], recording.layers.index(layer) * (n + gap)
    axes.add_patch(Rectangle(place, n, n, fill=False, edgecolor=ORANGE, lw=2))
    for h, x in enumerate(lefts):
        axes.text(x + n / 2, -gap, f"{h}", ha="center", va="bottom", fontsize=7)
    above = 0.75 * n  # the brackets stand over the numbers
    for g in range(data["groups"]):
        x, end = lefts[g * size], lefts[(g + 1) * size - 1] + n
        y = -above - gap
        axes.plot((x, x, end, end), (y, y - gap, y - gap, y), color="black", lw=0.8)
        name = f"key head {g}" if size > 1 else f"k{g}"
        axes.text((x + end) / 2, y - 2 * gap, name, ha="center", va="bottom", fontsize=8)
    alike = len({layer["badge"] for layer in data["layers"]}) == 1  # the map's title says it
    axes.set_yticks(
        [row * (n + gap) + n / 2 for row in range(rows)],
        [str(i["index"]) if alike else f"{i['index']}  {i['badge']}" for i in data["layers"]],
        fontsize=8,
    )
    axes.set(xlim=(-gap, H * (n + gap) + 2 * gap * data["groups"]), xticks=[], ylabel="layer")
    axes.set(ylim=(rows * (n + gap), -above - 8 * gap), aspect="equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _map(
    figure: SubFigure,
    data: dict,
    recording: record.Recording,
    layer: int,
    head: int,
    mask: torch.Tensor,
) -> None:
    """One head's map with its tokens; what a query cannot see is left white, or hatched."""
    axes = figure.subplots()
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
    bar = figure.colorbar(drawn, ax=axes, shrink=0.6, label="weight, spread by its square root")
    bar.set_ticks([w**0.5 for w in ticks], labels=[f"{w:g}" for w in ticks])
    bar.outline.set_visible(False)
    if names:
        look = {"framealpha": 1, "edgecolor": "white"}  # hatching would run through the words
        axes.legend(handles=names, loc="upper right", fontsize=8, **look)
