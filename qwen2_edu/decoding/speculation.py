"""Speculation: guess a few tokens, read them all in one pass, keep those the model agrees with.

Reading several tokens costs hardly more than one, because the weights are what is read; so every
guess that is right is a step saved. What comes out is what plain decoding would give: greedy ids
are the same, and drawn ones follow the same distribution, whatever the guesses are worth. That is
exact in exact numbers: in bf16 a pass over several tokens rounds otherwise than passes over one,
so where two tokens are as likely as each other to its three digits, the other may be chosen.

Source: Leviathan, Kalman and Matias, arXiv:2211.17192; prompt lookup: Saxena, 2023, as in
transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..cache import DynamicCache, Growing
from .fast import fast_reader


class WholeCache(DynamicCache):
    """A cache that keeps what sliding layers no longer see, so that it can always be cut back."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.windows = dict.fromkeys(self.windows)

    def _columns(self, window: int | None, fill: int = 0) -> Growing:
        return Growing(None)


class PromptLookup:
    """Guesses that the text goes on as it did where its last words stood before.

    Args:
        most: tokens in one guess, at most.
        longest: tokens that must have stood together before: first so many, then one fewer, to 2.
    """

    def __init__(self, most: int, longest: int = 3):
        self.most, self.longest = most, longest

    def guess(self, ids: Tensor, most: int, request: Any = None) -> tuple[Tensor, None]:
        """What may follow ids (1, T): (1, n) with n at most `most`, and no probabilities."""
        T = ids.shape[1]
        for n in range(min(self.longest, T - 1), 1, -1):
            windows = ids[0].unfold(0, n, 1)[:-1]  # (T - n, n): all but the end of the text
            found = (windows == ids[0, -n:]).all(-1).nonzero()
            if len(found):  # the latest, and of these one with enough text behind it
                enough = found[found <= T - n - most]
                start = int(enough.max() if len(enough) else found.min()) + n
                return ids[:, start : start + most], None
        return ids[:, :0], None


class Assistant:
    """Guesses with a smaller model of the same vocabulary, a Qwen2ForCausalLM."""

    most = 5  # tokens in one guess

    def __init__(self, model: Any, fast: bool = False):
        self.cache = WholeCache(model.config)
        self.reader = (fast_reader(model, self.cache) if fast else None) or model

    def guess(self, ids: Tensor, most: int, request: Any) -> tuple[Tensor, Tensor | None]:
        """What may follow ids (1, T), chosen as `request` does: (1, n); odds (n, V)."""
        T, odds = ids.shape[1], []
        self.cache.crop(min(self.cache.get_seq_length(), T - 1))
        for _ in range(most):
            new = ids[:, self.cache.get_seq_length() :]
            logits = self.reader(new, past_key_values=self.cache, logits_to_keep=1).logits[:, -1]
            scores = request.processed(ids, logits)  # (1, V)
            if request.settings.do_sample:
                odds.append(scores.softmax(-1))
            ids = torch.cat((ids, request.choose(scores)[:, None]), dim=1)
        return ids[:, T:], torch.cat(odds) if odds else None


def accept(
    scores: Tensor, token: Tensor, odds: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, bool]:
    """Is a guess that was drawn kept? If not, what stands in its place?

    It is kept with probability min(1, p / q), p being the model's for it and q the guesser's, and
    replaced by a draw from max(0, p - q): together that is a draw from p, the softmax of `scores`,
    (1, V). `token`, (1,), was drawn from `odds`, (V,). Returns a token (1,), and whether it is it.
    """
    p = scores.softmax(-1)[0]
    if torch.rand((), generator=generator, device=p.device) * odds[token] < p[token]:
        return token, True
    return torch.multinomial((p - odds).clamp(min=0), 1, generator=generator), False


@torch.no_grad()
def speculate(request: Any, prefill: Callable) -> Iterator[Tensor]:
    """`generation.next_tokens` for one row, with `request.drafter` to guess."""
    r, ids, left = request, request.input_ids, request.steps
    logits = prefill(r.model, ids, r.cache, r.attention_mask)  # (1, V)
    guess, odds = ids[:, :0], None
    while True:
        kept = 0
        for i, row in enumerate(logits.split(1)):  # row i judges guess i; the last is free
            scores, guessed = r.scores(ids, row), guess[:, i : i + 1].flatten()
            if odds is None or i == len(odds):  # the guess was certain: is it what is chosen?
                token = r.choose(scores)
                agreed = torch.equal(token, guessed)
            else:
                token, agreed = accept(scores, guessed, odds[i], r.generator)
            ids, left, kept = torch.cat((ids, token[:, None]), dim=1), left - 1, kept + agreed
            done = left == 0 or bool(r.ended(ids).all())
            if done or not agreed:
                break
            yield token
        if guess.shape[1]:
            r.accepted.append(kept)
        yield token
        if done:
            return
        r.cache.crop(ids.shape[1] - 1)
        guess, odds = r.drafter.guess(ids, min(r.drafter.most, left - 1), r)
        new = torch.cat((ids[:, -1:], guess), dim=1)
        logits = r.reader(new, past_key_values=r.cache, logits_to_keep=new.shape[1]).logits[0]
