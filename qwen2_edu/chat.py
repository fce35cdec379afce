"""ChatML: a conversation as one text, in plain Python.

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    Hi!<|im_end|>
    <|im_start|>assistant

A checkpoint brings a template of its own, a small program that writes this text; it runs in
`chat_templates.py`. `chat_encoding.py` makes ids of it that what people typed cannot break out of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

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
        parts = [content] if content or not message.get("tool_calls") else []
        for call in message.get("tool_calls") or ():
            call = call.get("function", call)
            name, arguments = call["name"], to_json(call["arguments"])
            parts.append(
                f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
            )
        turns.append((role, "\n".join(parts)))
    text = "".join(
        f"<|im_start|>{'user' if role == 'tool' else role}\n{content}<|im_end|>\n"
        for role, content in turns
    )
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The conversation as a copy in plain dicts, checked; keys whose value is None are left out.

    Raises:
        TypeError: not a list of dicts.
        ValueError: no message at all, an unknown role, or a message without content.
    """
    if not isinstance(messages, (list, tuple)):
        raise TypeError(f"a conversation is a list of messages, not {type(messages).__name__}")
    if not messages:
        raise ValueError("the conversation is empty: give at least one message")
    checked = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(
                f"message {number} must be a dict with 'role' and 'content', not {message!r}"
            )
        message = {key: value for key, value in message.items() if value is not None}
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(
                f"message {number} has the role {role!r}; the roles are {', '.join(ROLES)}"
            )
        if "content" not in message and not (role == "assistant" and message.get("tool_calls")):
            raise ValueError(
                f"message {number} ({role}) has no content, which only an assistant's with "
                "tool_calls may lack"
            )
        checked.append(message)
    return checked


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` of templates: Jinja's own would escape <, > and & for web pages."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
