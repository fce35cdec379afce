"""Causes in the released model: shares add up, and what lesson 14 says of it."""

from __future__ import annotations

import pytest
import torch

from qwen2_edu.causes import ablate, attribution, cut, effect, follow, patch

pytestmark = pytest.mark.released
STORY = (
    "Rosa has a {} flag. Ben has a green box.\n"
    "Question: What colour is the flag?\nAnswer: The flag is"
)
EVIDENCE, LAST = 4, 25


@pytest.fixture(scope="module")
def traces(model, tokenizer):
    texts = [STORY.format(colour) for colour in ("blue", "black")]
    return [follow(model, tokenizer(text, return_tensors="pt").input_ids) for text in texts]


@pytest.fixture(scope="module")
def pair(tokenizer):
    return [tokenizer(" " + colour).input_ids[0] for colour in ("blue", "black")]


def ahead(trace, edits, pair):
    logits = effect(trace, edits, pair[0]).logits
    return (logits[pair[0]] - logits[pair[1]]).item()


def test_the_blocks_laid_open_are_the_model(model, traces):
    with torch.no_grad():
        logits = model(traces[0].input_ids, use_cache=False).logits[0]
    for position in (0, 11, -1):
        assert (traces[0].logits(position) - logits[position]).abs().max() <= 1e-4


@pytest.mark.parametrize("position", [3, -1])
def test_the_shares_are_the_logit(traces, pair, position):
    for token in pair:
        total = sum(share.double().sum() for share in attribution(traces[0], token, position))
        assert abs(total - traces[0].logits(position)[token]) <= 1e-4


def test_ablation_is_a_zero_in_the_output_matrix(model, traces, pair):
    trace = traces[0]
    found = effect(trace, [ablate(trace, 23, 11)], pair[0])
    weight = model.model.layers[23].self_attn.o_proj.weight.data
    columns = weight[:, 11 * 64 : 12 * 64].clone()
    weight[:, 11 * 64 : 12 * 64] = 0
    with torch.no_grad():
        expected = model(trace.input_ids, use_cache=False).logits[0, -1]
    weight[:, 11 * 64 : 12 * 64] = columns
    assert (found.logits - expected).abs().max() <= 1e-4
    assert found.delta < -0.5


def test_the_last_token_fetches_the_colour_itself(traces, pair):
    story, twin = traces
    assert ahead(story, [], pair) > 5 and ahead(twin, [], pair) < -1

    def apart(queries):
        """How far apart the two texts are, with the evidence hidden from these queries."""
        edits = [
            [
                cut(trace, i, h, query, EVIDENCE)
                for i in range(24)
                for h in range(14)
                for query in queries
            ]
            for trace in traces
        ]
        return ahead(story, edits[0], pair) - ahead(twin, edits[1], pair)

    assert abs(apart([LAST])) < 1 and apart(range(EVIDENCE + 1, LAST)) > 6
    assert abs(apart(range(EVIDENCE + 1, LAST + 1))) < 1e-2


def test_the_news_moves_late(traces, pair):
    story, twin = traces
    low, high = ahead(twin, [], pair), ahead(story, [], pair)
    for layer, at_evidence in ((0, True), (12, True), (18, True), (23, False)):
        place = EVIDENCE if at_evidence else LAST
        found = ahead(twin, [patch(twin, story, layer, "stream", [place])], pair)
        assert (found - low) / (high - low) > 0.5
