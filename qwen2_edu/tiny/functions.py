"""Small Python functions, each with an example that is run before it is written down."""

from __future__ import annotations

import random
from collections.abc import Callable

from .words import COLOURS, NUMBERS, THINGS
from .world import pick


def _family(rng: random.Random) -> list[tuple[str, str, str, str, Callable, tuple]]:
    """All functions for one draw of their parts: (name, parameters, what it does, body, the same
    as a callable, the arguments of the example).
    """
    k = pick(rng, range(2, 10))
    word = NUMBERS[k]
    x, y = pick(rng, range(2, 30)), pick(rng, range(2, 30))
    numbers = [pick(rng, range(1, 20)) for _ in range(pick(rng, range(3, 7)))]
    things = [pick(rng, sorted(THINGS)) for _ in range(pick(rng, range(3, 6)))]
    thing, colour = pick(rng, things), pick(rng, sorted(COLOURS))
    loop_sum = (
        "    total = 0\n    for number in numbers:\n        total += number\n    return total"
    )
    loop_max = (
        "    best = numbers[0]\n    for number in numbers:\n        if number > best:\n"
        "            best = number\n    return best"
    )
    long = f"    return [word for word in words if len(word) > {k}]"
    return [
        (f"add_{word}", "x", f"Add {word} to x.", f"    return x + {k}", lambda x: x + k, (x,)),
        (
            f"take_{word}",
            "x",
            f"Take {word} from x.",
            f"    return x - {k}",
            lambda x: x - k,
            (x,),
        ),
        (
            f"times_{word}",
            "x",
            f"Take x {word} times.",
            f"    return x * {k}",
            lambda x: x * k,
            (x,),
        ),
        ("add", "a, b", "Add two numbers.", "    return a + b", lambda a, b: a + b, (x, y)),
        ("larger", "a, b", "Find the larger number.", "    return max(a, b)", max, (x, y)),
        (
            f"divides_{word}",
            "n",
            f"Tell whether {word} divides n.",
            f"    return n % {k} == 0",
            lambda n: n % k == 0,
            (pick(rng, (x, x * k)),),
        ),
        ("total", "numbers", "Add up the numbers.", loop_sum, sum, (numbers,)),
        ("largest", "numbers", "Find the largest number.", loop_max, max, (numbers,)),
        (
            "double_all",
            "numbers",
            "Double every number.",
            "    return [2 * number for number in numbers]",
            lambda numbers: [2 * number for number in numbers],
            (numbers,),
        ),
        (
            f"squares_below_{word}",
            "",
            f"List the squares of the numbers below {word}.",
            f"    return [i * i for i in range({k})]",
            lambda: [i * i for i in range(k)],
            (),
        ),
        (
            f"count_{thing}",
            "words",
            f"Count how often {thing} is in a list.",
            f'    return words.count("{thing}")',
            lambda words: words.count(thing),
            (things,),
        ),
        (
            f"has_{thing}",
            "words",
            f"Tell whether {thing} is in a list.",
            f'    return "{thing}" in words',
            lambda words: thing in words,
            (things if rng.random() < 0.5 else things[1:],),
        ),
        (
            f"first_{word}",
            "items",
            f"Take the first {word} items.",
            f"    return items[:{k}]",
            lambda items: items[:k],
            (pick(rng, (numbers, things)),),
        ),
        (
            f"longer_than_{word}",
            "words",
            f"Keep the words longer than {word} letters.",
            long,
            lambda words: [word for word in words if len(word) > k],
            (things,),
        ),
        ("backwards", "word", "Turn a word round.", "    return word[::-1]", _turn, (thing,)),
        (
            f"repeat_{word}",
            "word",
            f"Repeat a word {word} times.",
            f"    return word * {k}",
            lambda word: word * k,
            (thing,),
        ),
        (
            "describe",
            "colour, thing",
            "Put a colour before a thing.",
            '    return f"the {colour} {thing}"',
            lambda colour, thing: f"the {colour} {thing}",
            (colour, thing),
        ),
        (
            f"is_{colour}",
            "colour",
            f"Tell whether a colour is {colour}.",
            f'    return colour == "{colour}"',
            lambda other: other == colour,
            (pick(rng, (colour, pick(rng, sorted(COLOURS)))),),
        ),
        ("swap", "pair", "Swap a pair.", "    a, b = pair\n    return b, a", _swap, ((x, y),)),
        (
            "plural",
            "word",
            "Add an s to a word.",
            '    return word + "s"',
            lambda w: w + "s",
            (thing,),
        ),
    ]


def _turn(word: str) -> str:
    return word[::-1]


def _swap(pair: tuple) -> tuple:
    return pair[1], pair[0]


def function(rng: random.Random) -> tuple[str, str]:
    """A small function: (what it should do, its source with an example for doctest)."""
    name, parameters, doc, body, run, arguments = pick(rng, _family(rng))
    example = ", ".join(_quoted(argument) for argument in arguments)
    code = (
        f'def {name}({parameters}):\n    """{doc}\n\n    >>> {name}({example})\n'
        f'    {run(*arguments)!r}\n    """\n{body}'
    )
    return doc, code


def _quoted(value: object) -> str:
    """repr, with the quotes that people use in code: "kite"."""
    return repr(value).replace("'", '"')
