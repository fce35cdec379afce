"""Solutions to lesson 11. Try first: the checker's hints point further than you might think."""

import torch


def my_step(q, k, v, keys, values):
    # First append, then look: a token sees itself. No mask is needed, for nothing in the cache lies
    # in the future.
    keys, values = torch.cat((keys, k), dim=1), torch.cat((values, v), dim=1)  # (H, S+1, D)
    weights = (q @ keys.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)  # (H, 1, S+1)
    return weights @ values, keys, values


def my_bytes(layers, H, G, D, bits):
    # A key and a value of width D, in each of G heads, in every layer. H does not matter.
    return layers * G * 2 * D * bits // 8


def my_reuse(cached, ids):
    # Count from the front and stop at the first difference. The last token of the new text is read
    # in any case, because its logits are wanted.
    n = 0
    while n < min(len(cached), len(ids) - 1) and cached[n] == ids[n]:
        n += 1
    return n


def my_scores(prompt, new):
    # Passes read prompt, prompt + 1, … tokens, and the last one written is never read. Without a
    # cache each pass is a whole triangle; with it they add up to the last triangle.
    def triangle(n):
        return n * (n + 1) // 2

    without = sum(triangle(prompt + i) for i in range(new))
    return without, triangle(prompt + new - 1)


SOLUTIONS = {"ex11_1": my_step, "ex11_2": my_scores, "ex11_3": my_bytes, "ex11_4": my_reuse}
