"""Numbers in blocks: how the weights of a GGUF file are packed into fewer bits.

A block is a few numbers that share a scale d (fp16): each is kept as a small integer q, and read
back as d * q. "_0" formats have a scale only; "_1" formats add an offset m, which suits numbers
that do not lie around zero: d * q + m. The "_K" formats pack 256 numbers in sub-blocks, whose own
scales are integers of 6 or 8 bits: two levels of scales cost less than many in fp16.

        bytes of one block                              numbers   bits a number
Q8_0    d 2 | q 32                                           32   8.5
Q5_0    d 2 | fifth bits 4 | nibbles 16                      32   5.5
Q5_1    d 2 | m 2 | fifth bits 4 | nibbles 16                32   6.0
Q4_0    d 2 | nibbles 16                                     32   4.5
Q4_1    d 2 | m 2 | nibbles 16                               32   5.0
Q4_K    d 2 | m 2 | scales 12 | nibbles 128                 256   4.5
Q5_K    d 2 | m 2 | scales 12 | fifth bits 32 | nibbles 128 256   5.5
Q6_K    nibbles 128 | upper bits 64 | scales 16 | d 2       256   6.6

Shapes: every function takes N blocks as they lie in the file, uint8 (N, bytes), and answers fp32
(N, numbers). Source: the reference in C, ggml's ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def half(b: Tensor) -> Tensor:
    """Scales: the bits of an fp16, (N, 2), as fp32 (N, 1)."""
    return b.view(torch.float16).float()


def nibbles(b: Tensor) -> Tensor:
    """Two numbers a byte: (…, n) -> (…, 2n), first all lower halves, then all upper ones."""
    b = b.contiguous()  # between scales, it would be read byte by byte
    return torch.cat((b & 15, b >> 4), dim=-1)


def bits(b: Tensor) -> Tensor:
    """Eight numbers a byte, the lowest bit first: (N, n) -> (N, 8n)."""
    return torch.from_numpy(np.unpackbits(b.numpy(), axis=1, bitorder="little"))


def q8_0(b: Tensor) -> Tensor:
    return half(b[:, :2]) * b[:, 2:].view(torch.int8)


def q4_0(b: Tensor) -> Tensor:
    return half(b[:, :2]) * (nibbles(b[:, 2:]).view(torch.int8) - 8)  # 0 … 15 means -8 … 7


def q4_1(b: Tensor) -> Tensor:
    return half(b[:, :2]) * nibbles(b[:, 4:]) + half(b[:, 2:4])


def q5_0(b: Tensor) -> Tensor:
    q = nibbles(b[:, 6:]) | bits(b[:, 2:6]) << 4
    return half(b[:, :2]) * (q.view(torch.int8) - 16)


def q5_1(b: Tensor) -> Tensor:
    q = nibbles(b[:, 8:]) | bits(b[:, 4:8]) << 4
    return half(b[:, :2]) * q + half(b[:, 2:4])


def six_bit_scales(b: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight offsets of 6 bits in 12 bytes: (N, 12) -> two of (N, 8).

    The first four of each have the lower bits of a byte to themselves. The last four have four
    bits in bytes 8 … 11, and their upper two where the first four left room.
    """
    first, second, shared = b[:, 0:4], b[:, 4:8], b[:, 8:12]
    scales = torch.cat((first & 63, (shared & 15) | (first >> 2 & 48)), dim=-1)
    offsets = torch.cat((second & 63, (shared >> 4) | (second >> 2 & 48)), dim=-1)
    return scales, offsets


def q4_k(b: Tensor) -> Tensor:
    scales, offsets = six_bit_scales(b[:, 4:16])
    q = nibbles(b[:, 16:].unflatten(1, (4, 32))).view(-1, 8, 32)
    d, m = half(b[:, :2]) * scales, half(b[:, 2:4]) * offsets  # (N, 8)
    return (d[..., None] * q - m[..., None]).flatten(1)


def q5_k(b: Tensor) -> Tensor:
    scales, offsets = six_bit_scales(b[:, 4:16])
    places = torch.arange(8, dtype=torch.uint8)[:, None]  # byte i, bit j: number i of sub-block j
    q = nibbles(b[:, 48:].unflatten(1, (4, 32))).view(-1, 8, 32)
    q |= (b[:, None, 16:48] >> places & 1) << 4
    d, m = half(b[:, :2]) * scales, half(b[:, 2:4]) * offsets  # (N, 8)
    return (d[..., None] * q - m[..., None]).flatten(1)


def q6_k(b: Tensor) -> Tensor:
    places = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    upper = b[:, 128:192].unflatten(1, (2, 1, 32)) >> places & 3  # (N, 2, 4, 32)
    q = nibbles(b[:, :128].unflatten(1, (2, 64))).view(-1, 16, 16) | upper.view(-1, 16, 16) << 4
    d = half(b[:, 208:]) * b[:, 192:208].view(torch.int8)  # (N, 16)
    return (d[..., None] * (q.view(torch.int8) - 32)).flatten(1)


class Format(NamedTuple):
    """How `numbers` numbers lie in `bytes` bytes, and the function that reads them."""

    name: str
    numbers: int
    bytes: int
    unpack: Callable[[Tensor], Tensor]


# By the number that stands for it in a file.
FORMATS = {
    0: Format("F32", 1, 4, lambda b: b.view(torch.float32)),
    1: Format("F16", 1, 2, half),
    2: Format("Q4_0", 32, 18, q4_0),
    3: Format("Q4_1", 32, 20, q4_1),
    6: Format("Q5_0", 32, 22, q5_0),
    7: Format("Q5_1", 32, 24, q5_1),
    8: Format("Q8_0", 32, 34, q8_0),
    12: Format("Q4_K", 256, 144, q4_k),
    13: Format("Q5_K", 256, 176, q5_k),
    14: Format("Q6_K", 256, 210, q6_k),
    30: Format("BF16", 1, 2, lambda b: b.view(torch.bfloat16).float()),
}
