"""Heads made by hand, each with one behaviour, and what every measure says of them."""

from __future__ import annotations

import math

import pytest
import torch

from qwen2_edu import Qwen2ForCausalLM, Qwen2ForSequenceClassification
from qwen2_edu.behaviour import (
    HeadScores,
    entropy,
    find_heads,
    induction,
    previous_token,
    reach,
    repeated_tokens,
    to_first_token,
)

PERIOD = 5
T = 2 * PERIOD
IDS = torch.tensor([[7, 3, 9, 1, 4] * 2, [2, 8, 6, 5, 0] * 2])  # (B, T)


def looking_at(target) -> torch.Tensor:
    """The map (T, T) of a head in which query t looks at key target(t) alone."""
    weights = torch.zeros(T, T)
    for t in range(T):
        weights[t, target(t)] = 1
    return weights


HEADS = {
    "first": looking_at(lambda t: 0),
    "previous": looking_at(lambda t: max(t - 1, 0)),
    "induction": looking_at(lambda t: max(t - PERIOD + 1, 0)),
    "itself": looking_at(lambda t: t),
    "uniform": torch.ones(T, T).tril() / torch.arange(1.0, T + 1)[:, None],
}
MAPS = torch.stack(list(HEADS.values())).expand(2, -1, -1, -1)  # (B, H, T, T)
LATER = range(1, T)  # the queries that count


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


# Worked out by hand, in the order of HEADS.
UNIFORM = {t: 1 / (t + 1) for t in LATER}  # the weight of each key
EXPECTED = {
    "entropy": [0, 0, 0, 0, mean(math.log(t + 1) for t in LATER)],
    # The induction head has nowhere to look in the first half, and there looks at the first token.
    "to_first_token": [1, 1 / 9, 4 / 9, 0, mean(UNIFORM.values())],
    "previous_token": [1 / 9, 1, 1 / 9, 0, mean(UNIFORM.values())],
    "induction": [0, 0, 1, 0, mean(UNIFORM[t] for t in range(PERIOD, T))],
    "reach": [5, 1, (1 + 2 + 3 + 4 + 5 * 4) / 9, 0, mean(t / 2 for t in LATER)],
}
MEASURES = {
    "entropy": entropy,
    "to_first_token": to_first_token,
    "previous_token": previous_token,
    "induction": lambda weights: induction(weights, IDS),
    "reach": reach,
}


@pytest.mark.parametrize("name", MEASURES)
def test_what_each_measure_says_of_each_head(name):
    found = MEASURES[name](MAPS)
    torch.testing.assert_close(found, torch.tensor(EXPECTED[name], dtype=torch.float32))


@pytest.mark.parametrize("name", MEASURES)
def test_a_stack_of_layers_is_as_its_layers(name):
    other = MAPS.flip(1)
    stacked = MEASURES[name](torch.stack([MAPS, other]))
    assert stacked.shape == (2, len(HEADS))
    torch.testing.assert_close(stacked, torch.stack([MEASURES[name](m) for m in (MAPS, other)]))


@pytest.mark.parametrize("name", MEASURES)
def test_the_first_query_does_not_count(name):
    changed = MAPS.clone()
    changed[..., 0, :] = torch.rand(T)
    assert torch.equal(MEASURES[name](changed), MEASURES[name](MAPS))


def test_texts_are_averaged_and_half_precision_is_widened():
    two = torch.stack([HEADS["previous"], HEADS["itself"]])[:, None]  # (B, 1, T, T)
    assert previous_token(two.bfloat16()) == 0.5
    assert reach(two.bfloat16()).dtype == torch.float32


def test_a_spread_head_lies_between():
    mixed = 0.25 * HEADS["previous"] + 0.75 * HEADS["itself"]
    weights = mixed[None, None]
    assert previous_token(weights).item() == pytest.approx(0.25)
    at = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy(weights).item() == pytest.approx(at)


def test_induction_looks_up_the_last_time_and_leaves_out_neighbours():
    #           0  1  2  3  4  5
    ids = [[5, 6, 5, 8, 8, 5]]
    # 2 was there at 0, so it should look at 1. 4 was there at 3, just before: does not count.
    # 5 was there at 0 and at 2: the last counts, so it should look at 3.
    weights = torch.zeros(1, 1, 6, 6)
    weights[..., 0] = 1
    weights[0, 0, 2] = torch.tensor([0, 0.5, 0.5, 0, 0, 0])
    weights[0, 0, 5] = torch.tensor([0, 0, 0, 0.25, 0.75, 0])
    assert induction(weights, torch.tensor(ids)).item() == pytest.approx((0.5 + 0.25) / 2)
    assert induction(weights, torch.arange(6)[None]).isnan().all()  # nothing comes twice


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 3, 4), (1, 1, 1, 1)])
def test_maps_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"B, H, T, T"):
        entropy(torch.rand(shape))


def test_ids_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"input_ids \(2, 9\) .* expected \(2, 10\)"):
        induction(MAPS, IDS[:, 1:])


# --- a whole model -------------------------------------------------------------------------------


def test_repeated_tokens():
    ids = repeated_tokens(range(10, 40), rows=3, period=20, seed=1)
    assert ids.shape == (3, 40) and 10 <= ids.min() and ids.max() < 40
    assert torch.equal(ids[:, :20], ids[:, 20:])
    assert all(len(set(row.tolist())) == 20 for row in ids)  # within a period all differ
    assert not torch.equal(ids[0], ids[1])
    assert torch.equal(ids, repeated_tokens(range(10, 40), 3, 20, seed=1))
    assert not torch.equal(ids, repeated_tokens(range(10, 40), 3, 20, seed=2))
    with pytest.raises(ValueError, match="period=31 must be from 2 to 30 ids, rows=3"):
        repeated_tokens(range(10, 40), 3, 31)


@pytest.mark.parametrize("cls", [Qwen2ForCausalLM, Qwen2ForSequenceClassification])
def test_find_heads(small_config, randomise, cls):
    model = randomise(cls(small_config(eos_token_id=[1, 3])))
    found = find_heads(model, rows=2, period=12)
    L, H = 3, 6
    assert set(found.scores) == {"entropy", "first_token", "previous_token", "induction", "reach"}
    assert all(
        scores.shape == (L, H) and scores.isfinite().all() for scores in found.scores.values()
    )
    assert found.input_ids.shape == (2, 24)
    assert not {0, 1, 2, 3} & set(found.input_ids.flatten().tolist())  # no special tokens
    maps = (
        model(found.input_ids, output_attentions=True).attentions if cls is Qwen2ForCausalLM else []
    )
    for layer, weights in enumerate(maps):
        torch.testing.assert_close(found.scores["previous_token"][layer], previous_token(weights))
        torch.testing.assert_close(
            found.scores["induction"][layer], induction(weights, found.input_ids)
        )


def test_a_window_shorter_than_the_period_hides_what_came_next(small_config, randomise):
    config = small_config(use_sliding_window=True, max_window_layers=1, sliding_window=12)
    model = randomise(Qwen2ForCausalLM(config))
    fits, too_far = (find_heads(model, rows=2, period=p).scores["induction"] for p in (12, 13))
    assert (fits > 0).all()
    assert (too_far[0] > 0).all() and (too_far[1:] == 0).all()


def test_a_head_built_to_look_back_is_found(small_config):
    """All weights 0 but those of one head, whose query and key see positions alone."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(small_config(rope_theta=100.0)).eval()
    attention, D = model.model.layers[1].self_attn, 8
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.k_proj.weight.zero_()
        # The key is a constant and the query the same, turned back by one place.
        angle = -1 / 100.0 ** (torch.arange(D // 2) / (D // 2))
        attention.k_proj.bias[:D] = torch.cat([torch.ones(D // 2), torch.zeros(D // 2)])
        head = 2  # with 3 query heads to a key head it reads the first key head
        query = 60 * torch.cat([angle.cos(), angle.sin()])
        attention.q_proj.bias[head * D : (head + 1) * D] = query
    best = find_heads(model, rows=1, period=10).best("previous_token")
    assert (best.layer, best.head) == (1, head) and best.score > 0.9


def test_ranking():
    heads = HeadScores({"reach": torch.tensor([[1.0, 5.0], [7.0, 3.0]])}, IDS)
    assert [tuple(h) for h in heads.ranked("reach")] == [(1, 0, 7), (0, 1, 5), (1, 1, 3), (0, 0, 1)]
    assert heads.best("reach") == (1, 0, 7)
    with pytest.raises(ValueError, match=r"name must be one of \['reach'\], not 'speed'"):
        heads.best("speed")
