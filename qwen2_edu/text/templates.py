"""Chat templates: the sandbox that they run in, and those of the releases, to the letter.

A template is a small program in the language Jinja2 that writes ChatML. It comes with a checkpoint,
as someone else's program: so it sees plain data alone, and its work is counted. A step is a round
of a loop, a call, a filter, an item of a list, or 100 characters put together; `STEPS` are enough
for 100,000 turns with tools, and take a few seconds.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from types import GeneratorType
from typing import Any

from .traced import SPOKEN, WRITTEN, Traced, join, origins

STEPS = 3_000_000
_left: ContextVar[list[int]] = ContextVar("steps left to the template that runs")
# What gives more than it was given, as a product of lengths and numbers: methods, filters, and *.
_GROWING = """join replace center ljust rjust zfill expandtabs indent wordwrap batch slice mul
urlize to_bytes""".split()
# What looks at the items of a value alone, not at what these hold: nothing of it becomes text.
_SHALLOW = """len first last list items map select reject selectattr rejectattr slice batch reverse
default dictsort sort unique min max groupby sum dict Namespace range""".split()
_WIDE = re.compile(r"\*|\d{5}|:[^}]*\{")  # in a format: as wide as a large number says, or a name
_SPOKEN = bytes(byte | SPOKEN for byte in range(256))


def _spend(steps: int) -> None:
    _left.get()[0] -= steps
    if _left.get()[0] < 0:
        raise OverflowError(f"it takes more than {STEPS:,} steps; a turn needs some ten")


def _pay(result: Any) -> Any:
    """The result of an operation, with the steps that it took to make it."""
    if isinstance(result, int):
        _spend(1 + result.bit_length() // 1000)
    elif isinstance(result, str):
        _spend(1 + len(result) // 100)
    elif isinstance(result, GeneratorType):
        return map(_pass, result)
    else:
        _spend(1 + len(result) if isinstance(result, (list, tuple, dict, range)) else 1)
    return result


def _pass(item: Any) -> Any:
    """Pay for a piece of text before it is put together with others."""
    if isinstance(item, str) and len(item) > 99:
        _spend(len(item) // 100)
    return item


def _look(value: Any) -> tuple[int, int]:
    """Pay for all that a value holds, before it becomes text: the steps, and how deep it is."""
    before, depth, level = _left.get()[0], 0, [value]
    while level:
        depth, inner = depth + 1, []
        for item in map(_pay, level):
            if type(item).__name__ == "Namespace":
                item = item._Namespace__attrs
            if isinstance(item, Mapping):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, Collection) and not isinstance(item, (str, bytes, range)):
                inner += item
        level = inner
    return before - _left.get()[0], depth


def _looked(value: Any) -> Any:
    """A value that becomes text next, paid for; a text is when it is put together with others."""
    if not isinstance(value, str):
        _look(value)
    return value


def _compute(name: str, left: int, right: int) -> None:
    """Pay for arithmetic, whose time grows faster than the digits."""
    first, second = left.bit_length(), right.bit_length()
    if name in ("mod", "floordiv"):
        _spend(first * second // 10**6)
    else:
        bits = first * abs(right) if name == "pow" else first + second
        _spend(int(min(bits / 1000, STEPS) ** 1.6))


def _foresee(function: Callable, *args: Any, **kwargs: Any) -> None:
    """Pay for what is looked through; and beforehand for what could grow too large to be made."""
    function = getattr(function, "__wrapped__", function)
    name = getattr(function, "__name__", "").rpartition("do_")[2]  # "": a macro
    given = [getattr(function, "__self__", None), *args, *kwargs.values()]
    shallow = len(given) if not name else 3 if name in _SHALLOW else 1
    for value in given[:shallow]:
        _pay(value)
    steps, depth = _look(given[shallow:])
    if name in ("mul", "pow", "mod", "floordiv") and all(isinstance(v, int) for v in args):
        _compute(name, *args)
    elif name == "round":
        places = [abs(v) for v in given[2:] if isinstance(v, int)]
        _compute("pow", 10, max(places, default=0))
    elif name in _GROWING:
        sizes = [len(v) if hasattr(v, "__len__") else v for v in given if v is not None]
        *_, second, first = sorted([1, 1, *(n for n in sizes if isinstance(n, int))])
        _spend(first * second // 100)
    elif name == "translate":
        _spend(len(given[0]) * steps)
    elif name == "pprint":
        _spend(steps * depth)
    elif name == "to_json":
        layout = [v for v in given[2:] if v]
        width = sum(abs(v) if isinstance(v, int) else len("".join(v)) for v in layout)
        _spend(steps * depth * width // 100)
    elif name in ("format", "format_map", "mod"):
        form = next((v for v in given if isinstance(v, str)), "")  # the rest is what it shows
        if _WIDE.search(form):
            raise OverflowError(f"a format asks for too many blanks: {form[:100]}")
        _spend((form.count("{") + form.count("%")) * steps)
        _spend(sum(map(int, re.findall(r"\d+", form))) // 100)


@functools.cache
def _environment() -> Any:
    """The sandbox. What a template brings becomes `Traced`, and what it does is counted."""
    import jinja2  # here, so that `import qwen2_edu` does not wait for it
    from jinja2.compiler import CodeGenerator
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
            call = self.call_method("_mark")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _mark(self, caller):
            text = caller()
            return Traced(text, origins(text).translate(_SPOKEN))

    class Generator(CodeGenerator):
        """Makes the strings of a template `Traced`, and its `~` add them as `+` does."""

        def visit_Const(self, node, frame):
            self.write("environment.written(" if isinstance(node.value, str) else "(")
            super().visit_Const(node, frame)
            self.write(")")

        def _output_const_repr(self, group):
            return f"environment.written({super()._output_const_repr(group)})"

        def visit_Concat(self, node, frame):
            self.write("environment.concat(map(str, map(environment.looked, ")
            self.visit(jinja2.nodes.Tuple(node.nodes, "load"), frame)
            self.write(")))")

        def visit_Getitem(self, node, frame):
            self.write("environment.paid(" if isinstance(node.arg, jinja2.nodes.Slice) else "(")
            super().visit_Getitem(node, frame)
            self.write(")")

        def _make_finalize(self):
            return self._FinalizeInfo(str, "environment.looked(")

    class Sandbox(ImmutableSandboxedEnvironment):
        code_generator_class = Generator
        intercepted_binops = frozenset("+ * ** // %".split())
        paid, looked = staticmethod(_pay), staticmethod(_looked)
        written = staticmethod(functools.lru_cache(lambda text: Traced(text, WRITTEN)))

        def concat(self, parts):
            _spend(1)
            return join("", map(_pass, parts))

        def step(self):
            return True

        def call(self, context, function, /, *args, **kwargs):
            _foresee(function, *args, **kwargs)
            return _pay(super().call(context, function, *args, **kwargs))

        def call_binop(self, context, operator, left, right):
            function = self.binop_table[operator]
            if operator != "+":
                _foresee(function, left, right)
            return _pay(function(left, right))

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[Generation, loopcontrols]
    )
    join_filter = environment.filters["join"]

    @jinja2.pass_eval_context
    def do_join(eval_ctx, value, d="", attribute=None):
        value = list(value)
        _look(value)
        return join_filter(eval_ctx, value, Traced(d), attribute)

    sum_filter = environment.filters["sum"]

    @jinja2.pass_environment
    def do_sum(environment, iterable, attribute=None, start=0):
        if not isinstance(start, (int, float)):  # lists would be copied at each step
            raise TypeError("sum adds numbers alone")
        return sum_filter(environment, iterable, attribute, start)

    environment.filters |= {"tojson": to_json, "join": do_join, "sum": do_sum}
    for name, function in environment.filters.items():
        environment.filters[name] = _counted(function)
    del environment.globals["lipsum"]  # random text, as much as is asked for
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _counted(function: Callable) -> Callable:
    @functools.wraps(function)
    def run(*args, **kwargs):
        _foresee(function, *args, **kwargs)
        return _pay(function(*args, **kwargs))

    return run


@functools.lru_cache
def compile_template(template: str) -> tuple[Any, set[str]]:
    """The template, ready to render in its sandbox, and the names that it reads.

    Raises ValueError: it is not valid, or nested too deep.
    """
    environment = _environment()
    from jinja2 import TemplateError, meta, nodes

    try:
        tree = environment.parse(template)
        names = meta.find_undeclared_variables(tree)
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            step = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(step))
            if getattr(node, "test", None):
                node.test = nodes.And(step, node.test)
        return environment.from_string(tree), names
    except TemplateError as error:
        raise ValueError(f"the chat template is not valid Jinja: {error}") from error
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise ValueError(f"the chat template is nested too deep: {error}") from error


def to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """The filter `tojson` of templates: Jinja's own would escape <, > and & for web pages."""
    layout = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def render(template: str, /, **variables: Any) -> str:
    """Run a template, Jinja source, in its sandbox with the names that it reads: messages, tools,
    …; what it writes tells the origin of each character.

    Raises ValueError: the template is not valid, refuses the conversation, fails on it, or takes
    more than `STEPS` steps.
    """
    compiled, _ = compile_template(template)
    token = _left.set([STEPS])
    try:
        return compiled.render({"tools": None, "add_generation_prompt": False, **variables})
    except Exception as error:  # whatever it does wrong, it is the template that fails
        raise ValueError(f"the chat template failed: {type(error).__name__}: {error}") from error
    finally:
        _left.reset(token)


def _shipped(name: str) -> str:
    return (Path(__file__).parent / name).read_bytes().decode()  # to the byte: it is hashed


QWEN2_TEMPLATE, QWEN2_5_TEMPLATE = _shipped("qwen2.jinja"), _shipped("qwen2_5.jinja")
