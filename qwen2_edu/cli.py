"""The command line: `python -m qwen2_edu` generate, chat, tokenize, info, download, verify.

Answers go to stdout, all else to stderr; failures are one sentence.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup


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
            except typer.TyperException as error:  # the command line itself is wrong
                code = error.exit_code
                say(f"Error: {error.format_message().rstrip('.')}; --help shows what there is")
            except (OSError, ValueError, MemoryError, RuntimeError) as error:
                code = 1
                say(f"Error: {as_flags(error) or type(error).__name__}")
        if code == 130:  # Ctrl-C
            say("Interrupted")
        sys.exit(code)


app = typer.Typer(
    cls=OneSentence,
    help="Qwen2 from the bytes up. A model is a folder in released layout, a name on the hub, or\n"
    "tiny, which is built in.",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def option(kind: Any, text: str, *names: str) -> Any:
    return Annotated[kind, typer.Option(*names, help=text)]


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or owner/name on the hub.")]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="A text; - reads it from stdin.")]


# Named as in GenerationConfig; None = what the model's generation_config.json says.
def options_of_generation(
    model: option(
        str, "A folder, or owner/name on the hub; tiny is built in.", "--model", "-m"
    ) = "tiny",
    max_new_tokens: option(int | None, "How many tokens at most.") = None,
    do_sample: option(
        bool | None, "Draw tokens, or take the most likely.", "--sample/--greedy"
    ) = None,
    temperature: option(float | None, "Below 1, likely tokens get more likely.") = None,
    top_k: option(int | None, "Draw from the k likeliest tokens; 0 = from all.") = None,
    top_p: option(float | None, "Draw from the likeliest tokens that add up to p.") = None,
    min_p: option(float | None, "Draw from tokens at least p times as likely as the first.") = None,
    repetition_penalty: option(float | None, "Above 1, tokens said before get rarer.") = None,
    seed: option(int | None, "The same seed draws the same tokens.") = None,
    stop_strings: option(
        list[str] | None, "Stop after this text; may be given several times.", "--stop"
    ) = None,
    dtype: option(str, "float32, bfloat16 or float16; auto = as stored.") = "auto",
    device: option(str, "cpu, cuda, cuda:1 or mps; auto = the best with room.") = "auto",
) -> None: ...


def generating(command: Callable) -> Callable:
    """Give a command the options above, in place of its **options."""
    own, shared = (
        inspect.signature(function, eval_str=True).parameters.values()
        for function in (command, options_of_generation)
    )
    own = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
    command.__signature__ = inspect.Signature([*own, *shared])
    return command


def load(name: str, dtype: str, device: str, **settings: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer, and those settings that were given. A download shows its progress."""
    from . import AutoModelForCausalLM, AutoTokenizer
    from .hub import resolve

    folder = resolve(name, "model")
    tokenizer = AutoTokenizer.from_pretrained(name)
    with Console(stderr=True).status(f"Loading {name}"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device)
    return model, tokenizer, {n: v for n, v in settings.items() if v not in (None, [])}


@app.command()
@generating
def generate(
    prompt: Prompt,
    num_beams: option(int | None, "Search with so many beams.", "--beams") = None,
    verbose: option(bool, "Print the settings on stderr.", "--verbose", "-v") = False,
    **options: Any,
) -> None:
    """Continue a text."""
    from .generation import effective_settings, stream

    lm, tokenizer, said = load(options.pop("model"), num_beams=num_beams, **options)
    settings = effective_settings(lm, **said)
    if verbose:
        say(f"{settings}, {lm.dtype} on {lm.device}")
    text = read_stdin() if prompt == "-" else prompt
    ids = tokenizer(text, return_tensors="pt").input_ids.to(lm.device)  # (1, T)
    if settings.num_beams > 1:  # which beam wins is known at the end
        whole = lm.generate(ids, tokenizer=tokenizer, generation_config=settings)[0]
        show(tokenizer.decode(whole[ids.shape[1] :], skip_special_tokens=True))
    else:
        for piece in stream(lm, tokenizer, ids, generation_config=settings):
            show(piece)
    show("\n")


@app.command()
@generating
def chat(
    system: option(str | None, "The system message; none = the template's own.") = None,
    **options: Any,
) -> None:
    """Talk to a model: /undo, /again, /reset, /exit; Ctrl-C stops an answer, Ctrl-D leaves."""
    from . import ChatSession

    lm, tokenizer, said = load(options.pop("model"), **options)
    tokenizer.apply_chat_template([{"role": "user", "content": ""}])  # fails now or never
    session = ChatSession(lm, tokenizer, system, **said)
    with suppress(ImportError):
        import readline  # noqa: F401  gives input() a history and arrow keys
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
            if text in ("/undo", "/again"):
                question = session.undo()
                if text == "/undo":
                    say("Undone")
                text = question if text == "/again" else ""
        except EOFError:  # Ctrl-D
            return
        except UnicodeDecodeError:
            say(f"Error: stdin is not {sys.stdin.encoding.upper()}")
            continue
        except ValueError as error:  # nothing to take back
            say(f"Error: {error}")
            continue
        if text == "/reset":
            session.reset()
            say("Reset")
        elif text == "/exit":
            return
        elif text.startswith("/") and text[1:].isalpha():
            say(f"Error: there is no {text}; there are /undo, /again, /reset and /exit")
        elif text:
            try:
                with closing(session.stream(text)) as answer:
                    for piece in answer:
                        show(piece)
            except KeyboardInterrupt:
                show(" [stopped]")
            show("\n")


@app.command()
def tokenize(
    text: Annotated[str, typer.Argument(metavar="[TEXT]", help="- reads it from stdin.")] = "-",
    model: option(str, "Whose tokenizer; qwen2 is built in.", "--model", "-m") = "qwen2",
    special: option(bool, "Match control tokens such as <|im_end|>, or read them as text.") = True,
    ids: option(bool, "Print the ids alone, on one line.", "--ids") = False,
) -> None:
    """Show tokens and ids: in colour, or into a pipe one a line, "id, tab, token"."""
    from . import AutoTokenizer
    from .bpe import text_to_token

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = read_stdin() if text == "-" else text
    found = tokenizer.encode(text, split_special_tokens=not special)
    if ids:
        return show(" ".join(map(str, found)) + "\n")
    added = tokenizer.get_added_vocab()
    spelled = zip(found, tokenizer.convert_ids_to_tokens(found), strict=True)
    show_tokens(
        [(i, t.encode() if t in added else text_to_token(t), t in added) for i, t in spelled]
    )


@app.command()
def info(model: Model = "tiny") -> None:
    """Sizes, parameters and memory of a model; no weights are read."""
    from . import Qwen2Config, costs, released_config
    from .config import RELEASES

    if model.removeprefix("Qwen/") in RELEASES and not Path(model).is_dir():
        config = released_config(model)
        say(f"There is no folder {model}, so this is the built-in table of releases")
    else:
        config = Qwen2Config.from_pretrained(model)
    for heads, rows in costs.tables(config):
        show_table(heads, rows)


@app.command()
def download(model: Model, revision: option(str | None, "Branch, tag or commit.") = None) -> None:
    """Fetch a model and its tokenizer once; print the folder that holds them."""
    from .hub import resolve

    resolve(model, "tokenizer", revision=revision)
    show(f"{resolve(model, 'model', revision=revision)}\n")


@app.command()
def verify(
    model: Model,
    known_as: option(str | None, "The name under which the facts are recorded.") = None,
    goldens: option(Path | None, "A file of facts in place of those built in.") = None,
    device: option(str, "Where to compute, in float32.") = "cpu",
) -> None:
    """Compare a checkpoint with what was published; exit code 0 only if all agrees."""
    from .verify import checks

    results = []
    for check in checks(model, goldens=goldens, known_as=known_as, device=device):
        line = Text(f"{'PASS' if check.ok else 'FAIL'}  {check.name:<10}  {check.detail}")
        line.stylize("bold green" if check.ok else "bold red", end=4)
        Console(soft_wrap=True).print(line)
        results.append(check.ok)
    verdict = "verified" if all(results) else "FAILED"
    say(f"{model}: {verdict}, {sum(results)} of {len(results)} checks")
    raise typer.Exit(0 if all(results) else 1)


# -- how it speaks ---------------------------------------------------------------------------------


def as_flags(text: object) -> str:
    """What the package says of an option, as it is spelled on the command line."""
    return str(text).replace("do_sample=False", "--greedy").replace("do_sample=True", "--sample")


def read_stdin() -> str:
    """All of stdin; ValueError if it is not text."""
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


def show_table(heads: list[str], rows: list[list[str]]) -> None:
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
