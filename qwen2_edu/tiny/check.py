"""The checker: is this text a story of the small world, and is this answer right?

It reads a text beat by beat against every plot. A word that contradicts an earlier one (the red
ball turned blue, the goat turned goose) is noted and reading goes on, so that a report names what
is wrong. Then what was read is replayed: nobody gives what they do not have, numbers add up.

What it measures: that a text is in the language of this world and does not contradict itself. What
it cannot see: a change that leaves another valid story, such as a new name throughout.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from .facts import Question
from .grammar import KNOWN, PLOTS, SUMS, Beat, Plot
from .words import KEY, KIND_OF_ROLE, NUMBERS, THINGS
from .world import Mention, Story, Told, normalise

SILENCE = "The story does not say."
# What is asked about a thing of which a story says nothing gets SILENCE for an answer.
SILENT_QUESTIONS = ("Who has the {} now?", "Where is the {} now?", "What colour is the {}?")


@dataclass
class _Reading:
    """How far one plot explains a text."""

    plot: str = ""
    mood: str = ""
    at: int = 0
    cast: dict[str, dict[str, str]] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    mentions: list[Mention] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def rank(self) -> tuple[int, int]:
        return self.at, -len(self.faults)

    def grown(self, beat: Beat, match: re.Match, slots: list[tuple[str, str]]) -> _Reading:
        """This reading and one more beat."""
        cast = {role: dict(words) for role, words in self.cast.items()}
        mentions, faults = list(self.mentions), list(self.faults)
        for i, (role, attribute) in enumerate(slots, start=1):
            word, kind = match[i], KIND_OF_ROLE[role]
            learned = {attribute: word}
            if attribute == KEY[kind] and kind in KNOWN:
                learned = KNOWN[kind][word]
            words = cast.setdefault(role, {})
            for name, value in learned.items():
                if words.setdefault(name, value) != value:
                    faults.append(f"{words[name]!r} became {value!r} in {match[0]!r}")
                    break
            mentions.append(Mention(*match.span(i), role, attribute))
        told = [*self.told, Told(beat.effects, *match.span())]
        return _Reading(self.plot, self.mood, match.end() + 1, cast, told, mentions, faults)


def _read_plot(text: str, plot: Plot) -> _Reading:
    """The best reading of a text as this plot: it gets farthest, then it has fewest faults."""
    open_ends = [_Reading(plot.name)]
    best, finished = open_ends[0], []
    for i, beats in enumerate([plot.beats, *(beats for _, beats in plot.endings)]):
        readings = open_ends
        if i > 0:
            mood = plot.endings[i - 1][0]
            readings = [_Reading(**{**vars(r), "mood": mood}) for r in open_ends]
        for beat in beats:
            grown = [
                reading.grown(beat, match, pattern.slots)
                for reading in readings
                for pattern in beat.patterns
                if (match := pattern.regex.match(text, reading.at))
            ]
            best = max([best, *grown], key=_Reading.rank)
            readings = grown + readings if beat.optional else grown
        if i == 0:
            open_ends = readings
        else:
            finished += [reading for reading in readings if reading.at == len(text) + 1]
    if finished:
        return max(finished, key=_Reading.rank)
    best.faults = [*best.faults, _stop(text, best.at)]
    return best


def _stop(text: str, at: int) -> str:
    """What to say where no plot goes on."""
    rest = text[at:]
    if not rest:
        return "the story stops before its ending"
    return f"not expected here: {rest[:60]!r}"


def read(text: str) -> tuple[Story, list[str]]:
    """Read a text as a story.

    Returns:
        (story, faults): what could be read of it, and what is wrong with it; no faults, no lies.
    """
    best = max((_read_plot(text, plot) for plot in PLOTS), key=_Reading.rank)
    faults = list(best.faults)
    for kind in ("person", "thing", "place", "animal"):
        cast = [words for role, words in best.cast.items() if KIND_OF_ROLE[role] == kind]
        called = Counter(words[KEY[kind]] for words in cast if KEY[kind] in words)
        faults += [f"two {kind}s are called {word!r}" for word, n in called.items() if n > 1]
    number = {
        role: NUMBERS.index(words["number"])
        for role, words in best.cast.items()
        if "number" in words
    }
    for total, part, rest in SUMS[best.plot]:
        if total in number and part in number:
            left = number[total] - number[part]
            if left != number.get(rest, left):
                faults.append(f"{number[part]} and {number[rest]} are not {number[total]}")
            elif left <= 0:
                faults.append(f"{number[part]} is not less than {number[total]}")
    read_story = Story(text, best.plot, best.mood, best.cast, best.told, best.mentions)
    if not faults:  # of a story that is sound so far, the books can be kept
        faults += read_story.facts.faults
    return read_story, faults


def check_story(text: str) -> list[str]:
    """What is wrong with this text as a story of the small world? Nothing: an empty list."""
    return read(text)[1]


def silent_question(thing: str, form: int = 0) -> Question:
    """A question about a thing that the story does not know: the right answer says so."""
    text = SILENT_QUESTIONS[form % len(SILENT_QUESTIONS)].format(thing)
    return Question(text, SILENCE, "not say", "silence", None)


def find_question(story: Story | str, text: str) -> Question:
    """The question with its right answer.

    Raises:
        ValueError: the story is not valid, or it does not settle this question.
    """
    if isinstance(story, str):
        story, faults = read(story)
        if faults:
            raise ValueError(f"not a valid story: {faults[0]}")
    for question in story.questions:
        if normalise(question.text) == normalise(text):
            return question
    nouns = {words.get("noun") for words in story.cast.values()}
    for form, silent in enumerate(SILENT_QUESTIONS):
        match = re.fullmatch(normalise(silent).format("([a-z]+)"), normalise(text))
        if match and match[1] in THINGS and match[1] not in nouns:
            return silent_question(match[1], form)
    choice = ", ".join(question.text for question in story.questions)
    raise ValueError(f"the story does not settle {text!r}; it does settle: {choice}")


def check_answer(story: Story | str, question: str, answer: str) -> bool:
    """Is this the right answer?

    Exact match after `normalise`; the short answer alone ("Mia", "red", "by the river", "5") is
    right as well, and so is the full one with digits.

    Raises:
        ValueError: as `find_question`.
    """
    found = find_question(story, question)
    digits = {number: str(n) for n, number in enumerate(NUMBERS)}
    right = {
        normalise(found.answer),
        normalise(found.key),
        normalise(found.key).removeprefix("the "),
    }
    right |= {" ".join(digits.get(word, word) for word in text.split()) for text in right}
    return normalise(answer) in right
