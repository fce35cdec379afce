"""ChatML: a conversation as one text, and as spans that what people typed cannot break out of.

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    Hi!<|im_end|>
    <|im_start|>assistant

`render_chatml` writes this text in plain Python. A checkpoint brings a template of its own, a small
program that writes it; `spans` runs that, and tells the control tokens that the template wrote from
the same letters in a message: each character of the text knows where it comes from. A tokenizer
makes ids of the spans.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .checks import check_json, did_you_mean
from .text.runs import Finder
from .text.templates import compile_template, render, to_json
from .text.traced import LAST, SAID, SPOKEN, WHO, WRITTEN, Traced, origins

_WHO = bytes(byte & WHO for byte in range(256))
_KINDS = {"content": str}  # of what no template looks at
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
    messages: Sequence[Mapping[str, Any]] | Mapping[str, Any],
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
    for number, message in enumerate(messages):
        check_json(message, _KINDS, f"message {number}")
    system, rest = default_system, messages
    if messages[0]["role"] == "system":
        system, rest = messages[0]["content"], messages[1:]
    if tools:
        system += _TOOLS_BEFORE + "".join("\n" + to_json(tool) for tool in tools) + _TOOLS_AFTER
    turns = [("system", [system])]
    for message in rest:
        role, content = message["role"], message.get("content", "")
        calls = message.get("tool_calls") or ()
        parts = [content] if content or not calls else []
        for call in calls:
            call = call.get("function", call)
            name, given = call["name"], to_json(call["arguments"])
            parts.append(f'<tool_call>\n{{"name": "{name}", "arguments": {given}}}\n</tool_call>')
        if role == "tool":  # results go back as the user's; several in a row share a turn
            parts = turns.pop()[1] if turns[-1][0] == "tool" else []
            parts.append(f"<tool_response>\n{content}\n</tool_response>")
        turns.append((role, parts))
    text = "".join(
        f"<|im_start|>{'user' if role == 'tool' else role}\n" + "\n".join(parts) + "<|im_end|>\n"
        for role, parts in turns
    )
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def check_messages(messages: Any, strict: bool = True) -> list[dict[str, Any]]:
    """The conversation, dicts or a single one, as a checked copy; keys whose value is None are left
    out. `strict`: roles are `ROLES`, and a tool call has arguments; else that is for templates.

    Raises TypeError: not a list of dicts. ValueError: no message, an unknown role, no content, a
    tool call without a name or arguments.
    """
    messages = [messages] if isinstance(messages, Mapping) else messages
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
        if not isinstance(role, str) or (strict and role not in ROLES):
            raise ValueError(f"message {number} has the role {role!r}; the roles are {ROLES}")
        if "content" not in message and not (role == "assistant" and message.get("tool_calls")):
            needed = "give it one: only an assistant's with tool_calls goes without"
            raise ValueError(f"message {number} ({role}) has no content; {needed}")
        calls = message.get("tool_calls") or ()
        check_json({"tool_calls": calls}, {"tool_calls": Sequence[Mapping]}, f"message {number}")
        for call in calls:
            made = call.get("function", call)
            named = isinstance(made, Mapping) and isinstance(made.get("name"), str)
            if not named or (strict and "arguments" not in made):
                needed = 'a tool call needs {"name": "…", "arguments": {…}}'
                raise ValueError(f"message {number}: {needed}, not {reprlib.repr(call)}")
        checked.append(message)
    return checked


class Span(NamedTuple):
    """A piece of a rendered conversation."""

    text: str  # as it stands there
    control: int | None  # the id of the control token that stands here; None = plain text
    spoken: bytes  # for each character 1 if the assistant says it, else 0


def choose_template(template: str | None, own: str | dict[str, str] | None, tools: Any) -> str:
    """The template to use: Jinja source, the name of one of the tokenizer's `own`, or its default.

    Raises ValueError: there is none, none of this name, or none by default.
    """
    named = own if isinstance(own, dict) else {} if own is None else {"default": own}
    if template is None:
        template = "tool_use" if tools and "tool_use" in named else "default"
        if not named:
            raise ValueError("this tokenizer has no chat template: give one as chat_template=…")
        if template not in named:
            raise ValueError(f"none is the default: name one of {sorted(named)} as chat_template")
    if template not in named and "{" not in template:
        hint = did_you_mean(template, named, f"its templates are {sorted(named)}")
        raise ValueError(f"{template!r} is no chat template of this tokenizer, nor Jinja: {hint}")
    return named.get(template, template)


def spans(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    controls: Finder | None,
    special: Container[int],
    *,
    special_tokens: Mapping[str, str],
    continue_final_message: bool = False,
    find_spoken: bool = False,
    **variables: Any,
) -> list[Span]:
    """Render a conversation, and cut it at its control tokens.

    A control token is one where the template wrote all of it. In the content of an assistant's
    message, those that are not `special` are, such as <tool_call>: a model that was trained on them
    says them. Anywhere else, and however a template puts them together, these letters are text.

    Args:
        template: Jinja source.
        messages: see `check_messages`; roles and kinds of content are for the template to refuse.
        controls: finds the control tokens; None = do not cut, answer one span.
        special: ids of those that the assistant cannot say.
        special_tokens: names that the template may read, such as `eos_token`.
        continue_final_message: leave the last message open.
        find_spoken: tell where the assistant speaks: what the template puts between
            {% generation %} and {% endgeneration %}; if it has no such mark, what follows
            "<|im_start|>assistant\\n" up to and with <|im_end|>.
        **variables: further names that the template may read, `tools` among them.

    Raises:
        TypeError: not a list of dicts of plain data; a name that is nearly one that is read.
        ValueError: see `check_messages` and `render`.
    """
    _, names = compile_template(template)
    if variables.get("tools") and "tools" not in names:
        one_that_does = "chat_template=qwen2_edu.text.templates.QWEN2_5_TEMPLATE"
        raise ValueError(f"this chat template does not read `tools`: give {one_that_does}")
    known = {*names, "tools", "add_generation_prompt", "continue_final_message", "chat_template"}
    for name in variables.keys() - known:  # what no template reads is harmless, a slip is not
        if hint := did_you_mean(name, known, cutoff=0.8):
            raise TypeError(f"{name!r} is neither an option nor read by this template: {hint}")
    inputs = {"messages": check_messages(messages, strict=False), **variables}
    inputs = {name: _plain(value, name) for name, value in inputs.items()}
    for message in inputs["messages"]:
        for holder, key in _texts(message) if message["role"] == "assistant" else ():
            holder[key] = Traced(holder[key], SAID)
    if continue_final_message:
        last = inputs["messages"][-1]
        if not (texts := _texts(last)):
            what = f"needs a text in the last message, not {last.get('content')!r}"
            raise ValueError(f"continue_final_message {what}")
        holder, key = texts[-1]  # after it a mark, told by its origin: its blank shows trimming
        holder[key] += Traced("CONTINUE_FINAL_MESSAGE_TAG ", LAST)
    fixed = {name: Traced(token, WRITTEN) for name, token in special_tokens.items()}

    try:
        text = render(template, **{**fixed, **inputs})
    except ValueError as error:
        said = [(i, m.get("content", "")) for i, m in enumerate(inputs["messages"])]
        odd = [f"; the content of message {i} is {c!r}" for i, c in said if not isinstance(c, str)]
        raise ValueError(f"{error}{''.join(odd[:1])}") from error.__cause__
    if continue_final_message:
        text = _cut_at_end(text)
    text, origin = str.__str__(text), origins(text)
    if controls is None:
        return [Span(text, None, b"")]
    spoken = _spoken(text, origin) if find_spoken else bytes(len(text))
    return list(_cut(text, origin.translate(_WHO), spoken, controls, special))


def _cut(text: str, who: bytes, spoken: bytes, controls: Finder, special) -> Iterator[Span]:
    """Cut at the control tokens, which never reach from what one wrote into what another did."""
    begun = 0
    for run in re.finditer(rb"(?s)\x01+|\x02+", who):
        ignore = () if who[run.start()] == WRITTEN else special
        for start, end, control in controls.cuts(text[run.start() : run.end()], ignore):
            if control is not None:
                start, end = start + run.start(), end + run.start()
                if begun < start:
                    yield Span(text[begun:start], None, spoken[begun:start])
                yield Span(text[start:end], control, spoken[start:end])
                begun = end
    if begun < len(text):
        yield Span(text[begun:], None, spoken[begun:])


def _spoken(text: str, origin: bytes) -> bytes:
    """For each character 1 if the assistant says it: by {% generation %} marks, else by ChatML."""
    if any(byte & SPOKEN for byte in set(origin)):
        return bytes(byte & SPOKEN > 0 for byte in origin)
    if "<|im_start|>" not in text:
        needed = "a template in ChatML or with {% generation %} marks"
        raise ValueError(f"return_assistant_tokens_mask needs {needed}: give it as chat_template")
    spoken, begun = bytearray(len(text)), None
    for turn in re.finditer(r"(<\|im_start\|>)assistant\n|(<\|im_end\|>)", text):
        start, end = turn.span(turn.lastindex)
        if set(origin[start:end].translate(_WHO)) != {WRITTEN}:
            continue
        if turn.lastindex == 1 and begun is None:
            begun = turn.end()
        elif turn.lastindex == 2 and begun is not None:
            spoken[begun:end], begun = b"\1" * (end - begun), None
    if begun is not None:
        spoken[begun:] = b"\1" * (len(text) - begun)
    return bytes(spoken)


def _texts(message: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Where the texts of a message stand, as holder and key: its content, or parts of that."""
    content = message.get("content")
    if isinstance(content, str):
        return [(message, "content")]
    parts = enumerate(content if isinstance(content, list) else ())
    places = [(part, "text") if isinstance(part, dict) else (content, i) for i, part in parts]
    return [(x, at) for x, at in places if isinstance(x[at] if x is content else x.get(at), str)]


def _cut_at_end(text: str) -> str:
    marks = list(re.finditer(rb"[\x08-\x0f]+", origins(text)))
    if len(marks) != 1:
        times = f"does not write the end of the last message once, but {len(marks)} times"
        raise ValueError(f"continue_final_message: this chat template {times}; take another")
    start, end = marks[0].span()
    return text[:start] if text[end - 1] == " " else text[:start].rstrip()


def _plain(value: Any, where: str) -> Any:
    """A copy in plain data, so that a template finds no method to call."""

    def convert(other: Any) -> dict:
        if isinstance(other, Mapping):
            return dict(other)
        hint = "; describe a function by its JSON schema" if callable(other) else ""
        raise TypeError(f"{where} must be plain data, not {type(other).__name__}{hint}")

    return json.loads(json.dumps(value, ensure_ascii=False, default=convert))
