"""What transformers' own tests of generation check of Qwen2 (`GenerationTesterMixin` and what its
Qwen2 tests add), as cases of our own, with the calls as people write them for transformers.

Each case runs on transformers' class and on ours, so that a case that asks for too much shows. What
such a test checks, and whether it holds here:

    greedy, sampled and beam search: lengths                             holds
    the same with every output, with and without a cache: shapes         holds
    several answers to each prompt, also with outputs                    holds
    no input ids at all                                                  holds
    left padding changes nothing (with logits_to_keep = one row alone)   holds
    the cache: its length, that it can be continued, that it is returned holds
    embeddings: random, those of the ids, beside ids, continued          holds
    embeddings or ids with a static cache; static = dynamic              holds
    eager and sdpa give the same ids                                     holds
    masks padded on the right, as their common inputs are                holds (rows as if alone)
    processors and criteria of transformers' classes, max_time           holds
    outputs by name, number and slice; a generation_config beside options holds
    prompt lookup and an assistant = greedy                              holds: test_speculation
    beam search that draws: the same ids of a seed     holds
    group, constrained, contrastive and DoLa decoding  refused; transformers 5 took them out too
    token healing, watermarks, guidance                refused: processors of transformers fit
    quantised and offloaded caches, chunked prefill    refused: there is no such cache here
    position_ids as an option                          refused: they are counted from the mask
    custom_generate, synced_gpus                       refused: no code from elsewhere is run
    compilation inside generate                        refused: fast=True compiles where it pays
"""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

import qwen2_edu

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "use_sliding_window": True,
    "sliding_window": 50,
    "max_window_layers": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
BOTH = pytest.mark.parametrize(
    "house", [transformers, qwen2_edu], ids=["transformers", "qwen2_edu"]
)
NEW, ROWS, LENGTH = 3, 2, 7
PROCESSORS = {"bad_words_ids": [[1, 0]], "repetition_penalty": 1.2, "remove_invalid_values": True}
DRAWN = {"do_sample": True, "top_k": 10, "top_p": 0.7, "temperature": 0.7}
BEAMS = {"num_beams": 2, "early_stopping": False, "length_penalty": 2.0}
WAYS = {"greedy": {}, "sampled": DRAWN, "beams": BEAMS}
ASKED = "output_scores output_logits output_hidden_states output_attentions".split()
EACH_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def build(house, **fields):
    torch.manual_seed(0)
    config = house.Qwen2Config(**{**SMALL, **fields})
    model = house.Qwen2ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(rows=ROWS, length=LENGTH):
    """As their common inputs are: the mask hides what stands above the diagonal."""
    ids = torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones(rows, length).long().tril()}


@BOTH
@EACH_WAY
@pytest.mark.parametrize("answers", [1, 2])
def test_lengths(house, way, answers):
    if answers > 1 and not way:
        pytest.skip("greedy answers would all be the same")
    options = {**PROCESSORS, **way, "max_new_tokens": NEW, "num_return_sequences": answers}
    out = build(house).generate(**inputs(), **options)
    assert out.shape == (ROWS * answers, LENGTH + NEW)


@BOTH
@EACH_WAY
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("answers", [1, 2])
def test_outputs(house, way, use_cache, answers):
    if answers > 1 and not way:
        pytest.skip("greedy answers would all be the same")
    model, asked = build(house, attn_implementation="eager"), dict.fromkeys(ASKED, True)
    options = {**PROCESSORS, **way, **asked, "use_cache": use_cache, "max_new_tokens": NEW}
    options |= {"num_return_sequences": answers, "return_dict_in_generate": True}
    out = model.generate(**inputs(), **options)
    rows = ROWS * max(answers, way.get("num_beams", 1))
    assert out.sequences.shape == (ROWS * answers, LENGTH + NEW)
    assert out[0] is out.sequences and out["sequences"] is out.sequences
    for name in ("scores", "logits"):
        assert [x.shape for x in out[name]] == [(rows, 99)] * NEW
    read = [LENGTH, *(1 if use_cache else LENGTH + n for n in range(1, NEW))]
    for T, states in zip(read, out.hidden_states, strict=True):
        assert [x.shape for x in states] == [(rows, T, 32)] * 3
    for n, (T, maps) in enumerate(zip(read, out.attentions, strict=True)):
        assert [x.shape for x in maps] == [(rows, 4, T, LENGTH + n)] * 2
    if "num_beams" in way:
        assert out.sequences_scores.shape == (ROWS * answers,)
        assert out.beam_indices.shape == (ROWS * answers, NEW)
    if use_cache:
        assert out.past_key_values.get_seq_length() == LENGTH + NEW - 1
    else:
        assert out.get("past_key_values") is None


@BOTH
def test_no_ids_at_all(house):
    out = build(house).generate(do_sample=False, max_new_tokens=NEW, remove_invalid_values=True)
    assert out.shape == (1, 1 + NEW) and out[0, 0] == 1


@BOTH
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_on_the_left_changes_nothing(house, implementation):
    model = build(house, attn_implementation=implementation)
    ids = inputs()["input_ids"]
    pads = torch.zeros(ROWS, 5, dtype=torch.long)
    mask = torch.cat((pads, torch.ones_like(ids)), 1)
    options = {"max_new_tokens": 10, "return_dict_in_generate": True, "output_scores": True}
    alone = model.generate(ids, **options)
    padded = model.generate(torch.cat((pads, ids), 1), attention_mask=mask, **options)
    assert alone.sequences.tolist() == padded.sequences[:, 5:].tolist()
    for x, y in zip(alone.scores, padded.scores, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


def test_eager_and_sdpa_agree():
    answers = [
        build(house, attn_implementation=how).generate(**inputs(), max_new_tokens=12).tolist()
        for house in (qwen2_edu,)
        for how in ("eager", "sdpa")
    ]
    assert answers[0] == answers[1]


@BOTH
@EACH_WAY
def test_both_houses_say_the_same(house, way):
    """With padding on the left: on the right transformers goes on from the padding."""
    options = {**PROCESSORS, **way, "max_new_tokens": 12}
    given = inputs()
    given["attention_mask"] = given["attention_mask"].flip(1)
    torch.manual_seed(0)
    wanted = build(transformers).generate(**given, **options)
    torch.manual_seed(0)
    assert build(house).generate(**given, **options).tolist() == wanted.tolist()


SEARCHES = [
    {"top_k": 0},
    {"temperature": 0.7, "top_k": 5},
    {"top_k": 1},  # two at least are left with beams, else none might go on
    {"top_k": 0, "top_p": 0.1},
    {"top_k": 0, "min_p": 0.9, "repetition_penalty": 1.3},
    {"num_return_sequences": 3, "early_stopping": True, "length_penalty": 0.5},
    {"eos_token_id": [2, 3, 4, 5], "top_k": 4, "early_stopping": "never"},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_a_beam_search_that_draws_is_the_same(options):
    found, given = [], inputs()
    given["attention_mask"] = given["attention_mask"].flip(1)
    for house in (qwen2_edu, transformers):
        model = build(house)
        with torch.no_grad():
            model.lm_head.weight *= 3  # some tokens are likely, some are not
        torch.manual_seed(5)
        options = {"num_beams": 3, "do_sample": True, "max_new_tokens": 12} | options
        more = {"return_dict_in_generate": True, "output_scores": True}
        out = model.generate(**given, **options, **more)
        found.append((out.sequences.tolist(), out.sequences_scores, out.beam_indices.tolist()))
    assert found[0][0] == found[1][0] and found[0][2] == found[1][2]
    torch.testing.assert_close(found[0][1], found[1][1])


def test_fewer_texts_than_are_asked_for():
    told = {"num_beams": 3, "num_return_sequences": 3, "do_sample": True, "top_k": 1}
    told |= {"max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True}
    out = build(qwen2_edu, pad_token_id=None).generate(inputs()["input_ids"][:1], **told)
    assert out.sequences_scores.isfinite().tolist() == [True, True, False]
    assert (out.sequences >= 0).all()


@BOTH
@pytest.mark.parametrize("beams", [1, 2])
def test_embeddings(house, beams):
    model, ids = build(house), inputs()["input_ids"]
    options = {"num_beams": beams, "max_new_tokens": 5, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    embeds = model.get_input_embeddings()(ids)
    plain = model.generate(ids, **options)
    beside = model.generate(ids, inputs_embeds=embeds, **options)
    alone = model.generate(inputs_embeds=embeds, **options)
    other = model.generate(ids, inputs_embeds=torch.rand_like(embeds), **options)
    assert beside.sequences.tolist() == plain.sequences.tolist()
    assert alone.sequences.tolist() == plain.sequences[:, LENGTH:].tolist()
    assert other.sequences.tolist() != plain.sequences.tolist()
    for x, y in zip(plain.scores, alone.scores, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


@BOTH
def test_embeddings_that_are_random(house):
    model = build(house)
    for rows in (1, 2):
        embeds = torch.randn(rows, 4, 32, generator=torch.Generator().manual_seed(3))
        out = model.generate(inputs_embeds=embeds, max_new_tokens=NEW)
        assert out.shape == (rows, NEW)


@BOTH
def test_embeddings_with_a_static_cache(house):
    model, ids = build(house), inputs()["input_ids"]
    embeds = model.get_input_embeddings()(ids)
    options = {"max_new_tokens": 5, "cache_implementation": "static", "disable_compile": True}
    out = model.generate(inputs_embeds=embeds, return_dict_in_generate=True, **options)
    assert out.sequences.tolist() == model.generate(ids, max_new_tokens=5)[:, LENGTH:].tolist()
    assert type(out.past_key_values).__name__ == "StaticCache"


@BOTH
def test_static_is_dynamic(house):
    model, options = build(house), {"max_new_tokens": 9, "do_sample": False}
    ids = inputs()["input_ids"]
    wanted = model.generate(ids, **options)
    static = {"cache_implementation": "static", "disable_compile": True}
    assert model.generate(ids, **static, **options).tolist() == wanted.tolist()


@BOTH
@pytest.mark.parametrize("masked", [True, False])
def test_going_on_from_a_cache(house, masked):
    """4 tokens, then 3 more from the returned cache and 1 after that = 4 and 4 at once."""
    model, given = build(house), inputs()
    given["attention_mask"] = given["attention_mask"].flip(1)
    if not masked:
        del given["attention_mask"]
    options = {"do_sample": False, "return_dict_in_generate": True}
    wanted = model.generate(**given, max_new_tokens=8, **options)
    out = model.generate(**given, max_new_tokens=4, **options)
    for more in (3, 1):
        given["input_ids"] = out.sequences
        if masked:
            grown = out.sequences.shape[1] - given["attention_mask"].shape[1]
            given["attention_mask"] = torch.nn.functional.pad(
                given["attention_mask"], (0, grown), value=1
            )
        cache = out.past_key_values
        out = model.generate(**given, past_key_values=cache, max_new_tokens=more, **options)
    assert out.sequences.tolist() == wanted.sequences.tolist()
    assert out.past_key_values.get_seq_length() == wanted.past_key_values.get_seq_length()


@BOTH
def test_going_on_from_embeddings(house):
    model, ids = build(house), inputs()["input_ids"]
    embed = model.get_input_embeddings()
    options = {"do_sample": False, "return_dict_in_generate": True}
    wanted = model.generate(inputs_embeds=embed(ids), max_new_tokens=6, **options)
    out = model.generate(inputs_embeds=embed(ids), max_new_tokens=4, **options)
    said = out.sequences
    embeds = embed(torch.cat((ids, said), 1))
    cache = copy.deepcopy(out.past_key_values)
    out = model.generate(inputs_embeds=embeds, past_key_values=cache, max_new_tokens=2, **options)
    assert torch.cat((said, out.sequences), 1).tolist() == wanted.sequences.tolist()


@BOTH
def test_a_configuration_beside_options(house):
    model, ids = build(house), inputs()["input_ids"]
    config = house.GenerationConfig(max_new_tokens=5, repetition_penalty=1.3)
    wanted = model.generate(ids, max_new_tokens=5, repetition_penalty=1.3)
    assert model.generate(ids, generation_config=config).tolist() == wanted.tolist()
    longer = model.generate(ids, generation_config=config, max_new_tokens=7)
    assert longer.shape[1] == LENGTH + 7 and longer[:, : LENGTH + 5].tolist() == wanted.tolist()


@BOTH
def test_a_streamer_gets_what_is_returned(house):
    class Kept:
        def __init__(self):
            self.ids = []

        def put(self, ids):
            self.ids += ids.flatten().tolist()

        def end(self):
            self.ids.append("end")

    model, ids, streamer = build(house), inputs()["input_ids"][:1], Kept()
    out = model.generate(ids, max_new_tokens=NEW, streamer=streamer)
    assert streamer.ids == [*out[0].tolist(), "end"]
    with pytest.raises(ValueError, match="num_beams"):
        model.generate(ids, max_new_tokens=NEW, streamer=streamer, num_beams=2)


@BOTH
def test_settings_changed_later(house):
    model, ids = build(house), inputs()["input_ids"][:1]
    settings = model.generation_config
    settings.max_new_tokens, settings.guidance_scale, settings.num_beams = 4, None, 2
    assert settings.typical_p is None and settings.guidance_scale is None
    want = build(house).generate(ids, max_new_tokens=4, num_beams=2)
    assert model.generate(ids).tolist() == want.tolist()
    assert copy.deepcopy(settings).to_dict() == settings.to_dict()


def test_settings_changed_later_are_looked_at():
    model, ids = build(qwen2_edu), inputs()["input_ids"][:1]
    model.generation_config.guidance_scale = 1.5
    with pytest.raises(ValueError, match="guidance_scale=1.5 is not offered"):
        model.generate(ids, max_new_tokens=1)
    with pytest.raises(TypeError, match="'temperatur': did you mean temperature"):
        model.generation_config.temperatur = 1
    with pytest.raises(AttributeError, match="temperatur: did you mean temperature"):
        model.generation_config.temperatur  # noqa: B018


REFUSED = {
    "group beam search": {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 2.0},
    "constrained beam search": {"num_beams": 2, "force_words_ids": [[5]]},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "DoLa": {"dola_layers": "low"},
    "token healing": {"token_healing": True},
    "guidance": {"guidance_scale": 1.5},
    "chunked prefill": {"prefill_chunk_size": 2},
    "a quantised cache": {"cache_implementation": "quantized"},
    "positions": {"position_ids": torch.arange(7)[None]},
    "code from elsewhere": {"custom_generate": "somebody/something"},
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_what_is_not_offered_is_refused_by_name(options):
    with pytest.raises(ValueError, match="|".join(options)):
        build(qwen2_edu).generate(inputs()["input_ids"], **options)
