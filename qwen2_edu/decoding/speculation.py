"""Speculation: guess a few tokens, read them all in one pass, keep those the model agrees with.

Reading several tokens costs hardly more than one, because the weights are what is read; so every
guess that is right is a step saved. What comes out is what plain decoding would give: greedy ids
are the same, and drawn ones follow the same distribution, whatever the guesses are worth.

Source: Leviathan, Kalman and Matias, arXiv:2211.17192; prompt lookup: Saxena, 2023, as in
transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..cache import DynamicCache, Growing
from ..sampling import draw
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

    `accepted` tells, for each pass, how many of the guessed tokens were kept.
    """

    def __init__(self, most: int, longest: int = 3):
        self.most, self.longest = most, longest
        self.accepted: list[int] = []

    def start(self, request: Any, V: int) -> None:
        """Begin a text: nothing to prepare, it is all that is needed."""
        self.accepted = []

    def guess(self, ids: Tensor, most: int) -> tuple[Tensor, None]:
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
    """Guesses with a smaller model of the same vocabulary.

    Args:
        model: a Qwen2ForCausalLM.
        most: tokens in one guess, at most.

    `accepted` as in `PromptLookup`.
    """

    def __init__(self, model: Any, most: int = 5, fast: bool = False):
        self.model, self.most, self.fast = model, most, fast
        self.accepted: list[int] = []

    def start(self, request: Any, V: int) -> None:
        """Forget the last text, and take over how `request` chooses, among V tokens."""
        self.accepted = []
        self.cache, self.request, self.V = WholeCache(self.model.config), request, V
        self.reader = (fast_reader(self.model, self.cache) if self.fast else None) or self.model

    def guess(self, ids: Tensor, most: int) -> tuple[Tensor, Tensor | None]:
        """What may follow ids (1, T): (1, n); when drawing, also the odds, (n, V)."""
        r, T, odds = self.request, ids.shape[1], []
        self.cache.crop(min(self.cache.get_seq_length(), T - 1))
        for _ in range(most):
            new = ids[:, self.cache.get_seq_length() :]
            scores = self.reader(new, past_key_values=self.cache, logits_to_keep=1).logits[:, -1]
            known = min(r.vocab_limit or self.V, self.V, scores.shape[1])
            scores = pad(scores[:, :known].float(), (0, self.V - known), value=-torch.inf)  # (1, V)
            for process in r.processors:
                scores = process(ids, scores)
            if r.settings.do_sample:
                odds.append(scores.softmax(-1))
            token = draw(scores, r.generator) if r.settings.do_sample else scores.argmax(-1)
            ids = torch.cat((ids, token[:, None]), dim=1)
        return ids[:, T:], torch.cat(odds) if odds else None


def choose_drafter(drafter: Any, model: Any, lookup: int | None, fast: bool) -> Any:
    """The one of three ways to ask for speculation that was taken; None if none was."""
    asked = [x for x in (drafter, model, lookup) if x is not None]
    if len(asked) > 1:
        raise ValueError("drafter, assistant_model and prompt_lookup_num_tokens: give one of them")
    if model is not None:
        return Assistant(model, fast=fast)
    return PromptLookup(lookup) if lookup is not None else drafter


def accept(
    scores: Tensor, token: Tensor, odds: Tensor | None = None, generator: Any = None
) -> tuple[Tensor, bool]:
    """Is a guess kept? If not, what stands in its place?

    It is kept with probability min(1, p / q), p being the model's for it and q the guesser's, and
    replaced by a draw from max(0, p - q): together that is a draw from p.

    Args:
        scores: (1, V), of the model; p is their softmax.
        token: (1,), the guess.
        odds: (V,), the probabilities it was drawn from; None = it was certain.

    Returns:
        A token (1,), and whether it is the guess.
    """
    p = scores.softmax(-1)[0]
    q = torch.zeros_like(p).index_fill_(0, token, 1.0) if odds is None else odds
    if torch.rand((), generator=generator, device=p.device) * q[token] < p[token]:
        return token, True
    rest = (p - q).clamp(min=0)
    return torch.multinomial(rest, 1, generator=generator), False


@torch.no_grad()
def speculate(request: Any, prefill: Callable) -> Iterator[Tensor]:
    """`generation.next_tokens` for one row, with `request.drafter` to guess."""
    r, s, drafter = request, request.settings, request.drafter
    logits = prefill(r.model, r.input_ids, r.cache, r.attention_mask)  # (1, V)
    drafter.start(r, logits.shape[1])
    ids, left = r.input_ids, r.steps
    guess, odds = ids[:, :0], None
    while True:
        kept = 0
        for i, row in enumerate(logits.split(1)):  # row i judges guess i; the last is free
            scores = r.scores(ids, row)
            if i == guess.shape[1]:
                token, agreed = (
                    draw(scores, r.generator) if s.do_sample else scores.argmax(-1),
                    False,
                )
            elif s.do_sample:
                q = None if odds is None else odds[i]
                token, agreed = accept(scores, guess[:, i], q, r.generator)
            else:
                token = scores.argmax(-1)
                agreed = bool(token == guess[:, i])
            ids, left, kept = torch.cat((ids, token[:, None]), dim=1), left - 1, kept + agreed
            done = left == 0 or bool(r.ended(ids).all())
            if done or not agreed:
                break
            yield token
        if guess.shape[1]:
            drafter.accepted.append(kept)
        yield token
        if done:
            return
        r.cache.crop(ids.shape[1] - 1)
        guess, odds = drafter.guess(ids, min(drafter.most, left - 1))
        new = torch.cat((ids[:, -1:], guess), dim=1)
        logits = r.reader(new, past_key_values=r.cache, logits_to_keep=new.shape[1]).logits[0]
