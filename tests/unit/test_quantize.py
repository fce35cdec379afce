"""Quantised weights: how they are rounded, what a model computes with them, what files keep."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from qwen2_edu import AutoTokenizer, Qwen2ForCausalLM, Qwen2ForSequenceClassification
from qwen2_edu.files.gguf_model import save_gguf
from qwen2_edu.quantize import Packed, quantize, round_int4, round_int8, unpack

KINDS = ("int8", "int4")
LOSS = {"int8": 0.003, "int4": 0.09}  # nats a token that rounding may cost tiny


@pytest.fixture(scope="module")
def tiny():
    return Qwen2ForCausalLM.from_pretrained("tiny", dtype="float32")


@pytest.fixture(scope="module", params=KINDS)
def packed(request):
    return Qwen2ForCausalLM.from_pretrained("tiny", dtype="float32", quantize=request.param)


@pytest.fixture(scope="module")
def story():
    text = "Once there was a small grey cat. She lived by the river with her friend Tom. " * 3
    return AutoTokenizer.from_pretrained("tiny")(text, return_tensors="pt").input_ids


def small(small_config, randomise, **changes):
    sizes = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 16}
    return randomise(Qwen2ForCausalLM(small_config(**sizes, **changes)))


# -- rounding --------------------------------------------------------------------------------------


def test_int8_by_hand():
    weight = torch.tensor([[1.27, -0.635, 0.004, 0.006], [0, 0, 0, 0]])
    numbers, scales = round_int8(weight)
    assert numbers.tolist() == [[127, -64, 0, 1], [0, 0, 0, 0]]
    assert scales.flatten().tolist() == pytest.approx([0.01, 0])


def test_int4_by_hand():
    weight = torch.zeros(1, 32)
    weight[0, [0, 1, 16, 31]] = torch.tensor([-8.0, 3.0, 7.0, -1.0])
    numbers, scales = round_int4(weight)
    assert scales.tolist() == [[1.0]]
    assert numbers[0, [0, 1, 15]].tolist() == [0 | 15 << 4, 11 | 8 << 4, 8 | 7 << 4]
    assert torch.equal(unpack(numbers, scales), weight)  # what fits is exact


@pytest.mark.parametrize("kind, most", [("int8", 0.5), ("int4", 0.65)])
def test_no_number_moves_by_more_than_a_step(kind, most):
    weight = torch.randn(64, 256)
    numbers, scales = {"int8": round_int8, "int4": round_int4}[kind](weight)
    steps = scales.float().abs().repeat_interleave(256 // scales.shape[1], 1)
    moved = (unpack(numbers, scales) - weight).abs() / steps
    assert moved.max() < (most if kind == "int8" else 1.2)
    assert moved.square().mean().sqrt() < 0.32  # even errors: 1 / sqrt(12) = 0.29 of a step


def test_q4_0_reads_int4_as_llama_cpp_does():
    """The reference is the gguf package's own reader of Q4_0."""
    from gguf import GGMLQuantizationType, dequantize

    numbers, scales = round_int4(torch.randn(8, 96))
    blocks = torch.cat((scales[..., None].view(torch.uint8), numbers.view(8, 3, 16)), -1)
    theirs = dequantize(blocks.flatten(1).numpy(), GGMLQuantizationType.Q4_0)
    assert torch.equal(unpack(numbers, scales), torch.from_numpy(theirs))


# -- a model ---------------------------------------------------------------------------------------


def nats(model, ids):
    with torch.no_grad():
        logits = model(ids).logits
    return float(cross_entropy(logits[0, :-1], ids[0, 1:]))


def test_what_it_costs(tiny, packed, story):
    kind = packed.config.extra["quantization_config"]["kind"]
    assert abs(nats(packed, story) - nats(tiny, story)) < LOSS[kind]
    before, after = (sum(p.nbytes for p in m.parameters()) for m in (tiny, packed))
    assert before / after > {"int8": 3.8, "int4": 5.5}[kind]
    assert packed.num_parameters() == tiny.num_parameters()
    assert packed.lm_head.weight is packed.model.embed_tokens.weight


def test_it_answers_and_captures(packed, story):
    from qwen2_edu import capture

    assert packed.generate(story[:, :9], max_new_tokens=4, do_sample=False).shape == (1, 13)
    with capture(packed) as record, torch.no_grad():
        packed(story[:, :9])
    assert len(record.attentions) == 8


def test_training_is_refused(packed, story):
    with pytest.raises(ValueError, match="cannot be trained: train the original"):
        packed.train()
    packed.eval()
    packed.model.norm.requires_grad_(True)  # reaches the head's input
    try:
        with pytest.raises(ValueError, match="cannot be trained"):
            packed(story)
    finally:
        packed.requires_grad_(False)
    with pytest.raises(ValueError, match="cannot be resized: resize first"):
        packed.resize_token_embeddings(10)


def test_other_dtypes_leave_the_scales(tiny, story):
    model = quantize(Qwen2ForCausalLM.from_pretrained("tiny", dtype="float32"), "int8")
    scales = model.lm_head.scales.clone()
    logits = model(story).logits
    assert model.to(torch.bfloat16)(story).logits.dtype == torch.bfloat16 == model.dtype
    assert torch.equal(model.lm_head.scales, scales) and scales.dtype == torch.float32
    assert (model(story).logits.float() - logits).abs().mean() < 0.1
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(small_config, randomise, tmp_path, kind, tied, dtype):
    model = quantize(small(small_config, randomise, tie_word_embeddings=tied).to(dtype), kind)
    model.save_pretrained(tmp_path)
    again = Qwen2ForCausalLM.from_pretrained(tmp_path)
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(p, theirs[n]) and p.dtype == theirs[n].dtype for n, p in ours.items())
    ids = torch.randint(0, 97, (2, 20))
    assert model(ids).logits.dtype == again.dtype == dtype
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert (tmp_path / "model.safetensors").stat().st_size < 1.2 * sum(
        p.nbytes for p in ours.values()
    )
    again.save_pretrained(tmp_path)  # and once more
    assert torch.equal(Qwen2ForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_a_classifier_keeps_its_head(small_config, randomise):
    config = small_config(hidden_size=96, head_dim=16, num_labels=3)
    model = randomise(Qwen2ForSequenceClassification(config))
    quantize(model, "int8")
    assert isinstance(model.score, torch.nn.Linear)
    assert model(torch.randint(3, 97, (1, 9))).logits.shape == (1, 3)


def test_what_cannot_be(small_config, randomise, tmp_path, packed):
    odd = randomise(Qwen2ForCausalLM(small_config()))  # rows of 48
    before = {name: p.clone() for name, p in odd.named_parameters()}
    with pytest.raises(ValueError, match="groups of 32 numbers of a row, .* rows of 48: take int8"):
        quantize(odd, "int4")
    with pytest.raises(ValueError, match=r"must be one of \['int8', 'int4'\], not 'int3'"):
        quantize(odd, "int3")
    before["lm_head.weight"][3, 3] = torch.nan
    for value in (torch.inf, -torch.inf, torch.nan):
        odd.lm_head.weight.data[3, 3] = value
        with pytest.raises(ValueError, match="lm_head.weight holds what cannot be rounded"):
            quantize(odd, "int8")
    after = dict(odd.named_parameters())
    assert all(torch.equal(before[n].nan_to_num(), p.nan_to_num()) for n, p in after.items())
    with pytest.raises(ValueError, match="quantised already"):
        quantize(packed, "int8")
    odd.config.extra["quantization_config"] = {"quant_method": "gptq"}
    odd.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="by 'gptq' are not supported: load the original"):
        Qwen2ForCausalLM.from_pretrained(tmp_path)


def test_rows_that_are_no_multiple_of_32(small_config, randomise):
    model = randomise(Qwen2ForCausalLM(small_config()))
    ids = torch.randint(0, 97, (1, 20))
    whole = model(ids).logits
    assert (quantize(model, "int8")(ids).logits - whole).abs().mean() < 0.04 * whole.std()


# -- GGUF ------------------------------------------------------------------------------------------


def tiny_gguf(tmp_path, dtype):
    model = Qwen2ForCausalLM.from_pretrained("tiny", dtype="float32", use_sliding_window=False)
    return save_gguf(model, AutoTokenizer.from_pretrained("tiny"), tmp_path / "tiny.gguf", dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_gguf_blocks_are_not_rounded_twice(tmp_path, kind):
    path = tiny_gguf(tmp_path, "Q8_0")
    plain = Qwen2ForCausalLM.from_pretrained(path, dtype="float32")
    packed = Qwen2ForCausalLM.from_pretrained(path, dtype="float32", quantize=kind)
    names = ["model.embed_tokens"]
    names += ["model.layers.3.mlp.down_proj"] if kind == "int8" else []
    for name in names:
        part = packed.get_submodule(name)
        assert isinstance(part, Packed) and part.scales.shape[1] == part.in_features // 32
        assert torch.equal(unpack(part.weight, part.scales), plain.get_submodule(name).weight)
    packed.save_pretrained(tmp_path / "saved")
    again = Qwen2ForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.randint(0, 4000, (1, 30))
    assert torch.equal(again(ids).logits, packed(ids).logits)
    note = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert note["quant_method"] == "qwen2_edu" and note["kept"]["model.embed_tokens"] == "Q8_0"


@pytest.mark.parametrize("kind", KINDS)
def test_q4_0_goes_over(tmp_path, kind):
    """What save_gguf writes as Q4_0 is what the gguf package reads, and goes over bit for bit."""
    path = tiny_gguf(tmp_path, "Q4_0")
    plain = Qwen2ForCausalLM.from_pretrained(path, dtype="float32")
    packed = Qwen2ForCausalLM.from_pretrained(path, dtype="float32", quantize=kind)
    for name in ("model.embed_tokens", "model.layers.3.mlp.down_proj"):
        part = packed.get_submodule(name)
        assert torch.equal(unpack(part.weight, part.scales), plain.get_submodule(name).weight)
    assert part.weight.dtype == torch.uint8
