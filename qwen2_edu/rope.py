"""Rotary position embedding: a query and a key are turned by angles that grow with their positions.

After the turn, the score of a query at position m with a key at position n depends on m - n alone.
Feature i is paired with feature i + D/2 ("rotate half"), the layout of the released weights; the
paper pairs neighbours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .checks import Range, check_numbers, one_of
from .config import Qwen2Config

_LINEAR = {"factor": Range(1, 1e30)}
_DYNAMIC = _LINEAR | {"original_max_position_embeddings": Range(1, 2**53)}
_YARN = dict.fromkeys(("attention_factor", "beta_fast", "beta_slow"), Range(0, 1e30, above=True))
_YARN |= _DYNAMIC | dict.fromkeys(("mscale", "mscale_all_dim"), Range(-1e30, 1e30))
# The options of each type, and the numbers that they may be; "truncate" alone is none.
_OPTIONS = {"default": {}, "linear": _LINEAR, "dynamic": _DYNAMIC, "yarn": _YARN}


def rope_frequencies(config: Qwen2Config, length: int = 0) -> tuple[Tensor, float]:
    """How fast does each pair of features turn?

    Args:
        config: gives the type ("default", "linear", "dynamic" or "yarn"), theta and D.
        length: tokens in the longest sequence so far; only "dynamic" asks.

    Returns:
        Angle per position in radians, fp32 (D/2,), and a factor for cos and sin (1 but for yarn).

    Raises:
        ValueError: an unknown type, an option the type does not have, or one it lacks.

    Source: Su et al., RoFormer, arXiv:2104.09864, section 3.2; yarn: Peng et al., arXiv:2309.00071,
        section 3.
    """
    rope = config.rope_parameters
    kind, theta, D = rope["rope_type"], float(rope["rope_theta"]), config.head_dim
    _check(rope, D)
    # On the CPU even where a model is built on the meta device: frequencies are no parameters.
    exponents = torch.arange(0, D, 2, dtype=torch.float32, device="cpu") / D  # 0 … 1 over the pairs
    if kind == "dynamic":  # a larger theta, and so slower turns, for longer text
        limit = config.max_position_embeddings
        stretch = rope["factor"] * max(length, limit) / limit - (rope["factor"] - 1)
        theta *= stretch ** (D / (D - 2))
    frequencies = 1.0 / theta**exponents
    if kind == "linear":  # as if the positions stood closer together
        frequencies = frequencies / rope["factor"]
    if kind == "yarn":
        return _yarn(frequencies, rope, theta, config)
    return frequencies, 1.0


def _yarn(frequencies: Tensor, rope, theta: float, config: Qwen2Config) -> tuple[Tensor, float]:
    """Fast pairs keep their speed, slow pairs slow down by `factor`, a ramp lies between."""
    D, factor = config.head_dim, rope["factor"]
    trained = rope.get("original_max_position_embeddings") or config.max_position_embeddings

    def pair_that_turns(times: float) -> float:
        """Which pair makes this many full turns within the trained length?"""
        return D * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_that_turns(rope.get("beta_fast") or 32)
    high = pair_that_turns(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, D - 1)
    high += 0.001 if low == high else 0.0
    pairs = torch.arange(D // 2, dtype=torch.float32, device="cpu")
    ramp = ((pairs - low) / (high - low)).clamp(0, 1)
    mixed = frequencies / factor * ramp + frequencies * (1 - ramp)

    def sharpening(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    scaling, mscale, all_dim = map(rope.get, ("attention_factor", "mscale", "mscale_all_dim"))
    if scaling is None and mscale and all_dim:
        scaling = sharpening(mscale) / sharpening(all_dim)
    return mixed, sharpening(1.0) if scaling is None else scaling


def _check(rope: dict, D: int) -> None:
    """Refuse an unknown type, an option that the type does not have, or a value that cannot be."""
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in _OPTIONS:
        raise ValueError(f"unknown rope type {kind!r}; known: {', '.join(_OPTIONS)}")
    known = sorted(["truncate", *_YARN] if kind == "yarn" else _OPTIONS[kind])
    if unknown := sorted(set(rope) - {"rope_type", "rope_theta", *known}):
        raise ValueError(f"rope type {kind!r} has no option {unknown}; known: {known}")
    check_numbers(dict.fromkeys(known) | rope, _OPTIONS[kind])
    one_of("truncate", rope.get("truncate"), (True, False, None))
    if kind != "default" and rope.get("factor") is None:
        raise ValueError(f"rope type {kind!r} needs a factor of at least 1, not None")
    if (kind == "yarn" and rope["rope_theta"] <= 1) or (kind == "dynamic" and D == 2):
        raise ValueError(f"rope type {kind!r}: rope_theta {rope['rope_theta']} or D={D} too small")


class RotaryEmbedding(nn.Module):
    """The cos and sin of every angle that a forward pass needs.

    The frequencies are a plain attribute, no buffer: `model.to(torch.bfloat16)` must never round
    the angles.
    """

    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.config = config
        self.frequencies, self.scaling = rope_frequencies(config)
        self.dynamic = config.rope_parameters["rope_type"] == "dynamic"

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """position_ids (B, T) or (1, T) -> cos and sin, each (B, 1, T, D) of `dtype`: the same for
        all heads, each angle twice. The angles themselves are fp32.
        """
        if self.frequencies.device != position_ids.device:  # the same numbers for every thread
            self.frequencies = self.frequencies.to(position_ids.device)
        frequencies, scaling = self.frequencies, self.scaling
        if self.dynamic:  # this pass's own: other threads come through here meanwhile
            frequencies, scaling = rope_frequencies(self.config, int(position_ids.max()) + 1)
            frequencies = frequencies.to(position_ids.device)
        angles = position_ids[..., None].float() * frequencies  # (B, T, D/2)
        angles = torch.cat((angles, angles), dim=-1)[:, None]  # (B, 1, T, D)
        return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


def rotate_half(x: Tensor) -> Tensor:
    """(x1, x2) -> (-x2, x1) on the halves of the last dimension: a quarter turn of every pair."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys, (B, H, T, D), by the angles of their positions, (B, 1, T, D)."""
    return x * cos + rotate_half(x) * sin
