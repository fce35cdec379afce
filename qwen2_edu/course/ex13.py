"""The exercises of lesson 13: classification heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .exercises import Exercise

Pair = tuple[int, int]


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The vector of the last real token of each text: (B, T, E) and (B, T) -> (B, E)."""
    last = (torch.arange(mask.shape[1]) * mask).argmax(-1)
    return hidden[torch.arange(len(hidden)), last]


def by_count(hidden: Tensor, mask: Tensor) -> Tensor:
    """Right for padding on the right only."""
    return hidden[torch.arange(len(hidden)), mask.sum(-1) - 1]


def padded_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[..., None]).sum(1) / mask.sum(-1, keepdim=True)


def best_pair(
    start: Tensor,
    end: Tensor,
    most: int,
    *,
    order: bool = True,
    score: Callable = torch.add,
    extra: int = 0,
) -> Pair:
    """The first and last token of the best span of at most `most` tokens."""
    T = len(start)
    pairs = [
        (i, j)
        for i in range(T)
        for j in range(T)
        if (not order or i <= j) and abs(j - i) < most + extra
    ]
    return max(pairs, key=lambda pair: float(score(start[pair[0]], end[pair[1]])))


def two_winners(start: Tensor, end: Tensor, most: int) -> Pair:
    return int(start.argmax()), int(end.argmax())


def start_first(start: Tensor, end: Tensor, most: int) -> Pair:
    """The best start, and then the best end for it."""
    first = int(start.argmax())
    return first, first + int(end[first : first + most].argmax())


def in_any_order(start: Tensor, end: Tensor, most: int) -> Pair:
    return best_pair(start, end, most, order=False)


def of_any_length(start: Tensor, end: Tensor, most: int) -> Pair:
    return best_pair(start, end, len(start))


def one_too_long(start: Tensor, end: Tensor, most: int) -> Pair:
    return best_pair(start, end, most, extra=1)


def end_first(start: Tensor, end: Tensor, most: int) -> Pair:
    last = int(end.argmax())
    begin = max(0, last - most + 1)
    return begin + int(start[begin : last + 1].argmax()), last


def added_probabilities(start: Tensor, end: Tensor, most: int) -> Pair:
    return best_pair(start.softmax(-1), end.softmax(-1), most)


def multiplied(start: Tensor, end: Tensor, most: int) -> Pair:
    return best_pair(start, end, most, score=torch.mul)


def f1(found: Tensor, labels: Tensor) -> float:
    """Micro F1 of all labels but 0; -100 does not count."""
    counted = labels != -100
    found, labels = found[counted], labels[counted]
    right = int(((found == labels) & (labels > 0)).sum())
    return 2 * right / (int((found > 0).sum()) + int((labels > 0).sum()))


def f1_with_none(found: Tensor, labels: Tensor) -> float:
    counted = labels != -100
    return float((found == labels)[counted].float().mean())


def f1_with_padding(found: Tensor, labels: Tensor) -> float:
    right = int(((found == labels) & (labels > 0)).sum())
    return 2 * right / (int((found > 0).sum()) + int((labels > 0).sum()))


def precision(found: Tensor, labels: Tensor) -> float:
    counted = labels != -100
    found, labels = found[counted], labels[counted]
    return int(((found == labels) & (labels > 0)).sum()) / int((found > 0).sum())


def recall(found: Tensor, labels: Tensor) -> float:
    counted = labels != -100
    found, labels = found[counted], labels[counted]
    return int(((found == labels) & (labels > 0)).sum()) / int((labels > 0).sum())


def any_tag(found: Tensor, labels: Tensor) -> float:
    """A name that was found under a wrong label counts as right."""
    return f1((found > 0).long(), torch.where(labels > 0, 1, labels))


def mean_over_labels(found: Tensor, labels: Tensor) -> float:
    kinds = [k for k in range(1, 4) if (labels == k).any() or (found[labels != -100] == k).any()]
    one = [(torch.where(found == k, 1, 0), (labels == k).long()) for k in kinds]
    counted = labels != -100
    return sum(f1(a[counted], b[counted]) for a, b in one) / len(one)


def nones_are_right(found: Tensor, labels: Tensor) -> float:
    counted = labels != -100
    found, labels = found[counted], labels[counted]
    return 2 * int((found == labels).sum()) / (int((found > 0).sum()) + int((labels > 0).sum()))


def calibration_error(confidence: Tensor, right: Tensor, bins: int) -> float:
    """Mean distance of confidence and accuracy, over bins of equal width, weighted by size."""
    at = (confidence * bins).long().clamp(max=bins - 1)  # 1.0 belongs to the last bin
    total = 0.0
    for b in range(bins):
        inside = at == b
        if inside.any():
            gap = confidence[inside].mean() - right[inside].float().mean()
            total += float(gap.abs() * inside.sum()) / len(confidence)
    return total


def without_one(confidence: Tensor, right: Tensor, bins: int) -> float:
    inside = confidence < 1
    kept = confidence[inside], right[inside]
    return calibration_error(*kept, bins) * len(kept[0]) / len(confidence)


def from_the_middle(confidence: Tensor, right: Tensor, bins: int) -> float:
    middle = ((confidence * bins).long().clamp(max=bins - 1) + 0.5) / bins
    return calibration_error(middle, right, bins)


def equal_counts(confidence: Tensor, right: Tensor, bins: int) -> float:
    gaps = [(confidence - right.float())[part].sum() for part in confidence.argsort().chunk(bins)]
    return float(sum(gap.abs() for gap in gaps) / len(confidence))


def unweighted(confidence: Tensor, right: Tensor, bins: int) -> float:
    at = (confidence * bins).long().clamp(max=bins - 1)
    inside = [at == b for b in range(bins) if (at == b).any()]
    gaps = [(confidence[i].mean() - right[i].float().mean()).abs() for i in inside]
    return float(sum(gaps) / len(gaps))


def over_all_bins(confidence: Tensor, right: Tensor, bins: int) -> float:
    used = len((confidence * bins).long().clamp(max=bins - 1).unique())
    return unweighted(confidence, right, bins) * used / bins


def with_sign(confidence: Tensor, right: Tensor, bins: int) -> float:
    return float(confidence.mean() - right.float().mean())


def one_bin(confidence: Tensor, right: Tensor, bins: int) -> float:
    return abs(with_sign(confidence, right, bins))


def each_alone(confidence: Tensor, right: Tensor, bins: int) -> float:
    return float((confidence - right.float()).abs().mean())


def token_labels(offsets: Sequence[Pair], tags: Sequence[tuple[int, int, int]]) -> list[int]:
    """The label of each token: that of the tag it shares a character with, else 0; padding -100."""
    labels = []
    for first, end in offsets:
        shared = [label for a, b, label in tags if a < end and first < b]
        labels.append(-100 if first == end else max(shared, default=0))
    return labels


def contained(offsets: Sequence[Pair], tags: Sequence[tuple[int, int, int]]) -> list[int]:
    """Only tokens that lie wholly within a tag; but a token begins with the blank before it."""
    inside = [[label for a, b, label in tags if a <= first and end <= b] for first, end in offsets]
    return [
        -100 if f == e else max(s, default=0) for (f, e), s in zip(offsets, inside, strict=True)
    ]


def by_first_character(offsets: Sequence[Pair], tags: Sequence[tuple[int, int, int]]) -> list[int]:
    inside = [[label for a, b, label in tags if a <= first < b] for first, _ in offsets]
    return [
        -100 if f == e else max(s, default=0) for (f, e), s in zip(offsets, inside, strict=True)
    ]


def by_last_character(offsets: Sequence[Pair], tags: Sequence[tuple[int, int, int]]) -> list[int]:
    return by_first_character([(e - 1, e) if f < e else (f, e) for f, e in offsets], tags)


def within_one_token(offsets: Sequence[Pair], tags: Sequence[tuple[int, int, int]]) -> list[int]:
    """Looks for names in tokens, and not for tokens in names."""
    held = [[label for a, b, label in tags if first <= a and b <= end] for first, end in offsets]
    return [-100 if f == e else max(s, default=0) for (f, e), s in zip(offsets, held, strict=True)]


def first_token_only(offsets: Sequence[Pair], tags: Sequence[tuple[int, int, int]]) -> list[int]:
    right = token_labels(offsets, tags)
    starts = {a for a, _, _ in tags}
    opens = [any(first <= a < end for a in starts) for first, end in offsets]
    return [x if x < 1 or o else 0 for x, o in zip(right, opens, strict=True)]


def others_not_counted(offsets: Sequence[Pair], tags: Sequence[tuple[int, int, int]]) -> list[int]:
    first = first_token_only(offsets, tags)
    return [a if a == b else -100 for a, b in zip(first, token_labels(offsets, tags), strict=True)]


def touching(offsets: Sequence[Pair], tags: Sequence[tuple[int, int, int]]) -> list[int]:
    shared = [[label for a, b, label in tags if a <= end and first <= b] for first, end in offsets]
    return [
        -100 if f == e else max(s, default=0) for (f, e), s in zip(offsets, shared, strict=True)
    ]


def padding_as_none(offsets: Sequence[Pair], tags: Sequence[tuple[int, int, int]]) -> list[int]:
    return [max(label, 0) for label in token_labels(offsets, tags)]


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


RIGHT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
LEFT = RIGHT.flip(1)
SPANS = [
    (torch.tensor([0.0, 3.0, 0.5, 2.0, 0.0]), torch.tensor([2.5, 0.0, 2.0, 1.0, 0.5]), 3),
    (torch.tensor([4.0, 0.0, 0.0, 3.5, 0.0, 0.0]), torch.tensor([0.0, 0.1, 0.0, 0.0, 4.0, 0.0]), 3),
    (torch.tensor([1.0, -3.0, -2.0, 0.2]), torch.tensor([-4.0, -1.0, -3.0, 2.0]), 3),
    (torch.tensor([-1.0, -2.0, -5.0]), torch.tensor([-6.0, -0.5, -4.0]), 2),
    (torch.tensor([10.0, 6.0, 0.0]), torch.tensor([0.0, 6.0, 10.0]), 1),
]
TAGGED = [
    (torch.tensor([[1, 0, 2, 0, 3, 3]]), torch.tensor([[1, 0, 3, 0, 0, -100]])),
    (torch.tensor([[0, 1, 1, 0], [2, 2, 0, 1]]), torch.tensor([[0, 1, 2, 1], [2, 2, 1, -100]])),
]
CONFIDENCE = torch.tensor([0.95, 0.92, 0.93, 0.97, 0.91, 0.55, 0.58, 0.35, 0.31, 0.72])
HITS = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0, 1, 0], dtype=torch.bool)
SURE = (torch.tensor([1.0, 0.96, 0.5, 1.0]), torch.tensor([True, False, True, False]), 5)
# " Mia had a kite." with the blank in front of a word in its token, and "ki", "te" apart
OFFSETS = [(0, 3), (3, 7), (7, 9), (9, 12), (12, 14), (14, 15), (0, 0)]
NAMES = [(0, 3, 1), (10, 14, 3)]
MORE = [(0, 2), (2, 5), (5, 9), (9, 13), (13, 14), (0, 0), (0, 0)]

EXERCISES = [
    Exercise(
        name="ex13_0",
        title="The last real token",
        answer=pool,
        cases=[
            (_random(3, 4, 2, seed=0), RIGHT),
            (_random(3, 4, 2, seed=1), LEFT),
            (_random(2, 5, 3, seed=2), torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]])),
        ],
        wrong={
            "That is the last column, and for short texts it is padding.": (
                lambda hidden, mask: hidden[:, -1]
            ),
            "Right for padding on the right. With padding on the left the count is no place.": (
                by_count
            ),
            "That is the first real token. It has seen nothing but itself.": (
                lambda hidden, mask: hidden[torch.arange(len(hidden)), mask.argmax(-1)]
            ),
            "That is the mean of all tokens. One token is asked for.": padded_mean,
        },
    ),
    Exercise(
        name="ex13_1",
        title="The best span",
        answer=best_pair,
        cases=SPANS,
        wrong={
            "Start and end are chosen apart, so the span may end before it begins. Choose the "
            "pair.": two_winners,
            "The best start need not belong to the best pair. Try all starts.": start_first,
            "The end may not stand before the start.": in_any_order,
            "At most `most` tokens, both ends counted.": of_any_length,
            "One token too many: from i to j there are j - i + 1 tokens.": one_too_long,
            "The best end need not belong to the best pair. Try all ends.": end_first,
            "The second number is the last token itself, and not the one behind it.": (
                lambda start, end, most: (
                    best_pair(start, end, most)[0],
                    best_pair(start, end, most)[1] + 1,
                )
            ),
            "Logits are added and probabilities multiplied. Probabilities added are neither.": (
                added_probabilities
            ),
            "Logits are added. Two negative ones would make a large product.": multiplied,
        },
        tolerance=0,
    ),
    Exercise(
        name="ex13_2",
        title="F1 without the many nones",
        answer=f1,
        cases=TAGGED,
        wrong={
            "That is accuracy. Most tokens are no name, and leaving them alone is no merit.": (
                f1_with_none
            ),
            "A label of -100 is padding: what was found there does not count.": f1_with_padding,
            "That is precision: what share of the found ones is right. What was missed?": precision,
            "That is recall: what share of the names was found. What was found wrongly?": recall,
            "A place that was called a person is not right.": any_tag,
            "Nones that were left alone are no right names.": nones_are_right,
            "All labels are counted together. This is the mean of an F1 for each.": (
                mean_over_labels
            ),
        },
    ),
    Exercise(
        name="ex13_3",
        title="How honest are the probabilities?",
        answer=calibration_error,
        cases=[(CONFIDENCE, HITS, 10), (CONFIDENCE, HITS, 4), (CONFIDENCE[5:], HITS[:5], 5), SURE],
        wrong={
            "A bin counts by how many answers lie in it. Here all count alike.": unweighted,
            "Empty bins are no answers. Divide by the number of answers.": over_all_bins,
            "Too sure in one bin and too modest in another cancel here. Take absolute values.": (
                with_sign
            ),
            "That compares two means over everything. Compare them in each bin.": one_bin,
            "A confidence of exactly 1 belongs to the last bin.": without_one,
            "Take the mean confidence of a bin's answers, and not its middle.": from_the_middle,
            "The bins are equally wide. These hold equally many answers.": equal_counts,
            "A single answer is right or wrong, so its own gap says little. Average in each bin "
            "first.": each_alone,
        },
    ),
    Exercise(
        name="ex13_4",
        title="From characters to tokens",
        answer=token_labels,
        cases=[(OFFSETS, NAMES), (MORE, [(3, 5, 2), (6, 9, 1), (9, 11, 3)]), (MORE, [])],
        wrong={
            "A token brings the blank in front of its word, so it begins before the name. One "
            "shared character is enough.": contained,
            "Its first character does not decide: that may be the blank in front of the name.": (
                by_first_character
            ),
            "Its last character does not decide: a token may go on behind the name.": (
                by_last_character
            ),
            "A name may be longer than a token. One shared character is enough.": within_one_token,
            "A name of several tokens has its label on all of them.": first_token_only,
            "Only padding is -100. The later tokens of a name have its label, too.": (
                others_not_counted
            ),
            "The end of a range is not part of it: touching is not sharing.": touching,
            "Padding, (0, 0), has the label -100: it does not count.": padding_as_none,
        },
    ),
]
