"""Practice in looking things up: several things, who has them and where they lie, many questions.

    drills("train", 1000)  -> conversations, as `conversations` answers them

A story teaches to tell and asks little: two things in a hundred words, a few questions. A drill is
no story. Half of the drills are sentences of the plots, each about any of several people and
things, with as many questions as go into a row of training. The other half are roll calls: many
things in few words, and their sizes, colours and owners asked one after the other. So the same
lookup is practised ten times in a row of tokens.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from .conversations import Message, asked_turns, turns
from .documents import ask
from .facts import Facts, Question, about_look
from .grammar import KNOWN, PLOTS, Pattern
from .words import COLOURS, NAMES, PLACES, SIZES, THINGS
from .world import SPLITS, one_of, pick, split_of

FROM_HAND = "gives", "gives", "puts", "loses"  # what can happen to a thing that somebody has
FROM_GROUND = "finds", "finds", "goes"  # and if nobody has it: somebody finds it, or walks by
EASY = "colour", "size"
LONGEST = 150  # words of a drill, so that nearly all fit into a row of 256 tokens
MARKUP = 5  # of a question and its answer, as words


def _tellings() -> dict[str, list[tuple[Pattern, list[str]]]]:
    """For each verb the patterns of all plots that tell it and nothing else, with its roles."""
    tellings = defaultdict(list)
    for plot in PLOTS:
        for beat in plot.every_beat:
            if len(beat.effects) == 1:
                verb, *roles = beat.effects[0]
                fitting = [p for p in beat.patterns if p.roles == set(roles)]
                tellings[verb] += [(pattern, roles) for pattern in fitting]
    return dict(tellings)


TELLINGS = _tellings()


class Drill(NamedTuple):
    """As much of a Story as is needed to ask about it."""

    text: str
    cast: dict[str, dict[str, str]]
    questions: list[Question]


def drill(rng: random.Random) -> Drill:
    """Two to four things, each with its owner, and what then happens to them."""
    persons = _different(rng, NAMES, pick(rng, (2, 3, 4)))
    places = _different(rng, sorted(PLACES), 3)
    nouns = _different(rng, sorted(THINGS), pick(rng, (2, 3, 3, 4)))
    colours = _different(rng, sorted(COLOURS), len(nouns))
    things = [
        {"noun": noun, "colour": colour, "size": pick(rng, SIZES)}
        for noun, colour in zip(nouns, colours, strict=True)
    ]
    word = KNOWN["person"] | KNOWN["place"] | {thing["noun"]: thing for thing in things}

    facts, sentences, at = Facts(), [], 0

    def tell(verb: str, *words: str) -> None:
        nonlocal at
        pattern, roles = pick(rng, TELLINGS[verb])
        text, _ = pattern.write({role: word[w] for role, w in zip(roles, words, strict=True)})
        facts.happens(verb, list(words), (at, at + len(text)))
        sentences.append(text)
        at += len(text) + 1

    questions = []
    for thing in things:
        start, noun = at, thing["noun"]
        tell("has", pick(rng, persons), noun)
        for attribute in ("colour", "size"):
            if thing[attribute] in sentences[-1]:
                questions.append(about_look(noun, attribute, thing[attribute], (start, at - 1)))
    for _ in range(pick(rng, range(5))):
        noun = pick(rng, nouns)
        who = facts.holder.get(noun)
        if who is None:
            verb = pick(rng, FROM_GROUND)
            tell(verb, pick(rng, persons), noun if verb == "finds" else pick(rng, places))
        elif (verb := pick(rng, FROM_HAND)) == "gives":
            tell(verb, who, pick(rng, [person for person in persons if person != who]), noun)
        else:
            tell(verb, who, noun, pick(rng, places))
    cast = {name: word[name] for name in [*persons, *nouns]}
    return Drill(" ".join(sentences), cast, facts.questions() + questions)


def _different(rng: random.Random, words: list[str], n: int) -> list[str]:
    """n different ones of these words, in any order."""
    chosen: list[str] = []
    while len(chosen) < n:
        if (word := pick(rng, words)) not in chosen:
            chosen.append(word)
    return chosen


def _asked(rng: random.Random, split: str, easy: bool) -> list[Message]:
    """A drill and as many questions as there are and fit."""
    told = drill(rng)
    if not easy:
        hard = [question for question in told.questions if question.kind not in EASY]
        told = told._replace(questions=hard)
    asked, room = [], LONGEST - len(told.text.split())
    for question in ask(told, rng, split, 12):
        room -= len(question.text.split()) + len(question.answer.split()) + MARKUP
        if asked and room < 0:
            break
        asked.append(question)
    return asked_turns(told, asked)


def _roll_call(rng: random.Random, split: str, easy: bool) -> list[Message]:
    """Many things in few words; then the sizes and colours of several at once and an owner, or, if
    that is too easy, the owners of all, one after the other.
    """
    persons = _different(rng, NAMES, pick(rng, (2, 3)))
    nouns = _different(rng, sorted(THINGS), pick(rng, (3, 4, 5, 6)))
    colours = _different(rng, sorted(COLOURS), len(nouns))
    rows = {
        noun: (pick(rng, persons), pick(rng, SIZES), c)
        for noun, c in zip(nouns, colours, strict=True)
    }
    told = " ".join(f"{who} had a {size} {c} {noun}." for noun, (who, size, c) in rows.items())
    texts = []
    if easy:
        for what in _different(rng, ["size", "colour", "owner"], 3):
            most = 1 if what == "owner" else len(nouns)
            wanted = _different(rng, nouns, pick(rng, range(1, most + 1)))
            listed = " and ".join(f"the {noun}" for noun in wanted)
            if what == "owner":
                answers = [f"{rows[noun][0]} has the {noun}." for noun in wanted]
            else:
                column = 1 if what == "size" else 2
                answers = [f"The {noun} is {rows[noun][column]}." for noun in wanted]
            question = f"Who has {listed}?" if what == "owner" else f"What {what} is {listed}?"
            texts += question, " ".join(answers)
    else:
        for noun in _different(rng, nouns, len(nouns)):
            texts += f"Who has the {noun} now?", f"{rows[noun][0]} has the {noun}."
    return turns(f"{told}\n\n{texts[0]}", *texts[1:])


def drills(split: str, n: int, seed: int = 0, easy: bool = True) -> Iterator[list[Message]]:
    """n drills as conversations; every other one is a roll call. If they are not easy, they ask for
    no size and no colour, which are learned first, but only who, where and how many.

    Raises:
        ValueError: another split.
    """
    one_of("split", split, SPLITS)
    for i in range(n):
        rng = random.Random(f"drill {split} {seed} {i}")
        make = (_asked, _roll_call)[i % 2]
        talk = make(rng, split, easy)
        while split_of(talk[0]["content"]) != split:
            talk = make(rng, split, easy)
        yield talk
