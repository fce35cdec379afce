"""Solutions to lesson 05. Try first: the checker's hints point further than you might think."""


def my_box(h, H, G):
    # H/G readers in a row share a box, so count how many full groups stand before reader h.
    # Both divisions are whole: G divides H, and readers of one group give the same quotient.
    return h // (H // G)


def my_repeat_kv(k, n):
    # A new dimension right behind the heads holds the copies; expand costs no memory yet.
    # Merging it with the heads lays the copies of one head side by side, and that does copy.
    B, G, S, D = k.shape
    return k[:, :, None].expand(B, G, n, S, D).reshape(B, G * n, S, D)


def my_bill(layers, H, G, D, tokens):
    # A key and a value for each layer, box and token, D numbers each, 2 bytes a number.
    # How many readers ask makes no difference to what is kept.
    return 2 * layers * G * D * tokens * 2


def my_merge(weight, H, G):
    # Rows are (head, feature), and heads are (group, member): view them as all three.
    # The mean over the members leaves one head for each group, feature by feature.
    D, E = weight.shape[0] // H, weight.shape[1]
    return weight.view(G, H // G, D, E).mean(dim=1).reshape(G * D, E)


# The weights are there once, for all texts. Each text then takes the bill of exercise 3.
# A text that does not fit whole does not count, so the quotient is rounded down.
my_texts = (80 * 10**9 - 7_615_616_512 * 2) // my_bill(28, 28, 4, 128, 32_768)

SOLUTIONS = {
    "ex05_1": my_box,
    "ex05_2": my_repeat_kv,
    "ex05_3": my_bill,
    "ex05_4": my_merge,
    "ex05_5": my_texts,
}
