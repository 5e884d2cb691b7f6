"""Floating point of PTX on NumPy arrays, one element a thread.

bfloat16 is held as its 16 bits. `noise`, where a function takes it, is None or a generator of
random numbers: then the result is off by up to as many ulps as the PTX manual allows.
"""

from collections.abc import Callable

import numpy as np

from .integers import words_of_halves
from .ptx_types import Array, f16, f32, f64, u16, u32

Noise = np.random.Generator | None

SMALLEST_NORMAL = f32(2.0**-126)
NAN16 = u16(0x7FFF)  # the NaN that conversions to bfloat16 give
SPLITTER = f64(2**27 + 1)  # Dekker's, that cuts a float64 in two of 26 bits


def float_of_bfloat16(bits: Array) -> Array:
    return (bits.astype(u32) << u32(16)).view(f32)


def bfloat16_of_float(x: Array) -> Array:
    """Rounded to nearest, halves to even."""
    bits = x.view(u32)
    rounded = (bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16)
    return np.where(np.isnan(x), NAN16, rounded.astype(u16))


def bfloat16_truncated(x: Array) -> Array:
    """Rounded towards zero."""
    return np.where(np.isnan(x), NAN16, (x.view(u32) >> u32(16)).astype(u16))


def float_of_float16(bits: Array) -> Array:
    return bits.view(f16).astype(f32)


def float16_of_float(x: Array) -> Array:
    return x.astype(f16).view(u16)


def on_halves(function: Callable[..., Array], *words: Array) -> Array:
    """A function of 16-bit values, on the lower and on the upper halves of words."""
    low = function(*[(word & u32(0xFFFF)).astype(u16) for word in words])
    high = function(*[(word >> u32(16)).astype(u16) for word in words])
    return words_of_halves(high, low)


def on_pairs(function: Callable[..., Array], *words: Array) -> Array:
    """A function of float32, on both halves of 64-bit words."""
    return function(*[word.view(f32) for word in words]).view(np.uint64)


def flush(x: Array) -> Array:
    """.ftz: subnormal numbers become zeros of their sign."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(f32(0), x), x)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """a b + c, by way of float64: the product is exact there, the sum is rounded twice.

    That is a float32's half unit and 2^-29 of it off at most. Rounding once would cost as much time
    again, for another last bit in one of some 2^29 results.
    """
    return (a.astype(f64) * b + c).astype(f32)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """a b + c with the errors of the product and of the sum added: rounded once but for rare ties.

    Dekker's product and Knuth's sum are free of error, unless something overflows.
    """
    product = a * b
    a_high = a * SPLITTER
    a_high = a_high - (a_high - a)
    a_low = a - a_high
    b_high = b * SPLITTER
    b_high = b_high - (b_high - b)
    b_low = b - b_high
    lost = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    total = product + c
    added = total - product
    lost_too = (product - (total - added)) + (c - added)
    exact = total + (lost_too + lost)
    return np.where(np.isfinite(exact), exact, total)


def blurred(x: Array, ulps: int, noise: Noise) -> Array:
    """x off by up to `ulps` units of the last place, where there is noise."""
    if noise is None:
        return x
    off = noise.uniform(-ulps, ulps, x.shape) * np.finfo(x.dtype).eps
    return np.where(np.isfinite(x), x * (1 + off).astype(x.dtype), x)


def exp2_approximate(a: Array, noise: Noise) -> Array:
    return blurred(np.exp2(a.astype(f64)).astype(a.dtype), 2, noise)


def log2_approximate(a: Array, noise: Noise) -> Array:
    return blurred(np.log2(a.astype(f64)).astype(a.dtype), 1, noise)


def rsqrt_approximate(a: Array, noise: Noise) -> Array:
    return blurred((1 / np.sqrt(a.astype(f64))).astype(a.dtype), 1, noise)


def reciprocal_approximate(a: Array, noise: Noise) -> Array:
    return blurred((1 / a.astype(f64)).astype(a.dtype), 1, noise)


def sqrt_approximate(a: Array, noise: Noise) -> Array:
    return blurred(np.sqrt(a.astype(f64)).astype(a.dtype), 1, noise)


def divide_approximate(a: Array, b: Array, noise: Noise) -> Array:
    return blurred(a / b, 2, noise)


def tanh_approximate(a: Array, noise: Noise) -> Array:
    return blurred(np.tanh(a.astype(f64)).astype(a.dtype), 8, noise)


def sin_approximate(a: Array, noise: Noise) -> Array:
    return blurred(np.sin(a.astype(f64)).astype(a.dtype), 2, noise)


def cos_approximate(a: Array, noise: Noise) -> Array:
    return blurred(np.cos(a.astype(f64)).astype(a.dtype), 2, noise)


ROUNDED = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


def integer_of_float(x: Array, kind: type[np.integer], rounding: str) -> Array:
    """cvt to an integer: what is too large or small becomes the largest or smallest.

    NaN becomes 0, or the top bit alone where the source or the result has 64 bits.
    """
    top_bit = x.dtype == f64 or np.dtype(kind).itemsize == 8
    x = ROUNDED[rounding](x.astype(f64))
    limits = np.iinfo(kind)
    above, below, nan = x >= float(limits.max), x <= float(limits.min), np.isnan(x)
    found = np.where(nan | above | below, 0.0, x).astype(kind)
    found = np.where(above, kind(limits.max), found)
    found = np.where(below, kind(limits.min), found)
    of_nan = 1 << (limits.bits - 1) if top_bit else 0
    return np.where(nan, np.array(of_nan, f"u{found.itemsize}").view(kind), found)
