"""SASS operands as Python expressions over a thread's registers.

R are the thread's 32-bit registers, U the uniform ones, P and Q their predicates. Numbers are
unsigned.
"""

import math
import re
import struct
from collections.abc import Mapping

MASK = 0xFFFFFFFF
MASK64 = (1 << 64) - 1
_CONSTANT = re.compile(r"c\[0x0\]\[(0x[0-9a-f]+)\]")
_PREDICATE = re.compile(r"!?(U?)P([0-6]|T)")
_ADDRESS_TERM = re.compile(r"([+-]?)(UR\d+|URZ|RZ|R\d+|0x[0-9a-f]+|\d+)(\.64|\.U32|\.X\d+)?")
_NAN = ("+QNAN", "-QNAN", "QNAN")


def signed(x: int) -> int:
    x &= MASK
    return x - (1 << 32) if x >> 31 else x


def float_bits(value: float) -> int:
    try:
        return int(struct.unpack("<I", struct.pack("<f", value))[0])
    except OverflowError:
        return 0x7F800000 if value > 0 else 0xFF800000


def as_float(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits & MASK))[0])


def is_predicate(operand: str) -> bool:
    return _PREDICATE.fullmatch(operand) is not None


def _negated(operand: str) -> bool:
    return operand[0] == "-" and not operand[1:2].isdigit() and operand[1:2] not in ("I", "Q")


class Operands:
    """Expressions for the operands of one program; `constants` is its bank, by offset."""

    def __init__(self, constants: Mapping[int, int]) -> None:
        self.constants = constants

    def word(self, s: str) -> str:
        if _negated(s):
            return f"(-{self.word(s[1:])}&M)"
        if s[0] == "~":
            return f"({self.word(s[1:])}^M)"
        if s[0] == "|":
            return f"abs(signed({self.word(s.strip('|'))}))"
        if s.startswith("c["):
            found = _CONSTANT.match(s)
            return str(self.constants.get(int(found[1], 16), 0) if found else 0)
        if s[0] == "R" or s.startswith("UR"):
            register = _register(s)
            if register is None:
                return "0"
            if ".H1" in s:
                return f"({register}>>16)"
            return f"({register}>>8&255)" if ".B1" in s else register
        return str(_immediate(s))

    def double_word(self, s: str) -> str:
        if _negated(s):
            return f"(-{self.double_word(s[1:])}&M64)"
        if s[0] == "~":
            return f"({self.double_word(s[1:])}^M64)"
        if found := _CONSTANT.match(s):
            offset = int(found[1], 16)
            high = self.constants.get(offset + 4, 0)
            return str(self.constants.get(offset, 0) | high << 32)
        if s[0] == "R" or s.startswith("UR"):
            register = _register(s)
            return "0" if register is None else f"({register}|{_register(s, 1)}<<32)"
        return str(int(s, 0) & MASK64)

    def real(self, s: str) -> str:
        if _negated(s):
            return f"(-{self.real(s[1:])})"
        if s[0] == "|":
            return f"abs({self.real(s.strip('|'))})"
        if s[0] in "RU" or s.startswith("c["):
            return f"as_float({self.word(s)})"
        if "0x" in s or "INF" in s or "NAN" in s:
            return f"as_float({_immediate(s)})"
        return f"({float(s)})"

    def test(self, s: str) -> str:
        found = _PREDICATE.fullmatch(s)
        if found is None:
            raise NotImplementedError(f"predicate {s}")
        value = "True" if found[2] == "T" else f"{'Q' if found[1] else 'P'}[{found[2]}]"
        return f"(not {value})" if s[0] == "!" else value

    def put(self, s: str, value: str) -> str:
        return f"{_register(s) or '_'} = ({value})&M"

    def put_double(self, s: str, value: str) -> str:
        if _register(s) is None:
            return f"_ = {value}"
        return f"w = {value}; {_register(s)} = w&M; {_register(s, 1)} = w>>32&M"

    def set(self, s: str, value: str) -> str:
        found = _PREDICATE.fullmatch(s)
        if found is None:
            raise NotImplementedError(f"predicate {s}")
        target = "_" if found[2] == "T" else f"{'Q' if found[1] else 'P'}[{found[2]}]"
        return f"{target} = bool({value})"

    def address(self, s: str) -> str:
        """The address in desc[UR4][R2.64+0x10] or [R2+UR4+0x10]: in the last brackets."""
        terms = []
        inner = re.findall(r"\[([^\[\]]*)\]", s)[-1].replace(" ", "")
        for sign, term, suffix in _ADDRESS_TERM.findall(inner):
            if term in ("RZ", "URZ"):
                continue
            if "R" in term:
                value = self.double_word(term) if suffix == ".64" else self.word(term)
            else:
                value = str(int(term, 0))
            scale = f"*{suffix[2:]}" if suffix.startswith(".X") else ""
            terms.append(f"{sign or '+'}{value}{scale}")
        return "".join(terms) or "0"

    def registers(self, s: str, count: int) -> list[str]:
        """`count` registers from this one on; none if it is the zero register."""
        if _register(s) is None:
            return []
        return [_register(s, i) or "" for i in range(count)]


def _register(s: str, later: int = 0) -> str | None:
    """The register, or a later one; None for registers that are always 0."""
    bank, number = ("U", s[2:]) if s.startswith("UR") else ("R", s[1:])
    if number[0] == "Z":
        return None
    found = re.match(r"\d+", number)
    if found is None:
        raise NotImplementedError(f"register {s}")
    return f"{bank}[{int(found[0]) + later}]"


def _immediate(s: str) -> int:
    if "0x" in s:
        return int(s, 16) & MASK
    if s.lstrip("+-") == "INF":
        return float_bits(-math.inf if s[0] == "-" else math.inf)
    if s in _NAN:
        return 0x7FC00000
    return float_bits(float(s)) if any(c in s for c in ".e") else int(s) & MASK
