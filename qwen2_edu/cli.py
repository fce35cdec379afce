"""The command line: `python -m qwen2_edu` generate, chat, tokenize, info, download, verify."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from .terminal import OneSentence, read_stdin, say, show, show_table, show_tokens


def option(kind: Any, text: str, *names: str) -> Any:
    return Annotated[kind, typer.Option(*names, help=text)]


app = typer.Typer(
    cls=OneSentence,
    help="Qwen2 from the bytes up. A model is a folder in released layout, a name on the hub, or\n"
    "tiny, which is built in.",
    pretty_exceptions_enable=False,
    add_completion=False,
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or owner/name on the hub.")]
Which = option(str, "A folder, or owner/name on the hub; tiny is built in.", "--model", "-m")
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="A text; - reads it from stdin.")]
Dtype = option(str, "float32, bfloat16 or float16; auto = as stored.")
Device = option(str, "cpu, cuda, cuda:1 or mps; auto = the best with room.")
# Parameters are named as in GenerationConfig; None = what the model's generation_config.json says.
NewTokens = option(int | None, "How many tokens at most.")
Sample = option(bool | None, "Draw tokens, or take the most likely.", "--sample/--greedy")
Temperature = option(float | None, "Below 1, likely tokens get more likely.")
TopK = option(int | None, "Draw from the k likeliest tokens; 0 = from all.")
TopP = option(float | None, "Draw from the likeliest tokens that add up to p.")
MinP = option(float | None, "Draw from tokens at least p times as likely as the likeliest.")
Penalty = option(float | None, "Above 1, tokens that were there before get less likely.")
Seed = option(int | None, "The same seed draws the same tokens.")
Stop = option(list[str] | None, "Stop after this text; may be given several times.", "--stop")


def load(ctx: typer.Context) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer and settings of a call. A download shows its progress."""
    from . import AutoModelForCausalLM, AutoTokenizer
    from .decoding.settings import OPTIONS
    from .hub import resolve

    given = ctx.params
    resolve(given["model"], "model")
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    place = {"dtype": given["dtype"], "device_map": given["device"]}
    with Console(stderr=True).status(f"Loading {given['model']}"):
        model = AutoModelForCausalLM.from_pretrained(given["model"], **place)
    settings = {name: v for name, v in given.items() if name in OPTIONS and v not in (None, [])}
    return model, tokenizer, settings


@app.command()
def generate(
    ctx: typer.Context,
    prompt: Prompt,
    model: Which = "tiny",
    max_new_tokens: NewTokens = None,
    do_sample: Sample = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    num_beams: option(int | None, "Search with so many beams.", "--beams") = None,
    stop_strings: Stop = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    verbose: option(bool, "Print the settings on stderr.", "--verbose", "-v") = False,
) -> None:
    """Continue a text."""
    from .generation import effective_settings, stream

    lm, tokenizer, options = load(ctx)
    settings = effective_settings(lm, **options)
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
def chat(
    ctx: typer.Context,
    model: Which = "tiny",
    system: option(str | None, "The system message; none = the template's own.") = None,
    max_new_tokens: NewTokens = None,
    do_sample: Sample = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    stop_strings: Stop = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Talk to a model: /undo, /again, /reset, /exit; Ctrl-C stops an answer, Ctrl-D leaves."""
    from . import ChatSession

    lm, tokenizer, options = load(ctx)
    tokenizer.apply_chat_template([{"role": "user", "content": ""}])  # fails now or never
    session = ChatSession(lm, tokenizer, system, **options)
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

    passed = True
    for check in checks(model, goldens=goldens, known_as=known_as, device=device):
        line = Text(f"{'PASS' if check.ok else 'FAIL'}  {check.name:<10}  {check.detail}")
        line.stylize("bold green" if check.ok else "bold red", end=4)
        Console(soft_wrap=True).print(line)
        passed &= check.ok
    raise typer.Exit(0 if passed else 1)
