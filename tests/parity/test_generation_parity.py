"""`generate` gives the ids that transformers' `generate` gives, from the same parameters."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.generation import logits_process as theirs

from qwen2_edu import Qwen2ForCausalLM, StaticCache
from qwen2_edu import sampling as ours

WINDOW = 5
STACKS = {
    "full": {},
    "mixed": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
}


@pytest.fixture(scope="module", params=STACKS)
def pair(request, small_config, randomise):
    """Our model and transformers', with the same random parameters."""
    config = small_config(**STACKS[request.param])
    model = randomise(Qwen2ForCausalLM(config), seed=3)
    twin = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**config.to_dict(), attn_implementation="eager")
    )
    missing, unexpected = twin.load_state_dict(model.state_dict(), strict=False)
    assert not missing and not unexpected
    return model, twin.eval()


def prompt(B=1, T=7, seed=1):
    return torch.randint(3, 97, (B, T), generator=torch.Generator().manual_seed(seed))


def padded(lengths=(3, 11, 7), pad=2):
    ids = prompt(len(lengths), max(lengths))
    mask = torch.stack([torch.arange(max(lengths)) >= max(lengths) - n for n in lengths]).long()
    return ids.where(mask.bool(), pad), mask


def same(pair, input_ids, **options):
    model, twin = pair
    wanted = twin.generate(input_ids, **options)
    got = model.generate(input_ids, **options)
    assert got.tolist() == wanted.tolist()
    return got


MORE = 3 * WINDOW + 4


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.7])
def test_greedy(pair, penalty):
    got = same(pair, prompt(), max_new_tokens=MORE, repetition_penalty=penalty, eos_token_id=[])
    assert got.shape == (1, 7 + MORE)


def test_default_length_is_twenty_new_tokens(pair):
    assert same(pair, prompt(), eos_token_id=[]).shape == (1, 27)


def test_max_length_counts_the_prompt(pair):
    assert same(pair, prompt(), eos_token_id=[], max_length=12).shape == (1, 12)


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_left_padded_prompts_of_unequal_length(pair, penalty):
    ids, mask = padded()
    same(
        pair,
        ids,
        attention_mask=mask,
        max_new_tokens=MORE,
        repetition_penalty=penalty,
        eos_token_id=[],
    )


def test_rows_stop_one_by_one_at_any_of_several_ids(pair):
    ids, mask = padded()
    free = same(
        pair, ids, attention_mask=mask, max_new_tokens=12, repetition_penalty=1.4, eos_token_id=[]
    )[:, 11:]
    ends = [int(free[0, 2]), int(free[1, 6])]
    got = same(
        pair, ids, attention_mask=mask, max_new_tokens=12, repetition_penalty=1.4, eos_token_id=ends
    )[:, 11:]
    assert got[0, 3:].eq(2).all() and (got.shape[1] < 12 or not got[2].eq(2).any())


def test_all_rows_ended_ends_the_run(pair):
    ids = prompt()
    free = same(pair, ids, max_new_tokens=9, eos_token_id=[], repetition_penalty=1.4)[
        0, 7:
    ].tolist()
    got = same(pair, ids, max_new_tokens=9, eos_token_id=free[4], repetition_penalty=1.4)
    assert got[0, 7:].tolist() == free[: free.index(free[4]) + 1]


def test_without_a_padding_id_the_first_eos_fills(pair):
    model, twin = pair
    old = model.config.pad_token_id
    for either in pair:
        either.config.pad_token_id = either.generation_config.pad_token_id = None
    try:
        ids = prompt(2)
        free = model.generate(ids, max_new_tokens=8, eos_token_id=[], repetition_penalty=1.4)[:, 7:]
        end = int(next(t for t in free[0] if t not in free[1]))
        got = same(pair, ids, max_new_tokens=8, eos_token_id=[end, 5], repetition_penalty=1.4)
        assert got[0, -1] == end
    finally:
        for either in pair:
            either.config.pad_token_id = either.generation_config.pad_token_id = old


@pytest.mark.parametrize("rows", [1, 3])
def test_continuing_from_a_cache(pair, rows):
    model, twin = pair
    from qwen2_edu import DynamicCache

    ids, mask = padded() if rows == 3 else (prompt(), torch.ones(1, 7, dtype=torch.long))
    ours_cache, their_cache = (
        DynamicCache(model.config),
        transformers.DynamicCache(config=twin.config),
    )
    for _ in range(3):  # what was answered, two more tokens, on
        options = {"attention_mask": mask, "max_new_tokens": 6, "eos_token_id": []}
        got = model.generate(ids, past_key_values=ours_cache, **options)
        assert got.tolist() == twin.generate(ids, past_key_values=their_cache, **options).tolist()
        assert ours_cache.get_seq_length() == got.shape[1] - 1
        ids = torch.cat((got, prompt(rows, 2, seed=got.shape[1])), dim=1)
        mask = torch.cat((mask, mask.new_ones(rows, 8)), dim=1)


@pytest.mark.parametrize("rows", [1, 3])
def test_static_cache(pair, rows):
    model, twin = pair
    ids, mask = padded() if rows == 3 else (prompt(), torch.ones(1, 7, dtype=torch.long))
    options = {"attention_mask": mask, "max_new_tokens": MORE, "eos_token_id": []}
    wanted = twin.generate(ids, **options)
    assert model.generate(ids, cache_implementation="static", **options).tolist() == wanted.tolist()
    cache = StaticCache(model.config, 40)
    for _ in range(2):
        cache.reset()
        assert model.generate(ids, past_key_values=cache, **options).tolist() == wanted.tolist()


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
def test_beams(pair, early_stopping, length_penalty):
    ids, mask = padded()
    lengths = set()
    for ends, beams, returned, penalty in (
        ([], 2, 1, 1.0),
        ([5], 4, 3, 1.3),
        ([9, 17, 33, 60], 3, 3, 1.0),
        (list(range(3, 40, 4)), 4, 2, 1.0),
    ):
        got = same(
            pair,
            ids,
            attention_mask=mask,
            max_new_tokens=MORE,
            num_beams=beams,
            num_return_sequences=returned,
            early_stopping=early_stopping,
            length_penalty=length_penalty,
            repetition_penalty=penalty,
            eos_token_id=ends,
        )
        lengths.add(got.shape[1])
    assert length_penalty > 0 or len(lengths) > 1  # some ended early


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("length_penalty", [1.0, 2.5])
def test_beams_where_every_second_token_ends(pair, beams, length_penalty):
    """Most candidates end, so the pools fill at once, and the three rules stop at three times."""
    options = {"num_beams": beams, "length_penalty": length_penalty, "max_new_tokens": MORE}
    options |= {"eos_token_id": list(range(3, 97, 2)), "pad_token_id": 2}
    answers = [same(pair, prompt(24), early_stopping=e, **options) for e in (True, False, "never")]
    assert len({str(answer.tolist()) for answer in answers}) == 3


def test_beams_of_one_prompt_on_a_static_cache(pair):
    model, twin = pair
    wanted = twin.generate(prompt(), num_beams=3, max_new_tokens=MORE, eos_token_id=[5, 40])
    got = model.generate(
        prompt(),
        num_beams=3,
        max_new_tokens=MORE,
        eos_token_id=[5, 40],
        cache_implementation="static",
    )
    assert got.tolist() == wanted.tolist()


SAMPLED = [
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 0},
    {},
    {"min_p": 0.1, "repetition_penalty": 1.3, "top_k": 0},
    {"num_return_sequences": 4, "top_k": 5},
]


@pytest.mark.parametrize("options", SAMPLED, ids=str)
def test_sampling_draws_what_transformers_draws_from_the_same_seed(pair, options):
    model, twin = pair
    options = {**options, "do_sample": True, "max_new_tokens": 12, "eos_token_id": [5]}
    ids, mask = padded()
    torch.manual_seed(11)
    wanted = twin.generate(ids, attention_mask=mask, **options)
    torch.manual_seed(11)
    assert model.generate(ids, attention_mask=mask, **options).tolist() == wanted.tolist()
    first = model.generate(ids, attention_mask=mask, seed=5, **options)
    assert first.tolist() == model.generate(ids, attention_mask=mask, seed=5, **options).tolist()


def test_settings_of_an_instruct_model_apply_to_greedy_too(pair):
    model, twin = pair
    from qwen2_edu import GenerationConfig

    file = {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "repetition_penalty": 1.4,
        "eos_token_id": [5, 6],
    }
    model.generation_config = GenerationConfig.from_dict({**file, "pad_token_id": 2})
    old, twin.generation_config = (
        twin.generation_config,
        transformers.GenerationConfig(**file, pad_token_id=2),
    )
    try:
        got = same(pair, prompt(), do_sample=False, max_new_tokens=MORE)
        torch.manual_seed(2)
        wanted = twin.generate(prompt(), max_new_tokens=MORE)
        torch.manual_seed(2)
        assert (
            model.generate(prompt(), max_new_tokens=MORE).tolist()
            == wanted.tolist()
            != got.tolist()
        )
    finally:
        model.generation_config, twin.generation_config = None, old


# -- processors ------------------------------------------------------------------------------------

LOGITS = [
    torch.randn(5, 97, generator=torch.Generator().manual_seed(7)) * 3,
    torch.randn(5, 97, generator=torch.Generator().manual_seed(8)).round(),  # many ties
    torch.full((2, 8), -1.5),
]
PROCESSORS = [
    *[
        (lambda x, t=t: ours.temperature(x, t), theirs.TemperatureLogitsWarper(t))
        for t in (0.3, 1.0, 2.5)
    ],
    *[(lambda x, k=k: ours.top_k(x, k), theirs.TopKLogitsWarper(k)) for k in (1, 2, 20, 500)],
    *[
        (lambda x, p=p: ours.top_p(x, p), theirs.TopPLogitsWarper(p))
        for p in (1e-9, 0.1, 0.5, 0.8, 0.99)
    ],
    *[(lambda x, p=p: ours.min_p(x, p), theirs.MinPLogitsWarper(p)) for p in (0.0, 0.05, 0.5, 1.0)],
]


@pytest.mark.parametrize("logits", LOGITS, ids=["plain", "ties", "uniform"])
@pytest.mark.parametrize("number", range(len(PROCESSORS)))
def test_processors_are_transformers(logits, number):
    mine, reference = PROCESSORS[number]
    assert torch.equal(mine(logits), reference(None, logits.clone()))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.1, 2.0])
def test_repetition_penalty_is_transformers(penalty):
    ids, mask = padded()
    for logits in (LOGITS[0][:3], LOGITS[1][:3]):
        reference = theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
        assert torch.equal(
            ours.repetition_penalty(logits, ours.seen_tokens(ids, 97), penalty), reference
        )
        processor = theirs.RepetitionPenaltyLogitsProcessor(penalty)
        rows = zip(ids, mask.bool(), logits, strict=True)
        alone = [processor(row[real][None], scores[None].clone()) for row, real, scores in rows]
        reference = torch.cat(alone)  # what a row's padding holds must not count
        assert torch.equal(
            ours.repetition_penalty(logits, ours.seen_tokens(ids, 97, mask), penalty), reference
        )
