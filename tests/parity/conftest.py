"""Twins: a qwen2_edu model and the transformers model with the same configuration and
parameters.
"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def twins(randomise):
    """`twins("Qwen2ForCausalLM", config, dtype)` -> (ours, theirs), every parameter random and
    equal.
    """
    import transformers

    import qwen2_edu

    def make(class_name, config, dtype=torch.float32, seed=0):
        ours = randomise(getattr(qwen2_edu, class_name)(config), seed).to(dtype)
        fields = config.to_dict() | {"num_labels": config.num_labels}
        their_config = transformers.Qwen2Config(
            **fields, attn_implementation=config.attn_implementation
        )
        theirs = getattr(transformers, class_name)(their_config)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        # Cast the parameters alone: `.to(dtype)` would round transformers' rotary frequencies too.
        for parameter in theirs.parameters():
            parameter.data = parameter.data.to(dtype)
        return ours, theirs.eval()

    return make
