"""Arithmetic shared by every kernel: the accumulation type, moments and their merge, rounding.

A tile is (outer, middle, inner). Its inner axis is contiguous in memory, and as long as threads
have vectors for. So the middle axis is spread over warps, and each thread has all of the outer one.
Outer and middle are not contiguous: Triton 3.6 spreads the first of the two over warps, later
versions the last. So for 3.6 the middle axis comes first: (middle, outer, inner).
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LANES_FIRST = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7))


@triton.constexpr_function
def accumulation_type(element_type):
    """float64 for float64 tensors, float32 for all others."""
    return tl.float64 if element_type == tl.float64 else tl.float32


@triton.jit
def inverse_std(var, eps):
    """1 / sqrt(var + eps), with correctly rounded roots: sqrt.approx would lose half the digits."""
    # eps is a float64 scalar: without the cast the result would be float64.
    total = var + tl.full([], eps, var.dtype)
    if total.dtype == tl.float64:
        return 1.0 / tl.sqrt(total)
    else:
        return 1.0 / tl.sqrt_rn(total)


@triton.jit
def chan_merge(count, mean, m2, count_b, mean_b, m2_b):
    """Merge two sets of moments (Chan, Golub & LeVeque 1979); an empty set changes nothing."""
    total = count + count_b
    share = count_b / tl.maximum(total, 1.0)
    delta = mean_b - mean
    # In this order delta times a count of 0 is 0, even if the square of delta overflows.
    return total, mean + delta * share, m2 + m2_b + delta * (count * share) * delta


@triton.jit
def across(value):
    """One value for each lane, shaped for a tile whose lanes are its middle axis."""
    if LANES_FIRST:
        return value[:, None, None]
    else:
        return value[None, :, None]


@triton.jit
def across_lanes(value):
    """One value for each outer position, shaped for a tile that is not flat."""
    if LANES_FIRST:
        return value[None, :, None]
    else:
        return value[:, None, None]


@triton.constexpr_function
def split_shape(outer, lanes, *inner):
    """The shape of a tile that is not flat."""
    return (lanes, outer, *inner) if LANES_FIRST else (outer, lanes, *inner)


@triton.jit
def product(a, b):
    """a * b, rounded before it goes into a sum.

    Otherwise the compiler may fuse a product with the first step of a sum across lanes. Then each
    of two lanes adds its own unrounded product to the other's rounded one. Their results differ in
    the last bit, and chance decides which one is stored for all.
    """
    return tl.fma(a, b, 0.0)


@triton.jit
def exp_minus_one(x):
    """exp(x) - 1 for x <= 0, to a few roundings: exp alone would lose the digits near 0."""
    TERMS: tl.constexpr = 16 if x.dtype == tl.float64 else 9
    near = tl.where(x > -0.5, x, 0.0)
    total = tl.zeros_like(x) + 1.0
    for i in tl.static_range(TERMS, 1, -1):  # Taylor's series by Horner's rule
        total = 1.0 + near * (1.0 / i) * total
    return tl.where(x > -0.5, near * total, tl.exp(x) - 1.0)


@triton.jit
def add_both(a, b, c, d):
    return a + c, b + d


@triton.jit
def sum_both(a, b, AXIS: tl.constexpr, KEEP: tl.constexpr = False):
    """The sums of two values along an axis, in one round. The interpreter does them one by one:
    there, a sum with our own function would be a loop in Python."""
    if INTERPRETED:
        return tl.sum(a, axis=AXIS, keep_dims=KEEP), tl.sum(b, axis=AXIS, keep_dims=KEEP)
    else:
        return tl.reduce((a, b), AXIS, add_both, keep_dims=KEEP)


@triton.jit
def centred(mean, total, squares, count):
    """(mean, M2) from a mean and two sums: of the deviations from it and of their squares.

    The mean of the deviations is the mean's own rounding error. It is corrected, so that M2 is
    right when mean >> std.
    """
    error = total / tl.maximum(count, 1.0)
    error = tl.where(tl.abs(error) < float("inf"), error, 0.0)
    excess = error * total  # of squares; if it overflows, they do too
    m2 = squares - tl.where(excess < float("inf"), excess, 0.0)
    return mean + error, tl.where(m2 < 0.0, 0.0, m2)  # not maximum: NaN has to go through


@triton.jit
def merge_along(count, mean, m2, AXIS: tl.constexpr):
    """Chan's merge of many sets of moments along an axis; sets with count 0 are left out."""
    total = tl.sum(count, axis=AXIS, keep_dims=True)
    # Each mean is weighted first: a plain sum may overflow though the mean does not.
    share = count / tl.maximum(total, 1.0)
    present = count > 0.0
    centre = product(share, tl.where(present, mean, 0.0))
    centre = tl.sum(centre, axis=AXIS, keep_dims=True)
    deviation = tl.where(present, mean - centre, 0.0)
    squares = tl.where(present, m2, 0.0) + count * deviation * deviation
    error, squares = sum_both(product(share, deviation), squares, AXIS, True)
    # One element of the axis is left; the sum removes the axis.
    count, centre = tl.sum(total, axis=AXIS), tl.sum(centre, axis=AXIS)
    error, squares = tl.sum(error, axis=AXIS), tl.sum(squares, axis=AXIS)
    mean, m2 = centred(centre, error * count, squares, count)
    return count, mean, m2


@triton.jit
def update_running(ptr, c, mask, old, value, momentum):
    """running = (1 - momentum) running + momentum value, if there is a running statistic."""
    if ptr is not None:
        kept = tl.full([], 1.0 - momentum, value.dtype)
        share = tl.full([], momentum, value.dtype)
        store_rounded(ptr + c, kept * old + share * value, mask)


@triton.jit
def store_rounded(ptrs, value, mask):
    """Store a float in the pointers' type. float64 goes to bfloat16 by way of float32: the
    interpreter would store an integer."""
    if value.dtype == tl.float64 and ptrs.dtype.element_ty == tl.bfloat16:
        value = value.to(tl.float32)
    tl.store(ptrs, value, mask=mask)


@triton.jit
def store_gradient(ptr, index, mask, value):
    """Store the gradient of an optional parameter, if it is wanted."""
    if ptr is not None:
        store_rounded(ptr + index, value, mask)


@triton.jit
def load_or(ptr, index, mask, default, ACC: tl.constexpr):
    """An optional parameter in the accumulation type; `default` everywhere if ptr is None."""
    if ptr is not None:
        return tl.load(ptr + index, mask=mask, other=default).to(ACC)
    else:
        return tl.full(index.shape, default, ACC)


@triton.jit
def split_mean(pivot, offset):
    """The mean pivot + offset as its rounded value and the rounding error."""
    center = pivot + offset
    return center, offset - (center - pivot)
