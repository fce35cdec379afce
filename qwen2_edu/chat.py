"""ChatML: a conversation as one text, and as spans that what people typed cannot break out of.

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    Hi!<|im_end|>
    <|im_start|>assistant

`render_chatml` writes this text in plain Python. A checkpoint brings a template of its own, a small
program that writes it; `spans` runs that, and tells the control tokens that the template wrote from
the same letters in a message. A tokenizer makes ids of the spans.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, islice
from typing import Any, NamedTuple

from .text.runs import Finder
from .text.templates import compile_template, render, to_json

ROLES = ("system", "user", "assistant", "tool")
DEFAULT_SYSTEM = {
    "qwen2": "You are a helpful assistant.",
    "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
}
_TOOLS_BEFORE = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def render_chatml(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    default_system: str = DEFAULT_SYSTEM["qwen2"],
) -> str:
    """What do the released templates write? The same text, in plain Python.

    Args:
        messages: dicts with `role` and `content`; an assistant's may have `tool_calls` as well.
        tools: JSON schemas of the functions that the model may call (Qwen2.5 only).
        add_generation_prompt: end with the head of an answer, for the model to go on from.
        default_system: what stands there if the conversation begins without a system message.

    Source: the released tokenizer_config.json of Qwen2-0.5B-Instruct and Qwen2.5-0.5B-Instruct.
    """
    messages = check_messages(messages)
    system, rest = default_system, messages
    if messages[0]["role"] == "system":
        system, rest = messages[0]["content"], messages[1:]
    if tools:
        system += _TOOLS_BEFORE + "".join("\n" + to_json(tool) for tool in tools) + _TOOLS_AFTER
    turns = [("system", system)]
    for message in rest:
        role, content = message["role"], message.get("content", "")
        if role == "tool":  # results go back as the user's; several in a row share a turn
            result = f"<tool_response>\n{content}\n</tool_response>"
            if turns[-1][0] == "tool":
                result = f"{turns.pop()[1]}\n{result}"
            turns.append(("tool", result))
            continue
        calls = message.get("tool_calls") or ()
        parts = [content] if content or not calls else []
        for call in calls:
            call = call.get("function", call)
            name, given = call["name"], to_json(call["arguments"])
            parts.append(f'<tool_call>\n{{"name": "{name}", "arguments": {given}}}\n</tool_call>')
        turns.append((role, "\n".join(parts)))
    text = "".join(
        f"<|im_start|>{'user' if role == 'tool' else role}\n{content}<|im_end|>\n"
        for role, content in turns
    )
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The conversation as a copy in plain dicts, checked; keys whose value is None are left out.

    Raises TypeError: not a list of dicts. ValueError: no message, an unknown role, no content.
    """
    if not isinstance(messages, (list, tuple)):
        raise TypeError(f"a conversation is a list of messages, not {type(messages).__name__}")
    if not messages:
        raise ValueError("the conversation is empty: give at least one message")
    checked = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"message {number} must be a dict of role and content, not {message!r}")
        message = {key: value for key, value in message.items() if value is not None}
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"message {number} has the role {role!r}; the roles are {ROLES}")
        if "content" not in message and not (role == "assistant" and message.get("tool_calls")):
            needed = "give it one: only an assistant's with tool_calls goes without"
            raise ValueError(f"message {number} ({role}) has no content; {needed}")
        checked.append(message)
    return checked


class Span(NamedTuple):
    """A piece of a rendered conversation.

    text: as it stands there.
    control: the id of the control token that the template wrote here; None = plain text.
    spoken: (start, end) of each part of `text` that the assistant says.
    """

    text: str
    control: int | None
    spoken: tuple[tuple[int, int], ...] = ()


def choose_template(template: str | None, own: str | dict[str, str] | None, tools: Any) -> str:
    """The template to use: Jinja source, the name of one of the tokenizer's `own`, or its default.

    Raises ValueError: there is none, or none by default.
    """
    if not isinstance(own, dict):
        template = own if template is None else template
        if template is None:
            raise ValueError("this tokenizer has no chat template: give one as chat_template=…")
        return template
    if template is None:
        template = "tool_use" if tools and "tool_use" in own else "default"
        if template not in own:
            raise ValueError(f"none is the default: name one of {sorted(own)} as chat_template")
    return own.get(template, template)


def spans(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    controls: Finder | None,
    *,
    special_tokens: Mapping[str, str] | None = None,
    continue_final_message: bool = False,
    find_spoken: bool = False,
    **variables: Any,
) -> list[Span]:
    """Render a conversation, and cut it at the control tokens that the template wrote.

    Args:
        template: Jinja source.
        messages: see `render_chatml`.
        controls: finds the control tokens; None = do not cut, answer one span.
        special_tokens: names that the template may read, such as `eos_token`.
        continue_final_message: leave the last message open.
        find_spoken: tell where the assistant speaks: what the template puts between
            {% generation %} and {% endgeneration %}; if it has no such mark, what follows
            "<|im_start|>assistant\\n" up to and with <|im_end|>.
        **variables: further names that the template reads, `tools` among them.

    Raises:
        TypeError: not a list of dicts of plain data; a variable that the template does not read.
        ValueError: see `check_messages` and `render`; a template that changes its course because
            of control tokens in the content.
    """
    _, names = compile_template(template)
    if variables.get("tools") and "tools" not in names:
        one_that_does = "chat_template=qwen2_edu.text.templates.QWEN2_5_TEMPLATE"
        raise ValueError(f"this chat template does not read `tools`: give {one_that_does}")
    for name in variables.keys() - names - {"tools", "add_generation_prompt"}:
        raise TypeError(f"{name!r} is neither an option nor a name that this chat template reads")
    inputs = {"messages": check_messages(messages), **variables}
    inputs = {name: _plain(value, name, {}) for name, value in inputs.items()}
    for i, message in enumerate(inputs["messages"]):
        if isinstance(message.get("content"), (list, dict)):
            kind = type(message["content"]).__name__
            raise ValueError(f"message {i}: a {kind} is multi-part content: give one text instead")
    # Characters that the inputs do not hold: printable symbols first, then private ones.
    used = set(template + json.dumps(inputs, ensure_ascii=False))
    candidates = chain(range(0x2801, 0x2900), range(0xF0000, 0xFFFFE))
    spare = (c for c in map(chr, candidates) if c not in used)
    end_mark, *marks = islice(spare, 3)
    if continue_final_message:
        last = inputs["messages"][-1]
        if not isinstance(last.get("content"), str):
            raise ValueError(f"continue_final_message needs a text in the last message, not {last}")
        last["content"] += end_mark + " "  # the space shows whether the template trims
    fixed = {**(special_tokens or {}), "generation_marks": () if controls is None else marks}

    text = render(template, **{**fixed, **inputs})
    if controls is not None:
        edges = {edge for content in controls.id_of for edge in (content[0], content[-1])}
        stand_in = dict(zip(sorted(edges), spare, strict=False))
        text = _render_inert(template, fixed, inputs, stand_in, text)
    if continue_final_message:
        text = _cut_at(end_mark, text)
    if controls is None:
        return [Span(text, None)]
    typed = {ord(mark): edge for edge, mark in stand_in.items()}
    said, text = _assistant_parts(text, marks, find_spoken)
    cut = []
    for start, end, control in controls.cuts(text):
        spoken = tuple((a - start, b - start) for a, b in said if a < end and start < b)
        cut.append(Span(text[start:end].translate(typed), control, spoken))
    return cut


def _render_inert(template: str, fixed: dict, inputs: dict, stand_in: dict, as_is: str) -> str:
    """Render with everything that people supplied made unable to spell a control token.

    A control token begins with some character, "<", and ends with another, ">". In every string of
    the inputs, keys of dicts included, each of these is replaced by its stand-in: a character that
    occurs nowhere in the inputs or the template. One for one, so slicing, trimming, joining and
    JSON treat it alike. Whatever the template then does with the pieces, a control token in the
    result has its first and its last character from the template.

    Who cuts the text at its control tokens can then turn the stand-ins back. If a template looks
    into the content, and goes another way because it finds no "<" there, the text is not `as_is`,
    the one that it writes for the inputs as they are. That is refused, not guessed at.
    """
    table = str.maketrans(stand_in)
    inert = {name: _plain(value, name, table) for name, value in inputs.items()}
    if inert == inputs:
        return as_is
    text = render(template, **{**fixed, **inert})
    if text.translate({ord(mark): edge for edge, mark in stand_in.items()}) != as_is:
        raise ValueError(
            f"this chat template goes another way where the content holds {' or '.join(stand_in)}, "
            "so its own control tokens cannot be told from typed ones: remove them from the "
            "content, or take tokenize=False and encode the text yourself"
        )
    return text


def _assistant_parts(text: str, marks: list[str], find: bool) -> tuple[list[tuple[int, int]], str]:
    """Where does the assistant speak? (start, end) of each time, in the text without the marks."""
    parts = re.split(f"[{''.join(marks)}]", text)  # outside, inside, outside, …
    places = list(accumulate(map(len, parts), initial=0))
    text = "".join(parts)
    if len(parts) > 1:
        return list(zip(places[1::2], places[2::2], strict=False)), text
    if find and "<|im_start|>" not in text:
        needed = "a template in ChatML or with {% generation %} marks"
        raise ValueError(f"return_assistant_tokens_mask needs {needed}: give it as chat_template")
    turn = re.compile(r"(?s)<\|im_start\|>assistant\n(.*?(?:<\|im_end\|>|\Z))")
    return [match.span(1) for match in turn.finditer(text)], text


def _plain(value: Any, where: str, table: Mapping[int, str]) -> Any:
    """A copy in plain data, so that a template finds no method to call; its strings translated."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str.__str__(value).translate(table)
    if isinstance(value, Mapping):
        pairs = value.items()
        return {_plain(key, where, table): _plain(item, where, table) for key, item in pairs}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, table) for item in value]
    hint = "; describe a function by its JSON schema" if callable(value) else ""
    raise TypeError(f"{where} must be plain data, not {type(value).__name__}{hint}")


def _cut_at(mark: str, text: str) -> str:
    if text.count(mark) != 1:
        times = f"does not write the end of the last message once, but {text.count(mark)} times"
        raise ValueError(f"continue_final_message: this chat template {times}; take another")
    before, after = text.split(mark)
    return before if after.startswith(" ") else before.rstrip()
