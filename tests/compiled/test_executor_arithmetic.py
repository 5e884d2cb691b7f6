"""NumPy's forms of PTX operations, against Python's exact integers, fractions, and torch."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.compiled.executor import floats, integers

HALVES = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
KINDS = [np.int32, np.uint32, np.int64, np.uint64]
AT_THE_EDGES = (0, 1, 2, 3, 7, 31, 32, 63, 64, 100, 255, -1, -2, -7, -100)


def numbers(kind: type[np.integer]) -> np.ndarray:
    """Small numbers, the limits and random ones."""
    limits = np.iinfo(kind)
    edges = [each & ((1 << limits.bits) - 1) for each in AT_THE_EDGES]
    edges += [1 << (limits.bits - 1), (1 << (limits.bits - 1)) - 1]
    random = np.random.default_rng(0).integers(0, 1 << 64, 40, np.uint64, endpoint=False)
    unsigned = np.dtype(f"u{limits.bits // 8}")
    return np.concatenate([np.array(edges, unsigned), random.astype(unsigned)]).view(kind)


def pairs(kind: type[np.integer]) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.meshgrid(numbers(kind), numbers(kind))
    return a.reshape(-1), b.reshape(-1)


def wrapped(values: list[int], kind: type[np.integer]) -> np.ndarray:
    """Python's integers modulo the type's range."""
    bits = np.iinfo(kind).bits
    unsigned = np.array([value % (1 << bits) for value in values], f"u{bits // 8}")
    return unsigned.view(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_division_truncates_and_by_zero_sets_all_bits(kind):
    a, b = pairs(kind)
    with np.errstate(all="ignore"):
        quotient, rest = integers.divide(a, b), integers.remainder(a, b)
    expected, expected_rest = [], []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        exact = -1 if y == 0 else abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        expected.append(exact)
        expected_rest.append(x if y == 0 else x - exact * y)
    np.testing.assert_array_equal(quotient, wrapped(expected, kind))
    np.testing.assert_array_equal(rest, wrapped(expected_rest, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_high_product_and_shifts(kind):
    a, b = pairs(kind)
    bits = np.iinfo(kind).bits
    expected = [x * y >> bits for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_array_equal(integers.multiply_high(a, b), wrapped(expected, kind))
    count = np.resize(np.array([0, 1, 5, 31, 32, 33, 63, 64, 1000, 2**32 - 1], np.uint32), len(a))
    left = [x << min(n, 100) for x, n in zip(a.tolist(), count.tolist(), strict=True)]
    right = [x >> min(n, 100) for x, n in zip(a.tolist(), count.tolist(), strict=True)]
    np.testing.assert_array_equal(integers.shift_left(a, count), wrapped(left, kind))
    np.testing.assert_array_equal(integers.shift_right(a, count), wrapped(right, kind))


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("clamp", [True, False])
def test_funnel_shift(left, clamp):
    low, high = pairs(np.uint32)
    count = np.resize(np.arange(0, 70, dtype=np.uint32), len(low))
    expected = []
    for a, b, n in zip(low.tolist(), high.tolist(), count.tolist(), strict=True):
        n = min(n, 32) if clamp else n % 32
        both = b << 32 | a
        expected.append(both << n >> 32 if left else both >> n)
    found = integers.funnel_shift(low, high, count, left, clamp)
    np.testing.assert_array_equal(found, wrapped(expected, np.uint32))


@pytest.mark.parametrize("kind", KINDS)
def test_bit_fields(kind):
    """As the PTX manual spells them out, bit by bit."""
    a, b = pairs(kind)
    bits = np.iinfo(kind).bits
    position = np.resize(np.array([0, 3, 16, 31, 32, 60, 64, 255], np.uint32), len(a))
    length = np.resize(np.array([0, 1, 8, 13, 32, 64, 255], np.uint32), len(a))
    extracted, inserted = [], []
    for x, y, p, n in zip(*(v.tolist() for v in (a, b, position, length)), strict=True):
        x, y = x % (1 << bits), y % (1 << bits)
        top = min(p + n - 1, bits - 1)
        sign = x >> top & 1 if np.issubdtype(kind, np.signedinteger) and n else 0
        field = [x >> (p + i) & 1 if i < n and p + i < bits else sign for i in range(bits)]
        extracted.append(sum(bit << i for i, bit in enumerate(field)))
        for i in range(n):
            if p + i < bits:
                y = y & ~(1 << (p + i)) | (x >> i & 1) << (p + i) if i < bits else y
        inserted.append(y)
    found = integers.extract_field(a, position, length)
    np.testing.assert_array_equal(found, wrapped(extracted, kind))
    unsigned = np.dtype(f"u{bits // 8}")
    keep = position + np.minimum(length, bits) <= bits  # beyond it the manual says nothing
    found = integers.insert_field(a.view(unsigned), b.view(unsigned), position, length)
    np.testing.assert_array_equal(found[keep], wrapped(inserted, unsigned.type)[keep])


def test_permuted_bytes():
    a, b = pairs(np.uint32)
    selector = np.resize(np.arange(0, 1 << 16, 37, dtype=np.uint32), len(a))
    expected = []
    for x, y, s in zip(a.tolist(), b.tolist(), selector.tolist(), strict=True):
        both = (y << 32 | x).to_bytes(8, "little")
        word = 0
        for i in range(4):
            choice = s >> 4 * i & 15
            byte = both[choice & 7]
            word |= (255 if choice & 8 and byte & 128 else 0 if choice & 8 else byte) << 8 * i
        expected.append(word)
    found = integers.permute_bytes(a, b, selector)
    np.testing.assert_array_equal(found, wrapped(expected, np.uint32))


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
def test_bits_counted_and_reversed(kind):
    a = numbers(kind)
    bits = np.iinfo(kind).bits
    texts = [f"{x:0{bits}b}" for x in a.tolist()]
    np.testing.assert_array_equal(integers.count_ones(a), [t.count("1") for t in texts])
    np.testing.assert_array_equal(integers.leading_zeros(a), [(t + "1").index("1") for t in texts])
    np.testing.assert_array_equal(integers.reverse_bits(a), [int(t[::-1], 2) for t in texts])


@pytest.mark.parametrize("table", [0x00, 0x80, 0xFE, 0x96, 0x1B, 0xFF])
def test_three_way_logic(table):
    """By the manual: the table is the function's value at these three constants."""
    a, b = pairs(np.uint32)
    c = np.resize(numbers(np.uint32), len(a))
    found = integers.logic3(a, b, c, table)
    for bit in range(32):
        index = (a >> bit & 1) * 4 + (b >> bit & 1) * 2 + (c >> bit & 1)
        np.testing.assert_array_equal(found >> bit & 1, table >> index & 1)


def test_every_bfloat16_and_float16_becomes_the_float_that_torch_makes_of_it():
    raw = torch.from_numpy(HALVES.view(np.int16))
    for dtype, widen in (
        (torch.bfloat16, floats.float_of_bfloat16),
        (torch.float16, floats.float_of_float16),
    ):
        np.testing.assert_array_equal(widen(HALVES), raw.view(dtype).float().numpy())


def test_floats_round_to_halves_as_torchs_do():
    """Every bfloat16, halfway to the next, and a little to both sides of that; random bits."""
    bits = HALVES.astype(np.uint32) << 16
    near = np.concatenate([bits + offset for offset in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    random = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32, endpoint=False)
    x = np.concatenate([near, random]).view(np.float32)
    # Halfway between two float16: 13 bits are cut.
    for dtype, narrow, widen in (
        (torch.bfloat16, floats.bfloat16_of_float, floats.float_of_bfloat16),
        (torch.float16, floats.float16_of_float, floats.float_of_float16),
    ):
        with np.errstate(all="ignore"):
            found = widen(narrow(x))
        np.testing.assert_array_equal(found, torch.from_numpy(x).to(dtype).float().numpy())


def test_truncation_to_bfloat16_goes_towards_zero():
    x = np.array([1.0, 1.99999, -1.99999, np.inf, 3.0e38], np.float32)
    found = floats.float_of_bfloat16(floats.bfloat16_truncated(x))
    np.testing.assert_array_equal(found, [1.0, 1.9921875, -1.9921875, np.inf, found[4]])
    assert 2.9e38 < found[4] <= 3.0e38
    assert np.isnan(floats.float_of_bfloat16(floats.bfloat16_truncated(x * np.nan))).all()


def rounded(exact: Fraction, dtype: type[np.floating]) -> np.floating:
    """The float nearest to a fraction, the even one of two."""
    first = dtype(float(exact))
    near = (first, np.nextafter(first, dtype(np.inf)), np.nextafter(first, dtype(-np.inf)))
    unsigned = f"u{first.itemsize}"
    return min(near, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(unsigned)) & 1))


@pytest.mark.parametrize(
    "dtype, fma", [(np.float32, floats.fma32), (np.float64, floats.fma64)], ids=["fp32", "fp64"]
)
def test_fma_is_rounded_once(dtype, fma):
    """Where the sum cancels all but the product's own error, and where it does not."""
    a, b, c = np.random.default_rng(2).normal(size=(3, 3000)).astype(dtype)
    c[:1000] = -(a * b)[:1000]
    # A product that ends just above halfway between two floats, by less than a float64 sees.
    small = dtype(2.0) ** -60
    a, b = np.append(a, [1, small]).astype(dtype), np.append(b, [1, dtype(1)]).astype(dtype)
    c = np.append(c, [small, 1 + np.finfo(dtype).eps]).astype(dtype)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
             for x, y, z in zip(a, b, c, strict=True)]  # fmt: skip
    np.testing.assert_array_equal(fma(a, b, c), [rounded(each, dtype) for each in exact])


def test_fma_of_float32_may_round_a_near_tie_to_the_other_side():
    """The sum is just below half a unit of the last place, and a tie in float64, that goes up.

    The executor's one inexact result of this kind; it is within what `fma32` says.
    """
    a, b = np.float32([2**-24 * (1 - 2**-20)]), np.float32([1 + 2**-20])
    c = np.float32([1 + 2**-23])
    exact = Fraction(float(a[0])) * Fraction(float(b[0])) + Fraction(float(c[0]))
    found = floats.fma32(a, b, c)[0]
    assert found != rounded(exact, np.float32)
    assert abs(Fraction(float(found)) - exact) <= Fraction(2**-24) * (1 + Fraction(1, 2**29))


@pytest.mark.parametrize(
    "kind, zero_bits", [(np.int32, False), (np.uint32, False), (np.int64, True)]
)
def test_floats_become_integers_that_saturate(kind, zero_bits):
    limits = np.iinfo(kind)
    x = np.array([0.4, -0.6, 2.5, 1e30, -1e30, np.inf, -np.inf, np.nan], np.float32)
    found = floats.integer_of_float(x, kind, "rni").tolist()
    of_nan = limits.min if zero_bits else 0
    least = max(limits.min, -1)
    assert found == [0, least, 2, limits.max, limits.min, limits.max, limits.min, of_nan]
    rounded = {"rzi": [2, -2], "rmi": [2, -3], "rpi": [3, -2], "rni": [2, -2]}
    if limits.min < 0:
        for rounding, expected in rounded.items():
            found = floats.integer_of_float(np.array([2.5, -2.5]), kind, rounding)
            assert found.tolist() == expected


def test_subnormals_are_flushed_to_zeros_of_their_sign():
    x = np.array([1e-40, -1e-40, 2.0**-126, -(2.0**-126), 0.0], np.float32)
    found = floats.flush(x)
    np.testing.assert_array_equal(found, [0.0, -0.0, 2.0**-126, -(2.0**-126), 0.0])
    assert np.signbit(found[1]) and not np.signbit(found[0])


def test_noise_stays_within_the_manuals_bounds():
    x = np.linspace(0.5, 4.0, 10_000, dtype=np.float32)
    exact = 1 / np.sqrt(x.astype(np.float64))
    ulps = np.finfo(np.float32).eps * exact
    plain = floats.rsqrt_approximate(x, None)
    noisy = floats.rsqrt_approximate(x, np.random.default_rng(0))
    assert (np.abs(plain - exact) <= 0.51 * ulps).all()
    assert (np.abs(noisy - exact) <= 2.1 * ulps).all() and (noisy != plain).mean() > 0.2
