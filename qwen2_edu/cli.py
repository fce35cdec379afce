"""`python -m qwen2_edu`: answers go to stdout, all else to stderr; failures are one sentence."""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from . import AutoModelForCausalLM, AutoTokenizer, ChatSession, Qwen2Config, generation, kernels
from . import verify as verification  # a command has the shorter name
from .bpe import text_to_token
from .checks import did_you_mean
from .config import RELEASES, released_config
from .costs import tables
from .decoding.fast import faster_dtype
from .hub import resolve


class OneSentence(TyperGroup):
    """Failures are one sentence on stderr and an exit code. A traceback is a bug of ours."""

    def main(self, *args: Any, **extra: Any) -> None:
        if not os.environ.get("COLUMNS", "0").strip("0"):
            os.environ.pop("COLUMNS", None)  # a width of 0 would show nothing
        if sys.stdin is not None:  # strict would lose the lines that follow, too
            sys.stdin.reconfigure(errors="surrogateescape")
        with warnings.catch_warnings():
            warnings.showwarning = lambda text, *_, **__: say(f"Warning: {as_flags(text)}")
            try:
                code = super().main(*args, **{**extra, "standalone_mode": False}) or 0
            except typer.TyperException as error:  # the command line itself is wrong
                code = error.exit_code
                say(f"Error: {error.format_message().rstrip('.')}; --help shows what there is")
            except (OSError, ValueError, MemoryError, RuntimeError) as error:
                code = 1
                say(f"Error: {as_flags(error) or type(error).__name__}")
        if code == 130:  # Ctrl-C
            say("Interrupted")
        sys.exit(code)


def option(kind: Any, text: str, *names: str) -> Any:
    return Annotated[kind, typer.Option(*names, help=text)]


# Control characters but tab and line feed, half characters, and those that turn the reading order.
STEERING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FLAGS = {"do_sample=False": "--greedy", "do_sample=True": "--sample"}
FLAGS |= {"num_beams": "--beams", "stop_strings": "--stop"}
QUOTES = '"' * 3
HELP = "Qwen2 from the bytes up. A model is a folder, a GGUF, a hub name, or tiny or released."
app = typer.Typer(cls=OneSentence, help=HELP, pretty_exceptions_enable=False, add_completion=False)
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or owner/name on the hub.")]


# The options that commands share, as the signature of a function that nobody calls: typer reads
# signatures, and `generating` puts this one into a command's. Named as in GenerationConfig; None =
# what the model's generation_config.json says.
def options_of_generation(
    model: option(str, "A folder, a GGUF, owner/name, tiny or released.", "--model", "-m") = "tiny",
    max_new_tokens: option(int | None, "How many tokens at most.") = None,
    do_sample: option(bool | None, "Draw, or take the most likely.", "--sample/--greedy") = None,
    temperature: option(float | None, "Below 1, likely tokens get more likely.") = None,
    top_k: option(int | None, "Draw from the k likeliest tokens; 0 = from all.") = None,
    top_p: option(float | None, "Draw from the likeliest tokens that add up to p.") = None,
    min_p: option(float | None, "Draw from tokens at least p times as likely as the first.") = None,
    repetition_penalty: option(float | None, "Above 1, tokens said before get rarer.") = None,
    seed: option(int | None, "The same seed draws the same tokens.") = None,
    stop_strings: option(list[str] | None, "Stop at this text; may be repeated.", "--stop") = None,
    prompt_lookup_num_tokens: option(int | None, "Guess so many tokens ahead.") = None,
    dtype: option(str, "float32, bfloat16 or float16; auto = stored, or faster.") = "auto",
    device: option(str, "cpu, cuda, cuda:1 or mps; auto = the best with room.") = "auto",
    fast: option(bool, "By kernels built on first use, or plainly.", "--fast/--plain") = True,
    quantize: option(str | None, "int8 or int4: keep the weights in fewer bits.") = None,
) -> None: ...


def generating(command: Callable) -> Callable:
    """Make a command, with the options above in place of its **options."""
    *own, _ = inspect.signature(command, eval_str=True).parameters.values()
    shared = inspect.signature(options_of_generation, eval_str=True).parameters.values()
    command.__signature__ = inspect.Signature([*own, *shared])
    return app.command()(command)


def load(
    name: str, dtype: str, device: str, fast: bool, quantize: str | None, **settings: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer, and those settings that were given. A download shows its progress."""
    folder = resolve(name, "model")
    tokenizer = AutoTokenizer.from_pretrained(name)
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if fast and dtype == "auto" and on_cpu:
        stored = Qwen2Config.from_pretrained(folder).torch_dtype
        if stored == "bfloat16" or folder.suffix == ".gguf":  # fp32 holds it; few bits a number
            dtype, why = faster_dtype()
            if str(dtype) != f"torch.{stored}":
                say(f"Computed in {why}")
    with Console(stderr=True).status(Text(safe(f"Loading {name}"))):
        if fast:
            kernels.why_not()
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map=device, quantize=quantize
        )
    return model, tokenizer, {n: v for n, v in settings.items() if v not in (None, [])}


@generating
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A text; - reads it from stdin.")],
    num_beams: option(int | None, "Search with so many beams.", "--beams") = None,
    verbose: option(bool, "Print the settings on stderr.", "--verbose", "-v") = False,
    **options: Any,
) -> None:
    """Continue a text."""
    fast = options["fast"]
    lm, tokenizer, said = load(options.pop("model"), num_beams=num_beams, **options)
    settings = generation.effective_settings(lm, **said)
    if verbose:
        say(f"{settings}, {lm.dtype} on {lm.device}")
    prompt = read_stdin() if prompt == "-" else prompt
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(lm.device)  # (1, T)
    if settings.num_beams > 1:  # which beam wins is known at the end
        whole = lm.generate(ids, tokenizer=tokenizer, generation_config=settings, fast=fast)[0]
        text = tokenizer.decode(whole[ids.shape[1] :], skip_special_tokens=True)
        typer.echo(safe(text), nl=False)
    else:
        for piece in generation.stream(lm, tokenizer, ids, generation_config=settings, fast=fast):
            typer.echo(safe(piece), nl=False)
    typer.echo()


@generating
def chat(system: option(str | None, "In place of the template's.") = None, **options: Any) -> None:
    """Talk to a model: /undo, /again, /reset, /exit; Ctrl-C stops an answer, Ctrl-D leaves.

    A message of several lines begins and ends with three double quotes.
    """
    fast = options["fast"]
    lm, tokenizer, said = load(options.pop("model"), **options)
    tokenizer.apply_chat_template([{"role": "user", "content": ""}])  # fails now or never
    session = ChatSession(lm, tokenizer, system, fast=fast, **said)
    with suppress(ImportError):
        import readline  # noqa: F401  gives input() a history and arrow keys
    while True:
        try:
            text = read_message()
            question = session.undo() if text in ("/undo", "/again") else text
        except EOFError:  # Ctrl-D
            return
        except ValueError as error:  # no text, or nothing to take back
            say(f"Error: {error}")
            continue
        if text == "/exit":
            return
        if text == "/reset":
            session.reset()
            say("Reset")
        elif text == "/undo":
            say("Undone")
        elif question.startswith("/") and question[1:].isalpha():
            say(f"Error: there is no {text}; there are /undo, /again, /reset and /exit")
        elif question:
            try:
                with closing(session.stream(question)) as answer:
                    for piece in answer:
                        typer.echo(safe(piece), nl=False)
            except KeyboardInterrupt:
                typer.echo(" [stopped]", nl=False)
            except ValueError as error:  # of this turn: the template refuses it, it is too long
                say(f"Error: {as_flags(error)}")
            typer.echo()


@app.command()
def tokenize(
    text: Annotated[str, typer.Argument(metavar="[TEXT]", help="- reads it from stdin.")] = "-",
    model: option(str, "Whose tokenizer; qwen2 is built in.", "--model", "-m") = "qwen2",
    special: option(bool, "Match control tokens such as <|im_end|>, or read them as text.") = True,
    ids: option(bool, "Print the ids alone, on one line.", "--ids") = False,
) -> None:
    """Show tokens and ids: in colour, or into a pipe one a line, "id, tab, token"."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = read_stdin() if text == "-" else text
    found = tokenizer.encode(text, split_special_tokens=not special)
    if ids:
        return typer.echo(" ".join(map(str, found)))
    added = tokenizer.get_added_vocab()
    spelled = zip(found, tokenizer.convert_ids_to_tokens(found), strict=True)
    rows = [(i, t.encode() if t in added else text_to_token(t), t in added) for i, t in spelled]
    show_tokens(rows)


@app.command()
def info(model: Model = "tiny") -> None:
    """Sizes, parameters and memory of a model; no weights are read."""
    released = model.removeprefix("Qwen/") in RELEASES and not Path(model).is_dir()
    if released:
        say(f"There is no folder {model}, so this is the built-in table of releases")
    near = not Path(model).exists() and did_you_mean(model, RELEASES, cutoff=0.8)
    config = released_config(model) if released or near else Qwen2Config.from_pretrained(model)
    for heads, rows in tables(config):
        show_table(heads, rows)
    typer.echo(f"Fastest here: {faster_dtype()[1]}")
    why_not = kernels.why_not("cuda" if torch.cuda.is_available() else "cpu")
    typer.echo(f"For --fast: {why_not or 'the kernels are ready'}")


@app.command()
def download(model: Model, revision: option(str | None, "Branch, tag or commit.") = None) -> None:
    """Fetch a model and its tokenizer once; print where they are. "released" is built in."""
    if model == "released":
        from .files.released import fetch_released

        return typer.echo(fetch_released())
    resolve(model, "tokenizer", revision=revision)
    typer.echo(safe(resolve(model, "model", revision=revision)))


@app.command()
def verify(
    model: Model,
    known_as: option(str | None, "The name under which the facts are recorded.") = None,
    goldens: option(Path | None, "A file of facts in place of those built in.") = None,
    device: option(str, "Where to compute, in float32.") = "cpu",
) -> None:
    """Compare a checkpoint with what was published; exit code 0 only if all agrees."""
    passed = []
    for check in verification.checks(model, goldens=goldens, known_as=known_as, device=device):
        word = ("PASS", "bold green") if check.ok else ("FAIL", "bold red")
        line = Text.assemble(word, f"  {check.name:<10}  {safe(check.detail)}")
        Console(soft_wrap=True).print(line)
        passed.append(check.ok)
    verdict = "verified" if all(passed) else "FAILED"
    say(f"{model}: {verdict}, {sum(passed)} of {len(passed)} checks")
    raise typer.Exit(0 if all(passed) else 1)


# -- how it speaks ---------------------------------------------------------------------------------


def as_flags(text: object) -> str:
    """What the package says of options, as they are spelled on the command line."""
    return re.sub("|".join(FLAGS), lambda found: FLAGS[found[0]], str(text))


def read_stdin(one_line: bool = False) -> str:
    """All of stdin, or its next line. ValueError: that is not text. OSError: stdin is closed."""
    if sys.stdin is None:
        raise OSError("stdin is closed, and there is a text to be read from it")
    text = input("> " if sys.stdin.isatty() else "") if one_line else sys.stdin.read()
    if re.search("[\udc80-\udcff]", text):  # which stand for bytes that are no text
        raise ValueError(f"stdin is not {sys.stdin.encoding.upper()}")
    return text


def read_message() -> str:
    """The next line of stdin, or what stands between three double quotes, over several lines."""
    text = read_stdin(one_line=True).strip()
    while text.startswith(QUOTES) and not text.rstrip().endswith(QUOTES, len(QUOTES)):
        try:
            text += "\n" + read_stdin(one_line=True)
        except EOFError:
            raise ValueError(f"the message has no {QUOTES} at its end") from None
    return text.strip().removeprefix(QUOTES).removesuffix(QUOTES).strip()


def safe(text: object) -> str:
    """What came from a model or a file, for a terminal: what would steer that is escaped."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def say(text: str) -> None:
    """A line to the person, not to the next program of a pipe: on stderr."""
    typer.echo(safe(" ".join(text.split())), err=True)


def show_table(heads: list[str], rows: list[list[str]]) -> None:
    """A first column of names, then numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if i else "left")
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))  # as it is, brackets too
    Console().print(table, end="\n\n")


def show_tokens(tokens: list[tuple[int, bytes, bool]]) -> None:
    """Tokens as (id, bytes, is it a control token): in colour on a terminal, else one a line."""
    if not sys.stdout.isatty():
        lines = (f"{number}\t{visible(data)}\n" for number, data, _ in tokens)
        return typer.echo("".join(lines), nl=False)
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
