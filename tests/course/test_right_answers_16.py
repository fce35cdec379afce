"""Right answers to the exercises of lesson 16, in several styles and in C++; none comes from the
solutions. And C++ with the mistakes that people make gets the hints that the exercise promises.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from qwen2_edu.course import ex16
from qwen2_edu.course.ex16 import SIGNATURE, compiled, compiler
from qwen2_edu.course.exercises import exercises_of
from tests.course.right_answers import questions

needs_compiler = pytest.mark.skipif(not compiler(), reason="there is no C++ compiler")

# --- 0, the product of one row


def product_loop(w, x):
    y = []
    for row in w.tolist():
        total = 0.0
        for a, b in zip(row, x.tolist(), strict=True):
            total += a * b
        y.append(total)
    return y


def product_einsum(w, x):
    return torch.einsum("nk,k->n", w.to(x.dtype), x)


def product_torch(w, x):
    return (w * x).sum(-1)  # bf16 times fp32 is fp32


def product_numpy(w, x):
    return w.float().numpy() @ x.numpy()


ROW = "        for (long k = 0; k < K; k++) sum += w[n * K + k] * x[k];"
PLAIN = f"""{SIGNATURE} {{
    for (long n = 0; n < N; n++) {{
        float sum = 0;
{ROW}
        y[n] = sum;
    }}
}}"""
IN_CPP = [
    PLAIN,
    PLAIN.replace(ROW, "        #pragma omp simd reduction(+ : sum)\n" + ROW),
    f"""#include <vector>
{SIGNATURE} {{
    for (const W* row = w; row < w + N * K; row += K) {{
        std::vector<double> sums(2, 0.0);
        for (long k = 0; k < K; k++) sums[k % 2] += double(row[k]) * x[k];
        *y++ = sums[0] + sums[1];
    }}
}}""",
    f"""{SIGNATURE} {{
    for (long n = 0; n < N; n++) y[n] = 0;
    for (long k = 0; k < K; k++)
        for (long n = 0; n < N; n++) y[n] += w[n * K + k] * x[k];
}}""",
]
WRONG_CPP = {
    "inside the outer loop": PLAIN.replace("        float sum = 0;\n", "").replace(
        "    for (long n", "    float sum = 0;\n    for (long n"
    ),
    "at w[n * K]": PLAIN.replace("n * K + k", "n + k"),
    "row by row": PLAIN.replace("n * K + k", "k * N + n"),
    "takes it along": PLAIN.replace("k < K;", "k < K - 1;"),
    "Add to the sum with +=": PLAIN.replace("sum +=", "sum ="),
    "Multiply each": PLAIN.replace(" * x[k]", ""),
}

# --- 1, two pieces of a softmax


def merge_where(m1, s1, o1, m2, s2, o2):
    if m1 < m2:
        m1, s1, o1, m2, s2, o2 = m2, s2, o2, m1, s1, o1
    small = torch.exp(m2 - m1)
    return m1, s1 + small * s2, o1 + small * o2


def merge_stack(m1, s1, o1, m2, s2, o2):
    m = torch.stack((m1, m2))
    factors = (m - m.max()).exp()
    sums, mixes = torch.stack((s1, s2)), torch.stack((o1, o2))
    return m.max(), factors @ sums, torch.einsum("p,pd->d", factors, mixes)


def merge_numpy(m1, s1, o1, m2, s2, o2):
    m1, s1, o1, m2, s2, o2 = (t.numpy() for t in (m1, s1, o1, m2, s2, o2))
    m = np.maximum(m1, m2)
    a, b = np.exp(m1 - m), np.exp(m2 - m)
    return [m, a * s1 + b * s2, a * o1 + b * o2]


def merge_loop(m1, s1, o1, m2, s2, o2):
    m = max(m1.item(), m2.item())
    s, o = 0.0, [0.0] * len(o1)
    for part, total, mix in ((m1, s1, o1), (m2, s2, o2)):
        factor = math.exp(part.item() - m)
        s += factor * total.item()
        o = [a + factor * b for a, b in zip(o, mix.tolist(), strict=True)]
    return m, s, o


# --- 2, what a pass yields


def kept_loop(guess, best):
    out = []
    for i, token in enumerate(best):
        out.append(token)
        if i == len(guess) or guess[i] != token:
            return out
    return out


def kept_takewhile(guess, best):
    same = list(itertools.takewhile(lambda p: p[0] == p[1], zip(guess, best, strict=False)))
    return [a for a, _ in same] + [best[len(same)]]


def kept_torch(guess, best):
    guess, best = torch.tensor(guess, dtype=torch.long), torch.tensor(best)
    return best[: int((guess == best[:-1]).long().cumprod(0).sum()) + 1]


def kept_numpy(guess, best):
    wrong = np.flatnonzero(np.array([*guess, -1]) != np.array(best))
    return np.array(best)[: wrong[0] + 1]


# --- 3, rounding by groups


def round_loop(row, bits, group):
    out, top = [], 2 ** (bits - 1) - 1
    for start in range(0, len(row), group):
        numbers = row[start : start + group].tolist()
        scale = max(abs(x) for x in numbers) / top
        out += [round(x / scale) * scale for x in numbers]
    return out


def round_torch(row, bits, group):
    w = row.view(-1, group)
    scale = w.abs().max(dim=1, keepdim=True).values.div(2 ** (bits - 1) - 1)
    return w.div(scale).round().mul(scale).reshape(-1)


def round_einsum(row, bits, group):
    w = row.unflatten(0, (-1, group))
    scale = w.norm(torch.inf, dim=-1) / (2 ** (bits - 1) - 1)
    q = torch.einsum("gn,g->gn", w, 1 / scale).round()
    return torch.einsum("gn,g->gn", q, scale).flatten()


def round_numpy(row, bits, group):
    w = row.numpy().reshape(-1, group)
    scale = np.abs(w).max(-1, keepdims=True) / (2 ** (bits - 1) - 1)
    return (np.rint(w / scale) * scale).ravel()


# --- 4, the speed to expect


def speed_by_bits(blocks, head, bits, group, bandwidth):
    return 8 * bandwidth / (blocks * (bits + 16 / group) + 8 * head)


def speed_loop(blocks, head, bits, group, bandwidth):
    seconds = sum(n * size / bandwidth for n, size in ((blocks, bits / 8), (head, 1)))
    return 1 / (seconds + blocks // group * 2 / bandwidth)


def speed_torch(blocks, head, bits, group, bandwidth):
    numbers = torch.tensor([blocks, blocks / group, head], dtype=torch.float64)
    return bandwidth / (numbers @ torch.tensor([bits / 8, 2, 1], dtype=torch.float64))


def speed_numpy(blocks, head, bits, group, bandwidth):
    return bandwidth / np.dot([blocks, blocks / group, head], [bits / 8, 2, 1])


RIGHT = {
    "ex16_0": [product_loop, product_einsum, product_torch, product_numpy],
    "ex16_1": [merge_where, merge_stack, merge_numpy, merge_loop],
    "ex16_2": [kept_loop, kept_takewhile, kept_torch, kept_numpy],
    "ex16_3": [round_loop, round_torch, round_einsum, round_numpy],
    "ex16_4": [speed_by_bits, speed_loop, speed_torch, speed_numpy],
}


@needs_compiler
@pytest.mark.parametrize("source", IN_CPP)
def test_right_in_cpp(source):
    assert exercises_of("16")["ex16_0"].judge(compiled(source)) == "PASS"


@needs_compiler
@pytest.mark.parametrize("says", WRONG_CPP)
def test_mistakes_in_cpp_get_their_hint(says):
    verdict = exercises_of("16")["ex16_0"].judge(compiled(WRONG_CPP[says]))
    assert verdict.startswith("not yet: ") and says in verdict


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_one_text_serves_three_kinds_of_weights(dtype):
    made = torch.Generator().manual_seed(0)
    w, x = torch.randint(-100, 100, (7, 33), generator=made).to(dtype), torch.rand(33)
    torch.testing.assert_close(compiled(PLAIN)(w, x), w.float() @ x, rtol=1e-5, atol=1e-3)
    strided = torch.randn(33, 7, generator=made).to(torch.bfloat16).T  # rows are not side by side
    torch.testing.assert_close(compiled(PLAIN)(strided, x), strided.float() @ x)


@needs_compiler
@pytest.mark.parametrize(
    "source, says",
    [
        (PLAIN.replace("y[n] = sum;", "y[n] = summe;"), "ValueError: C++: "),
        (PLAIN.replace("void product", "void produkt"), "there is no function void product("),
        (PLAIN.replace("y[n] = sum;", ""), "NaN"),  # what is not written is no number
    ],
)
def test_what_does_not_compile_is_told_in_one_line(source, says):
    verdict = exercises_of("16")["ex16_0"].judge(compiled(source))
    assert verdict.startswith("not yet: ") and says in verdict and "\n" not in verdict


def test_without_a_compiler_python_is_asked_for(monkeypatch):
    monkeypatch.setattr(ex16, "compiler", lambda: "")
    exercise = exercises_of("16")["ex16_0"]
    assert "no C++ compiler here: write it in Python" in exercise.judge(compiled(PLAIN))
    assert exercise.judge(compiled(...)) == "not attempted"
    assert exercise.judge(product_torch) == "PASS"


# --- mistakes that nobody foresaw: refused all the same, and told nothing false


OTHERS = [
    ("ex16_0", lambda w, x: w.float().amax(1)),
    ("ex16_1", lambda m1, s1, o1, m2, s2, o2: (m1, s1, o1)),
    ("ex16_2", lambda guess, best: best[:1]),
    ("ex16_3", lambda row, bits, group: row),
    ("ex16_4", lambda blocks, head, bits, group, bandwidth: 10.0),
]
(
    test_right_in_any_style,
    test_every_exercise_is_answered,
    test_other_mistakes_are_shown_a_case,
) = questions("16", RIGHT, OTHERS)


def test_an_argument_that_comes_back_changed_is_refused():
    def in_place(row, bits, group):
        return row.copy_(round_torch(row, bits, group))

    assert "came back changed" in exercises_of("16")["ex16_3"].judge(in_place)
