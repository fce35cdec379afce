"""Colours that people with any kind of colour vision can tell apart, and figures that use them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

# Okabe and Ito, Color Universal Design, 2008: https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN = "#0072b2", "#e69f00", "#009e73"
PURPLE, RED, SKY, GREY = "#cc79a7", "#d55e00", "#56b4e9", "#999999"


CSS = f"<style>{Path(__file__).with_name('companions.css').read_text(encoding='utf-8')}</style>"


def tint(colour: str, strength: float) -> str:
    """A see-through colour, as CSS: it lies over a light and over a dark page alike.

    Args:
        colour: "#rrggbb".
        strength: 0 (nothing) to 1 (the colour itself).
    """
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return f"rgba({red}, {green}, {blue}, {strength})"


def new_figure(width: float, height: float) -> tuple[Figure, plt.Axes]:
    """A figure of one panel, in inches, that a notebook shows where it is the cell's value."""
    figure, axes = plt.subplots(figsize=(width, height), dpi=100, layout="constrained")
    plt.close(figure)  # else the notebook shows it a second time, at the end of the cell
    return figure, axes


def drawable(text: str) -> str:
    """A text as matplotlib can draw it: what its font lacks as U+4F60, a dollar as no formula."""
    font = get_font(findfont("DejaVu Sans"))  # it comes with matplotlib
    known = (c if font.get_char_index(ord(c)) else f"U+{ord(c):04X}" for c in text)
    return "".join(known).replace("$", r"\$")


def image(figure: Figure, alt: str) -> str:
    """The figure as an HTML image; `alt` says in words what is to be seen, already escaped."""
    png = io.BytesIO()
    figure.savefig(png, format="png", facecolor="white", bbox_inches="tight")
    data = base64.b64encode(png.getvalue()).decode()
    return f'<img class="q2-image" src="data:image/png;base64,{data}" alt="{alt}">'
