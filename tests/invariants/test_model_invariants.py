"""Different ways to the same answer: caches, padding, chunks, backends, capture."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen2_edu import DynamicCache, Qwen2ForCausalLM, StaticCache, capture

W = 5
STACKS = {
    "full": {},
    "mixed": {"use_sliding_window": True, "sliding_window": W, "max_window_layers": 1},
    "sliding": {"use_sliding_window": True, "sliding_window": W, "max_window_layers": 0},
    "sliding first": {
        "use_sliding_window": True,
        "sliding_window": W,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


@pytest.fixture(scope="module")
def models(small_config, randomise):
    return {
        name: randomise(Qwen2ForCausalLM(small_config(**change))) for name, change in STACKS.items()
    }


def close(a, b, tolerance=2e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def make_cache(kind, model, room=64):
    return DynamicCache(model.config) if kind == "dynamic" else StaticCache(model.config, room)


@torch.no_grad()
def in_chunks(model, ids, chunks, cache, mask=None):
    pieces = []
    for end, size in zip(torch.tensor(chunks).cumsum(0).tolist(), chunks, strict=True):
        columns = slice(end - size, end)
        mask_piece = None if mask is None else mask[:, columns]
        pieces.append(model(ids[:, columns], mask_piece, past_key_values=cache).logits)
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("stack", STACKS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    chunks=st.lists(st.integers(1, 2 * W + 2), min_size=1, max_size=8),
    pads=st.lists(st.integers(0, W + 2), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
@example(chunks=[W, 1, 1], pads=[0, 0], seed=0)  # several rows that fill a ring exactly
@example(chunks=[W, 1, 2], pads=[1, 0], seed=0)  # and then overwrite its first slot
@example(chunks=[W - 1, 1, 1, 2], pads=[1, 0], seed=0)
@example(chunks=[W + 1, 1, 2], pads=[0, 2], seed=0)
def test_chunks_caches_and_left_padding_change_nothing(models, stack, kind, chunks, pads, seed):
    """Any split of a left-padded batch, through any cache, equals each row read alone at once."""
    model, T = models[stack], sum(chunks)
    pads = [min(p, T - 1) for p in pads]
    ids = torch.randint(3, 97, (len(pads), T), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(T) >= torch.tensor(pads)[:, None]).long()
    cache = make_cache(kind, model, room=T)
    batched = in_chunks(model, ids, chunks, cache, mask if any(pads) else None)
    assert cache.get_seq_length() == T
    for row, padding in enumerate(pads):
        with torch.no_grad():
            alone = model(ids[row : row + 1, padding:], use_cache=False).logits
        close(batched[row : row + 1, padding:], alone)


@pytest.mark.parametrize("stack", STACKS)
def test_whole_mask_and_mask_of_new_columns_agree(models, stack):
    model, ids = models[stack], torch.randint(3, 97, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, :4] = 0
    one, two = DynamicCache(model.config), DynamicCache(model.config)
    with torch.no_grad():
        for start, end in ((0, 7), (7, 8), (8, 12)):
            a = model(ids[:, start:end], mask[:, :end], past_key_values=one).logits
            b = model(ids[:, start:end], mask[:, start:end], past_key_values=two).logits
            assert torch.equal(a, b)


def test_a_mask_of_ones_is_no_mask(models):
    """What a tokenizer sends along with a single text must not cost the fast path."""
    model, ids = models["full"], torch.randint(3, 97, (2, 9))
    masks = []
    attention = model.model.layers[0].self_attn
    with attention.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[3])):
        with torch.no_grad():
            assert torch.equal(model(ids, torch.ones_like(ids)).logits, model(ids).logits)
    assert masks == [None, None]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_each_row_counts_its_own_real_tokens(models, kind):
    """Rotation cannot tell a shift of a whole row, so look at the positions themselves."""
    model, ids = models["mixed"], torch.randint(3, 97, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
    seen, cache = [], make_cache(kind, model)
    hook = model.model.rotary_emb.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].tolist())
    )
    with hook, torch.no_grad():
        model(ids, mask, past_key_values=cache)
        model(ids[:, :2], past_key_values=cache)
    assert seen[0] == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2]]
    assert seen[1] == [[6, 7], [3, 4]]


@pytest.mark.parametrize("stack", STACKS)
def test_eager_equals_sdpa(small_config, randomise, stack):
    ids = torch.randint(3, 97, (2, 3 * W))
    with torch.no_grad():
        eager, sdpa = (
            randomise(Qwen2ForCausalLM(small_config(**STACKS[stack], attn_implementation=name)))(
                ids
            ).logits
            for name in ("eager", "sdpa")
        )
    close(eager, sdpa)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_capture_changes_nothing_and_leaves_nothing(small_config, randomise, backend):
    config = small_config(**STACKS["mixed"], attn_implementation=backend)
    model, ids = randomise(Qwen2ForCausalLM(config)), torch.randint(3, 97, (2, 3 * W))
    before = [layer.self_attn.attend for layer in model.model.layers]
    with torch.no_grad():
        plain = model(ids).logits
        with capture(model) as record:
            close(model(ids).logits, plain)
        assert torch.equal(model(ids).logits, plain)
    assert [layer.self_attn.attend for layer in model.model.layers] == before
    assert len(record.attentions) == config.num_hidden_layers
    with torch.no_grad():
        shown = model(ids, output_hidden_states=True).hidden_states
    assert len(record.hidden_states) == len(shown) == config.num_hidden_layers + 1
    for mine, other in zip(record.hidden_states[:-1], shown[:-1], strict=True):
        close(mine, other)
    close(model.model.norm(record.hidden_states[-1]), shown[-1])
    for weights in record.attentions:
        close(weights.sum(-1), torch.ones(2, 6, 3 * W), 1e-6)
    with pytest.raises(RuntimeError), capture(model):
        raise RuntimeError("stopped in the middle")
    assert [layer.self_attn.attend for layer in model.model.layers] == before


def test_a_capture_belongs_to_its_call(models):
    """Threads that share a model see their own maps alone, whatever the others do meanwhile."""
    model, layers = models["mixed"], models["mixed"].config.num_hidden_layers
    texts = [torch.randint(3, 97, (1, 4 + 3 * n)) for n in range(4)]
    with torch.no_grad():
        expected = [model(ids, output_attentions=True).attentions for ids in texts]
        plain = model(texts[3]).logits
    wrong: list[str] = []

    def read(ids, maps):
        for _ in range(15):
            with torch.no_grad(), capture(model) as record:
                answered = model(ids, output_attentions=True).attentions
            for found in (answered, record.attentions):
                if len(found) != layers or not all(map(torch.equal, found, maps)):
                    wrong.append(f"{len(found)} maps {[tuple(m.shape) for m in found]}")
            if len(record.hidden_states) != layers + 1:
                wrong.append(f"{len(record.hidden_states)} states")

    def write():
        for _ in range(15):
            if not torch.equal(model(texts[3]).logits, plain):
                wrong.append("other logits")

    threads = [Thread(target=read, args=pair) for pair in zip(texts, expected, strict=True)]
    threads.append(Thread(target=torch.no_grad()(write)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_captures_may_be_nested_and_see_only_their_model(models):
    outer, inner = models["mixed"], models["sliding"]
    ids = torch.randint(3, 97, (1, 7))
    with torch.no_grad(), capture(outer) as all_of_it:
        with capture(outer.model.layers[1]) as one_block, capture(inner) as other:
            outer(ids)
            inner(ids)
        outer(ids)
    layers = outer.config.num_hidden_layers
    assert (len(all_of_it.attentions), len(one_block.attentions)) == (2 * layers, 1)
    assert torch.equal(one_block.attentions[0], all_of_it.attentions[1])
    assert len(other.attentions) == inner.config.num_hidden_layers


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_captured_steps_from_a_ring_equal_the_whole_map(models, kind):
    """Put into the order of their positions, the weights of each step are a row of the full map."""
    model, ids = models["sliding"], torch.randint(3, 97, (1, 12))
    cache = make_cache(kind, model)
    with torch.no_grad():
        with capture(model) as whole:
            model(ids)
        for t in range(12):
            with capture(model) as step:
                model(ids[:, t : t + 1], past_key_values=cache)
            positions = cache.key_positions("sliding_attention")[0]
            assert positions.max() == t and positions.tolist().count(t) == 1
            for mine, full in zip(step.attentions, whole.attentions, strict=True):
                real = positions >= 0
                close(mine[0, :, 0, real], full[0, :, t, positions[real]], 1e-5)
    assert not model.model.layers[0]._forward_hooks


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_crop_then_go_on(models, kind):
    model, ids = models["full"], torch.randint(3, 97, (1, 20))
    cache = make_cache(kind, model)
    with torch.no_grad():
        model(torch.cat((ids[:, :9], ids[:, :6]), dim=1), past_key_values=cache)
        cache.crop(9)
        assert cache.get_seq_length() == 9
        tail = model(ids[:, 9:], past_key_values=cache).logits
        close(tail, model(ids).logits[:, 9:])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_crop_of_a_ring(models, kind):
    """A ring that is not yet full can go back; one that has overwritten tokens says that it
    cannot.
    """
    model, ids = models["sliding"], torch.randint(3, 97, (1, 14))
    cache = make_cache(kind, model)
    with torch.no_grad():
        model(ids[:, :W], past_key_values=cache)
        cache.crop(2)
        close(model(ids[:, 2:], past_key_values=cache).logits, model(ids).logits[:, 2:])
    with pytest.raises(ValueError, match="overwritten"):
        cache.crop(13)
    cache.crop(14)  # nothing to forget
    with pytest.raises(ValueError, match="cannot crop to 15"):
        cache.crop(15)
    cache.crop(0)  # all can always be forgotten
    with torch.no_grad():
        close(model(ids, past_key_values=cache).logits, model(ids).logits)


@pytest.mark.parametrize("stack", STACKS)
def test_reorder(models, stack):
    model, ids = models[stack], torch.randint(3, 97, (3, 12))
    mask = (torch.arange(12) >= torch.tensor([0, 2, 7])[:, None]).long()
    rows, cache = torch.tensor([2, 0, 2, 1]), DynamicCache(model.config)
    new = torch.randint(3, 97, (4, 3))
    with torch.no_grad():
        model(ids, mask, past_key_values=cache)
        cache.reorder(rows)
        moved = model(new, past_key_values=cache).logits
        whole = torch.cat((mask[rows], torch.ones(4, 3, dtype=torch.int64)), dim=1)
        fresh = model(torch.cat((ids[rows], new), dim=1), whole).logits[:, 12:]
    close(moved, fresh)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("kept", [0, 3, 6])
def test_crop_of_a_padded_batch(models, kind, kept):
    """Padding that was forgotten no longer counts, padding that stays still does."""
    model, ids = models["full"], torch.randint(3, 97, (2, 12))
    mask = (torch.arange(12) >= torch.tensor([0, 4])[:, None]).long()
    cache = make_cache(kind, model)
    with torch.no_grad():
        model(ids, mask, past_key_values=cache)
        cache.crop(kept)
        rest = mask[:, kept:] if kept else None  # after crop(0), all is new
        tail = model(ids[:, kept:], rest, past_key_values=cache).logits
        whole = model(ids, mask if kept else None).logits[:, kept:]
    real = mask[:, kept:].bool() if kept else torch.ones(2, 12, dtype=torch.bool)
    close(tail[real], whole[real])


@pytest.mark.parametrize("stack", STACKS)
def test_gradients_pass_through_a_cache(small_config, randomise, stack):
    ids, gradients = torch.randint(3, 97, (2, 12)), []
    for chunks in ([12], [5, 1, 1, 4, 1]):
        model = randomise(Qwen2ForCausalLM(small_config(**STACKS[stack])))
        cache = DynamicCache(model.config)
        pieces = [model(p, past_key_values=cache).logits for p in ids.split(chunks, dim=1)]
        torch.cat(pieces, dim=1).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        close(gradient, gradients[1][name], 1e-4)


def test_recording_while_checkpointing(small_config, randomise):
    model, ids = randomise(Qwen2ForCausalLM(small_config())), torch.randint(3, 97, (1, 8))
    model.train().gradient_checkpointing_enable()
    with capture(model) as record:
        model(ids, labels=ids).loss.backward()
    assert (len(record.attentions), len(record.hidden_states)) == (3, 4)
    assert model.model.gradient_checkpointing
    out = model(ids, labels=ids, output_attentions=True)
    out.loss.backward()
    assert len(out.attentions) == 3


def test_packed_documents_stay_apart_when_compiled(models):
    model, ids = models["mixed"], torch.randint(3, 97, (1, 9))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]])
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = model(ids, position_ids=positions).logits
        close(compiled(ids, position_ids=positions).logits, expected)
        assert not torch.allclose(model(ids).logits, expected, atol=1e-2)


def test_static_cache_can_be_used_again(models):
    model, cache = models["mixed"], StaticCache(models["mixed"].config, 16)
    with torch.no_grad():
        for rows, pads in ((1, 0), (1, 4), (1, 0), (3, 0)):
            ids = torch.randint(3, 97, (rows, 11))
            mask = (torch.arange(11) >= pads).long().expand(rows, -1) if pads else None
            cached = model(ids, mask, past_key_values=cache).logits[:, pads:]
            close(cached, model(ids[:, pads:]).logits)
            step = model(ids[:, :1], past_key_values=cache).logits
            whole = model(torch.cat((ids[:, pads:], ids[:, :1]), dim=1)).logits
            close(step, whole[:, -1:])
            assert torch.is_tensor(cache.pads) == bool(pads)
            cache.reset()


def test_gradient_checkpointing_changes_no_gradient(small_config, randomise):
    gradients = []
    for checkpointing in (False, True):
        model = randomise(Qwen2ForCausalLM(small_config(**STACKS["mixed"]))).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids = torch.arange(24).view(2, 12) + 3
        model(ids, labels=ids).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        close(gradient, gradients[1][name], 1e-6)


def test_gradient_checkpointing_leaves_a_cache_alone(small_config, randomise):
    """Generation in training mode, as between two steps of training, still fills its cache."""
    model = randomise(Qwen2ForCausalLM(small_config(**STACKS["mixed"])))
    prompt = torch.randint(3, 97, (1, 6))
    expected = model.generate(prompt, max_new_tokens=9, do_sample=False)
    model.train().gradient_checkpointing_enable()
    assert model.generate(prompt, max_new_tokens=9, do_sample=False).tolist() == expected.tolist()


def test_dropout_acts_in_training_alone(small_config, randomise):
    model = randomise(Qwen2ForCausalLM(small_config(attention_dropout=0.5)))
    ids = torch.randint(3, 97, (1, 9))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.allclose(model(ids).logits, model(ids).logits, atol=1e-3)
