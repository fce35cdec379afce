"""What every test shares: one thread, no network, the goldens, and small models with every
parameter random.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest
import torch

GOLDENS = Path(__file__).parent / "goldens"


class NotRun:
    """Counts the tests of a lane that were left out, and says so at the end."""

    def __init__(self, lane: str, way_in: str):
        self.lane, self.way_in, self.left_out = lane, way_in, 0

    def pytest_deselected(self, items):
        self.left_out += sum(item.get_closest_marker(self.lane) is not None for item in items)

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workeroutput"):  # one of several processes: each collects all
            session.config.workeroutput[self.lane] = self.left_out

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.left_out = node.workeroutput[self.lane]

    def pytest_terminal_summary(self, terminalreporter, config):
        if self.left_out and f"not {self.lane}" in config.option.markexpr:
            said = f"{self.left_out} {self.lane} tests were not run: they need {self.way_in}"
            terminalreporter.write_line(said)


def pytest_configure(config):
    config.pluginmanager.register(NotRun("browser", "Chromium; make test-browser"))
    config.pluginmanager.register(NotRun("released", "the released weights; make test"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Two processes: at times each has a lesson's kernel, or the released model, in memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2 if memory > 12e9 and os.cpu_count() > 1 else 1


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def goldens():
    """`goldens("name")` is the parsed tests/goldens/name.json."""
    return lambda name: json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def small_config():
    """`small_config(**changes)`: a tiny configuration whose sizes all differ, so that no two can be
    mixed up.
    """
    from qwen2_edu import Qwen2Config

    def make(**changes):
        fields = {
            "vocab_size": 97,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "rope_theta": 10000.0,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        }
        return Qwen2Config(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def randomise():
    """`randomise(model, seed)`: every parameter random, norms and biases too, so that a dropped one
    shows.
    """

    def fill(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                noise = torch.randn(parameter.shape, generator=generator)
                scale, centre = (
                    (0.3, 1.0) if "norm" in name else (0.5, 0.0) if "bias" in name else (0.2, 0.0)
                )
                parameter.copy_(centre + scale * noise)
        return model.eval()

    return fill
