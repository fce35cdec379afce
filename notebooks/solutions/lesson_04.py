"""Solutions to lesson 04. Try first: the checker's hints point further than you might think."""

import torch
from torch.nn.functional import softmax


def my_attention(q, k, v):
    # Products on the last two dimensions serve every text and head at once. The future is hidden
    # before the softmax, so that it is in no sum.
    T, D = q.shape[-2:]
    scores = q @ k.transpose(-1, -2) / D**0.5  # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    return softmax(scores.masked_fill(future, -torch.inf), dim=-1) @ v


def my_look(q, keys, values):
    # One score for each key, scaled by the width of the query, then shares of 1.
    # The shares mix the values: (S,) @ (S, D) -> (D,).
    weights = softmax(keys @ q / q.shape[0] ** 0.5, dim=0)
    return weights @ values


def my_weights(scores):
    # Before the softmax, so that the future is in no sum. Each query sees its own key, which is
    # the last one for the last query: with S - T older keys the triangle moves to the right.
    T, S = scores.shape
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    return softmax(scores.masked_fill(future, -torch.inf), dim=-1)


def my_split(x, H):
    # view cuts each row of H*D numbers into H pieces, in the order in which they lie there.
    # Only then may the heads go in front of the positions.
    B, T, width = x.shape
    return x.view(B, T, H, width // H).transpose(1, 2)


def my_leaks(attend, x):
    # Change everything from row t on: the rows before t must not notice.
    # One t is not enough. Who peeks one row ahead in row 0 shows only for t = 1.
    before = attend(x)
    for t in range(1, len(x)):
        changed = x.clone()
        changed[t:] += 1
        if not torch.allclose(attend(changed)[:t], before[:t]):
            return True
    return False


def my_output_bias(W_o, b_v):
    # The weights of a row add up to 1, so b_v reaches the output projection whole, for every word.
    # The projection is linear, so it turns b_v into the same vector every time.
    return W_o @ b_v


SOLUTIONS = {
    "ex04_0": my_attention,
    "ex04_1": my_look,
    "ex04_2": my_weights,
    "ex04_3": my_split,
    "ex04_4": my_leaks,
    "ex04_5": my_output_bias,
}
