"""A text as a tokenizer cuts it: coloured pieces, with the id and the bytes of the one pointed at.

Plain HTML and CSS. Where a host drops the style sheet, as GitHub does, the pieces, their order and
their titles are still there.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import torch

from ..tokenizer import TokenizerBase
from .labels import token_bytes, token_labels
from .palette import BLUE, CSS, GREEN, GREY, ORANGE, PURPLE, tint

_CYCLE = [tint(colour, 0.28) for colour in (BLUE, ORANGE, GREEN, PURPLE)]
_DARKEST = 10  # nats: a token of probability e^-10 or less is as dark as can be read on
_CONTROL = f"border:1px solid;font-weight:bold;background-color:{tint(GREY, 0.2)}"


class Page:
    """What a notebook shows as HTML, and everything else as text."""

    def __init__(self, html: str, text: str):
        self.html, self.text = html, text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def check_tokenizer(tokenizer: Any) -> None:
    """Raises TypeError unless it is one of ours."""
    if not isinstance(tokenizer, TokenizerBase):
        raise TypeError(
            f"expected a tokenizer of qwen2_edu, not {type(tokenizer).__name__}: take "
            'AutoTokenizer.from_pretrained("qwen2")'
        )


def check_pair(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot be the model's, as far as ids can tell.

    Raises:
        TypeError: no tokenizer. ValueError: it has more tokens than the model has rows, or the id
            that ends an answer of the model is no control token of it.
    """
    check_tokenizer(tokenizer)
    rows, config = model.config.vocab_size, getattr(model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None) or model.config.eos_token_id
    ends = ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends]
    strange = [i for i in ends if i < rows and i not in tokenizer.added_tokens_decoder]
    why = f"the model's end token, id {strange[0]}, is no control token of it" if strange else ""
    if len(tokenizer) > rows:
        why = f"it has {len(tokenizer):,} tokens, and the model {rows:,} rows"
    if why:
        raise ValueError(
            f"this tokenizer is not the model's: {why}. Load both by the same name: "
            "AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)"
        )


def ids_of(tokenizer: TokenizerBase, text: Any) -> list[int]:
    """The ids of a text, of a conversation that waits for an answer, or of ids: themselves.

    Raises:
        TypeError: nothing of these, or no tokenizer.
        ValueError: nothing at all.
    """
    check_tokenizer(tokenizer)
    if isinstance(text, str):
        ids = tokenizer(text).input_ids
    else:
        ids = text.tolist() if hasattr(text, "tolist") else text
        if not isinstance(ids, Sequence) or not all(isinstance(i, (int, dict)) for i in ids):
            raise TypeError(f"expected a text, messages or a list of ids, not {text!r:.60}")
        if ids and isinstance(ids[0], dict):
            ids = tokenizer.apply_chat_template(ids, add_generation_prompt=True, return_dict=False)
    if min(ids, default=0) < 0:
        raise ValueError(f"no token has the id {min(ids)}: leave out labels of -100")
    if not ids:
        raise ValueError("there is nothing to show: the text is empty, give at least a character")
    return list(ids)


@torch.no_grad()
def log_probabilities(model: Any, ids: Sequence[int]) -> list[float | None]:
    """How likely the model held each token, given those before it: natural logarithms.

    The first token is given, so it has None.
    """
    row = torch.tensor([ids], device=model.device)  # (1, T)
    values: list[float | None] = [None]
    hidden = model.model(row).last_hidden_state[0, :-1]  # (T - 1, E)
    for start in range(0, len(hidden), 64):  # (64, V) at a time: V is large
        some = model.lm_head(hidden[start : start + 64]).float().log_softmax(-1)
        follow = row[0, start + 1 : start + 1 + len(some), None]
        values += some.gather(1, follow)[:, 0].tolist()
    return values


def token_boxes(
    tokenizer: TokenizerBase, ids: Sequence[int], logs: Sequence[float | None] | None = None
) -> str:
    """Tokens as HTML boxes that tell id and bytes when pointed at; a line ends after a newline.

    Args:
        logs: a log-probability for each token; then the darker, the less expected.
    """
    boxes = []
    for i, token in enumerate(token_labels(tokenizer, ids)):
        data = token_bytes(tokenizer, token["id"]) or b""
        shown = data[:24].hex(" ").upper() + " …" * (len(data) > 24)
        facts = [f"id {token['id']}", f"{_count(len(data), 'byte')}: {shown}" * bool(data)]
        facts += [token["note"], "control token" * token["special"]]
        colour = _CYCLE[i % 4]
        if logs is not None:
            known = logs[i] is not None
            facts.append(f"log-probability {logs[i]:.2f}" if known else "given")
            colour = tint(ORANGE, round(min(-logs[i] / _DARKEST, 1) * 0.6, 3) if known else 0)
        title = escape(", ".join(fact for fact in facts if fact))
        look = f"background-color:{colour};border:1px {'dashed' if token['note'] else 'none'}"
        if token["special"]:
            look = _CONTROL if logs is None else f"{_CONTROL};background-color:{colour}"
        style = f"padding:0 2px;border-radius:3px;{look}"
        boxes.append(
            f'<bdi class="q2-t" role="listitem" tabindex="0" title="{title}" style="{style}">'
            f"{escape(token['text'])}</bdi>" + ("<br>" if data.endswith(b"\n") else " ")
        )
    return f'<div class="q2-list" role="list" aria-label="tokens">{"".join(boxes)}</div>'


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def tokens(
    tokenizer: TokenizerBase,
    text: Any,
    *,
    live: bool = False,
    max_tokens: int = 512,
    model: Any = None,
) -> Page | TokensLive:
    """A text as the tokenizer cuts it.

    Args:
        text: a text; or messages, as the model sees them; or ids, a list or a tensor (T,).
        live: with a box to type in.
        max_tokens: show no more than so many; the rest is counted.
        model: a Qwen2ForCausalLM whose tokenizer this is: the colour of a token then tells how
            little the model expected it, from clear (probability 1) to dark orange.

    Returns:
        A page: coloured pieces in a notebook, one token a line as text. Point at a piece, or go to
        it with the Tab key, for its id and bytes.

    Raises:
        TypeError: no tokenizer, or nothing that has ids; a model without a language head.
        ValueError: an empty text; max_tokens below 1; a tokenizer that is not the model's.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    if live:
        return TokensLive(tokenizer, text, max_tokens, model)
    if model is not None:
        if not hasattr(model, "lm_head"):
            raise TypeError(f"{type(model).__name__} gives no probabilities: Qwen2ForCausalLM does")
        check_pair(model, tokenizer)
    ids = ids_of(tokenizer, text)
    data = b"".join(token_bytes(tokenizer, i) or b"" for i in ids)
    characters = len(data.decode(errors="replace"))
    counts = {"token": len(ids), "character": characters, "byte": len(data)}
    summary = ", ".join(_count(n, what) for what, n in counts.items())
    if len(ids) > max_tokens:
        summary += f"; the first {_count(max_tokens, 'token')} below"
    logs = None if model is None else log_probabilities(model, ids[:max_tokens])
    if logs and len(logs) > 1:
        mean = sum(logs[1:]) / len(logs[1:])
        summary += f"; mean log-probability {mean:.2f}, the stronger the colour the lower"
    labels = token_labels(tokenizer, ids[:max_tokens])
    if any(token["note"] for token in labels):
        summary += "; dashed: no whole character"
    told = [""] * len(labels)
    if logs is not None:
        told = ["  " + ("given" if log is None else f"{log:.2f}") for log in logs]
    pairs = zip(labels, told, strict=True)
    lines = [summary, *(f"{token['id']:>7}  {token['text']}{log}" for token, log in pairs)]
    boxes = token_boxes(tokenizer, ids[:max_tokens], logs)
    boxes += f'<div class="q2-sum">{summary}</div>'
    return Page(f'{CSS}<div class="q2-tokens" dir="ltr">{boxes}</div>', "\n".join(lines))


class TokensLive(widgets.VBox):
    """A box to type in, and its tokens below. `static()` is the page without the box."""

    def __init__(
        self, tokenizer: TokenizerBase, text: str = "", max_tokens: int = 512, model: Any = None
    ):
        check_tokenizer(tokenizer)
        if not isinstance(text, str):
            raise TypeError(f"the live view starts from a text, not {type(text).__name__}")
        self.tokenizer, self.max_tokens, self.model = tokenizer, max_tokens, model
        self.box = widgets.Textarea(
            value=text, placeholder="Type a text", layout={"width": "auto", "height": "5em"}
        )
        self.box.tooltip = "the text to cut into tokens"
        self.view = widgets.HTML()
        super().__init__([self.box, self.view])
        self.box.observe(self._show, "value")
        self._show()

    def static(self) -> Page:
        """The tokens of what stands in the box."""
        options = {"max_tokens": self.max_tokens, "model": self.model}
        return tokens(self.tokenizer, self.box.value, **options)

    def _show(self, _: Any = None) -> None:
        try:
            self.view.value = self.static().html if self.box.value else "No text yet."
        except ValueError as error:  # a lone surrogate
            self.view.value = escape(str(error))

    def __repr__(self) -> str:
        return f"TokensLive({self.box.value!r})"


def tokens_live(tokenizer: TokenizerBase, text: str = "") -> TokensLive:
    """`tokens(tokenizer, text, live=True)`."""
    return TokensLive(tokenizer, text)
