"""Solutions to lesson 07. Try first: the checker's hints point further than you might think."""

import torch
from torch.nn.functional import silu


def my_swiglu(x, gate, up, down):
    # All gates and all ups are one product each. SiLU bends the gate alone; what passes is
    # written by the third matrix, which also adds up the units.
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def my_silu(x):
    # The sigmoid says how far the gate is open, and the number itself comes along.
    # With exp it reads x / (1 + exp(-x)).
    return x * torch.sigmoid(x)


def my_fused_mlp(x, gate_up, down):
    # One product gives (T, 2F). The rows of gate_up became columns, so the first F are the gate.
    # Only the gate goes through silu; the product comes after.
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (silu(gate) * up) @ down.T


# silu(a) - silu(-a) = a (sigma(a) + sigma(-a)) = a, and both units say b.
# So the second unit has to be subtracted: the sign that up does not carry goes to down.
my_down = [1.0, -1.0]


def my_width(E):
    # 3 E F >= 8 E E means F >= 8 E / 3. Dividing a negative number rounds up,
    # and dividing by 3 * 128 in one step rounds once.
    return -(-8 * E // (3 * 128)) * 128


def my_block(x, attention, mlp, input_norm, post_attention_norm):
    # The stream x is never replaced and never normed, only added to.
    # The MLP reads x after attention has added to it.
    x = x + attention(input_norm(x))
    return x + mlp(post_attention_norm(x))


SOLUTIONS = {
    "ex07_0": my_swiglu,
    "ex07_1": my_silu,
    "ex07_2": my_fused_mlp,
    "ex07_3": my_down,
    "ex07_4": my_width,
    "ex07_5": my_block,
}
