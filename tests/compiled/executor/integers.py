"""Integer and bit operations of PTX on NumPy arrays, one element a thread.

Arrays are signed or unsigned as the instruction's type says; NumPy's + - * wrap around as PTX's do.
"""

import numpy as np

from .ptx_types import Array, s64, u8, u32, u64

LOW_BYTE = 0xFF


def divide(a: Array, b: Array) -> Array:
    """Truncating division of integers; by 0 all bits of the quotient are set, as on hardware."""
    zero = b == 0
    if zero.any():
        ones = np.array(-1 if a.dtype.kind == "i" else np.iinfo(a.dtype).max, a.dtype)
        return np.where(zero, ones, divide(a, np.where(zero, b.dtype.type(1), b)))
    if a.dtype.kind == "u":
        return a // b
    if a.dtype.itemsize == 4:  # float64 holds every quotient of these, and divides much faster
        return (a.astype(np.float64) / b.astype(np.float64)).astype(s64).astype(a.dtype)
    floor = a // b
    return floor + ((floor * b != a) & ((a < 0) != (b < 0)))


def remainder(a: Array, b: Array) -> Array:
    """That of the truncating division: it has the sign of a; of a division by 0 it is a."""
    zero = b == 0
    if zero.any():
        return np.where(zero, a, remainder(a, np.where(zero, b.dtype.type(1), b)))
    return a % b if a.dtype.kind == "u" else a - divide(a, b) * b


def shift_left(a: Array, count: Array) -> Array:
    """a << count, where counts beyond a's bits give 0."""
    far = count >= a.dtype.itemsize * 8
    return np.where(far, a.dtype.type(0), a << np.where(far, 0, count).astype(a.dtype))


def shift_right(a: Array, count: Array) -> Array:
    """a >> count, where counts beyond a's bits give 0 or, of signed ones, copies of the sign."""
    bits = a.dtype.itemsize * 8
    if a.dtype.kind == "i":
        return a >> np.minimum(count, bits - 1).astype(a.dtype)
    far = count >= bits
    return np.where(far, a.dtype.type(0), a >> np.where(far, 0, count).astype(a.dtype))


def funnel_shift(low: Array, high: Array, count: Array, left: bool, clamp: bool) -> Array:
    """The upper (left) or lower word of high:low shifted by count, clamped to 32 or mod 32."""
    count = (np.minimum(count, 32) if clamp else count & u32(31)).astype(u64)
    both = (high.astype(u64) << u64(32)) | low
    return ((both << count) >> u64(32) if left else both >> count).astype(u32)


def multiply_high(a: Array, b: Array) -> Array:
    """The upper half of the product."""
    if a.dtype.itemsize == 4:
        wide = u64 if a.dtype.kind == "u" else s64
        return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)
    products = [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]
    return np.array([product & 0xFFFF_FFFF_FFFF_FFFF for product in products], u64).view(a.dtype)


def extract_field(a: Array, position: Array, length: Array) -> Array:
    """bfe: `length` bits from `position`; signed types extend by the field's top bit."""
    bits = a.dtype.itemsize * 8
    signed = a.dtype.kind == "i"
    out = np.zeros(a.shape, f"u{a.dtype.itemsize}")
    for i, value in enumerate(a.view(out.dtype)):
        first, count, value = int(position[i]) & LOW_BYTE, int(length[i]) & LOW_BYTE, int(value)
        top = value >> min(first + count - 1, bits - 1) & 1 if signed and count else 0
        there = max(0, min(count, bits - first))  # bits of the field that a has
        field = value >> first & ((1 << there) - 1)
        extension = ((1 << bits) - (1 << there)) if top else 0
        out[i] = field | extension
    return out.view(a.dtype)


def insert_field(a: Array, b: Array, position: Array, length: Array) -> Array:
    """bfi: b with a's low `length` bits at `position`."""
    position, length = position.astype(u64) & u64(LOW_BYTE), length.astype(u64) & u64(LOW_BYTE)
    bits = u64(a.dtype.itemsize * 8)
    near = np.minimum(position, u64(63))
    ones = np.where(length >= bits, ~u64(0), (u64(1) << np.minimum(length, u64(63))) - u64(1))
    mask = np.where(position >= bits, u64(0), ones << near).astype(a.dtype)
    put = np.where(position >= bits, u64(0), a.astype(u64) << near).astype(a.dtype)
    return (b & ~mask) | (put & mask)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt: each byte of the result is one of b:a, or its sign 8 times, by 4 bits of selector."""
    both = (b.astype(u64) << u64(32)) | a
    out = np.zeros(a.shape, u32)
    for i in range(4):
        choice = (selector >> u32(4 * i)) & u32(15)
        byte = ((both >> ((choice & u32(7)).astype(u64) * u64(8))) & u64(LOW_BYTE)).astype(u32)
        sign = np.where(byte & u32(0x80), u32(LOW_BYTE), u32(0))
        byte = np.where((choice & u32(8)) != 0, sign, byte)
        out |= byte << u32(8 * i)
    return out


def logic3(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: bit 4a + 2b + c of the table, for each bit."""
    out = np.zeros_like(a)
    for i in range(8):
        if table >> i & 1:
            out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return out


def count_ones(a: Array) -> Array:
    return np.bitwise_count(a).astype(u32)


def leading_zeros(a: Array) -> Array:
    bits = a.dtype.itemsize * 8
    return np.array([bits - int(value).bit_length() for value in a], u32)


def reverse_bits(a: Array) -> Array:
    """brev: the bytes in reverse, and the bits of each."""
    little = a.view(u8).reshape(len(a), -1)
    return np.packbits(np.unpackbits(little[:, ::-1].copy(), axis=1)[:, ::-1].copy(), axis=1)[
        :, ::-1
    ].copy().view(a.dtype).reshape(-1)  # fmt: skip


def words_of_halves(high: Array, low: Array) -> Array:
    """Two arrays of 16 bits as one of 32."""
    return (high.astype(u32) << u32(16)) | low
