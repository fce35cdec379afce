"""The pieces of the model, each against numbers worked out by hand or PyTorch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2_edu import (
    DynamicCache,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
    StaticCache,
    capture,
)
from qwen2_edu.attention import attention_weights, eager_attention, sdpa_attention
from qwen2_edu.layers import RMSNorm, SwiGLU
from qwen2_edu.masks import additive, tokens_of_own_document, visible
from qwen2_edu.model import next_token_loss
from qwen2_edu.rope import RotaryEmbedding, apply_rope, rope_frequencies, rotate_half


def test_rms_norm_by_hand():
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 10.0])
    # the mean of 9 and 16 is 12.5
    expected = torch.tensor([3.0, 40.0]) / math.sqrt(12.5)
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), expected)
    assert torch.equal(RMSNorm(4)(torch.zeros(4)), torch.zeros(4))  # epsilon stands in the root


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_against_pytorch(dtype):
    x, norm = torch.randn(3, 64).to(dtype) * 30, RMSNorm(64, 1e-6)
    norm.weight.data = torch.randn(64)
    expected = torch.nn.functional.rms_norm(x.double(), (64,), norm.weight.double(), 1e-6)
    out = norm.to(dtype)(x)
    assert out.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_swiglu_by_hand():
    mlp = SwiGLU(Qwen2Config(hidden_size=2, intermediate_size=1, num_attention_heads=1))
    mlp.gate_proj.weight.data = torch.tensor([[1.0, 0.0]])
    mlp.up_proj.weight.data = torch.tensor([[0.0, 1.0]])
    mlp.down_proj.weight.data = torch.tensor([[1.0], [-2.0]])
    gated = 3.0 / (1 + math.exp(-3.0)) * 5.0  # silu(3) * 5
    torch.testing.assert_close(mlp(torch.tensor([3.0, 5.0])), torch.tensor([gated, -2 * gated]))


# -- rotary embedding ------------------------------------------------------------------------------


def rope_config(D=8, **fields):
    return Qwen2Config(hidden_size=D, num_attention_heads=1, rope_theta=10000.0, **fields)


def test_frequencies_by_hand():
    frequencies, scaling = rope_frequencies(rope_config(4))
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.01]))
    assert scaling == 1.0


def test_a_quarter_turn():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rotate_half(x).tolist() == [-3.0, -4.0, 1.0, 2.0]
    assert rotate_half(rotate_half(x)).tolist() == (-x).tolist()
    turned = apply_rope(x, torch.zeros(4), torch.ones(4))  # cos 90° = 0, sin 90° = 1
    assert turned.tolist() == [-3.0, -4.0, 1.0, 2.0]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(m=st.integers(0, 500), n=st.integers(0, 500), shift=st.integers(0, 500))
def test_scores_depend_on_distance_alone(m, n, shift):
    rotary = RotaryEmbedding(rope_config(16))
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(1)).double()

    def score(at, on):
        cos, sin = rotary(torch.tensor([[at, on]]), torch.float64)
        turned = [
            apply_rope(x, cos[:, :, i : i + 1], sin[:, :, i : i + 1]) for i, x in enumerate((q, k))
        ]
        return (turned[0] * turned[1]).sum()

    assert score(m, n) == pytest.approx(score(m + shift, n + shift).item(), abs=2e-4)


def test_angles_stay_fp32_in_a_bf16_model(small_config):
    model = Qwen2Model(small_config()).to(torch.bfloat16)
    assert model.rotary_emb.frequencies.dtype == torch.float32
    assert "rotary" not in " ".join(model.state_dict())
    cos, _ = model.rotary_emb(torch.tensor([[1000]]), torch.bfloat16)
    exact = torch.cos(torch.tensor(1000.0))  # the first pair turns by one radian per position
    assert cos[0, 0, 0, 0] == exact.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "longrope.*default, linear, dynamic, yarn"),
        ({"rope_type": "yarn"}, "needs a factor"),
        (
            {"rope_type": "linear", "factor": 0.5},
            r"factor must be a number in \[1, 1e\+30\], not 0.5",
        ),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 3}, "no option.*beta_fast"),
    ],
)
def test_rope_types_are_checked(scaling, message):
    with pytest.raises(ValueError, match=message):
        RotaryEmbedding(rope_config(rope_scaling=scaling))


# -- the visibility rule ---------------------------------------------------------------------------


def picture(seen):
    return ["".join(".x"[cell] for cell in row) for row in seen[0, 0].int().tolist()]


def test_visibility_pictures():
    at = torch.arange(4)[None]
    assert picture(visible(at, at)) == ["x...", "xx..", "xxx.", "xxxx"]
    assert picture(visible(at, at, window=2)) == ["x...", "xx..", ".xx.", "..xx"]
    padded = torch.tensor([[-1, -1, 2, 3]])
    assert picture(visible(padded, padded)) == ["....", "....", "..x.", "..xx"]
    ring = torch.tensor([[4, 5, 2, 3]])  # slots of a ring of four after six tokens
    assert picture(visible(torch.tensor([[5]]), ring, window=3)) == ["xx.x"]
    packed = tokens_of_own_document(torch.tensor([[0, 1, 0, 1]]))
    assert packed.tolist() == [[1, 2, 1, 2]]
    assert picture(visible(at, at, window=packed)) == ["x...", "xx..", "..x.", "..xx"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    q=st.lists(st.integers(-1, 12), min_size=1, max_size=6),
    k=st.lists(st.integers(-1, 12), min_size=1, max_size=9),
    window=st.none() | st.integers(1, 14),
)
def test_visibility_is_its_definition(q, k, window):
    seen = visible(torch.tensor([q]), torch.tensor([k]), window)[0, 0].tolist()
    for i, at in enumerate(q):
        for j, on in enumerate(k):
            assert seen[i][j] == (0 <= on <= at and (window is None or at - on < window))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_that_sees_nothing_stays_finite(dtype):
    mask = additive(torch.zeros(1, 1, 2, 3, dtype=torch.bool), dtype)
    q, k, v = (torch.randn(1, 2, n, 4).to(dtype) * 8 for n in (2, 3, 3))
    for attend in (eager_attention, sdpa_attention):
        assert attend(q, k, v, mask, 0.5).isfinite().all()


# -- attention -------------------------------------------------------------------------------------


def test_attention_weights_by_hand():
    q = torch.tensor([[[[1.0, 0.0]]]])
    k = torch.tensor([[[[math.log(3.0), 9.0], [0.0, 7.0]]]])
    torch.testing.assert_close(
        attention_weights(q, k, None, 1.0)[0, 0, 0], torch.tensor([0.75, 0.25])
    )


@pytest.mark.parametrize("G", [1, 2, 6])
def test_groups_equal_a_loop_over_heads(G):
    H, T, D = 6, 5, 4
    q, k, v = torch.randn(2, H, T, D), torch.randn(2, G, T, D), torch.randn(2, G, T, D)
    future = torch.ones(T, T).triu(1).bool()
    heads = []
    for h in range(H):
        g = h // (H // G)
        scores = (q[:, h] @ k[:, g].mT / math.sqrt(D)).masked_fill(future, -torch.inf)
        heads.append(scores.softmax(-1) @ v[:, g])
    expected = torch.stack(heads, dim=1)
    for attend in (eager_attention, sdpa_attention):
        torch.testing.assert_close(attend(q, k, v, None, D**-0.5), expected)


def test_sdpa_refuses_a_misaligned_triangle():
    q, k = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 5, 4)
    with pytest.raises(ValueError, match="2 queries over 5 keys"):
        sdpa_attention(q, k, k, None, 0.5)


# -- the model -------------------------------------------------------------------------------------


def test_loss_by_hand():
    """Uniform logits over 4 tokens cost ln 4 each; what is marked -100 costs nothing."""
    logits = torch.zeros(1, 3, 4)
    logits[0, 1] = torch.tensor([100.0, 0, 0, 0])  # certain, and wrong: not counted
    loss = next_token_loss(logits, torch.tensor([[0, 2, -100]]))
    assert loss.item() == pytest.approx(math.log(4))


def test_wrong_inputs_are_named(small_config):
    model = Qwen2ForCausalLM(small_config()).eval()
    ids = torch.randint(3, 97, (2, 5))
    cases = [
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": ids, "inputs_embeds": torch.zeros(2, 5, 48)}, "not both"),
        ({"input_ids": ids.float()}, "integers"),
        ({"input_ids": ids[:, :0]}, r"integers.*\(2, 0\)"),
        ({"input_ids": ids + 97}, "ids are 0 to 96"),
        ({"input_ids": ids - 97}, "hold -"),
        ({"input_ids": ids, "position_ids": torch.arange(5)}, "do not fit 2 rows of 5"),
        ({"input_ids": ids, "past_key_values": (1,)}, "StaticCache of 3 layers, this is tuple"),
        ({"input_ids": ids[0]}, r"\(B, T\)"),
        (
            {"input_ids": ids, "attention_mask": torch.ones(2, 7)},
            r"\(2, 7\) does not fit.*\(2, 5\)",
        ),
        ({"input_ids": ids, "position_ids": torch.zeros(2, 4).long()}, r"\(2, 4\) do not fit 2"),
        ({"input_ids": ids, "labels": ids[:, :3]}, r"labels .*\(2, 3\).*logits \(2, 5, 97\)"),
        ({"input_ids": ids, "labels": ids + 97}, "labels hold .*from 0 to 96, or -100"),
        ({"input_ids": ids, "labels": ids - 97}, "labels hold -.*from 0 to 96, or -100"),
        ({"input_ids": ids, "labels": ids.float()}, r"labels torch.float32.*integers \(2, 5\)"),
        ({"input_ids": ids[0]}, r"\(5,\) is one row: pass input_ids\[None\]"),
        ({"inputs_embeds": torch.zeros(2, 5, 47)}, r"\(B, T, 48\), not \(2, 5, 47\)"),
        ({"inputs_embeds": torch.zeros(5, 48)}, r"\(B, T, 48\), not \(5, 48\)"),
        ({"inputs_embeds": torch.zeros(2, 5, 48).double()}, "float64 and the model .*float32"),
    ]
    placed = {"input_ids": ids, "attention_mask": ids > 0, "position_ids": ids, "labels": ids}
    for name in placed:
        elsewhere = placed | {name: placed[name].to("meta")}
        cases.append((elsewhere, rf"{name} .*on (meta|cpu).* on (meta|cpu)"))
    before = model(ids).logits
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            model(**arguments)
    assert torch.equal(model(ids).logits, before), "a refused call has changed the model"


def test_labels_that_no_head_can_judge(small_config):
    ids, config = torch.randint(3, 97, (2, 5)), small_config(num_labels=3, pad_token_id=0)
    text, token = Qwen2ForSequenceClassification(config), Qwen2ForTokenClassification(config)
    for model, labels, message in (
        (text, torch.tensor([0, 3]), "labels hold 3: each is from 0 to 2, or -100"),
        (text, torch.tensor([0, 1, 2]), r"int64 \(3,\) .* logits \(2, 3\).*integers \(2,\)"),
        (text, torch.tensor([0.5, 1.0]), r"float32 \(2,\).* logits \(2, 3\).* integers"),
        (token, ids.clamp(max=3), "labels hold 3: each is from 0 to 2, or -100"),
        (token, ids[:, 1:], r"int64 \(2, 4\) .* logits \(2, 5, 3\).*integers \(2, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(ids, labels=labels)


@pytest.mark.parametrize("columns", [1, 3, 9])
def test_a_static_cache_does_not_take_any_mask(small_config, columns):
    model, ids = Qwen2ForCausalLM(small_config()).eval(), torch.randint(3, 97, (2, 5))
    with pytest.raises(ValueError, match=rf"\(2, {columns}\) does not fit"):
        model(ids, torch.ones(2, columns), past_key_values=StaticCache(model.config, 8))


def test_whole_numbers_of_any_width_are_labels(small_config):
    from qwen2_edu import Qwen2ForSequenceClassification

    ids, labels = torch.randint(3, 97, (2, 5)), torch.tensor([1, 0])
    model = Qwen2ForCausalLM(small_config()).eval()
    assert model(ids.int(), labels=ids.int()).loss == model(ids, labels=ids).loss
    model = Qwen2ForSequenceClassification(small_config(num_labels=2)).eval()
    assert model(ids, labels=labels.int()).loss == model(ids, labels=labels).loss


def test_cache_limits_are_named(small_config):
    model = Qwen2ForCausalLM(small_config()).eval()
    with torch.no_grad():
        cache = StaticCache(model.config, 6)
        model(torch.ones(1, 5, dtype=torch.int64), past_key_values=cache)
        with pytest.raises(ValueError, match="holds 6 tokens and 7 are needed"):
            model(torch.ones(1, 2, dtype=torch.int64), past_key_values=cache)
        cache = DynamicCache(model.config)
        model(torch.ones(2, 5, dtype=torch.int64), past_key_values=cache)
        with pytest.raises(ValueError, match="holds 2 rows and 3 arrive"):
            model(torch.ones(3, 1, dtype=torch.int64), past_key_values=cache)
    with pytest.raises(ValueError, match="from 1 to .*, not 0"):
        StaticCache(model.config, 0)


def test_training_keeps_no_cache_unless_asked(small_config):
    model, ids = Qwen2Model(small_config()), torch.randint(3, 97, (1, 4))
    assert model.train()(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values.get_seq_length() == 4
    assert model.eval()(ids).past_key_values.get_seq_length() == 4
    assert model(ids, use_cache=False).past_key_values is None


def test_tied_head_is_the_embedding(small_config):
    tied = Qwen2ForCausalLM(small_config(tie_word_embeddings=True))
    untied = Qwen2ForCausalLM(small_config())
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.num_parameters() - tied.num_parameters() == 97 * 48


def test_capture_refuses_what_it_cannot_record(small_config):
    model = Qwen2ForCausalLM(small_config()).eval()
    with pytest.raises(ValueError, match="torch.compile"), capture(torch.compile(model)):
        pass
    with pytest.raises(ValueError, match="Linear has no"), capture(torch.nn.Linear(2, 2)):
        pass


def test_sequence_classification_needs_to_know_where_texts_end(small_config):
    from qwen2_edu import Qwen2ForSequenceClassification

    model = Qwen2ForSequenceClassification(small_config(num_labels=2, pad_token_id=None)).eval()
    with pytest.raises(ValueError, match="2 texts end"):
        model(torch.ones(2, 4, dtype=torch.int64))
    assert model(torch.ones(1, 4, dtype=torch.int64)).logits.shape == (1, 2)
