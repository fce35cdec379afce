"""One table, read in both directions: a sentence pattern writes a sentence and reads it back.

    {A} had {T.a}.   writes "Mia had a small red kite."   from A = Mia, T = a small red kite
                     reads  "Mia had a small red kite."   into the same

A pattern is compiled into constants and *slots*, a slot being one attribute of one role: the form
"{T.a}" becomes "a ", (T, size), " ", (T, colour), " ", (T, noun). To write, put the attributes in;
to read, let each slot match any word that the attribute may have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from . import plots
from .words import FORMS, KEY, KIND_OF_ROLE, WORDS

ATTRIBUTES = {
    kind: {attribute: sorted({word[attribute] for word in words}) for attribute in words[0]}
    for kind, words in WORDS.items()
}
# A name gives away its pronouns, and a place its preposition: reading one, we know the others.
KNOWN = {
    kind: {word[KEY[kind]]: word for word in words}
    for kind, words in WORDS.items()
    if kind != "thing"
}


@dataclass(eq=False)
class Pattern:
    """A compiled sentence pattern: constants[0] slots[0] constants[1] slots[1] … constants[-1]."""

    source: str
    constants: list[str] = field(default_factory=lambda: [""])
    slots: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        regex = []
        # At even places stand constants, at odd ones what was in braces.
        for i, part in enumerate(re.split(r"\{(.*?)\}", self.source)):
            if i % 2 == 0:
                self.constants[-1] += part
                regex.append(re.escape(part))
                continue
            role, _, form = part.partition(".")
            kind = KIND_OF_ROLE[role]
            inner = FORMS.get((kind, form), "{%s}" % (form or KEY[kind]))
            for j, piece in enumerate(re.split(r"\{(.*?)\}", inner)):
                if j % 2 == 0:
                    self.constants[-1] += piece
                    regex.append(re.escape(piece))
                else:
                    self.slots.append((role, piece))
                    self.constants.append("")
                    regex.append(f"({'|'.join(ATTRIBUTES[kind][piece])})")
        self.regex = re.compile("".join(regex) + "(?= |$)")  # then a space or the end

    @property
    def roles(self) -> set[str]:
        return {role for role, _ in self.slots}

    def write(self, cast: dict[str, dict[str, str]]) -> tuple[str, list[tuple[int, int, str, str]]]:
        """The sentence about this cast, and what each slot became: start, end, role, attribute."""
        text, filled = self.constants[0], []
        for (role, attribute), constant in zip(self.slots, self.constants[1:], strict=True):
            word = cast[role][attribute]
            filled.append((len(text), len(text) + len(word), role, attribute))
            text += word + constant
        return text, filled


@dataclass(eq=False)
class Beat:
    """One step of a plot: what happens in it, and the patterns that can tell it."""

    effects: list[list[str]]  # [["gives", "A", "B", "T"], …]
    patterns: list[Pattern]
    optional: bool = False


@dataclass(eq=False)
class Plot:
    """Beats, then one of the endings: (mood, further beats). sums: (N, K, M) means N = K + M."""

    name: str
    beats: list[Beat]
    endings: list[tuple[str, list[Beat]]]
    sums: list[tuple[str, str, str]]

    def __post_init__(self) -> None:
        self.every_beat = self.beats + [beat for _, beats in self.endings for beat in beats]
        self.moods = {mood for mood, _ in self.endings}
        self.roles = sorted({r for beat in self.every_beat for p in beat.patterns for r in p.roles})


def _lines(text: str) -> list[str]:
    """Drop empty lines and join a line that starts with "..." to the one above."""
    return re.sub(r"\n\s*\.\.\.", "", text).strip().splitlines()


def _shared() -> dict[str, Beat]:
    """The beats that every plot uses: name -> beat."""
    beats: dict[str, Beat] = {}
    for line in _lines(plots.SHARED):
        if not line.startswith(" ") and line:
            name = line
            beats[name] = Beat([], [], optional=name == "aside")
        elif line:
            beats[name].patterns.append(Pattern(line.strip()))
    return beats


def _plot(text: str) -> Plot:
    """One plot as written in plots.py -> a Plot. Every ending is closed by the shared last beat."""
    shared = _shared()
    name, beats, endings, sums = "", [], [], []
    for line in _lines(text):
        here = endings[-1][1] if endings else beats
        if line.startswith("plot "):
            name = line.removeprefix("plot ")
        elif line.startswith("sum "):
            sums.append(tuple(line.split()[1:]))
        elif line.startswith("?"):
            here.append(shared[line[1:]])
        elif line.startswith("="):
            endings.append((line[1:].strip(), []))
        elif line.startswith("-"):
            effects = [effect.split() for effect in line[1:].split(";") if effect.strip()]
            here.append(Beat(effects, []))
        else:
            here[-1].patterns.append(Pattern(line.strip()))
    for _, beats_of_ending in endings:
        beats_of_ending.append(shared["close"])
    return Plot(name, beats, endings, sums)


PLOTS = [_plot(text) for text in plots.PLOTS.strip().split("\n\n")]
SUMS = {plot.name: plot.sums for plot in PLOTS}
MOODS = sorted({mood for plot in PLOTS for mood, _ in plot.endings})
