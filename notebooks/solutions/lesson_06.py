"""Solutions to lesson 06. Try first: the checker's hints point further than you might think."""


def my_visible(query_positions, key_positions, window):
    # Queries as a column, keys as a row; the comparison spreads them to (B, 1, T, S).
    q, k = query_positions[:, None, :, None], key_positions[:, None, None, :]
    seen = (k >= 0) & (k <= q)
    return seen if window is None else seen & (k > q - window)


def my_pairs(T, window):
    # Every query has `window` keys, except the first ones, which miss w-1, w-2, ... 1 of them.
    # A window wider than the text is as good as one of T.
    w = min(window, T)
    return T * w - w * (w - 1) // 2


def my_slides(layers, use_sliding_window, max_window_layers):
    # The switch must be on, and the layer must lie above the first `max_window_layers` full ones.
    # With max_window_layers at or above the number of layers, nothing slides.
    return [use_sliding_window and i >= max_window_layers for i in range(layers)]


def my_ring(read, window):
    # Write the tokens one after the other, as the cache does; each overwrites the one that was
    # read `window` tokens before it. What was never written stays -1.
    slots = [-1] * window
    for position in range(read):
        slots[position % window] = position
    return slots


def my_earliest(position, slides, window):
    # One full layer is enough to hear of everything: above or below it, nothing can be lost.
    # Sliding layers add their reach, and each reaches window - 1 tokens back.
    if not all(slides):
        return 0
    return max(0, position - len(slides) * (window - 1))


def my_cache_bytes(layers, sliding, G, D, window, tokens):
    # A token costs a key and a value for each of G heads, D numbers each, two bytes a number.
    # Full layers keep all tokens, sliding ones at most a window of them.
    per_token = 2 * G * D * 2
    return per_token * ((layers - sliding) * tokens + sliding * min(window, tokens))


SOLUTIONS = {
    "ex06_0": my_visible,
    "ex06_1": my_pairs,
    "ex06_2": my_slides,
    "ex06_3": my_ring,
    "ex06_4": my_earliest,
    "ex06_5": my_cache_bytes,
}
