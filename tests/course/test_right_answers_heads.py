"""Right answers to the exercises of lesson 13, in several styles; none comes from the solutions."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from qwen2_edu.course.exercises import exercises_of
from tests.course.right_answers import questions

# --- 0, the last real token


def pool_loop(hidden, mask):
    rows = []
    for x, real in zip(hidden, mask, strict=True):
        rows.append(x[max(t for t in range(len(real)) if real[t])])
    return torch.stack(rows)


def pool_einsum(hidden, mask):
    behind = mask.flip(1).cumsum(1).flip(1)  # how many real tokens from here on
    last = ((behind == 1) & (mask == 1)).float()
    return torch.einsum("bt,bte->be", last, hidden)


def pool_torch(hidden, mask):
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]


def pool_numpy(hidden, mask):
    hidden, mask = hidden.numpy(), mask.numpy()
    return np.array([x[np.flatnonzero(real)[-1]] for x, real in zip(hidden, mask, strict=True)])


# --- 1, the best span


def span_loop(start, end, most):
    best = (0, 0)
    for i, j in itertools.product(range(len(start)), repeat=2):
        if i <= j < i + most and start[i] + end[j] > start[best[0]] + end[best[1]]:
            best = (i, j)
    return best


def span_einsum(start, end, most):
    one = torch.ones_like(start)
    scores = torch.einsum("i,j->ij", start, one) + torch.einsum("i,j->ij", one, end)
    allowed = torch.ones_like(scores).triu().tril(most - 1) > 0
    return divmod(int(scores.masked_fill(~allowed, -torch.inf).argmax()), len(start))


def span_torch(start, end, most):
    scores = start[:, None] + end
    places = torch.arange(len(start))
    length = places - places[:, None]
    scores[(length < 0) | (length >= most)] = -torch.inf
    return list(torch.unravel_index(scores.argmax(), scores.shape))


def span_numpy(start, end, most):
    scores = np.add.outer(start.numpy(), end.numpy())
    allowed = np.triu(np.tril(np.ones_like(scores), most - 1)) > 0
    return np.array(np.unravel_index(np.where(allowed, scores, -np.inf).argmax(), scores.shape))


# --- 2, F1


def f1_loop(found, labels):
    right = tagged = there = 0
    for a, b in zip(found.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if b != -100:
            right, tagged, there = right + (a == b > 0), tagged + (a > 0), there + (b > 0)
    return 2 * right / (tagged + there)


def f1_harmonic(found, labels):
    real = labels.ne(-100)
    right = (found.eq(labels) & labels.gt(0)).sum()
    precision, recall = right / (found.gt(0) & real).sum(), right / labels.gt(0).sum()
    return 2 / (1 / precision + 1 / recall)


def f1_einsum(found, labels):
    real = labels != -100
    a = torch.nn.functional.one_hot(found[real], 9)[:, 1:].float()
    b = torch.nn.functional.one_hot(labels[real], 9)[:, 1:].float()
    return 2 * torch.einsum("nk,nk->", a, b) / (a.sum() + b.sum())


def f1_numpy(found, labels):
    found, labels = found.numpy().ravel(), labels.numpy().ravel()
    found, labels = found[labels >= 0], labels[labels >= 0]
    return 2 * np.sum((found == labels) * (labels > 0)) / np.count_nonzero([found, labels])


# --- 3, calibration


def calibration_loop(confidence, right, bins):
    groups = {}
    for c, r in zip(confidence.tolist(), right.tolist(), strict=True):
        groups.setdefault(min(int(c * bins), bins - 1), []).append((c, r))
    return sum(abs(sum(c - r for c, r in group)) for group in groups.values()) / len(confidence)


def calibration_scatter(confidence, right, bins):
    at = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins).index_add(0, at, confidence - right.float())
    return gaps.abs().sum() / len(confidence)


def calibration_einsum(confidence, right, bins):
    inside = torch.nn.functional.one_hot(
        (confidence * bins).long().clamp(max=bins - 1), bins
    ).float()
    return torch.einsum("nb,n->b", inside, confidence - right.float()).abs().mean() * (
        bins / len(right)
    )


def calibration_numpy(confidence, right, bins):
    confidence, right = confidence.numpy(), right.numpy()
    at = np.digitize(confidence, np.linspace(0, 1, bins + 1)[:-1])
    gaps = np.bincount(at, confidence) - np.bincount(at, right)
    return np.abs(gaps).sum() / len(right)


# --- 4, characters to tokens


def labels_by_character(offsets, tags):
    at = [0] * (max(end for _, end in offsets) + 1)
    for a, b, label in tags:
        at[a:b] = [label] * (b - a)
    return [max(at[a:b]) if a < b else -100 for a, b in offsets]


def labels_by_sets(offsets, tags):
    found = []
    for a, b in offsets:
        own = set(range(a, b))
        hit = [label for c, d, label in tags if own & set(range(c, d))]
        found.append(hit[0] if hit else 0 if own else -100)
    return found


def labels_torch(offsets, tags):
    first, end = torch.tensor(offsets).T
    found = torch.zeros(len(offsets), dtype=torch.long)
    for a, b, label in tags:
        found[(first < b) & (end > a)] = label
    found[first == end] = -100
    return found


def labels_numpy(offsets, tags):
    found = np.array([0 if b > a else -100 for a, b in offsets])
    for a, b, label in tags:
        found = [
            label if max(a, c) < min(b, d) else f for (c, d), f in zip(offsets, found, strict=True)
        ]
    return np.array(found)


RIGHT = {
    "ex13_0": [pool_loop, pool_einsum, pool_torch, pool_numpy],
    "ex13_1": [span_loop, span_einsum, span_torch, span_numpy],
    "ex13_2": [f1_loop, f1_harmonic, f1_einsum, f1_numpy],
    "ex13_3": [calibration_loop, calibration_scatter, calibration_einsum, calibration_numpy],
    "ex13_4": [labels_by_character, labels_by_sets, labels_torch, labels_numpy],
}


# --- mistakes that nobody foresaw: refused all the same, and told nothing false


OTHERS = [
    ("ex13_0", lambda hidden, mask: hidden.amax(1)),
    ("ex13_1", lambda start, end, most: (0, most)),
    ("ex13_2", lambda found, labels: 1.0),
    ("ex13_3", lambda confidence, right, bins: 0.0),
    ("ex13_4", lambda offsets, tags: [0] * len(offsets)),
]
(
    test_right_in_any_style,
    test_every_exercise_is_answered,
    test_other_mistakes_are_shown_a_case,
) = questions("13", RIGHT, OTHERS)


def test_an_argument_that_comes_back_changed_is_refused():
    def in_place(start, end, most):
        return span_torch(start, end, most), start.add_(1), end.zero_()

    says = exercises_of("13")["ex13_1"].judge(lambda *a: in_place(*a)[0])
    assert "came back changed" in says
