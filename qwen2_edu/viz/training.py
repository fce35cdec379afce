"""How a training run went, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure


def loss_curve(log: Sequence[dict[str, Any]]) -> Figure:
    """Loss over tokens read, training and held out, one panel for each stage of the run.

    Args:
        log: lines of `training.train`, each with a name under "stage".
    """
    stages = list(dict.fromkeys(line["stage"] for line in log))
    columns = min(3, len(stages))
    rows = math.ceil(len(stages) / columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, stage in zip(panels, stages, strict=False):
        lines = [line for line in log if line["stage"] == stage]
        taken = [line for line in lines if "held_out_loss" in line]
        axes.plot(*_points(lines, "loss"), color="#9ab8d3", linewidth=0.7, label="training")
        axes.plot(*_points(taken, "held_out_loss"), color="#0072b2", marker=".", label="held out")
        axes.set(title=stage, xlabel="million tokens", ylabel="loss, nats per token")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    for axes in panels[len(stages) :]:
        axes.set_axis_off()
    return figure


def _points(lines: list[dict], name: str) -> tuple[list[float], list[float]]:
    return [line["tokens"] / 1e6 for line in lines], [line[name] for line in lines]
