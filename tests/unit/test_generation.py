"""`generate`: settings, inputs, endings, streams, caches; ids are compared in tests/parity."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from qwen2_edu import DynamicCache, GenerationConfig, Qwen2ForCausalLM, Qwen2Tokenizer, StaticCache
from qwen2_edu.decoding.streaming import StopStrings, TextPieces
from qwen2_edu.generation import decode, effective_settings, generate, prefill, stream, stream_ids
from qwen2_edu.model import CausalLMOutput
from qwen2_edu.text.batching import BatchEncoding

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer():
    """One token for each byte, then the control tokens: 259 in all."""
    return Qwen2Tokenizer({bytes([b]): b for b in range(256)}, added_tokens=SPECIAL)


@pytest.fixture(scope="module")
def ascii_model(small_config, randomise):
    """Its ids 0 … 96 are all ASCII."""
    return randomise(Qwen2ForCausalLM(small_config(bos_token_id=None, eos_token_id=None)), seed=3)


@pytest.fixture(scope="module")
def byte_model(small_config, randomise):
    """Answers any bytes, so most characters are torn; ids 259 … 299 mean nothing."""
    config = small_config(vocab_size=300, eos_token_id=258)
    return randomise(Qwen2ForCausalLM(config), seed=3)


IDS = torch.tensor([[20, 21, 22, 23, 24]])


# -- GenerationConfig ------------------------------------------------------------------------------

RELEASED = [
    '{\n  "bos_token_id": 151643,\n  "pad_token_id": 151643,\n  "do_sample": true,\n'
    '  "eos_token_id": [\n    151645,\n    151643\n  ],\n  "repetition_penalty": 1.1,\n'
    '  "temperature": 0.7,\n  "top_p": 0.8,\n  "top_k": 20,\n'
    '  "transformers_version": "4.37.0"\n}' + end
    for end in ("\n", "")
]


@pytest.mark.parametrize("text", RELEASED)
def test_a_released_file_round_trips(text, tmp_path):
    (tmp_path / "generation_config.json").write_text(text, newline="")
    config = GenerationConfig.from_pretrained(tmp_path)
    assert (config.do_sample, config.top_k, config.eos_token_id) == (True, 20, [151645, 151643])
    config.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "generation_config.json").read_bytes() == text.encode()
    config.top_k, config.max_new_tokens = 7, 99
    values = json.loads(config.to_json())
    assert values == {**json.loads(text), "top_k": 7, "max_new_tokens": 99}
    assert list(values)[-1] == "max_new_tokens"


def test_recorded_releases_round_trip(goldens, tmp_path):
    files = goldens("released_files")["file_hashes"]["rebuilt_byte_exact_here"]
    texts = [f["text"] for f in files if f["file"].endswith("/generation_config.json")]
    assert texts
    for text in texts:
        (tmp_path / "generation_config.json").write_text(text, newline="")
        assert GenerationConfig.from_pretrained(tmp_path).to_json() == text


def test_a_folder_without_the_file(tmp_path):
    assert GenerationConfig.from_pretrained(tmp_path) is None


@pytest.mark.parametrize("text", ["[1]", "{", "null"])
def test_a_malformed_file_is_named(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match="generation_config.json"):
        GenerationConfig.from_pretrained(tmp_path)


# -- which setting wins ----------------------------------------------------------------------------


@pytest.fixture
def with_file(ascii_model):
    def use(**fields):
        ascii_model.generation_config = GenerationConfig.from_dict(fields)
        return ascii_model

    yield use
    ascii_model.generation_config = None


def test_call_over_file_over_defaults(with_file):
    model = with_file(top_k=20, temperature=0.7, do_sample=True)
    s = effective_settings(model, temperature=0.5)
    assert (s.temperature, s.top_k, s.top_p, s.max_new_tokens) == (0.5, 20, 1.0, 20)
    assert "temperature=0.5" in repr(s) and "top_k=20" in repr(s)
    for config in ({"top_k": 3}, GenerationConfig(top_k=3), transformers.GenerationConfig(top_k=3)):
        s = effective_settings(model, config)  # field by field, as transformers decides
        assert (s.top_k, s.temperature, s.do_sample) == (3, 0.7, True)
        assert effective_settings(model, config, top_k=4).top_k == 4
    assert effective_settings(model, {}) == effective_settings(model)
    assert effective_settings(model, top_k=None).top_k == 20


def test_defaults_are_those_of_transformers(ascii_model):
    theirs = transformers.GenerationConfig._get_default_generation_params()
    s = effective_settings(ascii_model)
    for name in theirs.keys() & vars(s).keys() - {"max_length"}:
        assert getattr(s, name) == theirs[name], name
    assert s.max_new_tokens == theirs["max_length"]


def test_max_new_tokens_wins_over_max_length_wherever_it_is_said(with_file):
    """As in transformers, which warns too."""
    with pytest.warns(UserWarning, match="max_length=8 needs max_new_tokens=4"):
        assert generate(with_file(max_new_tokens=4), IDS, max_length=8).shape == (1, 9)
    assert generate(with_file(max_length=50), IDS, max_new_tokens=2).shape == (1, 7)
    assert generate(with_file(max_length=50), IDS, max_length=8).shape == (1, 8)
    with pytest.warns(UserWarning, match="max_length=9"):
        assert generate(with_file(), IDS, max_length=9, max_new_tokens=2).shape == (1, 7)


def test_special_ids_fall_back_to_the_config(small_config):
    s = effective_settings(Qwen2ForCausalLM(small_config()))
    assert (s.bos_token_id, s.eos_token_id, s.pad_token_id) == (0, [1], 2)


def test_temperature_zero_is_greedy_unless_sampling(ascii_model, recwarn):
    greedy = generate(ascii_model, IDS)
    assert torch.equal(generate(ascii_model, IDS, temperature=0), greedy)
    assert torch.equal(generate(ascii_model, IDS, temperature=0.0, do_sample=False), greedy)
    assert not recwarn.list
    with pytest.raises(ValueError, match="do_sample=False"):
        generate(ascii_model, IDS, temperature=0, do_sample=True)


def test_neutral_values_of_what_is_not_offered_are_accepted(ascii_model, recwarn):
    neutral = {"typical_p": 1.0, "no_repeat_ngram_size": 0, "use_cache": True, "min_length": 0}
    assert torch.equal(generate(ascii_model, IDS, **neutral), generate(ascii_model, IDS))
    assert not recwarn.list


def test_every_option_of_transformers_is_known(ascii_model):
    """With the values a fresh GenerationConfig of transformers has, nothing is refused."""
    theirs = transformers.GenerationConfig._get_default_generation_params()
    for name, value in theirs.items():
        if "assistant" in name or "lookbehind" in name:
            continue  # of a second, smaller model
        effective_settings(ascii_model, **{name: value})


# -- refusals --------------------------------------------------------------------------------------

IMPOSSIBLE = [
    ({"do_sample": True, "temperature": -1.0}, "temperature.*-1.0"),
    ({"do_sample": True, "temperature": math.nan}, "temperature.*nan"),
    ({"do_sample": True, "top_p": 0.0}, r"top_p.*\(0, 1\].*0.0"),
    ({"do_sample": True, "top_p": 1.1}, "top_p.*1.1"),
    ({"do_sample": True, "top_k": -1}, "top_k.*0 or more, not -1"),
    ({"temperature": "0.7"}, "temperature must be a number, not '0.7'"),
    ({"repetition_penalty": "1.1"}, "repetition_penalty must be a number above 0, not '1.1'"),
    ({"pad_token_id": "a"}, r"pad_token_id must be an integer in \[-2,147,.*,647\], not 'a'"),
    ({"seed": 1.5, "do_sample": True}, r"seed must be an integer in \[-9,223,.*,615\], not 1.5"),
    ({"do_sample": True, "top_k": 2.5}, "top_k.*2.5"),
    ({"do_sample": True, "min_p": 1.5}, "min_p.*1.5"),
    ({"repetition_penalty": 0.0}, "repetition_penalty.*0.0"),
    ({"max_new_tokens": 0}, "max_new_tokens.*0"),
    ({"max_new_tokens": 2.0}, "max_new_tokens.*2.0"),
    ({"max_length": 5}, "max_length=5.*5 tokens"),
    ({"num_beams": 0}, "num_beams.*0"),
    ({"num_return_sequences": 2}, "num_return_sequences=2.*do_sample=True"),
    ({"num_return_sequences": 4, "num_beams": 3}, "num_return_sequences=4.*num_beams=3"),
    ({"num_beams": 2, "stop_strings": "x"}, "stop_strings.*num_beams=2"),
    ({"num_beams": 2, "early_stopping": "always"}, "early_stopping.*always"),
    ({"stop_strings": "x"}, "stop_strings.*tokenizer"),
    ({"stop_strings": ""}, "stop_strings.*''"),
    ({"cache_implementation": "paged"}, "cache_implementation.*paged"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size.*0 or more, not -1"),
    ({"bad_words_ids": [[97]]}, r"bad_words_ids hold \[97\]: each is ids from 0 to 96"),
    ({"bad_words_ids": [[]]}, r"bad_words_ids hold \[\]"),
    ({"max_time": "1"}, "max_time must be a number.*'1'"),
    ({"inputs": IDS}, "inputs and input_ids"),
    ({"use_cache": False, "cache_implementation": "static"}, "need use_cache=True"),
    ({"typical_p": 0.9}, "typical_p=0.9 is not offered.*logits_processor"),
    ({"penalty_alpha": 0.6}, "penalty_alpha=0.6 is not offered.*num_beams"),
    ({"custom_generate": "x/y"}, "custom_generate='x/y'.*no code"),
    ({"position_ids": IDS}, "position_ids=.*attention_mask"),
    ({"bad_words_ids": [[i] for i in range(97)]}, "no token is left to choose from"),
    ({"inputs_embeds": IDS}, r"inputs_embeds must be \(B, T, 48\), not \(1, 5\)"),
    ({"inputs_embeds": torch.zeros(1, 4, 48)}, r"\(1, 5\) do not go with inputs_embeds \(1, 4, 48"),
    ({"inputs_embeds": torch.zeros(1, 5, 48).half()}, "torch.float16 .* torch.float32"),
    ({"seed": 1, "generator": torch.Generator(), "do_sample": True}, "seed=1.*generator"),
    ({"attention_mask": torch.ones(1, 4)}, r"\(1, 4\).*\(1, 5\)"),
    ({"attention_mask": torch.zeros(1, 5)}, "row 0 of attention_mask shows no token"),
]
OF_ANOTHER_TYPE = [
    ({"do_sample": "yes"}, "do_sample.*'yes'"),
    ({"eos_token_id": "a"}, "eos_token_id must be int.*'a'"),
    ({"eos_token_id": [1, 2.5]}, "eos_token_id must be int.*2.5"),
    ({"attention_mask": [[1] * 5]}, r"attention_mask must be Tensor.*\[\[1, 1"),
    ({"past_key_values": [1]}, r"past_key_values must be Cache.*\[1\]"),
    ({"vocab_limit": "9"}, "vocab_limit must be int . None, not '9'"),
    ({"generator": 1}, "generator must be Generator . None, not 1"),
    ({"bad_words_ids": [3]}, r"bad_words_ids must be list\[list\[int\]\]"),
    ({"use_cache": 1}, "use_cache must be bool.*, not 1"),
    ({"output_scores": "yes"}, "output_scores must be bool.*, not 'yes'"),
    ({"use_cache": False, "past_key_values": "cache"}, "past_key_values must be Cache"),
    ({"inputs_embeds": [1]}, "inputs_embeds must be Tensor"),
]


@pytest.mark.parametrize(
    ("options", "message", "error"),
    [
        *((*case, ValueError) for case in IMPOSSIBLE),
        *((*case, TypeError) for case in OF_ANOTHER_TYPE),
    ],
    ids=lambda x: str(x)[:40],
)
def test_impossible_options_raise_with_their_values(ascii_model, options, message, error):
    with pytest.raises(error, match=message):
        generate(ascii_model, **{"input_ids": IDS, **options})


@pytest.mark.parametrize(
    ("option", "near"),
    [("temprature", "temperature"), ("max_tokens", "max_new_tokens"), ("xyz", "do_sample")],
)
def test_an_unknown_option_is_named_with_near_matches(ascii_model, option, near):
    with pytest.raises(TypeError, match=f"{option}.*{near}"):
        generate(ascii_model, IDS, **{option: 1})


def test_near_matches_are_things_that_are_offered(ascii_model):
    with pytest.raises(TypeError, match="suppress_token") as caught:
        generate(ascii_model, IDS, suppress_token=1)
    assert "suppress_tokens" not in str(caught.value)


def test_what_the_file_asks_and_cannot_be_is_refused(with_file):
    with pytest.raises(ValueError, match="typical_p=0.5"):
        generate(with_file(typical_p=0.5), IDS)
    generate(with_file(transformers_version="4.37.0", chat_format="chatml"), IDS)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[1, 2]], TypeError, "list.*return_tensors"),
        (BatchEncoding(input_ids=IDS), TypeError, r"BatchEncoding: pass \*\*inputs, or"),
        (torch.tensor([1, 2]), ValueError, r"\(2,\)"),
        (torch.ones(1, 2), ValueError, "float32"),
        (torch.tensor([[5, 97]]), ValueError, "97.*0 to 96"),
        (torch.tensor([[-1, 3]]), ValueError, "-1"),
        (torch.zeros(0, 3, dtype=torch.long), ValueError, r"\(0, 3\)"),
        (torch.zeros(1, 0, dtype=torch.long), ValueError, "empty.*bos_token_id"),
        (None, ValueError, "empty.*bos_token_id"),
    ],
    ids=str,
)
def test_impossible_prompts(ascii_model, ids, error, message):
    with pytest.raises(error, match=message):
        generate(ascii_model, ids)


def test_an_empty_prompt_begins_with_bos(ascii_model):
    wanted = generate(ascii_model, torch.tensor([[7]]))
    assert torch.equal(generate(ascii_model, bos_token_id=7), wanted)
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert torch.equal(generate(ascii_model, empty, bos_token_id=7), wanted.expand(2, -1))


def test_past_the_longest_text_warns_once(ascii_model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        generate(ascii_model, IDS, max_new_tokens=124)
    assert [str(w.message) for w in caught if "max_position_embeddings=128" in str(w.message)]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(ascii_model, IDS, max_new_tokens=123, eos_token_id=[])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.5}, "temperature=0.5 needs do_sample"),
        ({"top_k": 5, "seed": 3}, "top_k=5.*seed=3"),
        ({"length_penalty": 2.0}, "length_penalty=2.0 needs num_beams"),
    ],
)
def test_options_without_effect_warn(ascii_model, options, message):
    for call in (generate, stream_ids, type(ascii_model).generate):
        with pytest.warns(UserWarning, match=message) as caught:
            call(ascii_model, IDS, **options)
        assert [warned.filename for warned in caught] == [__file__]


def test_a_padded_batch_without_a_mask_warns(ascii_model):
    ids = torch.tensor([[2, 5, 6], [7, 8, 9]])
    with pytest.warns(UserWarning, match="padding id 2"):
        generate(ascii_model, ids)


# -- the caller's things stay as they are ----------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_gradients_are_left_alone(ascii_model, training):
    ascii_model.train(training)
    try:
        out = generate(ascii_model, IDS)
        assert ascii_model.training is training and torch.is_grad_enabled()
        cache = DynamicCache(ascii_model.config)
        token = next(stream_ids(ascii_model, IDS, past_key_values=cache))
        assert torch.is_grad_enabled()  # also between the steps of an iterator
        ascii_model(out, labels=out).loss.backward()  # and the answer can be trained on,
        ascii_model(token[:, None], past_key_values=cache).logits.sum().backward()  # each token too
    finally:
        ascii_model.eval().zero_grad()


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}], ids=str)
def test_the_prompt_is_not_written_to(ascii_model, options):
    ids, mask = torch.tensor([[2, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    before = ids.clone(), mask.clone()
    generate(ascii_model, ids, mask, repetition_penalty=1.2, **options)
    assert torch.equal(ids, before[0]) and torch.equal(mask, before[1])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.data())
def test_a_row_does_not_depend_on_its_neighbours(ascii_model, lengths, data):
    width = max(lengths)
    ids = torch.tensor([[data.draw(st.integers(3, 96)) for _ in range(width)] for _ in lengths])
    mask = torch.stack([torch.arange(width) >= width - n for n in lengths])
    penalty = data.draw(st.sampled_from([1.0, 1.3]))
    ends = data.draw(st.lists(st.integers(0, 96), max_size=30))
    options = {"max_new_tokens": 6, "repetition_penalty": penalty, "eos_token_id": ends}
    together = generate(ascii_model, ids, mask, pad_token_id=2, **options)[:, width:]
    for row, n in enumerate(lengths):
        alone = generate(ascii_model, ids[row : row + 1, width - n :], **options)[0, n:]
        assert together[row, : len(alone)].tolist() == alone.tolist()
        assert together[row, len(alone) :].eq(2).all()


# -- the vocabulary's end --------------------------------------------------------------------------


def test_ids_past_the_tokenizers_last_are_never_chosen(byte_model, tokenizer):
    options = {"do_sample": True, "temperature": 50.0, "top_k": 0, "seed": 1, "max_new_tokens": 100}
    assert generate(byte_model, IDS, **options, eos_token_id=[]).max() > 258
    for limit in ({"tokenizer": tokenizer}, {"vocab_limit": 259}):
        got = generate(byte_model, IDS, **options, **limit, eos_token_id=[], repetition_penalty=1.1)
        assert 250 < got.max() <= 258
    greedy = {"eos_token_id": [], "max_new_tokens": 30}
    assert generate(byte_model, IDS, vocab_limit=40, **greedy).max() < 40
    assert generate(byte_model, IDS, vocab_limit=40, num_beams=3, **greedy).max() < 40


# -- stop strings ----------------------------------------------------------------------------------


def hf_byte_tokenizer(merged=""):
    import tokenizers

    from qwen2_edu.bpe import BYTE_TO_CHAR

    vocab = {BYTE_TO_CHAR[b]: b for b in range(256)}
    merges = [tuple(merged)] if merged else []
    vocab |= {"".join(pair): 256 + i for i, pair in enumerate(merges)}
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=engine)


def test_a_streamer_must_stream(ascii_model):
    with pytest.raises(TypeError, match="a streamer has put"):
        generate(ascii_model, torch.tensor([[40]]), streamer=object())


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.21"),
    reason="older transformers count padding as repeated tokens",
)
def test_stop_strings_end_rows_where_transformers_ends_them(ascii_model, tokenizer, small_config):
    config = transformers.Qwen2Config(**ascii_model.config.to_dict())
    twin = transformers.Qwen2ForCausalLM(config)
    twin.load_state_dict(ascii_model.state_dict())
    prompts = torch.randint(33, 97, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompts)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 16, "repetition_penalty": 1.3}
    options |= {"pad_token_id": 0, "eos_token_id": 1}  # without one, transformers' rows run on
    free = ascii_model.generate(prompts, **options)
    texts = [bytes(row).decode() for row in free.tolist()]
    cuts = [
        [texts[0][9:11], texts[1][13:16]],
        [texts[2][5:7]],  # begins in the prompt
        [texts[3][3:6]],  # wholly in the prompt: not an end
        texts[1][20],
        [texts[0][8:12], "never said"],
    ]
    theirs = hf_byte_tokenizer()
    lengths = set()
    for stop in cuts:
        wanted = twin.generate(prompts, stop_strings=stop, tokenizer=theirs, **options)
        got = ascii_model.generate(prompts, stop_strings=stop, tokenizer=tokenizer, **options)
        assert got.tolist() == wanted.tolist()
        lengths.update((row != 0).sum().item() for row in got[:, 6:])
    assert len(lengths) > 3


def test_rows_that_stop_apart_need_a_padding_id(ascii_model, tokenizer):
    ascii_model.config.pad_token_id = None
    try:
        options = {"stop_strings": "no", "tokenizer": tokenizer}
        assert generate(ascii_model, IDS, **options).shape == (1, 25)
        with pytest.raises(ValueError, match="2 rows.*pad_token_id"):
            generate(ascii_model, IDS.repeat(2, 1), **options)
    finally:
        ascii_model.config.pad_token_id = 2


class Scripted(Qwen2ForCausalLM):
    """A model that says `script`, whatever it reads."""

    def __init__(self, config, prompt, script):
        super().__init__(config)
        self.prompt, self.script = prompt, [*script, *[7] * 20]

    def __call__(self, ids, past_key_values, **_):
        past_key_values.advance(ids.shape[1])
        said = past_key_values.get_seq_length() - len(self.prompt)
        logits = torch.zeros(1, 1, self.config.vocab_size)
        logits[..., self.script[said]] = 1.0
        return CausalLMOutput(logits=logits)


def test_a_stop_string_of_torn_characters(byte_model, tokenizer):
    """It begins with the prompt's last bytes, and each of its characters is torn over tokens."""
    prompt = "x日".encode()[:-1]
    model = Scripted(byte_model.config, prompt, "日本語!".encode()[2:])
    ids, options = torch.tensor([list(prompt)]), {"max_new_tokens": 20, "tokenizer": tokenizer}
    out = generate(model, ids, stop_strings=["日本"], **options)
    assert bytes(out[0].tolist()).decode() == "x日本"
    del options["tokenizer"]
    pieces = list(stream(model, tokenizer, ids, stop_strings=["本語!"], **options))
    assert pieces == ["\N{REPLACEMENT CHARACTER}", "本語!"]  # the first byte came alone


def test_rows_do_not_mix_their_torn_characters(tokenizer):
    texts = ["日本", "本日", "abc日"]
    watch = StopStrings(tokenizer, ["日本", "c日"], torch.zeros(3, 0, dtype=torch.long))
    columns = zip(*map(str.encode, texts), strict=True)
    hits = [watch(torch.tensor(column)[:, None]).tolist() for column in columns]
    assert hits == [[False] * 3] * 5 + [[True, False, True]]


@pytest.mark.parametrize(
    ("stop", "kept"),
    [("d", "end."), ("nd.", "end."), ("en", "en"), (".x", "end.x"), ("d.x", "end.x")],
)
def test_a_stop_string_may_end_within_a_token(byte_model, stop, kept):
    vocab = {**{bytes([b]): b for b in range(256)}, b"d.": 256}
    model = Scripted(byte_model.config, b"#", [*b"en", 256, *b"xyz"])
    ids, tokenizer = torch.tensor([list(b"#")]), Qwen2Tokenizer(vocab)
    out = generate(model, ids, stop_strings=stop, tokenizer=tokenizer, max_new_tokens=6)
    assert tokenizer.decode(out[0]) == "#" + kept
    criterion = transformers.StopStringCriteria(hf_byte_tokenizer("d."), [stop])
    ends = [bool(criterion(out[:, :n], None)) for n in range(2, out.shape[1] + 1)]
    assert ends == [False] * (len(ends) - 1) + [True]
    assert "".join(stream(model, tokenizer, ids, stop_strings=stop, max_new_tokens=6)) == kept


# -- streams ---------------------------------------------------------------------------------------

STREAMED = [
    {"max_new_tokens": 40},
    {"max_new_tokens": 40, "repetition_penalty": 1.3},
    {"max_new_tokens": 60, "do_sample": True, "seed": 3, "temperature": 3.0},
]


class Put:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.ids, self.ended = [], False

    def put(self, ids):
        assert not self.ended and ids.device.type == "cpu"
        self.ids.append(ids)

    def end(self):
        self.ended = True


@pytest.mark.parametrize("options", STREAMED, ids=str)
def test_streams_are_what_generate_returns(byte_model, tokenizer, options):
    options = {"tokenizer": tokenizer, **options}
    answer = generate(byte_model, IDS, **options)[0, 5:].tolist()
    assert [int(token) for token in stream_ids(byte_model, IDS, **options)] == answer
    streamer = Put()
    generate(byte_model, IDS, streamer=streamer, **options)
    assert streamer.ended and torch.equal(streamer.ids[0], IDS)
    assert torch.cat(streamer.ids[1:]).tolist() == answer
    del options["tokenizer"]
    pieces = list(stream(byte_model, tokenizer, IDS, **options))
    text = bytes(i for i in answer if i < 256).decode("utf-8", "replace")
    assert "".join(pieces) == text and len(pieces) > 5
    whole = "".join(stream(byte_model, tokenizer, IDS, skip_special_tokens=False, **options))
    assert whole == tokenizer.decode(answer)


def test_transformers_streamers_fit(ascii_model, capsys):
    streamer = transformers.TextStreamer(hf_byte_tokenizer(), skip_prompt=True)
    answer = generate(ascii_model, IDS, streamer=streamer)[0, 5:]
    assert capsys.readouterr().out.rstrip("\n") == bytes(answer.tolist()).decode().rstrip("\n")


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.text("aαß日🎉e\u0301", max_size=12), st.lists(st.text("aα日e", min_size=1, max_size=3)))
def test_pieces_are_whole_and_make_the_text(tokenizer, text, stops):
    """No piece holds half a character, nor the first part of a stop string that then comes."""
    pieces = TextPieces(tokenizer, stops)
    got = list(pieces.of(text.encode()))
    assert "".join(got) == text and "\N{REPLACEMENT CHARACTER}" not in "".join(got)
    edges, at = set(), 0
    for piece in got[:-1]:
        at += len(piece)
        edges.add(at)
    spans = [(text.find(stop), text.find(stop) + len(stop)) for stop in stops if stop in text]
    first_end = min((end for _, end in spans), default=0)  # there the run ends
    for start, end in spans:
        if end == first_end:
            assert not edges & set(range(start + 1, end))


def test_a_stream_refuses_at_once(ascii_model, tokenizer):
    with pytest.raises(ValueError, match="num_beams=2"):
        stream_ids(ascii_model, IDS, num_beams=2)
    with pytest.raises(ValueError, match="num_beams=2"):
        generate(ascii_model, IDS, num_beams=2, streamer=Put())
    with pytest.raises(ValueError, match="each of 2"):
        stream(ascii_model, tokenizer, IDS.repeat(2, 1))
    with pytest.raises(TypeError, match="temprature"):
        stream_ids(ascii_model, IDS, temprature=1)


# -- caches ----------------------------------------------------------------------------------------


def test_only_what_the_cache_lacks_is_read(ascii_model):
    read = []
    handle = ascii_model.model.register_forward_pre_hook(
        lambda module, args: read.append(args[0].shape[1])
    )
    try:
        cache = DynamicCache(ascii_model.config)
        out = generate(ascii_model, IDS, max_new_tokens=4, past_key_values=cache)
        assert read == [5, 1, 1, 1]
        read.clear()
        longer = torch.cat((out, torch.tensor([[5, 6]])), 1)
        again = generate(ascii_model, longer, max_new_tokens=2, past_key_values=cache)
        assert read == [3, 1]
        assert torch.equal(again, generate(ascii_model, longer, max_new_tokens=2))
    finally:
        handle.remove()


def test_a_cache_that_does_not_fit_says_why(ascii_model):
    cache = DynamicCache(ascii_model.config)
    generate(ascii_model, IDS, max_new_tokens=4, past_key_values=cache)
    with pytest.raises(ValueError, match=r"8 tokens and input_ids 5.*crop\(4\)"):
        generate(ascii_model, IDS, past_key_values=cache)
    cache.crop(4)
    generate(ascii_model, IDS, past_key_values=cache)
    with pytest.raises(ValueError, match="holds 12 tokens and 13 are needed"):
        static = StaticCache(ascii_model.config, 12)
        generate(ascii_model, IDS, past_key_values=static, max_new_tokens=9)
    generate(ascii_model, IDS, past_key_values=static, max_new_tokens=8)
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        generate(ascii_model, IDS, past_key_values=static, cache_implementation="static")


def test_a_mask_that_differs_from_the_cache_is_refused(ascii_model):
    ids, mask = torch.tensor([[2, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    cache = DynamicCache(ascii_model.config)
    out = generate(ascii_model, ids, mask, max_new_tokens=3, past_key_values=cache)
    with pytest.raises(ValueError, match=r"\[1, 0\].*attention_mask shows \[0"):
        generate(ascii_model, out, torch.ones_like(out), past_key_values=cache)


@pytest.mark.parametrize("window", [None, 4])
def test_a_compiled_step_gives_the_same_ids_and_is_compiled_once(small_config, randomise, window):
    from torch._dynamo.testing import CompileCounterWithBackend

    sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    model = randomise(Qwen2ForCausalLM(small_config(**(sliding if window else {}))), seed=3)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    step = torch.compile(model, fullgraph=True, dynamic=False, backend=counter)
    for length in (5, 8):  # prompts of any length: they are read by the model itself
        ids = torch.randint(3, 97, (2, length), generator=torch.Generator().manual_seed(length))
        cache = StaticCache(model.config, 32)
        with torch.no_grad():
            token, found = prefill(model, ids, cache).argmax(-1), [ids]
            for _ in range(19):
                found.append(token[:, None])
                token = decode(step, token, cache).argmax(-1)
        got = torch.cat((*found, token[:, None]), 1)
        assert torch.equal(got, generate(model, ids, max_new_tokens=20, eos_token_id=[]))
    assert counter.frame_count == 1


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("padding", [0, 3, 9])
def test_a_long_prompt_is_read_in_parts(
    small_config, randomise, monkeypatch, options, window, padding
):
    """Of 4 tokens here; with 9 of padding a row has parts that are nothing else."""
    sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    model = randomise(Qwen2ForCausalLM(small_config(**(sliding if window else {}))), seed=3)
    ids, mask = torch.randint(3, 97, (2, 18)), torch.ones(2, 18, dtype=torch.long)
    mask[0, :padding] = 0
    embeds = model.get_input_embeddings()(ids).detach()
    run = {"max_new_tokens": 6, "eos_token_id": [], **options}
    one = model.generate(ids, mask, **run)
    states = {"return_dict_in_generate": True, "output_hidden_states": True}
    kept = model.generate(ids, mask, **states, **run)
    seen = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[1])
    )
    monkeypatch.setattr("qwen2_edu.generation.CHUNK", 4)
    assert torch.equal(model.generate(ids, mask, **run), one)
    assert seen[:5] == [4, 4, 4, 4, 2]
    hook.remove()
    assert torch.equal(model.generate(None, mask, inputs_embeds=embeds, **run), one[:, 18:])
    again = model.generate(ids, mask, **states, **run)
    assert again.hidden_states[0][0].shape[1] == kept.hidden_states[0][0].shape[1] == 18
