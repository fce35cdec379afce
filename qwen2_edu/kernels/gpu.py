"""The operators of gemv.cpp on a GPU, in Triton, for a single token: x is (1, 1, K) throughout.

As there, a step costs what reading the weights costs. Each program reads some rows of a matrix, and
there are many more programs than the GPU has processors, so that memory is never idle.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import cdiv, next_power_of_2

Maybe = list[Tensor | None]
PARTS = 32  # into how many a long text is cut, at most: each part's looks are added up on its own


@triton.jit
def rounded(value, like):
    """An fp32 value as the model's dtype would keep it: where its modules round, so do we."""
    return value.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def features(x, at, K, norm, root):
    """x at some places, after the norm if there is one."""
    values = tl.load(x + at, mask=at < K, other=0).to(tl.float32)
    if norm is not None:
        weights = tl.load(norm + at, mask=at < K, other=0).to(tl.float32)
        values = rounded(rounded(values * root, x) * weights, x)
    return values


@triton.jit
def by_row(w, rows, N, x, norm, root, K: tl.constexpr, AT_ONCE: tl.constexpr):
    """Rows of a matrix, (R,), times x, (K,) -> (R,); its scales, if any, are left to the caller."""
    sums = tl.zeros((rows.shape[0], AT_ONCE), tl.float32)  # added up across only at the end
    for start in range(0, K, AT_ONCE):
        at = start + tl.arange(0, AT_ONCE)
        here = (rows < N)[:, None] & (at < K)[None]
        values = tl.load(w + rows[:, None].to(tl.int64) * K + at[None], mask=here, other=0)
        sums += values.to(tl.float32) * features(x, at, K, norm, root)[None]
    return tl.sum(sums, 1)


@triton.jit
def by_group(w, scales, rows, N, x, norm, root, K: tl.constexpr, AT_ONCE: tl.constexpr):
    """As `by_row`, every 32 columns with a scale of their own: int8, or two of 4 bits in a byte."""
    BYTES: tl.constexpr = 16 if w.dtype.element_ty == tl.uint8 else 32  # a group, in one thread
    GROUPS: tl.constexpr = AT_ONCE // 32
    sums = tl.zeros((rows.shape[0], GROUPS), tl.float32)
    for start in range(0, K // 32, GROUPS):
        group, j = start + tl.arange(0, GROUPS), tl.arange(0, BYTES)
        here = (rows < N)[:, None] & (group < K // 32)[None]
        place, at = rows[:, None].to(tl.int64) * (K // 32) + group[None], group[:, None] * 32 + j
        values = tl.load(w + place[:, :, None] * BYTES + j, mask=here[:, :, None], other=0)
        if BYTES == 32:
            terms = values.to(tl.float32) * features(x, at, K, norm, root)[None]
        else:  # j of the group, and j + 16
            terms = ((values & 15).to(tl.float32) - 8) * features(x, at, K, norm, root)[None]
            terms += ((values >> 4).to(tl.float32) - 8) * features(x, at + 16, K, norm, root)[None]
        sums += tl.sum(terms, 2) * tl.load(scales + place, mask=here, other=0).to(tl.float32)
    return tl.sum(sums, 1)


@triton.jit
def dots(w, scales, bias, rows, N, x, norm, root, K: tl.constexpr, AT_ONCE: tl.constexpr):
    """Rows of a matrix, (R,), times x, (K,) -> (R,), rounded as x is. Kinds as in `quantize`."""
    if scales is None:
        total = by_row(w, rows, N, x, norm, root, K, AT_ONCE)
    elif scales.dtype.element_ty == tl.float16:
        total = by_group(w, scales, rows, N, x, norm, root, K, AT_ONCE)
    else:
        total = by_row(w, rows, N, x, norm, root, K, AT_ONCE)
        total *= tl.load(scales + rows, mask=rows < N, other=0)
    if bias is not None:
        total += tl.load(bias + rows, mask=rows < N, other=0).to(tl.float32)
    return rounded(total, x)


@triton.jit
def fill(
    y, w, scales, bias, N, part, x, norm, root, added,
    K: tl.constexpr, R: tl.constexpr, AT_ONCE: tl.constexpr
):  # fmt: skip
    rows = part * R + tl.arange(0, R)
    total = dots(w, scales, bias, rows, N, x, norm, root, K, AT_ONCE)
    if added is not None:
        total += tl.load(added + rows, mask=rows < N, other=0).to(tl.float32)
    tl.store(y + rows, total, mask=rows < N)


@triton.jit
def product(
    y, x, w0, s0, b0, n0, w1, s1, b1, n1, w2, s2, b2, n2, norm, eps, added,
    GATED: tl.constexpr, K: tl.constexpr, R: tl.constexpr, AT_ONCE: tl.constexpr
):  # fmt: skip
    """One to three matrices times x, side by side in y; or, GATED, silu(w0 x) * (w1 x)."""
    part, root = tl.program_id(0), 1.0
    if norm is not None:
        squares = tl.zeros((AT_ONCE,), tl.float32)
        for start in range(0, K, AT_ONCE):
            at = start + tl.arange(0, AT_ONCE)
            values = tl.load(x + at, mask=at < K, other=0).to(tl.float32)
            squares += values * values
        root = tl.rsqrt(tl.sum(squares, 0) / K + eps)
    if GATED:
        rows = part * R + tl.arange(0, R)
        gate = dots(w0, s0, b0, rows, n0, x, norm, root, K, AT_ONCE)
        up = dots(w1, s1, b1, rows, n0, x, norm, root, K, AT_ONCE)
        tl.store(y + rows, rounded(gate * tl.sigmoid(gate), x) * up, mask=rows < n0)
    else:
        first = tl.cdiv(n0, R)
        if part < first:
            fill(y, w0, s0, b0, n0, part, x, norm, root, added, K, R, AT_ONCE)
        elif w1 is not None:
            second = first + tl.cdiv(n1, R)
            if part < second:
                fill(y + n0, w1, s1, b1, n1, part - first, x, norm, root, None, K, R, AT_ONCE)
            elif w2 is not None:
                fill(y + n0 + n1, w2, s2, b2, n2, part - second, x, norm, root, None, K, R, AT_ONCE)


@triton.jit
def turn(
    x, cos, sin, keys, values, at, H, G, S, of_g, of_s, HALF: tl.constexpr, AT_ONCE: tl.constexpr
):
    """A head of queries or keys by the angles of its position, as `rope.apply_rope`; keys, and
    values as they are, go to their slot of the cache.
    """
    h, i = tl.program_id(0), tl.arange(0, AT_ONCE)
    here, first = i < HALF, x + h * 2 * HALF + i
    a, b = tl.load(first, mask=here), tl.load(first + HALF, mask=here)
    if h < H + G:
        co = tl.load(cos + i, mask=here).to(tl.float32)
        si = tl.load(sin + i, mask=here).to(tl.float32)
        c, d = a.to(tl.float32), b.to(tl.float32)
        a = (rounded(c * co, x) - rounded(d * si, x)).to(a.dtype)
        b = (rounded(d * co, x) + rounded(c * si, x)).to(b.dtype)
    slot = i + tl.load(at) % S * of_s
    if h < H:
        to = first
    elif h < H + G:
        to = keys + (h - H) * of_g + slot
    else:
        to = values + (h - H - G) * of_g + slot
    tl.store(to, a, mask=here)
    tl.store(to + HALF, b, mask=here)


@triton.jit
def look(
    sums, tops, totals, q, k, v, q_at, k_at, window, S, of_g, of_s, scale, PART_S: tl.constexpr,
    SHARE: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, AT_ONCE: tl.constexpr
):  # fmt: skip
    """What a head reads in a part of the text, by the running softmax of FlashAttention: values
    weighted by exp(score - top), their sum, and the total of the weights.
    """
    h, part, parts, d = tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.arange(0, WIDE)
    query = tl.load(q + h * D + d, mask=d < D, other=0).to(tl.float32)
    now, top, total = tl.load(q_at), -1e30, 0.0
    read = tl.zeros((WIDE,), tl.float32)
    for start in range(0, PART_S, AT_ONCE):
        s = part * PART_S + start + tl.arange(0, AT_ONCE)
        at = tl.load(k_at + s, mask=s < S, other=-1)
        seen = (at >= 0) & (at <= now) & (at > now - window)  # the one visibility rule: masks.py
        place = h // SHARE * of_g + s[:, None] * of_s + d[None]
        here = seen[:, None] & (d < D)[None]
        keys = tl.load(k + place, mask=here, other=0).to(tl.float32)
        values = tl.load(v + place, mask=here, other=0).to(tl.float32)
        scores = tl.where(seen, tl.sum(keys * query[None], 1) * scale, -1e30)
        higher = tl.maximum(top, tl.max(scores, 0))
        weights = tl.where(seen, tl.exp(scores - higher), 0)
        read = read * tl.exp(top - higher) + tl.sum(weights[:, None] * values, 0)
        total = total * tl.exp(top - higher) + tl.sum(weights, 0)
        top = higher
    tl.store(sums + (h * parts + part) * WIDE + d, read)
    tl.store(tops + h * parts + part, top)
    tl.store(totals + h * parts + part, total)


@triton.jit
def join(y, sums, tops, totals, parts, D: tl.constexpr, WIDE: tl.constexpr, MOST: tl.constexpr):
    """The parts of a head together."""
    h, p, d = tl.program_id(0), tl.arange(0, MOST), tl.arange(0, WIDE)
    top = tl.load(tops + h * parts + p, mask=p < parts, other=-1e30)
    share = tl.exp(top - tl.max(top, 0))
    total = tl.sum(share * tl.load(totals + h * parts + p, mask=p < parts, other=0), 0)
    place = (h * parts + p)[:, None] * WIDE + d[None]
    read = tl.load(sums + place, mask=(p < parts)[:, None], other=0)
    tl.store(y + h * D + d, tl.sum(share[:, None] * read, 0) / total, mask=d < D)


def attend(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, window: int) -> Tensor:
    """q (1, 1, H, D), k and v (1, G, S, D); positions (1, 1) and (1, S) -> (1, 1, H * D)."""
    (H, D), (G, S), (_, of_g, of_s, _) = q.shape[2:], k.shape[1:3], k.stride()
    assert v.stride() == k.stride()
    part_S = cdiv(cdiv(S, PARTS), 64) * 64
    parts, wide = cdiv(S, part_S), next_power_of_2(D)
    sums = torch.empty(H, parts, wide, device=q.device)
    tops, totals = (torch.empty(H, parts, device=q.device) for _ in range(2))
    y = q.new_empty(1, 1, H * D)
    ends = sums, tops, totals
    look[H, parts](
        *ends, q, k, v, q_at, k_at, window, S, of_g, of_s, D**-0.5, part_S, H // G, D, wide, 64
    )
    join[H,](y, *ends, parts, D, wide, next_power_of_2(parts))
    return y


def shape_of_work(K: int, N: int, bits: int) -> tuple[int, int, int]:
    """Rows a program, columns at once, and warps, for N rows of K: of 30 ways the fastest or nearly
    so on an H200, at the shapes of Qwen2-0.5B and 7B.
    """
    if bits == 4:
        return 4 if N > 4 * K else 1, min(next_power_of_2(K), 2048), 4 if K > 1024 else 2
    if K > 2 * N:  # few and long
        return 1, 512, 8
    if bits == 8:
        return 2, 512, 2
    if K <= 1024:
        return 4, next_power_of_2(K), 4
    return (4, 2048, 8) if K > 2048 and N > 4 * K else (8, 512, 4)


def linear(
    x: Tensor, weights: list[Tensor], scales: Maybe, biases: Maybe, norm: Tensor | None = None,
    eps: float = 0.0, added: Tensor | None = None, gated: bool = False
) -> Tensor:  # fmt: skip
    """Up to three matrices of one input, after a norm if there is one: x (…, K) -> (…, N). What is
    `added` has the shape of the answer; `gated`, it is silu(first x) * (second x).
    """
    K, rows = x.shape[-1], [len(w) for w in weights]
    y = x.new_empty(*x.shape[:-1], rows[0] if gated else sum(rows))
    bits = 16 if scales[0] is None else 8 * weights[0].shape[1] // K
    R, at_once, warps = shape_of_work(K, sum(rows), bits)
    programs = cdiv(rows[0], R) if gated else sum(cdiv(n, R) for n in rows)
    matrices = [part for four in zip(weights, scales, biases, rows, strict=True) for part in four]
    matrices += [None] * (12 - len(matrices))
    product[programs,](y, x, *matrices, norm, eps, added, gated, K, R, at_once, num_warps=warps)
    return y


def keep_(x: Tensor, cos: Tensor, sin: Tensor, k: Tensor, v: Tensor, at: Tensor) -> None:
    """Of x, (1, 1, (H + 2G) * D), rotate queries in place; keys, rotated, and values go to k and v,
    (1, G, S, D), where a token at position `at`, (1, 1), lies. cos, sin: (1, D).
    """
    (_, G, S, D), (_, of_g, of_s, _) = k.shape, k.stride()
    assert v.stride() == k.stride()
    heads, half = x.shape[-1] // D, D // 2
    strides = of_g, of_s, half, next_power_of_2(half)
    turn[heads,](x, cos, sin, k, v, at, heads - 2 * G, G, S, *strides, num_warps=1)


def block(
    x: Tensor, q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, window: int,
    weights: list[Tensor], scales: Maybe, biases: Maybe, norms: list[Tensor], eps: list[float]
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """From an attention to what comes before the next; see gemv.cpp."""
    o, gate_up, down, after = (
        {"weights": weights[part], "scales": scales[part], "biases": biases[part]}
        for part in (slice(0, 1), slice(1, 3), slice(3, 4), slice(4, None))
    )
    x = linear(attend(q, k, v, q_at, k_at, window), **o, added=x)
    hidden = linear(x, **gate_up, norm=norms[0], eps=eps[0], gated=True)
    x = linear(hidden, **down, added=x)
    return x, linear(x, **after, norm=norms[1], eps=eps[1])
