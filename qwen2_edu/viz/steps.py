"""One generation, step by step: which scores are computed, with a cache and without."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from .palette import BLUE, CSS, ORANGE, drawable, image, new_figure

LONGEST = 32
NOTHING, KNOWN, NEW, AGAIN = range(4)
_LOOKS = {  # colour and name of each kind of score
    NEW: (BLUE, "computed for the first time"),
    AGAIN: (ORANGE, "computed once more"),
    KNOWN: ("#dddddd", "computed in an earlier step"),
    NOTHING: ("#ffffff", "no score"),
}


@dataclass(frozen=True)
class Work:
    """What one step does.

    scores: (N, N) of NOTHING, KNOWN, NEW or AGAIN: queries down, keys across.
    read: how many keys (and values) come out of the cache.
    computed: scores of this step; so_far: of all steps up to it.
    """

    scores: Tensor
    read: int
    computed: int
    so_far: int


def work(step: int, prompt: int, length: int, cached: bool) -> Work:
    """Which scores of one head are computed when a text is continued token by token?

    Args:
        step: 0 reads the prompt, each later one reads the token written last.
        prompt: tokens of it. length: tokens of the whole text.
        cached: keys and values are kept from step to step.

    Raises:
        ValueError: a number that cannot be.
    """
    for name, value, low, high in (
        ("length", length, 1, LONGEST),
        ("prompt", prompt, 1, length),
        ("step", step, 0, length - prompt),
    ):
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    place = torch.arange(length)
    end, before = prompt + step, prompt + step - 1 if step else 0  # tokens after, and before it
    causal = place[None, :] <= place[:, None]  # (N, N)
    scores = torch.full((length, length), NOTHING)
    scores[causal & (place[:, None] < end)] = NEW
    scores[causal & (place[:, None] < before)] = KNOWN if cached else AGAIN
    computed = int((scores == NEW).sum() + (scores == AGAIN).sum())
    so_far = computed + (work(step - 1, prompt, length, cached).so_far if step else 0)
    return Work(scores, before if cached else 0, computed, so_far)


def caption(shown: Work) -> str:
    """The numbers of a step in a sentence."""
    keys = f"{shown.read} keys read from the cache" if shown.read else "no key read from a cache"
    return f"{shown.computed} scores computed, {shown.so_far} so far; {keys}"


def strip(words: list[str], prompt: int, steps: list[int]) -> Figure:
    """Several steps side by side: above without a cache, below with it."""
    figure, _ = new_figure(1.75 * len(steps) + 0.6, 4.6)
    figure.clear()
    panels = figure.subplots(2, len(steps), squeeze=False)
    for row, cached in zip(panels, (False, True), strict=True):
        for panel, step in zip(row, steps, strict=True):
            shown = work(step, prompt, len(words), cached)
            _draw(panel, shown, words if panel is row[0] else None)
            panel.set_title(f"step {step}: {shown.computed} scores", fontsize=9)
        row[0].set_ylabel("with a cache" if cached else "without", fontsize=10)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _legend() -> list[Patch]:
    kinds = (NEW, AGAIN, KNOWN)
    return [Patch(facecolor=_LOOKS[kind][0], label=_LOOKS[kind][1]) for kind in kinds]


def _draw(axes: Any, shown: Work, words: list[str] | None) -> None:
    N = len(shown.scores)
    for kind, (colour, _) in _LOOKS.items():
        squares = [
            [(s, t), (s + 1, t), (s + 1, t + 1), (s, t + 1)]
            for t, s in (shown.scores == kind).nonzero().tolist()
        ]
        look = {"facecolor": colour, "edgecolor": "#bbbbbb", "linewidth": 0.4}
        axes.add_collection(PolyCollection(squares, **look))
    names = [drawable(word) for word in words] if words else []
    axes.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=8)
    axes.set(xlim=(-0.02, N + 0.02), ylim=(N + 0.02, -0.02), aspect="equal", xticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


class Steps(widgets.VBox):
    """A slider and a play button over the steps of a generation; `steps` says how to make one.

    Attributes:
        slider: which step is shown. Set its `value` as the mouse would.
    """

    def __init__(self, words: list[str], prompt: int, step: int):
        work(step, prompt, len(words), True)  # refuses what cannot be
        self.words, self.prompt = list(words), prompt
        last = len(words) - prompt
        self.slider = widgets.IntSlider(step, min=0, max=last, description="step")
        play = widgets.Play(value=step, min=0, max=last, interval=900, description="play")
        widgets.jslink((play, "value"), (self.slider, "value"))
        self.view = widgets.HTML()
        super().__init__([widgets.HBox([play, self.slider]), self.view])
        self.slider.observe(self._show, "value")
        self._show()

    def static(self) -> Figure:
        """What is shown, as a figure: without a cache on the left, with it on the right."""
        figure, _ = new_figure(7.4, 3.4)
        figure.clear()
        panels = figure.subplots(1, 2)
        for panel, cached in zip(panels, (False, True), strict=True):
            shown = work(self.slider.value, self.prompt, len(self.words), cached)
            _draw(panel, shown, self.words)
            title = f"{'with a cache' if cached else 'without'}: {shown.computed} scores"
            panel.set_title(title, fontsize=10)
        legend = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": 8}
        figure.legend(handles=_legend(), **legend)
        return figure

    def _show(self, _: Any = None) -> None:
        says = []
        for name, cached in (("Without", False), ("With a cache", True)):
            shown = work(self.slider.value, self.prompt, len(self.words), cached)
            says.append(escape(f"{name}: {caption(shown)}."))
        said = f'<div class="q2-say" role="status">{"<br>".join(says)}</div>'
        self.view.value = CSS + image(self.static(), " ".join(says)) + said

    def __repr__(self) -> str:
        return f"Steps({len(self.words)} tokens, prompt={self.prompt}, step={self.slider.value})"


def steps(words: list[str], prompt: int, step: int = 0) -> Steps:
    """A generation step by step: the scores it computes with a cache, beside those without.

    Args:
        words: the text, prompt and answer, a name for each token; up to 32.
        prompt: how many of them are the prompt.
        step: the one shown first; 0 reads the prompt.

    Raises:
        ValueError: no tokens or too many, a prompt longer than the text, no such step.
    """
    return Steps(words, prompt, step)
