"""What the tests on a GPU share. Without a GPU they fail, they do not skip."""

from __future__ import annotations

import pytest
import torch

from qwen2_edu import Qwen2ForCausalLM

W = 8
STACKS = {
    "full": {},
    "mixed": {"use_sliding_window": True, "sliding_window": W, "max_window_layers": 1},
}


@pytest.fixture(scope="session", autouse=True)
def gpu():
    assert torch.cuda.is_available(), "this lane needs a GPU that torch can see; there is none"
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(params=STACKS)
def stack(request):
    """The layers of a model: all of them see everything, or two of three a window."""
    return request.param


@pytest.fixture(scope="session")
def model_of(small_config, randomise):
    """`model_of(stack)`: a small random model, still on the CPU."""

    def make(stack, backend="sdpa", dtype=torch.float32):
        sizes = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 16}
        config = small_config(**STACKS[stack], **sizes, attn_implementation=backend)
        return randomise(Qwen2ForCausalLM(config)).to(dtype)

    return make


@pytest.fixture
def batch():
    """Ids and mask of three rows, padded on the left, three windows long, on the CPU."""
    ids = torch.randint(3, 97, (3, 3 * W))
    mask = (torch.arange(3 * W) >= torch.tensor([0, 5, W + 3])[:, None]).long()
    return ids.masked_fill(mask == 0, 2), mask
