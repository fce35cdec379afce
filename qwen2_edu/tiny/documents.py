"""What the small model reads: stories, some with questions, and other texts between them.

    documents("train", 1000)   -> texts: stories, some with questions; the same sentence in English,
                                  Chinese and Arabic; small Python functions; lists and parrots
    exam("heldout", 500)       -> stories, each with questions to ask one after the other

Lists and parrots say everything twice. That is dull to read and good to learn from: the only way to
foresee the second half is to look up what came after this word the first time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from itertools import accumulate

from .aligned import aligned
from .check import silent_question
from .facts import Question
from .functions import function
from .grammar import PLOTS
from .words import COLOURS, PLACES, THINGS
from .world import HELD_OUT_PAIRINGS, SPLITS, Story, one_of, pick, split_of, story

_PATTERNS = " ".join(
    constant
    for plot in PLOTS
    for beat in plot.every_beat
    for pattern in beat.patterns
    for constant in pattern.constants
)
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
PARROT_WORDS = sorted(
    set(re.findall(r"[a-z]{3,}", _PATTERNS))
    | {*THINGS, *COLOURS, *PLACES, "def", "return", "print", "(x)", "[0]", "==", "+", "1", "2", "7"}
    | {row[0].split()[0] for row in THINGS.values()}
    | {row[1].split()[0] for row in COLOURS.values()}
)


def parrot(rng: random.Random) -> str:
    """Any words at all, and the same words again."""
    nonsense = [
        "".join(pick(rng, _SYLLABLES) for _ in range(pick(rng, (1, 2, 3)))) for _ in "abcdef"
    ]
    words = " ".join(
        pick(rng, nonsense if rng.random() < 0.3 else PARROT_WORDS)
        for _ in range(pick(rng, range(4, 25)))
    )
    again = f' "{words}" said the parrot.' * pick(rng, (1, 1, 2))
    return f'"{words}" said somebody.{again}'


def shopping(rng: random.Random) -> str:
    """A list of things with colours, read out again."""
    items = ", ".join(
        f"{pick(rng, sorted(COLOURS))} {pick(rng, sorted(THINGS))}"
        for _ in range(pick(rng, range(3, 11)))
    )
    return f"To buy: {items}.\nBought: {items}."


def ask(story: Story, rng: random.Random, split: str, n: int) -> list[Question]:
    """n different questions about a story, of different kinds as far as there are; at times one
    about a thing of which it says nothing.
    """
    names = [words["name"] for words in story.cast.values() if "name" in words]
    nouns = {words["noun"] for words in story.cast.values() if "noun" in words}
    questions = list(story.questions)
    chosen: list[Question] = []
    while len(chosen) < n and questions:
        if rng.random() < 0.08:
            thing = pick(rng, sorted(THINGS))
            pairs = {(name, thing) for name in names}
            if thing in nouns or (split == "train" and HELD_OUT_PAIRINGS & pairs):
                continue
            question = silent_question(thing, pick(rng, range(3)))
        else:
            kinds = sorted({question.kind for question in questions})
            kind = pick(rng, kinds)
            question = pick(rng, [question for question in questions if question.kind == kind])
            questions.remove(question)
        if question not in chosen:
            chosen.append(question)
    return chosen


def any_story(rng: random.Random, split: str) -> Story:
    """A story that nobody has to number."""
    return story(int(rng.random() * 2**50), split)


def _plain(rng: random.Random, split: str) -> str:
    return any_story(rng, split).text


def _asked(rng: random.Random, split: str) -> str:
    told = any_story(rng, split)
    asked = ask(told, rng, split, pick(rng, (1, 2, 3, 4, 5)))
    return told.text + "\n\n" + "\n".join(f"{q.text} {q.answer}" for q in asked)


# How often each kind of document comes, and what writes it.
DOCUMENTS: dict[str, tuple[float, Callable[[random.Random, str], str]]] = {
    "story": (0.25, _plain),
    "asked": (0.40, _asked),
    "aligned": (0.12, lambda rng, split: "\n".join(aligned(rng))),
    "function": (0.08, lambda rng, split: function(rng)[1]),
    "parrot": (0.10, lambda rng, split: parrot(rng)),
    "shopping": (0.05, lambda rng, split: shopping(rng)),
}


def choose(rng: random.Random, kinds: dict[str, tuple[float, Callable]]) -> Callable:
    """One of the makers, as often as its weight says."""
    weights, makers = zip(*kinds.values(), strict=True)
    share = rng.random() * sum(weights)
    return next(
        make for upto, make in zip(accumulate(weights), makers, strict=True) if share < upto
    )


def _until(split: str, make: Callable[[random.Random, str], str], rng: random.Random) -> str:
    """Make texts until one belongs to the split."""
    while split_of(text := make(rng, split)) != split:
        pass
    return text


def mixed(
    label: str,
    table: dict[str, tuple[float, Callable]],
    kinds: tuple[str, ...],
    split: str,
    n: int,
    seed: int,
) -> Iterator[tuple[random.Random, Callable]]:
    """n times a maker of text, the kinds mixed as in `table`, and its own source of chance.

    Raises:
        ValueError: another split or kind, when the first is asked for.
    """
    one_of("split", split, SPLITS)
    for kind in kinds:
        one_of("kind", kind, table)
    chosen = {kind: table[kind] for kind in kinds}
    for i in range(n):
        rng = random.Random(f"{label} {split} {seed} {i}")
        yield rng, choose(rng, chosen)


def documents(
    split: str, n: int, seed: int = 0, kinds: tuple[str, ...] = tuple(DOCUMENTS)
) -> Iterator[str]:
    """n texts for pretraining, the kinds mixed as in DOCUMENTS; text i depends on its number only.

    Args:
        split: "train" or "heldout". kinds: which of DOCUMENTS to use.

    Raises:
        ValueError: another split or kind, when the first text is asked for.
    """
    for rng, make in mixed("document", DOCUMENTS, kinds, split, n, seed):
        yield _until(split, make, rng)


def exam(
    split: str, n: int, seed: int = 0, turns: int = 2
) -> Iterator[tuple[Story, list[Question]]]:
    """n stories, each with `turns` questions to be asked in this order."""
    for i in range(n):
        rng = random.Random(f"exam {split} {seed} {i}")
        told = any_story(rng, split)
        yield told, ask(told, rng, split, turns)


def first_turn(story: Story, question: Question) -> str:
    """What the user says first: the story, an empty line, the question."""
    return f"{story.text}\n\n{question.text}"
