"""The effect of SASS instructions on a thread's registers, each as a line of Python.

Integers and predicates are exact, since addresses and loops follow from them. Floating-point values
only have to be plausible: conversions between formats give 0, and so does memory never written.
"""

import struct
from collections.abc import Callable

from .operands import Operands, float_bits, is_predicate
from .sass import Instruction

Rule = Callable[[Instruction, Operands], str]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def _carries(i: Instruction) -> tuple[str, list[str], list[str]]:
    """(destination, predicates that take a carry, sources)."""
    at = 1
    while is_predicate(i.operands[at]):
        at += 1
    return i.operands[0], list(i.operands[1:at]), list(i.operands[at:])


def _with_carry(i: Instruction, o: Operands, value: str, carries_in: list[str]) -> str:
    """value, plus the carries if the instruction takes them; also sets its own carries."""
    destination, carries, _ = _carries(i)
    if "X" in i.suffixes:
        value = "+".join([value, *(o.test(p) for p in carries_in)])
    lines = [f"v = {value}", o.put(destination, "v")]
    if carries:
        lines.append(o.set(carries[0], "v>>32&3"))
    if len(carries) > 1:
        lines.append(o.set(carries[1], "v>>33&1"))
    return "; ".join(lines)


@rule("IADD3", "UIADD3")
def _add3(i: Instruction, o: Operands) -> str:
    _, carries, sources = _carries(i)
    terms = [o.word(s) for s in sources[:3]]
    if carries and "X" not in i.suffixes:  # a - b is a + ~b + 1, with its carry
        terms = [f"({o.word('~' + s[1:])}+1)" if s[0] == "-" else o.word(s) for s in sources[:3]]
    return _with_carry(i, o, "+".join(terms), sources[3:])


@rule("IMAD", "UIMAD")
def _multiply_add(i: Instruction, o: Operands) -> str:
    destination, carries, sources = _carries(i)
    a, b = (o.word(s) for s in sources[:2])
    if "U32" not in i.suffixes and ("WIDE" in i.suffixes or "HI" in i.suffixes):
        a, b = f"signed({a})", f"signed({b})"
    if "WIDE" in i.suffixes:
        value = f"({a}*{b}&M64)+{o.double_word(sources[2])}"
        if "X" in i.suffixes:
            value += "".join(f"+{o.test(p)}" for p in sources[3:])
        put = f"v = {value}; {o.put_double(destination, 'v')}"
        return f"{put}; {o.set(carries[0], 'v>>64')}" if carries else put
    if "HI" in i.suffixes:
        wide = sources[2].lstrip("-")[0] in "RU"
        c = o.double_word(sources[2]) if wide else o.word(sources[2])
        return o.put(destination, f"((({a}*{b})&M64)+{c}&M64)>>32")
    return _with_carry(i, o, f"{a}*{b}+{o.word(sources[2])}", sources[3:])


@rule("LEA", "ULEA")
def _load_effective_address(i: Instruction, o: Operands) -> str:
    _, _, sources = _carries(i)
    if "HI" not in i.suffixes:
        value = f"(({o.word(sources[0])}<<{o.word(sources[2])})&M)+{o.word(sources[1])}"
        return _with_carry(i, o, value, sources[3:])
    a, b = o.word(sources[0]), o.word(sources[1])
    if "SX32" in i.suffixes:
        value = f"((signed({a})<<{o.word(sources[2])})>>32&M)+{b}"
        return _with_carry(i, o, value, sources[3:])
    value = f"(((({o.word(sources[2])}<<32)|{a})<<{o.word(sources[3])})>>32&M)+{b}"
    return _with_carry(i, o, value, sources[4:])


@rule("VIADD")
def _add(i: Instruction, o: Operands) -> str:
    return o.put(i.operands[0], f"{o.word(i.operands[1])}+{o.word(i.operands[2])}")


@rule("VIMNMX", "UVIMNMX")
def _minimum(i: Instruction, o: Operands) -> str:
    d, a, b, least = i.operands[:4]
    x, y = o.word(a), o.word(b)
    if "U32" not in i.suffixes:
        x, y = f"signed({x})", f"signed({y})"
    return o.put(d, f"min({x},{y}) if {o.test(least)} else max({x},{y})")


@rule("VIADDMNMX")
def _add_minimum(i: Instruction, o: Operands) -> str:
    d, a, b, c, least = i.operands[:5]
    x, y = f"signed({o.word(a)}+{o.word(b)})", f"signed({o.word(c)})"
    return o.put(d, f"min({x},{y}) if {o.test(least)} else max({x},{y})")


@rule("MOV", "UMOV", "REDUX")
def _move(i: Instruction, o: Operands) -> str:
    return o.put(i.operands[0], o.word(i.operands[1]))


@rule("R2UR")
def _to_uniform(i: Instruction, o: Operands) -> str:
    destination = next(s for s in i.operands if s.startswith("UR"))
    return o.put(destination, o.word(i.operands[-1]))


@rule("SHF", "USHF")
def _shift(i: Instruction, o: Operands) -> str:
    d, low, by, high = i.operands[:4]
    a, n, c = o.word(low), o.word(by), o.word(high)
    if i.suffixes[1] == "L":
        if "HI" in i.suffixes:
            return o.put(d, f"((({c}<<32)|{a})<<({n}&{63 if 'U64' in i.suffixes else 31}))>>32")
        return o.put(d, f"{a}<<" + (f"({n}&31)" if "W" in i.suffixes else f"min({n},32)"))
    if "HI" not in i.suffixes:
        return o.put(d, f"(({c}<<32)|{a})>>({n}&63)")
    if "S32" in i.suffixes or "S64" in i.suffixes:
        return o.put(d, f"signed({c})>>min({n},31)")
    return o.put(d, f"{c}>>{n} if {n}<32 else 0")


@rule("LOP3", "ULOP3")
def _logic(i: Instruction, o: Operands) -> str:
    first = 1 if is_predicate(i.operands[0]) else 0
    d = i.operands[first]
    a, b, c = (o.word(s) for s in i.operands[first + 1 : first + 4])
    table = int(i.operands[first + 4], 16)
    terms = [
        "&".join(n if row & bit else f"(M^{n})" for n, bit in (("a", 4), ("b", 2), ("c", 1)))
        for row in range(8)
        if table >> row & 1
    ]
    line = f"a = {a}; b = {b}; c = {c}; v = {'|'.join(terms) or '0'}; {o.put(d, 'v')}"
    return f"{line}; {o.set(i.operands[0], 'v')}" if first else line


@rule("PLOP3", "UPLOP3")
def _predicate_logic(i: Instruction, o: Operands) -> str:
    a, b, c = (o.test(s) for s in i.operands[2:5])
    first, second = (int(s, 16) for s in i.operands[5:7])
    lines = [f"v = {a}<<2|{b}<<1|{c}", o.set(i.operands[0], f"{first}>>v&1")]
    return "; ".join([*lines, o.set(i.operands[1], f"{second}>>v&1")])


_COMPARISONS = {"LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "EQ": "==", "NE": "!="}


def _set_both(i: Instruction, o: Operands, result: str) -> str:
    """Put result in the first predicate and its opposite in the second, joined with the last."""
    joint = next(s for s in i.suffixes if s in ("AND", "OR", "XOR"))
    sign = {"AND": " and ", "OR": " or ", "XOR": "!="}[joint]
    other = o.test(i.operands[4])
    lines = [f"v = {result}; t = {other}", o.set(i.operands[0], f"v{sign}t")]
    return "; ".join([*lines, o.set(i.operands[1], f"(not v){sign}t")])


@rule("ISETP", "UISETP")
def _compare(i: Instruction, o: Operands) -> str:
    a, b = o.word(i.operands[2]), o.word(i.operands[3])
    if "U32" not in i.suffixes:
        a, b = f"signed({a})", f"signed({b})"
    sign = i.suffixes[1]
    if "EX" not in i.suffixes:
        return _set_both(i, o, f"bool({a}{_COMPARISONS[sign]}{b})")
    unequal = {"LE": f"{a}<{b}", "GE": f"{a}>{b}", "EQ": "False", "NE": "True"}
    result = unequal.get(sign, f"{a}{_COMPARISONS[sign]}{b}")
    return _set_both(i, o, f"{o.test(i.operands[5])} if {a}=={b} else bool({result})")


@rule("FSETP")
def _compare_reals(i: Instruction, o: Operands) -> str:
    sign = i.suffixes[1]
    unordered = sign.endswith("U")
    plain = _COMPARISONS.get(sign.removesuffix("U"))
    a, b = o.real(i.operands[2]), o.real(i.operands[3])
    line = f"a = {a}; b = {b}; "
    result = f"{unordered} if a!=a or b!=b else {f'a{plain}b' if plain else 'False'}"
    return line + _set_both(i, o, result)


@rule("DSETP")
def _compare_doubles(i: Instruction, o: Operands) -> str:
    return _set_both(i, o, str(i.suffixes[1] in ("LE", "GE", "EQ", "LEU", "GEU", "EQU")))


@rule("SEL", "USEL")
def _select(i: Instruction, o: Operands) -> str:
    d, a, b, test = i.operands[:4]
    return o.put(d, f"{o.word(a)} if {o.test(test)} else {o.word(b)}")


@rule("FSEL")
def _select_reals(i: Instruction, o: Operands) -> str:
    d, a, b, test = i.operands[:4]
    return o.put(d, f"float_bits({o.real(a)} if {o.test(test)} else {o.real(b)})")


@rule("IABS")
def _magnitude(i: Instruction, o: Operands) -> str:
    return o.put(i.operands[0], f"abs(signed({o.word(i.operands[1])}))")


@rule("PRMT", "UPRMT")
def _permute(i: Instruction, o: Operands) -> str:
    d, a, selector, b = i.operands[:4]
    return o.put(d, f"permuted({o.word(a)}|{o.word(b)}<<32, {o.word(selector)})")


@rule("SGXT", "USGXT")
def _extend_sign(i: Instruction, o: Operands) -> str:
    d, a, width = i.operands[:3]
    line = f"n = {o.word(width)}; v = {o.word(a)}&((1<<n)-1)"
    if "U32" not in i.suffixes:
        line += "; v = v-(1<<n) if v>>(n-1)&1 else v"
    return f"{line}; {o.put(d, 'v')}"


@rule("P2R", "UP2UR")
def _predicates_to_register(i: Instruction, o: Operands) -> str:
    d, _, a, mask = i.operands[:4]
    mask, file = o.word(mask), "Q" if i.base == "UP2UR" else "P"
    return o.put(d, f"(sum({file}[t]<<t for t in range(7))&{mask})|({o.word(a)}&(M^{mask}))")


@rule("R2P")
def _register_to_predicates(i: Instruction, o: Operands) -> str:
    _, a, mask = i.operands[:3]
    return f"P[:7] = [bool({o.word(a)}>>t&1) if {o.word(mask)}>>t&1 else P[t] for t in range(7)]"


@rule("I2F")
def _to_float(i: Instruction, o: Operands) -> str:
    wide = "U64" in i.suffixes or "S64" in i.suffixes
    value = o.double_word(i.operands[1]) if wide else o.word(i.operands[1])
    if "S64" in i.suffixes:
        value = f"({value}^1<<63)-(1<<63)"
    elif not wide and "U32" not in i.suffixes and "RP" not in i.suffixes:
        value = f"signed({value})"
    up = "; v += as_float(v)<x" if "RP" in i.suffixes else ""
    return f"x = {value}; v = float_bits(float(x)){up}; {o.put(i.operands[0], 'v')}"


@rule("I2FP")
def _to_float_nearest(i: Instruction, o: Operands) -> str:
    value = o.word(i.operands[1])
    value = f"signed({value})" if "S32" in i.suffixes else value
    return o.put(i.operands[0], f"float_bits(float({value}))")


@rule("F2I")
def _to_integer(i: Instruction, o: Operands) -> str:
    line = f"x = {o.real(i.operands[1])}; "
    if "U64" in i.suffixes:
        clipped = "0 if x!=x else max(0,min(M64,int(min(x,2.0**64))))"
        return line + o.put_double(i.operands[0], clipped)
    least = 0 if "U32" in i.suffixes else -(2**31)
    return line + o.put(i.operands[0], f"0 if x!=x else int(max({least},min(x,2.0**32-1)))")


@rule("MUFU")
def _special(i: Instruction, o: Operands) -> str:
    return o.put(i.operands[0], f"special({i.suffixes[1]!r}, {o.real(i.operands[1])})")


@rule("FADD", "FMUL", "FFMA", "FMNMX")
def _reals(i: Instruction, o: Operands) -> str:
    a, b = o.real(i.operands[1]), o.real(i.operands[2])
    if i.base == "FMNMX":
        value = f"min({a},{b}) if {o.test(i.operands[3])} else max({a},{b})"
    elif i.base == "FFMA":
        value = f"{a}*{b}+{o.real(i.operands[3])}"
    else:
        value = f"{a}{'+' if i.base == 'FADD' else '*'}{b}"
    return o.put(i.operands[0], f"float_bits({value})")


@rule("DADD", "DMUL", "DFMA", "CS2R")
def _zero_double(i: Instruction, o: Operands) -> str:
    narrow = "32" in i.suffixes
    return o.put(i.operands[0], "0") if narrow else o.put_double(i.operands[0], "0")


@rule("F2F", "F2FP", "HADD2", "HMUL2", "HMNMX2")
def _zero(i: Instruction, o: Operands) -> str:
    if "F64" in i.suffixes[1:2]:
        return o.put_double(i.operands[0], "0")
    return o.put(i.operands[0], "0")


@rule("HSETP2")
def _compare_halves(i: Instruction, o: Operands) -> str:
    return "; ".join(o.set(s, "False") for s in i.operands[:2])


@rule("HFMA2")
def _fused_halves(i: Instruction, o: Operands) -> str:
    if not i.operands[1].startswith("-RZ") or len(i.operands) < 5:
        return o.put(i.operands[0], "0")
    high, low = (_half(s, "BF16_V2" in i.suffixes) for s in i.operands[3:5])
    return o.put(i.operands[0], str(high << 16 | low))  # a constant, in two halves


def _half(s: str, bfloat16: bool) -> int:
    if bfloat16:
        return float_bits(float(s)) >> 16
    return int(struct.unpack("<H", struct.pack("<e", float(s)))[0])


@rule("FLO", "UFLO")
def _leading_one(i: Instruction, o: Operands) -> str:
    return o.put(i.operands[0], f"({o.word(i.operands[1])}).bit_length()-1")


@rule("POPC", "UPOPC")
def _population(i: Instruction, o: Operands) -> str:
    return o.put(i.operands[0], f"({o.word(i.operands[1])}).bit_count()")


@rule("VOTE", "VOTEU")
def _vote(i: Instruction, o: Operands) -> str:
    if is_predicate(i.operands[0]):
        return o.set(i.operands[0], "True")
    return o.put(i.operands[0], "1<<(T.thread%32)")


@rule("SHFL")
def _shuffle(i: Instruction, o: Operands) -> str:
    return f"{o.put(i.operands[1], o.word(i.operands[2]))}; {o.set(i.operands[0], 'True')}"


@rule("S2R", "S2UR")
def _special_register(i: Instruction, o: Operands) -> str:
    return o.put(i.operands[0], f"T.special.get({i.operands[1]!r}, 0)")


@rule("LDC", "ULDC")
def _load_constant(i: Instruction, o: Operands) -> str:
    inner = i.operands[1].rpartition("[")[2].rstrip("]")
    offset = "+".join(o.word(term.strip()) for term in inner.split("+"))
    low, high = f"T.constants.get({offset}, 0)", f"T.constants.get({offset}+4, 0)"
    if "64" in i.suffixes:
        return o.put_double(i.operands[0], f"{low}|{high}<<32")
    return o.put(i.operands[0], low)
