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


def take(x: Tensor, choice: Tensor) -> Tensor:
    """For each prompt the chosen texts: x (B, N, ...), choice (B, M) -> (B, M, ...)."""
    return x[torch.arange(len(x), device=x.device)[:, None], choice]


@torch.no_grad()
def beam_search(request: Any, prefill: Any, decode: Any) -> Any:
    """The R = `num_return_sequences` best texts of each prompt, best first: (B*R, T + longest).
    With `do_sample` extensions are drawn by their probability instead of taken in its order.

    `early_stopping` says when a prompt is done: True = as soon as K texts have ended; False = once
    the best running text, were it to end now, would not enter the pool; "never" = once it could not
    even if it ended at the length that suits it best.

    Args:
        request: the call, checked: a `decoding.request.Request`.
        prefill, decode: how the model reads a prompt and a token; see `generation`.
    """
    s, B, K = request.settings, len(request.input_ids), request.settings.num_beams
    prompt, steps, device = request.input_ids, request.steps, request.input_ids.device
    # A beam has at most one extension for each end, so K of these candidates run on.
    C = K * max(2, 1 + len(s.eos_token_id))
    first_rows = K * torch.arange(B, device=device)[:, None]  # (B, 1): where each prompt's begin

    mask, embeds = request.attention_mask, request.inputs_embeds
    logits = request.spread(prefill(request.model, prompt, request.cache, mask, embeds))  # (B*K, V)

    # Running texts, (B, K, steps, 2): each token, and the row it was said in, -1 = none yet. Their
    # log probabilities, (B, K): all K begin alike, so only the first may speak.
    texts = torch.full((B, K, steps, 2), -1, device=device)
    texts[..., 0] = -1 if s.pad_token_id is None else s.pad_token_id
    scores = torch.full((B, K), -torch.inf, device=device)
    scores[:, 0] = 0
    # Texts that have ended and their scores, -inf = a free place.
    pool, pool_scores = texts, torch.full_like(scores, -torch.inf)
    open_ = torch.ones(B, dtype=torch.bool, device=device)  # may the pool still get better?

    for n in range(1, steps + 1):
        log_probs = request.scores(_whole(prompt, texts, n - 1), logits)
        V = log_probs.shape[-1]
        extended = (scores[:, :, None] + log_probs.view(B, K, V)).flatten(1)  # (B, K*V)
        if s.do_sample:  # without putting back, as torch.multinomial draws; none is left: -inf
            luck = torch.empty_like(extended).exponential_(generator=request.generator)
            flat = (extended.softmax(-1) / luck).topk(min(C, K * V)).indices  # (B, C), as drawn
            best = extended.gather(1, flat)
        else:
            best, flat = extended.topk(min(C, K * V))  # (B, C), best first
        parent, token = flat // V, flat % V
        longer = take(texts, parent)  # (B, C, steps, 2)
        longer[:, :, n - 1] = torch.stack((token, parent + first_rows), -1)
        ended = request.ended(_whole(prompt, longer, n)).view(B, -1) | (n == steps)

        # Into the pool go those of the K best that have ended.
        joins = ended & open_[:, None]
        joins[:, K:] = False
        arriving = (best / n**s.length_penalty).where(joins, -torch.inf)
        pool_scores, kept = torch.cat((pool_scores, arriving), 1).topk(K)
        pool = take(torch.cat((pool, longer), 1), kept)

        # On run the K best that have not.
        scores, on = best.where(~ended, -torch.inf).topk(K)
        texts, parent, token = take(longer, on), take(parent, on), take(token, on)

        length = steps if s.early_stopping == "never" and s.length_penalty > 0 else n
        open_ &= scores[:, 0] / length**s.length_penalty > pool_scores[:, -1]
        if s.early_stopping is True:
            open_ &= (pool_scores == -torch.inf).any(-1)  # a place is free
        if n == steps or not open_.any():
            break
        rows = (parent + first_rows).flatten()  # (B*K,)
        if request.cache is None:
            logits = prefill(request.model, _whole(prompt, texts, n), mask=request.attention_mask)
        else:
            request.cache.reorder(rows)
            logits = decode(request.reader, token.flatten(), request.cache)

    R = s.num_return_sequences
    answers = pool[:, :R].flatten(0, 1)  # (B*R, steps, 2)
    longest = int((answers[..., 1] >= 0).sum(-1).max())
    tokens, said_in = answers[:, :longest].unbind(-1)
    whole = torch.cat((request.prompt.repeat_interleave(R, 0), tokens), dim=1)
    more = {"sequences_scores": pool_scores[:, :R].flatten()} if s.output_scores else {}
    return request.answer(whole, beam_indices=said_in, **more)


def _whole(prompt: Tensor, texts: Tensor, n: int) -> Tensor:
    """Prompts (B, T) and the first n tokens of each text (B, N, steps, 2): (B*N, T + n)."""
    N = texts.shape[1]
    return torch.cat((prompt.repeat_interleave(N, 0), texts[:, :, :n, 0].flatten(0, 1)), dim=1)
