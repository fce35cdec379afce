"""What we save opens in transformers, and what transformers saves opens here, number for number."""

from __future__ import annotations

import pytest
import torch
import transformers

import qwen2_edu
from qwen2_edu import Qwen2ForCausalLM

HEADS = [
    "Qwen2Model",
    "Qwen2ForCausalLM",
    "Qwen2ForSequenceClassification",
    "Qwen2ForTokenClassification",
    "Qwen2ForQuestionAnswering",
]


def answer(model, ids):
    with torch.no_grad():
        out = model(ids)
    for name in ("logits", "last_hidden_state"):
        if hasattr(out, name):
            return getattr(out, name)
    return torch.stack((out.start_logits, out.end_logits))


@pytest.fixture
def ids():
    return torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(8))


def agree(ours, theirs, ids):
    """Equal parameters to the bit, and equal answers up to the order of additions."""
    mine, yours = ours.state_dict(), theirs.state_dict()
    assert set(mine) == set(yours)
    for name, tensor in mine.items():
        assert tensor.dtype == yours[name].dtype
        assert torch.equal(tensor, yours[name]), name
    tolerance = 1e-5 if ours.dtype == torch.float32 else 3e-2
    torch.testing.assert_close(
        answer(ours, ids), answer(theirs, ids), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("shard", ["5GB", "50kB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_ours_opens_in_transformers(small_config, randomise, tmp_path, ids, tied, dtype, shard):
    ours = randomise(Qwen2ForCausalLM(small_config(tie_word_embeddings=tied)), seed=4).to(dtype)
    ours.save_pretrained(tmp_path, max_shard_size=shard)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert type(theirs).__name__ == "Qwen2ForCausalLM"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    agree(ours, theirs, ids)


@pytest.mark.parametrize("shard", ["5GB", "50kB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_theirs_opens_here(small_config, twins, tmp_path, ids, tied, dtype, shard):
    _, theirs = twins("Qwen2ForCausalLM", small_config(tie_word_embeddings=tied), dtype)
    theirs.config.dtype = dtype
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    agree(Qwen2ForCausalLM.from_pretrained(tmp_path), theirs, ids)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_both_ways(small_config, twins, tmp_path, ids, head):
    ours, theirs = twins(head, small_config(num_labels=3, id2label={0: "no", 1: "yes", 2: "?"}))
    ours.save_pretrained(tmp_path / "ours")
    back = getattr(transformers, head).from_pretrained(tmp_path / "ours")
    agree(ours, back, ids)
    assert back.config.id2label == {0: "no", 1: "yes", 2: "?"}
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = getattr(qwen2_edu, head).from_pretrained(tmp_path / "theirs")
    agree(loaded, theirs, ids)
    assert loaded.config.id2label == {0: "no", 1: "yes", 2: "?"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_converted_while_loading(small_config, twins, tmp_path, dtype):
    _, theirs = twins("Qwen2ForCausalLM", small_config())
    theirs.save_pretrained(tmp_path)
    reference = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    ours = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    assert ours.config.torch_dtype == dtype


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [110, 60])
def test_resized_alike(small_config, twins, tied, size):
    """The rows that stay, the shapes and the counts; new rows are random in both."""
    ours, theirs = twins("Qwen2ForCausalLM", small_config(tie_word_embeddings=tied))
    ours.resize_token_embeddings(size)
    theirs.resize_token_embeddings(size, mean_resizing=False)
    assert ours.num_parameters() == theirs.num_parameters()
    for name, tensor in theirs.state_dict().items():
        mine = ours.state_dict()[name]
        assert mine.shape == tensor.shape
        assert torch.equal(mine[:97], tensor[:97]), name
    assert ours.config.vocab_size == theirs.config.vocab_size


@pytest.mark.parametrize("tied", [True, False])
def test_counted_alike(small_config, twins, tied):
    ours, theirs = twins("Qwen2ForCausalLM", small_config(tie_word_embeddings=tied))
    for model in (ours, theirs):
        model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    for trainable in (True, False):
        for no_embeddings in (True, False):
            options = {"only_trainable": trainable, "exclude_embeddings": no_embeddings}
            assert ours.num_parameters(**options) == theirs.num_parameters(**options)
