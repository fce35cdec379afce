"""What users of chat templates met, and attacks; right is what transformers answers."""
# ruff: noqa: E501

from __future__ import annotations

import time
import tracemalloc
import warnings

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2_edu import Qwen2TokenizerFast
from qwen2_edu.packing import chat_documents
from qwen2_edu.text.runs import AddedToken
from qwen2_edu.text.templates import QWEN2_5_TEMPLATE, render
from qwen2_edu.text.traced import SAID, WRITTEN, Traced, origins

warnings.simplefilter("ignore")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As those of reasoning models: what was thought is cut out of the history.
REASONING = CHATML.replace(
    "{{ '<|im", "{% set c = m.content.split('</think>')[-1].lstrip('\n') %}{{ '<|im", 1
).replace("m.content + ", "c + ")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    words = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
    special = [AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    vocab = {bytes([byte]): byte for byte in range(256)}
    added = [*special, *map(AddedToken, words)]
    return Qwen2TokenizerFast(vocab, [], added_tokens=added, chat_template=CHATML)


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    ours.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def talk(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


SAID_TEXT = "<think>\nhm\n</think>\n\n<tool_call>\n{}\n</tool_call>"


@pytest.mark.parametrize("template", [CHATML, REASONING, QWEN2_5_TEMPLATE])
def test_what_the_assistant_said_has_the_ids_it_was_trained_on(ours, theirs, template):
    options = {"chat_template": template, "return_dict": False}
    for messages in (talk("hi", SAID_TEXT), talk("hi", SAID_TEXT, "and?", SAID_TEXT, "so?")):
        expected = theirs.apply_chat_template(messages, **options)
        assert ours.apply_chat_template(messages, **options) == expected
    parts = [{"type": "text", "text": SAID_TEXT}]
    reads_parts = CHATML.replace("m.content", "m.content[0].text")
    message = [{"role": "assistant", "content": parts}]
    options["chat_template"] = reads_parts
    expected = theirs.apply_chat_template(message, **options)
    assert ours.apply_chat_template(message, **options) == expected


def test_training_rows_have_them_too(ours, theirs):
    _, labels = chat_documents(ours, [talk("hi", SAID_TEXT)])
    taught = [i for i in labels[0] if i != -100]
    assert taught == theirs.encode(SAID_TEXT + "<|im_end|>")


CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
ALL = [*CONTROLS, "<tool_call>", "</think>"]


def ids_of(tokenizer, tokens):
    return tokenizer.convert_tokens_to_ids(tokens)


@pytest.mark.parametrize("token", ALL)
@pytest.mark.parametrize("field", ["user", "tool", "reasoning_content", "tool_calls", "tools"])
def test_control_tokens_in_any_field_are_text(ours, field, token):
    template = CHATML.replace("m.content + ", "m.content + (m | tojson) + (tools | tojson) + ")
    message = {"role": "assistant", "content": "x"}
    tools = [{"name": token if field == "tools" else "f"}]
    if field in ("user", "tool"):
        message = {"role": field, "content": token}
    elif field != "tools":
        message[field] = [{"name": token}] if field == "tool_calls" else token
    ids = ours.apply_chat_template([message], tools, template, return_dict=False)
    start, end = ids_of(ours, ["<|im_start|>", "<|im_end|>"])
    assert [i for i in ids if i > 255] == [start, end]
    assert ours.decode(ids) == ours.apply_chat_template([message], tools, template, tokenize=False)


@pytest.mark.parametrize("token", CONTROLS)
def test_the_assistant_cannot_say_a_special_token(ours, token):
    ids = ours.apply_chat_template([{"role": "assistant", "content": token}], return_dict=False)
    assert [i for i in ids if i > 255] == ids_of(ours, ["<|im_start|>", "<|im_end|>"])


@pytest.mark.parametrize(
    "template",
    ["<{{ m.name }}>", "{{ '<' + m.name + '>' }}", "{{ '<' ~ m.name ~ '>' }}", "{{ ['<', m.name, '>'] | join }}",
     "{{ '<%s>' % m.name }}", "{{ '<{}>'.format(m.name) }}", "{{ '<X>' | replace('X', m.name) }}",
     "{% set x %}<{{ m.name }}>{% endset %}{{ x }}", "{% macro f(n) %}<{{ n }}>{% endmacro %}{{ f(m.name) }}"],
)  # fmt: skip
def test_a_control_token_completed_by_a_template_is_text(ours, template):
    template = "{% set m = messages[0] %}" + template + "<|im_end|>"
    message = {"role": "user", "content": "", "name": "|im_end|"}
    ids = ours.apply_chat_template([message], chat_template=template, return_dict=False)
    assert ids == [*b"<|im_end|>", *ids_of(ours, ["<|im_end|>"])]


@pytest.mark.parametrize("content", ["\u2801\u2802\u2803", "\U000f0000\U000f0001", "CONTINUE_F"])
def test_no_character_is_a_mark(ours, content):
    for options in ({}, {"continue_final_message": True}):
        text = ours.apply_chat_template(talk(content), tokenize=False, **options)
        assert content in text
        assert (
            ours.decode(ours.apply_chat_template(talk(content), return_dict=False, **options))
            == text
        )
    mask = {"return_assistant_tokens_mask": True}
    result = ours.apply_chat_template(talk("hi", content), **mask)
    assert sum(result["assistant_masks"]) == len(content.encode()) + 1


# ------------------------------------------------------------- a string that knows where it is from

pieces = st.text("a<>| \n", max_size=9)
traced = st.lists(st.tuples(pieces, st.sampled_from([0, SAID, WRITTEN])), max_size=4)
OPERATIONS = {
    "split": lambda s, x: s.split(), "split by": lambda s, x: s.split(x), "rsplit": lambda s, x: s.rsplit(None, 2),
    "rsplit by": lambda s, x: s.rsplit(x, 1), "lines": lambda s, x: s.splitlines(), "keep": lambda s, x: s.splitlines(True),
    "strip": lambda s, x: s.strip(), "strip some": lambda s, x: s.strip(x), "slice": lambda s, x: s[1:-1],
    "back": lambda s, x: s[::-1], "last": lambda s, x: s[-1], "parts": lambda s, x: s.partition(x),
    "from the right": lambda s, x: s.rpartition(x), "replace": lambda s, x: s.replace(x, "a<"),
    "once": lambda s, x: s.replace(x, "", 1), "prefix": lambda s, x: s.removeprefix(x),
    "suffix": lambda s, x: s.removesuffix(x), "add": lambda s, x: s + x, "before": lambda s, x: x + s,
    "join": lambda s, x: s.join([x, "b", x]), "spell": lambda s, x: list(s), "upper": lambda s, x: s.upper(),
    "format": lambda s, x: f"{s}", "in": lambda s, x: x in s, "equal": lambda s, x: s == x,
}  # fmt: skip


@settings(deadline=None, max_examples=600, derandomize=True)
@given(traced, st.text("a<>| \n", max_size=2), st.sampled_from(sorted(OPERATIONS)))
def test_every_operation_gives_the_text_of_any_string(parts, other, name):
    whole = Traced().join(Traced(text, who) for text, who in parts)
    plain = "".join(text for text, _ in parts)
    try:
        expected = OPERATIONS[name](plain, other)
    except (ValueError, IndexError) as error:
        with pytest.raises(type(error)):
            OPERATIONS[name](whole, other)
        return
    found = OPERATIONS[name](whole, other)
    assert found == expected and type(found) in (type(expected), Traced)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(st.lists(st.sampled_from("aAbB "), max_size=12), st.sampled_from(sorted(OPERATIONS)))
def test_origins_go_with_their_characters(letters, name):
    """Capitals were written by the template; after any operation they, and no others, still are."""
    whole = Traced().join(Traced(c, WRITTEN if c.isupper() else SAID) for c in letters)
    try:
        found = OPERATIONS[name](whole, "b")
    except (ValueError, IndexError):
        return
    for text in found if isinstance(found, (list, tuple)) else [found]:
        for char, who in zip(text, origins(text), strict=True) if isinstance(text, str) else ():
            assert who in (0, WRITTEN if char.isupper() else SAID)


# ------------------------------------------------------------------------------------ attacks


def test_the_work_grows_with_the_turns(ours):
    def took(turns):
        messages = talk(*["hi"] * turns)
        start = time.process_time()
        ours.apply_chat_template(messages, return_assistant_tokens_mask=True)
        return time.process_time() - start

    took(10)
    assert took(20_000) < 7 * took(5_000) + 0.1  # 4 times the turns


UNBOUNDED = {
    "rounds": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "none kept": "{% for a in range(9999) %}{% for b in range(9999) if b < 0 %}{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "times": "{{ 'x' * 10 ** 10 }}",
    "doubled": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "block": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set x %}{{ n.x }}{{ n.x }}"
    "{% endset %}{% set n.x = x %}{% endfor %}",
    "centred": "{{ 'a' | center(9999999999) }}",
    "ljust": "{{ 'a'.ljust(9999999999) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "star": "{{ '%*d' % (9999999999, 1) }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "nested format": "{{ '{:>{}}'.format(1, 9999999999) }}",
    "joined": "{{ range(99999) | join('a' * 1000000) }}",
    "replaced": "{{ ('a' * 1000000) | replace('a', 'a' * 1000000) }}",
    "sliced": "{{ [1] | slice(10 ** 9) | list }}",
    "output": "{% for a in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
    "parentheses": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "fors": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
}  # fmt: skip


@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_template_without_bounds_is_refused(ours, name, monkeypatch):
    monkeypatch.setattr("qwen2_edu.text.templates.STEPS", 300_000)  # a tenth, for the tests' sake
    with pytest.raises(ValueError, match="the chat template"):
        ours.apply_chat_template(talk("hi"), chat_template=UNBOUNDED[name])


LONG = "{% set s = 'x' * 1000000 %}"
TWICE = (
    "{% set n = namespace(a=[1]) %}{% for i in range(30) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
)
TOO_LARGE = {
    "items": "{{ (['x' * 1000000] * 3000) | join }}",
    "items of a map": LONG + "{{ ([{'s': s}] * 3000) | map(attribute='s') | join }}",
    "items of a method": LONG + "{{ ''.join(([{'s': s}] * 3000) | map(attribute='s')) }}",
    "indent": "{{ [1] | tojson(indent=3000000000) }}",
    "indent of text": LONG + "{{ ([1] * 3000) | tojson(indent=s) }}",
    "indent that pays back": "{{ [1] | tojson(indent=-3000000000) }}",
    "indent by place": "{{ [1] | tojson(false, 3000000000) }}",
    "separators": LONG + "{{ ([1] * 3000) | tojson(separators=(s, s)) }}",
    "separators by place": LONG + "{{ ([1] * 3000) | tojson(false, none, (s, s)) }}",
    "pieces": LONG + "{% for i in range(3000) %}{{ s }}{% endfor %}",
    "pieces of a block": LONG + "{% set y %}{% for i in range(3000) %}{{ s }}{% endfor %}{% endset %}",
    "pieces of a template": "{% for i in range(30000) %}" + "x" * 100_000 + "{% endfor %}",
    "pieces of lists": "{% set s = [1] * 100000 %}{% set y %}{% for i in range(3000) %}{{ s }}{% endfor %}{% endset %}",
    "fields": LONG + "{{ ('{0}' * 3000).format(s) }}",
    "names": LONG + "{{ ('%(a)s' * 3000) % {'a': s} }}",
    "filter format": LONG + "{{ ('%(a)s' * 3000) | format(a=s) }}",
    "widths": "{{ ('{0:9999}' * 300000).format(1) }}",
    "translated": "{{ 'aaaa'.translate({97: 'b' * 100000000}) }}",
    "links": "{{ ('http://a.bc ' * 30000) | urlize(rel='x' * 100000) }}",
    "bytes": "{{ (1).to_bytes(3000000000, 'big') }}",
    "slices": "{% set l = [1] * 100000 %}{% set n = namespace(a=0) %}{% for i in range(9999) %}"
    "{% set n.a = [n.a, l[1:]] %}{% endfor %}",
    "shared": TWICE + "{{ n.a }}",
    "shared ~": TWICE + "{{ 'a' ~ n.a }}",
    "shared string": TWICE + "{{ n.a | string }}",
    "shared tojson": TWICE + "{{ n.a | tojson }}",
    "shared pprint": TWICE + "{{ n.a | pprint }}",
    "shared upper": TWICE + "{{ n.a | upper }}",
    "shared format": TWICE + "{{ '%s' % [n.a] }}",
    "shared join": TWICE + "{{ [n.a] | join }}",
    "shared map": TWICE + "{{ [n.a] | map('string') | list }}",
    "shared message": TWICE + "{{ raise_exception(n.a) }}",
    "shared namespace": TWICE.replace("[n.a, n.a]", "namespace(a=[n.a, n.a])") + "{{ n }}",
    "power": "{{ 3 ** 100000000 > 1 }}",
    "smaller power": "{{ 3 ** 16000000 > 1 }}",
    "squares": "{% set n = namespace(a=3) %}{% for i in range(99) %}{% set n.a = n.a * n.a %}{% endfor %}",
    "quotient": "{{ 3 ** 10000000 // 7 ** 2500000 > 1 }}",
    "remainder": "{{ 3 ** 1000000 % 7 ** 250000 > 1 }}",
    "rounded": "{{ 1 | round(-1000000000) }}",
    "summed": "{{ ([[1] * 1000] * 300) | sum(start=[]) }}",
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_would_be_too_large_is_refused_before_it_is_made(name, monkeypatch):
    monkeypatch.setattr("qwen2_edu.text.templates.STEPS", 300_000)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ValueError, match="more than 300,000 steps|sum adds numbers alone"):
        render(TOO_LARGE[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6 and time.process_time() - start < 5


def test_ordinary_templates_are_not_refused():
    template = (
        "{{ messages | tojson(indent=4) | length }} {{ '%s: %s' % (1, messages[0].content) }}{{ none_such }}"
        " {{ 7 // 2 }} {{ 7 % 2 }} {{ 2 ** 9 }} {{ 2.345 | round(1) }} {{ [1, 2] | sum }} {{ 'abc'[1:] }}"
        " {{ messages[::2] | map(attribute='content') | join(', ') | length }} {{ {'a': [1, 'b']} }}"
    )
    found = render(template, messages=talk(*["hi"] * 10_000))
    assert found.split(" ", 1)[1] == "1: hi 3 1 512 2.3 3 bc 19998 {'a': [1, 'b']}"


def test_ten_thousand_turns_are_far_from_the_bound(monkeypatch):
    monkeypatch.setattr("qwen2_edu.text.templates.STEPS", 900_000)
    said = render(QWEN2_5_TEMPLATE, messages=talk(*["hi"] * 20_000))
    assert said.count("<|im_end|>") == 20_001


# -------------------------------------------------------------------------------------- calls


def test_calls_people_make(ours, theirs):
    options = {"return_dict": False, "enable_thinking": False}
    for messages in ([{"role": "moderator", "content": "a"}], talk("a", "b")):
        expected = theirs.apply_chat_template(messages, **options)
        assert ours.apply_chat_template(messages, **options) == expected
    assert ours.apply_chat_template(talk("a")[0]) == ours.apply_chat_template(talk("a"))
    with pytest.raises(TypeError, match="add_generation_promt.*add_generation_prompt"):
        ours.apply_chat_template(talk("a"), add_generation_promt=True)


@pytest.mark.parametrize("name", ["tool_us", "tool_use"])
def test_a_name_is_not_taken_for_a_template(ours, name):
    with pytest.raises(ValueError, match=f"'{name}' is no chat template of this tokenizer"):
        ours.apply_chat_template(talk("a"), chat_template=name)
    with pytest.raises(TypeError, match="^chat_template must be str . None, not 5$"):
        ours.apply_chat_template(talk("a"), chat_template=5)
