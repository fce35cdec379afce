"""Solutions to lesson 10. Try first: the checker's hints point further than you might think."""

import torch


def my_top_k(logits, k):
    # The k-th best of each row is the border, and what ties with it stays too.
    border = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return torch.where(logits >= border, logits, -torch.inf)


def my_top_p(logits, p):
    # A token is needed if those before it do not reach p yet. So the first is always needed, and
    # the one that reaches p as well. The mask is made in sorted order and brought back.
    chances, order = logits.softmax(-1).sort(descending=True)
    needed = chances.cumsum(-1) - chances < p
    needed = torch.zeros_like(needed).scatter(1, order, needed)
    return torch.where(needed, logits, -torch.inf)


def my_min_p(logits, p):
    # The border follows the best token: a sure model keeps few words, an unsure one many.
    chances = logits.softmax(-1)
    return torch.where(chances >= p * chances.max(-1, keepdim=True).values, logits, -torch.inf)


def my_penalty(logits, input_ids, attention_mask, penalty):
    # Dividing makes a positive logit smaller, and multiplying a negative one. Padding is no text.
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
        seen[row, ids[mask.bool()]] = True
    lower = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, lower, logits)


def my_speculation(p, q):
    # A word comes from the draft with chance q and is kept with min(1, p / q): min(p, q) in all.
    # What is still missing of p is p - min(p, q), and that is what a refusal has to bring.
    kept = torch.minimum(p, q)
    missing = p - kept
    return kept.sum().item(), missing / missing.sum()


SOLUTIONS = {
    "ex10_1": my_top_k,
    "ex10_2": my_top_p,
    "ex10_3": my_min_p,
    "ex10_4": my_penalty,
    "ex10_5": my_speculation,
}
