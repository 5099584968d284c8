"""Sums of exponentials, of which some are polynomials: for GPUs with fewer exponentials than their products need.

GPUs since compute capability 9.0 have fewer exponentials for each matrix product than those before. There some of those
for half-precision inputs are polynomials on the arithmetic units, as in FlashAttention-4 (Zadouri et al. 2026, section
3.2), of a degree higher than there so that sums keep five digits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp2_polynomial(y):
    """Return 2 ** (127 * (y - 1)) for 0 <= y <= 1, to 1e-5 relative, without the exponential unit.

    Exactly 1 at 1 and 0 at 0. The bounds are the caller's to see to: within [0, 1] a multiply-add does so for nothing,
    but it makes 0 of what is not a number.
    """
    # 1.5 * 2 ** 23, so that the low bits of the sum are the exponent rounded to an integer
    shifted = tl.fma(y, 127.0, 12582912.0 - 127.0)
    f = tl.fma(y, 127.0, (12582912.0 - 127.0) - shifted)
    p = 0.00958538 * f + 0.05590663  # minimax on [-0.5, 0.5], exact at 0
    p = p * f + 0.24024038
    p = p * f + 0.69312418
    p = p * f + 1.0
    exponent = shifted.to(tl.int32, bitcast=True) << 23
    return (p.to(tl.int32, bitcast=True) + exponent).to(tl.float32, bitcast=True)


@triton.jit
def split_columns(x, RUN: tl.constexpr):
    """Return the columns whose index has the bit RUN clear, and the others: [r, c] -> two of [r, c // 2].

    RUN = 8 and 16 are bits that stay within a thread for every layout of a matrix product, so that nothing moves.
    """
    ROWS: tl.constexpr = x.shape[0]
    COLS: tl.constexpr = x.shape[1]
    runs = x.reshape([ROWS, COLS // (2 * RUN), 2, RUN]).permute([0, 1, 3, 2])
    clear, set_ = tl.split(runs)
    return clear.reshape([ROWS, COLS // 2]), set_.reshape([ROWS, COLS // 2])


@triton.jit
def fold(e, FOLDED: tl.constexpr):
    """Return e [r, c], or [r // 2, c] where FOLDED: row r added to row r + 8, both of which one thread has."""
    if FOLDED:
        ROWS: tl.constexpr = e.shape[0]
        COLS: tl.constexpr = e.shape[1]
        return tl.sum(e.reshape([ROWS // 16, 2, 8, COLS]), 1).reshape([ROWS // 2, COLS])
    else:
        return e


@triton.jit
def add_weights(total, quarter, other, x, unit, offset, QUARTERS: tl.constexpr, FOLDED: tl.constexpr):
    """Return the totals plus 2 ** (unit * x - offset) over rows of tiles: x [rows, cols], offset [rows].

    QUARTERS of the columns, of which there may be 0, 1 or 2, are polynomials; then the totals are those of a half and
    two quarters of the columns, and of none but `total` otherwise.
    """
    z = x * unit - offset[:, None]
    if QUARTERS == 0:
        return total + fold(tl.exp2(z), FOLDED), quarter, other
    else:
        y = tl.fma(x, unit * (1 / 127), tl.fma(offset, -1 / 127, 1.0)[:, None])
        y = tl.minimum(tl.maximum(y, 0.0), 1.0)
        z_half, z_rest = split_columns(z, 16)
        _, y_rest = split_columns(y, 16)
        z_quarter, _ = split_columns(z_rest, 8)
        y_quarter, y_other = split_columns(y_rest, 8)
        # the half last: in this order fewer registers are full at once
        quarter += fold(exp2_polynomial(y_quarter) if QUARTERS == 2 else tl.exp2(z_quarter), FOLDED)
        other += fold(exp2_polynomial(y_other), FOLDED)
        total += fold(tl.exp2(z_half), FOLDED)
        return total, quarter, other
