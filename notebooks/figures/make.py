"""Draws `here_00.png` … `here_18.png`: Qwen2 from text to text, with the parts of one lesson lit.

    python notebooks/figures/make.py

The letters come from the fonts inside matplotlib, so every machine draws the same.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon
from PIL import Image

WIDTH, HEIGHT, SHARP = 900, 312, 2  # drawn at twice the size, for screens with fine pixels
QUIET, EDGE, LINE = "#6A6A6A", "#C2C2C2", "#9A9A9A"
LIT, LIT_FILL, LIT_TEXT = "#0072B2", "#D3E8F5", "#004166"
PANEL, WEDGE = "#FAFAFA", "#F1F1F1"

# name: (left, bottom, width, height, label), in pixels from the lower left corner
ROW, STREAM, TALL = 230, 154, 40  # the row from text to text; the residual stream; a box
INSIDE = 44  # the boxes within the block
BOXES = {
    "text": (20, ROW, 56, TALL, "text"),
    "tokenizer": (104, ROW, 94, TALL, "tokenizer"),
    "embedding": (226, ROW, 104, TALL, "embedding"),
    "stack": (358, ROW, 100, TALL, "block × N"),
    "last norm": (486, ROW, 94, TALL, "RMSNorm"),
    "head": (608, ROW, 64, TALL, "head"),
    "sampling": (700, ROW, 96, TALL, "sampling"),
    "answer": (824, ROW, 56, TALL, "text"),
    "norm 1": (56, INSIDE, 94, TALL, "RMSNorm"),
    "qkv": (176, INSIDE, 70, TALL, "q, k, v\n+ bias"),
    "rope": (262, INSIDE, 56, TALL, "RoPE"),
    "cache": (334, INSIDE, 60, TALL, "KV\ncache"),
    "groups": (410, INSIDE, 72, TALL, "grouped\nheads"),
    "mask": (498, INSIDE, 68, TALL, "mask,\nwindow"),
    "norm 2": (648, INSIDE, 94, TALL, "RMSNorm"),
    "mlp": (760, INSIDE, 78, TALL, "SwiGLU"),
}
FRAMES = {
    "block": (20, 16, 860, 168, ""),
    "attention": (164, 32, 414, 84, "attention"),
}
ADDITIONS = {"add 1": 600, "add 2": 858}  # where a branch joins the stream again

MODEL = {*BOXES} - {"text", "tokenizer", "sampling", "answer"}
LESSONS = [
    {*BOXES, "loop", *ADDITIONS},  # 00 tour
    {"tokenizer"},  # 01 byte-level BPE
    {"embedding", "norm 1", "norm 2", "last norm", "head"},  # 02 embeddings and RMSNorm
    {"rope"},  # 03 RoPE
    {"attention", "qkv"},  # 04 attention
    {"groups"},  # 05 grouped queries
    {"mask", "stack"},  # 06 sliding windows and the mixed stack
    {"block", "mlp", *ADDITIONS},  # 07 SwiGLU and the block
    {"stack", "embedding", "last norm", "head", "block"},  # 08 the full model
    MODEL - {"rope", "cache", "mask", "groups", "stack"},  # 09 released weights
    {"sampling", "answer"},  # 10 sampling
    {"cache", "loop"},  # 11 KV cache
    {"text", "tokenizer", "answer"},  # 12 ChatML
    {"head"},  # 13 classification heads
    {"attention", "groups", "mask"},  # 14 attention lab
    {*MODEL, *ADDITIONS},  # 15 training
    {"stack", "attention", "cache"},  # 16 making it fast
    {"stack", "block"},  # 17 scaling out
    {*BOXES},  # 18 traps
]


def draw(lit: set[str]) -> Figure:
    """The map with some of its parts lit."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100 * SHARP)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    ax.set_axis_off()

    left, _, width, _, _ = BOXES["stack"]  # the block, opened
    corners = [(left + 4, ROW), (left + width - 4, ROW), (872, 184), (28, 184)]
    ax.add_patch(Polygon(corners, facecolor=WEDGE))
    label(ax, 408, 203, "inside one block", 9, "block" in lit)
    for name, place in FRAMES.items():
        frame(ax, *place, name in lit)

    row = [box for box in BOXES.values() if box[1] == ROW]
    for (x, y, w, h, _), (after, *_) in zip(row, row[1:], strict=False):
        line(ax, [(x + w, y + h / 2), (after, y + h / 2)])
    loop(ax, "loop" in lit)
    branch(ax, ["norm 1", "qkv", "rope", "cache", "groups", "mask"], 38, ADDITIONS["add 1"])
    branch(ax, ["norm 2", "mlp"], 630, ADDITIONS["add 2"])
    line(ax, [(20, STREAM), (880, STREAM)], width=2)
    label(ax, 102, STREAM + 12, "residual stream", 8, False)
    for name, x in ADDITIONS.items():
        plus(ax, x, name in lit)
    for name, place in BOXES.items():
        box(ax, *place, name in lit)
    return figure


def line(ax: Axes, points: list[tuple[float, float]], lit: bool = False, width: float = 1.3):
    """A line through some points, with an arrowhead at the last."""
    colour = LIT if lit else LINE
    (x0, y0), (x, y) = points[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    base = (x - 7 * dx, y - 7 * dy)
    ax.plot(*zip(*points[:-1], base, strict=True), color=colour, linewidth=width)
    sides = [(base[0] + 4 * s * dy, base[1] + 4 * s * dx) for s in (-1, 1)]
    ax.add_patch(Polygon([(x, y), *sides], facecolor=colour))


def label(ax: Axes, x: float, y: float, text: str, size: float, lit: bool):
    """Text centred on (x, y). Capitals are centred, so that words in a row share a line."""
    colour, weight = (LIT_TEXT, "bold") if lit else (QUIET, "normal")
    lines = text.split("\n")
    for i, words in enumerate(lines):
        base = y + 14 * ((len(lines) - 1) / 2 - i) - 0.5 * size
        ax.text(x, base, words, size=size, color=colour, weight=weight, ha="center", zorder=4)


def box(ax: Axes, x: float, y: float, w: float, h: float, text: str, lit: bool):
    style = "round,pad=0,rounding_size=7"
    fill, edge = (LIT_FILL, LIT) if lit else ("white", EDGE)
    patch = FancyBboxPatch((x, y), w, h, style, facecolor=fill, edgecolor=edge)
    patch.set(linewidth=1.8 if lit else 1.1, zorder=3)
    ax.add_patch(patch)
    label(ax, x + w / 2, y + h / 2, text, 9 if "\n" in text else 10, lit)


def frame(ax: Axes, x: float, y: float, w: float, h: float, text: str, lit: bool):
    fill, edge = (LIT_FILL, LIT) if lit else (PANEL, EDGE)
    patch = FancyBboxPatch((x, y), w, h, "round,pad=0,rounding_size=10", facecolor=fill)
    patch.set(edgecolor=edge, linewidth=1.8 if lit else 1.1)
    ax.add_patch(patch)
    label(ax, x + 48, y + h - 15, text, 9, lit)


def branch(ax: Axes, names: list[str], start: float, end: float):
    """From the stream down through some boxes, and up to the stream again."""
    middle = INSIDE + TALL / 2
    boxes = [BOXES[name] for name in names]
    line(ax, [(start, STREAM), (start, middle), (boxes[0][0], middle)])
    for (x, _, w, _, _), (after, *_) in zip(boxes, boxes[1:], strict=False):
        line(ax, [(x + w, middle), (after, middle)])
    right = boxes[-1][0] + boxes[-1][2]
    line(ax, [(right, middle), (end, middle), (end, STREAM - 9)])


def plus(ax: Axes, x: float, lit: bool):
    ink = LIT if lit else QUIET
    ax.add_patch(Circle((x, STREAM), 9, facecolor="white", edgecolor=ink, linewidth=1.3, zorder=3))
    for dx, dy in ((5, 0), (0, 5)):
        xs, ys = (x - dx, x + dx), (STREAM - dy, STREAM + dy)
        ax.plot(xs, ys, color=ink, linewidth=1.4, zorder=4)


def loop(ax: Axes, lit: bool):
    """Back from sampling to the embedding."""
    start, end, top = 748, 278, ROW + TALL + 22
    line(ax, [(start, ROW + TALL), (start, top), (end, top), (end, ROW + TALL)], lit)
    ax.plot((420, 606), (top, top), color="white", linewidth=8)  # room for the words
    label(ax, 513, top, "each new token goes in again", 8, lit)


def png(figure: Figure) -> bytes:
    """A small PNG: few colours, and nothing about the versions of the libraries."""
    figure.canvas.draw()
    image = Image.fromarray(numpy.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    data = io.BytesIO()
    image.quantize(40, dither=Image.Dither.NONE).save(data, "png", optimize=True)
    return data.getvalue()


if __name__ == "__main__":
    matplotlib.rcParams.update(matplotlib.rcParamsDefault)  # whatever this machine prefers
    for number, lit in enumerate(LESSONS):
        path = Path(__file__).parent / f"here_{number:02}.png"
        path.write_bytes(png(draw(lit)))
        print(f"{path.name}  {path.stat().st_size / 1024:.0f} KB")
