"""A conversation in two columns: what people read, and what the model reads of it.

Left the characters of each turn, right its tokens with their ids. Green is what counts in training:
what the assistant says. A turn begins where the model sees one, at the control token <|im_start|>.
Where a text is encoded as it stands, somebody who types that token opens a turn; here one sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import ipywidgets as widgets

from ..chat import check_messages
from ..tokenizer import TokenizerBase
from .labels import token_labels
from .palette import BLUE, GREEN, GREY, tint
from .tokens import Page, check_tokenizer

START, END, HEAD = "<|im_start|>", "<|im_end|>", "assistant\n"
WAYS = ("safe", "as it stands")
_LETTERS = "var(--jp-code-font-family, monospace)"
STYLE = f"""<style>
.q2-split {{border-collapse: collapse; width: 100%; table-layout: fixed}}
.q2-split thead th {{border-bottom: 1px solid; font-weight: bold}}
.q2-split :is(th, td) {{text-align: left !important; vertical-align: top; padding: 4px 6px}}
.q2-split th:first-child {{width: 2.5em}}
.q2-split th:nth-child(2) {{width: 34%}}
.q2-split tr + tr > * {{border-top: 1px solid rgba(153, 153, 153, 0.5)}}
.q2-said {{white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 {_LETTERS}}}
.q2-id {{display: inline-block; margin: 1px; padding: 0 3px; border-radius: 3px;
  white-space: pre-wrap; font: 13px/1.3 {_LETTERS}}}
.q2-id small {{display: block; font-size: 9px; opacity: 0.75}}
</style>"""


class Turn(NamedTuple):
    """A turn as the model sees it: its text, its ids, and for each whether it counts."""

    text: str
    ids: list[int]
    counts: list[bool]


def encode(
    tokenizer: TokenizerBase, messages: Sequence[Mapping[str, Any]], safe: bool = True
) -> list[int]:
    """The ids of a conversation; if the user has the last word, with the head of an answer.

    Args:
        safe: False = encode the template's text as it stands, typed control tokens and all.
    """
    asks = check_messages(messages)[-1]["role"] == "user"
    rendered = tokenizer.apply_chat_template(
        messages, add_generation_prompt=asks, tokenize=safe, return_dict=False
    )
    return rendered if safe else tokenizer(rendered)["input_ids"]


def turns(tokenizer: TokenizerBase, ids: Sequence[int]) -> list[Turn]:
    """Cut ids at each <|im_start|>; what counts stands between the assistant's head and <|im_end|>,
    which counts too.
    """
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in (START, END))
    head = [start, *tokenizer.encode(HEAD)]
    places = [i for i, token in enumerate(ids) if token == start and i] + [len(ids)]
    found, first = [], 0
    for last in places:
        own = list(ids[first:last])
        speaks = own[: len(head)] == head
        stop = own.index(end) + 1 if end in own else len(own)
        counts = [speaks and len(head) <= i < stop for i in range(len(own))]
        found.append(Turn(tokenizer.decode(own), own, counts))
        first = last
    return found


def split_page(tokenizer: TokenizerBase, ids: Sequence[int]) -> Page:
    """The two columns for these ids. As text: a line a token, with its id, + where it counts."""
    found = turns(tokenizer, ids)
    counted = sum(sum(turn.counts) for turn in found)
    summary = f"{len(found)} turns, {len(ids)} tokens, {counted} of them count in training"
    rows, lines = [], [summary]
    for number, turn in enumerate(found, 1):
        labels = token_labels(tokenizer, turn.ids)
        boxes = []
        for label, counts in zip(labels, turn.counts, strict=True):
            strength = 0.3 if counts else 0.22 if label["special"] else 0.1
            colour = GREEN if counts else BLUE if label["special"] else GREY
            style = f"background-color:{tint(colour, strength)}"
            title = f"id {label['id']}" + ", counts" * counts
            boxes.append(
                f'<bdi class="q2-id" role="listitem" title="{title}" style="{style}">'
                f"{escape(label['text'])}<small>{label['id']}</small></bdi>"
            )
            lines.append(f"{number:>3}  {label['id']:>7} {'+' if counts else ' '} {label['text']}")
        rows.append(
            f'<tr><th scope="row">{number}</th><td class="q2-said" dir="auto">'
            f'{escape(turn.text)}</td><td><div role="list">{" ".join(boxes)}</div></td></tr>'
        )
    head = "<tr><th>turn</th><th>characters</th><th>tokens and ids, green = counts</th></tr>"
    table = f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody>"
    page = f'{STYLE}<table class="q2-split">{table}</table><div>{summary}</div>'
    return Page(page, "\n".join(lines))


def split(
    tokenizer: TokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    safe: bool = True,
    live: bool = False,
) -> Page | SplitLive:
    """A conversation in two columns: characters left, ids and what counts in training right.

    Args:
        messages: dicts with `role` and `content`; if the user has the last word, the head of an
            answer is there too.
        safe: False = as if the template's text were encoded as it stands.
        live: with a box for what the user says last, and a switch between the two ways.

    Raises:
        TypeError: no tokenizer, or no messages. ValueError: see `chat.check_messages`; live, and
            the last message is not the user's.
    """
    check_tokenizer(tokenizer)
    if live:
        return SplitLive(tokenizer, messages, safe)
    return split_page(tokenizer, encode(tokenizer, messages, safe))


class SplitLive(widgets.VBox):
    """A box for what the user says last, and the two columns below. `static()` is the page."""

    def __init__(self, tokenizer: TokenizerBase, messages: Sequence[Mapping], safe: bool = True):
        if check_messages(messages)[-1]["role"] != "user":
            raise ValueError("the live view edits what the user says last: end with a user message")
        self.tokenizer, self.before = tokenizer, list(messages[:-1])
        self.box = widgets.Textarea(
            value=messages[-1]["content"], layout={"width": "auto", "height": "6em"}
        )
        self.box.tooltip = "what the user types"
        self.way = widgets.ToggleButtons(options=WAYS, value=WAYS[not safe], tooltips=WAYS)
        self.way.description = "encoded"
        self.view = widgets.HTML()
        super().__init__([self.box, self.way, self.view])
        for control in (self.box, self.way):
            control.observe(self._show, "value")
        self._show()

    def static(self) -> Page:
        """The two columns of what stands in the box."""
        messages = [*self.before, {"role": "user", "content": self.box.value}]
        return split(self.tokenizer, messages, safe=self.way.value == "safe")

    def _show(self, _: Any = None) -> None:
        try:
            self.view.value = self.static().html
        except ValueError as error:  # a lone surrogate
            self.view.value = escape(str(error))

    def __repr__(self) -> str:
        return f"SplitLive({self.box.value!r:.60}, {self.way.value!r})"
