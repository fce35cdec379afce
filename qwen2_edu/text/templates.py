"""Chat templates: the sandbox that they run in, and those of the releases, to the letter.

A template is a small program in the language Jinja2 that writes ChatML.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any


@functools.lru_cache
def compile_template(template: str) -> tuple[Any, set[str]]:
    """The template, ready to render in its sandbox, and the names that it reads."""
    import jinja2  # here, so that `import qwen2_edu` does not wait for it
    from jinja2 import meta
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if tuple(int(part) for part in jinja2.__version__.split(".")[:3]) < (3, 1, 6):
        found = f"jinja2 {jinja2.__version__} lets templates out of their sandbox"
        raise ImportError(f"{found}: install 3.1.6 or newer")

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}` marks what the model writes, for training."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            marks = jinja2.nodes.Name("generation_marks", "load")
            call = self.call_method("_mark", [marks])
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _mark(self, marks, caller):
            return f"{marks[0]}{caller()}{marks[1]}" if marks else caller()

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        tree = environment.parse(template)
        compiled = environment.from_string(template)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template is not valid Jinja: {error}") from error
    return compiled, meta.find_undeclared_variables(tree)


def to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """The filter `tojson` of templates: Jinja's own would escape <, > and & for web pages."""
    layout = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
    """Run a chat template in a sandbox: it comes with a checkpoint, as someone else's program.

    Args:
        template: Jinja source.
        messages, tools, add_generation_prompt: as in `render_chatml`.
        **variables: further names that the template reads.

    Raises:
        ValueError: the template is not valid, refuses the conversation, or fails on it.
    """
    compiled, _ = compile_template(template)
    inputs = {"messages": messages, "tools": tools, "generation_marks": (), **variables}
    try:
        return compiled.render(inputs, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # whatever it does wrong, it is the template that fails
        raise ValueError(f"the chat template failed: {type(error).__name__}: {error}") from error


def _shipped(name: str) -> str:
    return (Path(__file__).parent / name).read_bytes().decode()  # to the byte: it is hashed


QWEN2_TEMPLATE, QWEN2_5_TEMPLATE = _shipped("qwen2.jinja"), _shipped("qwen2_5.jinja")
