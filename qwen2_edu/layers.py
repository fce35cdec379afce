"""The two small layers every block uses: RMSNorm and the gated MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .config import Qwen2Config


class RMSNorm(nn.Module):
    """Scales each vector to root-mean-square 1, then each feature by a learned weight.

    Unlike LayerNorm it takes no mean away.

    Args:
        width: E, the size of the last dimension.
        eps: added to the mean square *inside* the root, so that a zero vector stays zero.

    Shape:
        (..., E) -> (..., E), in the dtype of the input. The statistics are taken in fp32, whatever
        that dtype is.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv:1910.07467.
    """

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        mean_square = wide.pow(2).mean(-1, keepdim=True)
        unit = wide * torch.rsqrt(mean_square + self.eps)
        return self.weight * unit.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class SwiGLU(nn.Module):
    """The MLP of a block: `down(silu(gate(x)) * up(x))`. The gate decides how much of each feature
    of `up` passes.

    Shape:
        (..., E) -> (..., E); F in between. Three matrices, no biases.

    Source: Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202.
    """

    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
