"""What users of such software met in a forward pass: padding, caches, half precision, threads, long
texts, outputs, unknown arguments. What is right is what transformers computes from the same
parameters.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers
from torch.utils import _pytree as pytree

import qwen2_edu
from qwen2_edu import DynamicCache, Qwen2Config, Qwen2ForCausalLM, StaticCache
from qwen2_edu.files.weights import load_weights

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
W = 5
STACKS = {
    "full": {},
    "mixed": {"use_sliding_window": True, "sliding_window": W, "max_window_layers": 1},
}


@pytest.fixture(scope="module")
def pair(randomise):
    """`pair(cls, **fields)`: our model and transformers', every parameter random and equal."""

    def make(cls="Qwen2ForCausalLM", attention="sdpa", **fields):
        config = Qwen2Config(**{**SMALL, **fields}, attn_implementation=attention)
        ours = randomise(getattr(qwen2_edu, cls)(config))
        told = config.to_dict() | {"num_labels": config.num_labels}
        theirs = getattr(transformers, cls)(
            transformers.Qwen2Config(**told, attn_implementation=attention)
        )
        theirs.load_state_dict(ours.state_dict())
        return ours, theirs.eval()

    return make


def close(a, b, tolerance=2e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def ids_of(rows, length, seed=0):
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


# -- decided as transformers does ------------------------------------------------------------------

MASKS = {
    "right": [[1] * 12, [1] * 7 + [0] * 5, [1] + [0] * 11],
    "left": [[1] * 12, [0] * 5 + [1] * 7, [0] * 11 + [1]],
    "holes": [[1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1], [1] * 12],
    "rising": torch.ones(12, 12).tril()[[2, 6, 11]].tolist(),  # as transformers' own tests have it
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("side", MASKS)
@torch.no_grad()
def test_padding_anywhere(pair, side, stack, attention):
    ours, theirs = pair(attention=attention, **STACKS[stack])
    ids, mask = ids_of(3, 12), torch.tensor(MASKS[side]).long()
    a, b = ours(ids, mask, labels=ids), theirs(ids, attention_mask=mask, labels=ids)
    # A query that sees no key at all answers nothing that could be compared.
    seen = torch.ones_like(mask).bool() if stack == "full" else mask.bool()
    seen &= mask.cumsum(-1) > 0
    close(a.logits[seen], b.logits[seen])
    if stack == "full" and side != "left":  # labels that stand on padding count, as there
        whole = mask[:, 0].bool()
        a, b = (
            m(ids[whole], attention_mask=mask[whole], labels=ids[whole]) for m in (ours, theirs)
        )
        close(a.loss, b.loss, 1e-6)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("side", ["right", "holes", "left"])
@torch.no_grad()
def test_a_mask_goes_on_with_a_cache(pair, side, kind):
    """In parts, with the mask of everything so far, as transformers wants it."""
    ours, theirs = pair()
    ids, mask = ids_of(3, 16), torch.tensor(MASKS[side]).long()
    mask = torch.cat((mask, torch.ones(3, 4).long()), 1)
    want = theirs(ids, attention_mask=mask).logits
    cache = DynamicCache(ours.config) if kind == "dynamic" else StaticCache(ours.config, 16)
    for start, end in ((0, 7), (7, 12), (12, 13), (13, 16)):
        got = ours(ids[:, start:end], mask[:, :end], past_key_values=cache).logits
        real = mask[:, start:end].bool()
        close(got[real], want[:, start:end][real])


@torch.no_grad()
def test_a_hole_in_generate_is_left_out_as_there(pair):
    ours, theirs = pair()
    ids, mask = ids_of(3, 12), torch.tensor(MASKS["holes"]).long()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        ours.generate(ids, mask, **options), theirs.generate(ids, attention_mask=mask, **options)
    )


@torch.no_grad()
def test_positions_that_jump_with_a_cache_only_rotate(pair):
    ours, theirs = pair()
    ids, jump = ids_of(2, 9), torch.tensor([[0, 1, 2, 7, 8, 9, 20, 21, 22]])
    a = ours(ids, position_ids=jump, use_cache=True)
    b = theirs(ids, position_ids=jump, use_cache=True)
    close(a.logits, b.logits)
    more, then = ids_of(2, 3, seed=1), torch.tensor([[30, 31, 50]])
    for positions in (then, None):
        mine = ours(more, position_ids=positions, past_key_values=deepcopy(a.past_key_values))
        other = theirs(more, position_ids=positions, past_key_values=deepcopy(b.past_key_values))
        close(mine.logits, other.logits)


@pytest.mark.parametrize(
    "wrong", [[1] * 6 + [1] * 3, [0, 0, 0, 1, 1, 1] + [1] * 3, [0, 1, 1, 0, 1, 1] + [1] * 3]
)
@torch.no_grad()
def test_a_mask_that_contradicts_the_cache_is_refused(pair, wrong):
    ours, _ = pair(**STACKS["mixed"])
    ids, mask = ids_of(1, 9), torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1]])
    cache = ours(ids[:, :6], mask[:, :6]).past_key_values
    with pytest.raises(ValueError, match="disagree on which cached tokens are padding"):
        ours(ids[:, 6:], torch.tensor([wrong]), past_key_values=deepcopy(cache))
    ours(ids[:, 6:], mask, past_key_values=cache)


@torch.no_grad()
def test_a_text_that_ends_in_the_padding_token(pair):
    """With a mask the mask decides, which transformers does not read; without one, as there."""
    ours, theirs = pair("Qwen2ForSequenceClassification", num_labels=3, pad_token_id=2)
    ids = ids_of(2, 8)
    ids[0, 6:], ids[1, 7] = 2, 2
    close(ours(ids).logits, theirs(ids).logits)
    mask = torch.tensor([[1] * 8, [1] * 7 + [0]])
    alone = theirs(torch.cat((ids[:1], torch.tensor([[5]])), 1)[:, :8])  # ends in the padding id
    scores = theirs.score(theirs.model(ids, attention_mask=mask).last_hidden_state)
    close(ours(ids, mask).logits, torch.stack((scores[0, 7], scores[1, 6])))
    assert not torch.allclose(ours(ids, mask).logits[:1], alone.logits)
    embeds = theirs.get_input_embeddings()(ids)
    close(ours(inputs_embeds=embeds).logits, theirs(inputs_embeds=embeds).logits)


@torch.no_grad()
def test_spans(pair):
    ours, theirs = pair("Qwen2ForQuestionAnswering")
    ids = ids_of(3, 8)
    spans = {
        "start_positions": torch.tensor([-3, 1, 8]),
        "end_positions": torch.tensor([4, -1, 30]),
    }
    close(ours(ids, **spans).loss, theirs(ids, **spans).loss)
    columns = {name: at[:, None] for name, at in spans.items()}
    close(ours(ids, **columns).loss, theirs(ids, **columns).loss)
    counted = {**spans, "num_items_in_batch": 5}
    close(ours(ids, **counted).loss, theirs(ids, **counted).loss)
    one = {"start_positions": spans["start_positions"]}
    assert ours(ids, **one).loss is None and theirs(ids, **one).loss is None


@pytest.mark.parametrize(
    ("cls", "labels"),
    [
        ("Qwen2ForCausalLM", ids_of(2, 8)),
        ("Qwen2ForTokenClassification", torch.randint(0, 2, (2, 8))),
        ("Qwen2ForSequenceClassification", torch.tensor([0, 1])),
    ],
)
@pytest.mark.parametrize("count", [7, torch.tensor(7), None])
@torch.no_grad()
def test_num_items_in_batch(pair, cls, labels, count):
    ours, theirs = pair(cls, pad_token_id=2)
    ids = ids_of(2, 8)
    loss = ours(ids, labels=labels, num_items_in_batch=count).loss
    if cls == "Qwen2ForCausalLM" or count is None:
        close(loss, theirs(ids, labels=labels, num_items_in_batch=count).loss, 1e-6)
    else:  # transformers' own heads do not pass the number on
        close(loss, theirs(ids, labels=labels).loss * labels.numel() / 7, 1e-6)


def test_options_of_the_token_head(pair):
    fields = {"hidden_dropout": 0.4, "token_classification_bias": False}
    ours, theirs = pair("Qwen2ForTokenClassification", **fields)
    assert ours.dropout.p == theirs.dropout.p == 0.4
    assert ours.score.bias is None and theirs.score.bias is None
    ours, theirs = pair("Qwen2ForTokenClassification", classifier_dropout=0.3, hidden_dropout=0.4)
    assert ours.dropout.p == theirs.dropout.p == 0.3


# -- half precision, inference_mode, names ---------------------------------------------------------


@torch.no_grad()
def test_fp16_does_not_overflow_before_the_scale(pair):
    """64 features of 35 on both sides: q @ k is 78,400, scaled 6,930."""
    ours, theirs = pair(hidden_size=256, num_attention_heads=2, num_key_value_heads=1)
    for model in (ours, theirs):
        for layer in model.model.layers:
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                part.bias.view(-1, 128)[:, 32:64] = 35.0
                part.bias.view(-1, 128)[:, 96:] = 35.0
    ids = ids_of(1, 12)
    for attention in ("sdpa", "eager"):
        half = Qwen2ForCausalLM(
            Qwen2Config(**ours.config.to_dict(), attn_implementation=attention)
        ).half()
        half.load_state_dict(ours.state_dict())
        half.eval()
        plain, maps = half(ids).logits, half(ids, output_attentions=True)
        assert plain.isfinite().all() and maps.logits.isfinite().all()
        assert all(weights.isfinite().all() for weights in maps.attentions)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("gradients", [False, True])
def test_a_cache_grown_under_inference_mode_goes_on_outside(pair, stack, kind, gradients):
    ours, theirs = pair(**STACKS[stack])
    ids = ids_of(1, 14)
    with torch.inference_mode():
        cache = DynamicCache(ours.config) if kind == "dynamic" else StaticCache(ours.config, 20)
        ours(ids[:, :4], past_key_values=cache)
        ours(ids[:, 4:7], past_key_values=cache)
    with torch.set_grad_enabled(gradients and kind == "dynamic"):
        want = theirs(ids).logits
        parts = [
            ours(part, past_key_values=cache).logits for part in ids[:, 7:].split([1, 1, 5], 1)
        ]
    close(torch.cat(parts, 1), want[:, 7:])
    if parts[0].requires_grad:
        parts[-1].sum().backward()
    if kind == "static":
        cache.reset()


def test_frequencies_of_old_checkpoints_are_ignored_with_and_without_a_prefix(pair, tmp_path):
    from safetensors.torch import save_file

    ours, _ = pair()
    trunk = {name: t.clone() for name, t in ours.model.state_dict().items()}
    old = {
        "rotary_emb.inv_freq": torch.ones(4),
        "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    save_file(trunk | old, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = qwen2_edu.Qwen2Model(ours.config)
    found = load_weights(model, tmp_path)
    assert {name for names in found.values() for name in names} == {*old}


# -- threads, long texts ---------------------------------------------------------------------------


def test_dynamic_rope_in_threads(pair):
    """Texts of different lengths turn at different speeds: each pass at its own."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    ours, _ = pair(rope_parameters=rope, max_position_embeddings=8)
    texts = [ids_of(1, 6 + 13 * n, seed=n) for n in range(4)]
    with torch.no_grad():
        right = [ours(ids).logits for ids in texts]
    before, wrong = ours.model.rotary_emb.frequencies.clone(), []

    def read(ids, want):
        for _ in range(60):
            with torch.no_grad():
                if not torch.equal(ours(ids).logits, want):
                    wrong.append(ids.shape[1])

    threads = [threading.Thread(target=read, args=pair) for pair in zip(texts, right, strict=True)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
    assert torch.equal(ours.model.rotary_emb.frequencies, before)


def test_threads_that_generate_on_one_model(pair):
    ours, theirs = pair(**STACKS["mixed"])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    texts = [ids_of(1, 5 + n, seed=n) for n in range(4)]
    right, wrong = [theirs.generate(ids, **options) for ids in texts], []

    def write(ids, want):
        for _ in range(5):
            if not torch.equal(ours.generate(ids, **options), want):
                wrong.append(ids.shape[1])

    threads = [threading.Thread(target=write, args=pair) for pair in zip(texts, right, strict=True)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


@pytest.mark.parametrize("rope", [4.0, 2.5])
@torch.no_grad()
def test_dynamic_rope_of_a_fresh_model_is_transformers(pair, rope):
    for length in (6, 30, 12):
        ours, theirs = pair(
            rope_parameters={"rope_type": "dynamic", "factor": rope, "rope_theta": 1e4},
            max_position_embeddings=8,
        )
        ids = ids_of(1, length)
        close(ours(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("fields", [{}, {"is_causal": False}])
@torch.no_grad()
def test_long_texts_in_blocks(pair, monkeypatch, fields, attention):
    """Blocks of 7 queries, so that a short text has many: padding, packing, caches, both ways."""
    from qwen2_edu import masks, model

    ours, theirs = pair(attention=attention, **STACKS["mixed"], **fields)
    ids, mask = ids_of(3, 40), torch.ones(3, 40).long()
    mask[1, :9], mask[2, 30:] = 0, 0
    documents = torch.cat([torch.arange(n) for n in (3, 20, 17)])[None].expand(3, -1)
    for part in (masks, model):
        monkeypatch.setattr(part, "BLOCK", 7)
    close(ours(ids).logits, theirs(ids).logits)
    close(ours(ids, mask).logits[mask.bool()], theirs(ids, attention_mask=mask).logits[mask.bool()])
    packed = {"position_ids": documents, "use_cache": False}
    if not fields:
        close(ours(ids, **packed).logits, theirs(ids, **packed).logits)
        cache = ours(ids[:, :11], use_cache=True).past_key_values
        close(ours(ids[:, 11:], past_key_values=cache).logits, theirs(ids).logits[:, 11:])
    maps = ours(ids, output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in maps] == [(3, 4, 40, 40)] * 3


PEAK = """
import resource, sys, torch
from qwen2_edu import Qwen2Config, Qwen2Model
torch.set_num_threads(1)
config = Qwen2Config(vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=1, num_key_value_heads=1, use_sliding_window=True, sliding_window=512,
    max_window_layers=1)
model, T = Qwen2Model(config).eval(), int(sys.argv[1])
with torch.no_grad():
    model(torch.zeros(1, 64, dtype=torch.long))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model(torch.zeros(1, T, dtype=torch.long))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_of_a_long_prefill_does_not_grow_as_the_square():
    """Whole, the mask of 8,192 tokens alone is 256 MiB in fp32, and its making doubles that."""
    run = [sys.executable, "-c", PEAK, "8192"]
    grown = float(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert grown < 100, f"{grown:.0f} MiB"
    assert resource.RUSAGE_SELF == 0  # what the program above asks about: itself


# -- outputs ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_outputs_are_read_as_transformers_outputs_are(pair):
    ours, theirs = pair()
    ids = ids_of(2, 6)
    options = {"labels": ids, "output_hidden_states": True, "output_attentions": True}
    a, b = ours(ids, **options), theirs(ids, **options)
    assert list(a) == list(a.keys()) == list(b.keys())
    assert len(a) == len(a.to_tuple()) == len(b.to_tuple())
    close(a[0], b[0])
    close(a["logits"], b["logits"])
    close(a[:2][1], b[:2][1])
    assert a[0] is a.loss and a["logits"] is a.logits and a.get("nothing") is None
    assert isinstance(a, dict) and {**a}.keys() == {**b}.keys() and "loss" in a
    a["loss"] = a.loss * 2
    assert a.loss is a["loss"]
    a.loss = None
    with pytest.raises(KeyError):
        ours(ids)["loss"]
    with pytest.raises(IndexError):
        ours(ids)[7]


@pytest.mark.parametrize(
    "cls", [n for n in qwen2_edu.__all__ if n.startswith(("Qwen2For", "Qwen2Model"))]
)
@torch.no_grad()
def test_a_tuple_on_request_and_a_pytree(pair, cls):
    ours, theirs = pair(cls, pad_token_id=2)
    ids = ids_of(2, 6)
    a, b = (
        ours(ids, use_cache=False, return_dict=False),
        theirs(ids, use_cache=False, return_dict=False),
    )
    assert type(a) is type(b) is tuple
    for mine, other in zip(a, b, strict=True):
        close(mine, other)
    out = ours(ids, use_cache=False, return_dict=True)
    leaves, spec = pytree.tree_flatten(out)
    again = pytree.tree_unflatten(leaves, spec)
    assert type(again) is type(out) and all(map(torch.equal, leaves, again.to_tuple()))
    doubled = pytree.tree_map(lambda t: t * 2, out)
    assert torch.equal(doubled[0], out[0] * 2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_forward_pass_exports(pair, attention):
    ours, theirs = pair(attention=attention, **STACKS["mixed"])
    ids = ids_of(2, 12)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(ours, (ids,), dynamic_shapes=(dynamic,)).module()
    for other in (ids, ids_of(3, 30)):
        close(program(other).logits, theirs(other).logits)
    mask = torch.ones_like(ids)
    program = torch.export.export(ours, (ids,), {"attention_mask": mask}).module()
    mask[0, :4] = 0
    close(
        program(ids, attention_mask=mask).logits[mask.bool()],
        theirs(ids, attention_mask=mask).logits[mask.bool()],
    )


@torch.no_grad()
def test_a_configuration_may_ask_for_states_and_maps(pair):
    ours, _ = pair(attention="eager", output_hidden_states=True, output_attentions=True)
    out = ours(ids_of(1, 5))
    assert (len(out.hidden_states), len(out.attentions)) == (4, 3)
    assert ours(ids_of(1, 5), output_hidden_states=False).hidden_states is None


@torch.no_grad()
def test_numbers_of_numpy(pair):
    ours, theirs = pair()
    ids = ids_of(1, 6)
    for kept in (np.int64(2), torch.tensor(2), 2):
        close(ours(ids, logits_to_keep=kept).logits, theirs(ids).logits[:, -2:])
    rows = torch.tensor([0, 3])
    close(ours(ids, logits_to_keep=rows).logits, theirs(ids).logits[:, rows])


# -- what is unknown is refused by name ------------------------------------------------------------


@pytest.mark.parametrize(
    "cls", [n for n in qwen2_edu.__all__ if n.startswith(("Qwen2For", "Qwen2Model"))]
)
@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"is_causal": False}, "is_causal.*configuration"),
        ({"token_type_ids": torch.zeros(1, 5)}, "token_type_ids.*leave it out"),
        ({"cache_position": torch.arange(5)}, "cache_position.*counts by itself"),
        ({"attn_mask": torch.ones(1, 5)}, "attn_mask.*did you mean attention_mask"),
        ({"past_key_value": 3}, "past_key_value.*did you mean past_key_values"),
        ({"anything": 1}, "anything.*the options are"),
    ],
)
def test_unknown_arguments_are_refused_by_name(pair, cls, option, says):
    ours, _ = pair(cls, pad_token_id=2)
    with pytest.raises(TypeError, match=rf"forward\(\) has no option '{says}"):
        ours(ids_of(1, 5), **option)
    (name,) = option
    ours(ids_of(1, 5), **{name: None})  # "not said" is no fault
