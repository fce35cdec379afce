"""How good is the shipped checkpoint? `python -m qwen2_edu.tiny.evaluate` measures and judges it.

All stories, questions and documents are held out, and the model computes in float32. `measure.py`
answers raw results; here they become named figures, some of which have targets.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..behaviour import HeadScores, find_heads
from ..cli import say
from ..files.disk import write_whole
from ..model import Qwen2ForCausalLM
from ..tokenizer import Qwen2TokenizerFast, TokenizerBase
from .check import check_story
from .measure import (
    Asked,
    Reply,
    Track,
    ask_questions,
    copies,
    held_out_losses,
    quietly,
    tell_stories,
    training_texts,
    without_window,
)
from .train import STAGES
from .world import normalise


@dataclass(frozen=True)
class Figure:
    """A measured number. of: how many were counted, for a share. least, most: what it must be."""

    part: str
    name: str
    value: float
    of: int | None = None
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool | None:
        """Is it as it must be? None: nothing is demanded."""
        if self.least is None and self.most is None:
            return None
        above = self.least is None or self.value >= self.least
        return above and (self.most is None or self.value <= self.most)  # NaN meets nothing


def share(part: str, name: str, of: Sequence[bool], **target: float) -> Figure:
    """How many of these are so, from 0 to 1; of none, NaN."""
    return Figure(part, name, sum(of) / len(of) if of else float("nan"), len(of), **target)


def question_figures(asked: Sequence[Asked]) -> list[Figure]:
    """Exact match of first and later turns, and by kind of question."""
    part = "1 Held-out questions, greedy, exact match"
    first = [a for a in asked if a.turn == 1]
    later = [a.right for a in asked if a.turn > 1]
    figures = [share(part, "first turn", [a.right for a in first], least=0.90)]
    for kind in sorted({a.question.kind for a in first}):
        right = [a.right for a in first if a.question.kind == kind]
        figures.append(share(part, f"  {kind}", right))
    part = "4 Second turns, and stopping by itself"
    return [*figures, share(part, "second turn, after its own first", later, least=0.85)]


def story_figures(
    stories: Sequence[Reply], copied: set[str], chatted: Sequence[Reply]
) -> list[Figure]:
    """Validity, variety and originality of free stories.

    Args:
        copied: those that are training stories, as `copies` finds them.
        chatted: stories drawn as the checkpoint's generation config says.
    """
    part = "2 Free stories, temperature 0.7"
    plain = [normalise(reply.text) for reply in stories]
    seen = [text in copied for text in plain]
    distinct = Figure(part, "distinct", len(set(plain)) / len(plain), len(plain), least=0.95)
    valid, careful = ([not check_story(r.text) for r in told] for told in (stories, chatted))
    return [
        share(part, "valid", valid, least=0.90),
        share(part, "  as in a chat: top-k and top-p as released", careful),
        distinct,
        Figure(part, "copies of a training story", sum(seen), most=0),
    ]


def loss_figures(losses: dict[str, float]) -> list[Figure]:
    """The model's loss, and what share of the 3-gram's it is; "well below" is three quarters."""
    part = f"3 Nats per token, {losses['tokens']:,} held-out tokens"
    figures = [Figure(part, name, losses[name]) for name in ("unigram", "3-gram")]
    most = 0.75 * min(losses["unigram"], losses["3-gram"])
    return [*figures, Figure(part, "model", losses["model"], most=most)]


def stop_figures(replies: dict[str, Sequence[Reply]]) -> list[Figure]:
    """How many answers ended with <|im_end|>, over all kinds and for each."""
    part = "4 Second turns, and stopping by itself"
    every = [reply.stopped for kind in replies.values() for reply in kind]
    figures = [share(part, "answers ended with <|im_end|>", every, least=0.99)]
    return figures + [
        share(part, f"  {name}", [reply.stopped for reply in kind])
        for name, kind in replies.items()
    ]


def head_figures(heads: HeadScores) -> list[Figure]:
    """The best head of two sorts, layers and heads counted from 0."""
    part = "5 Heads, on random tokens said twice"
    best = {name: heads.best(name) for name in ("previous_token", "induction")}
    least = {"previous_token": 0.6, "induction": 0.4}
    return [
        Figure(part, f"{name}: layer {h.layer}, head {h.head}", h.score, least=least[name])
        for name, h in best.items()
    ]


def window_figures(window: int, asked: dict[str, Sequence[Asked]]) -> list[Figure]:
    """First-turn questions by where their evidence begins: in sight of the sliding layers or not.

    Args:
        asked: name of a setting -> what was asked under it.
    """
    part = f"6 First turn, by evidence; window {window}"
    figures = []
    for name, every in asked.items():
        first = [a for a in every if a.turn == 1 and a.distance is not None]
        near = [a.right for a in first if a.distance < window]
        far = [a.right for a in first if a.distance >= window]
        figures.append(share(part, f"{name}: within the window", near))
        figures.append(share(part, f"{name}: begins farther back", far))
    return figures


def evaluate(
    model: Qwen2ForCausalLM,
    tokenizer: TokenizerBase,
    known: Iterable[str],
    *,
    n_questions: int = 500,
    n_stories: int = 200,
    n_documents: int = 400,
    n_training: int = 40_000,
    seed: int = 0,
    track: Track = quietly,
) -> list[Figure]:
    """Everything, as figures.

    Args:
        known: training texts, of which no free story may be one; from `training_texts`.
        n_questions: stories to ask about, two questions each. n_stories: stories to tell.
        n_documents: held-out ones for the loss. n_training: for the n-grams.
    """
    asked = ask_questions(model, tokenizer, n_questions, seed, track=track)
    figures = question_figures(asked)
    stories = tell_stories(model, tokenizer, n_stories, seed, track=track)
    chatted = tell_stories(model, tokenizer, n_stories, seed, as_released=True, track=track)
    figures += story_figures(stories, copies([reply.text for reply in stories], known), chatted)
    losses = held_out_losses(
        model, tokenizer, n_documents, seed, n_training=n_training, track=track
    )
    figures += loss_figures(losses)
    replies = {f"turn {n}": [a.reply for a in asked if a.turn == n] for n in (1, 2)}
    figures += stop_figures({**replies, "stories": stories})
    plain = set(range(len(tokenizer))) - set(tokenizer.get_added_vocab().values())
    figures += head_figures(find_heads(model, ids=sorted(plain), seed=seed))
    window = model.config.sliding_window
    if model.config.use_sliding_window and window is not None:
        opened = without_window(model)
        again = ask_questions(
            opened, tokenizer, n_questions, seed, turns=1, track=track, what="window off"
        )
        figures += window_figures(window, {"as trained": asked, "window off": again})
    return sorted(figures, key=lambda figure: figure.part[0])  # stable: by number of the part


def show(figures: Sequence[Figure]) -> None:
    """A table of all figures on stdout."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for head in ("figure", "of", "target", ""):
        table.add_column(head, justify="right")

    def number(figure: Figure, value: float) -> str:
        if isinstance(value, int):
            return str(value)
        return f"{value:.3f}" if figure.of is None else f"{100 * value:.1f} %"

    part = None
    for f in figures:
        if f.part != part:
            part = f.part
            table.add_section()
            table.add_row(f"[bold]{part}[/bold]")
        target = "" if f.least is None else f"≥ {number(f, f.least)}"
        target += "" if f.most is None else f"≤ {number(f, f.most)}"
        verdict = {None: "", True: "[green]PASS[/green]", False: "[bold red]MISS[/bold red]"}[f.met]
        of = "" if f.of is None else f"{f.of:,}"
        table.add_row(f"  {f.name}", number(f, f.value), of, target, verdict)
    Console().print(table)


def check_writable(file: Path) -> None:
    """Raise now, not after minutes, if this file cannot be written."""
    try:
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise OSError(f"cannot write {file} ({error.strerror}): choose another place") from error


def main(
    name_or_path: Annotated[str, typer.Argument(help="A built-in name or a folder.")] = "tiny",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write them here.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed asks about other stories.")] = 0,
) -> None:
    """Measure a checkpoint. Exit code 0: all targets met; 1: one missed; 2: not measured."""
    try:
        if json_file is not None:
            check_writable(json_file)
        tokenizer = Qwen2TokenizerFast.from_pretrained(name_or_path)
        model = Qwen2ForCausalLM.from_pretrained(name_or_path, dtype="float32")
        stages = list(STAGES.values())
        texts = sum(s.documents + s.inferred + 2 * (s.conversations + s.told) for s in stages)
        with Progress(console=Console(stderr=True)) as bar:
            figures = evaluate(
                model,
                tokenizer,
                bar.track(training_texts(stages), texts, description="training texts"),
                seed=seed,
                track=lambda items, what: bar.track(items, description=what),
            )
    except (OSError, ValueError) as error:
        say(f"Error: {error}")
        raise typer.Exit(2) from None
    show(figures)
    if json_file is not None:
        lines = [asdict(figure) | {"met": figure.met} for figure in figures]
        write_whole(json_file, (json.dumps(lines, indent=2) + "\n").encode())
    raise typer.Exit(0 if all(figure.met is not False for figure in figures) else 1)


if __name__ == "__main__":
    typer.run(main)
