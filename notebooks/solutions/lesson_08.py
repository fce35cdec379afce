"""Solutions to lesson 08. Try first: the checker's hints point further than you might think."""

import torch


def my_logits(ids, table, blocks, norm):
    # The stream starts as rows of the table. Each part reads a normed copy and adds to it.
    # At the end one more norm, and the same table as the head.
    x = table[ids]
    for attention, mlp, first_norm, second_norm in blocks:
        x = x + attention(first_norm(x))
        x = x + mlp(second_norm(x))
    return norm(x) @ table.T


def my_tensors(layers, tied):
    # A layer has 12: weight and bias of q, k and v, the matrix o, three of the MLP, two norms.
    # Around the layers stand the embedding and the last norm, and a head if it is not tied.
    return 12 * layers + 2 + (not tied)


def my_next_ids(logits, lengths):
    # The logits at position t speak about the token at t + 1, and counting begins at 0.
    # So a row of n tokens is continued by what stands at n - 1; the columns behind are padding.
    last = torch.tensor(lengths) - 1
    return logits[torch.arange(len(lengths)), last].argmax(-1)


def my_first_difference(rows, tolerance):
    # `not gap <= tolerance` instead of `gap > tolerance`: with NaN both comparisons are false,
    # and a model that answers NaN must not pass.
    for name, gap in rows:
        if not gap <= tolerance:
            return name
    return None


# print(compare(model, bad, ids)): all is rounding up to this row, and not from here on.
# What comes later is wrong only because it reads what is wrong already.
my_station = "layer 1, after attention"

# At position 0 a token sees itself alone. Its one weight is 1, whatever its score is, so a wrong
# scale does nothing there. The other three suspects change what is said at every position.
my_suspect = 3

SOLUTIONS = {
    "ex08_0": my_logits,
    "ex08_1": my_tensors,
    "ex08_2": my_next_ids,
    "ex08_3": my_first_difference,
    "ex08_4": my_station,
    "ex08_5": my_suspect,
}
