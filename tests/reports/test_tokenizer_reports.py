"""What users of tokenizers met; right is what transformers and tokenizers answer."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Regex, normalizers, pre_tokenizers

from qwen2_edu import Qwen2Tokenizer, Qwen2TokenizerFast, bpe
from qwen2_edu.text.runs import AddedToken, nfc, pieces

BOTH = pytest.mark.parametrize("cls", [Qwen2Tokenizer, Qwen2TokenizerFast])
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make(cls, **options):
    vocab = {bytes([byte]): i for i, byte in enumerate(bpe.BYTE_TO_CHAR)}
    added = [*(AddedToken(t, special=True) for t in SPECIAL), AddedToken("<tool_call>")]
    return cls(vocab, [], added_tokens=added, pad_token="<|endoftext|>", **options)


@pytest.fixture
def folder(tmp_path):
    make(Qwen2Tokenizer, chat_template="A").save_pretrained(tmp_path)
    return tmp_path


def pair(cls, folder, **options):
    theirs = transformers.AutoTokenizer.from_pretrained(folder, **options)
    return cls.from_pretrained(folder, **options), theirs


def plain(result):
    return {name: np.asarray(value).tolist() for name, value in result.items()}


CALLS = {
    "words": lambda t: t([["a b", "c<|im_end|>"], ["d"]], is_split_into_words=True, padding=True),
    "offsets in words": lambda t: t(
        ["a", "bc"], is_split_into_words=True, return_offsets_mapping=True
    ),
    "special tokens mask": lambda t: t(
        ["a<|im_end|>", "b"], padding=True, return_special_tokens_mask=True
    ),
    "arrays": lambda t: t(["abc", "d"], padding=True, return_tensors="np"),
    "rows": lambda t: t.pad(
        [{"input_ids": [1, 2, 3], "labels": 1}, {"input_ids": [4], "labels": 0}]
    ),
    "a row": lambda t: t.pad({"input_ids": [1, 2]}, padding="max_length", max_length=5),
    "columns": lambda t: t.pad({"input_ids": [[1, 2, 3], [4]]}, pad_to_multiple_of=4),
    "tensors": lambda t: t.pad([{"input_ids": [1, 2]}, {"input_ids": [3]}], return_tensors="pt"),
    "collator": lambda t: transformers.DataCollatorWithPadding(t)([t("abc"), t("d")]),
    "for a language model": lambda t: transformers.DataCollatorForLanguageModeling(t, mlm=False)(
        [t("abc"), t("d")]
    ),
}


@BOTH
@pytest.mark.parametrize("name", CALLS)
def test_calls_people_make(cls, folder, name):
    ours, theirs = pair(cls, folder)
    mine, reference = CALLS[name](ours), CALLS[name](theirs)
    assert plain(mine) == plain(reference)
    if name == "words":
        assert [mine.word_ids(i) for i in (0, 1)] == [reference.word_ids(i) for i in (0, 1)]


@BOTH
@pytest.mark.parametrize(
    "decode",
    [
        lambda t: t.decode([torch.tensor(70), np.int64(71)]),
        lambda t: t.decode(np.array([[70, 71], [72, 73]])),
        lambda t: t.decode(t("abc")),
        lambda t: t.decode(t("a , b").input_ids, clean_up_tokenization_spaces=True),
        lambda t: t.convert_ids_to_tokens([np.int64(70)]),
        lambda t: t.convert_ids_to_tokens(torch.tensor([70, 71])),
    ],
)
def test_numbers_of_any_kind_are_ids(cls, folder, decode):
    ours, theirs = pair(cls, folder)
    assert decode(ours) == decode(theirs)
    with pytest.raises(TypeError, match="decode takes ids"):
        ours.decode([True])


@BOTH
@pytest.mark.parametrize("kind", ["alone", "after ByteLevel", "at the end"])
def test_tokens_that_a_post_processor_adds(cls, folder, tmp_path, kind):
    data = json.loads((folder / "tokenizer.json").read_text())
    one, text = (
        {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    single = [text, one] if kind == "at the end" else [one, text]
    step = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
    }
    step["special_tokens"] = {
        "<|im_start|>": {"id": "<|im_start|>", "ids": [257], "tokens": ["<|im_start|>"]}
    }
    if kind == "after ByteLevel":
        step = {"type": "Sequence", "processors": [data["post_processor"], step]}
    (folder / "tokenizer.json").write_text(json.dumps(data | {"post_processor": step}))
    ours, theirs = pair(cls, folder)
    ours.save_pretrained(tmp_path / "again")
    for tokenizer in (ours, *pair(cls, tmp_path / "again")):
        for options in (
            {}, {"add_special_tokens": False}, {"truncation": True, "max_length": 2},
            {"padding": "max_length", "max_length": 9}, {"return_special_tokens_mask": True},
            {"return_offsets_mapping": True},
        ):  # fmt: skip
            assert plain(tokenizer("abc", **options)) == plain(theirs("abc", **options)), options
    message = [{"role": "user", "content": "x"}]
    options = {"chat_template": "{{ '<|im_start|>a' }}", "return_dict": False}
    expected = theirs.apply_chat_template(message, **options)
    assert ours.apply_chat_template(message, **options) == expected


@BOTH
def test_special_is_one_thing_and_stays(cls, folder):
    ours, theirs = pair(cls, folder)
    for tokenizer in (ours, theirs):
        tokenizer.add_tokens(["<|im_end|>"])  # it is special already
        tokenizer.add_special_tokens({"extra_special_tokens": ["<tool_call>"]})
    ids = theirs("a<|im_end|>b<tool_call>c").input_ids
    assert ours("a<|im_end|>b<tool_call>c").input_ids == ids
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(
        ids, skip_special_tokens=True
    )
    assert ours.convert_ids_to_tokens(ids, skip_special_tokens=True) == ["a", "b", "c"]


@BOTH
def test_an_added_letter_survives_saving(cls, folder, tmp_path):
    ours, theirs = pair(cls, folder)
    ours.add_tokens(["é"])
    theirs.add_tokens(["é"])
    ours.save_pretrained(tmp_path / "again")
    for tokenizer in (ours, *pair(cls, tmp_path / "again")):
        assert tokenizer("aéb").input_ids == theirs("aéb").input_ids
        expected = theirs.decode(theirs("aéb").input_ids)
        assert tokenizer.decode(tokenizer("aéb").input_ids) == expected


@BOTH
def test_a_pad_token_at_load(cls, folder):
    ours, theirs = pair(cls, folder, pad_token="<pad>")
    assert (ours.pad_token, ours.pad_token_id) == (theirs.pad_token, theirs.pad_token_id)
    assert ours("a<pad>").input_ids == theirs("a<pad>").input_ids


@BOTH
@pytest.mark.parametrize("length", [1e30, 1000000000000000019884624838656, None, 4])
def test_a_length_in_any_spelling(cls, folder, length):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    ours, theirs = pair(cls, folder)
    for options in ({"truncation": True}, {"truncation": True, "padding": True}, {}):
        got, expected = ours(["abcdef", "g"], **options), theirs(["abcdef", "g"], **options)
        assert plain(
            got if options.get("padding") else {"n": [len(r) for r in got.input_ids]}
        ) == plain(
            expected if options.get("padding") else {"n": [len(r) for r in expected["input_ids"]]}
        )


def test_the_highest_id_bounds_ids():
    tokenizer = Qwen2Tokenizer(
        {bytes([b]): b for b in range(256)}, [], added_tokens={310: "<|end|>"}
    )
    assert len(tokenizer) == 257 and tokenizer.vocab_limit == 311


@BOTH
def test_a_folder_saved_twice_reads_as_the_second(cls, folder):
    tokenizer = cls.from_pretrained(folder)
    for template in ({"default": "A", "tool_use": "B {{ tools }}"}, "C", {"x": "D"}, None):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        ours, theirs = pair(cls, folder)
        assert ours.chat_template == theirs.chat_template == template
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "theirs")
        if not isinstance(template, (str, type(None))):
            assert cls.from_pretrained(folder / "theirs").chat_template == template
        for old in sorted((folder / "theirs").rglob("*.jinja")):
            old.unlink()


# ----------------------------------------------------------------------------------- Unicode


def test_every_character_is_cut_as_transformers_cuts_it():
    """All planes, in what shows a character's class: beside a letter, a digit, a sign, a blank."""
    split = pre_tokenizers.Split(Regex(bpe.PATTERN), "isolated")
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for i in range(0, len(codes), 1_000):
        text = "".join(f"a{c}b1{c}!{c} {c}" for c in map(chr, codes[i : i + 1_000]))
        assert pieces(text) == [piece for piece, _ in split.pre_tokenize_str(text)]


def test_marks_in_disorder_take_linear_time():
    for unit in ("\u0301\u0327", "\u0f73\u0f72\u0301\u0327", "\u0344\u0316"):
        text = "e" + unit * (80_000 // len(unit) * 2)
        start = time.process_time()
        found = nfc(text)
        assert time.process_time() - start < 0.3
        assert found == normalizers.NFC().normalize_str(text)
    assert "".join(pieces("a\U000323b0b")) == "a\U000323b0b"
