"""What is true in a story: replay what happens, keep the books, and ask about them.

`Facts` knows what each effect of a beat does to the world and what it needs: nobody gives what they
do not have. The questions ask about the state when the story stops, and about what led there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .words import NUMBERS, PLACES

Span = tuple[int, int]


class Event(NamedTuple):
    verb: str
    words: list[str]  # who did it first; people by name, animals as "the goat"
    span: Span  # the sentences that tell it


@dataclass(frozen=True)
class Question:
    """A question, its full answer, the part of it that counts, and the span it follows from.

    kind: what is asked (holder, place, colour, size, giver, finder, taker, owner, lost, went,
        winner, mender, count, given, silence). evidence: characters of the story; of several, the
        one farthest from the end; None where the story is silent.
    """

    text: str
    answer: str
    key: str
    kind: str
    evidence: Span | None


class Facts:
    """The state of the world after the events so far.

    holder: thing -> who has it; place: thing -> where it lies; counts: (person, treat) -> number;
    log: the events; faults: what cannot have happened.
    """

    def __init__(self) -> None:
        self.holder: dict[str, str] = {}
        self.place: dict[str, str] = {}
        self.counts: dict[tuple[str, str], int] = {}
        self.log: list[Event] = []
        self.faults: list[str] = []
        self.known_from: dict[tuple[str, str] | str, Span] = {}  # where that is told

    def happens(self, verb: str, words: list[str], span: Span) -> None:
        """Let one effect happen; what it lacks goes to `faults`. words: who, …, as in plots.py."""
        who, last = words[0], words[-1]
        if verb == "has":
            self._move(last, None, who, span)
        elif verb in ("gives", "puts", "loses"):
            thing = last if verb == "gives" else words[1]
            self._need(self.holder.get(thing) == who, f"{who} {verb} the {thing} without having it")
            self._move(thing, who, words[1] if verb == "gives" else None, span)
            if verb == "puts":  # what is lost may turn up anywhere
                self.place[thing] = last
        elif verb in ("finds", "fetches"):
            self._need(last not in self.holder, f"{who} {verb} the {last}, which somebody has")
            self._move(last, None, who, span)
        elif verb == "takes":
            self._need(self.holder.get(last) != who, f"{who} takes the {last} and has it already")
            self._move(last, self.holder.get(last), who, span)
        elif verb == "gone":
            self.place.pop(who, None)
        elif verb in ("own", "add", "sub", "pass", "left"):
            self._count(verb, words, span)
        self.log.append(Event(verb, words, span))

    def _move(self, thing: str, giver: str | None, to: str | None, span: Span) -> None:
        self.place.pop(thing, None)
        self.holder.pop(thing, None)
        if to is not None:
            self.holder[thing] = to
        self.known_from[thing] = span

    def _count(self, verb: str, words: list[str], span: Span) -> None:
        who, number, treat = words[0], NUMBERS.index(words[-2]), words[-1]
        had = self.counts.get((who, treat), 0)
        self.known_from.setdefault((who, treat), span)
        if verb in ("own", "add"):
            self.counts[who, treat] = had + number
            return
        if verb == "left":  # says what is known already, so that nobody need look back
            self._need(had == number, f"{who} should have {had} {treat} left, not {number}")
            self.known_from[who, treat] = span
            return
        self._need(had >= number, f"{who} has {had} {treat}: {number} are too many")
        self.counts[who, treat] = max(had - number, 0)
        if verb == "pass":
            self._count("add", words[1:], span)

    def _need(self, condition: bool, fault: str) -> None:
        if not condition:
            self.faults.append(fault)

    def questions(self) -> list[Question]:
        """Every question about what happened and how things stand."""
        asked = []
        for thing, who in self.holder.items():
            answer = f"{who.capitalize() if who.islower() else who} has the {thing}."
            where = self.known_from[thing]
            asked.append(Question(f"Who has the {thing} now?", answer, who, "holder", where))
        for thing, place in self.place.items():
            answer = f"The {thing} is {_at(place)}."
            where = self.known_from[thing]
            asked.append(Question(f"Where is the {thing} now?", answer, _at(place), "place", where))
        for (who, treat), n in self.counts.items():
            answer = f"{who} has {NUMBERS[n]} {treat}."
            where = self.known_from[who, treat]
            text = f"How many {treat} does {who} have now?"
            asked.append(Question(text, answer, NUMBERS[n], "count", where))
        told: dict[str, list[Question]] = {}
        for event in self.log:
            for question in _about(event, self.holder):
                told.setdefault(question.text, []).append(question)
        # What happened twice, as when a thing goes out and comes back, has no one answer.
        return asked + [found[0] for found in told.values() if len(found) == 1]


def about_look(noun: str, attribute: str, word: str, span: Span) -> Question:
    """What can be asked about a thing's colour or size, told in this span?"""
    ask = f"What {attribute} is the {noun}?", f"The {noun} is {word}.", word, attribute
    return Question(*ask, span)


def _at(place: str) -> str:
    return f"{PLACES[place][0]} the {place}"


def _about(event: Event, holder: dict[str, str]) -> list[Question]:
    """What can be asked about one event?"""
    verb, words, span = event
    who, last = words[0], words[-1]
    Who = who.capitalize() if who.islower() else who
    if verb == "gives":
        to = words[1]
        ask = f"Who gave the {last} to {to}?", f"{Who} gave the {last} to {to}.", who, "giver"
    elif verb == "finds":
        ask = f"Who found the {last}?", f"{Who} found the {last}.", who, "finder"
    elif verb == "takes":
        ask = f"Who took the {last}?", f"{Who} took the {last}.", who, "taker"
    elif verb == "has" and holder.get(last) != who:
        ask = f"Who had the {last} first?", f"{Who} had the {last} first.", who, "owner"
    elif verb == "loses":
        thing = words[1]
        answer = f"{who} lost the {thing} {_at(last)}."
        ask = f"Where did {who} lose the {thing}?", answer, _at(last), "lost"
    elif verb == "goes":
        ask = f"Where did {who} go?", f"{who} went to the {last}.", f"to the {last}", "went"
    elif verb == "wins":
        ask = "Who won the race?", f"{Who} won the race.", who, "winner"
    elif verb == "mends":
        ask = f"Who mended the {last}?", f"{Who} mended the {last}.", who, "mender"
    elif verb == "pass":
        _, to, n, treat = words
        text = f"How many {treat} did {who} give to {to}?"
        ask = text, f"{who} gave {n} {treat} to {to}.", n, "given"
    else:
        return []
    return [Question(*ask, span)]
