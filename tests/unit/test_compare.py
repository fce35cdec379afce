"""compare: the station it names is the one where the fault was planted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qwen2_edu import Qwen2ForCausalLM
from qwen2_edu.compare import Comparison, compare, stations

IDS = torch.arange(22).view(2, 11) * 4 + 3
NAMES = ["embeddings"]
NAMES += [f"layer {i}, after {part}" for i in range(3) for part in ("attention", "MLP")]
NAMES += ["final norm", "logits"]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, small_config, randomise):
    return randomise(Qwen2ForCausalLM(small_config(tie_word_embeddings=request.param)))


@pytest.fixture(scope="module")
def reference(model):
    import transformers

    theirs = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**model.config.to_dict()))
    theirs.load_state_dict(model.state_dict())
    return theirs.eval()


def test_twins_differ_nowhere(model, reference):
    found = compare(model, reference, IDS)
    assert list(found.differences) == NAMES
    assert found.first is None and "first" not in str(found)
    assert str(found).count("≤ 1e-05") == len(NAMES)


def test_stations_are_the_hidden_states_of_transformers(model, reference):
    """Ours, noted by hooks, against what transformers answers itself."""
    with torch.no_grad():
        out = reference(IDS, output_hidden_states=True)
    noted = stations(model, IDS)
    names = ["embeddings", "layer 0, after MLP", "layer 1, after MLP", "final norm"]
    for name, state in zip(names, out.hidden_states, strict=True):
        torch.testing.assert_close(noted[name], state.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(noted["logits"], out.logits.double(), atol=1e-5, rtol=0)


def shift(module):
    """Let a module answer a little more than it should."""
    module.register_forward_hook(lambda module, inputs, output: output + 0.01)


PLACES = {
    "embeddings": lambda model: shift(model.model.embed_tokens),
    "layer 0, after attention": lambda model: shift(model.model.layers[0].self_attn.o_proj),
    "layer 0, after MLP": lambda model: shift(model.model.layers[0].mlp.down_proj),
    "layer 2, after attention": lambda model: shift(model.model.layers[2].self_attn.v_proj),
    "layer 2, after MLP": lambda model: shift(model.model.layers[2].post_attention_layernorm),
    "final norm": lambda model: setattr(model.model, "norm", nn.Identity()),
    "logits": lambda model: shift(model.lm_head),
}


@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "theirs"])
@pytest.mark.parametrize("place", PLACES)
def test_a_planted_fault_is_found_where_it_is(model, reference, place, theirs):
    right, spoilt = (model, reference) if theirs else (reference, model)
    spoilt = copy.deepcopy(spoilt)
    PLACES[place](spoilt)
    for pair in ((right, spoilt), (spoilt, right)):
        found = compare(*pair, IDS)
        assert found.first == place
        before = NAMES[: NAMES.index(place)]
        assert all(found.differences[name] <= 1e-5 for name in before)
        marked = [line for line in str(found).split("\n") if line.endswith("  <- first")]
        assert len(marked) == 1 and marked[0].startswith(place)


def test_the_difference_is_the_largest_one(model):
    spoilt = copy.deepcopy(model)
    spoilt.lm_head.register_forward_hook(lambda module, inputs, out: out.index_fill(2, IDS[0], 0.0))
    with torch.no_grad():
        largest = model(IDS).logits[..., IDS[0]].abs().max().item()
    assert compare(model, spoilt, IDS).differences["logits"] == pytest.approx(largest, rel=1e-6)


def test_tolerance_decides(model):
    spoilt = copy.deepcopy(model)
    shift(spoilt.lm_head)
    assert compare(model, spoilt, IDS, tolerance=0.02).first is None
    assert compare(model, spoilt, IDS, tolerance=0.005).first == "logits"
    assert compare(model, model, IDS, tolerance=0).first is None


def test_nan_differs_and_equal_infinities_do_not(model):
    for bad, first in ((float("nan"), "logits"), (float("inf"), None)):
        spoilt = copy.deepcopy(model)
        spoilt.lm_head.register_forward_hook(lambda m, i, out, bad=bad: out.fill_(bad))
        assert compare(spoilt, copy.deepcopy(spoilt), IDS).first == first
    assert Comparison({"a": float("nan")}, 1.0).first == "a"


def test_the_models_are_left_as_they_were(model):
    ids, before = IDS.clone(), model(IDS).logits
    compare(model, model, ids)
    hooks = [m for m in model.modules() if m._forward_pre_hooks or m._forward_hooks]
    assert hooks == [] and torch.equal(ids, IDS) and torch.equal(model(IDS).logits, before)
    with pytest.raises(ValueError, match="input_ids hold 999"):
        compare(model, model, IDS + 999 - IDS.max())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_bf16_can_be_compared_with_fp32(model):
    found = compare(model, copy.deepcopy(model).to(torch.bfloat16), IDS)
    assert found.first == "embeddings" and found.differences["logits"] < 1


def test_what_cannot_be_compared_is_said(model, small_config):
    longer = Qwen2ForCausalLM(small_config(num_hidden_layers=5))
    with pytest.raises(ValueError, match="models of 3 and 5 layers"):
        compare(model, longer, IDS)
    wider = Qwen2ForCausalLM(small_config(hidden_size=96))
    with pytest.raises(ValueError, match=r"embeddings: shapes \(2, 11, 48\) and \(2, 11, 96\)"):
        compare(model, wider, IDS)


def test_a_station_that_is_passed_by_or_shared_is_said(model):
    spoilt = copy.deepcopy(model)
    spoilt.model.layers[1].forward = lambda x, *rest: x
    with pytest.raises(ValueError, match="never passed the station 'layer 0, after MLP'"):
        stations(spoilt, IDS)
    shared = copy.deepcopy(model)
    for layer in shared.model.layers:
        layer.input_layernorm = shared.model.norm
    with pytest.raises(ValueError, match="two stations are read by one module"):
        stations(shared, IDS)
