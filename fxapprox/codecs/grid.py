"""Where the levels of a code lie: a compander, which puts them closer together where values are dense.

Activations after a linear layer are nearly Gaussian, and the best levels for few bits are not equidistant (Lloyd 1982,
Max 1960; at many bits the density of levels follows the cube root of the values' density, Panter & Dite 1951, which
for a Gaussian of deviation 1 is a Gaussian of deviation sqrt(3)). We take the algebraic curve

    u(v) = v * sqrt(1 + k) / sqrt(1 + k * v**2),    v in [-1, 1],

with the inverse v(u) = u / sqrt(1 + k - k * u**2): a multiplication, an addition and a root, no exp and no table.
k = 0 is the uniform grid.

Where tails may be heavy the curve is u(t) = t / (1 + |t|), with the inverse t(u) = u / (1 - |u|) and t in knees (a few
deviations): the density of its levels falls off as t**-2, near the t**(-4/3) that is best for Student's distribution
with 3 degrees of freedom. The curve above falls off as v**-3.

Where a few values hold the sum and the many small ones still count (a softmax), levels are equidistant in a root of the
value: with the fourth root of 255 levels an element a thousandth as large as the largest is known to 4%, a millionth to
a fourth, and next to nothing becomes 0. With equidistant levels all below a 510th became 0, and the gradient of a
cross-entropy no longer pushed down what is improbable. The same goes for what one that is nearly certain lacks of 1:
a quarter of the levels lie in the upper half, close together at its end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ABOVE = 0.25  # of the levels of a softmax: above half of the largest


def compress(v: Tensor, k: float) -> Tensor:
    """u(v): from [-1, 1] to [-1, 1]."""
    return v * torch.rsqrt(1 / (1 + k) + k / (1 + k) * v.square()) if k else v


def expand(u: Tensor, k: float) -> Tensor:
    """v(u), the inverse of :func:`compress`."""
    return u * torch.rsqrt((1 + k) - k * u.square()) if k else u


def bend(t: Tensor) -> Tensor:
    """u(t): from the real line to (-1, 1)."""
    return t / (1 + t.abs())


def unbend(u: Tensor) -> Tensor:
    """t(u), the inverse of :func:`bend`."""
    return u / (1 - u.abs())


def root(s: Tensor, degree: int) -> Tensor:
    """The square root (degree 2) or the fourth root of s in [0, 1]: equal distances there are small ones near 0."""
    s = torch.sqrt(s)
    return torch.sqrt(s) if degree == 4 else s


def unroot(q: Tensor, degree: int) -> Tensor:
    """The inverse of :func:`root`."""
    q = q.square()
    return q.square() if degree == 4 else q


def two_roots(s: Tensor, degree: int) -> Tensor:
    """From [0, 1] to [0, 1], with places close together at both ends: most of them near 0, ``ABOVE`` of them near 1."""
    low, high = root((2 * s).clamp_max(1), degree), root((2 - 2 * s).clamp(0, 1), degree)
    return torch.where(s <= 0.5, (1 - ABOVE) * low, 1 - ABOVE * high)


def from_two_roots(q: Tensor, degree: int) -> Tensor:
    """The inverse of :func:`two_roots`."""
    low, high = unroot(q / (1 - ABOVE), degree), unroot((1 - q) / ABOVE, degree)
    return torch.where(q <= 1 - ABOVE, low / 2, 1 - high / 2)


def finite(x: Tensor) -> Tensor:
    """bool: neither NaN nor infinite."""
    return x.abs() < math.inf


def roundings(work: torch.dtype, kept: torch.dtype) -> float:
    """What rounding adds to a code's error, as a share of the range: some in its own precision, one in the value's."""
    return 32 * torch.finfo(work).eps + torch.finfo(kept).eps


def round_to_bfloat16(x: Tensor, *, up: bool = False) -> Tensor:
    """Finite numbers above zero as float32 that fit into a bfloat16, by their bits: the nearest, or never smaller.

    Inductor leaves out a cast to bfloat16 and back, so the kernel that makes a code would take it with another number
    than the one that is stored.
    """
    bits = (x.to(torch.float32).view(torch.int32) + (0xFFFF if up else 0x8000)) & ~0xFFFF
    return bits.view(torch.float32)


def work_dtype(x: Tensor) -> torch.dtype:
    """The precision in which codes are computed."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
