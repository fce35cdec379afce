"""Both tokenizers: recorded encodings, each other, tiktoken, and every option of the surface."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
import unicodedata

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2_edu import bpe
from qwen2_edu.text import files as tokenizer_files
from qwen2_edu.text.runs import CLUSTER, AddedToken
from qwen2_edu.tokenizer import Qwen2Tokenizer, Qwen2TokenizerFast

BOTH = [Qwen2Tokenizer, Qwen2TokenizerFast]
common = settings(deadline=None, max_examples=150, derandomize=True)
# Characters that every engine knows: later Unicode versions made letters of unassigned ones.
character = st.characters(exclude_categories=("Cs", "Cn"))
special = st.sampled_from(
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_", "end|>", "<", "|>"]
)
plain_text = st.text(character, max_size=50)
combining = st.text(
    st.sampled_from("eaoϓ生q \u0301\u0323\u0307\u0345가\u1100\u1161\u11a8Å\u212b\u0958")
)
any_text = st.lists(plain_text | special | combining, max_size=5).map("".join)
TEXTS = [
    "",
    "Hello world",
    "naïve café, 生活的真谛是",
    "a<|im_end|>b",
    "  \n\n x",
    "e\u0301 caf\u0065\u0301!",
]


def cases():
    path = __file__.replace("unit/test_tokenizer.py", "goldens/tokenizer.json")
    with open(path, encoding="utf-8") as file:
        facts = json.load(file)["facts"]
    return [pytest.param(fact, id=f"{i} {fact['what']}") for i, fact in enumerate(facts[:-1])]


@pytest.fixture(scope="module")
def qwen2_5(tokenizer):
    """The same vocabulary with all the added tokens of Qwen2.5."""
    ids = json.load(open(__file__.replace("unit/test_tokenizer.py", "goldens/released_files.json")))
    return type(tokenizer)(
        tokenizer.vocab,
        added_tokens={
            i: AddedToken(token, special=i < 151657)
            for token, i in ids["special_token_ids"].items()
        },
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )


@pytest.fixture
def mini(mini_parts):
    extra, merges = mini_parts
    vocab = {bytes([byte]): i for i, byte in enumerate(bpe.BYTE_TO_CHAR)}
    vocab |= {bpe.text_to_token(token): 256 + i for i, token in enumerate(extra)}
    pairs = [tuple(map(bpe.text_to_token, merge.split())) for merge in merges]
    return lambda cls: cls(vocab, pairs, added_tokens=["<|endoftext|>"], pad_token="<|endoftext|>")


# ----------------------------------------------------------------------------- the right ids


@pytest.mark.parametrize("fact", cases())
def test_recorded_encodings(qwen2_5, tokenizer, fact):
    expected, as_plain_text = fact["expected"], "plain text" in fact["what"]
    if isinstance(expected, list):
        assert tokenizer.encode(fact["inputs"], split_special_tokens=as_plain_text) == expected
        return
    assert qwen2_5.encode(fact["inputs"]) == expected["ids"]
    if expected["ids_no_special"]:
        ids = [token for run in [fact["inputs"]] for token in tokenizer._encode_text(run)]
        assert ids == expected["ids_no_special"]
    if fact["roundtrip_equals_nfc"]:
        assert qwen2_5.decode(expected["ids"]) == unicodedata.normalize("NFC", fact["inputs"])


@pytest.mark.parametrize("cls", BOTH)
def test_recorded_encoding_of_the_mini_vocabulary(mini, goldens, cls):
    fact = goldens("tokenizer")["facts"][-1]
    assert mini(cls).encode(fact["inputs"]["text"]) == fact["expected"]


@pytest.fixture(scope="module")
def reference(slow):
    """tiktoken with Qwen2's vocabulary, pattern (as transformers has it) and special tokens."""
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    return tiktoken.Encoding(
        "reference",
        pat_str=PRETOKENIZE_REGEX,
        mergeable_ranks=slow.vocab,
        special_tokens={"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645},
    )


@settings(common, max_examples=250)
@given(any_text)
def test_slow_equals_fast_equals_tiktoken(slow, fast, reference, text):
    expected = reference.encode(unicodedata.normalize("NFC", text), allowed_special="all")
    assert slow.encode(text) == fast.encode(text) == expected
    plain = reference.encode_ordinary(unicodedata.normalize("NFC", text))
    assert slow.encode(text, split_special_tokens=True) == plain
    assert fast.encode(text, split_special_tokens=True) == plain


@common
@given(any_text)
def test_decoding_gives_the_text_back_in_nfc(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


@common
@given(st.lists(st.integers(0, 151645), max_size=12))
def test_any_ids_decode_as_in_tiktoken_at_once_and_in_a_stream(tokenizer, reference, ids):
    expected = reference.decode_bytes(ids).decode("utf-8", errors="replace")
    assert tokenizer.decode(ids) == expected
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "".join(pieces) + decoder.flush() == expected


def test_a_stream_never_shows_half_a_character(tokenizer):
    ids = tokenizer.encode("👨‍👩‍👧 𠀀 ปี x")
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "" in pieces and "".join(pieces) == "👨‍👩‍👧 𠀀 ปี x"
    assert not any("\ufffd" in piece for piece in pieces)
    decoder.push(tokenizer.encode("𠀀")[0])
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_a_stream_can_leave_special_tokens_out(tokenizer):
    decoder = tokenizer.stream_decoder(skip_special_tokens=True)
    assert "".join(map(decoder.push, tokenizer.encode("a<|im_end|>b"))) == "ab"


@pytest.mark.parametrize("unit", ["a", " ", "\n", "!", "生", "1", "\u0301", "<|im_end|>"])
def test_80_000_equal_characters(slow, fast, reference, unit):
    text = unit * 80_000 if len(unit) == 1 else unit * 8_000
    expected = reference.encode(text, allowed_special="all")
    assert slow.encode(text) == fast.encode(text) == expected


def test_a_million_spaces_do_not_break_the_fast_engine(slow, fast):
    ids = fast.encode("a" + " " * 1_000_000 + "b")
    assert fast.decode(ids) == "a" + " " * 1_000_000 + "b"
    run = slow.encode(" " * 128)  # the longest token of spaces
    assert len(run) == 1 and ids[1:1001] == run * 1000


def test_the_cache_is_bounded(mini):
    tokenizer = mini(Qwen2Tokenizer)
    tokenizer.CACHE_PIECES = 10
    for number in range(100):
        word = "".join(chr(97 + int(digit)) for digit in str(number))
        assert tokenizer.decode(tokenizer.encode(word)) == word
        assert len(tokenizer._cache) <= 10
    tokenizer.encode("x" * 1000)
    assert max(map(len, tokenizer._cache)) <= tokenizer.CACHE_PIECE_LENGTH


# --------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize("text", ["ab\ud83d", "ab\udc00c"])
def test_a_lone_surrogate_is_refused_with_its_position(tokenizer, text):
    for options in ({}, {"return_offsets_mapping": True}):
        with pytest.raises(ValueError, match="surrogate, U\\+D[8C].., at position 2"):
            tokenizer(text, **options)
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer(["fine", text])


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["a", 3], [["a"]], {"a": 1}])
def test_what_is_not_text_is_refused(tokenizer, text):
    with pytest.raises(TypeError, match="text must be"):
        tokenizer(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "longst"}, "padding must be one of"),
        ({"truncation": "only_second"}, "truncation must be one of"),
        ({"padding": True, "padding_side": "top"}, "padding_side must be one of"),
        ({"return_tensors": "tf"}, "return_tensors must be one of"),
        ({"max_length": -1}, "max_length must be an integer in"),
        ({"return_tensors": "pt"}, "rows of 1 to 3 tokens make no tensor: use padding=True"),
    ],
)
def test_impossible_options_are_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(["a", "a b c"], **options)


def test_pairs_and_unknown_options_are_refused(tokenizer):
    for call in (tokenizer, tokenizer.encode):
        with pytest.raises(TypeError, match="text_pair='b': Qwen2 has no pairs of texts"):
            call("a", "b")
        with pytest.raises(TypeError, match="paddin"):
            call("a", paddin=True)
    assert tokenizer.encode("a", None) == tokenizer.encode("a")


@pytest.mark.parametrize("name", ["padding_side", "truncation_side"])
def test_a_side_is_checked_when_it_is_set(mini, name):
    tokenizer = mini(Qwen2Tokenizer)
    setattr(tokenizer, name, "left")
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        setattr(tokenizer, name, "lft")
    assert getattr(tokenizer, name) == "left"


def test_padding_needs_a_token_and_a_length(mini):
    tokenizer = mini(Qwen2TokenizerFast)
    with pytest.raises(ValueError, match="needs max_length"):
        tokenizer("a", padding="max_length")
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        tokenizer(["a", "a b"], padding=True)


def test_a_max_length_without_effect_warns(tokenizer):
    with pytest.warns(UserWarning, match="max_length=3 has no effect"):
        tokenizer(["a", "b"], padding=True, max_length=3)


# ----------------------------------------------------------------------------- batches


def test_a_result_is_a_mapping_with_attributes(tokenizer):
    result = tokenizer(["Hello world", "Hi"], padding=True, return_tensors="pt")
    assert result.input_ids is result["input_ids"]
    assert result.input_ids.shape == (2, 2) and result.input_ids.dtype == torch.int64
    assert list(result) == list(result.keys()) == ["input_ids", "attention_mask"]
    assert dict(**result)["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert result.to("meta") is result and result.input_ids.device.type == "meta"
    with pytest.raises(AttributeError, match="no 'offset_mapping' here, only input_ids"):
        _ = result.offset_mapping
    assert copy.deepcopy(result).keys() == result.keys()
    assert pickle.loads(pickle.dumps(tokenizer("Hi"))) == tokenizer("Hi")


def test_empty_input(tokenizer):
    assert tokenizer("") == {"input_ids": [], "attention_mask": []}
    assert tokenizer([]) == {"input_ids": [], "attention_mask": []}
    assert tokenizer(["", ""]).input_ids == [[], []]
    assert tokenizer("", return_tensors="pt").input_ids.shape == (1, 0)
    assert tokenizer("", return_tensors="pt").input_ids.dtype == torch.int64
    assert tokenizer(["", "a"], padding=True).attention_mask == [[0], [1]]
    assert tokenizer("", return_offsets_mapping=True).offset_mapping == []
    assert tokenizer.decode([]) == "" and tokenizer.tokenize("") == []


def test_one_text_and_a_batch_of_one(tokenizer):
    assert tokenizer(["Hi"]).input_ids == [tokenizer("Hi").input_ids] == [tokenizer.encode("Hi")]
    assert tokenizer.encode("Hi", return_tensors="pt").tolist() == [tokenizer.encode("Hi")]


# ----------------------------------------------------------------------------- offsets


@common
@given(any_text)
def test_offsets_point_at_the_text_that_a_token_came_from(slow, fast, text):
    result = slow(text, return_offsets_mapping=True)
    assert result == fast(text, return_offsets_mapping=True)
    assert result.input_ids == slow.encode(text)
    end = 0
    for start, stop in result.offset_mapping:
        assert start <= end and start < stop and stop >= end  # in order, no gap, nothing missed
        end = stop
    assert end == len(text)
    for token_id, (start, stop) in zip(result.input_ids, result.offset_mapping, strict=True):
        part = unicodedata.normalize("NFC", text[start:stop])
        assert fast.decode([token_id]).strip("\ufffd") in part


def test_an_added_token_that_nfc_would_shorten_spans_all_its_characters(mini):
    """It is matched as it stands, so it covers the three characters that stand there."""
    tokenizer = mini(Qwen2TokenizerFast)
    tokenizer.add_tokens([AddedToken("e\u0301<")])
    result = tokenizer("ae\u0301<b", return_offsets_mapping=True)
    assert result.offset_mapping == [(0, 1), (1, 4), (4, 5)]


def test_offsets_where_nfc_rewrites(tokenizer):
    text = "cafe\u0301 x"
    result = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.convert_ids_to_tokens(result.input_ids) == ["ca", "fÃ©", "Ġx"]
    assert result.offset_mapping == [(0, 2), (2, 5), (5, 7)]


@settings(common, max_examples=300)
@given(any_text)
def test_clusters_normalise_one_by_one(text):
    parts = [unicodedata.normalize("NFC", part) for part in CLUSTER.findall(text)]
    assert "".join(parts) == unicodedata.normalize("NFC", text)


def test_every_character_after_every_kind_normalises_in_its_cluster():
    for code in [*range(0xD800), *range(0xE000, 0x30000)]:
        text = f"e{chr(code)}\u1100{chr(code)}\u0301"
        parts = [unicodedata.normalize("NFC", part) for part in CLUSTER.findall(text)]
        assert "".join(parts) == unicodedata.normalize("NFC", text), hex(code)


# ----------------------------------------------------------------------------- added tokens


@pytest.mark.parametrize("cls", BOTH)
def test_adding_tokens(mini, cls):
    tokenizer = mini(cls)
    size = len(tokenizer)
    assert tokenizer.add_tokens(["<tool>", "<tool>x", "<tool>"]) == 2
    assert tokenizer.add_special_tokens({"eos_token": "<|end|>"}) == 1
    assert len(tokenizer) == size + 3 and tokenizer.vocab_size == size - 1
    assert tokenizer.eos_token_id == size + 2
    ids = tokenizer.encode("<tool>x<tool><|end|>")
    assert ids == [size + 1, size, size + 2]  # the longest match wins
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool>x<tool>"
    assert tokenizer.get_vocab()["<tool>"] == size
    assert tokenizer.convert_ids_to_tokens([size, size + 2]) == ["<tool>", "<|end|>"]
    assert tokenizer.encode("<|end|>", split_special_tokens=True) != [size + 2]
    assert tokenizer.encode("<tool>", split_special_tokens=True) == [size]
    assert tokenizer.add_tokens("<tool>") == 0


@pytest.mark.parametrize("cls", BOTH)
def test_special_tokens_are_matched_before_and_others_after_normalisation(mini, cls):
    tokenizer = mini(cls)
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    tokenizer.add_tokens([decomposed])
    token_id = len(tokenizer) - 1
    assert tokenizer.encode(composed) == tokenizer.encode(decomposed) == [token_id]
    tokenizer = mini(cls)
    tokenizer.add_special_tokens({"additional_special_tokens": [composed]})
    assert tokenizer.encode(composed) == [token_id] != tokenizer.encode(decomposed)
    assert tokenizer.decode([token_id]) == composed
    offsets = tokenizer("x" + composed, return_offsets_mapping=True).offset_mapping
    assert offsets == [(0, 1), (1, 5)]


def test_parts_of_special_tokens(tokenizer):
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id == 151645
    assert tokenizer.pad_token_id == 151643 and tokenizer.bos_token is None
    assert tokenizer.unk_token is None and tokenizer.unk_token_id is None
    assert tokenizer.all_special_tokens == ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]
    assert tokenizer.all_special_ids == [151645, 151643, 151644]
    assert tokenizer.model_max_length == 32768 and len(tokenizer) == 151646


def test_setting_parts(mini):
    tokenizer = mini(Qwen2Tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    assert tokenizer.eos_token_id == 268
    tokenizer.pad_token_id = 5
    assert tokenizer.pad_token == "&"
    with pytest.raises(ValueError, match="add_special_tokens"):
        tokenizer.eos_token = "<nothing>"
    with pytest.raises(ValueError, match="no token has the id 999"):
        tokenizer.eos_token_id = 999
    with pytest.raises(ValueError, match="must be one of"):
        tokenizer.add_special_tokens({"end_token": "<x>"})


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({3: "<x>"}, "cannot be added as id 3"),
        ([""], "cannot be empty"),
        ({300: "er"}, "has id 260"),
    ],
)
def test_impossible_added_tokens(mini, added, message):
    parts = mini(Qwen2Tokenizer)
    with pytest.raises(ValueError, match=message):
        Qwen2Tokenizer(parts.vocab, parts.merges, added_tokens=added)


def test_impossible_vocabularies():
    bytes_only = {bytes([byte]): byte for byte in range(256)}
    with pytest.raises(ValueError, match="lacks the single byte b'~'"):
        Qwen2Tokenizer({token: i for token, i in bytes_only.items() if token != b"~"})
    with pytest.raises(ValueError, match="lacks what a merge makes, b'ab'"):
        Qwen2Tokenizer(bytes_only, [(b"a", b"b")])
    with pytest.raises(ValueError, match="same id"):
        Qwen2Tokenizer(bytes_only | {b"ab": 3})


# ------------------------------------------------------------------------ ids and tokens


def test_converting(tokenizer):
    tokens = tokenizer.tokenize(" Hello wörld\n<|im_end|>")
    assert tokens == ["ĠHello", "Ġw", "Ã¶r", "ld", "Ċ", "<|im_end|>"]
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert ids == tokenizer.encode(" Hello wörld\n<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.convert_ids_to_tokens(torch.tensor(ids)) == tokens
    assert tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True) == tokens[:-1]
    assert tokenizer.convert_tokens_to_string(tokens) == " Hello wörld\n<|im_end|>"
    assert tokenizer.convert_tokens_to_ids("ĠHello") == ids[0]
    assert tokenizer.convert_ids_to_tokens(ids[0]) == "ĠHello"
    assert tokenizer.convert_tokens_to_ids("no such token") is None
    assert tokenizer.convert_ids_to_tokens(151700) is None
    assert len(tokenizer.get_vocab()) == len(tokenizer)


def test_decoding_takes_lists_tensors_and_batches(tokenizer):
    ids = tokenizer.encode("Hello world")
    assert tokenizer.decode(torch.tensor(ids)) == tokenizer.decode(tuple(ids)) == "Hello world"
    assert tokenizer.decode(ids[0]) == tokenizer.decode(torch.tensor(ids[0])) == "Hello"
    assert tokenizer.decode([torch.tensor(i) for i in ids]) == "Hello world"
    assert tokenizer.decode([ids, ids]) == tokenizer.batch_decode(torch.tensor([ids, ids]))
    assert tokenizer.batch_decode([torch.tensor(ids), ids]) == ["Hello world"] * 2
    assert tokenizer.decode([*ids, 151935]) == "Hello world"  # a spare row of the model
    with pytest.raises(ValueError, match="-100"):
        tokenizer.decode([-100])


@pytest.mark.parametrize(
    "what",
    ["x", b"x", ["Hello"], [["Hello"]], None, 3.0, [3.0], [1, 3.0], [1, "a"], [None], [1, [2]],
     torch.tensor(1.0), torch.tensor([[1.0, 2.0]]), [torch.tensor(1.0)]],
    ids=str,
)  # fmt: skip
def test_only_ids_are_decoded(tokenizer, what):
    for decode in (tokenizer.decode, tokenizer.batch_decode):
        with pytest.raises(TypeError, match="decode takes ids .* use convert_tokens_to_ids first"):
            decode(what)


# ------------------------------------------------------------------------------- files


def git_sha1(path):
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture(scope="module")
def saved(fast, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    fast.save_pretrained(folder)
    return folder


def test_saved_files_are_the_released_ones_byte_for_byte(saved, goldens):
    published = {f["file"]: f for f in goldens("released_files")["file_hashes"]["tokenizer_files"]}
    for name, file in (
        ("vocab.json",) * 2,
        ("merges.txt",) * 2,
        ("tokenizer.json", "Qwen2 tokenizer.json"),
    ):
        assert git_sha1(saved / name) == published[file]["git_sha1"], name


def test_saved_config_says_what_the_released_one_says(saved, goldens):
    files = goldens("released_files")["file_hashes"]["rebuilt_byte_exact_here"]
    name = "Qwen2-0.5B-Instruct/tokenizer_config.json"
    released = json.loads(next(f["text"] for f in files if f["file"] == name))
    ours = json.loads((saved / "tokenizer_config.json").read_text())
    template = (saved / "chat_template.jinja").read_text()  # as transformers lays it out
    ours_with = {**ours, "chat_template": template}
    assert {key: ours_with[key] for key in released} == released
    defaults = {"padding_side", "truncation_side", "add_bos_token", "add_eos_token"}
    assert set(ours) - set(released) == defaults and set(released) - set(ours) == {"chat_template"}


def test_saving_leaves_nothing_else_behind(saved):
    names = {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"}
    names.add("chat_template.jinja")
    assert {path.name for path in saved.iterdir()} == names


LAYOUTS = {
    "tokenizer.json alone": (Qwen2TokenizerFast, ["tokenizer.json"]),
    "vocab.json and merges.txt": (Qwen2Tokenizer, ["vocab.json", "merges.txt"]),
    "with a config": (
        Qwen2TokenizerFast,
        ["vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loading_each_layout(saved, slow, tmp_path, layout):
    cls, names = LAYOUTS[layout]
    for name in names:
        shutil.copy(saved / name, tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert loaded.vocab == slow.vocab
    assert loaded.get_added_vocab() == slow.get_added_vocab()
    for text in TEXTS:
        assert loaded.encode(text) == slow.encode(text)
    with_config = "tokenizer_config.json" in names
    assert loaded.eos_token == ("<|im_end|>" if with_config else "<|endoftext|>")
    assert loaded.pad_token == "<|endoftext|>"
    assert loaded.chat_template == (slow.chat_template if with_config else None)


@pytest.fixture
def folder(mini, tmp_path):
    """A small tokenizer, saved, to be spoilt."""
    tokenizer = mini(Qwen2Tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("cls", BOTH)
def test_a_tokenizer_survives_saving(mini, tmp_path, cls):
    before = mini(cls)
    before.add_tokens(["<tool>"])
    before.add_special_tokens({"eos_token": "<|end|>", "additional_special_tokens": ["<a>"]})
    before.padding_side, before.model_max_length, before.chat_template = "left", 77, "{{ 1 }}"
    before.config["note"] = "kept"
    before.save_pretrained(tmp_path)
    for other in BOTH:
        after = other.from_pretrained(tmp_path)
        text = "lower newer <tool><|end|><a> 生"
        assert after.encode(text) == before.encode(text)
        assert after.added_tokens_decoder == before.added_tokens_decoder
        assert after.special_tokens_map == before.special_tokens_map
        assert after.all_special_tokens == before.all_special_tokens
        assert (after.padding_side, after.model_max_length) == ("left", 77)
        assert after.chat_template == "{{ 1 }}" and after.config["note"] == "kept"


@pytest.mark.parametrize("cls", BOTH)
def test_a_tokenizer_survives_pickling(mini, slow, fast, cls):
    for tokenizer in (mini(cls), slow if cls is Qwen2Tokenizer else fast):
        again = pickle.loads(pickle.dumps(tokenizer))
        assert type(again) is cls
        for text in TEXTS:
            assert again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("cls", BOTH)
def test_training_gives_a_tokenizer(tmp_path, cls):
    texts = ["the cat sat on the mat, the cat sat"] * 2 + ["le café était là, le café"] * 2
    vocab, merges = bpe.train(texts, 280, ["<|endoftext|>", "<|im_end|>"])
    tokenizer = cls(vocab, merges, added_tokens=["<|endoftext|>", "<|im_end|>"])
    assert len(tokenizer) == 280
    assert tokenizer.encode("the cat<|im_end|>")[-1] == 279
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]
    assert len(tokenizer.encode(texts[0])) < len(texts[0]) / 1.5
    assert cls(vocab, added_tokens=["<|endoftext|>"]).encode(texts[0]) == tokenizer.encode(texts[0])
    tokenizer.save_pretrained(tmp_path)
    assert cls.from_pretrained(tmp_path).encode(texts[0]) == tokenizer.encode(texts[0])


def test_a_prefix_for_file_names(mini, tmp_path):
    paths = mini(Qwen2Tokenizer).save_vocabulary(tmp_path / "new", filename_prefix="my")
    assert [p.rsplit("/", 1)[1] for p in paths] == ["my-vocab.json", "my-merges.txt"]


@pytest.mark.parametrize("first", ["", "#version: 0.2\n"])
def test_only_a_first_line_with_a_version_is_no_merge(folder, first):
    (folder / "tokenizer.json").unlink()
    vocab = json.loads((folder / "vocab.json").read_text())
    vocab |= {"##": 300, "####": 301}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "tokenizer_config.json").unlink()
    merges = (folder / "merges.txt").read_text()
    (folder / "merges.txt").write_text(first + "# #\n## ##\n" + merges)
    assert Qwen2Tokenizer.from_pretrained(folder).encode("####") == [301]


@pytest.mark.parametrize("as_pairs", [True, False])
def test_merges_as_pairs_and_as_text(folder, as_pairs):
    data = json.loads((folder / "tokenizer.json").read_text())
    if as_pairs:
        data["model"]["merges"] = [merge.split(" ") for merge in data["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert Qwen2TokenizerFast.from_pretrained(folder).encode(" lower") == [259, 260]


def test_the_template_in_a_file_of_its_own(folder):
    (folder / "chat_template.jinja").write_text("{{ 'newer' }}")
    assert Qwen2Tokenizer.from_pretrained(folder).chat_template == "{{ 'newer' }}"


def test_older_layouts(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 9}')
    special = {
        "eos_token": {"content": "<|im_end|>"},
        "additional_special_tokens": ["<|im_start|>"],
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    added = {"<|endoftext|>": 268, "<|im_start|>": 269, "<|im_end|>": 270, "<tool>": 271}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    loaded = Qwen2Tokenizer.from_pretrained(folder)
    assert loaded.get_added_vocab() == added and loaded.eos_token == "<|im_end|>"
    assert loaded.decode([268, 271], skip_special_tokens=True) == "<tool>"
    assert loaded.model_max_length == 9


def test_a_special_token_that_only_the_config_names_is_added(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|new|>"}))
    assert Qwen2Tokenizer.from_pretrained(folder).eos_token_id == 269


def test_overrides(folder):
    loaded = Qwen2TokenizerFast.from_pretrained(folder, padding_side="left", chat_template=None)
    assert loaded.padding_side == "left" and loaded.chat_template is None


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("pading_side", "did you mean padding_side"),
        ("local_file_only", "did you mean local_files_only"),
        ("eos_tokn", "did you mean eos_token"),
        ("use_fast", "Qwen2TokenizerFast is the compiled one, Qwen2Tokenizer the one from scratch"),
        ("trust_remote_code", "it is never needed, as no remote code is run; leave it out"),
        ("wxyz", "the options are added_tokens, additional_special_tokens"),
    ],
)
@pytest.mark.parametrize("cls", BOTH)
def test_unknown_options_of_loading(folder, cls, option, hint):
    with pytest.raises(TypeError, match=f"{cls.__name__}.* has no option '{option}': {hint}"):
        cls.from_pretrained(folder, **{option: True})


def change(name, **fields):
    """Change tokenizer.json, fields given as model__type=…"""

    def spoil(folder):
        data = json.loads((folder / name).read_text())
        for path, value in fields.items():
            *outer, last = path.split("__")
            inside = data
            for key in outer:
                inside = inside[int(key) if key.isdigit() else key]
            inside[last] = value
        (folder / name).write_text(json.dumps(data))

    return spoil


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name, text, *others):
    def spoil(folder):
        for other in others:
            (folder / other).unlink()
        (folder / name).write_bytes(text)

    return spoil


WHOLE, CONFIG = "tokenizer.json", "tokenizer_config.json"
STEP = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
SPOILT = {
    "nothing there": (remove(WHOLE, "vocab.json", "merges.txt"), FileNotFoundError, "no tokenizer"),
    "no merges": (remove(WHOLE, "merges.txt"), FileNotFoundError, "merges.txt"),
    "no vocabulary": (remove(WHOLE, "vocab.json"), FileNotFoundError, "vocab.json"),
    "cut short": (write(WHOLE, b'{"model": {'), ValueError, "tokenizer.json is not JSON"),
    "not UTF-8": (write(WHOLE, b'{"\xff": 1}'), ValueError, "tokenizer.json is not UTF-8"),
    "a list": (write(WHOLE, b"[]"), ValueError, "holds a list, not a JSON object"),
    "empty": (write(WHOLE, b"{}"), ValueError, "model.vocab or model.merges is missing"),
    "config cut short": (write(CONFIG, b"{"), ValueError, "tokenizer_config.json is not JSON"),
    "another model": (
        change(WHOLE, model__type="WordPiece"),
        ValueError,
        "model.type is 'WordPiece'",
    ),
    "byte fallback": (change(WHOLE, model__byte_fallback=True), ValueError, "byte_fallback"),
    "no NFC": (change(WHOLE, normalizer=None), ValueError, "normalizer is None"),
    "NFKC": (change(WHOLE, normalizer={"type": "NFKC"}), ValueError, "normalizer is .*NFKC"),
    "another pattern": (change(WHOLE, pre_tokenizer=STEP), ValueError, "pre_tokenizer is"),
    "adds tokens": (
        change(WHOLE, post_processor={"type": "TemplateProcessing"}),
        ValueError,
        "post_processor is not one we know: .*TemplateProcessing",
    ),
    "strips": (change(WHOLE, added_tokens__0__lstrip=True), ValueError, "has lstrip"),
    "id twice": (change(WHOLE, model__vocab__er=5), ValueError, "same id"),
    "id no number": (change(WHOLE, model__vocab__er="5"), ValueError, "map tokens to ids"),
    "foreign character": (change(WHOLE, model__vocab__生=900), ValueError, "stands for no byte"),
    "merge of three": (
        change(WHOLE, model__merges=["a b c"]),
        ValueError,
        "merge 1 is not two tokens",
    ),
    "merge of unknown": (change(WHOLE, model__merges=["生 a"]), ValueError, "merge 1 is not two"),
    "impossible merge": (change(WHOLE, model__merges=["e r", "e r"]), ValueError, "never happen"),
    "makes no token": (
        change(WHOLE, model__merges=["a b"]),
        ValueError,
        "lacks what a merge makes",
    ),
    "prefix space": (change(CONFIG, add_prefix_space=True), ValueError, "add_prefix_space is True"),
    "extra without content": (
        change(CONFIG, additional_special_tokens=[{"content": None}]),
        ValueError,
        "tokenizer_config.json: {'content': None} is not a token",
    ),
    "eos a number": (change(CONFIG, eos_token=5), ValueError, "config.json: eos_token must be"),
    "bad side": (change(CONFIG, padding_side="top"), ValueError, "padding_side must be one of"),
}


DEEP = json.loads("[" * 100 + "]" * 100)
LIES = [
    (CONFIG, "added_tokens_decoder", [1]),
    (CONFIG, "chat_template", 3),
    (CONFIG, "chat_template", [{}]),
    (CONFIG, "model_max_length", "long"),
    (CONFIG, "note", DEEP),
    (WHOLE, "added_tokens", 3),
    (WHOLE, "added_tokens__0__id", "x"),
    (WHOLE, "model", []),
    (WHOLE, "model__merges", [3]),
    (WHOLE, "model__vocab", ["a"]),
    (WHOLE, "normalizer", DEEP),
    (WHOLE, "post_processor", {"type": "Sequence", "processors": 3}),
]
for name, field, value in LIES:
    word = "merge" if "merges" in field else field.split("__")[-1].replace("id", "added token")
    SPOILT[f"{field} {value!r:.10}"] = (
        change(name, **{field: value}),
        ValueError,
        f"{name}.*{word}",
    )


@pytest.mark.parametrize("name", SPOILT)
def test_a_malformed_folder_gives_one_clear_error(folder, name):
    spoil, error, message = SPOILT[name]
    spoil(folder)
    with pytest.raises(error, match=message):
        Qwen2Tokenizer.from_pretrained(folder)


def test_a_released_vocabulary_with_one_flipped_bit_is_refused(tmp_path):
    from qwen2_edu.hub import resolve

    data = bytearray((resolve("qwen2", "tokenizer") / "qwen.tiktoken").read_bytes())
    data[100] ^= 1
    (tmp_path / "qwen.tiktoken").write_bytes(data)
    with pytest.raises(ValueError, match="not the released vocabulary: its sha256 is"):
        tokenizer_files.read_released(tmp_path)


def test_an_interrupted_save_leaves_the_old_files(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = Qwen2Tokenizer(*bpe.train(["the cat sat, the cat sat"] * 2, 260), added_tokens=["<x>"])
    calls = []

    def full(*args):
        calls.append(args)
        raise OSError("disk full")

    # Bytes reach the disk, the folder of the new files takes the old one's place, or, where that
    # cannot be, files move one by one: each fails in turn.
    for name, more in (("fsync", ()), ("link", ("replace",))):
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
            for call in (name, *more):
                patch.setattr(os, call, full)
            other.save_pretrained(folder)
        assert calls and {path.name: path.read_bytes() for path in folder.iterdir()} == before
    other.save_pretrained(folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys() - {"chat_template.jinja"}  # the other has no template
    assert all(after[name] != before[name] for name in after)


def test_saving_to_a_file_is_refused(folder, mini):
    with pytest.raises(FileExistsError, match="cannot save into .*choose a folder"):
        mini(Qwen2Tokenizer).save_pretrained(folder / "vocab.json")
