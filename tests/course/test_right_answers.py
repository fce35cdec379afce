"""Right answers are accepted, however they are written: as a loop, with einsum, in torch, in numpy.

Each exercise of lessons 01 to 08 is answered in several ways that somebody might take. None of them
comes from the solutions.
"""

from __future__ import annotations

import bisect
import codecs
import itertools
import math
import re

import numpy as np
import pytest
import torch

from qwen2_edu.bpe import BYTE_TO_CHAR, token_to_text
from qwen2_edu.course.exercises import exercises_of
from tests.course.right_answers import questions

F = torch.nn.functional
PI = math.pi

# --- 01


def match_by_regex(piece, vocab):
    longest_first = sorted(vocab, key=len, reverse=True)
    return re.findall(b"|".join(map(re.escape, longest_first)), piece)


def match_recursively(piece, vocab):
    for n in range(len(piece), 0, -1):
        if piece[:n] in vocab:
            return [piece[:n], *match_recursively(piece[n:], vocab)]
    return []


def match_with_two_ends(piece, vocab):
    start, tokens = 0, []
    while start < len(piece):
        end = max(e for e in range(start + 1, len(piece) + 1) if piece[start:e] in vocab)
        tokens.append(piece[start:end])
        start = end
    return tokens


def match_in_numpy(piece, vocab):
    start, tokens = 0, []
    while start < len(piece):
        fits = np.array([piece[start:e] in vocab for e in range(start + 1, len(piece) + 1)])
        tokens.append(piece[start : start + 1 + int(fits.nonzero()[0].max())])
        start += len(tokens[-1])
    return tokens


def stream_by_decoder(chunks):
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(chunk) for chunk in chunks]


def stream_by_error_position(chunks):
    shown, held = [], b""
    for chunk in chunks:
        held += chunk
        try:
            text, held = held.decode(), b""
        except UnicodeDecodeError as error:
            text, held = held[: error.start].decode(), held[error.start :]
        shown.append(text)
    return shown


def stream_by_difference(chunks):
    so_far = [b"".join(chunks[:i]).decode(errors="ignore") for i in range(len(chunks) + 1)]
    return [now[len(before) :] for before, now in itertools.pairwise(so_far)]


def stream_by_lead_byte(chunks):
    held, shown = b"", []
    for chunk in chunks:
        held += chunk
        cut = len(held)
        for back in range(1, min(4, len(held)) + 1):
            lead = held[-back]
            if lead >= 0xC0:
                need = 2 + (lead >= 0xE0) + (lead >= 0xF0)
                cut -= back * (need > back)
                break
            if lead < 0x80:
                break
        shown.append(held[:cut].decode())
        held = held[cut:]
    return shown


def groups_backwards(digits):
    found = []
    while digits:
        digits, last = digits[:-3], digits[-3:]
        found.insert(0, last)
    return found


# --- 02


def table_gradient_numpy(ids, upstream, V):
    gradient = np.zeros((V, upstream.shape[1]))
    np.add.at(gradient, ids.numpy(), upstream.numpy())
    return gradient


def table_gradient_loop(ids, upstream, V):
    gradient = torch.zeros(V, upstream.shape[1])
    for t in range(len(ids)):
        gradient[ids[t]] += upstream[t]
    return gradient


def table_gradient_autograd(ids, upstream, V):
    table = torch.zeros(V, upstream.shape[1], requires_grad=True)
    F.embedding(ids, table).backward(upstream)
    return table.grad


def norm_gradient_formula(x, weight, upstream, eps):
    E = x.shape[-1]
    s = 1 / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    g = upstream * weight
    return s * g - s**3 * x * (g * x).sum(-1, keepdim=True) / E


def norm_gradient_einsum(x, weight, upstream, eps):
    """By the matrix of derivatives of each row, s - s^3 x x^T / E."""
    E = x.shape[-1]
    s = (torch.einsum("te,te->t", x, x) / E + eps) ** -0.5
    outer = torch.einsum("t,ti,tj->tij", s**3 / E, x, x)
    matrix = torch.einsum("t,ij->tij", s, torch.eye(E)) - outer
    return torch.einsum("tij,j,tj->ti", matrix, weight, upstream)


def norm_gradient_numpy(x, weight, upstream, eps):
    x, weight, upstream = (t.double().numpy() for t in (x, weight, upstream))
    s = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    g = upstream * weight
    return s * g - s**3 * x * (g * x).mean(-1, keepdims=True)


def norm_gradient_loop(x, weight, upstream, eps):
    out = torch.zeros_like(x)
    T, E = x.shape
    for t in range(T):
        s = (sum(float(x[t, j]) ** 2 for j in range(E)) / E + eps) ** -0.5
        along = sum(float(upstream[t, j] * weight[j] * x[t, j]) for j in range(E)) / E
        for i in range(E):
            out[t, i] = s * float(upstream[t, i] * weight[i]) - s**3 * float(x[t, i]) * along
    return out


def norm_gradient_autograd(x, weight, upstream, eps):
    x = x.clone().requires_grad_()
    y = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight
    return torch.autograd.grad(y, x, upstream)[0]


# --- 03


def turn_by_matrix(x, angle):
    c, s = math.cos(angle), math.sin(angle)
    return x @ torch.tensor([[c, s], [-s, c]])


def turn_complex(x, angle):
    z = torch.view_as_complex(x.contiguous()) * complex(math.cos(angle), math.sin(angle))
    return torch.view_as_real(z)


def turn_numpy(x, angle):
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return torch.from_numpy(np.einsum("ij,...j->...i", matrix, x.numpy()))


def turn_loop(x, angle):
    out = torch.empty_like(x)
    for pair, to in zip(x.reshape(-1, 2), out.reshape(-1, 2), strict=True):
        to[0] = pair[0] * math.cos(angle) - pair[1] * math.sin(angle)
        to[1] = pair[0] * math.sin(angle) + pair[1] * math.cos(angle)
    return out


def to_halves_loop(weight, H):
    D, out = len(weight) // H, torch.empty_like(weight)
    for h in range(H):
        for i in range(D // 2):
            out[h * D + i] = weight[h * D + 2 * i]
            out[h * D + D // 2 + i] = weight[h * D + 2 * i + 1]
    return out


def to_halves_cat(weight, H):
    return torch.cat([torch.cat((w[0::2], w[1::2])) for w in weight.chunk(H)])


def to_halves_numpy(weight, H):
    w = weight.numpy().reshape(H, -1, 2, weight.shape[1])
    return w.transpose(0, 2, 1, 3).reshape(weight.shape)


def to_halves_index(weight, H):
    rows = torch.arange(len(weight)).view(H, -1, 2).mT.flatten()
    return weight[rows]


# --- 04


def look_loop(q, keys, values):
    e = [
        math.exp(sum(float(a * b) for a, b in zip(q, k, strict=True)) / len(q) ** 0.5) for k in keys
    ]
    return sum(w / sum(e) * v for w, v in zip(e, values, strict=True))


def look_numpy(q, keys, values):
    q, keys, values = q.numpy(), keys.numpy(), values.numpy()
    e = np.exp(keys @ q / np.sqrt(len(q)))
    return e / e.sum() @ values


def look_einsum(q, keys, values):
    scores = torch.einsum("d,sd->s", q, keys) / math.sqrt(q.numel())
    return torch.einsum("s,sd->d", scores.softmax(0), values)


def look_sdpa(q, keys, values):
    return F.scaled_dot_product_attention(q[None], keys, values)[0]


def causal_loop(scores):
    T, S = scores.shape
    rows = []
    for t in range(T):
        seen = t + S - T + 1
        e = scores[t, :seen].exp()
        rows.append(torch.cat((e / e.sum(), torch.zeros(S - seen))))
    return torch.stack(rows)


def causal_numpy(scores):
    s = scores.numpy().copy()
    T, S = s.shape
    s[~np.tri(T, S, S - T, dtype=bool)] = -np.inf
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def causal_positions(scores):
    T, S = scores.shape
    seen = torch.arange(S)[None] <= torch.arange(S - T, S)[:, None]
    return torch.where(seen, scores, -torch.inf).softmax(-1)


def causal_added(scores):
    T, S = scores.shape
    return F.softmax(scores + torch.full((T, S), -1e9).triu(S - T + 1), dim=1)


def split_loop(x, H):
    D = x.shape[-1] // H
    return torch.stack([x[..., h * D : (h + 1) * D] for h in range(H)], dim=1)


def split_numpy(x, H):
    return np.swapaxes(x.numpy().reshape(*x.shape[:2], H, -1), 1, 2)


def split_unflatten(x, H):
    return x.unflatten(-1, (H, -1)).permute(0, 2, 1, 3)


def leaks_jacobian(attend, x):
    slopes = torch.autograd.functional.jacobian(lambda y: attend(y.clone()), x)  # (T, E, T, E)
    return bool(slopes.abs().sum((1, 3)).triu(1).max() > 1e-6)


def leaks_cut(attend, x):
    whole = attend(x.clone())
    return any(
        not torch.allclose(attend(x[:n].clone()), whole[:n], atol=1e-6) for n in range(1, len(x))
    )


def leaks_numpy(attend, x):
    before = attend(x).numpy()
    for j in range(1, len(x)):
        y = x.numpy().copy()
        y[j] = 7.0
        if np.abs(attend(torch.from_numpy(y)).numpy()[:j] - before[:j]).max() > 1e-6:
            return True
    return False


def leaks_noise(attend, x):
    for t in range(len(x) - 1):
        y = x.clone()
        y[t + 1 :] = torch.linspace(-3, 5, y[t + 1 :].numel()).view_as(y[t + 1 :])
        if (attend(y)[t] - attend(x)[t]).abs().max() > 1e-6:
            return True
    return False


# --- 05


def repeat_loop(k, n):
    return torch.stack([k[:, h // n] for h in range(k.shape[1] * n)], dim=1)


def repeat_expand(k, n):
    B, G, S, D = k.shape
    return k[:, :, None].expand(B, G, n, S, D).reshape(B, G * n, S, D)


def repeat_numpy(k, n):
    return np.repeat(k.numpy(), n, axis=1)


def repeat_einsum(k, n):
    return torch.einsum("bgsd,n->bgnsd", k, torch.ones(n)).flatten(1, 2)


def merge_loop(weight, H, G):
    heads = weight.chunk(H)
    n = H // G
    return torch.cat([sum(heads[g * n : (g + 1) * n]) / n for g in range(G)])


def merge_einsum(weight, H, G):
    heads = weight.reshape(G, H // G, -1, weight.shape[1])
    return torch.einsum("gnde->gde", heads).div(H // G).flatten(0, 1)


def merge_numpy(weight, H, G):
    w = weight.numpy()
    return w.reshape(G, H // G, -1, w.shape[1]).mean(1).reshape(-1, w.shape[1])


# --- 06


def ring_by_slot(read, window):
    last = [max(range(s, read, window), default=-1) for s in range(window)]
    return last


def ring_numpy(read, window):
    slots = np.full(window, -1)
    kept = np.arange(max(0, read - window), read)
    slots[kept % window] = kept
    return slots


def ring_torch(read, window):
    slots = torch.full((window,), -1, dtype=torch.int32)
    kept = torch.arange(max(0, read - window), read, dtype=torch.int32)
    slots[kept.long() % window] = kept
    return slots


def ring_by_writing(read, window):
    slots = [-1] * window
    for position in range(read):
        slots[position % window] = position
    return tuple(slots)


def earliest_loop(position, sliding, window):
    for slides in sliding:
        position = max(0, position - window + 1) if slides else 0
    return position


def bytes_loop(layers, sliding, G, D, window, tokens):
    kept = [min(window, tokens) if i >= layers - sliding else tokens for i in range(layers)]
    return sum(2 * G * D * 2 * n for n in kept)


# --- 07


def mlp_rows(x, gate_up, down):
    n = len(gate_up) // 2
    gate, up = x @ gate_up[:n].T, x @ gate_up[n:].T
    return (gate / (1 + torch.exp(-gate)) * up) @ down.T


def mlp_einsum(x, gate_up, down):
    gate, up = torch.einsum("te,pfe->ptf", x, gate_up.unflatten(0, (2, -1)))
    return torch.einsum("tf,ef->te", gate * gate.sigmoid() * up, down)


def mlp_numpy(x, gate_up, down):
    both = x.numpy() @ gate_up.numpy().T
    gate, up = np.split(both, 2, axis=1)
    return gate / (1 + np.exp(-gate)) * up @ down.numpy().T


def mlp_linear(x, gate_up, down):
    gate, up = F.linear(x, gate_up).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down)


def silu_numpy(x):
    return torch.from_numpy(x.numpy() / (1 + np.exp(-x.numpy().astype(float))))


def silu_loop(x):
    numbers = [v / (1 + math.exp(-v)) for v in x.flatten().tolist()]
    return torch.tensor(numbers).reshape(x.shape)


def width_loop(E):
    F = 128
    while 3 * E * F < 2 * E * 4 * E:
        F += 128
    return F


def block_steps(x, attention, mlp, first, second):
    heard = attention(first(x))
    middle = torch.add(x, heard)
    return torch.add(middle, mlp(second(middle)))


def block_copied(x, attention, mlp, first, second):
    out = x.clone()
    out += attention(first(out))
    out += mlp(second(out))
    return out


def block_stacked(x, attention, mlp, first, second):
    parts = [x, attention(first(x))]
    parts.append(mlp(second(torch.stack(parts).sum(0))))
    return torch.stack(parts).sum(0)


def block_einsum(x, attention, mlp, first, second):
    def add(*pair):
        return torch.einsum("n...->...", torch.stack(pair))

    x = add(x, attention(first(x)))
    return add(x, mlp(second(x)))


# --- 08


def next_gather(logits, lengths):
    rows = torch.arange(len(lengths))
    return logits[rows, torch.tensor(lengths) - 1].argmax(dim=-1)


def next_int32(logits, lengths):
    return next_gather(logits, lengths).int()


def next_numpy(logits, lengths):
    return logits.numpy()[np.arange(len(lengths)), np.array(lengths) - 1].argmax(-1)


def next_list(logits, lengths):
    return [int(row[n - 1].argmax()) for row, n in zip(logits, lengths, strict=True)]


def first_loop(rows, tolerance):
    for name, gap in rows:
        if gap > tolerance or math.isnan(gap):
            return name
    return None


def first_numpy(rows, tolerance):
    bad = ~(np.array([gap for _, gap in rows]) <= tolerance)
    return rows[int(bad.argmax())][0] if bad.any() else None


def first_torch(rows, tolerance):
    gaps = torch.tensor([gap for _, gap in rows], dtype=torch.float64)
    beyond = (gaps.isnan() | (gaps > tolerance)).nonzero().flatten()
    return rows[beyond[0]][0] if len(beyond) else None


def first_by_search(rows, tolerance):
    return next((name for name, gap in rows if not gap <= tolerance), None)


# --- 0: the piece of each lesson


def merge_pairs(piece, ranks):
    tokens = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        best = None
        for i in range(len(tokens) - 1):
            rank = ranks.get(tokens[i] + tokens[i + 1])
            if rank is not None and (best is None or rank < best[0]):
                best = rank, i
        if best is None:
            return tokens
        i = best[1]
        tokens = [*tokens[:i], tokens[i] + tokens[i + 1], *tokens[i + 2 :]]


def merge_recursively(piece, ranks):
    parts = list(piece) if isinstance(piece, tuple) else [bytes([b]) for b in piece]
    pairs = [ranks.get(a + b, math.inf) for a, b in itertools.pairwise(parts)]
    if not pairs or min(pairs) == math.inf:
        return parts
    i = int(np.argmin(pairs))
    return merge_recursively((*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]), ranks)


def merge_by_rounds(piece, ranks):
    """All places of the best pair in one round."""
    tokens = [piece[i : i + 1] for i in range(len(piece))]
    while pairs := {a + b for a, b in itertools.pairwise(tokens)} & ranks.keys():
        best, merged = min(pairs, key=ranks.get), []
        for token in tokens:
            joins = merged and merged[-1] + token == best
            merged = [*merged[:-1], best] if joins else [*merged, token]
        tokens = merged
    return tokens


def merge_by_sorting(piece, ranks):
    cuts = list(range(len(piece) + 1))
    while True:
        ways = zip(range(1, len(cuts)), cuts, cuts[2:], strict=False)
        ways = sorted((ranks[piece[a:b]], i) for i, a, b in ways if piece[a:b] in ranks)
        if not ways:
            return [piece[a:b] for a, b in itertools.pairwise(cuts)]
        del cuts[ways[0][1]]


def norm_numpy(x, weight, eps):
    wide = x.float().numpy()
    unit = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps)
    return torch.from_numpy(unit).to(x.dtype) * weight


def norm_loop(x, weight, eps):
    rows = []
    for row in x.float():
        rows.append(row / torch.sqrt((row * row).sum() / len(row) + eps))
    return torch.stack(rows).to(x.dtype) * weight


def norm_functional(x, weight, eps):
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype) * weight


def norm_einsum(x, weight, eps):
    mean = torch.einsum("...e,...e->...", x.float(), x.float()) / x.shape[-1]
    return weight * (x.float() / (mean + eps).sqrt()[..., None]).to(x)


def rope_pairs(x, cos, sin):
    D, out = x.shape[-1], torch.empty_like(x)
    for i in range(D // 2):
        a, b = x[..., i], x[..., i + D // 2]
        out[..., i] = a * cos[..., i] - b * sin[..., i]
        out[..., i + D // 2] = a * sin[..., i] + b * cos[..., i]
    return out


def rope_complex(x, cos, sin):
    D = x.shape[-1] // 2
    z = torch.complex(x[..., :D], x[..., D:]) * torch.complex(cos[..., :D], sin[..., :D])
    return torch.cat((z.real, z.imag), dim=-1)


def rope_numpy(x, cos, sin):
    x, cos, sin = x.numpy(), cos.numpy(), sin.numpy()
    first, second = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate((-second, first), -1) * sin


def rope_roll(x, cos, sin):
    sign = torch.ones(x.shape[-1])
    sign[: x.shape[-1] // 2] = -1
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sign * sin


def heads_loop(q, k, v):
    B, H, T, D = q.shape
    out, n = torch.empty_like(q), H // k.shape[1]
    for b, h, t in itertools.product(range(B), range(H), range(T)):
        scores = k[b, h // n, : t + 1] @ q[b, h, t] / D**0.5
        out[b, h, t] = scores.softmax(0) @ v[b, h // n, : t + 1]
    return out


def heads_sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def heads_einsum(q, k, v):
    n = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(n, 1), v.repeat_interleave(n, 1)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.shape[-1])
    scores = scores + torch.full(scores.shape[-2:], -1e30).triu(1)
    return torch.einsum("bhts,bhsd->bhtd", scores.softmax(-1), v)


def heads_numpy(q, k, v):
    q, k, v = q.numpy(), k.numpy(), v.numpy()
    n = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, n, 1), np.repeat(v, n, 1)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    T = q.shape[2]
    e = np.where(np.tri(T, dtype=bool), np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return e / e.sum(-1, keepdims=True) @ v


def visible_loop(q_pos, k_pos, window):
    def sees(q, k):
        return k >= 0 and k <= q and (window is None or q - k < window)

    return torch.tensor(
        [
            [[[bool(sees(q, k)) for k in keys] for q in queries]]
            for queries, keys in zip(q_pos.tolist(), k_pos.tolist(), strict=True)
        ]
    )


def visible_numpy(q_pos, k_pos, window):
    q, k = q_pos.numpy()[:, None, :, None], k_pos.numpy()[:, None, None]
    return (k >= 0) & (k <= q) & (q - k < (np.inf if window is None else window))


def visible_back(q_pos, k_pos, window):
    back = q_pos[:, :, None] - k_pos[:, None, :]  # (B, T, S)
    near = torch.ones_like(back, dtype=torch.bool) if window is None else back < window
    return ((back >= 0) & near & (k_pos >= 0)[:, None]).unsqueeze(1)


def visible_outer(q_pos, k_pos, window):
    reach = 1 << 40 if window is None else window
    rows = [
        torch.le(k[None], q[:, None]) & torch.gt(k[None], q[:, None] - reach) & k.ge(0)
        for q, k in zip(q_pos, k_pos, strict=True)
    ]
    return torch.stack(rows)[:, None]


def swiglu_torch(x, gate, up, down):
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def swiglu_units(x, gate, up, down):
    out = torch.zeros_like(x)
    for g, u, d in zip(gate, up, down.T, strict=True):
        a = x @ g
        out += (a * torch.sigmoid(a) * (x @ u))[:, None] * d
    return out


def swiglu_numpy(x, gate, up, down):
    g, u = x.numpy() @ gate.numpy().T, x.numpy() @ up.numpy().T
    return (g / (1 + np.exp(-g)) * u) @ down.numpy().T


def swiglu_einsum(x, gate, up, down):
    g, u = torch.einsum("te,fe->tf", x, gate), torch.einsum("te,fe->tf", x, up)
    return torch.einsum("tf,ef->te", F.silu(g) * u, down)


def logits_recursive(ids, table, blocks, norm, x=None):
    x = F.embedding(ids, table) if x is None else x
    if not blocks:
        return torch.einsum("bte,ve->btv", norm(x), table)
    (attention, mlp, first, second), *rest = blocks
    middle = attention(first(x)) + x
    return logits_recursive(ids, table, rest, norm, mlp(second(middle)) + middle)


def logits_in_place(ids, table, blocks, norm):
    x = table[ids].clone()
    for attention, mlp, first, second in blocks:
        x += attention(first(x))
        x += mlp(second(x))
    return F.linear(norm(x), table)


def logits_one_hot(ids, table, blocks, norm):
    x = F.one_hot(ids, len(table)).float() @ table
    for block in blocks:
        for part, its_norm in zip(block[:2], block[2:], strict=True):
            x = x + part(its_norm(x))
    return norm(x).numpy() @ table.numpy().T


def logits_by_rows(ids, table, blocks, norm):
    texts = []
    for row in ids:
        x = torch.stack([table[int(i)] for i in row])[None]
        for attention, mlp, first, second in blocks:
            x = x + attention(first(x))
            x = x + mlp(second(x))
        texts.append(norm(x) @ table.T)
    return torch.cat(texts)


PIECES = {
    "ex01_0": [merge_pairs, merge_recursively, merge_by_rounds, merge_by_sorting],
    "ex02_0": [norm_loop, norm_functional, norm_einsum, norm_numpy],
    "ex03_0": [rope_pairs, rope_complex, rope_numpy, rope_roll],
    "ex04_0": [heads_loop, heads_sdpa, heads_einsum, heads_numpy],
    "ex05_0": [heads_loop, heads_sdpa, heads_einsum, heads_numpy],
    "ex06_0": [visible_loop, visible_numpy, visible_back, visible_outer],
    "ex07_0": [swiglu_units, swiglu_numpy, swiglu_einsum, swiglu_torch],
    "ex08_0": [logits_recursive, logits_in_place, logits_one_hot, logits_by_rows],
}

GROWTH = (1 + 0.1 * math.log(8)) ** 2
SAVED = 135_905_280
FIT = exercises_of("05")["ex05_5"].answer

RIGHT = {
    "ex01_1": [
        lambda text: "".join(map(BYTE_TO_CHAR.__getitem__, text.encode("utf-8"))),
        lambda text: text.encode().decode("latin-1").translate(BYTE_TO_CHAR),
        lambda text: token_to_text(bytes(text, "utf8")),
        lambda text: "".join(BYTE_TO_CHAR[int(b)] for b in np.frombuffer(text.encode(), np.uint8)),
    ],
    "ex01_2": [match_by_regex, match_recursively, match_with_two_ends, match_in_numpy],
    "ex01_3": [
        stream_by_error_position,
        stream_by_difference,
        stream_by_lead_byte,
        stream_by_decoder,
    ],
    "ex01_4": [
        groups_backwards,
        lambda d: [d[max(0, e - 3) : e] for e in range(len(d) % 3 or 3, len(d) + 1, 3)],
        lambda d: re.findall(r"\d{1,3}(?=(?:\d{3})*$)", d),
        lambda d: tuple(groups_backwards(d)),
    ],
    "ex01_5": [SAVED, float(SAVED), torch.tensor(SAVED), np.int64(SAVED), str(SAVED)],
    "ex02_1": [
        [0.2, 1.4, 2.0, 2.0],
        (0.2, 1.4, 2.0, 2.0),
        torch.tensor([0.2, 1.4, 2, 2]),
        np.array([0.2, 1.4, 2, 2]),
    ],
    "ex02_2": [
        table_gradient_loop,
        table_gradient_numpy,
        table_gradient_autograd,
        lambda ids, up, V: torch.einsum("tv,te->ve", F.one_hot(ids, V).float(), up),
        lambda ids, up, V: torch.zeros(V, up.shape[1]).index_add(0, ids, up),
    ],
    "ex02_3": [
        lambda y, w, m, eps: torch.sqrt(m + eps) * y / w,
        lambda y, w, m, eps: y.numpy() * np.sqrt(m.numpy() + eps) / w.numpy(),
        lambda y, w, m, eps: torch.einsum("te,t->te", y / w, (m[:, 0] + eps) ** 0.5),
        lambda y, w, m, eps: torch.stack(
            [row / w * math.sqrt(float(q) + eps) for row, q in zip(y, m, strict=True)]
        ),
    ],
    "ex02_4": [
        lambda weight, matrix: matrix @ torch.diag(weight),
        lambda weight, matrix: torch.einsum("oi,i->oi", matrix, weight),
        lambda weight, matrix: matrix.numpy() * weight.numpy()[None],
        lambda weight, matrix: torch.stack([row * weight for row in matrix]),
    ],
    "ex02_5": [
        norm_gradient_formula,
        norm_gradient_numpy,
        norm_gradient_loop,
        norm_gradient_einsum,
    ],
    "ex03_1": [turn_by_matrix, turn_complex, turn_numpy, turn_loop],
    "ex03_2": [
        lambda D, theta: [2 * PI * theta ** (2 * i / D) for i in range(D // 2)],
        lambda D, theta: 2 * np.pi * theta ** (np.arange(0, D, 2) / D),
        lambda D, theta: torch.from_numpy(2 * np.pi * theta ** (np.arange(0, D, 2) / D)),
        lambda D, theta: 2 * PI / theta ** -(torch.arange(0, D, 2).double() / D),
    ],
    "ex03_3": [
        lambda cached, T: torch.arange(cached + T)[cached:].unsqueeze(0),
        lambda cached, T: [list(range(cached, cached + T))],
        lambda cached, T: np.arange(cached, cached + T).reshape(1, -1),
        lambda cached, T: (torch.arange(T, dtype=torch.int32) + cached).view(1, T),
    ],
    "ex03_4": [to_halves_loop, to_halves_cat, to_halves_numpy, to_halves_index],
    "ex03_5": [GROWTH, np.float32(GROWTH), torch.tensor(GROWTH), str(round(GROWTH, 4)), 1.459],
    "ex04_1": [look_loop, look_numpy, look_einsum, look_sdpa],
    "ex04_2": [causal_loop, causal_numpy, causal_positions, causal_added],
    "ex04_3": [
        split_loop,
        split_numpy,
        split_unflatten,
        lambda x, H: torch.einsum("bthd->bhtd", x.reshape(*x.shape[:2], H, -1)),
    ],
    "ex04_4": [leaks_jacobian, leaks_cut, leaks_numpy, leaks_noise],
    "ex04_5": [
        lambda W, b: torch.einsum("ij,j->i", W, b),
        lambda W, b: W.numpy() @ b.numpy(),
        lambda W, b: torch.stack([(row * b).sum() for row in W]),
        lambda W, b: F.linear(b, W),
    ],
    "ex05_1": [
        lambda h, H, G: h * G // H,
        lambda h, H, G: math.floor(h / (H / G) + 1e-9),
        lambda h, H, G: int(np.repeat(np.arange(G), H // G)[h]),
        lambda h, H, G: torch.arange(G).repeat_interleave(H // G)[h],
        lambda h, H, G: bisect.bisect_right(range(0, H, H // G), h) - 1,
    ],
    "ex05_2": [repeat_loop, repeat_expand, repeat_numpy, repeat_einsum],
    "ex05_3": [
        lambda layers, H, G, D, tokens: sum(2 * 2 * G * D * tokens for _ in range(layers)),
        lambda layers, H, G, D, tokens: np.prod([layers, G, D, tokens, 4], dtype=np.int64),
        lambda layers, H, G, D, tokens: torch.tensor([layers, G, D, tokens, 4]).prod(),
        lambda layers, H, G, D, tokens: 4.0 * layers * G * D * tokens,
    ],
    "ex05_4": [
        merge_loop,
        merge_einsum,
        merge_numpy,
        lambda w, H, G: w.unflatten(0, (G, H // G, -1)).mean(1).flatten(0, 1),
    ],
    "ex05_5": [FIT, float(FIT), str(FIT), torch.tensor(FIT)],
    "ex06_1": [
        lambda T, w: T * (T + 1) // 2 - max(0, T - w) * (max(0, T - w) + 1) // 2,
        lambda T, w: int(np.minimum(np.arange(1, T + 1), w).sum()),
        lambda T, w: torch.arange(1, T + 1).clamp(max=w).sum(),
        lambda T, w: min(T, w) * (min(T, w) + 1) // 2 + max(0, T - w) * w,
    ],
    "ex06_2": [
        lambda n, use, first: [bool(use) and not i < first for i in range(n)],
        lambda n, use, first: [False] * min(first, n) + [use] * max(0, n - first),
        lambda n, use, first: use & (np.arange(n) >= first),
        lambda n, use, first: (torch.arange(n) >= first) & use,
    ],
    "ex06_3": [ring_by_slot, ring_numpy, ring_torch, ring_by_writing],
    "ex06_4": [
        earliest_loop,
        lambda p, sliding, w: 0 if False in sliding else max(p - (w - 1) * len(sliding), 0),
        lambda p, sliding, w: int(np.clip(p - len(sliding) * (w - 1), 0, None)) * all(sliding),
        lambda p, sliding, w: torch.tensor(p - len(sliding) * (w - 1)).clamp(min=0) * all(sliding),
    ],
    "ex06_5": [
        bytes_loop,
        lambda n, s, G, D, w, t: 4 * G * D * (n * t - s * max(0, t - w)),
        lambda n, s, G, D, w, t: int(np.dot([n - s, s], [t, min(w, t)])) * 4 * G * D,
        lambda n, s, G, D, w, t: 4.0 * G * D * ((n - s) * t + s * min(t, w)),
    ],
    "ex07_1": [
        lambda x: x * torch.sigmoid(x),
        lambda x: x / (1 + (-x).exp()),
        silu_numpy,
        silu_loop,
    ],
    "ex07_2": [mlp_rows, mlp_einsum, mlp_numpy, mlp_linear],
    "ex07_3": [[1.0, -1.0], (1, -1), torch.tensor([1, -1]), np.array([1.0, -1.0])],
    "ex07_4": [
        width_loop,
        lambda E: math.ceil(8 * E / 3 / 128) * 128,
        lambda E: int(np.ceil(8 * E / 384)) * 128,
        lambda E: (8 * E + 383) // 384 * 128,
    ],
    "ex07_5": [block_steps, block_copied, block_stacked, block_einsum],
    "ex08_1": [
        lambda n, tied: 12 * n + 3 - tied,
        lambda n, tied: sum(12 for _ in range(n)) + (2 if tied else 3),
        lambda n, tied: np.int32(12 * n + 2 + (not tied)),
        lambda n, tied: torch.tensor(12 * n + 2 + (not tied)),
    ],
    "ex08_2": [next_gather, next_int32, next_numpy, next_list],
    "ex08_3": [first_loop, first_numpy, first_torch, first_by_search],
    "ex08_4": [
        "layer 1, after attention",
        "Layer 1, after attention",
        "LAYER 1, AFTER ATTENTION",
        " layer 1,  after attention ",
    ],
    "ex08_5": [3, "3", 3.0, torch.tensor(3), np.int64(3)],
}


# --- mistakes that nobody foresaw: refused all the same, and told nothing false


OTHERS = [
    ("ex01_2", lambda piece, vocab: [piece]),
    ("ex02_4", lambda weight, matrix: matrix - weight),
    ("ex03_3", lambda cached, T: torch.zeros(1, T, dtype=torch.long)),
    ("ex04_2", torch.sigmoid),
    ("ex05_1", lambda h, H, G: 0),
    ("ex06_1", lambda T, window: 1),
    ("ex07_4", lambda E: E),
    ("ex08_1", lambda layers, tied: 0),
]
(
    test_right_in_any_style,
    test_every_exercise_is_answered,
    test_other_mistakes_are_shown_a_case,
) = questions("01 02 03 04 05 06 07 08", RIGHT | PIECES, OTHERS)


@pytest.mark.parametrize(
    "answer",
    [
        lambda w: torch.stack([w[..., t, t - 1] for t in range(1, w.shape[-1])]).mean((0, 2)),
        lambda w: torch.einsum("lbhtt->lh", w[..., 1:, :-1]) / w[0, :, 0, 1:, 0].numel(),
        lambda w: w.numpy().diagonal(-1, -2, -1).mean((1, 3)),
        lambda w: w.mean(1)[..., 1:, :-1].diagonal(dim1=-2, dim2=-1).mean(-1),
    ],
)
def test_right_in_any_style_in_the_lab(answer):
    assert exercises_of("14")["ex14_0"].judge(answer) == "PASS"


# --- what the rules of a task forbid, in the ways it can be said


def add_up(T, window):
    count = 0
    while T > 0:
        count, T = count + min(T, window), T - 1
    return count


def one_by_one(T, window):
    count = 0
    for t in range(min(T, 50_000)):
        count += min(t + 1, window)
    return count


@pytest.mark.parametrize(
    "name, answer, hint",
    [
        ("ex06_1", one_by_one, "Find a formula"),
        ("ex06_1", add_up, "Find a formula"),
        ("ex06_1", lambda T, w: sum(min(t + 1, w) for t in range(T)), "Find a formula"),
        ("ex02_5", norm_gradient_autograd, "autograd did it"),
        ("ex07_1", lambda x: F.silu(x), "PyTorch's own"),
        ("ex07_1", F.silu, "PyTorch's own"),
        ("ex07_1", lambda x: torch.nn.SiLU()(x), "PyTorch's own"),
    ],
)
def test_what_is_ruled_out_is_refused_though_right(name, answer, hint):
    assert hint in exercises_of(name[2:4])[name].judge(answer)


def block_in_place(x, attention, mlp, first, second):
    x += attention(first(x))
    x += mlp(second(x))
    return x


def rows_emptied(rows, tolerance):
    return first_loop(rows, tolerance), rows.clear()


def mean_in_place(mixed, head, D):
    own = slice(head * D, (head + 1) * D)
    mixed[..., own] = mixed[..., own].mean((0, 1))
    return mixed


@pytest.mark.parametrize(
    "name, answer",
    [
        ("ex07_5", block_in_place),
        ("ex08_3", lambda rows, tol: rows_emptied(rows, tol)[0]),
        ("ex14_3", mean_in_place),
    ],
)
def test_an_argument_that_comes_back_changed_is_refused(name, answer):
    assert "came back changed" in exercises_of(name[2:4])[name].judge(answer)
