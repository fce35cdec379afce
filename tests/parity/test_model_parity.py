"""Package = transformers, on small models with every parameter random (biases and norms too)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

W = 6  # the window of the sliding layers
STACKS = {
    "full": {},
    "tied": {"tie_word_embeddings": True},
    "mixed": {"use_sliding_window": True, "sliding_window": W, "max_window_layers": 1},
    "sliding": {"use_sliding_window": True, "sliding_window": W, "max_window_layers": 0},
    "multi_query": {"num_key_value_heads": 1},
    "multi_head": {"num_key_value_heads": 6},
    "wide_heads": {"head_dim": 16},
}
BACKENDS = ("eager", "sdpa")


def ids_of(rows, length, vocab=97):
    return torch.randint(3, vocab, (rows, length))


def close(a, b, tolerance=2e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("length", [1, W - 1, W, W + 1, 2 * W + 3])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stack", STACKS)
def test_logits_loss_and_hidden_states(twins, small_config, stack, backend, length):
    ours, theirs = twins(
        "Qwen2ForCausalLM", small_config(**STACKS[stack], attn_implementation=backend)
    )
    ids = ids_of(2, length)
    with torch.no_grad():
        a = ours(ids, labels=ids, output_hidden_states=True)
        b = theirs(ids, labels=ids, output_hidden_states=True)
    close(a.logits, b.logits)
    if length > 1:
        close(a.loss, b.loss)
    assert len(a.hidden_states) == len(b.hidden_states)
    for mine, other in zip(a.hidden_states, b.hidden_states, strict=True):
        close(mine, other)


@pytest.mark.parametrize("stack", ["full", "mixed"])
def test_attention_maps(twins, small_config, stack):
    ours, theirs = twins(
        "Qwen2ForCausalLM", small_config(**STACKS[stack], attn_implementation="eager")
    )
    ids = ids_of(2, 2 * W + 1)
    with torch.no_grad():
        a, b = ours(ids, output_attentions=True), theirs(ids, output_attentions=True)
    assert len(a.attentions) == len(b.attentions) == 3
    for mine, other in zip(a.attentions, b.attentions, strict=True):
        close(mine, other, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stack", ["full", "mixed"])
def test_bf16(twins, small_config, stack, backend):
    config = small_config(**STACKS[stack], attn_implementation=backend)
    ours, theirs = twins("Qwen2ForCausalLM", config, torch.bfloat16)
    ids = ids_of(2, 2 * W + 3)
    with torch.no_grad():
        a, b = ours(ids).logits, theirs(ids).logits
    assert a.dtype == b.dtype == torch.bfloat16
    # Eight bits of mantissa, so a rounding in another place shows in most logits. Where this was
    # written not one bit differs; another processor may add in another order here and there.
    assert (a == b).float().mean() > 0.9
    close(a.float(), b.float(), 0.06)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("stack", ["full", "mixed"])
def test_padding(twins, small_config, stack, side, backend):
    ours, theirs = twins(
        "Qwen2ForCausalLM", small_config(**STACKS[stack], attn_implementation=backend)
    )
    ids, mask = ids_of(3, 2 * W + 2), torch.ones(3, 2 * W + 2, dtype=torch.int64)
    for row, pads in enumerate((0, 4, W + 1)):
        columns = slice(0, pads) if side == "left" else slice(mask.shape[1] - pads, None)
        mask[row, columns] = 0
    with torch.no_grad():
        a, b = ours(ids, attention_mask=mask).logits, theirs(ids, attention_mask=mask).logits
    close(a[mask.bool()], b[mask.bool()])


@pytest.mark.parametrize("stack", ["full", "mixed"])
def test_position_offset(twins, small_config, stack):
    ours, theirs = twins("Qwen2ForCausalLM", small_config(**STACKS[stack]))
    ids, positions = ids_of(2, W + 4), torch.arange(W + 4)[None] + 57
    with torch.no_grad():
        close(ours(ids, position_ids=positions).logits, theirs(ids, position_ids=positions).logits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stack", ["full", "mixed"])
def test_packed_documents(twins, small_config, stack, backend):
    ours, theirs = twins(
        "Qwen2ForCausalLM", small_config(**STACKS[stack], attn_implementation=backend)
    )
    positions = torch.cat([torch.arange(n) for n in (W + 3, 2, 1, W)])[None].expand(2, -1)
    ids = ids_of(2, positions.shape[1])
    with torch.no_grad():
        a = ours(ids, position_ids=positions, use_cache=False).logits
        b = theirs(ids, position_ids=positions, use_cache=False).logits
        alone = ours(ids[:, : W + 3]).logits
    close(a, b)
    close(a[:, : W + 3], alone)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "chunks", [(9, 1, 1, 1, 1, 1, 1, 1), (3, 1, 5, 1, 7, 1), (1,) * 15, (2 * W + 5, 1, 2, 1)]
)
@pytest.mark.parametrize("stack", ["full", "mixed", "sliding"])
def test_cached_steps(twins, small_config, stack, chunks, backend):
    ours, theirs = twins(
        "Qwen2ForCausalLM", small_config(**STACKS[stack], attn_implementation=backend)
    )
    ids, cache = ids_of(2, sum(chunks)), None
    with torch.no_grad():
        whole = theirs(ids).logits
        for piece, end in zip(
            ids.split(chunks, dim=1), torch.tensor(chunks).cumsum(0).tolist(), strict=True
        ):
            out = ours(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            close(out.logits, whole[:, end - piece.shape[1] : end])


ROPES = {
    "linear": {"type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "yarn": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn_options": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 20,
        "beta_slow": 2,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
    },
    "yarn_factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "attention_factor": 0.8,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("length", [20, 150])  # below and above max_position_embeddings = 128
@pytest.mark.parametrize("rope", ROPES)
def test_rope_types(twins, small_config, rope, length):
    ours, theirs = twins("Qwen2ForCausalLM", small_config(rope_scaling=dict(ROPES[rope])))
    ids = ids_of(1, length)
    with torch.no_grad():
        close(ours(ids).logits, theirs(ids).logits, 5e-5)


@pytest.mark.parametrize(
    "rope",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 32768},
        {"rope_type": "yarn", "factor": 8.0, "beta_slow": 3, "truncate": False},
    ],
)
def test_frequencies_of_released_sizes(rope):
    """To the last bit, at the head width, theta and lengths of the releases."""
    import transformers
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    from qwen2_edu import released_config
    from qwen2_edu.rope import rope_frequencies

    config = released_config("Qwen2.5-7B-Instruct")
    config.rope_scaling = rope
    theirs = Qwen2RotaryEmbedding(transformers.Qwen2Config(**config.to_dict()))
    frequencies, scaling = rope_frequencies(config)
    assert frequencies.shape == (64,)
    assert torch.equal(frequencies, theirs.inv_freq)
    assert scaling == theirs.attention_scaling


def test_inputs_embeds_and_logits_to_keep(twins, small_config):
    ours, theirs = twins("Qwen2ForCausalLM", small_config())
    ids = ids_of(2, 9)
    with torch.no_grad():
        embeds = ours.get_input_embeddings()(ids)
        close(ours(inputs_embeds=embeds).logits, theirs(inputs_embeds=embeds).logits)
        for keep in (1, 3, torch.tensor([0, 4])):
            close(ours(ids, logits_to_keep=keep).logits, theirs(ids, logits_to_keep=keep).logits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tied", [False, True])
def test_gradients(twins, small_config, tied, backend):
    config = small_config(
        **STACKS["mixed"] | {"tie_word_embeddings": tied, "attn_implementation": backend}
    )
    ours, theirs = twins("Qwen2ForCausalLM", config)
    ids = ids_of(2, 2 * W)
    ours(ids, labels=ids).loss.backward()
    theirs(ids, labels=ids).loss.backward()
    other = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        close(parameter.grad, other[name].grad, 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("labels", "num_labels", "problem"),
    [
        (torch.tensor([2, 0, 1]), 3, None),
        (torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]]), 3, "multi_label_classification"),
        (torch.tensor([0.5, -1.0, 2.0]), 1, None),
        (torch.tensor([[0.5, 1.0], [-1.0, 0.0], [2.0, 3.0]]), 2, "regression"),
    ],
)
def test_sequence_classification(twins, small_config, labels, num_labels, problem, side):
    config = small_config(num_labels=num_labels, problem_type=problem, **STACKS["mixed"])
    ours, theirs = twins("Qwen2ForSequenceClassification", config)
    ids, mask = ids_of(3, 10), torch.ones(3, 10, dtype=torch.int64)
    for row, pads in enumerate((0, 3, 6)):
        mask[row, slice(0, pads) if side == "left" else slice(10 - pads, None)] = 0
    ids = ids.masked_fill(mask == 0, config.pad_token_id)
    with torch.no_grad():
        a = ours(ids, attention_mask=mask, labels=labels)
        b = theirs(ids, attention_mask=mask, labels=labels)
    close(a.logits, b.logits)
    close(a.loss, b.loss)


def test_token_classification_and_question_answering(twins, small_config):
    ids = ids_of(2, 8)
    ours, theirs = twins("Qwen2ForTokenClassification", small_config(num_labels=5))
    labels = torch.randint(0, 5, (2, 8))
    labels[0, :3] = -100
    with torch.no_grad():
        a, b = ours(ids, labels=labels), theirs(ids, labels=labels)
    close(a.logits, b.logits)
    close(a.loss, b.loss)

    ours, theirs = twins("Qwen2ForQuestionAnswering", small_config())
    spans = {"start_positions": torch.tensor([1, 30]), "end_positions": torch.tensor([4, 2])}
    with torch.no_grad():
        a, b = ours(ids, **spans), theirs(ids, **spans)
    close(a.start_logits, b.start_logits)
    close(a.end_logits, b.end_logits)
    close(a.loss, b.loss)


@pytest.mark.filterwarnings("ignore:use_sliding_window is on")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 3),
    heads_per_group=st.integers(1, 4),
    half_width=st.integers(1, 5),
    layers=st.integers(1, 3),
    first_sliding=st.integers(0, 3),
    window=st.integers(1, 9),
    rows=st.integers(1, 3),
    length=st.integers(1, 14),
    tied=st.booleans(),
    backend=st.sampled_from(BACKENDS),
)
def test_any_shape(
    twins, small_config, groups, heads_per_group, half_width, layers, first_sliding, window, rows,
    length, tied, backend,
):  # fmt: skip
    config = small_config(
        hidden_size=groups * heads_per_group * 4,
        intermediate_size=7,
        num_hidden_layers=layers,
        num_attention_heads=groups * heads_per_group,
        num_key_value_heads=groups,
        head_dim=2 * half_width,
        use_sliding_window=True,
        sliding_window=window,
        max_window_layers=first_sliding,
        tie_word_embeddings=tied,
        attn_implementation=backend,
    )
    ours, theirs = twins("Qwen2ForCausalLM", config)
    ids = ids_of(rows, length)
    with torch.no_grad():
        close(ours(ids).logits, theirs(ids).logits, 5e-5)
