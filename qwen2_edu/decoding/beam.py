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
from torch.nn.functional import pad


def take(x: Tensor, choice: Tensor) -> Tensor:
    """For each prompt the chosen texts: x (B, N, ...), choice (B, M) -> (B, M, ...)."""
    return x[torch.arange(len(x), device=x.device)[:, None], choice]


@torch.no_grad()
def beam_search(request: Any, prefill: Any, decode: Any) -> Any:
    """The R = `num_return_sequences` best texts of each prompt, best first: (B*R, T + longest).
    With `do_sample` extensions are drawn by their probability instead of taken in its order. Where
    there are fewer texts than are asked for, the last rows are padding, with a score of -inf.

    `early_stopping` says when a prompt is done: True = as soon as K texts have ended; False = once
    the best running text, were it to end now, would not enter the pool; "never" = once it could not
    even if it ended at the length that suits it best.

    `request` is the call, a `decoding.request.Request`; `prefill` and `decode` as in `generation`.
    """
    s, (B, T), K = request.settings, request.input_ids.shape, request.settings.num_beams
    steps, device, mask = request.steps, request.input_ids.device, request.attention_mask
    # A beam has at most one extension for each end, so K of these candidates run on.
    C = K * max(2, 1 + len(s.eos_token_id))
    first_rows = K * torch.arange(B, device=device)[:, None]  # (B, 1): where each prompt's begin
    padding = s.pad_token_id or 0

    logits = prefill(request.model, request.input_ids, request.cache, mask, request.inputs_embeds)
    logits = request.spread(logits)  # (B*K, V)
    # Running texts, (B*K, T + n), and the row that each token was said in, (B*K, n). Their log
    # probabilities, (B, K): all K begin alike, so only the first may speak.
    texts, rows = request.input_ids, request.input_ids[:, :0]
    scores = torch.full((B, K), -torch.inf, device=device)
    scores[:, 0] = 0
    # Texts that have ended, (B, K, …), and their scores, -inf = a free place.
    pool, pool_rows = texts.view(B, K, T), rows.view(B, K, 0)
    pool_scores = torch.full_like(scores, -torch.inf)
    open_ = torch.ones(B, dtype=torch.bool, device=device)  # may the pool still get better?

    for n in range(1, steps + 1):
        log_probs = request.scores(texts, logits)
        V = log_probs.shape[-1]
        extended = (scores[:, :, None] + log_probs.view(B, K, V)).flatten(1)  # (B, K*V)
        if s.do_sample:  # without putting back, as torch.multinomial draws; none is left: -inf
            luck = torch.empty_like(extended).exponential_(generator=request.generator)
            flat = (extended.softmax(-1) / luck).topk(min(C, K * V)).indices  # (B, C), as drawn
            best = extended.gather(1, flat)
        else:
            best, flat = extended.topk(min(C, K * V))  # (B, C), best first
        parent, token = flat // V + first_rows, flat % V
        longer = torch.cat((texts[parent], token[..., None]), dim=-1)  # (B, C, T + n)
        longer_rows = torch.cat((rows[parent], parent[..., None]), dim=-1)  # (B, C, n)
        ended = request.ended(longer.flatten(0, 1)).view(B, -1) | (n == steps)

        # Into the pool go those of the K best that have ended.
        joins = ended & open_[:, None]
        joins[:, K:] = False
        arriving = (best / n**s.length_penalty).where(joins, -torch.inf)
        pool_scores, kept = torch.cat((pool_scores, arriving), 1).topk(K)
        pool = take(torch.cat((pad(pool, (0, 1), value=padding), longer), 1), kept)
        pool_rows = take(torch.cat((pad(pool_rows, (0, 1), value=-1), longer_rows), 1), kept)

        # On run the K best that have not.
        scores, on = best.where(~ended, -torch.inf).topk(K)
        candidates = longer, longer_rows, parent, token
        texts, rows, parent, token = (take(x, on).flatten(0, 1) for x in candidates)

        length = steps if s.early_stopping == "never" and s.length_penalty > 0 else n
        open_ &= scores[:, 0] / length**s.length_penalty > pool_scores[:, -1]
        if s.early_stopping is True:
            open_ &= (pool_scores == -torch.inf).any(-1)  # a place is free
        if n == steps or not open_.any():
            break
        if request.cache is None:
            logits = prefill(request.model, texts, mask=request.attention_mask)
        else:
            request.cache.reorder(parent)
            logits = decode(request.reader, token, request.cache)

    R = s.num_return_sequences
    said_in = pool_rows[:, :R].flatten(0, 1)  # (B*R, n)
    longest = int((said_in >= 0).sum(-1).max())
    tokens = pool[:, :R].flatten(0, 1)[:, T : T + longest]
    whole = torch.cat((request.prompt.repeat_interleave(R, 0), tokens), dim=1)
    more = {"sequences_scores": pool_scores[:, :R].flatten()} if s.output_scores else {}
    return request.answer(whole, beam_indices=said_in[:, :longest], **more)
