"""The sampling functions: what each keeps, and that draws follow the distribution."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2_edu import sampling

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, -9.0]])


def kept(logits):
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def test_temperature_divides():
    assert torch.equal(sampling.temperature(LOGITS, 0.5), LOGITS * 2)


@pytest.mark.parametrize(
    ("k", "left"), [(1, [[0], [2]]), (2, [[0, 1], [0, 1, 2]]), (9, [[0, 1, 2, 3]] * 2)]
)
def test_top_k_keeps_k_and_ties(k, left):
    assert kept(sampling.top_k(LOGITS, k)) == left


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for p, left in ((0.01, [0]), (0.49, [0]), (0.51, [0, 1]), (0.79, [0, 1]), (0.81, [0, 1, 2])):
        assert kept(sampling.top_p(logits, p)) == [left]
    assert kept(sampling.top_p(logits.flip(1), 0.51)) == [[2, 3]]


def test_min_p_is_relative_to_the_best():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for p, left in ((0.09, [0, 1, 2, 3]), (0.11, [0, 1, 2]), (0.59, [0, 1]), (1.0, [0])):
        assert kept(sampling.min_p(logits, p)) == [left]


def test_repetition_penalty_pushes_down_on_both_sides_of_zero():
    seen = torch.tensor([[True, False, True, True], [False, False, False, True]])
    got = sampling.repetition_penalty(LOGITS, seen, 2.0)
    assert got.tolist() == [[1.0, 1.0, 0.0, -2.0], [0.0, 0.0, 3.0, -18.0]]


def test_seen_tokens_skips_padding():
    ids, mask = torch.tensor([[3, 3, 1], [0, 2, 2]]), torch.tensor([[0, 1, 1], [0, 0, 1]])
    seen = sampling.seen_tokens(ids, 4, mask)
    assert [row.nonzero().flatten().tolist() for row in seen] == [[1, 3], [2]]
    assert sampling.seen_tokens(ids, 4)[1].tolist() == [True, False, True, False]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20),
    st.integers(1, 25),
    st.floats(0.01, 1.0),
)
def test_the_best_token_survives_everything(values, k, p):
    logits = torch.tensor([values])
    best = logits.argmax(-1)
    for cut in (
        sampling.top_k(logits, k),
        sampling.top_p(logits, p),
        sampling.min_p(logits, p),
        sampling.min_p(sampling.top_p(sampling.top_k(logits, k), p), p),
    ):
        assert cut.amax(-1).item() == logits.amax(-1).item()
        assert cut.softmax(-1).sum().item() == pytest.approx(1.0)
        assert cut[0, best].isfinite() or (logits == logits.amax()).sum() > 1
        assert torch.equal(cut[cut.isfinite()], logits[cut.isfinite()])  # nothing else is changed


def test_draws_follow_the_distribution():
    """Chi-square over 20,000 draws against probabilities worked out by hand."""
    probabilities = [0.4, 0.3, 0.2, 0.1, 0.0]
    logits = torch.tensor([[math.log(p) if p else -math.inf for p in probabilities]])
    n = 20_000
    drawn = sampling.draw(logits.expand(n, -1), torch.Generator().manual_seed(5))
    counts = drawn.bincount(minlength=5).tolist()
    assert counts[4] == 0
    expected = [n * p for p in probabilities[:4]]
    chi_square = sum((c - e) ** 2 / e for c, e in zip(counts[:4], expected, strict=True))
    assert chi_square < 16.3  # 3 degrees of freedom: exceeded once in a thousand runs


def test_draws_obey_their_generator():
    draws = [
        sampling.draw(torch.zeros(8, 50), torch.Generator().manual_seed(seed)).tolist()
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_words_are_forbidden_where_they_would_be_completed():
    ids, logits = torch.tensor([[1, 2, 3], [3, 1, 2]]), torch.zeros(2, 4)
    words = [[0], [2, 3, 1], [1, 2, 3], [1, 2, 3, 1, 2], [9, 1, 2, 3, 0]]
    assert kept(sampling.without(logits, ids, words)) == [[2, 3], [1, 2]]
    theirs = transformers.NoBadWordsLogitsProcessor(words[:3], eos_token_id=None)
    assert torch.equal(sampling.without(logits, ids, words[:3]), theirs(ids, logits.clone()))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_ngrams_do_not_come_twice(n):
    ids = torch.randint(0, 4, (5, 8), generator=torch.Generator().manual_seed(n))
    theirs = transformers.NoRepeatNGramLogitsProcessor(n)
    logits = torch.randn(5, 4)
    assert torch.equal(sampling.no_repeated_ngrams(logits, ids, n), theirs(ids, logits.clone()))
