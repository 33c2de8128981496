"""The average of low-rank updates, exact and kept low-rank: Σ c_i B_i A_i as B' A'.

With the factors side by side, Σ c_i B_i A_i = [c_1 B_1 … c_T B_T] · [A_1; …; A_T]. Thin QR of both, and the singular
values of the small matrix between them are those of the sum:

    [c B] = Q_b R_b,   [A]ᵀ = Q_a R_a,   R_b R_aᵀ = U S Vᵀ,   B' = Q_b U √S,   A' = √S Vᵀ Q_aᵀ

Cut to the largest R singular values this is the best approximation of rank R (Eckart and Young 1936).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_WIDEST = 1024  # columns of factors side by side, before they are made as few as their rank


class Factors(NamedTuple):
    """b: [out, rank], a: [rank, in], float64. `discarded`: √(Σ cut σ² / Σ σ²), 0 if nothing was cut."""

    b: Matrix
    a: Matrix
    discarded: float


def one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """While it lasts, products and decompositions take one thread: how work is shared out would show in the bytes."""
    from threadpoolctl import threadpool_limits

    limits: contextlib.AbstractContextManager[object] = threadpool_limits(1, "blas")
    return limits


def average_update(factors: Iterable[tuple[float, Matrix, Matrix]], rank: int) -> Factors:
    """Σ c·B·A over (c, B [out, r], A [r, in]), one after the other, in float64, cut to `rank`.

    Memory is that of a few thousand columns, however many factors there are: when they are too many, they are replaced
    by as many as the rank of their sum, which drops singular values below 2⁻⁵² · max(out, in) of the largest.
    Fewer than `rank` singular values are filled up with zeros. The same input gives the same bytes on one machine,
    within `one_blas_thread`.
    """
    left: list[Matrix] = []
    right: list[Matrix] = []
    for coefficient, b, a in factors:
        left.append(b * coefficient)
        right.append(a)
        if sum(part.shape[1] for part in left) > max(_WIDEST, min(b.shape[0], a.shape[1])):
            u, s, vt = _svd(np.concatenate(left, 1), np.concatenate(right, 0))
            kept = int((s > s[0] * max(u.shape[0], vt.shape[1]) * 2.0**-52).sum())
            left, right = [u[:, :kept] * s[:kept]], [vt[:kept]]
    u, s, vt = _svd(np.concatenate(left, 1), np.concatenate(right, 0))
    kept = min(rank, len(s))
    root = np.sqrt(s[:kept])
    b_out, a_out = np.zeros((u.shape[0], rank)), np.zeros((rank, vt.shape[1]))
    b_out[:, :kept], a_out[:kept] = u[:, :kept] * root, root[:, None] * vt[:kept]
    total, cut = float(np.square(s).sum()), float(np.square(s[kept:]).sum())
    return Factors(b_out, a_out, (cut / total) ** 0.5 if total else 0.0)


def _svd(b: Matrix, a: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """U [out, k], S [k], Vᵀ [k, in] of B·A; each column of U has its largest element positive."""
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    u, vt = q_b @ u, vt @ q_a.T
    signs = np.sign(np.take_along_axis(u, np.abs(u).argmax(0, keepdims=True), 0))
    signs[signs == 0] = 1
    return u * signs, s, vt * signs.T


def relative_error(found: tuple[Matrix, Matrix], expected: tuple[Matrix, Matrix]) -> float:
    """‖B A − B' A'‖ / ‖B' A'‖ (Frobenius) of two pairs (B [out, r], A [r, in]), to about 1e-8; 0 if both are zero."""
    (b, a), (b_exact, a_exact) = found, expected
    difference = _norm(np.concatenate([b, -b_exact], 1), np.concatenate([a, a_exact], 0))
    size = _norm(b_exact, a_exact)
    return difference / size if size else float(difference > 0)


def _norm(b: Matrix, a: Matrix) -> float:
    """‖B A‖² = Σ (BᵀB ∘ A Aᵀ), without the product itself."""
    return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))
