"""The Python of arithmetic: add ... fma, division, minima and maxima, functions, conversions."""

from collections.abc import Callable

import numpy as np

from .floats import (
    bfloat16_of_float,
    float16_of_float,
    float_of_bfloat16,
    float_of_float16,
    fma32,
)
from .instruction import Instruction
from .ptx_types import BITS, BYTES, HALF_FLOATS, HELD_AS, Array, EmulationError, is_float
from .writer import BlockWriter

# What is done with values of 16 bits, after they were made float32, and with pairs of float32.
IN_FLOAT32: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "fma": fma32, "min": np.fmin,
    "max": np.fmax, "minNaN": np.minimum, "maxNaN": np.maximum, "abs": np.abs,
}  # fmt: skip
SIGN = {"f16": 0x8000, "bf16": 0x8000, "f16x2": 0x8000_8000, "bf16x2": 0x8000_8000}
APPROXIMATE = {
    "sqrt": "sqrt_approximate",
    "rsqrt": "rsqrt_approximate",
    "rcp": "reciprocal_approximate",
    "ex2": "exp2_approximate",
    "lg2": "log2_approximate",
    "sin": "sin_approximate",
    "cos": "cos_approximate",
    "tanh": "tanh_approximate",
}
ROUNDINGS = {"rzi": "np.trunc", "rni": "np.rint", "rmi": "np.floor", "rpi": "np.ceil"}
TO_BFLOAT16 = {"rn": "bfloat16_of_float", "rz": "bfloat16_truncated"}


def allow(i: Instruction, *modifiers: str) -> None:
    """Refuse modifiers that would change what is computed."""
    unknown = [modifier for modifier in i.modifiers if modifier not in modifiers]
    if unknown:
        raise EmulationError(f"modifiers {unknown}")


def flushed(i: Instruction, expressions: list[str]) -> list[str]:
    return [f"flush({e})" for e in expressions] if "ftz" in i.parts else expressions


def write_float(w: BlockWriter, i: Instruction, expression: str, kind: str) -> None:
    """Write a result that .ftz flushes."""
    (result,) = flushed(i, [expression])
    w.write(i.operands[0], result, kind)


def in_float32(function: Callable[..., Array], bfloat16: bool) -> Callable[..., Array]:
    """A function of 16-bit floats: computed in float32 and rounded."""
    widen, narrow = (
        (float_of_bfloat16, bfloat16_of_float) if bfloat16 else (float_of_float16, float16_of_float)
    )
    return lambda *values: narrow(function(*[widen(value) for value in values]))


def packed(w: BlockWriter, i: Instruction, name: str) -> bool:
    """Write an operation on 16-bit floats, or pairs of those or of float32, if it is one."""
    if i.type == "f32x2":
        function, kind, on = w.bind(f"pair_{name}", IN_FLOAT32[name]), "u64", "on_pairs"
    elif i.type in HALF_FLOATS:
        kind, on = ("u32", "on_halves") if i.type.endswith("x2") else ("u16", "")
        rounded = in_float32(IN_FLOAT32[name], i.type.startswith("bf"))
        function = w.bind(f"{i.type.removesuffix('x2')}_{name}", rounded)
    else:
        return False
    allow(i, "rn", "NaN")
    values = ", ".join(w.read_all(i.operands[1:], kind))
    w.write(i.operands[0], f"{on}({function}, {values})" if on else f"{function}({values})", kind)
    return True


def add_or_subtract(w: BlockWriter, i: Instruction) -> None:
    if packed(w, i, i.name):
        return
    allow(i, "rn", "ftz", "wrap")
    kind = w.held(i)
    a, b = flushed(i, w.read_all(i.operands[1:3], kind))
    write_float(w, i, f"{a} {'+' if i.name == 'add' else '-'} {b}", kind)


def multiply(w: BlockWriter, i: Instruction) -> None:
    """mul and, for integers, mad: the product's low or high half or all of it, and a sum."""
    kind = w.held(i)
    if is_float(kind) and i.name == "mad":
        return fused_multiply_add(w, i)
    if packed(w, i, i.name):
        return None
    a, b = w.read_all(i.operands[1:3], kind)
    if "wide" in i.parts:
        kind = f"{kind[0]}{16 * BYTES[kind]}"
        expression = f"{a}.astype({kind}) * {b}.astype({kind})"
    elif "hi" in i.parts:
        expression = f"multiply_high({a}, {b})"
    else:
        allow(i, "rn", "ftz", "lo")
        a, b = flushed(i, [a, b])
        expression = f"{a} * {b}"
    if i.name == "mad":
        expression += f" + {w.read(i.operands[3], kind)}"
    return write_float(w, i, expression, kind)


def fused_multiply_add(w: BlockWriter, i: Instruction) -> None:
    if packed(w, i, "fma"):
        return
    allow(i, "rn", "ftz")
    kind = w.held(i)
    a, b, c = flushed(i, w.read_all(i.operands[1:4], kind))
    write_float(w, i, f"fma{8 * BYTES[kind]}({a}, {b}, {c})", kind)


def divide(w: BlockWriter, i: Instruction) -> None:
    kind = w.held(i)
    a, b = flushed(i, w.read_all(i.operands[1:3], kind))
    if not is_float(kind):
        expression = f"{'divide' if i.name == 'div' else 'remainder'}({a}, {b})"
    elif "rn" in i.parts:
        expression = f"{a} / {b}"
    elif i.first_of("full", "approx"):
        expression = f"divide_approximate({a}, {b}, cta.noise)"
    else:
        raise EmulationError("rounding")
    write_float(w, i, expression, kind)


def minimum_or_maximum(w: BlockWriter, i: Instruction) -> None:
    """Of two floats, one of them NaN, the other, unless .NaN says to keep it."""
    name = i.name + ("NaN" if "NaN" in i.parts else "")
    if packed(w, i, name):
        return
    kind = w.held(i)
    values = flushed(i, w.read_all(i.operands[1:], kind))
    function = f"np.{i.name}imum"
    if is_float(kind):
        allow(i, "ftz", "NaN")
        function = function if "NaN" in i.parts else f"np.f{i.name}"
    else:
        allow(i)
    expression = f"{function}({values[0]}, {values[1]})"
    if len(values) == 3:
        expression = f"{function}({expression}, {values[2]})"
    write_float(w, i, expression, kind)


def negate(w: BlockWriter, i: Instruction) -> None:
    kind = w.held(i)
    if i.type in SIGN:
        kind = BITS[BYTES[kind]]
        expression = f"{w.read(i.operands[1], kind)} ^ {w.constant(SIGN[i.type], kind)}"
        return w.write(i.operands[0], expression, kind)
    (a,) = flushed(i, [w.read(i.operands[1], kind)])
    return write_float(w, i, f"-{a}", kind)


def absolute(w: BlockWriter, i: Instruction) -> None:
    if packed(w, i, "abs"):
        return
    kind = w.held(i)
    (a,) = flushed(i, [w.read(i.operands[1], kind)])
    write_float(w, i, f"np.abs({a})", kind)


def function(w: BlockWriter, i: Instruction) -> None:
    """sqrt, rcp and the like: exact with .rn, else as Options.approx_noise says."""
    if i.type in HALF_FLOATS:
        raise EmulationError(f"{i.name} of {i.type}")
    kind = w.held(i)
    (a,) = flushed(i, [w.read(i.operands[1], kind)])
    exact = {"sqrt": f"np.sqrt({a})", "rcp": f"1 / {a}"}
    approximate = f"{APPROXIMATE[i.name]}({a}, cta.noise)"
    write_float(w, i, exact[i.name] if "rn" in i.parts else approximate, kind)


def copy_sign(w: BlockWriter, i: Instruction) -> None:
    kind = w.held(i)
    sign, magnitude = w.read_all(i.operands[1:3], kind)
    w.write(i.operands[0], f"np.copysign({magnitude}, {sign})", kind)


def test_property(w: BlockWriter, i: Instruction) -> None:
    test = {"finite": "np.isfinite", "infinite": "np.isinf", "notanumber": "np.isnan",
            "number": "~np.isnan"}[i.parts[1]]  # fmt: skip
    w.write(i.operands[0], f"{test}({w.read(i.operands[1], w.held(i))})", "pred")


def convert(w: BlockWriter, i: Instruction) -> None:
    """cvt.MODIFIERS.TO.FROM"""
    *modifiers, to, of = i.parts[1:]
    if to in ("bf16x2", "f16x2"):
        return _convert_two(w, i, modifiers, to, of)
    kind, target = HELD_AS[of], HELD_AS[to]
    value = w.read(i.operands[1], kind)
    if of == "bf16":
        value, kind = f"float_of_bfloat16({value})", "f32"
    if "ftz" in modifiers and kind == "f32":
        value = f"flush({value})"
    if "sat" in modifiers:
        raise EmulationError("saturating cvt")
    rounding = "".join(modifier for modifier in modifiers if modifier != "ftz")
    if to == "bf16":
        if kind == "f64":
            raise EmulationError("cvt.bf16.f64")
        value = value if kind == "f32" else f"{value}.astype(f32)"
        value = f"{TO_BFLOAT16[rounding]}({value})"
    elif is_float(target):
        if rounding in ROUNDINGS:
            value = f"{ROUNDINGS[rounding]}({value})"
        elif rounding not in ("", "rn"):
            raise EmulationError("rounding")
        value = value if target == kind else f"{value}.astype({target})"
        value = f"flush({value})" if "ftz" in modifiers and target == "f32" else value
    elif is_float(kind):
        value = f"integer_of_float({value}, {target}, {rounding!r})"
    elif target != kind:
        value = f"{value}.astype({target})"  # extends by the sign of the source's type
    return w.write(i.operands[0], value, target)


def _convert_two(w: BlockWriter, i: Instruction, modifiers: list[str], to: str, of: str) -> None:
    """Two float32 into one word of two 16-bit floats; the first operand is the upper half."""
    high, low = w.read_all(i.operands[1:3], "f32")
    rounding = "".join(modifiers)
    if of != "f32" or (to == "f16x2" and rounding != "rn"):
        raise EmulationError("conversion to a pair")
    into = TO_BFLOAT16[rounding] if to == "bf16x2" else "float16_of_float"
    w.write(i.operands[0], f"words_of_halves({into}({high}), {into}({low}))", "u32")


HANDLERS: dict[str, Callable[[BlockWriter, Instruction], None]] = {
    "add": add_or_subtract, "sub": add_or_subtract, "mul": multiply, "mad": multiply,
    "fma": fused_multiply_add, "div": divide, "rem": divide, "min": minimum_or_maximum,
    "max": minimum_or_maximum, "neg": negate, "abs": absolute, "copysign": copy_sign,
    "testp": test_property, "cvt": convert, **dict.fromkeys(APPROXIMATE, function),
}  # fmt: skip
