"""Activations of values in registers, and the gradients of smooth ones."""

import triton
import triton.language as tl

INV_SQRT2 = tl.constexpr(0.7071067811865476)
INV_SQRT_2PI = tl.constexpr(0.3989422804014327)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(z <= 0.0, 0.0, z)  # not maximum: NaN has to go through
    elif ACTIVATION == "silu":
        return z / (1.0 + tl.exp(-z))
    elif ACTIVATION == "gelu":
        return 0.5 * z * (1.0 + tl.erf(z * INV_SQRT2))
    else:
        return z


@triton.jit
def smooth_backward(dy, z, ACTIVATION: tl.constexpr):
    """dy * act'(z) of a smooth activation."""
    if ACTIVATION == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        return dy * sigmoid * (1.0 + z * (1.0 - sigmoid))
    else:
        tl.static_assert(ACTIVATION == "gelu")
        cdf = 0.5 * (1.0 + tl.erf(z * INV_SQRT2))
        return dy * (cdf + z * INV_SQRT_2PI * tl.exp(-0.5 * z * z))
