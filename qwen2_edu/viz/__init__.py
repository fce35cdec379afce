"""Figures and widgets. This is the only place that imports matplotlib, ipywidgets and anywidget.

from qwen2_edu import viz
viz.attention_explorer(model, tokenizer, "A red kite")
"""

from .beside import side_by_side
from .chat import chat
from .explorer import attention_explorer
from .masks import masks
from .sampling import sampling
from .split import split
from .steps import steps
from .tokens import tokens

__all__ = [
    "attention_explorer",
    "chat",
    "masks",
    "sampling",
    "side_by_side",
    "split",
    "steps",
    "tokens",
]
