"""Speculation changes how fast an answer comes, and nothing else."""

from __future__ import annotations

import pytest
import torch

from qwen2_edu import AutoTokenizer, DynamicCache, Qwen2ForCausalLM, StaticCache
from qwen2_edu.decoding.speculation import PromptLookup, accept

GREEDY = {"do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def model(small_config, randomise):
    """Two layers of three slide, by 8 tokens; its answers repeat themselves, so lookup guesses."""
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    return randomise(Qwen2ForCausalLM(small_config(hidden_size=96, head_dim=16, **window)))


@pytest.fixture(scope="module")
def other(small_config, randomise):
    """A smaller model with fewer rows for padding in its embedding."""
    return randomise(Qwen2ForCausalLM(small_config(num_hidden_layers=1, vocab_size=96)), seed=5)


def prompt(T=12):
    return torch.tensor([[3, 4, 5, 6, 7, 8]]).repeat(1, T // 6)


def drafters(model, other):
    assistants = {"other": {"assistant_model": other}, "itself": {"assistant_model": model}}
    return assistants | {"lookup": {"prompt_lookup_num_tokens": 4}}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"eos_token_id": 30}])
@pytest.mark.parametrize("who", ["lookup", "other", "itself"])
def test_greedy_ids_are_the_same(model, other, who, options, fast):
    options = {**GREEDY, "eos_token_id": None, "max_new_tokens": 40, "fast": fast, **options}
    plain = model.generate(prompt(), **options)
    options |= {"return_dict_in_generate": True, **drafters(model, other)[who]}
    out = model.generate(prompt(), **options)
    assert out.sequences.tolist() == plain.tolist()
    if who == "itself" and not options.get("eos_token_id"):
        assert out.accepted[:-1] == (5,) * (len(out.accepted) - 1)


def test_names_of_transformers_and_what_was_accepted(model, other):
    options = {**GREEDY, "eos_token_id": None, "max_new_tokens": 30}
    plain = model.generate(prompt(), **options)
    for asked in ({"prompt_lookup_num_tokens": 4}, {"assistant_model": other}):
        out = model.generate(prompt(), return_dict_in_generate=True, **asked, **options)
        assert torch.equal(out.sequences, plain)
        kept = sum(out.accepted)
        assert 0 <= kept < 30 and max(out.accepted, default=0) <= 5


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_a_cache_that_goes_on(small_config, randomise, cache):
    model = randomise(Qwen2ForCausalLM(small_config()))
    room = () if cache is DynamicCache else (64,)
    options = {**GREEDY, "eos_token_id": None, "max_new_tokens": 20}
    plain = model.generate(prompt(), **options)
    held = cache(model.config, *room)
    model(prompt()[:, :5], past_key_values=held)
    ids = model.generate(prompt(), past_key_values=held, prompt_lookup_num_tokens=3, **options)
    assert torch.equal(ids, plain) and held.get_seq_length() >= 12 + 19


def test_lookup_by_hand():
    look, ids = PromptLookup(3).guess, lambda *numbers: torch.tensor([numbers])
    assert look(ids(1, 2, 3, 4, 5, 1, 2), 3)[0].tolist() == [[3, 4, 5]]
    assert look(ids(1, 2, 7, 9, 1, 2, 8, 8, 8, 1, 2), 2)[0].tolist() == [[8, 8]]  # the latest
    assert look(ids(0, 1, 2, 7, 9, 5, 1, 2, 8, 8, 0, 1, 2), 2)[0].tolist() == [[7, 9]]  # longest
    assert look(ids(1, 2, 3, 4), 3)[0].shape == (1, 0)
    assert look(
        ids(
            1,
        ),
        3,
    )[0].shape == (1, 0)


def test_what_is_kept_or_replaced_follows_the_model():
    """Chi-square of 20,000 draws: the guesser's distribution leaves no trace."""
    p = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    q = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1])
    generator, counts, n = torch.Generator().manual_seed(0), torch.zeros(5), 20000
    for guess in torch.multinomial(q, n, replacement=True, generator=generator).split(1):
        token, kept = accept(p.log()[None], guess, q, generator)
        assert not kept or token == guess
        counts[token] += 1
    expected = n * p[:4]
    assert counts[4] == 0
    assert ((counts[:4] - expected) ** 2 / expected).sum() < 16.3  # 3 degrees, 1 in 1,000


@pytest.mark.parametrize("who", ["lookup", "other"])
def test_drawn_text_follows_the_same_distribution(model, other, who):
    """The second and third token of 700 answers, beside their exact probabilities."""
    options = {"do_sample": True, "top_k": 3, "temperature": 0.8}
    ids, n = prompt(), 700
    exact: dict[tuple[int, int], float] = {}

    def odds(text):
        with torch.no_grad():
            best = (model(text).logits[0, -1] / 0.8).topk(3)
        return zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True)

    for a, p_a in odds(ids):
        for b, p_b in odds(torch.cat((ids, torch.tensor([[a]])), 1)):
            exact[a, b] = p_a * p_b
    counts = dict.fromkeys(exact, 0)
    generator = torch.Generator().manual_seed(1)
    options |= drafters(model, other)[who]
    for _ in range(n):
        out = model.generate(
            ids,
            max_new_tokens=3,
            eos_token_id=None,
            pad_token_id=0,
            generator=generator,
            **options,
        )
        counts[tuple(out[0, 12:14].tolist())] += 1
    likely = [pair for pair in exact if n * exact[pair] >= 5]
    off = sum((counts[pair] - n * exact[pair]) ** 2 / (n * exact[pair]) for pair in likely)
    assert off < 26.1  # 8 degrees, 1 in 1,000


def test_what_cannot_be(model, other):
    for options, said in (
        ({"input_ids": prompt().repeat(2, 1)}, "one row, once, without beams, not 2 rows"),
        ({"num_beams": 2}, "2 beams"),
        ({"assistant_model": other}, "give one of them"),
        ({"use_cache": False}, "prompt_lookup_num_tokens=.* needs ids and a cache"),
        ({"return_dict_in_generate": True, "output_attentions": True}, "no states and maps"),
    ):
        asked = {"input_ids": prompt(), **GREEDY, "max_new_tokens": 3, **options}
        with pytest.raises(ValueError, match=said):
            model.generate(prompt_lookup_num_tokens=3, **asked)
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens must be a positive integer"):
        model.generate(prompt(), prompt_lookup_num_tokens=0, **GREEDY)


def test_stop_strings_and_streams():
    from qwen2_edu.generation import stream

    model = Qwen2ForCausalLM.from_pretrained("tiny", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    ids = tokenizer("Once there was a cat. Once there was", return_tensors="pt").input_ids
    options = {**GREEDY, "max_new_tokens": 40, "stop_strings": ["."]}
    plain = "".join(stream(model, tokenizer, ids, **options))
    assert "".join(stream(model, tokenizer, ids, prompt_lookup_num_tokens=4, **options)) == plain
