"""Solutions to lesson 02. Try first: the checker's hints point further than you might think."""

import torch

# Squares 1, 49, 25, 25 add up to 100. Their mean is 25, its root 5, so the unit vector is
# [0.2, 1.4, 1, 1], and the weight doubles the last two numbers.
my_vector = [0.2, 1.4, 2.0, 2.0]


def my_rms_norm(x, weight, eps):
    # Squares, mean and root in fp32, ε inside the root; then back to x's dtype, then the weight.
    # In this order 16-bit numbers come out as transformers has them.
    wide = x.float()
    unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * unit.to(x.dtype)


def my_lookup_gradient(ids, upstream, V):
    # vectors = one_hot @ table, so the gradient of the table is one_hot.T @ upstream.
    # index_add_ computes that product without the zeros: every occurrence adds to its row.
    gradient = torch.zeros(V, upstream.shape[1])
    return gradient.index_add_(0, ids, upstream)


def my_undo(y, weight, mean_square, eps):
    # The norm multiplied by weight / sqrt(mean_square + eps). Divide by exactly that.
    # One number per vector and the weight bring everything back: nothing else was lost.
    return y / weight * torch.sqrt(mean_square + eps)


def my_fold(weight, matrix):
    # Column j of the matrix meets feature j, and the weight scales feature j: scale the column.
    # (matrix * weight) @ unit == matrix @ (weight * unit), and the norm needs no weight any more.
    return matrix * weight


def my_norm_gradient(x, weight, upstream, eps):
    # With s = 1 / root, y = weight * x * s. Through x alone: g * s, where g = upstream * weight.
    # Through s: ds/dx = -s^3 x / E, which takes away the part of g along x.
    s = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    g = upstream * weight
    return s * (g - x * s.pow(2) * (g * x).mean(-1, keepdim=True))


SOLUTIONS = {
    "ex02_0": my_rms_norm,
    "ex02_1": my_vector,
    "ex02_2": my_lookup_gradient,
    "ex02_3": my_undo,
    "ex02_4": my_fold,
    "ex02_5": my_norm_gradient,
}
