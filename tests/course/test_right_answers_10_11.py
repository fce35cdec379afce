"""Right answers to the exercises of lessons 10 and 11, as different people would write them: with
loops, with torch, with einsum, with numpy. All must pass, whatever they return it in.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qwen2_edu import sampling
from qwen2_edu.course.exercises import exercises_of
from tests.course.right_answers import questions

INF = math.inf


# --- lesson 10


def top_k_by_loop(logits, k):
    rows = []
    for row in logits.tolist():
        border = sorted(row, reverse=True)[:k][-1]
        rows.append([x if x >= border else -INF for x in row])
    return rows


def top_k_in_numpy(logits, k):
    row = logits.numpy()
    border = -np.sort(-row, axis=-1)[:, min(k, row.shape[1]) - 1, None]
    return np.where(row >= border, row, -np.inf)


def top_k_by_kthvalue(logits, k):
    V = logits.shape[1]
    border = logits.kthvalue(max(V - k, 0) + 1, dim=-1, keepdim=True).values
    return logits.masked_fill(logits < border, -INF)


def top_p_by_loop(logits, p):
    rows = []
    for row in logits.tolist():
        total = sum(math.exp(x) for x in row)
        kept, mass = [-INF] * len(row), 0.0
        for i in sorted(range(len(row)), key=lambda i: -row[i]):
            if mass >= p:
                break
            kept[i], mass = row[i], mass + math.exp(row[i]) / total
        rows.append(kept)
    return rows


def top_p_in_numpy(logits, p):
    x = logits.numpy().astype(np.float64)
    chances = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    order = np.argsort(-chances, axis=-1)
    down = np.take_along_axis(chances, order, -1)
    needed = np.cumsum(down, -1) - down < p
    kept = np.zeros_like(needed)
    np.put_along_axis(kept, order, needed, -1)
    return np.where(kept, x, -np.inf)


def top_p_by_einsum(logits, p):
    chances = logits.softmax(-1)
    better = (chances[:, :, None] > chances[:, None, :]).float()  # ties apart: there are none
    before = torch.einsum("bi,bij->bj", chances, better)  # mass of those that come first
    ties = (chances[:, :, None] == chances[:, None, :]).float().triu(1)
    return logits.where(before + torch.einsum("bi,bij->bj", chances, ties) < p, -INF)


def min_p_by_loop(logits, p):
    return [[x if x >= max(row) + math.log(p) else -INF for x in row] for row in logits.tolist()]


def min_p_in_numpy(logits, p):
    x = logits.numpy()
    chances = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    return np.where(chances >= p * chances.max(-1, keepdims=True), x, -np.inf)


def min_p_in_log_space(logits, p):
    border = logits.amax(-1, keepdim=True) + math.log(p)
    return torch.where(logits < border, torch.tensor(-INF), logits)


def penalty_by_loop(logits, input_ids, attention_mask, penalty):
    rows = logits.tolist()
    for row, ids, mask in zip(rows, input_ids.tolist(), attention_mask.tolist(), strict=True):
        for i in {i for i, m in zip(ids, mask, strict=True) if m}:
            row[i] = row[i] / penalty if row[i] > 0 else row[i] * penalty
    return rows


def penalty_in_numpy(logits, input_ids, attention_mask, penalty):
    x = logits.numpy().copy()
    for b in range(len(x)):
        ids = np.unique(input_ids.numpy()[b][attention_mask.numpy()[b] == 1])
        x[b, ids] = np.where(x[b, ids] < 0, x[b, ids] * penalty, x[b, ids] / penalty)
    return x


def penalty_by_einsum(logits, input_ids, attention_mask, penalty):
    hot = torch.nn.functional.one_hot(input_ids, logits.shape[-1])
    seen = torch.einsum("btv,bt->bv", hot, attention_mask) > 0
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def penalty_of_the_package(logits, input_ids, attention_mask, penalty):
    seen = sampling.seen_tokens(input_ids, logits.shape[-1], attention_mask)
    return sampling.repetition_penalty(logits, seen, penalty)


def speculation_by_loop(p, q):
    accepted, rest = 0.0, []
    for a, b in zip(p.tolist(), q.tolist(), strict=True):
        accepted += b * min(1.0, a / b)
        rest.append(max(a - b, 0.0))
    return accepted, [x / sum(rest) for x in rest]


def speculation_in_numpy(p, q):
    rest = np.maximum(p.numpy() - q.numpy(), 0)
    return float(np.minimum(p.numpy(), q.numpy()).sum()), rest / rest.sum()


def speculation_in_torch(p, q):
    rest = torch.relu(p - q)
    return 1 - rest.sum(), rest / (1 - torch.min(p, q).sum())


def speculation_by_einsum(p, q):
    rest = (p - q).clamp(min=0)
    return torch.einsum("v,v->", q, (p / q).clamp(max=1)), rest / rest.sum()


# --- lesson 11


def step_by_loop(q, k, v, keys, values):
    keys, values, mixed = torch.cat((keys, k), 1), torch.cat((values, v), 1), []
    for h in range(len(q)):
        e = [math.exp(float(q[h, 0] @ key) / math.sqrt(q.shape[-1])) for key in keys[h]]
        mixed.append(sum(x / sum(e) * value for x, value in zip(e, values[h], strict=True))[None])
    return torch.stack(mixed), keys, values


def step_by_einsum(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
    weights = (torch.einsum("htd,hsd->hts", q, keys) * q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("hts,hsd->htd", weights, values), keys, values


def step_in_torch(q, k, v, keys, values):
    keys, values = torch.hstack((keys, k)), torch.hstack((values, v))
    return torch.nn.functional.scaled_dot_product_attention(q, keys, values), keys, values


def step_in_numpy(q, k, v, keys, values):
    q, k, v, keys, values = (x.numpy() for x in (q, k, v, keys, values))
    keys, values = np.concatenate((keys, k), 1), np.concatenate((values, v), 1)
    e = np.exp(q @ keys.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
    return e / e.sum(-1, keepdims=True) @ values, keys, values


def reuse_in_numpy(cached, ids):
    n = min(len(cached), len(ids) - 1)
    return np.cumprod(np.array(cached[:n]) == np.array(ids[:n])).sum() if n else 0


def reuse_by_search(cached, ids):
    return max(n for n in range(len(ids)) if n <= len(cached) and cached[:n] == ids[:n])


def reuse_in_torch(cached, ids):
    n = min(len(cached), len(ids) - 1)
    same = torch.tensor(cached[:n]) == torch.tensor(ids[:n])
    return same.long().cumprod(0).sum()


def reuse_recursively(cached, ids):
    if not cached or len(ids) < 2 or cached[0] != ids[0]:
        return 0
    return 1 + reuse_recursively(cached[1:], ids[1:])


def scores_by_loop(prompt, new):
    without = cached = 0
    for step in range(new):
        without += sum(range(1, prompt + step + 1))
        cached += prompt + step if step else sum(range(1, prompt + 1))
    return without, cached


def scores_in_numpy(prompt, new):
    n = np.arange(prompt, prompt + new)
    return (n * (n + 1) // 2).sum(), n[-1] * (n[-1] + 1) // 2


def scores_in_torch(prompt, new):
    sizes = torch.arange(1, prompt + new)
    return sizes.cumsum(0)[prompt - 1 :].sum().item(), sizes.sum().item()


def scores_by_binomials(prompt, new):
    return math.comb(prompt + new + 1, 3) - math.comb(prompt + 1, 3), math.comb(prompt + new, 2)


def bytes_by_loop(layers, H, G, D, bits):
    return sum(D * bits / 8 for _ in range(layers) for _ in range(G) for _ in "kv")


RIGHT = {
    "ex10_1": [top_k_by_loop, top_k_in_numpy, top_k_by_kthvalue, sampling.top_k],
    "ex10_2": [top_p_by_loop, top_p_in_numpy, top_p_by_einsum, sampling.top_p],
    "ex10_3": [min_p_by_loop, min_p_in_numpy, min_p_in_log_space, sampling.min_p],
    "ex10_4": [
        penalty_by_loop,
        penalty_in_numpy,
        penalty_by_einsum,
        penalty_of_the_package,
    ],
    "ex10_5": [
        speculation_by_loop,
        speculation_in_numpy,
        speculation_in_torch,
        speculation_by_einsum,
    ],
    "ex11_1": [step_by_loop, step_by_einsum, step_in_torch, step_in_numpy],
    "ex11_3": [
        bytes_by_loop,
        lambda layers, H, G, D, bits: layers * G * D * bits // 4,
        lambda layers, H, G, D, bits: int(np.prod([2, layers, G, D, bits]) / 8),
        lambda layers, H, G, D, bits: torch.tensor([2, layers, G, D, bits]).prod() // 8,
    ],
    "ex11_4": [reuse_in_numpy, reuse_by_search, reuse_in_torch, reuse_recursively],
    "ex11_2": [scores_by_loop, scores_in_numpy, scores_in_torch, scores_by_binomials],
}


# --- mistakes that nobody foresaw: refused all the same, and told nothing false


OTHERS = [
    ("ex10_1", lambda logits, k: logits * 0),
    ("ex10_2", lambda logits, p: logits * 0),
    ("ex10_3", lambda logits, p: logits * 0),
    ("ex10_4", lambda logits, input_ids, attention_mask, penalty: logits * 0),
    ("ex10_5", lambda p, q: (0.5, p * 0)),
    ("ex11_1", lambda q, k, v, keys, values: (q * 0, keys, values)),
    ("ex11_2", lambda prompt, new: (0, 0)),
    ("ex11_3", lambda layers, H, G, D, bits: 0),
    ("ex11_4", lambda cached, ids: -1),
]
(
    test_right_in_any_style,
    test_every_exercise_is_answered,
    test_other_mistakes_are_shown_a_case,
) = questions("10 11", RIGHT, OTHERS)


def cut_in_place(logits, k):
    return logits.masked_fill_(logits < logits.topk(min(k, logits.shape[-1])).values[:, -1:], -INF)


def longer_in_place(cached, ids):
    ids.pop()
    return reuse_by_search(cached, [*ids, -1])


@pytest.mark.parametrize("name, answer", [("ex10_1", cut_in_place), ("ex11_4", longer_in_place)])
def test_an_argument_that_comes_back_changed_is_refused(name, answer):
    assert "came back changed" in exercises_of(name[2:4])[name].judge(answer)
