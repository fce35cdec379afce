"""Who may look at whom: the one visibility rule as a picture."""

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

from ..cache import DynamicCache
from ..config import SLIDING, Qwen2Config
from .palette import BLUE, CSS, image, new_figure
from .record import FUTURE, OUTSIDE, PADDING, SEEN, reasons, why_this_kind

LONGEST = 128
_LOOKS = {  # colour, hatch and name of each kind of cell
    SEEN: (BLUE, "", "visible"),
    FUTURE: ("#ffffff", "", "future"),
    OUTSIDE: ("#f6d9a0", "///", "outside the window"),
    PADDING: ("#dddddd", "xxx", "padding"),
}


@dataclass(frozen=True)
class Picture:
    """Who may look at whom, and if not, why.

    cells: (T, S) of `record.SEEN`, FUTURE, OUTSIDE or PADDING.
    queries: (T,) positions; -1 = padding.
    keys: (S,) positions in the order in which the cache holds them; -1 = padding.
    title, caption: what it is, and what to notice.
    """

    cells: Tensor
    queries: Tensor
    keys: Tensor
    title: str
    caption: str


def picture(
    config: Qwen2Config,
    length: int,
    layer: int = 0,
    *,
    window: int | None = None,
    padding: int = 0,
    cached: int = 0,
) -> Picture:
    """What may each query of a layer look at?

    Args:
        length: tokens of the row, padding included.
        layer: its kind decides whether there is a window.
        window: in place of the configuration's; for sliding layers alone.
        padding: how many tokens at the left are padding.
        cached: how many tokens an earlier pass has read. The others are the queries.

    Raises:
        TypeError: no configuration. ValueError: a number out of its range, or a window where the
            layer has none.
    """
    if not isinstance(config, Qwen2Config):
        raise TypeError(f"expected a Qwen2Config, not {type(config).__name__}: take model.config")
    for name, value, low, high in (
        ("length", length, 1, LONGEST),
        ("layer", layer, 0, config.num_hidden_layers - 1),
        ("padding", padding, 0, length - 1),
        ("cached", cached, 0, length - 1),
        ("window", 1 if window is None else window, 1, config.max_position_embeddings),
    ):
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    kind = config.layer_types[layer]
    if window is not None:
        if kind != SLIDING:
            raise ValueError(f"layer {layer} has no window ({why_this_kind(config, layer)})")
        config = Qwen2Config.from_dict(config.to_dict(), sliding_window=window)
    window = config.window_by_type[kind]
    positions = torch.arange(length)[None]  # (B = 1, length)
    positions = positions.where(positions >= padding, -1)
    cache = DynamicCache(config)
    if cached:
        cache.place(positions[:, :cached])
        cache.advance(cached)
    queries = positions[:, cached:]  # (1, T)
    keys = cache.place(queries)[kind][0]  # (S,)
    queries = queries[0]  # (T,)
    cells = reasons(queries, keys, window)
    title = f"layer {layer}: {kind}" + (f", window {window}" if window else "")
    title += f"  ({why_this_kind(config, layer)})"
    looks = keys[cells[-1] == SEEN].sort().values.tolist()
    caption = f"The last query, position {length - 1}, sees {len(looks)} of {length} tokens: "
    caption += f"{looks[0]} to {looks[-1]}."
    if length - len(keys):
        caption += f" The ring has overwritten {length - len(keys)} of them."
    if cached:
        caption += f" The first {cached} are cached; the queries are the other {length - cached}."
    if padding:
        caption += f" Padding at the left: {padding}."
    if len(config.window_by_type) == 1 and config.num_hidden_layers > 1:
        caption += f" All {config.num_hidden_layers} layers are {kind}: they look alike."
    return Picture(cells, queries, keys, title, caption)


def figure_of(shown: Picture) -> Figure:
    """The picture as a matplotlib figure: queries down, keys across."""
    T, S = shown.cells.shape
    side = min(0.3, 6 / max(T, S))  # inches of a cell
    figure, axes = new_figure(max(2.7, S * side) + 2.5, max(1.3, T * side) + 1)
    legend = []
    for kind, (colour, hatch, name) in _LOOKS.items():
        if not (shown.cells == kind).any():
            continue  # the legend names what is to be seen
        squares = [
            [(s, t), (s + 1, t), (s + 1, t + 1), (s, t + 1)]
            for t, s in (shown.cells == kind).nonzero().tolist()
        ]
        look = {"facecolor": colour, "edgecolor": "#888888", "hatch": hatch}
        grid = 0.3 if max(T, S) <= 48 else 0
        axes.add_collection(PolyCollection(squares, **look, linewidth=grid))
        legend.append(Patch(**look, linewidth=0.3, label=name))
    for axis, positions in ((axes.xaxis, shown.keys), (axes.yaxis, shown.queries)):
        every = 1 + max(T, S) // 25  # so many numbers can be read side by side
        numbers = ["pad" if p < 0 else p for p in positions.tolist()]
        axis.set_ticks([i + 0.5 for i in range(len(numbers))][::every], numbers[::every])
    axes.tick_params(axis="x", rotation=90 if (shown.keys < 0).any() or S > 20 else 0)
    axes.set(xlim=(0, S), ylim=(T, 0), aspect="equal")
    axes.set(xlabel="key position", ylabel="query position")
    axes.set_title(shown.title, fontsize=10, loc="left")
    axes.legend(handles=legend, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


class Masks(widgets.VBox):
    """Sliders over the picture of the visibility rule; `masks` says how to make one.

    Attributes:
        sliders: layer, window, padding, cached. Set their `value` as the mouse would.
    """

    def __init__(self, config: Qwen2Config, length: int, options: dict[str, Any]):
        picture(config, length, **options)  # refuses what cannot be
        self.config, self.length = config, length
        window = options.get("window") or min(config.sliding_window or length, length)
        edges = {
            "layer": (0, config.num_hidden_layers - 1, options.get("layer", 0)),
            "window": (1, max(window, length), window),
            "padding": (0, length - 1, options.get("padding", 0)),
            "cached": (0, length - 1, options.get("cached", 0)),
        }
        self.sliders = {
            name: widgets.IntSlider(value, min=low, max=high, description=name)
            for name, (low, high, value) in edges.items()
        }
        self.sliders["layer"].disabled = len(config.window_by_type) == 1  # they look alike
        self.view = widgets.HTML()
        super().__init__([*self.sliders.values(), self.view])
        for slider in self.sliders.values():
            slider.observe(self._show, "value")
        self._show()

    @property
    def slides(self) -> bool:
        """Has the layer that is shown a window?"""
        return self.config.layer_types[self.sliders["layer"].value] == SLIDING

    @property
    def picture(self) -> Picture:
        """What is shown."""
        options = {name: slider.value for name, slider in self.sliders.items()}
        if not self.slides:
            del options["window"]
        return picture(self.config, self.length, **options)

    def static(self) -> Figure:
        """The picture as a figure."""
        return figure_of(self.picture)

    def _show(self, _: Any = None) -> None:
        shown = self.picture
        self.sliders["window"].disabled = not self.slides
        alt = escape(f"{shown.title}. {shown.caption}")
        said = f'<div class="q2-say" role="status">{shown.caption}</div>'
        self.view.value = CSS + image(figure_of(shown), alt) + said

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={slider.value}" for name, slider in self.sliders.items())
        return f"Masks(length={self.length}, {said})"


def masks(config: Qwen2Config, length: int = 12, **options: int) -> Masks:
    """The visibility rule as a picture, with sliders for window, layer, padding and cache.

    Args:
        config: of the model; its layers decide where there is a window.
        length: tokens of the row, up to 128.
        **options: where the sliders stand: `layer`, `window`, `padding`, `cached`, as in `picture`.

    Raises:
        TypeError: no configuration, or an option that is none.
        ValueError: a number out of its range.
    """
    return Masks(config, length, options)
