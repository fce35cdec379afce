"""Qwen2 from the bytes up: a compact PyTorch package, which the lessons in `notebooks/` build."""

import gc
import sys

COMMAND = sys.argv[:1] == ["-m"]  # python -m qwen2_edu
if COMMAND:  # what imports make stays: to look for what may go takes a fifth of their time
    gc.disable()
try:
    from .cache import DynamicCache, StaticCache
    from .capture import capture
    from .checks import check_calls
    from .config import Qwen2Config, released_config
    from .generation import GenerationConfig
    from .heads import (
        Qwen2ForQuestionAnswering,
        Qwen2ForSequenceClassification,
        Qwen2ForTokenClassification,
    )
    from .model import Qwen2ForCausalLM, Qwen2Model
    from .session import ChatSession
    from .tokenizer import Qwen2Tokenizer, Qwen2TokenizerFast

    # Functions and layers that look at their arguments when somebody calls them from outside.
    check_calls("attention behaviour bpe cache causes chat compare costs generation heads layers")
    check_calls("masks model packing quantize rope sampling")
except KeyboardInterrupt:
    if not COMMAND:  # which alone has nobody else to tell
        raise
    print("Interrupted", file=sys.stderr)
    sys.exit(130)
if COMMAND:
    gc.freeze()
    gc.enable()

# One architecture, so "auto" has nothing to choose: the Hugging Face page's snippet runs with its
# import line changed.
AutoConfig = Qwen2Config
AutoModel = Qwen2Model
AutoModelForCausalLM = Qwen2ForCausalLM
AutoModelForQuestionAnswering = Qwen2ForQuestionAnswering
AutoModelForSequenceClassification = Qwen2ForSequenceClassification
AutoModelForTokenClassification = Qwen2ForTokenClassification
AutoTokenizer = Qwen2TokenizerFast

__version__ = "0.1.0"

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "ChatSession",
    "DynamicCache",
    "GenerationConfig",
    "Qwen2Config",
    "Qwen2ForCausalLM",
    "Qwen2ForQuestionAnswering",
    "Qwen2ForSequenceClassification",
    "Qwen2ForTokenClassification",
    "Qwen2Model",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "StaticCache",
    "capture",
    "released_config",
]
