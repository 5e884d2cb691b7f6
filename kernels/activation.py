"""Activations of values in registers, and their gradients: names and parameters are those of
`fastnorm.activations`."""

import triton
import triton.language as tl

from .arithmetic import exp_minus_one

INV_SQRT2 = tl.constexpr(0.7071067811865476)
INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
SQRT_8_PI = tl.constexpr(1.5957691216057308)  # twice the sqrt(2 / pi) of gelu's approximation
CUBIC = tl.constexpr(0.044715)
FLAT = tl.constexpr(20.0)  # beyond it mish and gelu's approximation are z or 0, to the last bit


@triton.constexpr_function
def keeps_mask(activation):
    """Whether the backward needs only the sign of z."""
    return activation in ("relu", "leaky_relu")


@triton.jit
def passes(z, ACTIVATION: tl.constexpr):
    """Whether z passes unchanged: ReLU lets NaN through, and torch's leaky_relu scales it."""
    if ACTIVATION == "leaky_relu":
        return z > 0.0
    else:
        return (z <= 0.0) == 0


@triton.jit
def activate(z, ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(z <= 0.0, 0.0, z)  # not maximum: NaN has to go through
    elif ACTIVATION == "leaky_relu":
        return tl.where(z > 0.0, z, z * PARAMETER)
    elif ACTIVATION == "silu":
        return z / (1.0 + tl.exp(-z))
    elif ACTIVATION == "gelu":
        return 0.5 * z * (1.0 + tl.erf(z * INV_SQRT2))
    elif ACTIVATION == "gelu_tanh":  # tanh(u) = 2 sigmoid(2 u) - 1
        return z / (1.0 + tl.exp(-(z * SQRT_8_PI) * (1.0 + z * z * CUBIC)))
    elif ACTIVATION == "hardswish":
        return z * tl.where(z < -3.0, 0.0, tl.where(z > 3.0, 6.0, z + 3.0)) * (1.0 / 6.0)
    elif ACTIVATION == "mish":
        return z * _tanh_of_softplus(z)
    elif ACTIVATION == "elu":
        return tl.where(z > 0.0, z, exp_minus_one(z) * PARAMETER)
    else:
        return z


@triton.jit
def _tanh_of_softplus(z):
    """n / (n + 2) with n = e (e + 2), e = exp(z)."""
    e = tl.exp(tl.where(z > FLAT, FLAT, z))
    n = e * (e + 2.0)
    return tl.where(z > FLAT, 1.0, n / (n + 2.0))


@triton.jit
def masked_backward(dy, active, ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr):
    """dy * act'(z), with `active` from `passes(z)`: in dy's dtype if that is exact."""
    if ACTIVATION == "relu":
        return tl.where(active, dy, 0.0).to(dy.dtype)
    else:
        wide = dy.to(tl.float64) if dy.dtype == tl.float64 else dy.to(tl.float32)
        return tl.where(active, wide, wide * PARAMETER)


@triton.jit
def smooth_backward(dy, z, ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr):
    """dy * act'(z) of an activation that keeps no mask."""
    if ACTIVATION == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        return dy * sigmoid * (1.0 + z * (1.0 - sigmoid))
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(z * INV_SQRT2))
        return dy * (cdf + z * INV_SQRT_2PI * tl.exp(-0.5 * z * z))
    elif ACTIVATION == "gelu_tanh":
        z = tl.where(z > FLAT, FLAT, tl.where(z < -FLAT, -FLAT, z))  # its square has to be finite
        sigmoid = 1.0 / (1.0 + tl.exp(-(z * SQRT_8_PI) * (1.0 + z * z * CUBIC)))
        slope = (1.0 + 3.0 * z * z * CUBIC) * SQRT_8_PI
        return dy * (sigmoid + z * slope * sigmoid * (1.0 - sigmoid))
    elif ACTIVATION == "hardswish":
        return dy * tl.where(z <= -3.0, 0.0, tl.where(z < 3.0, z * (1.0 / 3.0) + 0.5, 1.0))
    elif ACTIVATION == "mish":  # (1 - tanh^2) sigmoid = 4 e (e + 1) / (n + 2)^2
        z = tl.where(z > FLAT, FLAT, z)
        e = tl.exp(z)
        rest = 2.0 / (e * (e + 2.0) + 2.0)
        return dy * (_tanh_of_softplus(z) + z * e * (e + 1.0) * rest * rest)
    else:
        tl.static_assert(ACTIVATION == "elu")
        return tl.where(z <= 0.0, dy * PARAMETER * tl.exp(z), dy)
