"""`make fuzz MINUTES=10`: random cases against transformers, for as long as asked.

hypothesis draws the cases of each family in `cases.py` in rounds, and makes what fails small. A
round is told by its seed, and comes again with

    python -m tests.fuzz.lane --seed 123 caches
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import traceback
import warnings
from collections.abc import Iterable

import hypothesis
import torch
import transformers

from tests.fuzz.cases import FAMILIES

ROUND = 50  # cases
PHASES = [hypothesis.Phase.generate, hypothesis.Phase.shrink, hypothesis.Phase.explain]


def play(name: str, seed: int, cases: int | None = None) -> int:
    """Run the round of a seed; how many cases it had. Raises with the smallest one that fails."""
    strategy, check = FAMILIES[name]
    ran = 0

    def run(case):
        nonlocal ran
        ran += 1
        check(**case)

    settings = hypothesis.settings(
        max_examples=cases or ROUND,
        database=None,
        deadline=None,
        phases=PHASES,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.seed(seed)(settings(hypothesis.given(case=strategy)(run)))()
    return ran


def fuzz(seed: int, seconds: float, names: Iterable[str] = FAMILIES) -> dict[str, int]:
    """Rounds of each family, from `seed` on, until the time is over: at least one of each, and as
    much time for each.

    Returns: how many cases of each family held; a family ends with its first failure, as -1.
    """
    held, end = dict.fromkeys(names, 0), time.monotonic() + seconds
    spent, rounds = dict.fromkeys(held, 0.0), {name: itertools.count(seed) for name in held}
    while alive := [name for name in held if held[name] >= 0]:
        name, began = min(alive, key=spent.get), time.monotonic()
        if held[name] and began > end:
            break
        this = next(rounds[name])
        try:
            held[name] += play(name, this)
        except Exception as error:
            print("".join(traceback.format_exception(error)))
            print(f"FAILED: again with python -m tests.fuzz.lane --seed {this} {name}", flush=True)
            held[name] = -1
        spent[name] += time.monotonic() - began
    return held


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; none = all")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="play the one round of this seed")
    given = parser.parse_args(arguments)
    if unknown := set(given.families) - set(FAMILIES):
        parser.error(f"there is no family {', '.join(unknown)}")
    seed = random.randrange(2**31) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    seconds = given.minutes * 60 if given.seed is None else 0
    held = fuzz(seed, seconds, given.families or FAMILIES)
    for name, count in held.items():
        print(f"{name:<12}" + (f"{count:>8,} cases held" if count >= 0 else "  FAILED"))
    return int(-1 in held.values())


if __name__ == "__main__":
    sys.exit(main())
