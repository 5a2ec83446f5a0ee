"""Dimuon: the direction of a matrix's momentum with all its singular values made equal.

Tinker publishes the idea and not the formula: an average of the gradients, a matrix-sign iteration,
and a direction whose Frobenius norm is the square root of the rank. What it leaves open is chosen
here: the iteration, and that nothing else changes the direction or the rate.

Axes: M and N, the shorter and the longer side of a matrix; leading axes are matrices of their own.
"""

import math

import torch

# An odd polynomial a x + b x^3 + c x^5 of every singular value at once. The first one is Muon's
# (Jordan et al. 2024): it takes small values to about 1 fastest, and then wavers between 0.7 and
# 1.2. The second one is Newton's of order 5 (Bjorck & Bowie 1971): it takes those to 1.
_FAST, _EXACT = (3.4445, -4.7750, 2.0315), (1.875, -1.25, 0.375)
COEFFICIENTS = (_FAST,) * 6 + (_EXACT,) * 4


def matrix_sign(matrix: torch.Tensor) -> torch.Tensor:
    """U V^T of a matrix U S V^T, (..., M, N); a zero matrix stays zero.

    Exact to about 1e-6 for singular values above a thousandth of the Frobenius norm. Smaller ones
    become smaller than 1, so that what is only rounding adds little.
    """
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if is_tall else matrix
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / torch.where(norm > 0, norm, 1.0)
    for a, b, c in COEFFICIENTS:
        square = x @ x.mT  # (..., M, M)
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x


def direction(momentum: torch.Tensor, rank: int) -> torch.Tensor:
    """The sign of the momentum, with the Frobenius norm sqrt(rank); zero for no momentum."""
    sign = matrix_sign(momentum)
    norm = torch.linalg.matrix_norm(sign, keepdim=True)
    return sign * (math.sqrt(rank) / torch.where(norm > 0, norm, 1.0))
