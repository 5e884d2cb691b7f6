"""PTX text -> Kernel."""

import pytest

from tests.compiled.conftest import module
from tests.compiled.executor import EmulationError, parse
from tests.compiled.executor.parser import split_operands

BODY = """
    .reg .pred %q<3>;
    .loc 1 42 9 // kernel.py:42:9
    setp.lt.s32 %q1, %r1, 5; @%q1 bra $L__BB0_2; // two in a line
    ld.global.v2.b32 {%r5, %r6}, [%d4+8];
    // begin inline asm
    { .reg .b32 %inner; mov.b32 %inner, %r5; }
    // end inline asm
    @!%q1 atom.global.gpu.acq_rel.add.u32 %r6, [%d1 + 0], 1;
$L__BB0_2:
    bar.sync 0;
    st.shared.b32 [global_smem+16], %r6;
"""


def test_a_kernel_has_its_parameters_registers_and_threads():
    kernel = parse(module(BODY, threads=96))
    assert (kernel.name, kernel.threads) == ("handwritten", 96)
    assert [(p.kind, p.name) for p in kernel.parameters] == [("u64", "param_0"), ("u64", "param_1")]
    registers = kernel.registers
    assert [registers[name].bytes for name in ("%p0", "%h19", "%r39", "%d0", "%q2")] == [
        0, 2, 4, 8, 0
    ]  # fmt: skip
    assert registers["%inner"].bytes == 4 and "%r40" not in registers
    assert len({register.index for register in registers.values()}) == len(registers)


def test_instructions_have_operands_guards_and_sources():
    kernel = parse(module(BODY))
    instructions = [i for block in kernel.blocks for i in block.instructions]
    load = next(i for i in instructions if i.opcode == "ld.global.v2.b32")
    assert load.operands == ["{%r5, %r6}", "[%d4+8]"] and load.source == "kernel.py:42"
    assert (load.space, load.type, load.kind) == ("global", "b32", "ld.global")
    atomic = next(i for i in instructions if i.name == "atom")
    assert atomic.guard.register == "%q1" and atomic.guard.negated
    branch = next(i for i in instructions if i.name == "bra")
    assert not branch.guard.negated
    assert (
        branch.text == "@%q1 bra $L__BB0_2" and "bra" in module(BODY).splitlines()[branch.line - 1]
    )
    assert "mov.b32 %inner, %r5" in [i.text for i in instructions]
    assert instructions[0].source == "kernel.py:7"


def test_blocks_begin_at_labels_and_accesses_and_end_at_branches_and_barriers():
    kernel = parse(module(BODY))
    texts = [[i.name for i in block.instructions] for block in kernel.blocks]
    assert texts[0][-2:] == ["setp", "bra"]
    assert texts[1:] == [["ld", "mov"], ["atom"], ["bar"], ["st", "ret"], ["ret"]]
    assert [(b.accesses, b.synchronises) for b in kernel.blocks[1:4]] == [
        (True, False), (False, True), (False, False)
    ]  # fmt: skip
    assert kernel.labels == {"$L__BB0_2": 3}
    assert kernel.blocks[0].kinds["branch"] == 1 and kernel.blocks[0].kinds["ld.param"] == 2


@pytest.mark.parametrize(
    "opcode, stops",
    [
        ("ld.acquire.gpu.global.b32", True), ("st.release.gpu.global.b32", True),
        ("ld.volatile.global.b32", True), ("red.global.add.u32", True), ("ld.global.b32", False),
        ("atom.shared.add.u32", False), ("add.s32", False),
    ],
)  # fmt: skip
def test_what_other_ctas_may_notice_synchronises(opcode, stops):
    kernel = parse(module(f"{opcode} %r6, [%d4], %r5;"))
    assert any(block.synchronises for block in kernel.blocks) == stops


def test_local_memory_is_laid_out():
    declared = ".local .align 4 .b8 \tfirst[6];\n.local .align 16 .b8 second[20];"
    kernel = parse(module("", declarations=declared))
    assert kernel.local_symbols == {"first": 0, "second": 16} and kernel.local_bytes == 36


def test_operands_are_split_at_commas_outside_braces():
    assert split_operands("{ %r1, %r2 }, [ %d1 + 0 ], 5") == ["{ %r1, %r2 }", "[ %d1 + 0 ]", "5"]
    assert split_operands("") == []


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text.replace(".reqntid 64", ""), "reqntid 0"),
        (lambda text: text.replace(".reqntid 64", ".reqntid 48"), "reqntid 48"),
        (lambda text: text.rstrip().removesuffix("}"), "ends in its body"),
        (lambda text: text + text.replace(".version 8.0", ""), "more than one entry"),
        (lambda text: text.replace("global_smem[]", "table[16]"), "shared symbol"),
        (lambda text: text.replace("ret;", ".reg .b64 %r1; ret;"), "declares %r1 in two widths"),
    ],
)
def test_what_triton_does_not_write_is_refused(change, message):
    with pytest.raises(EmulationError, match=message):
        parse(change(module("")))
