"""Beam search: instead of the most likely next token, look for the most likely continuation.

Each prompt keeps K running texts, its beams. A step extends all of them by every token, and the K
best extensions run on. A text that ends leaves the race for a pool, where texts of different
lengths compete by

    score = log probability / length ** length_penalty

Source: Graves, arXiv:1211.3711, section 2; penalty and stopping rules as in transformers 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import sampling


def take(x: Tensor, choice: Tensor) -> Tensor:
    """For each prompt the chosen texts: x (B, N, ...), choice (B, M) -> (B, M, ...)."""
    return x[torch.arange(len(x), device=x.device)[:, None], choice]


@torch.no_grad()
def beam_search(model: Any, request: Any, prefill: Any, decode: Any) -> Tensor:
    """The R = `num_return_sequences` best texts of each prompt, best first: (B*R, T + longest).

    `early_stopping` says when a prompt is done: True = as soon as K texts have ended; False = once
    the best running text, were it to end now, would not enter the pool; "never" = once it could not
    even if it ended at the length that suits it best.

    Args:
        request: the call, checked: a `generation.Request`.
        prefill, decode: how the model reads a prompt and a token; see `generation`.
    """
    s, cache, ids, mask = request.settings, request.cache, request.input_ids, request.attention_mask
    B, K, device = len(ids), s.num_beams, ids.device
    steps, limit, penalty = request.steps, request.vocab_limit, s.repetition_penalty
    ends = ids.new_tensor(s.eos_token_id)
    # A beam has at most len(ends) extensions that end it, so K of these candidates run on.
    C = K * max(2, 1 + len(ends))

    logits = prefill(model, ids, cache, mask)  # (B, V): the prompt is read once
    rows = torch.arange(B, device=device).repeat_interleave(K)
    cache.reorder(rows)  # B*K rows from here on
    logits = logits[rows]
    seen = sampling.seen_tokens(ids, logits.shape[-1], mask)[rows] if penalty != 1 else None

    # Running texts and their log probabilities. All K begin alike, so only the first may speak.
    texts = ids.new_full((B, K, steps), -1 if s.pad_token_id is None else s.pad_token_id)
    scores = torch.full((B, K), -torch.inf, device=device)
    scores[:, 0] = 0
    # Texts that have ended, their scores (-inf = a free place) and their lengths.
    pool, pool_scores = texts, torch.full_like(scores, -torch.inf)
    pool_lengths = torch.zeros_like(scores, dtype=torch.long)
    open_ = torch.ones(B, dtype=torch.bool, device=device)  # may the pool still get better?

    for n in range(1, steps + 1):
        log_probs = logits[:, :limit].float().log_softmax(-1)
        if seen is not None:
            log_probs = sampling.repetition_penalty(log_probs, seen[:, :limit], penalty)
        V = log_probs.shape[-1]
        extended = (scores[:, :, None] + log_probs.view(B, K, V)).flatten(1)  # (B, K*V)
        best, flat = extended.topk(min(C, K * V))  # (B, C), best first
        parent, token = flat // V, flat % V
        longer = take(texts, parent)  # (B, C, steps)
        longer[:, :, n - 1] = token
        ended = torch.isin(token, ends) | (n == steps)

        # Into the pool go those of the K best that have ended.
        joins = ended & open_[:, None]
        joins[:, K:] = False
        arriving = (best / n**s.length_penalty).where(joins, -torch.inf)
        pool_scores, kept = torch.cat((pool_scores, arriving), 1).topk(K)
        pool = take(torch.cat((pool, longer), 1), kept)
        pool_lengths = take(torch.cat((pool_lengths, torch.full_like(parent, n)), 1), kept)

        # On run the K best that have not.
        scores, on = best.where(~ended, -torch.inf).topk(K)
        texts, parent, token = take(longer, on), take(parent, on), take(token, on)

        length = steps if s.early_stopping == "never" and s.length_penalty > 0 else n
        open_ &= scores[:, 0] / length**s.length_penalty > pool_scores[:, -1]
        if s.early_stopping is True:
            open_ &= (pool_scores == -torch.inf).any(-1)  # a place is free
        if n == steps or not open_.any():
            break
        rows = (parent + K * torch.arange(B, device=device)[:, None]).flatten()  # (B*K,)
        cache.reorder(rows)
        if seen is not None:
            seen = seen[rows].scatter_(1, token.view(-1, 1), True)
        logits = decode(request.reader, token.flatten(), cache)

    R = s.num_return_sequences
    answers = pool[:, :R, : int(pool_lengths[:, :R].amax())].flatten(0, 1)  # (B*R, longest)
    return torch.cat((ids.repeat_interleave(R, 0), answers), dim=1)
