"""Loading onto a GPU and saving from it."""

from __future__ import annotations

import pytest
import torch

from qwen2_edu import Qwen2ForCausalLM

pytestmark = pytest.mark.cuda


@pytest.fixture
def saved(small_config, randomise, tmp_path):
    model = randomise(Qwen2ForCausalLM(small_config(tie_word_embeddings=True)))
    model.save_pretrained(tmp_path, max_shard_size="50kB")
    return model, tmp_path


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"device_map": "auto"}, {"device": 0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_straight_to_the_gpu(saved, options, dtype):
    model, folder = saved
    loaded = Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    assert {p.device.type for p in loaded.parameters()} == {"cuda"}
    for a, b in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(a.cpu(), b.to(dtype))
    assert loaded(torch.arange(6, device="cuda")[None]).logits.isfinite().all()


def test_saved_from_the_gpu(saved, tmp_path):
    model, _ = saved
    model.to("cuda").save_pretrained(tmp_path / "again")
    loaded = Qwen2ForCausalLM.from_pretrained(tmp_path / "again")
    for a, b in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b.cpu())
