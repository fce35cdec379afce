"""What users of `generate` ran into, on our model and on transformers' with the same random
parameters; the right value is transformers', except where a case says why not.
"""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers

from qwen2_edu import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ChatSession,
    DynamicCache,
    GenerationConfig,
    Qwen2ForCausalLM,
)
from qwen2_edu.decoding.settings import effective_settings
from qwen2_edu.generation import generate, stream, stream_ids

STACKS = {
    "full": {},
    "mixed": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
}


@pytest.fixture(scope="module", params=STACKS)
def pair(request, small_config, randomise):
    config = small_config(**STACKS[request.param])
    model = randomise(Qwen2ForCausalLM(config), seed=3)
    their_config = transformers.Qwen2Config(**config.to_dict(), attn_implementation="eager")
    twin = transformers.Qwen2ForCausalLM(their_config)
    twin.load_state_dict(model.state_dict())
    return model, twin.eval()


@pytest.fixture(scope="module")
def model(small_config, randomise):
    return randomise(Qwen2ForCausalLM(small_config()), seed=3)


def prompt(B=1, T=7, seed=1):
    return torch.randint(3, 97, (B, T), generator=torch.Generator().manual_seed(seed))


def padded():
    mask = torch.stack([torch.arange(11) >= 11 - n for n in (3, 11, 7)]).long()
    return prompt(3, 11).where(mask.bool(), 2), mask


LENGTH = {"max_new_tokens": 19, "eos_token_id": [5]}

# -- options, one by one and together --------------------------------------------------------------

OPTIONS = [
    {"no_repeat_ngram_size": 1, "max_new_tokens": 12},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 0.7},
    {"bad_words_ids": [[12]]},
    {"bad_words_ids": [[5], [7, 8], [20, 21, 22], list(range(3, 40))]},
    {"bad_words_ids": [[i] for i in range(6, 90)], "repetition_penalty": 1.2},
    {"min_new_tokens": 9, "eos_token_id": list(range(3, 60))},
    {"min_length": 14, "eos_token_id": list(range(3, 60))},
    {"min_length": 30, "min_new_tokens": 2, "eos_token_id": list(range(3, 60))},
    {"use_cache": False},
    {"remove_invalid_values": True, "bad_words_ids": [[1, 0]], "repetition_penalty": 1.2},
    {"max_time": 0.0},
]


def same(pair, *inputs, **options):
    model, twin = pair
    options = {**LENGTH, **options}
    wanted = twin.generate(*inputs, **options)
    got = model.generate(*inputs, **options)
    assert got.tolist() == wanted.tolist()
    return got


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("way", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_options_give_transformers_ids(pair, options, way):
    ids, mask = padded()
    same(pair, ids, attention_mask=mask, **options, **way)
    same(pair, prompt(), **options, **way)


@pytest.mark.parametrize("options", OPTIONS[1:10], ids=str)
def test_options_give_transformers_draws(pair, options):
    ids, mask = padded()
    model, twin = pair
    options = {**LENGTH, **options, "do_sample": True, "temperature": 2.0, "top_k": 30}
    torch.manual_seed(4)
    wanted = twin.generate(ids, attention_mask=mask, **options)
    torch.manual_seed(4)
    assert model.generate(ids, attention_mask=mask, **options).tolist() == wanted.tolist()


def test_inputs_are_the_ids(pair):
    same(pair, inputs=prompt())


# -- processors and criteria are functions ---------------------------------------------------------


def uneven(ids, scores):
    """A processor that looks at both: it forbids the parity of the last id, and writes in place."""
    scores[torch.arange(97) % 2 == (ids[:, -1:] % 2)] = -torch.inf
    return scores


def full_stop(ids, scores, **_):
    return ids[:, -1] % 7 == 0


@pytest.mark.parametrize("beams", [1, 3])
def test_processors_and_criteria(pair, beams):
    ids, mask = padded()
    from transformers import generation as theirs

    chains = [
        [uneven],
        theirs.LogitsProcessorList([theirs.SuppressTokensLogitsProcessor([4, 9, 33])]),
    ]
    if beams == 1:  # it leaves too few: then transformers lets texts that have ended run on
        chains.append([theirs.TypicalLogitsWarper(0.5), uneven])
    criteria = [
        [full_stop],
        theirs.StoppingCriteriaList([theirs.MaxLengthCriteria(15)]),
        [theirs.EosTokenCriteria(12), full_stop],
    ]
    for chain in chains:
        lists = theirs.LogitsProcessorList(chain)
        got = pair[0].generate(
            ids, attention_mask=mask, num_beams=beams, logits_processor=chain, **LENGTH
        )
        wanted = pair[1].generate(
            ids, attention_mask=mask, num_beams=beams, logits_processor=lists, **LENGTH
        )
        assert got.tolist() == wanted.tolist()
    # Where too many beams end at once, transformers lets texts that have ended run on.
    for stops in criteria if beams == 1 else criteria[1:2]:
        lists = theirs.StoppingCriteriaList(stops)
        options = {"attention_mask": mask, "num_beams": beams, "no_repeat_ngram_size": 2, **LENGTH}
        got = pair[0].generate(ids, stopping_criteria=stops, **options)
        assert got.tolist() == pair[1].generate(ids, stopping_criteria=lists, **options).tolist()
        assert got.shape[1] < 11 + 19 or beams > 1


# -- embeddings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"repetition_penalty": 1.3}], ids=str)
def test_embeddings_in_place_of_ids(pair, options):
    """transformers#45389: alone they answer the new ids, beside ids the whole."""
    model, twin = pair
    whole_rows, padded_rows = (prompt(), torch.ones(1, 7).long()), padded()
    if options.get("repetition_penalty"):  # of padded rows transformers skips new tokens as padding
        padded_rows = prompt(3, 11), torch.ones(3, 11).long()
    for ids, mask in (whole_rows, padded_rows):
        embeds = model.get_input_embeddings()(ids)
        both = {"attention_mask": mask, "inputs_embeds": embeds, **options}
        alone = same(pair, **both)
        whole = same(pair, ids, **both)
        assert whole.shape[1] == ids.shape[1] + alone.shape[1] or "repetition_penalty" in options
        other = torch.randn_like(embeds)
        assert same(pair, **{**both, "inputs_embeds": other}).tolist() != alone.tolist()
    same(pair, inputs_embeds=embeds[:1], max_length=16, max_new_tokens=None)
    same(pair, inputs_embeds=embeds[:1], cache_implementation="static")


# -- outputs ---------------------------------------------------------------------------------------

ASKED = dict.fromkeys(
    ("output_scores", "output_logits", "output_hidden_states", "output_attentions"), True
)


@pytest.mark.parametrize(
    "way",
    [{}, {"use_cache": False}, {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0}]
    + [{"do_sample": True, "num_return_sequences": 2, "top_k": 9, "bad_words_ids": [[9]]}],
    ids=str,
)
def test_outputs_are_transformers(pair, way):
    model, twin = pair
    ids, mask = padded()
    options = {"attention_mask": mask, **LENGTH, **way, **ASKED, "return_dict_in_generate": True}
    torch.manual_seed(1)
    wanted = twin.generate(ids, **options)
    torch.manual_seed(1)
    got = model.generate(ids, **options)
    assert list(got) == list(wanted)
    assert got[0] is got["sequences"] is got.sequences
    assert got.sequences.tolist() == wanted.sequences.tolist()
    for name in ("scores", "logits"):
        for ours, theirs in zip(got[name], wanted[name], strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)
    if "num_beams" in way:
        assert got.beam_indices.tolist() == wanted.beam_indices.tolist()
        torch.testing.assert_close(got.sequences_scores, wanted.sequences_scores)
    real = mask.bool().repeat_interleave(len(got.scores[0]) // 3, 0)
    for step, (ours, theirs) in enumerate(
        zip(got.hidden_states, wanted.hidden_states, strict=True)
    ):
        for x, y in zip(ours, theirs, strict=True):
            assert x.shape == y.shape
            if "num_beams" not in way or step == 0:  # rows of texts that have ended differ
                seen = torch.cat((real, real.new_ones(len(real), x.shape[1])), 1)[:, : x.shape[1]]
                seen = seen if step == 0 or "use_cache" in way else slice(None)
                torch.testing.assert_close(x[seen], y[seen], atol=5e-5, rtol=5e-5)
    for ours, theirs in zip(got.attentions, wanted.attentions, strict=True):
        assert [x.shape for x in ours] == [y.shape for y in theirs]
        full = 0  # the first layer is never sliding: its keys stand in the order of the text
        torch.testing.assert_close(
            ours[full][:, :, -1].sort(-1).values,
            theirs[full][:, :, -1].sort(-1).values,
            atol=5e-5,
            rtol=5e-5,
        )


def test_logits_are_the_models_whatever_a_processor_writes(model):
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    options |= {"output_scores": True, "logits_processor": [uneven]}
    out = model.generate(prompt(), **options)
    said = model(out.sequences[:, :-1]).logits[0, -3:].detach()
    torch.testing.assert_close(torch.cat(out.logits), said, atol=2e-5, rtol=2e-5)
    assert torch.cat(out.scores).isinf().any(-1).all()


def test_outputs_are_not_kept_unasked(model):
    out = model.generate(prompt(), max_new_tokens=3, return_dict_in_generate=True)
    assert list(out) == ["sequences", "past_key_values"] and out.scores is None
    with pytest.warns(UserWarning, match="output_scores=True needs return_dict_in_generate"):
        ids = model.generate(prompt(), max_new_tokens=3, output_scores=True)
    assert ids.tolist() == out[0].tolist()
    assert out.past_key_values.get_seq_length() == 9  # the last token is not read


# -- padding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
def test_padding_on_the_right_or_within_is_left_out(pair, way):
    """transformers warns, and goes on from the padding; here a row is what it is alone."""
    model, twin = pair
    mask = torch.tensor(
        [[1, 1, 1, 0, 0, 0, 0], [1] * 7, [0, 1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0, 1]]
    )
    ids = prompt(4).where(mask.bool(), 2)
    got = model.generate(ids, attention_mask=mask, **LENGTH, **way)
    assert got[:, :7].tolist() == ids.tolist()
    for row, real, answer in zip(ids, mask.bool(), got, strict=True):
        wanted = twin.generate(row[real][None], **LENGTH, **way)[0, int(real.sum()) :].tolist()
        assert answer[7 : 7 + len(wanted)].tolist() == wanted
        assert answer[7 + len(wanted) :].eq(2).all()


# -- caches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_prefix_is_read_once(pair, guard):
    """transformers#32681: read in two parts, copied, continued, also out of inference mode."""
    model, twin = pair
    prefix, tails = prompt(1, 12), prompt(3, 5, seed=9)
    with guard():
        cache = model(prefix[:, :8]).past_key_values
        cache = model(prefix[:, 8:], past_key_values=cache).past_key_values
    for tail in tails:
        ids = torch.cat((prefix, tail[None]), 1)
        got = model.generate(ids, past_key_values=copy.deepcopy(cache), **LENGTH)
        assert got.tolist() == twin.generate(ids, **LENGTH).tolist()
    assert cache.get_seq_length() == 12


def test_a_cache_of_other_rows_is_refused(model):
    ids, mask = padded()
    cache = DynamicCache(model.config)
    model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=2)
    longer = torch.cat((prompt(2, 11), prompt(2, 3)), 1)
    for more in ({}, {"attention_mask": torch.ones(2, 14)}):
        with pytest.raises(ValueError, match="holds 3 rows and 2 arrive"):
            model.generate(longer, past_key_values=cache, **more)


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", np.int64(3)), ("top_k", np.int64(5)), ("num_beams", np.int64(2))]
    + [("do_sample", np.bool_(True)), ("seed", np.int64(1)), ("eos_token_id", np.int64(3))]
    + [("temperature", np.float32(0.5)), ("eos_token_id", torch.tensor([3, 4]))]
    + [("pad_token_id", torch.tensor(2)), ("bad_words_ids", [np.array([3, 4])])]
    + [("use_cache", np.bool_(False)), ("num_return_sequences", np.int32(1))],
    ids=str,
)
def test_numbers_of_numpy_and_torch(model, name, value):
    """transformers#24340."""
    to_draw = ("top_k", "temperature", "seed", "do_sample")
    drawn = {"do_sample": True, "seed": 5} if name in to_draw else {}
    plain = value.tolist() if hasattr(value, "tolist") else [list(map(int, value[0]))]
    options = {"max_new_tokens": 4, **drawn}
    got = model.generate(prompt(), **{**options, name: value})
    assert got.tolist() == model.generate(prompt(), **{**options, name: plain}).tolist()


def test_settings_by_name():
    """An older model card's call; a name that is nowhere is no empty configuration."""
    assert GenerationConfig.from_pretrained("tiny").eos_token_id == [3999, 3997]
    assert GenerationConfig.from_pretrained("tiny", top_k=7).top_k == 7
    with pytest.raises(FileNotFoundError, match="Qwen/Qwen2.5-7B-Instruct"):
        GenerationConfig.from_pretrained("Qwen/Qwen2.5-7B-Instruct")
    with pytest.raises(FileNotFoundError, match="/no/such/folder"):
        GenerationConfig.from_pretrained("/no/such/folder")
    with pytest.raises(TypeError, match="no option 'topk'.*top_k"):
        GenerationConfig.from_pretrained("tiny", topk=7)


WRONG = [("max_new_tokens", "20"), ("max_new_tokens", 2.5), ("do_sample", 1), ("do_sample", "true")]
WRONG += [("temperature", "0.7"), ("temperature", [0.7]), ("top_k", {}), ("eos_token_id", "end")]
WRONG += [("eos_token_id", [1, "x"]), ("eos_token_id", {"a": 1}), ("stop_strings", 5)]
WRONG += [("stop_strings", [5]), ("bad_words_ids", [5]), ("num_beams", True), ("pad_token_id", [1])]
WRONG += [("early_stopping", 3), ("use_cache", "yes"), ("cache_implementation", [])]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=str)
def test_a_field_of_the_wrong_type_is_named_with_its_file(tmp_path, field, value):
    (tmp_path / "generation_config.json").write_text(json.dumps({field: value}))
    with pytest.raises(ValueError, match=rf"generation_config.json: {field} must be"):
        GenerationConfig.from_pretrained(tmp_path)


def test_a_file_nested_too_deep(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"a": ' + "[" * 900 + "]" * 900 + "}")
    with pytest.raises(ValueError, match="deep"):
        GenerationConfig.from_pretrained(tmp_path)


def test_arguments_that_are_no_settings_are_passed_over(model):
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    shown = effective_settings(model, tokenizer=tokenizer, input_ids=prompt(), max_new_tokens=3)
    assert shown == effective_settings(model, max_new_tokens=3)
    with pytest.raises(TypeError, match="no option 'num_beam'"):
        GenerationConfig(num_beam=2)
    with pytest.raises(TypeError, match="typical_p'.*logits_processor"):
        GenerationConfig(typical_p=0.5)
    with pytest.raises(TypeError, match="generation_config has no option 'topk'"):
        model.generate(prompt(), generation_config={"topk": 2})
    with pytest.raises(TypeError, match="generation_config must be"):
        model.generate(prompt(), generation_config="fast")


# -- NaN -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_said_with_their_layer(value):
    model = AutoModelForCausalLM.from_pretrained("tiny", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = value
    ids = torch.tensor([[5, 6, 7], [1, 2, 3]])
    where = "not finite numbers: first at 'layer 2, after MLP', model.layers.2.mlp.down_proj.weight"
    calls = [
        *(
            lambda options=options: model.generate(ids, max_new_tokens=4, **options)
            for options in ({}, {"do_sample": False}, {"num_beams": 2, "do_sample": False})
        ),
        lambda: model.generate(ids, do_sample=False, use_cache=False),
        lambda: model.generate(inputs_embeds=model.get_input_embeddings()(ids), do_sample=False),
        lambda: next(stream_ids(model, ids)),
        lambda: next(stream(model, tokenizer, ids[:1])),
        lambda: ChatSession(model, tokenizer, do_sample=False).send("hi"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=where):
            call()


# -- threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [{}, {"do_sample": True, "top_k": 20}, {"num_beams": 2}], ids=str)
def test_threads_may_generate_on_one_model(pair, way):
    model, _ = pair

    def run(seed):
        more = {**way, "seed": seed} if "do_sample" in way else way
        return generate(model, prompt(2, 5 + seed % 4, seed), max_new_tokens=12, **more).tolist()

    alone = [run(seed) for seed in range(12)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(run, [*range(12)] * 3)) == alone * 3
