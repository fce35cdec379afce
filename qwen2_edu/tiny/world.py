"""The small world: a seed in, a story out, with its questions, its mood and its tags.

    story(7)              -> a Story: .text .questions .mood .tags .facts .plot
    story(7, "heldout")   -> one that training never sees
    stories("train", 9)   -> nine of them

Everything is deterministic: the same seed gives the same story on every machine. All text is made
here, from `words.py` and `plots.py`; nothing is taken from anywhere else.

Training and held-out stories differ in who meets what. A *pairing* of a name and a thing belongs to
one side by its sha256: no training story holds a held-out pairing, and in every held-out story its
A and its T, the roles that every plot has, are one. So no held-out story can be a training story.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple, TypeVar

from .facts import Facts, Question, about_look
from .grammar import MOODS, PLOTS, SUMS, Plot
from .words import KEY, KIND_OF_ROLE, NAMES, NUMBERS, TAG_OF_ATTRIBUTE, THINGS, TREATS, WORDS

SPLITS = ("train", "heldout")
HELD_OUT_SHARE = 0.1  # of the pairings
ASIDE_SHARE = 0.5  # of the places where an aside may stand

Item = TypeVar("Item")


def hash_share(text: str) -> float:
    """The sha256 of a text as a number in [0, 1): which side it falls on does not depend on us."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


HELD_OUT_PAIRINGS = frozenset(
    (name, thing)
    for name, thing in product(NAMES, [*THINGS, *TREATS])
    if hash_share(f"{name} {thing}") < HELD_OUT_SHARE
)
_WORD = re.compile(r"[A-Za-z]+")


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the end: what two equal texts have in common."""
    return " ".join(text.lower().split()).rstrip(".!?。؟")


def one_of(what: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ValueError that names the choices, unless the value is one."""
    if value not in choices:
        raise ValueError(f"{what} is {value!r}; expected one of {', '.join(choices)}")


def split_of(text: str) -> str:
    """Which split may hold this text?

    One that brings a held-out name and thing together is held out; one with other pairings is for
    training; one without any falls by the hash of its normalised content.
    """
    words = set(_WORD.findall(text))
    pairings = set(product(words & set(NAMES), words & {*THINGS, *TREATS}))
    if pairings:
        return "heldout" if pairings & HELD_OUT_PAIRINGS else "train"
    return "heldout" if hash_share(normalise(text)) < HELD_OUT_SHARE else "train"


class Tag(NamedTuple):
    start: int  # characters
    end: int
    label: str  # person, place or thing


class Mention(NamedTuple):
    start: int
    end: int
    role: str
    attribute: str


class Told(NamedTuple):
    effects: list[list[str]]
    start: int
    end: int


@dataclass
class Story:
    """A story and all that follows from it.

    text: one paragraph. plot: the name of its plot. mood: glad, sad, tense or calm. cast: role ->
    attributes, as {"A": {"name": "Mia", "she": "she", …}}. told: its beats. mentions: each word
    that was put into a pattern.
    """

    text: str
    plot: str
    mood: str
    cast: dict[str, dict[str, str]]
    told: list[Told]
    mentions: list[Mention]

    @cached_property
    def tags(self) -> list[Tag]:
        """Where persons, places and things are named, in order."""
        labels = [(m, TAG_OF_ATTRIBUTE.get(m.attribute)) for m in self.mentions]
        return [Tag(m.start, m.end, label) for m, label in labels if label]

    @cached_property
    def facts(self) -> Facts:
        """The state of the world at the end."""
        facts = Facts()
        for effects, start, end in self.told:
            for verb, *roles in effects:
                facts.happens(verb, [self._call(role) for role in roles], (start, end))
        return facts

    @cached_property
    def questions(self) -> list[Question]:
        """All questions that this story answers."""
        asked = self.facts.questions()
        seen = set()
        for start, end, role, attribute in self.mentions:
            if attribute in ("colour", "size") and (role, attribute) not in seen:
                seen.add((role, attribute))
                noun, word = self.cast[role]["noun"], self.cast[role][attribute]
                asked.append(about_look(noun, attribute, word, (start, end)))
        return asked

    @cached_property
    def inferred(self) -> list[Mention]:
        """The prepositions and numbers that follow from what stands before them: "under", where the
        bridge was named already; a number told again; the last told of three that make a sum.
        """
        found, seen = [], set()
        for mention in self.mentions:
            role, attribute = mention.role, mention.attribute
            if attribute in ("prep", "number"):
                rest = (set(one) - {role} for one in SUMS[self.plot] if role in one)
                if role in seen or any(others <= seen for others in rest):
                    found.append(mention)
            seen.add(role)
        return found

    def distance(self, question: Question) -> int | None:
        """Characters from the end of the evidence to the end of the story; None: no evidence."""
        return None if question.evidence is None else len(self.text) - question.evidence[1]

    def _call(self, role: str) -> str:
        """What a role is called where facts are kept: Mia, kite, river, the goat, seven."""
        word = self.cast[role]
        if "animal" in word:
            return f"the {word['animal']}"
        return word[KEY[KIND_OF_ROLE[role]]]


def pick(rng: random.Random, items: Sequence[Item]) -> Item:
    """One of the items. Written with `random()`, the one method that promises never to change."""
    return items[int(rng.random() * len(items))]


def _cast(plot: Plot, rng: random.Random) -> dict[str, dict[str, str]]:
    """A different word for each role; numbers that add up."""
    cast: dict[str, dict[str, str]] = {}
    for role in plot.roles:
        kind = KIND_OF_ROLE[role]
        if kind == "number":
            continue
        taken = {
            word
            for other, words in cast.items()
            if KIND_OF_ROLE[other] == kind
            for word in (words[KEY[kind]], words.get("colour"))
        }
        word = pick(rng, WORDS[kind])
        while word[KEY[kind]] in taken or word.get("colour", "-") in taken:
            word = pick(rng, WORDS[kind])
        cast[role] = word
    for total, part, rest in plot.sums:
        numbers = pick(rng, range(2, 7)), pick(rng, range(2, 7))
        for role, number in zip((total, part, rest), (sum(numbers), *numbers), strict=True):
            cast[role] = {"number": NUMBERS[number]}
    return cast


def _side(cast: dict[str, dict[str, str]]) -> str | None:
    """Which split is this cast for? None: for none, as only a pairing at its edge is held out."""
    names = [words["name"] for words in cast.values() if "name" in words]
    things = [w.get("noun") or w["treat"] for w in cast.values() if "noun" in w or "treat" in w]
    if (cast["A"]["name"], cast["T"]["noun"]) in HELD_OUT_PAIRINGS:
        return "heldout"
    return None if HELD_OUT_PAIRINGS.intersection(product(names, things)) else "train"


def story(seed: int, split: str = "train") -> Story:
    """Tell the story of a seed.

    Args:
        seed: any integer. split: "train" or "heldout"; see the top of this file.

    Raises:
        ValueError: another split.
    """
    one_of("split", split, SPLITS)
    rng = random.Random(f"{split} {seed}")
    mood = pick(rng, MOODS)  # the mood first, or calm stories would be rare
    plot = pick(rng, [plot for plot in PLOTS if mood in plot.moods])
    _, ending = pick(rng, [ending for ending in plot.endings if ending[0] == mood])
    cast = _cast(plot, rng)
    while _side(cast) != split:
        cast = _cast(plot, rng)

    sentences, at, told, mentions = [], 0, [], []
    for beat in plot.beats + ending:
        if beat.optional and rng.random() >= ASIDE_SHARE:
            continue
        pattern = pick(rng, beat.patterns)
        text, filled = pattern.write(cast)
        mentions += [Mention(at + start, at + end, *slot) for start, end, *slot in filled]
        told.append(Told(beat.effects, at, at + len(text)))
        sentences.append(text)
        at += len(text) + 1
    used = {mention.role for mention in mentions}
    cast = {role: words for role, words in cast.items() if role in used}
    return Story(" ".join(sentences), plot.name, mood, cast, told, mentions)


def stories(split: str, n: int, seed: int = 0) -> Iterator[Story]:
    """n stories in a row; another seed gives others."""
    return (story(seed * 10_000_000 + i, split) for i in range(n))
