"""Solutions to lesson 13. Try first: the checker's hints point further than you might think."""

import torch


def my_pool(hidden, mask):
    # Places where the mask is 1 keep their number, all others become 0. The largest number left is
    # the place of the last real token, on whichever side the padding is.
    B, T = mask.shape
    last = (torch.arange(T) * mask).argmax(-1)  # (B,)
    return hidden[torch.arange(B), last]


def my_span(start, end, most):
    # Every pair whose end does not stand before its start, and that is not too long, has a score:
    # the sum of two logits. That is T · most pairs, few enough to try them all.
    best, score = None, -float("inf")
    for i in range(len(start)):
        for j in range(i, min(i + most, len(end))):
            if start[i] + end[j] > score:
                best, score = (i, j), start[i] + end[j]
    return best


def my_f1(found, labels):
    # Three counts: right names, found names, names that there are. F1 is the harmonic mean of
    # right / found and right / there, which comes to twice the first over the sum of the others.
    counted = labels != -100
    right = ((found == labels) & (labels > 0) & counted).sum().item()
    tagged = ((found > 0) & counted).sum().item()
    there = ((labels > 0) & counted).sum().item()
    return 2 * right / (tagged + there)


def my_calibration(confidence, right, bins):
    # In each bin: how sure was it on average, and how often right? The gap counts as often as there
    # are answers in the bin, so that a bin with one answer cannot speak for all. The last bin has
    # no upper border: a confidence of exactly 1 belongs there.
    total = 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & ((confidence < (b + 1) / bins) | (b == bins - 1))
        if inside.any():
            gap = confidence[inside].mean() - right[inside].float().mean()
            total += gap.abs().item() * inside.sum().item()
    return total / len(confidence)


def my_labels(offsets, tags):
    # Two ranges share a character if each begins before the other ends. Padding has the empty range
    # (0, 0), and no character to share.
    labels = []
    for first, end in offsets:
        label = -100 if first == end else 0
        for a, b, name in tags:
            if a < end and first < b:
                label = name
        labels.append(label)
    return labels


SOLUTIONS = {
    "ex13_0": my_pool,
    "ex13_1": my_span,
    "ex13_2": my_f1,
    "ex13_3": my_calibration,
    "ex13_4": my_labels,
}
