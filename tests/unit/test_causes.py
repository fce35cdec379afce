"""Causes: shares add up, known causes are found, and changes are those that others compute."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers

from qwen2_edu import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, capture
from qwen2_edu.causes import ablate, attribution, cut, effect, follow, patch
from qwen2_edu.quantize import quantize

SHAPE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
KINDS = {
    "full": {},
    "windows": dict(use_sliding_window=True, sliding_window=5, max_window_layers=2),
    "tied": dict(tie_word_embeddings=True),
}


def build(kind: str = "full") -> Qwen2ForCausalLM:
    """Random everywhere, norms and biases too."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, **KINDS[kind])).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.4 + ("norm" in name))
    return model


@pytest.fixture(params=[*KINDS, "tiny"])
def model(request):
    if request.param == "tiny":
        return AutoModelForCausalLM.from_pretrained("tiny", dtype="float32")
    return build(request.param)


@pytest.fixture
def ids():
    return torch.randint(0, 64, (1, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def other(ids):
    changed = ids.clone()
    changed[0, 4] = (ids[0, 4] + 1) % 64
    return changed


def logits_of(model, ids, position=-1):
    with torch.no_grad():
        return model(ids, use_cache=False).logits[0, position]


def total(shares) -> float:
    return sum(share.sum() for share in shares).item()


# -- reading, and the sum --------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 7, -1])
def test_the_shares_are_the_logit(model, ids, position):
    logits = logits_of(model, ids, position)
    trace = follow(model, ids)
    torch.testing.assert_close(trace.logits(position), logits, atol=2e-5, rtol=0)
    for token in (0, 17, 63):
        shares = attribution(trace, token, position)
        L, H = model.config.num_hidden_layers, model.config.num_attention_heads
        assert (shares.heads.shape, shares.mlps.shape) == ((L, H), (L,))
        assert total(shares) == pytest.approx(logits[token].item(), abs=5e-5)


def test_what_flowed_is_what_capture_records(model, ids):
    with torch.no_grad(), capture(model) as record:
        model(ids, use_cache=False)
    flow = follow(model, ids).flow
    for mine, theirs in (
        (flow["stream"], record.hidden_states),
        (flow["weights"], record.attentions),
    ):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)


def test_the_same_in_bfloat16(ids):
    model = build().bfloat16()
    trace = follow(model, ids)
    torch.testing.assert_close(trace.logits(), logits_of(model, ids).float(), atol=0.3, rtol=0.05)


# -- a model whose cause is known ------------------------------------------------------------------


@pytest.fixture
def known():
    """Only head 2 of layer 1 acts: it looks evenly, copies feature 0 of the stream to feature 3,
    and adds 0.5 there always. No MLP acts. Token t is feature 0 = t, feature 5 = 1."""
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    D = model.config.head_dim  # 8
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(float("norm" in name))
        model.model.embed_tokens.weight[:, 0] = torch.arange(64.0)
        model.model.embed_tokens.weight[:, 5] = 1
        attention = model.model.layers[1].self_attn
        attention.v_proj.weight[D, 0] = 1  # key/value head 1 serves heads 2 and 3
        attention.v_proj.bias[D] = 0.5
        attention.o_proj.weight[3, 2 * D] = 1
        model.lm_head.weight[7, 3] = 1  # token 7 reads feature 3
    return model


def normed(ids):
    """What the head reads: feature 0 of each token after the norm, by hand."""
    x = ids[0].float()
    return x / ((x**2 + 1) / 32 + 1e-6).sqrt()


def test_attribution_names_the_head_that_acts(known, ids):
    trace, said = follow(known, ids), normed(ids).mean()
    x = torch.tensor([ids[0, -1].item(), 1.0, said + 0.5])  # features 0, 5, 3
    size = (x.pow(2).sum() / 32 + 1e-6).sqrt()
    shares = attribution(trace, 7)
    assert shares.heads[1, 2].item() == pytest.approx((said / size).item(), rel=1e-5)
    assert shares.biases[1, 2].item() == pytest.approx((0.5 / size).item(), rel=1e-5)
    rest = [shares.embedding, shares.mlps, shares.heads, shares.biases]
    rest[2][1, 2] = rest[3][1, 2] = 0
    assert all(not share.any() for share in rest)


def test_only_the_head_that_acts_is_missed(known, ids):
    trace = follow(known, ids)
    before = trace.logits()[7].item()
    for layer in range(4):
        for head in range(4):
            found = effect(trace, [ablate(trace, layer, head)], 7)
            assert found.delta == (-before if (layer, head) == (1, 2) else 0.0)
    mean = effect(trace, [ablate(trace, 1, 2, "mean")], 7)
    running = normed(ids).cumsum(0) / torch.arange(1, 13) + 0.5  # what it says at each position
    x = torch.tensor([ids[0, -1].item(), 1.0, running.mean()])
    expected = running.mean() / (x.pow(2).sum() / 32 + 1e-6).sqrt()
    assert mean.logits[7].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("key", [0, 4, 11])
def test_a_cut_wire_takes_its_key_out_of_the_mean(known, ids, key):
    trace, last = follow(known, ids), ids[0, -1].item()
    said = normed(ids)[torch.arange(12) != key].mean() + 0.5
    expected = said / (torch.tensor([last, 1.0, said]).pow(2).sum() / 32 + 1e-6).sqrt()
    found = effect(trace, [cut(trace, 1, 2, 11, key)], 7)
    assert found.logits[7].item() == pytest.approx(expected.item(), rel=1e-5)
    assert effect(trace, [cut(trace, 1, 3, 11, key)], 7).delta == 0  # its neighbour does not act
    assert effect(trace, [cut(trace, 1, 2, 10, min(key, 10))], 7).delta == 0  # another query


# -- against others --------------------------------------------------------------------------------


def test_ablation_is_a_zero_in_the_output_matrix(model, ids):
    trace, D = follow(model, ids), model.config.head_dim
    found = effect(trace, [ablate(trace, 1, 3), ablate(trace, 2, 0)], 5, position=8)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, 3 * D : 4 * D] = 0
        model.model.layers[2].self_attn.o_proj.weight[:, :D] = 0
    expected = logits_of(model, ids, 8)
    torch.testing.assert_close(found.logits, expected, atol=5e-5, rtol=0)
    assert found.delta == pytest.approx((expected - trace.logits(8))[5].item(), abs=5e-5)
    chances, best = expected.softmax(-1).topk(5)
    assert [i for i, _ in found.top] == best.tolist()
    assert [p for _, p in found.top] == pytest.approx(chances.tolist(), abs=1e-4)


@pytest.mark.parametrize("query, key", [(11, 3), (6, 6), (6, 0)])
def test_a_cut_wire_is_a_masked_key_of_transformers(ids, query, key):
    """In all layers at once, for that is where a mask of theirs acts."""
    model = build()
    config = transformers.Qwen2Config(**SHAPE, attn_implementation="eager")
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    theirs.load_state_dict(model.state_dict())
    mask = torch.full((12, 12), -1e30).triu(1).repeat(1, 4, 1, 1)  # (B, H, T, S)
    mask[0, 2, query, key] = -1e30
    trace = follow(model, ids)
    found = effect(trace, [cut(trace, layer, 2, query, key) for layer in range(4)], 5)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).logits[0, -1]
    torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=0)


def test_a_query_with_nothing_left_says_nothing(ids):
    model, one = build(), ids[:, :1]
    trace = follow(model, one)
    blind = effect(trace, [cut(trace, 1, 2, 0, 0)], 5).logits
    torch.testing.assert_close(blind, effect(trace, [ablate(trace, 1, 2)], 5).logits)


def test_patching_everything_brings_the_other_text(model, ids, other):
    trace, source = follow(model, ids), follow(model, other)
    for layer in range(4):
        found = effect(trace, [patch(trace, source, layer, "stream")], 5)
        torch.testing.assert_close(found.logits, source.logits(), atol=5e-5, rtol=0)
    later = effect(trace, [patch(trace, source, 0, "stream", [4])], 5)  # the token that differs
    torch.testing.assert_close(later.logits, source.logits(), atol=5e-5, rtol=0)
    assert effect(trace, [patch(trace, source, 0, "stream", [0, 1, 2, 3, 5])], 5).delta == 0
    assert effect(trace, [patch(trace, trace, 2, "stream")], 5).delta == pytest.approx(0, abs=5e-5)


def test_patching_all_heads_and_the_mlp_of_a_layer_is_patching_the_stream_after_it(
    model, ids, other
):
    """If the streams before the layer are the same; a head and an MLP come one by one too."""
    trace, source = follow(model, ids), follow(model, other)
    heads = range(model.config.num_attention_heads)
    edits = [patch(trace, source, 0, head, [9, -1]) for head in heads]
    edits += [patch(trace, source, 0, "mlp", [9, 11])]  # -1 is 11; the tokens there are the same
    found = effect(trace, edits, 5)
    expected = effect(trace, [patch(trace, source, 1, "stream", [9, 11])], 5)
    torch.testing.assert_close(found.logits, expected.logits, atol=5e-5, rtol=0)
    assert abs(found.delta) > 1e-3 and abs(effect(trace, edits[:1], 5).delta - found.delta) > 1e-3


# -- what holds for all ----------------------------------------------------------------------------


def test_only_what_can_differ_is_computed_again(ids, monkeypatch):
    model = build("windows")
    trace, rows = follow(model, ids), []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[1]))
    effect(trace, [cut(trace, 2, 1, 10, 9)], 5)
    assert rows == [2, 2]
    effect(trace, [cut(trace, 2, 1, 10, 9)], 5, position=9)
    effect(trace, [], 5)
    assert rows == [2, 2]  # the future, or nothing


def test_threads_do_not_see_each_other(ids):
    model = build()
    trace, plain, answers = follow(model, ids), logits_of(model, ids), []

    def work():
        for _ in range(20):
            answers.append((effect(trace, [ablate(trace, 1, 2)], 5).delta, logits_of(model, ids)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len({delta for delta, _ in answers}) == 1 and len(answers) == 60
    assert all(torch.equal(logits, plain) for _, logits in answers)


def test_nothing_is_changed_by_looking(ids, other):
    model = build()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trace, source = follow(model, ids), follow(model, other)
    kept = {name: [one.clone() for one in flow] for name, flow in trace.flow.items()}
    edits = [ablate(trace, 1, 2), cut(trace, 0, 1, 7, 3), patch(trace, source, 2, "mlp")]
    one, two = effect(trace, edits, 5), effect(trace, edits, 5)
    assert one.delta == two.delta and torch.equal(one.logits, two.logits)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(
        torch.equal(a, b)
        for name in kept
        for a, b in zip(kept[name], trace.flow[name], strict=True)
    )


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda t: ablate(t, 4, 0), "layer 4, head 0: there are 4 layers of 4 heads"),
        (lambda t: ablate(t, 0, -1), "head -1"),
        (lambda t: ablate(t, 0, 1, "median"), "to must be one of"),
        (lambda t: cut(t, 0, 4, 3, 3), "head 4"),
        (lambda t: cut(t, 0, 0, 3, 4), "query=3, key=4: expected 0 ≤ key ≤ query < 12"),
        (lambda t: cut(t, 0, 0, 12, 4), "query=12"),
        (lambda t: patch(t, t, 0, "mlps"), "part must be one of"),
        (lambda t: patch(t, t, 0, 4), "head 4"),
        (lambda t: patch(t, follow(t.model, t.input_ids[:, 1:]), 0, "mlp"), "12 and of 11 tokens"),
        (lambda t: follow(t.model, t.input_ids[0]), "one text, (1, T)"),
        (lambda t: follow(t.model.model, t.input_ids), "causal language model"),
        (lambda t: follow(t.model, t.input_ids + 64), "ids are 0 to 63"),
        (lambda t: attribution(follow(quantize(t.model, "int8"), t.input_ids), 3), "are quantised"),
    ],
)
def test_what_is_not_there_is_refused(ids, make, says):
    with pytest.raises(ValueError) as error:
        make(follow(build(), ids))
    assert says in str(error.value)
