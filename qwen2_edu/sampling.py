"""From logits to the next token: pure functions, logits (B, V) in, logits (B, V) out.

What a function removes becomes -inf, so its probability is exactly 0. `generate` applies them in
the order in which they stand here, which is that of transformers; each works on what the one before
it left over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import pad

from .checks import Range

# What callers from outside are held to; see `checks.check_fit`.
Logits, Seen = Annotated[Tensor, "floats B V"], Annotated[Tensor, "bools B V"]
Ids, Mask = Annotated[Tensor, "ints B T"], Annotated[Tensor | None, "tensor B M"]
Count, Share = Annotated[int, Range(1, 2**31, whole=True)], Annotated[float, Range(0, 1)]
Factor = Annotated[float, Range(0, 2**53, above=True)]


def seen_tokens(input_ids: Ids, vocab_size: Count, attention_mask: Mask = None) -> Tensor:
    """Which tokens of the vocabulary does each row hold already? Padding (mask 0) does not count.
    input_ids (B, T), attention_mask (B, T), or shorter, or None -> bool (B, V).
    """
    column = input_ids
    if attention_mask is not None:
        later = input_ids.shape[1] - attention_mask.shape[1]  # tokens of the answer, all real
        column = input_ids.where(pad(attention_mask.bool(), (0, later), value=True), vocab_size)
    seen = input_ids.new_zeros(len(input_ids), vocab_size + 1, dtype=torch.bool)
    return seen.scatter_(1, column, True)[:, :vocab_size]  # the extra column took the padding


def repetition_penalty(logits: Logits, seen: Seen, penalty: Factor) -> Tensor:
    """Make the tokens that were `seen`, (B, V), less likely; below 1 the penalty is a reward.

    Positive logits are divided by it and negative ones multiplied: both move down.

    Source: CTRL, Keskar et al., arXiv:1909.05858, section 4.1.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def no_repeated_ngrams(logits: Logits, input_ids: Ids, n: Count) -> Tensor:
    """Remove the tokens that would complete n tokens which their row, (B, T), holds already.

    Source: Paulus, Xiong and Socher, arXiv:1705.04304, section 2.5.
    """
    T = input_ids.shape[1]
    if T < n:
        return logits
    windows = input_ids.unfold(1, n, 1)  # (B, T - n + 1, n)
    again = (windows[..., :-1] == input_ids[:, None, T - n + 1 :]).all(-1)
    return logits.masked_fill(seen_tokens(windows[..., -1], logits.shape[-1], again), -torch.inf)


def without(logits: Logits, input_ids: Ids, words: Iterable[Sequence[int]]) -> Tensor:
    """Remove the tokens that would complete one of the `words`, lists of ids, in a row (B, T)."""
    removed, T = torch.zeros_like(logits, dtype=torch.bool), input_ids.shape[1]
    for *before, last in words:
        if len(before) <= T:
            begun = input_ids[:, T - len(before) :] == input_ids.new_tensor(before)
            removed[:, last] |= begun.all(-1)
    return logits.masked_fill(removed, -torch.inf)


def temperature(logits: Logits, t: Factor) -> Tensor:
    """Flatten (t > 1) or sharpen (t < 1) the distribution; t = 1 changes nothing, t -> 0 is greedy.

    Source: Ackley, Hinton and Sejnowski, A Learning Algorithm for Boltzmann Machines, 1985.
    """
    return logits / t


def top_k(logits: Logits, k: Count) -> Tensor:
    """Keep the k most likely tokens, and any that tie with the last of them.

    Source: Fan, Lewis and Dauphin, arXiv:1805.04833, section 5.1.
    """
    weakest = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < weakest, -torch.inf)


def top_p(logits: Logits, p: Share) -> Tensor:
    """Nucleus sampling: keep the smallest set of most likely tokens whose probabilities reach p.

    Source: Holtzman et al., arXiv:1904.09751, section 3.1.
    """
    ascending, order = logits.sort()
    removed = ascending.softmax(-1).cumsum(-1) <= 1 - p  # the tail whose mass is not needed
    removed[:, -1] = False
    # Back in vocabulary order:
    return logits.masked_fill(removed.scatter(1, order, removed), -torch.inf)


def min_p(logits: Logits, p: Share) -> Tensor:
    """Keep tokens at least p times as likely as the most likely one.

    Source: Nguyen et al., arXiv:2407.01082, section 3.
    """
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def draw(logits: Logits, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token for each row, (B, V) -> (B,), with the probabilities softmax(logits)."""
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
