"""Both tokenizers against transformers': the same options, the same answers, the same files."""

from __future__ import annotations

import unicodedata

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2_edu.text.templates import QWEN2_5_TEMPLATE, QWEN2_TEMPLATE
from qwen2_edu.tokenizer import Qwen2Tokenizer, Qwen2TokenizerFast

common = settings(deadline=None, max_examples=150, derandomize=True)
# Characters whose class and combining behaviour no engine's Unicode version disputes.
character = st.characters(exclude_categories=("Cs", "Cn", "Mn", "Mc"))
marked = st.text(
    st.sampled_from("eaoq \u0301\u0323\u0307가\u1100\u1161\u11a8\u212b\u0958생"), max_size=9
)
special = st.sampled_from(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_", "end|>"])
any_text = st.lists(st.text(character, max_size=30) | special | marked, max_size=4).map("".join)
BATCH = ["Hello world", "", "a somewhat longer text, 生活 <|im_end|>!", "naïve cafe\u0301"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The released tokenizer of Qwen2, as we save it."""
    path = tmp_path_factory.mktemp("released")
    Qwen2TokenizerFast.from_pretrained("qwen2").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=[Qwen2Tokenizer, Qwen2TokenizerFast])
def ours(request):
    return request.param.from_pretrained("qwen2")


def test_what_we_save_opens_in_transformers(theirs, ours):
    assert type(theirs).__name__ == "Qwen2Tokenizer"
    assert theirs.get_vocab() == ours.get_vocab() and len(theirs) == len(ours)
    assert theirs.special_tokens_map == ours.special_tokens_map
    assert theirs.all_special_tokens == ours.all_special_tokens
    assert theirs.chat_template == ours.chat_template
    assert theirs.model_max_length == ours.model_max_length
    assert theirs.padding_side == ours.padding_side


def test_what_transformers_saves_opens_here(theirs, tmp_path):
    changed = transformers.AutoTokenizer.from_pretrained(theirs.name_or_path)
    changed.add_tokens(["<tool>"])
    changed.add_special_tokens({"eos_token": "<|end|>"})
    changed.save_pretrained(tmp_path)
    ours = Qwen2TokenizerFast.from_pretrained(tmp_path)
    for text in [*BATCH, "<tool>a<|end|>"]:
        assert ours.encode(text) == changed.encode(text)
    assert ours.chat_template == changed.chat_template
    assert ours.special_tokens_map == changed.special_tokens_map
    assert ours.all_special_tokens == changed.all_special_tokens
    ids = ours.encode("a<tool><|end|>")
    assert ours.decode(ids, skip_special_tokens=True) == changed.decode(
        ids, skip_special_tokens=True
    )


@settings(common, max_examples=300)
@given(any_text)
def test_ids_and_offsets(theirs, ours, text):
    mine = ours(text, return_offsets_mapping=True)
    reference = theirs(text, return_offsets_mapping=True)
    assert mine.input_ids == reference.input_ids
    assert mine.attention_mask == reference.attention_mask
    if unicodedata.is_normalized("NFC", text):
        assert mine.offset_mapping == reference.offset_mapping
    else:  # of characters that NFC fuses, theirs leaves out all but the first
        for (a, b), (c, d) in zip(mine.offset_mapping, reference.offset_mapping, strict=True):
            assert a <= c and d <= b


@common
@given(any_text)
def test_split_special_tokens(theirs, ours, text):
    options = {"split_special_tokens": True}
    assert ours(text, **options).input_ids == theirs(text, **options).input_ids


OPTIONS = [
    {},
    {"padding": True},
    {"padding": "longest", "padding_side": "left"},
    {"padding": "max_length", "max_length": 6},
    {"padding": "max_length", "max_length": 6, "truncation": True},
    {"padding": True, "max_length": 3, "truncation": True},
    {"max_length": 3},
    {"max_length": 3, "truncation": False},
    {"max_length": 0, "truncation": True},
    {"truncation": "longest_first", "max_length": 2},
    {"truncation": True},
    {"padding": True, "pad_to_multiple_of": 8},
    {"padding": "max_length", "max_length": 5, "pad_to_multiple_of": 4},
    {"padding": "do_not_pad", "truncation": "do_not_truncate", "max_length": 1},
    {"add_special_tokens": False},
]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padding_and_truncation(theirs, ours, options, side):
    theirs.truncation_side = ours.truncation_side = side
    theirs.padding_side = ours.padding_side = side
    try:
        for text in (BATCH, BATCH[:1], BATCH[2], ""):
            mine = ours(text, return_offsets_mapping=True, **options)
            reference = theirs(text, return_offsets_mapping=True, **options)
            assert mine.input_ids == reference.input_ids
            assert mine.attention_mask == reference.attention_mask
            if text is not BATCH:  # its last text has an accent that NFC fuses
                assert mine.offset_mapping == reference.offset_mapping
    finally:
        theirs.truncation_side = ours.truncation_side = "right"
        theirs.padding_side = ours.padding_side = "right"


@pytest.mark.parametrize("text", [BATCH, "Hello world"])
def test_tensors(theirs, ours, text):
    options = {"padding": True, "return_tensors": "pt", "return_offsets_mapping": True}
    mine, reference = ours(text, **options), theirs(text, **options)
    assert mine.keys() == reference.keys()
    for name in ("input_ids", "attention_mask"):
        assert (
            torch.equal(mine[name], reference[name]) and mine[name].dtype == reference[name].dtype
        )
    assert mine["offset_mapping"].shape == reference["offset_mapping"].shape


@common
@given(st.lists(st.integers(0, 151700), max_size=12), st.booleans())
def test_decoding(theirs, ours, ids, skip):
    assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
        ids, skip_special_tokens=skip
    )
    tokens = theirs.convert_ids_to_tokens(ids, skip_special_tokens=skip)
    assert ours.convert_ids_to_tokens(ids, skip_special_tokens=skip) == tokens


@common
@given(any_text)
def test_tokens(theirs, ours, text):
    tokens = theirs.tokenize(text)
    assert ours.tokenize(text) == tokens
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)


def test_decoding_batches(theirs, ours):
    ids = ours(BATCH, padding=True, return_tensors="pt").input_ids
    for skip in (False, True):
        expected = theirs.batch_decode(ids, skip_special_tokens=skip)
        assert ours.batch_decode(ids, skip_special_tokens=skip) == expected
        assert ours.decode(ids, skip_special_tokens=skip) == expected
    assert ours.batch_decode([9707, 1879]) == theirs.batch_decode([9707, 1879])


def test_adding_tokens(folder):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for cls in (Qwen2Tokenizer, Qwen2TokenizerFast):
        ours = cls.from_pretrained("qwen2")
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        for tokens in (["<tool>", "cafe\u0301", "<tool>x"], "newword", ["hello"]):
            assert ours.add_tokens(tokens) == theirs.add_tokens(tokens)
        new = {"bos_token": "<s>", "additional_special_tokens": ["<a>", "é!"]}
        assert ours.add_special_tokens(new) == theirs.add_special_tokens(new)
        assert len(ours) == len(theirs)
        assert ours.get_added_vocab() == theirs.get_added_vocab()
        assert ours.all_special_tokens == theirs.all_special_tokens
        for text in (
            "<tool>x<tool>",
            "caf\u00e9s cafe\u0301",
            "e\u0301! é!",
            "say hello newwords<s>",
        ):
            assert ours.encode(text) == theirs.encode(text), text
            assert ours.encode(text, split_special_tokens=True) == theirs.encode(
                text, split_special_tokens=True
            )


# ------------------------------------------------------------------------------ conversations

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What's 2+2? é"},
    {"role": "assistant", "content": "4 "},
]
CALL = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": "<é>"}}}]},
    {"role": "tool", "content": "1"},
    {"role": "tool", "content": "2"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "ü & <b>"}}]


@pytest.mark.parametrize("template", [QWEN2_TEMPLATE, QWEN2_5_TEMPLATE], ids=["qwen2", "qwen2.5"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": True},
        {"continue_final_message": True},
        {"return_dict": False},
        {"return_tensors": "pt"},
        {"truncation": True, "max_length": 7},
        {"padding": "max_length", "max_length": 40},
    ],
    ids=str,
)
def test_chat(theirs, ours, template, options):
    options = {"chat_template": template, **options}
    for conversation in (MESSAGES, [MESSAGES, MESSAGES]):
        text = theirs.apply_chat_template(conversation, tokenize=False, **options)
        assert ours.apply_chat_template(conversation, tokenize=False, **options) == text
        mine = ours.apply_chat_template(conversation, **options)
        reference = theirs.apply_chat_template(conversation, **options)
        if options.get("return_tensors"):
            mine = {name: value.tolist() for name, value in mine.items()}
            reference = {name: value.tolist() for name, value in reference.items()}
        assert mine == (dict(reference) if hasattr(reference, "keys") else reference)


def test_chat_with_tools(theirs, ours):
    options = {"chat_template": QWEN2_5_TEMPLATE, "tools": TOOLS}
    assert ours.apply_chat_template(CALL, tokenize=False, **options) == theirs.apply_chat_template(
        CALL, tokenize=False, **options
    )
    assert ours.apply_chat_template(
        CALL, return_dict=False, **options
    ) == theirs.apply_chat_template(CALL, return_dict=False, **options)


def test_assistant_mask_with_generation_marks(theirs, ours):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    )
    options = {"chat_template": template, "return_assistant_tokens_mask": True}
    mine = ours.apply_chat_template(MESSAGES * 2, **options)
    assert mine == dict(theirs.apply_chat_template(MESSAGES * 2, **options))
    assert 0 < sum(mine["assistant_masks"]) < len(mine["input_ids"])


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n    {{ m.content }}\n  {% endif %}\n"
        "{% endfor %}\n",
        "{{ messages | tojson(indent=2, sort_keys=true) }}",
        "{{ messages | tojson(ensure_ascii=true) }}|{{ eos_token }}|{{ bos_token }}",
        "{%- for m in messages -%} {{ loop.index }}{% continue %}x{%- endfor -%}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}",
    ],
)
def test_templates_run_alike(theirs, ours, template):
    options = {"chat_template": template, "tokenize": False}
    assert ours.apply_chat_template(MESSAGES, **options) == theirs.apply_chat_template(
        MESSAGES, **options
    )
