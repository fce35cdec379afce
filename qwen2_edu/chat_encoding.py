"""A conversation as ids that what people typed cannot break out of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from .chat import check_messages
from .text.templates import compile_template, render

if TYPE_CHECKING:
    from .text.batching import BatchEncoding
    from .tokenizer_base import TokenizerBase


def apply_chat_template(
    tokenizer: TokenizerBase,
    conversation: Sequence,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    tokenize: bool = True,
    padding: bool | str = False,
    truncation: bool | str = False,
    max_length: int | None = None,
    return_tensors: str | None = None,
    return_dict: bool = True,
    return_assistant_tokens_mask: bool = False,
    padding_side: str | None = None,
    **variables: Any,
) -> str | list[str] | list[int] | BatchEncoding:
    """Render a conversation, or a batch of them, as text or as ids.

    **What people typed cannot act.** `tokenize=False` gives the text that the template writes. In
    the ids, a control token such as <|im_end|> comes from the template alone; the same letters in a
    message, a tool or a name are encoded as letters. So encoding the text yourself gives the same
    ids only if no message holds a control token. `_render_inert` says how.

    Args:
        conversation: a list of messages (see `render_chatml`), or a list of such lists.
        tools: JSON schemas of functions.
        chat_template: Jinja source, or the name of one of the tokenizer's; None = the tokenizer's
            own.
        add_generation_prompt: end with the head of an answer.
        continue_final_message: leave the last message open, for the model to go on with.
        tokenize: ids instead of text.
        padding, padding_side, truncation, max_length, return_tensors: as in calling the tokenizer.
        return_dict: `input_ids` and `attention_mask` by name, as transformers 5 does; False = only
            the ids.
        return_assistant_tokens_mask: add `assistant_masks`, 1 where the assistant speaks: what the
            template puts between {% generation %} and {% endgeneration %}; if it has no such mark,
            what follows "<|im_start|>assistant\\n" up to and with <|im_end|>.
        **variables: further names that the template reads.

    Raises:
        TypeError: not a list of dicts of plain data; a variable that the template does not read.
        ValueError: see `check_messages` and `render`; options that exclude each other; a template
            that changes its course because of control tokens in the content.
    """
    if continue_final_message and add_generation_prompt:
        raise ValueError(
            "continue_final_message goes on with the last message, add_generation_prompt begins a "
            "new one: use one of them"
        )
    if return_assistant_tokens_mask and not (tokenize and return_dict):
        raise ValueError("return_assistant_tokens_mask needs tokenize=True and return_dict=True")
    if return_assistant_tokens_mask and continue_final_message:
        raise ValueError("return_assistant_tokens_mask does not go with continue_final_message")
    template = _choose(chat_template, tokenizer.chat_template, tools)
    _, names = compile_template(template)
    if tools and "tools" not in names:
        raise ValueError(
            "this chat template does not read `tools`: use one that does, as Qwen2.5's, with "
            'AutoTokenizer.from_pretrained("qwen2", chat_template='
            "qwen2_edu.text.templates.QWEN2_5_TEMPLATE)"
        )
    for name in variables:
        if name not in names:
            raise TypeError(
                f"{name!r} is neither an option nor a name that this chat template reads"
            )

    batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
    rows: list[Any] = []
    for messages in conversation if batched else [conversation]:
        inputs = {
            "messages": check_messages(messages),
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            **variables,
        }
        inputs = {name: _plain(value, name) for name, value in inputs.items()}
        for i, message in enumerate(inputs["messages"]):
            if isinstance(message.get("content"), (list, dict)):
                raise ValueError(
                    f"message {i}: content must be text, not a {type(message['content']).__name__} "
                    "of parts: multi-part content is not supported"
                )
        # Characters that the inputs do not hold: printable symbols first, then private ones.
        used = set(template + json.dumps(inputs, ensure_ascii=False))
        candidates = chain(range(0x2801, 0x2900), range(0xF0000, 0xFFFFE))
        spare = (c for c in map(chr, candidates) if c not in used)
        end_mark, *marks = islice(spare, 3)
        if continue_final_message:
            _mark_end(inputs["messages"][-1], end_mark)
        options = {**tokenizer.special_tokens_map, "generation_marks": marks if tokenize else ()}

        text, typed = render(template, **{**options, **inputs}), {}
        if tokenize:
            text, typed = _render_inert(tokenizer, template, options, inputs, text, spare)
        if continue_final_message:
            text = _cut_at(end_mark, text)
        if tokenize:
            rows.append(_encode(tokenizer, text, typed, marks, return_assistant_tokens_mask))
        else:
            rows.append(text)
    if not tokenize:
        return rows if batched else rows[0]
    batch = tokenizer._batch(
        rows,
        single=not batched,
        padding=padding,
        padding_side=padding_side,
        truncation=truncation,
        max_length=max_length,
        return_tensors=return_tensors,
    )
    return batch if return_dict else batch["input_ids"]


def _choose(template: Any, own: Any, tools: Any) -> str:
    """The template to use: Jinja source, the name of one of the tokenizer's, or its default."""
    if isinstance(own, dict):
        if template is None:
            template = "tool_use" if tools and "tool_use" in own else "default"
            if template not in own:
                raise ValueError(
                    f"chat_template must name one of {sorted(own)}: none is the default"
                )
        return own.get(template, template)
    template = own if template is None else template
    if template is None:
        raise ValueError("this tokenizer has no chat template: give one as chat_template=…")
    return template


def _render_inert(
    tokenizer: TokenizerBase,
    template: str,
    options: dict[str, Any],
    inputs: dict[str, Any],
    as_is: str,
    spare: Iterator[str],
) -> tuple[str, dict[int, str]]:
    """Render with everything that people supplied made unable to spell a control token.

    A control token begins with some character, "<", and ends with another, ">". In every string of
    the inputs, keys of dicts included, each of these is replaced by a stand-in: a character that
    occurs nowhere in the inputs or the template. One for one, so slicing, trimming, joining and
    JSON treat it alike. Whatever the template then does with the pieces, a control token in the
    result has its first and its last character from the template.

    The text is then cut at its control tokens, and in what lies between, the stand-ins are turned
    back. If a template looks into the content, and goes another way because it finds no "<" there,
    the text is not the one that it writes for the inputs as they are. That is refused, not guessed
    at.

    Returns:
        (text, typed): the text with stand-ins, and the table that turns them back.
    """
    edges = {c for content in tokenizer._controls.id_of for c in (content[0], content[-1])}
    stand_in = dict(zip(sorted(edges), spare, strict=False))
    inert = {name: _translate(value, str.maketrans(stand_in)) for name, value in inputs.items()}
    if inert == inputs:
        return as_is, {}
    text = render(template, **{**options, **inert})
    typed = {ord(s): c for c, s in stand_in.items()}
    if text.translate(typed) != as_is:
        raise ValueError(
            "this chat template goes another way where the content holds "
            f"{' or '.join(sorted(edges))}, so its own control tokens cannot be told "
            "from typed ones: remove them from the content, or take tokenize=False and encode the "
            "text yourself"
        )
    return text, typed


def _encode(
    tokenizer: TokenizerBase,
    text: str,
    typed: dict[int, str],
    marks: Sequence[str],
    find_assistant: bool,
) -> dict[str, list[int]]:
    """The ids of a text from `_render_inert`: its control tokens, and plain text between them."""
    spans, text = _assistant_spans(text, marks, find_assistant)
    ids: list[int] = []
    speaks: list[int] = []
    plain_only = frozenset(tokenizer._controls.id_of.values())
    for start, end, control in tokenizer._controls.cuts(text):
        if control is not None:
            new, offsets = [control], [(0, end - start)]
        elif find_assistant:
            new, offsets = tokenizer._encode_with_offsets(
                text[start:end].translate(typed), plain_only
            )
        else:
            new, offsets = tokenizer._encode(text[start:end].translate(typed), plain_only), []
        ids += new
        for a, b in offsets:
            speaks.append(int(any(start + a < last and first < start + b for first, last in spans)))
    row = {"input_ids": ids}
    return row | {"assistant_masks": speaks} if find_assistant else row


def _assistant_spans(
    text: str, marks: Sequence[str], wanted: bool
) -> tuple[list[tuple[int, int]], str]:
    """Where does the assistant speak? (start, end) of each time, in the text without the marks."""
    parts = re.split(f"[{''.join(marks)}]", text)  # outside, inside, outside, …
    places = [0]
    for part in parts:
        places.append(places[-1] + len(part))
    text = "".join(parts)
    if len(parts) > 1:
        return list(zip(places[1::2], places[2::2], strict=False)), text
    if wanted and "<|im_start|>" not in text:
        raise ValueError(
            "return_assistant_tokens_mask needs a template in ChatML or with {% generation %} marks"
        )
    turn = re.compile(r"(?s)<\|im_start\|>assistant\n(.*?(?:<\|im_end\|>|\Z))")
    return [match.span(1) for match in turn.finditer(text)], text


def _plain(value: Any, where: str) -> Any:
    """A copy in plain data, so that a template finds no object with methods to call."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    hint = "; describe a function by its JSON schema" if callable(value) else ""
    raise TypeError(f"{where} must be plain data, not {type(value).__name__}{hint}")


def _translate(value: Any, table: Mapping[int, str]) -> Any:
    """Replace characters in every string of plain data."""
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, dict):
        return {_translate(key, table): _translate(item, table) for key, item in value.items()}
    if isinstance(value, list):
        return [_translate(item, table) for item in value]
    return value


def _mark_end(message: dict[str, Any], mark: str) -> None:
    """Mark the end of a message. The space after the mark shows whether the template trims."""
    content = message.get("content")
    if not isinstance(content, str):
        raise ValueError(
            f"continue_final_message needs a text in the last message, not {content!r}"
        )
    message["content"] = content + mark + " "


def _cut_at(mark: str, text: str) -> str:
    if text.count(mark) != 1:
        raise ValueError(
            "continue_final_message: this chat template does not write the end of the last message "
            f"once, but {text.count(mark)} times"
        )
    before, after = text.split(mark)
    return before if after.startswith(" ") else before.rstrip()
