"""The exercise of the tour, to see how exercises work."""

import math

from .exercises import Exercise

EXERCISES = [
    Exercise(
        name="ex00_1",
        title="How surprised is a blind guesser?",
        answer=math.log,
        cases=[(2,), (4000,), (151_646,)],
        wrong={
            "Surprise is never negative: mind the sign of the logarithm.": lambda V: -math.log(V),
            "That is the chance itself. Its surprise is −ln of it.": lambda V: 1 / V,
            "That is one piece's share of the average. All V pieces are equally surprising.": (
                lambda V: math.log(V) / V
            ),
            "That is a logarithm to base 2, in bits: take the natural one.": math.log2,
            "That is a logarithm to base 10: take the natural one.": math.log10,
        },
    )
]
