"""The attention explorer without a browser: what is measured, what is sent, what is refused."""

from __future__ import annotations

import base64
import copy
import json
import re
import zlib
from functools import partial
from io import BytesIO

import matplotlib
import pytest
import torch
import transformers
from matplotlib.image import imread

from qwen2_edu import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)
from qwen2_edu.attention import BACKENDS
from qwen2_edu.quantize import quantize
from qwen2_edu.tokenizer import Qwen2TokenizerFast
from qwen2_edu.viz import attention_explorer, explorer, facts, given, record, side_by_side, static
from qwen2_edu.viz import lens as viz_lens
from qwen2_edu.viz import shares as viz_shares
from qwen2_edu.viz.labels import reads_right_to_left, token_labels, visible_text

BLAME = "rounding in 8 layers explains {}, so the cache may be at fault"
TEXT = "the cat saw the cat"


@pytest.fixture(scope="module")
def bytewise():
    """A tokenizer whose tokens are single bytes, and three control tokens."""
    vocab = {bytes([i]): i for i in range(256)}
    added = dict(enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), 256))
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return Qwen2TokenizerFast(
        vocab, [], added_tokens=added, chat_template=template, pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="module")
def model(small_config, randomise):
    """Layer 0 full, layers 1 and 2 with a window of 4; every parameter random."""
    config = small_config(
        vocab_size=260,
        eos_token_id=256,
        use_sliding_window=True,
        max_window_layers=1,
        sliding_window=4,
    )
    return randomise(Qwen2ForCausalLM(config))


def ids_of(tokenizer, text=TEXT):
    return torch.tensor([tokenizer(text).input_ids])


# -- what is measured ------------------------------------------------------------------------------


def test_the_maps_are_the_attention_weights_of_the_model(model, bytewise):
    weights = model(ids_of(bytewise), output_attentions=True).attentions
    shown = attention_explorer(model, bytewise, TEXT).recording
    for layer, expected in enumerate(weights):
        decoded = record.from_bytes(shown.maps[layer])
        assert (decoded - expected[0]).abs().max() < 0.004
    assert shown.maps.shape == (3, 6, 19, 19) and shown.maps.dtype == torch.uint8


def test_only_the_chosen_layers_are_kept(model, bytewise):
    every, some = (attention_explorer(model, bytewise, TEXT, layers=x) for x in (None, [2, 0]))
    assert some.recording.layers == [0, 2] and some.layer in (0, 2)
    assert torch.equal(some.recording.maps, every.recording.maps[[0, 2]])


@pytest.mark.parametrize("padding", [0, 3])
def test_generation_shows_the_rows_that_were_decoded(model, bytewise, padding):
    ids = torch.cat((torch.full((1, padding), 256), ids_of(bytewise)), 1)
    mask = torch.ones_like(ids)
    mask[:, :padding] = 0
    expected = model.generate(ids, mask, max_new_tokens=9, do_sample=False)
    given = {"input_ids": ids, "attention_mask": mask}
    shown = attention_explorer(
        model, bytewise, given, max_new_tokens=9, do_sample=False, eos_token_id=[]
    ).recording
    assert shown.ids == expected[0].tolist() and shown.prompt == ids.shape[1]
    # The window of 4 is a ring by now, so columns had to be put back in order.
    full_mask = torch.cat((mask, torch.ones(1, 9, dtype=mask.dtype)), 1)
    with torch.no_grad():
        out = model(expected, full_mask, output_attentions=True)
    for layer, weights in enumerate(out.attentions):
        rows = record.from_bytes(shown.maps[layer])[:, padding:]
        assert (rows - weights[0][:, padding:]).abs().max() < 0.004
    assert 0 < shown.cache_error < 1e-5
    for step in shown.steps:
        chances = out.logits[0, step.position].softmax(-1)
        assert step.token_id == expected[0, step.position + 1]
        assert step.probability == pytest.approx(float(chances[step.token_id]), abs=1e-5)
        best = chances.topk(5)
        assert [i for i, _ in step.alternatives] == best.indices.tolist()
        got = [p for _, p in step.alternatives]
        assert got == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_drawn_token_need_not_be_the_likeliest(model, bytewise):
    options = {"max_new_tokens": 12, "do_sample": True, "temperature": 5.0, "seed": 1}
    steps = attention_explorer(model, bytewise, TEXT, **options).recording.steps
    assert any(step.token_id != step.alternatives[0][0] for step in steps)
    assert all(0 < step.probability <= step.alternatives[0][1] for step in steps)


def test_an_answer_to_a_text_padded_on_the_right_is_that_to_the_same_on_the_left(model, bytewise):
    ids, pads = bytewise("a cat").input_ids, [256] * 3
    options = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": []}
    given = [(pads + ids, [0] * 3 + [1] * 5), (ids + pads, [1] * 5 + [0] * 3)]
    left, right = (
        attention_explorer(model, bytewise, {"input_ids": i, "attention_mask": m}, **options)
        for i, m in given
    )
    assert right.data == left.data and right.recording.cache_error < 1e-5
    assert torch.equal(right.recording.maps, left.recording.maps)


def test_padding_changes_no_score_and_no_weight(model, bytewise):
    padded = bytewise(
        [TEXT], padding="max_length", max_length=24, padding_side="left", return_tensors="pt"
    )
    plain, shown = (attention_explorer(model, bytewise, x).recording for x in (TEXT, padded))
    assert shown.real.tolist() == [False] * 5 + [True] * 19
    assert (shown.maps[:, :, 5:, 5:].int() - plain.maps.int()).abs().max() <= 1
    assert shown.maps[:, :, :5].max() == shown.maps[:, :, :, :5].max() == 0
    for name in record.BEHAVIOURS:
        assert torch.allclose(shown.scores[name], plain.scores[name], atol=1e-5), name


def test_heads_built_to_behave_score_so():
    """Head 0 looks at the token before, 1 at the first, 2 at what followed last time, 3 evenly."""
    ids = torch.tensor([5, 6, 7, 5, 6, 7, 5, 6])
    T = len(ids)
    maps = torch.zeros(1, 4, T, T)
    for t in range(T):
        maps[0, 0, t, max(0, t - 1)] = maps[0, 1, t, 0] = 1
        maps[0, 2, t, t - 2 if t >= 3 else 0] = 1
        maps[0, 3, t, : t + 1] = 1 / (t + 1)
    scores = {name: s[0] for name, s in record.behaviour_scores(maps, ids).items()}
    assert scores["previous_token"].argmax() == 0 and scores["previous_token"][0] == 1
    assert scores["first_token"].argmax() == 1 and scores["first_token"][1] == 1
    assert scores["induction"].argmax() == 2 and scores["induction"][2] == 1
    assert scores["entropy"].argmax() == 3 and scores["entropy"][:3].max() == 0
    assert scores["reach"][0] == 1 and scores["reach"].argmax() == 1


@pytest.mark.parametrize("padding", [0, 3])
def test_values_weigh_as_much_as_the_head_really_adds(model, bytewise, padding):
    """‖w·v·W_O‖ from the values that passed, each head's part of the output matrix apart."""
    text = {"input_ids": [256] * padding + bytewise(TEXT).input_ids}
    text["attention_mask"] = [0] * padding + [1] * 19
    passed = {}
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda m, x, y, i=i: passed.setdefault(i, y))
        for i, layer in enumerate(model.model.layers)
    ]
    r = attention_explorer(model, bytewise, text).recording
    for hook in hooks:
        hook.remove()
    D, first = model.config.head_dim, padding
    maps = record.from_bytes(r.maps)
    by_value = record.weigh(maps, "value", first, r.norms)
    rest = record.weigh(maps, "rest", first, r.norms)
    for i, layer in enumerate(model.model.layers):
        for h in range(6):
            g = h // (6 // model.config.num_key_value_heads)
            values = passed[i][0, :, g * D : (g + 1) * D]
            added = values @ layer.self_attn.o_proj.weight[:, h * D : (h + 1) * D].T  # (T, E)
            length = maps[i, h, -1] * added.norm(dim=-1)
            assert torch.allclose(by_value[i, h, -1], length / length.sum(), atol=1e-5)
    assert rest[..., first].max() == 0
    assert torch.allclose(rest[:, :, first + 1 :].sum(-1), torch.ones(3, 6, 18))
    assert torch.allclose(
        rest[0, 0, -1, -3] / rest[0, 0, -1, -1], maps[0, 0, -1, -3] / maps[0, 0, -1, -1]
    )


def test_scores_follow_what_is_shown(model, bytewise):
    shown = attention_explorer(model, bytewise, TEXT)
    told = {b["name"]: b for b in shown.data["behaviours"]}
    assert told["first_token"]["views"]["rest"] == [[None] * 6] * 3
    for view in ("rest", "value"):
        previous = told["previous_token"]["views"][view]
        assert previous != told["previous_token"]["scores"]
        seen = record.weigh(record.from_bytes(shown.recording.maps), view, 0, shown.recording.norms)
        expected = seen.diagonal(-1, dim1=-2, dim2=-1)[..., int(view == "rest") :].mean(-1)
        assert torch.allclose(torch.tensor(previous), expected, atol=0.01)
    assert len(shown.thumbnails) == 3 * shown.recording.maps.numel()


@pytest.mark.parametrize(
    ("text", "padding", "new", "layers"),
    [(TEXT, 0, 3, None), (TEXT, 3, 3, None), ("a dog ran", 0, 0, None), (TEXT, 2, 0, [2, 0])],
)
def test_it_opens_on_the_head_that_fetches_most_of_the_answer(
    model, bytewise, text, padding, new, layers
):
    """Told by what passed through the value matrices, and not by the largest weight."""
    ids = [256] * padding + bytewise(text).input_ids
    given = {"input_ids": ids, "attention_mask": [0] * padding + [1] * (len(ids) - padding)}
    options = {"max_new_tokens": new, "do_sample": False, "eos_token_id": []} if new else {}
    shown = attention_explorer(model, bytewise, given, layers=layers, **options)
    values, last = [], len(ids) - 1 - padding
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda *call: values.append(call[2][0]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        out = model(torch.tensor([ids[padding:]]), output_attentions=True)
    for hook in hooks:
        hook.remove()
    token, D = int(out.logits[0, -1].argmax()), model.config.head_dim
    added = torch.full((3, 6, last + 1), -torch.inf)
    looks = torch.cat(out.attentions)[:, :, -1]  # (3, 6, T)
    looks[..., [0, last]] = 0
    for i in layers or range(3):
        block = model.model.layers[i].self_attn
        for h in range(6):
            group = slice(h // 3 * D, h // 3 * D + D)
            fetched = looks[i, h, :, None] * (values[i] - block.v_proj.bias)[:, group]
            wrote = fetched @ block.o_proj.weight[:, h * D : (h + 1) * D].T
            added[i, h] = wrote @ (model.model.norm.weight * model.lm_head.weight[token])
    layer, head = divmod(int(added.sum(-1).argmax()), 6)
    assert added.max() > 0 and (layer, head) != divmod(
        int(torch.stack(out.attentions)[:, 0, :, -1, 1:-1].amax(-1).argmax()), 6
    )
    opens = {"layer": layer, "head": head, "query": len(ids) - 1}
    opens["key"] = int(added[layer, head].argmax()) + padding
    told = shown.data["opens"]
    assert {name: told[name] for name in opens} == opens
    assert (shown.layer, shown.head, shown.query) == (layer, head, len(ids) - 1)


@pytest.mark.parametrize("kind", ["quantised", "classifier", "short"])
def test_without_shares_it_opens_on_the_strongest_look_that_is_news(
    model, bytewise, small_config, randomise, kind
):
    """Not at the first token, nor at the query itself, nor at the one before."""
    text, one = ("ab" if kind == "short" else "dog a cat"), copy.deepcopy(model)
    if kind != "classifier":
        one = quantize(one, "int8")
    else:
        config = small_config(vocab_size=260, eos_token_id=256)
        one = randomise(Qwen2ForSequenceClassification(config))
    shown = attention_explorer(one, bytewise, text)
    told, last = shown.data["opens"], len(text) - 1
    rows = shown.recording.maps[:, :, last]
    rows = rows[..., 1 : last - 1] if kind != "short" else rows
    at = told["layer"], told["head"]
    assert told["query"] == last and rows.max() == shown.recording.maps[(*at, last, told["key"])]
    if kind != "short":
        assert 1 <= told["key"] < last - 1
        before = shown.recording.maps[:, :, last, last - 1].max()
        assert kind == "classifier" or rows.max() < before  # it would have won


def test_what_cannot_be_scored_is_not_a_number(model, bytewise):
    one = attention_explorer(model, bytewise, "a")
    assert all(scores.isnan().all() for scores in one.recording.scores.values())
    no_repeat = attention_explorer(model, bytewise, "abc")
    assert no_repeat.recording.scores["induction"].isnan().all()
    told = {b["name"]: b["scores"] for b in no_repeat.data["behaviours"]}
    assert told["induction"] == [[None] * 6] * 3 and None not in told["entropy"][0]
    json.dumps(no_repeat.data, allow_nan=False)


def test_recording_leaves_the_model_as_it_was(model, bytewise):
    backends = [layer.self_attn.attend for layer in model.model.layers]
    assert backends == [BACKENDS["sdpa"]] * 3
    attention_explorer(model, bytewise, TEXT, max_new_tokens=2)
    assert [layer.self_attn.attend for layer in model.model.layers] == backends
    assert not model.training


# -- what a picture needs --------------------------------------------------------------------------


def test_bytes_hold_a_weight_closely_and_keep_small_ones():
    weights = torch.linspace(0, 1, 10_001)
    error = (record.from_bytes(record.to_bytes(weights)) - weights).abs()
    assert error[weights <= 0.25].max() <= 0.002 and error.max() <= 0.004
    assert record.to_bytes(torch.tensor(1 / 512)) == 11
    assert record.to_bytes(torch.tensor([0.0, 1.0])).tolist() == [0, 255]


def test_the_mask_tells_its_reasons_apart():
    real = torch.tensor([False, True, True, True, True])
    S, F, O, P = record.SEEN, record.FUTURE, record.OUTSIDE, record.PADDING  # noqa: E741
    assert record.effective_mask(real, 2).tolist() == [
        [P, P, P, P, P],
        [P, S, F, F, F],
        [P, S, S, F, F],
        [P, O, S, S, F],
        [P, O, O, S, S],
    ]
    assert (record.effective_mask(real, None) == O).sum() == 0


def test_a_thin_line_survives_in_a_thumbnail():
    maps = torch.zeros(1, 2, 400, 400, dtype=torch.uint8)
    maps[0, 1, :, 7] = 200
    small = record.thumbnails(maps)
    assert small.shape == (1, 2, 40, 40) and small.dtype == torch.uint8
    assert small[0, 1, :, 0].tolist() == [200] * 40 and small.sum() == 200 * 40
    assert torch.equal(record.thumbnails(maps[..., :9, :9]), maps[..., :9, :9])


@pytest.mark.parametrize(
    ("layer", "changes", "reason"),
    [
        (0, {}, "use_sliding_window is off"),
        (
            0,
            {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 4},
            "0 < max_window_layers = 2",
        ),
        (
            2,
            {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 4},
            "2 ≥ max_window_layers = 2",
        ),
        (
            0,
            {"layer_types": ["sliding_attention"] + ["full_attention"] * 2, "sliding_window": 4},
            "config.layer_types says so",
        ),
    ],
)
def test_a_layer_says_why_it_slides_or_not(small_config, layer, changes, reason):
    assert record.why_this_kind(small_config(**changes), layer) == reason


def test_the_logit_lens_ends_in_the_answer_of_the_model(model, bytewise):
    shown = attention_explorer(model, bytewise, TEXT)
    rows = viz_lens.lens_rows(model, bytewise, shown.recording.hidden[:, 4])
    out = model(ids_of(bytewise), output_hidden_states=True)
    first = model.lm_head(model.model.norm(out.hidden_states[0][0, 4])).softmax(-1).topk(5)
    last = out.logits[0, 4].softmax(-1).topk(5)
    assert len(rows) == len(shown.data["lens"]) == 4
    for row, best in ((rows[0], first), (rows[-1], last)):
        assert [chance["id"] for chance in row] == best.indices.tolist()
        got = [chance["probability"] for chance in row]
        assert got == pytest.approx(best.values.tolist(), abs=1e-5)


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a b", "·a·b"),
        ("\n\t\r", "↵⇥␍"),
        ("\u00a0\u3000", "⍽□"),
        ("\u200d\x00", "‹200D›‹0000›"),
        ("\u0301x", "◌\u0301x"),
        ("שלום", "שלום"),
        ("生成", "生成"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(text, shown):
    assert visible_text(text) == shown


def test_half_a_character_is_shown_as_its_bytes(fast):
    labels = token_labels(fast, fast("a 🦜 龘").input_ids)
    assert [label["text"] for label in labels] == [
        *("a", "·‹F0 9F›", "‹A6›", "‹9C›", "·‹E9›", "‹BE›", "‹98›")
    ]
    notes = [label["note"] for label in labels]
    assert notes == ["", *["bytes of “🦜”"] * 3, *["bytes of “龘”"] * 3]


def test_bytes_that_make_no_character_say_so(bytewise):
    (label,) = token_labels(bytewise, [0xFF])
    assert label["text"] == "‹FF›" and label["note"] == "bytes that make no whole character"


def test_control_tokens_and_spare_ids_are_named(fast):
    chat, spare = token_labels(fast, [151644, 151999])
    assert chat["text"] == "<|im_start|>" and chat["special"]
    assert spare["text"] == "‹id 151999›" and "spare row" in spare["note"]


@pytest.mark.parametrize(
    ("text", "backwards"), [("abc", False), ("12 שלום", True), ("مرحبا x", True), ("", False)]
)
def test_the_direction_of_a_text_is_that_of_its_first_letter(text, backwards):
    assert reads_right_to_left(text) is backwards


# -- what may be given -----------------------------------------------------------------------------


def test_messages_end_with_the_head_of_an_answer(model, bytewise):
    asked = [{"role": "user", "content": "hi"}]
    ids, _ = given.encode(bytewise, asked)
    assert bytewise.decode(ids[0]).endswith("<|im_start|>assistant\n")
    ids, _ = given.encode(bytewise, [*asked, {"role": "assistant", "content": "yes"}])
    assert bytewise.decode(ids[0]).endswith("yes<|im_end|>\n")


def test_typed_control_tokens_stay_letters(model, bytewise):
    shown = attention_explorer(model, bytewise, [{"role": "user", "content": "<|im_end|>"}])
    assert shown.recording.ids.count(258) == 1


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("", {}, ValueError, "the text is empty: the explorer needs at least one token"),
        ([], {}, ValueError, "there are no messages"),
        (7, {}, TypeError, "must be a text, a list of messages or the tokenizer's .* not int"),
        (["a", "b"], {}, TypeError, "not list"),
        ({"input_ids": [[1], [2]]}, {}, ValueError, "shows one text, not 2 rows"),
        ("a" * 513, {}, ValueError, "has 513 tokens, and max_tokens=512: shorten it, or pass"),
        ("a" * 9, {"max_tokens": 12, "max_new_tokens": 4}, ValueError, "9 tokens and 4 new ones"),
        ("a", {"layers": [3]}, ValueError, r"layers=\[3\]: choose some of 0 to 2"),
        ("a", {"layers": []}, ValueError, r"layers=\[\]: choose some"),
        ("a", {"max_new_tokens": 2, "num_return_sequences": 2}, ValueError, "follows one answer"),
        ("a", {"max_new_tokens": 2, "num_beams": 2}, ValueError, "num_beams=2"),
        ("a", {"max_new_tokens": 2, "tempreture": 2}, TypeError, "did you mean temperature"),
        ("a", {"seed": 2}, TypeError, "seed: for generation, so pass max_new_tokens too"),
        ("a", {"max_new_tokens": -2}, ValueError, "max_new_tokens"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(model, bytewise, text, options, error, message):
    with pytest.raises(error, match=message):
        attention_explorer(model, bytewise, text, **options)


def test_a_tokenizer_of_another_model_is_refused(model, fast, bytewise, small_config):
    with pytest.raises(ValueError, match=r"not the model's: it has 151,\d+ tokens, .* 260 rows"):
        attention_explorer(model, fast, "a")
    other = Qwen2ForCausalLM(small_config(vocab_size=260, eos_token_id=100)).eval()
    with pytest.raises(ValueError, match="end token, id 100, is no control token of it"):
        attention_explorer(other, bytewise, TEXT)
    with pytest.raises(TypeError, match="expected a tokenizer of qwen2_edu, not dict"):
        attention_explorer(model, {}, TEXT)
    with pytest.raises(ValueError, match="the token id -100, and the model's ids end at 259"):
        attention_explorer(model, bytewise, {"input_ids": [[5, -100]]})


def test_a_compiled_model_is_refused(model, small_config, bytewise):
    with pytest.raises(ValueError, match="under torch.compile"):
        attention_explorer(torch.compile(model), bytewise, TEXT)
    in_place = Qwen2ForCausalLM(small_config(vocab_size=260))
    in_place.model.layers[1].compile()
    with pytest.raises(ValueError, match="under torch.compile"):
        attention_explorer(in_place, bytewise, TEXT)


def test_other_models_are_refused(bytewise, small_config):
    with pytest.raises(TypeError, match="one of qwen2_edu, such as Qwen2ForCausalLM, not Linear"):
        attention_explorer(torch.nn.Linear(1, 1), bytewise, TEXT)
    with pytest.raises(ValueError, match="is no multiple of num_key_value_heads"):
        Qwen2Config(num_attention_heads=6, num_key_value_heads=4)


def test_a_model_without_a_vocabulary_head_has_no_lens(bytewise, small_config):
    classifier = Qwen2ForSequenceClassification(
        small_config(vocab_size=260, eos_token_id=256)
    ).eval()
    shown = attention_explorer(classifier, bytewise, TEXT)
    page = page_of(shown.to_html())
    assert shown.data["lens"] == [] and "lens" not in page["blobs"]
    assert page["data"]["lensNote"] == "This model has no head over the vocabulary."
    with pytest.raises(TypeError, match="SequenceClassification cannot generate"):
        attention_explorer(classifier, bytewise, TEXT, max_new_tokens=2)


def test_another_text_is_shown_as_one_of_its_own(model, bytewise):
    shown = attention_explorer(model, bytewise, TEXT, layers=[1, 2], max_tokens=30)
    other = attention_explorer(model, bytewise, "a dog", layers=[1, 2])
    shown.changed(4, off=[(0, 2)])
    shown._answer(None, {"name": "read", "text": "a dog"}, [])
    names = ("data", "thumbnails", "norms", "first", "layer", "head", "query")
    assert all(getattr(shown, name) == getattr(other, name) for name in names)
    assert shown.changed(3, off=[(0, 2)]) == other.changed(3, off=[(0, 2)])
    sent, before = [], shown.data
    shown.send = lambda content, buffers=None: sent.append(content)
    shown._answer(None, {"name": "read", "text": "a" * 31}, [])
    assert "has 31 tokens, and max_tokens=30" in sent.pop()["error"]
    assert shown.data is before and len(shown.recording.ids) == 5


def reading(tokenizer, given):
    """What an explorer is given: a text, the same after padding, or one that goes on."""
    if given == "padded":
        return tokenizer([TEXT], padding="max_length", max_length=24, padding_side="left"), {}
    return TEXT, {"max_new_tokens": 3, "eos_token_id": []} if given == "generated" else {}


@pytest.mark.parametrize("given", ["text", "padded", "generated"])
def test_heads_off_say_what_a_model_without_their_output_says(model, bytewise, given):
    """The reference: a model whose output matrix has zeros where these heads write."""
    text, options = reading(bytewise, given)
    shown = attention_explorer(model, bytewise, text, **options)
    cut = copy.deepcopy(model)
    for layer, head in [(0, 2), (2, 5)]:
        cut.model.layers[layer].self_attn.o_proj.weight.data[:, 8 * head : 8 * head + 8] = 0
    ids = torch.tensor(shown.recording.ids)[shown.recording.real][None]
    pads = len(shown.recording.ids) - ids.shape[1]
    passed = {}  # into each output matrix, and into the final norm
    parts = [layer.self_attn.o_proj for layer in model.model.layers] + [model.model.norm]
    hooks = [
        part.register_forward_pre_hook(lambda _, x, i=i: passed.update({i: x[0][0]}))
        for i, part in enumerate(parts)
    ]
    with torch.no_grad():
        before, after = model(ids).logits[0], cut(ids).logits[0]
    for hook in hooks:
        hook.remove()

    def directly(layer, head, place, token):
        block, rows, final = parts[layer], slice(8 * head, 8 * head + 8), passed[3][place]
        group = head // 3
        bias = model.model.layers[layer].self_attn.v_proj.bias[8 * group : 8 * group + 8]
        wrote = block.weight[:, rows] @ (passed[layer][place, rows] - bias)
        wrote = (
            wrote * model.model.norm.weight / (final.pow(2).mean() + model.model.norm.eps).sqrt()
        )
        return float((wrote @ model.lm_head.weight[token]).detach())

    for place in (3, ids.shape[1] - 1):
        told = shown.changed(place + pads, off=[(0, 2), (2, 5)])
        last = place == ids.shape[1] - 1
        token = int(before[place].argmax() if last else ids[0, place + 1])
        chances = [each[place].softmax(-1) for each in (before, after)]
        assert told["id"] == token and told["comes"] is not last
        added = sum(directly(*head, place, token) for head in [(0, 2), (2, 5)])
        assert abs(told["direct"] - added) < 1e-3 < abs(added)
        assert abs(told["delta"] - float(after[place, token] - before[place, token])) < 1e-3
        for name, mine, chance in zip(("before", "after"), told["chances"], chances, strict=True):
            assert abs(mine - float(chance[token])) < 1e-4
            assert [row["id"] for row in told[name]] == chance.topk(5).indices.tolist()
    nothing = shown.changed(place + pads)
    assert nothing["delta"] == 0 and nothing["before"] == nothing["after"]
    assert nothing["direct"] is None


def hooked(model, ids, hooks):
    """The logits of a plain forward pass with hooks of torch, (T, V)."""
    handles = [make(hook) for make, hook in hooks]
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    [handle.remove() for handle in handles]
    return logits


def agrees(told, before, after, place, token):
    assert told["id"] == token
    assert abs(told["delta"] - float(after[place, token] - before[place, token])) < 1e-3
    assert told["delta"] != 0  # something happens
    chances = after[place].softmax(-1)
    assert [row["id"] for row in told["after"]] == chances.topk(5).indices.tolist()
    assert abs(told["chances"][1] - float(chances[token])) < 1e-4


@pytest.fixture(params=["constructed", "tiny"])
def pair(request, model, bytewise):
    """A model, its tokenizer, a text, and another of as many tokens."""
    if request.param == "constructed":
        return model, bytewise, TEXT, "the cow saw the cat"
    tiny = AutoModelForCausalLM.from_pretrained("tiny", dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained("tiny")
    text = "Tom has a red ball. Mia wants the ball"
    return tiny, tokens, text, text.replace("Mia", "Ben")


@pytest.mark.parametrize("heads", [[1], None])
def test_a_cut_look_is_one_less_in_the_mean(pair, heads):
    """By hooks: what the layer's heads say at one query is their mean over the other keys."""
    model, tokenizer, text, _ = pair
    config, ids = model.config, tokenizer(text).input_ids
    layer, query, key, D = 0, len(ids) - 3, len(ids) - 5, model.config.head_dim
    attention, seen = model.model.layers[layer].self_attn, {}
    weights = model(torch.tensor([ids]), output_attentions=True).attentions[layer][0]  # (H, T, T)

    def keep(module, inputs, output):
        seen["values"] = output[0].view(len(ids), -1, D)  # (T, G, D)

    def say(module, inputs):
        x = inputs[0].clone()  # (1, T, H * D)
        for head in range(config.num_attention_heads) if heads is None else heads:
            left = weights[head, query].clone()
            left[key] = 0
            group = head * config.num_key_value_heads // config.num_attention_heads
            x[0, query, head * D : head * D + D] = left / left.sum() @ seen["values"][:, group]
        return (x,)

    before = hooked(model, ids, [])
    after = hooked(
        model,
        ids,
        [
            (attention.v_proj.register_forward_hook, keep),
            (attention.o_proj.register_forward_pre_hook, say),
        ],
    )
    shown = attention_explorer(model, tokenizer, text)
    for place in (query, len(ids) - 2):
        cuts = [(layer, heads and heads[0], query, key)]
        told = shown.changed(place, cuts=cuts)
        agrees(told, before, after, place, ids[place + 1])


def test_a_look_cut_everywhere_is_a_key_masked_in_transformers(bytewise, small_config, randomise):
    config = small_config(vocab_size=260, eos_token_id=256)
    model = randomise(Qwen2ForCausalLM(config))
    theirs = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**config.to_dict(), attn_implementation="eager")
    ).eval()
    theirs.load_state_dict(model.state_dict())
    ids, T = ids_of(bytewise), len(TEXT)
    mask = torch.full((T, T), -1e30).triu(1)[None, None]
    with torch.no_grad():
        before = theirs(ids, attention_mask=mask.clone()).logits[0]
        mask[..., 15, 8] = -1e30
        after = theirs(ids, attention_mask=mask).logits[0]
    shown = attention_explorer(model, bytewise, TEXT)
    told = shown.changed(15, cuts=[(None, None, 15, 8)])
    agrees(told, before, after, 15, int(ids[0, 16]))


@pytest.mark.parametrize("part", [2, "mlp", "stream"])
def test_a_patch_is_what_a_hook_puts_in(pair, part):
    model, tokenizer, text, other = pair
    layer, D = 1, model.config.head_dim
    ids, others = (tokenizer(one).input_ids for one in (text, other))
    place = next(i for i, (a, b) in enumerate(zip(ids, others, strict=True)) if a != b)
    block, seen = model.model.layers[layer], {}
    make = {"mlp": block.mlp.register_forward_hook, "stream": block.register_forward_pre_hook}.get(
        part, block.self_attn.o_proj.register_forward_pre_hook
    )
    columns = slice(part * D, part * D + D) if part == 2 else slice(None)

    def flows(inputs, output):
        return output[0] if output else inputs[0]

    def keep(module, inputs, *output):
        seen["row"] = flows(inputs, output)[0, place, columns].clone()

    def put(module, inputs, *output):
        x = flows(inputs, output).clone()
        x[0, place, columns] = seen["row"]
        return x if output else (x, *inputs[1:])

    before = hooked(model, ids, [])
    hooked(model, others, [(make, keep)])
    after = hooked(model, ids, [(make, put)])
    shown = attention_explorer(model, tokenizer, text)
    for at in (place, place + 2):
        told = shown.changed(at, patches=[(layer, part, place)], other=other)
        agrees(told, before, after, at, ids[at + 1])
    own = shown.changed(place, patches=[(layer, part, place)], other=text)
    assert abs(own["delta"]) < 1e-4  # another `other` is read anew


def test_a_patch_keeps_padding_apart_and_takes_the_generated_tokens_along(model, bytewise):
    given = bytewise([TEXT], padding="max_length", max_length=24, padding_side="left")
    shown = attention_explorer(model, bytewise, given, max_new_tokens=2, eos_token_id=[])
    plain = attention_explorer(model, bytewise, TEXT, max_new_tokens=2, eos_token_id=[])
    assert shown.recording.ids[5:] == plain.recording.ids
    other = "the cow saw the cat"
    there = shown.changed(20, patches=[(1, "stream", 10)], cuts=[(0, 1, 20, 9)], other=other)
    here = plain.changed(15, patches=[(1, "stream", 5)], cuts=[(0, 1, 15, 4)], other=other)
    assert there == here and abs(here["delta"]) > 1e-3


def spoken(model, ids, token, place):
    """What each head and each MLP adds to a logit, from a plain pass with hooks of torch."""
    blocks, seen = model.model.layers, {"heads": [], "mlps": []}
    keep = [b.self_attn.o_proj for b in blocks], [b.mlp for b in blocks]
    hooks = [
        o.register_forward_pre_hook(lambda _, z: seen["heads"].append(z[0][0])) for o in keep[0]
    ]
    hooks += [m.register_forward_hook(lambda _, x, y: seen["mlps"].append(y[0])) for m in keep[1]]
    with torch.no_grad():
        out = model.model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        logit = model.lm_head(out.last_hidden_state)[0, place, token]
    [hook.remove() for hook in hooks]
    final = torch.nn.functional.rms_norm  # of the stream, as torch has it
    row = model.lm_head.weight[token] * model.model.norm.weight
    x = seen_stream(model, ids)[place]
    scale = final(x, x.shape, eps=model.config.rms_norm_eps).norm() / x.norm()
    H, D = model.config.num_attention_heads, model.config.head_dim
    heads = []
    for block, z in zip(blocks, seen["heads"], strict=True):
        attention = block.self_attn
        bias = attention.v_proj.bias.view(-1, D).repeat_interleave(H // 2, 0)
        fetched = z[place].view(H, D) - bias
        write = attention.o_proj.weight.view(-1, H, D)
        heads.append(torch.einsum("ehd,hd,e->h", write, fetched, row) * scale)
    mlps = torch.stack([y[place] @ row * scale for y in seen["mlps"]])
    return float(logit), torch.stack(heads), mlps


def seen_stream(model, ids):
    """What the final norm reads, (T, E)."""
    found = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, x: found.append(x[0][0]))
    with torch.no_grad():
        model.model(torch.tensor([ids]), use_cache=False)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("given", ["text", "padded", "generated"])
def test_the_shares_are_what_each_part_says_and_add_up(model, bytewise, given):
    text, options = reading(bytewise, given)
    shown, sent = attention_explorer(model, bytewise, text, **options), []
    shown.send = lambda content, buffers=None: sent.append(content)
    r = shown.recording
    pads = r.first
    ids = r.ids[pads:]
    page = page_of(shown.to_html(lens=0))
    packed = json.loads(zlib.decompress(base64.b64decode(page["blobs"]["shares"])))
    assert packed[:pads] == [None] * pads and len(packed) == len(r.ids)
    logits = hooked(model, ids, [])
    for place, token in [(3, None), (len(ids) - 1, None), (3, 7)]:
        last = place == len(ids) - 1
        asked = f"shares {place + pads}" + (f" {token}" if token else "")
        shown._answer(None, {"name": asked}, [])
        told = sent.pop()["rows"]
        wanted = token or int(logits[place].argmax() if last else ids[place + 1])
        assert told["id"] == wanted and told["comes"] is (not last and not token)
        logit, heads, mlps = spoken(model, ids, wanted, place)
        with torch.no_grad():
            assert abs(told["logit"] - logit) < 2e-3
            assert torch.allclose(torch.tensor(told["heads"]), heads, atol=2e-3)
            assert torch.allclose(torch.tensor(told["mlps"]), mlps, atol=2e-3)
        assert abs(sum(share for _, share in told["parts"]) - logit) < 5e-3
        assert abs(dict(told["parts"])["rounding"]) < 2e-3
        five = logits[place].softmax(-1).topk(5)
        assert [one["id"] for one in told["choices"][:5]] == five.indices.tolist()
        default = int(logits[place].argmax() if last else ids[place + 1])
        assert {default, wanted} <= {one["id"] for one in told["choices"]}
        if token is None:
            del told["choices"]  # a page asks about one token
            assert packed[place + pads] == json.loads(json.dumps(told))


def test_what_cannot_be_taken_apart_says_why(model, bytewise, small_config):
    """Padding, a token that is not there, matrices that are integers; a page then has no shares."""
    padded = bytewise([TEXT], padding="max_length", max_length=24, padding_side="left")
    shown, sent = attention_explorer(model, bytewise, padded), []
    small = attention_explorer(quantize(copy.deepcopy(model), "int8"), bytewise, TEXT)
    for one, asked, error in [
        (shown, "shares 2", "token 2 is padding"),
        (shown, "shares 9 260", "token_id must be an integer in [0, 259]"),
        (small, "shares 9", "reads the matrices, and this model's are quantised"),
    ]:
        one.send = lambda content, buffers=None: sent.append(content)
        one._answer(None, {"name": asked}, [])
        assert error in sent.pop()["error"]
    assert "shares" in page_of(shown.to_html())["blobs"]
    assert "shares" not in page_of(small.to_html())["blobs"]
    classifier = Qwen2ForSequenceClassification(
        small_config(vocab_size=260, eos_token_id=256, num_labels=2)
    )
    page = page_of(attention_explorer(classifier, bytewise, TEXT).to_html())
    assert "shares" not in page["blobs"]


def test_a_quantised_model_is_weighed_by_value_as_it_computes(model, bytewise):
    """Its matrices are integers and scales: what counts is what they stand for."""
    plain = attention_explorer(model, bytewise, TEXT).recording.norms
    small = quantize(copy.deepcopy(model), "int8")
    rounded = attention_explorer(small, bytewise, TEXT).recording.norms
    assert torch.allclose(rounded, plain, rtol=0.1)


def test_changes_that_cannot_be_are_told_to_the_browser(model, bytewise):
    padded = bytewise([TEXT], padding="max_length", max_length=24, padding_side="left")
    shown, sent = attention_explorer(model, bytewise, padded), []
    shown.send = lambda content, buffers=None: sent.append(content)
    for asked, error in [
        ({"query": 2, "off": [[0, 1]]}, "token 2 is padding"),
        ({"query": 9, "off": [[0, 1]], "to": "half"}, "to must be one of"),
        ({"query": 9, "off": [[7, 1]]}, "layer 7, head 1: there are 3 layers of 6 heads"),
        ({"query": 9, "cuts": [[0, 1, 9, 3]]}, "token 3 is padding"),
        ({"query": 9, "cuts": [[0, 1, 9, 10]]}, "expected 0 ≤ key ≤ query"),
        ({"query": 9, "patches": [[0, "mlps", 9]], "other": TEXT}, "part must be one of"),
        (
            {"query": 9, "patches": [[0, 1, 9]], "other": "a"},
            "has 1 token and this one 19",
        ),
        ({"query": 9, "patches": [[0, 1, 9]], "other": ""}, "the text is empty"),
    ]:
        shown._answer(None, {"name": f"effect {json.dumps(asked)}"}, [])
        assert error in sent.pop()["error"]


# -- what is sent ----------------------------------------------------------------------------------


def test_a_layer_travels_as_bytes_when_asked_for(model, bytewise, monkeypatch):
    shown, sent = attention_explorer(model, bytewise, TEXT), []
    shown.send = lambda content, buffers=None: sent.append((content, buffers))
    shown._answer(None, {"name": "layer 2"}, [])
    (content, (data,)) = sent.pop()
    assert content == {"name": "layer 2"} and len(data) == 7 * 19 * 19
    maps = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(7, 19, 19)
    assert torch.equal(maps[:6], shown.recording.maps[2])
    real = torch.ones(19, dtype=torch.bool)
    assert torch.equal(maps[6], record.effective_mask(real, 4))
    assert shown.first == shown.payload(shown.layer)
    row = record.from_bytes(shown.recording.maps[:, :, 9])
    shown._answer(None, {"name": "cell 9 4 rest"}, [])
    (content, _) = sent.pop()
    expected = row[..., 4] / row[..., 1:].sum(-1)
    assert torch.allclose(torch.tensor(content["rows"]), expected, atol=1e-4)
    shown._answer(None, {"name": "page", "view": "layer=2&zoom=2"}, [])
    (content, (data,)) = sent.pop()
    page = page_of(data.decode())
    assert content["name"] == "page" and page.pop("view") == "layer=2&zoom=2"
    assert page | {"view": ""} == page_of(shown.to_html())
    monkeypatch.setattr(explorer, "LARGEST_PAGE", 1000)
    shown._answer(None, {"name": "page", "view": ""}, [])
    (content, data) = sent.pop()
    assert "more than 0: pass attention_explorer fewer layers" in content["error"] and not data
    shown._answer(None, {"name": "lens 4"}, [])
    (content, _) = sent.pop()
    expected = viz_lens.lens_rows(model, bytewise, shown.recording.hidden[:, 4])
    assert content == {"name": "lens 4", "rows": expected}
    for place in (0, 3):
        shown._answer(None, {"name": f"grid {place} 4 12"}, [])
        (content, _) = sent.pop()
        stream = shown.recording.hidden[place, 4:12]
        best = model.lm_head(model.model.norm(stream)).softmax(-1).max(-1)
        assert [row["id"] for row in content["rows"]] == best.indices.tolist()
        chances = [row["probability"] for row in content["rows"]]
        assert chances == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_saved_notebook_has_a_picture_of_it(model, bytewise):
    """GitHub shows it, and JupyterLab where it does not run what it does not trust."""
    shown = attention_explorer(model, bytewise, TEXT)
    bundle, _ = shown._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    pixels = imread(BytesIO(base64.b64decode(bundle["image/png"])))
    shown.head = (shown.head + 1) % 6
    other = imread(BytesIO(base64.b64decode(shown._repr_mimebundle_()[0]["image/png"])))
    assert pixels.shape[1] > 500 and pixels[..., :3].std() > 0.1  # something is drawn
    assert other.shape == pixels.shape and (other != pixels).any()  # and it is what is chosen
    assert len(bundle["image/png"]) < 60_000


def test_the_picture_is_an_output_of_its_own(model, bytewise, monkeypatch):
    """Beside the widget JupyterLab would not look at it; tests/browser/test_reopened.py does."""
    shown, given = attention_explorer(model, bytewise, TEXT), []
    monkeypatch.setattr(static, "display", lambda *outputs, raw: given.extend(outputs))
    shown._ipython_display_()
    kinds = [["application/vnd.jupyter.widget-view+json", "text/plain"], ["text/html"]]
    assert [sorted(output) for output in given] == [*kinds, ["image/png"]]
    shown.close()
    shown._ipython_display_()
    assert len(given) == 3


@pytest.mark.parametrize(("layers", "heads"), [(24, 14), (80, 64)])
def test_the_picture_of_many_heads_is_cheap(small_config, bytewise, layers, heads):
    """Every layer and head is in it, numbered; drawing all of 5,120 singly took 5 seconds."""
    config = small_config(
        vocab_size=260,
        eos_token_id=256,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_size=2 * heads,
    )
    shown = attention_explorer(Qwen2ForCausalLM(config), bytewise, TEXT * 3)
    bundle, _ = shown._repr_mimebundle_()
    assert len(bundle["image/png"]) < 700_000
    figure = shown.static()
    axes = figure.axes[0]
    drawn = len(axes.get_children()) - len(axes.texts)
    assert len(figure.axes) == 3 and drawn < 100  # one image of all heads, one set of frames
    assert len(axes.collections[0].get_paths()) == layers * heads
    every = 1 if layers == 24 else 2
    numbers = [str(i) for i in range(0, heads, every)]
    assert [text.get_text() for text in axes.texts][: len(numbers)] == numbers
    assert len(axes.get_yticks()) == layers // every


def test_layers_say_why_where_the_kind_changes(model, bytewise):
    layers = attention_explorer(model, bytewise, TEXT).data["layers"]
    assert [layer["badge"] for layer in layers] == ["full", "sliding 4", "sliding 4"]
    assert [layer["heading"] for layer in layers] == [
        "Full attention from layer 0 on: 0 < max_window_layers = 1",
        "Sliding window of 4 tokens from layer 1 on: 1 ≥ max_window_layers = 1",
        None,
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("layer", 3), ("head", 6), ("head", -1), ("query", 19), ("key", 19)]
)
def test_choosing_what_is_not_there_is_refused(model, bytewise, name, value):
    shown = attention_explorer(model, bytewise, TEXT)
    with pytest.raises(ValueError, match=f"{name}={value}: choose one of"):
        setattr(shown, name, value)


def test_the_colours_are_matplotlibs():
    tables = explorer.colour_tables()
    assert len(tables) == 2 * 256 * 3
    assert tuple(tables[3 * 200 : 3 * 201]) == matplotlib.colormaps["viridis"](200, bytes=True)[:3]
    assert tuple(tables[-3:]) == matplotlib.colormaps["cividis"](255, bytes=True)[:3]


def test_the_text_of_a_widget_is_stable_and_short(model, bytewise):
    shown = attention_explorer(model, bytewise, TEXT)
    expected = "AttentionExplorer: 19 tokens, 3 layers of 6 query heads on 2 key heads"
    assert repr(shown) == expected and len(expected) <= 110  # longer ones are cut in notebooks
    assert shown._repr_mimebundle_()[0]["text/plain"] == expected
    shown = attention_explorer(model, bytewise, TEXT, max_new_tokens=3, eos_token_id=[])
    assert "19 + 3 generated tokens" in repr(shown)


@pytest.mark.parametrize(
    ("error", "dtype", "said"),
    [
        (None, torch.float32, ""),
        (4e-5, torch.float32, "equal those of one pass: max|Δ| = 4e-05"),
        (
            6e-5,
            torch.float32,
            "differ from those of one pass: max|Δ| = 6e-05: " + BLAME.format("5e-05"),
        ),
        (4e-3, torch.bfloat16, "equal those of one pass: max|Δ| = 0.004, in bfloat16"),
        (
            0.3,
            torch.bfloat16,
            "differ from those of one pass: max|Δ| = 0.3, in bfloat16: " + BLAME.format("0.05"),
        ),
    ],
)
def test_the_check_of_the_cache_is_told(error, dtype, said):
    assert facts.check_sentence(error, dtype).removeprefix("Rows decoded with the cache ") == said


@pytest.mark.parametrize(
    ("error", "dtype", "layers", "verdict"),
    [
        (7e-5, torch.float32, 24, "equal"),  # the released model, in six continuations of 12 tokens
        (2e-4, torch.float32, 24, "differ"),
        (0.06, torch.bfloat16, 24, "equal"),
        (0.06, torch.bfloat16, 8, "differ"),
        (0.03, torch.float16, 8, "differ"),
    ],
)
def test_deeper_models_may_round_more(error, dtype, layers, verdict):
    assert f"cache {verdict}" in facts.check_sentence(error, dtype, layers)


def test_a_tokenizer_with_other_tokens_is_warned_of(small_config, bytewise):
    larger = Qwen2ForCausalLM(small_config(vocab_size=400, eos_token_id=256)).eval()
    with pytest.warns(UserWarning, match="has 259 tokens and the model 400: if it is not the"):
        attention_explorer(larger, bytewise, TEXT)


# -- the page and the figure -----------------------------------------------------------------------


def page_of(text):
    return json.loads(re.search(r'id="page">(.*?)</script>', text, re.S)[1])


def unfolded(layer, T):
    """What a page has of a layer, T*T bytes a head and a mask: it leaves out the future."""
    *maps, mask = torch.frombuffer(bytearray(layer), dtype=torch.uint8).split(
        [T * (T + 1) // 2] * 6 + [T * T]
    )
    whole = torch.zeros(7, T, T, dtype=torch.uint8)
    for head, rows in enumerate(maps):
        for q, row in enumerate(rows.split([*range(1, T + 1)])):
            whole[head, q, : q + 1] = row
    whole[6] = mask.view(T, T)
    return whole


def test_the_page_holds_everything(model, bytewise, tmp_path, capsys):
    added = {256: "<|endoftext|>", 257: "</script>"}
    bytewise = Qwen2TokenizerFast(bytewise.vocab, [], added_tokens=added)
    shown = attention_explorer(model, bytewise, "</script>the cat", max_new_tokens=2)
    path = shown.to_html(tmp_path / "page.html")
    text = path.read_text("utf-8")
    assert text == shown.to_html()
    assert capsys.readouterr().out == f"{path}: {len(text.encode()) / 1e6:.1f} MB, " + (
        "opens without a network\n"
    )
    page = page_of(text)
    blobs = {name: zlib.decompress(base64.b64decode(b)) for name, b in page["blobs"].items()}
    assert page["data"] == shown.data and page["query"] == shown.query
    T = len(shown.recording.ids)
    layers = [unfolded(blobs[f"layer {i}"], T) for i in range(3)]
    assert [layer.numpy().tobytes() for layer in layers] == [shown.payload(i) for i in range(3)]
    lens = [viz_lens.lens_rows(model, bytewise, shown.recording.hidden[:, t]) for t in range(T)]
    assert json.loads(blobs["lens"]) == lens
    assert "http" not in text.replace(page["blobs"]["lens"], "")


def test_a_page_that_is_too_large_is_refused(model, bytewise, monkeypatch, tmp_path):
    shown = attention_explorer(model, bytewise, TEXT)
    monkeypatch.setattr(explorer, "LARGEST_PAGE", 1000)
    monkeypatch.setattr(explorer, "lens_rows", None)  # it is refused before the lens is computed
    with pytest.raises(
        ValueError, match=r"would have at least 0\.\d MB, .* fewer layers=\[…\], or a short"
    ):
        shown.to_html(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_large_page_is_rounded_and_says_so(model, bytewise, monkeypatch, step):
    """Weights are as near as the page says, and as near as its size allows."""
    shown = attention_explorer(model, bytewise, "the cat saw a dog, " * 8)
    packed = partial(explorer._packed, strategy=zlib.Z_FILTERED)
    blobs = [packed(shown.page_layer(i, step)) for i in range(3)]
    blobs += [explorer._packed(b) for b in (shown.thumbnails, shown.norms, shown.colours)]
    room = sum(map(len, blobs)) + viz_shares.SHARE * 3 * 7 * len(shown.recording.ids)
    monkeypatch.setattr(explorer, "FINE_PAGE", room)  # just enough
    page = page_of(shown.to_html(lens=0))
    told = [float(n) for n in re.findall(r"within (0\.\d+)", page["data"]["rounded"])]
    below, above = told or (0.5 / 255, 1 / 255)
    assert told == ([] if step == 1 else [round(step / 510, 3), round(step / 255, 3)])
    T = len(shown.recording.ids)
    exact = model(torch.tensor([shown.recording.ids]), output_attentions=True).attentions
    for i, weights in enumerate(exact):
        layer = unfolded(zlib.decompress(base64.b64decode(page["blobs"][f"layer {i}"])), T)
        error = (record.from_bytes(layer[:-1]) - weights[0]).abs()
        assert error[weights[0] <= 0.25].max() < below + 1e-3 and error.max() < above + 1e-3
        assert torch.equal(layer[-1], shown.mask(i))
        assert (layer[:-1] % step == 0).all() and (layer[:-1] == 255).any()  # a weight of 1 stays


@pytest.mark.parametrize(
    ("every", "rows", "expected"),
    [(None, 3000, [0, 1, 2, 3]), (None, 19 * 2, [1, 3]), (None, 19, [3]), (1, 1, [0, 1, 2, 3])]
    + [(2, 3000, [1, 3]), (9, 3000, [3]), (0, 3000, [])],
)
def test_the_lens_of_a_page_reads_as_often_as_asked(
    model, bytewise, monkeypatch, every, rows, expected
):
    monkeypatch.setattr(viz_lens, "LENS_ROWS", rows)
    shown = attention_explorer(model, bytewise, TEXT)
    page = page_of(shown.to_html(lens=every))
    assert page["data"]["lens"] == [shown.data["lens"][place] for place in expected]
    said = {0: "was left out of this page; to_html(lens=1)", 1: "after the last layer alone"}
    said |= {2: "off every 2 layers; to_html(lens=1)", 4: ""}
    note = page["data"]["lensNote"]
    assert said[len(expected)] in note if len(expected) < 4 else note == ""
    if not expected:
        return
    lens = json.loads(zlib.decompress(base64.b64decode(page["blobs"]["lens"])))
    for token, rows in enumerate(lens):
        assert rows == viz_lens.lens_rows(model, bytewise, shown.recording.hidden[expected, token])


@pytest.mark.parametrize("lens", [-1, True, 1.5, "all"])
def test_a_lens_that_cannot_be_is_refused(model, bytewise, lens):
    with pytest.raises(ValueError, match="lens must be an integer, 0 or more, not "):
        attention_explorer(model, bytewise, TEXT).to_html(lens=lens)


def test_what_is_not_on_the_screen_is_not_computed(model, bytewise, monkeypatch):
    """The lens multiplies with the whole vocabulary: it waits until it is asked for."""
    monkeypatch.setattr(record, "predictions", None)
    attention_explorer(model, bytewise, TEXT).close()


@pytest.mark.parametrize("given", ["short", "padded", "generated", "long", "one"])
def test_the_figure_shows_the_chosen_head(model, bytewise, given):
    text, options = {"short": (TEXT, {}), "one": ("a", {})}.get(given, (TEXT, {}))
    if given == "padded":
        text = bytewise([TEXT], padding="max_length", max_length=24, padding_side="left")
    if given == "generated":
        options = {"max_new_tokens": 3}
    if given == "long":
        text = "ab$_" * 30
    shown = attention_explorer(model, bytewise, text, **options)
    shown.layer, shown.head = 1, 4
    figure = shown.static()
    figure.draw_without_rendering()
    titles = [axes.get_title() for axes in figure.axes]
    assert "Layer 1, head 4, key head 1, sliding 4" in titles
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == [*"012345", "key head 0", "key head 1"]
    named = figure.axes[titles.index("Layer 1, head 4, key head 1, sliding 4")]
    labels = [label.get_text() for label in named.get_yticklabels()]
    assert labels[0] == ("<|endoftext|>" if given == "padded" else visible_text(text[0]))
    assert len(labels) <= 40
    legend = named.get_legend()
    hatched = [text.get_text() for text in legend.get_texts()] if legend else []
    assert ("padding" in hatched) is (given == "padded")
    assert not legend or legend.get_frame().get_alpha() == 1  # no hatching behind its words


@pytest.mark.parametrize(("new", "wanted"), [(0, 5), (3, 5)])
def test_another_text_is_counted_before_it_is_put_in(model, bytewise, new, wanted):
    options = {"max_new_tokens": new, "eos_token_id": []} if new else {}
    shown = attention_explorer(model, bytewise, "a cat", **options)
    sent = []
    shown.send = lambda content, buffers=None: sent.append(content)
    for text in ("x", 'a "dog" \n'):
        shown._answer(None, {"name": f"count {json.dumps(text)}"}, [])
        assert sent.pop()["rows"] == [len(text), wanted]
    patches = {"patches": [[0, "mlp", 2]], "other": "x"}
    shown._answer(None, {"name": f"effect {json.dumps({'query': 4} | patches)}"}, [])
    assert sent.pop()["error"].startswith("the other text has 1 token and this one 5: change")


# -- side by side ----------------------------------------------------------------------------------


def test_two_texts_choose_together(model, bytewise):
    left, right = (attention_explorer(model, bytewise, text) for text in (TEXT, "a cat"))
    left.layer, left.head = 2, 3
    assert list(side_by_side(left, right).children) == [left, right]
    assert (right.layer, right.head) == (2, 3)
    right.layer, left.head, left.query = 0, 5, 4
    assert (
        (left.layer, left.head, left.query) == (right.layer, right.head, right.query) == (0, 5, 4)
    )
    left.query = 15  # the other text ends before
    assert right.query == 4
    right.query = 1
    assert left.query == 1
    left.key = 3
    assert right.key == 3
    left.key = 15
    assert right.key == 3
    right.key = None  # the strongest of each
    assert left.key is None
    left.key = 2
    left.read("a dog")  # places of another text
    assert left.key is right.key is None


def test_two_models_choose_together_as_far_as_both_have_it(model, bytewise, small_config):
    deep = small_config(vocab_size=260, eos_token_id=256, num_hidden_layers=5)
    left, right = (attention_explorer(m, bytewise, TEXT) for m in (model, Qwen2ForCausalLM(deep)))
    side_by_side(left, right)
    left.layer = 1
    right.layer = 4
    assert (left.layer, right.layer) == (1, 4)


def test_what_does_not_stand_side_by_side_is_refused(model, bytewise):
    one, two = (attention_explorer(model, bytewise, TEXT) for _ in range(2))
    with pytest.raises(TypeError, match="expected what attention_explorer made, not str"):
        side_by_side(one, TEXT)
    with pytest.raises(ValueError, match="one explorer: make a second"):
        side_by_side(one, one)
    two.tokenizer = Qwen2TokenizerFast(bytewise.vocab, [], added_tokens={256: "<|end|>"})
    with pytest.raises(ValueError, match="tokenizers differ, 259 and 257 tokens"):
        side_by_side(one, two)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"num_attention_heads": 12}, "6 heads on the left, 12 on the right."),
        ({"num_key_value_heads": 3}, "2 key/value heads on the left, 3 on the right."),
        ({"num_hidden_layers": 2}, "layers 0, 1, 2 on the left, 0, 1 on the right."),
    ],
    ids=str,
)
def test_a_difference_needs_the_same_cells(model, bytewise, small_config, changed, why):
    other = small_config(vocab_size=260, eos_token_id=256, **changed)
    left, right = (attention_explorer(m, bytewise, TEXT) for m in (model, Qwen2ForCausalLM(other)))
    side_by_side(left, right)
    assert (left.beside["why"], right.beside["why"]) == (why, why)
    assert (left.beside["side"], right.beside["side"]) == ("right", "left")


def test_each_side_says_which_text_or_model_it_is(model, bytewise, small_config):
    left, right = (attention_explorer(model, bytewise, text) for text in ("a cat", "a dog"))
    side_by_side(left, right)
    assert (left.beside["name"], right.beside["name"]) == ("“a cat”", "“a dog”")
    right.read("a pig")
    assert (left.beside["name"], right.beside["name"]) == ("“a cat”", "“a pig”")
    deep = Qwen2ForCausalLM(small_config(vocab_size=260, eos_token_id=256, num_hidden_layers=5)).to(
        torch.bfloat16
    )
    other = attention_explorer(deep, bytewise, "a cat")
    side_by_side(left, other)
    counts = [sum(p.numel() for p in one.parameters()) for one in (model, deep)]
    assert left.beside["name"] == f"3 layers, {counts[0]:,} parameters, float32"
    assert other.beside["name"] == f"5 layers, {counts[1]:,} parameters, bfloat16"
    small = attention_explorer(quantize(copy.deepcopy(model), "int8"), bytewise, "a cat")
    side_by_side(left, small)
    assert small.beside["name"].endswith(" parameters, int8")
    side_by_side(left, other, names=("before", "after"))
    assert (left.beside["name"], other.beside["name"]) == ("before", "after")
    with pytest.raises(ValueError, match="names='ab': expected two"):
        side_by_side(left, other, names="ab")


def test_a_saved_pair_has_a_picture_of_both(model, bytewise, monkeypatch):
    """As of one explorer: outputs of its own, and what is chosen is seen."""
    both = [attention_explorer(model, bytewise, text) for text in ("a cat", "a dog saw a pig")]
    shown, given = side_by_side(*both), []
    monkeypatch.setattr(static, "display", lambda *outputs, raw: given.extend(outputs))
    shown._ipython_display_()
    kinds = [["application/vnd.jupyter.widget-view+json", "text/plain"], ["text/html"]]
    assert [sorted(output) for output in given] == [*kinds, ["image/png"]]
    pixels = imread(BytesIO(base64.b64decode(given[2]["image/png"])))
    bottom = len(pixels)
    for one in reversed(both):  # from below: figure, name, figure, name
        figure = imread(BytesIO(base64.b64decode(one._repr_mimebundle_()[0]["image/png"])))
        high, wide = figure.shape[:2]
        assert abs(pixels[bottom - high : bottom, :wide] - figure).max() < 0.01
        name = pixels[bottom - high - 28 : bottom - high]
        assert name.shape == (28, wide, 4) and name[..., 0].min() < 0.1  # words
        bottom -= high + 28
    assert bottom == 0
    shown.close()
    shown._ipython_display_()
    assert len(given) == 3


def test_each_explorer_answers_for_the_one_beside_it(model, bytewise):
    left, right = (attention_explorer(model, bytewise, text) for text in ("a cat", "a dog"))
    side_by_side(left, right)
    sent, before = [], left.beside["turn"]
    left.send = lambda content, buffers=None: sent.append((content["name"], *buffers))
    for name in ("layer 1", "norms"):
        left._answer(None, {"name": f"beside {before} {name}"}, [])
    assert sent == [
        (f"beside {before} layer 1", right.payload(1)),
        (f"beside {before} norms", right.norms),
    ]
    assert right.payload(1) != left.payload(1) and right.norms != left.norms
    right.read("a cat sat")
    assert left.beside["turn"] != before  # what the browser has of it is old
    assert left.beside["why"] == "5 tokens on the left, 9 on the right."
    right.read("a pig")
    assert left.beside["why"] == right.beside["why"] == ""


# -- the browser's part ----------------------------------------------------------------------------


def test_the_files_of_the_browser_are_one_module():
    """Each reads in one sitting; none is forgotten; the page and the widget get the same."""
    files = sorted(path.stem for path in (explorer.HERE / "js").glob("*.js"))
    assert sorted(explorer.PARTS) == files
    for part in explorer.PARTS:
        text = (explorer.HERE / "js" / f"{part}.js").read_text("utf-8")
        assert text in explorer.MODULE and len(text.splitlines()) <= 300
        assert text.startswith("// ") and "\nimport " not in text
    names = re.findall(r"^(?:function|const) (\w+)", explorer.MODULE, re.M)
    assert len(names) == len(set(names)) > 30  # one scope holds them all
    assert explorer.MODULE.count("\nexport ") == 1
