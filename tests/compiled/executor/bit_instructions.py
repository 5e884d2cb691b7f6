"""The Python of bits, predicates and moves: and, shl, prmt ... setp, selp, mov."""

from collections.abc import Callable

from .arithmetic_instructions import flushed
from .instruction import Instruction
from .ptx_types import BITS, BYTES, EmulationError, is_float
from .writer import BlockWriter, is_number

LOGIC = {"and": "&", "or": "|", "xor": "^"}
COMPARISONS = {
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
    "lo": "<", "ls": "<=", "hi": ">", "hs": ">=",
}  # fmt: skip
# Of floats. An ordered comparison is false where one side is NaN, as NumPy's are but for !=; an
# unordered one, whose name ends on u, is true there.
ORDERED = {name: f"({{0}} {sign} {{1}})" for name, sign in COMPARISONS.items() if len(name) == 2}
ORDERED |= {
    "ne": "(({0} < {1}) | ({0} > {1}))",
    "num": "~(np.isnan({0}) | np.isnan({1}))",
    "nan": "(np.isnan({0}) | np.isnan({1}))",
}
UNORDERED = {
    "ltu": "~({0} >= {1})", "leu": "~({0} > {1})", "gtu": "~({0} <= {1})", "geu": "~({0} < {1})",
    "equ": "~(({0} < {1}) | ({0} > {1}))", "neu": "({0} != {1})",
}  # fmt: skip


def logic(w: BlockWriter, i: Instruction) -> None:
    kind = w.held(i)
    a, b = w.read_all(i.operands[1:3], kind)
    w.write(i.operands[0], f"{a} {LOGIC[i.name]} {b}", kind)


def invert(w: BlockWriter, i: Instruction) -> None:
    kind = w.held(i)
    w.write(i.operands[0], f"~{w.read(i.operands[1], kind)}", kind)


def shift(w: BlockWriter, i: Instruction) -> None:
    kind, count = w.held(i), i.operands[2]
    a = w.read(i.operands[1], kind)
    left = i.name == "shl"
    if is_number(count) and int(count) < BYTES[kind] * 8:
        expression = f"{a} {'<<' if left else '>>'} {w.constant(int(count), kind)}"
    else:
        expression = f"shift_{'left' if left else 'right'}({a}, {w.read(count, 'u32')})"
    w.write(i.operands[0], expression, kind)


def funnel_shift(w: BlockWriter, i: Instruction) -> None:
    """shf.l.wrap.b32 and its like"""
    low, high, count = w.read_all(i.operands[1:4], "u32")
    left, clamp = i.parts[1] == "l", i.parts[2] == "clamp"
    w.write(i.operands[0], f"funnel_shift({low}, {high}, {count}, {left}, {clamp})", "u32")


def extract_field(w: BlockWriter, i: Instruction) -> None:
    """bfe; a constant field that lies within the value is two shifts."""
    kind, position, length = w.held(i), *i.operands[2:4]
    a, bits = w.read(i.operands[1], kind), 8 * BYTES[kind]
    if is_number(position) and is_number(length) and 0 < int(length) <= bits - int(position):
        up = w.constant(bits - int(position) - int(length), kind)
        expression = f"({a} << {up}) >> {w.constant(bits - int(length), kind)}"
    else:
        expression = f"extract_field({a}, {w.read(position, 'u32')}, {w.read(length, 'u32')})"
    w.write(i.operands[0], expression, kind)


def insert_field(w: BlockWriter, i: Instruction) -> None:
    kind = w.held(i)
    values = w.read_all(i.operands[1:3], kind) + w.read_all(i.operands[3:5], "u32")
    w.write(i.operands[0], f"insert_field({', '.join(values)})", kind)


def permute_bytes(w: BlockWriter, i: Instruction) -> None:
    if i.modifiers:
        raise EmulationError(f"modifiers {i.modifiers}")
    values = ", ".join(w.read_all(i.operands[1:4], "u32"))
    w.write(i.operands[0], f"permute_bytes({values})", "u32")


def logic3(w: BlockWriter, i: Instruction) -> None:
    values = ", ".join(w.read_all(i.operands[1:4], "u32"))
    w.write(i.operands[0], f"logic3({values}, {int(i.operands[4], 0)})", "u32")


def count_bits(w: BlockWriter, i: Instruction) -> None:
    function = {"popc": "count_ones", "clz": "leading_zeros"}[i.name]
    w.write(i.operands[0], f"{function}({w.read(i.operands[1], w.held(i))})", "u32")


def reverse_bits(w: BlockWriter, i: Instruction) -> None:
    kind = w.held(i)
    w.write(i.operands[0], f"reverse_bits({w.read(i.operands[1], kind)})", kind)


def compare(w: BlockWriter, i: Instruction) -> None:
    """setp.COMPARISON(.and|.or|.xor).TYPE p|q, a, b(, c): q is the opposite comparison."""
    kind, comparison = w.held(i), i.parts[1]
    if i.type == "bf16":
        a, b = (f"float_of_bfloat16({e})" for e in w.read_all(i.operands[1:3], kind))
        kind = "f32"
    else:
        a, b = flushed(i, w.read_all(i.operands[1:3], kind))
    if is_float(kind):
        expression = (ORDERED | UNORDERED)[comparison].format(a, b)
    else:
        expression = f"({a} {COMPARISONS[comparison]} {b})"
    combined = ""
    if combine := i.first_of(*LOGIC):
        combined = f" {LOGIC[combine]} {w.read(i.operands[3], 'pred')}"
    result = w.temporary(expression)
    first, _, opposite = i.operands[0].partition("|")
    w.write(first, result + combined, "pred")
    if opposite:
        w.write(opposite, f"~{result}{combined}", "pred")


def select(w: BlockWriter, i: Instruction) -> None:
    kind = w.held(i)
    a, b = w.read_all(i.operands[1:3], kind)
    w.write(i.operands[0], f"np.where({w.read(i.operands[3], 'pred')}, {a}, {b})", kind)


def move(w: BlockWriter, i: Instruction) -> None:
    """mov, between registers or between one and the parts of a vector."""
    target, source = i.operands
    kind = w.held(i)
    if target[0] == "{":
        parts = w.registers(target)
        narrow = BITS[BYTES[kind] // len(parts)]
        source = w.read(source, kind)
        rows = w.temporary(f"{source}.view({narrow}).reshape(-1, {len(parts)})")
        for position, part in enumerate(parts):
            w.write(part, f"{rows}[:, {position}].copy()", narrow)
    elif source[0] == "{":
        parts = w.registers(source)
        values = ", ".join(w.read_all(parts, BITS[BYTES[kind] // len(parts)]))
        w.write(target, f"np.stack([{values}], 1).reshape(-1).view({kind})", kind)
    else:
        kind = w.kind_now(source, kind)
        w.write(target, w.read(source, kind), kind)


def generic_address(w: BlockWriter, i: Instruction) -> None:
    """cvta: addresses are the same in all spaces here."""
    w.write(i.operands[0], w.read(i.operands[1], "u64"), "u64")


HANDLERS: dict[str, Callable[[BlockWriter, Instruction], None]] = {
    **dict.fromkeys(LOGIC, logic), "not": invert, "shl": shift, "shr": shift, "shf": funnel_shift,
    "bfe": extract_field, "bfi": insert_field, "prmt": permute_bytes, "lop3": logic3,
    "popc": count_bits, "clz": count_bits, "brev": reverse_bits, "setp": compare, "selp": select,
    "mov": move, "cvta": generic_address,
}  # fmt: skip
