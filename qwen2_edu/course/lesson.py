"""Setting up a lesson: the same numbers and the same figures on every machine."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from dataclasses import dataclass

import numpy
import torch

from ..checks import did_you_mean

LESSONS = (
    "00_tour",
    "01_byte_level_bpe",
    "02_embeddings_rmsnorm",
    "03_rope",
    "04_attention",
    "05_grouped_queries",
    "06_sliding_windows",
    "07_swiglu_block",
    "08_full_model",
    "09_released_weights",
    "10_sampling",
    "11_kv_cache",
    "12_chatml",
    "13_heads",
    "14_attention_lab",
    "15_training",
    "16_making_it_fast",
    "17_scaling_out",
    "18_traps",
)


@dataclass(frozen=True)
class Palette:
    """Six colours that people with colour-blindness can tell apart.

    Source: Okabe and Ito, Color Universal Design, 2008.
    """

    blue: str = "#0072B2"
    orange: str = "#E69F00"
    green: str = "#009E73"
    red: str = "#D55E00"
    purple: str = "#CC79A7"
    grey: str = "#7F7F7F"


_current = ""


def setup(lesson: str) -> Palette:
    """Make this notebook repeatable: seed 0, one thread, 4 decimals, no warnings, one figure style.

    Args:
        lesson: the notebook's name, as "03_rope".

    Returns:
        The colours of the figures: `colours.blue` and so on, for matplotlib.

    Raises:
        ValueError: there is no such lesson.
    """
    global _current
    if lesson not in LESSONS:
        hint = did_you_mean(str(lesson), LESSONS)
        raise ValueError(f"no lesson {lesson!r}: {hint or 'the lessons are ' + ', '.join(LESSONS)}")
    _current = lesson
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums in one order, so that digits agree between machines
    torch.set_printoptions(precision=4, sci_mode=False)
    _quiet()
    palette = Palette()
    _figures(palette)
    return palette


def current_lesson() -> str:
    """The lesson that `setup` was called for, or ""."""
    return _current


def _quiet() -> None:
    """Outputs are compared with stored ones, and notes from libraries differ by version."""
    warnings.filterwarnings("ignore")
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # read when transformers is imported
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for name in ("matplotlib", "transformers", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _figures(palette: Palette) -> None:
    import matplotlib  # here, not on top: `check` and `equal` do without it

    from_palette = [f"'{colour}'" for colour in vars(palette).values()]
    matplotlib.rcParams.update(
        {
            "figure.figsize": (7.2, 3.2),
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "savefig.dpi": "figure",
            "font.family": "DejaVu Sans",  # comes with matplotlib
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": f"cycler(color=[{', '.join(from_palette)}])",
            "axes.axisbelow": True,
            "grid.color": "#DDDDDD",
            "legend.frameon": False,
            "image.cmap": "cividis",
        }
    )
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        _png_only()


def _png_only() -> None:
    """Notebook figures are PNG, of the size asked for, without a note of matplotlib's version."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats
    from matplotlib_inline.config import InlineBackend

    options = {"bbox_inches": None, "metadata": {"Software": None}}
    inline = InlineBackend.instance()
    inline.figure_formats = {"png"}
    inline.print_figure_kwargs = options
    set_matplotlib_formats("png", **options)


def fill_by_formula(model: torch.nn.Module) -> None:
    """Give every parameter numbers from a formula, without a random generator, as lesson 03 writes
    it out. What transformers answers with them is recorded in tests/goldens/fixed_parameters.json.
    """
    for j, (name, parameter) in enumerate(sorted(model.named_parameters()), start=1):
        k = torch.arange(parameter.numel(), dtype=torch.float64)
        u = torch.sin(12.9898 * k + 78.233 * j) * 43758.5453
        u = 2 * (u - u.floor()) - 1  # spread over -1 … 1
        size = 0.5 if name.endswith("bias") else 0.05 if "embed" in name else 0.25
        value = 1 + 0.25 * u if "norm" in name else size * u
        parameter.data.copy_(value.view_as(parameter))
