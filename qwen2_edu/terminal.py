"""How the command line speaks: answers on stdout, all else on stderr, failures in one sentence."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

BadCommandLine = typer.BadParameter.__mro__[2]  # the base of its kind, which has no public name


class OneSentence(TyperGroup):
    """Commands that fail with one sentence on stderr and an exit code. Other errors are our bugs
    and show their traceback.
    """

    def main(self, *args: Any, **extra: Any) -> None:
        extra["standalone_mode"] = False  # errors come to us
        with warnings.catch_warnings():
            warnings.showwarning = lambda text, *_, **__: say(f"Warning: {as_flags(text)}")
            try:
                code = super().main(*args, **extra) or 0
            except BadCommandLine as error:
                code = error.exit_code
                say(f"Error: {error.format_message().rstrip('.')}; --help shows what there is")
            except (OSError, ValueError, MemoryError, RuntimeError) as error:
                code = 1
                say(f"Error: {as_flags(error) or type(error).__name__}")
        if code == 130:  # Ctrl-C
            say("Interrupted")
        sys.exit(code)


def as_flags(text: object) -> str:
    """What the package says of an option, as it is spelled on the command line."""
    return str(text).replace("do_sample=False", "--greedy").replace("do_sample=True", "--sample")


def read_stdin() -> str:
    """All of stdin.

    Raises:
        ValueError: it is not text.
    """
    sys.stdin.reconfigure(errors="strict")  # some locales let any bytes pass
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise ValueError(f"stdin is not {sys.stdin.encoding.upper()}") from None


def say(text: str) -> None:
    """A line to the person, not to the next program of a pipe: on stderr."""
    typer.echo(" ".join(text.split()), err=True)


def show(text: str) -> None:
    """A piece of an answer, at once."""
    typer.echo(text, nl=False)


def show_table(heads: list[str], rows: Iterable[list[str]]) -> None:
    """A first column of names, then numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # as it is, brackets too
    Console().print(table, end="\n\n")


def show_tokens(tokens: list[tuple[int, bytes, bool]]) -> None:
    """Tokens as (id, bytes, is it a control token): in colour on a terminal, else one a line."""
    if not sys.stdout.isatty():
        return show("".join(f"{number}\t{visible(data)}\n" for number, data, _ in tokens))
    text = Text()
    for i, (number, data, control) in enumerate(tokens):
        colour = "yellow" if control else ("cyan", "green", "magenta")[i % 3]
        text.append(visible(data).replace(" ", "·"), f"black on bright_{colour}")
        text.append(f"{number} ", "dim").append("\n" if data.endswith(b"\n") else "")
    Console().print(text)


def visible(data: bytes) -> str:
    """Bytes as one line of text; what is no visible character is escaped as Python does."""
    text = data.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
