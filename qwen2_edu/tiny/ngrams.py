"""The model to beat: count which token follows which, and mix what short and long contexts say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence


class NGrams:
    """An interpolated n-gram model with Witten-Bell weights.

        p(w | h) = (count(h w) + kinds(h) * p(w | h')) / (count(h) + kinds(h))

    h is the context, at most n - 1 tokens; h' is h without its first token; kinds(h) is how many
    different tokens were seen after h. A context with many kinds of continuation is trusted less,
    one never seen not at all. Below the empty context every token is as likely as any other. So no
    weight has to be fitted, and the probabilities sum to one.

    Args:
        documents: ids. n: 1 for unigrams, 3 for trigrams. vocab_size: V.

    Source: Witten and Bell, The Zero-Frequency Problem, 1991; as in Chen and Goodman, An Empirical
        Study of Smoothing Techniques for Language Modeling, arXiv:cmp-lg/9606011, section 2.4.
    """

    def __init__(self, documents: Iterable[Sequence[int]], n: int, vocab_size: int):
        if n < 1 or vocab_size < 1:
            raise ValueError(f"n={n} and vocab_size={vocab_size} must be at least 1")
        self.n, self.vocab_size = n, vocab_size
        self.follows: Counter[tuple[int, ...]] = Counter()  # (*h, w) -> count
        for ids in documents:
            for context, token in self._pairs(ids):
                for start in range(len(context) + 1):
                    self.follows[(*context[start:], token)] += 1
        self.seen: Counter[tuple[int, ...]] = Counter()  # h -> count
        self.kinds: Counter[tuple[int, ...]] = Counter()  # h -> different tokens after it
        for (*context, _), count in self.follows.items():
            self.seen[tuple(context)] += count
            self.kinds[tuple(context)] += 1

    def _pairs(self, ids: Sequence[int]) -> Iterable[tuple[tuple[int, ...], int]]:
        """Each token but the first, as nothing stands before that, and its context."""
        for t in range(1, len(ids)):
            yield tuple(ids[max(0, t - self.n + 1) : t]), ids[t]

    def probability(self, context: Sequence[int], token: int) -> float:
        """p(token | context); of the context the last n - 1 tokens count."""
        context = tuple(context[max(0, len(context) - self.n + 1) :])
        p = 1 / self.vocab_size
        for start in reversed(range(len(context) + 1)):  # from the empty context to the longest
            h = context[start:]
            if h in self.seen:
                kinds = self.kinds[h]
                p = (self.follows[(*h, token)] + kinds * p) / (self.seen[h] + kinds)
        return p

    def loss(self, documents: Iterable[Sequence[int]]) -> tuple[float, int]:
        """Mean nats per token over all tokens but the first of each document; and how many."""
        nats = [
            -math.log(self.probability(*pair)) for ids in documents for pair in self._pairs(ids)
        ]
        return math.fsum(nats) / len(nats), len(nats)
