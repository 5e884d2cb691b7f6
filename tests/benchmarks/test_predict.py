"""The estimate from machine code: on three launches of version 0.1.0, made by Triton 3.9.0, with
figures from another program of the same model; then the command on a case of fastnorm's.

`launches.json.gz` holds the disassembly of these launches, their grids and arguments.
"""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.compile_only import Argument
from benchmarks.machine_code import Resources
from benchmarks.predict import model
from benchmarks.predict.estimate import (
    Code,
    Estimate,
    _others_are_there,
    estimate,
    place_of_spills,
)
from benchmarks.predict.operands import Operands
from benchmarks.predict.sass import Program, parse_text
from benchmarks.predict.thread import Machine
from benchmarks.predict.trace import L1, L2

ROOT = Path(__file__).parents[2]
FORWARD, BACKWARD = (4096, 4096), (4096, 1024)
# Of layer norm of these shapes in bfloat16: the launches' estimated us, instructions an element.
KNOWN = {
    ("h100", "row_norm_kernel"): (24.8, 21.1),
    ("h100", "row_norm_backward_kernel"): (18.3, 36.8),
}
KNOWN_SUM = 9.1  # us of sum_partials_kernel, which waits for memory 9 times in turn
CLOSE = 0.03


def saved_launches() -> dict[str, Code]:
    with gzip.open(Path(__file__).with_name("launches.json.gz"), "rt") as file:
        found = json.load(file)
    return {
        saved["name"]: Code(
            saved["name"],
            parse_text("\n".join(saved["code"])),
            Resources(saved["registers"], saved["stack"]),
            saved["shared"],
            saved["warps"],
            saved["programs"],
            tuple(Argument(*a) for a in saved["arguments"]),
        )
        for saved in found
    }


def estimated(code: Code, gpu: str) -> Estimate:
    rows, length = FORWARD if code.name == "row_norm_kernel" else BACKWARD
    return estimate(code, rows * length, gpu, frozenset())


@pytest.mark.parametrize(("gpu", "name"), KNOWN)
def test_known_figures_come_again(gpu, name):
    us, instructions = KNOWN[gpu, name]
    found = estimated(saved_launches()[name], gpu)
    assert found.us == pytest.approx(us, rel=CLOSE)
    assert found.instructions == pytest.approx(instructions, rel=CLOSE)


def test_a_chain_of_loads_is_waited_for():
    found = estimated(saved_launches()["sum_partials_kernel"], "h100")
    assert found.us == pytest.approx(KNOWN_SUM, rel=CLOSE)
    assert found.peak_kb == 0  # partial sums lie in the L2 cache


def test_bytes_in_flight_of_a_multiprocessor():
    found = estimated(saved_launches()["row_norm_kernel"], "h100")
    assert (found.resident_warps, found.peak_kb) == (20, 40)  # 64 bytes a thread


@pytest.mark.parametrize("base", ["FADD", "FFMA"])
def test_other_counts_are_other_figures(base):
    """Without half of its sums the launch no longer has the known figures."""
    code = saved_launches()["row_norm_kernel"]
    instructions = code.program.instructions
    kept = tuple(i for n, i in enumerate(instructions) if i.base != base or n % 2)
    assert len(kept) < len(instructions)
    found = estimated(replace(code, program=Program(kept, code.program.labels)), "h100")
    us, per_element = KNOWN["h100", "row_norm_kernel"]
    assert found.instructions < per_element * (1 - CLOSE)
    assert found.us < us


def test_twice_the_rows_are_twice_the_instructions():
    code = saved_launches()["row_norm_backward_kernel"]
    doubled = tuple(
        Argument(n, f, 2 * v if n in ("R", "row_blocks") else v) for n, f, v in code.arguments
    )
    once, twice = (estimated(c, "h100") for c in (code, replace(code, arguments=doubled)))
    assert twice.instructions / once.instructions == pytest.approx(2, rel=0.1)
    assert twice.us / once.us == pytest.approx(2, rel=0.1)


def test_integers_are_exact():
    """R2 = 7 * 5 - 3, then a loop that counts it down by 8."""
    code = """
        /*0000*/ MOV R1, 0x7 ; /* 0x0000000000000000 */
        /* 0x000fe20000000000 */
        /*0010*/ IMAD R2, R1, 0x5, -0x3 ; /* 0x0000000000000000 */
        /* 0x000fe20000000000 */
        .L_1:
        /*0020*/ IADD3 R2, R2, -0x8, RZ ; /* 0x0000000000000000 */
        /* 0x000fe20000000000 */
        /*0030*/ ISETP.GT.AND P0, PT, R2, RZ, PT ; /* 0x0000000000000000 */
        /* 0x000fe20000000000 */
        /*0040*/ @P0 BRA `(.L_1) ; /* 0x0000000000000000 */
        /* 0x000fe20000000000 */
        /*0050*/ STG.E.64 desc[UR4][R2.64+0x8], R2 ; /* 0x0000000000000000 */
        /* 0x000fe20000000000 */
        /*0060*/ EXIT ; /* 0x0000000000000000 */
        /* 0x000fe20000000000 */
    """
    steps = Machine(parse_text(code), {}).run(0, 0, lambda k: 0)
    assert len(steps) == 2 + 3 * 4 + 2
    assert steps[-2].at == 8  # 32 - 4 * 8, and the offset
    assert steps[0].instruction.stall == 1


def assembled(*lines: str) -> Program:
    """A program of these lines; a label has one of its own, with a colon."""
    text, address = [], 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
            continue
        text += [f"/*{address:04x}*/ {line} ; /* 0x0000000000000000 */", "/* 0x000fe20000000000 */"]
        address += 16
    return parse_text("\n".join(text))


def test_a_barrier_of_programs_ends():
    """The first thread counts and looks; the others find in shared memory what it saw."""
    code = assembled(
        "S2R R9, SR_TID.X", "ISETP.NE.AND P1, PT, R9, RZ, PT", "@P1 BRA `(.L_1)",
        "ATOMG.E.ADD.STRONG.GPU PT, R4, desc[UR8][R46.64], R5",
        ".L_1:", "@!P1 STS [UR6], R4", "LDS R5, [UR6]",
        ".L_2:", "@P1 BRA `(.L_3)", "LDG.E.STRONG.GPU R7, desc[UR8][R46.64]",
        ".L_3:", "@!P1 STS [UR6], R7", "LDS R8, [UR6]", "LOP3.LUT R8, R8, R5, RZ, 0x3c, !PT",
        "ISETP.GT.AND P0, PT, R8, -0x1, PT", "@P0 BRA `(.L_2)", "EXIT",
    )  # fmt: skip
    first, other = (Machine(code, {}).run(0, thread, _others_are_there) for thread in (0, 31))
    assert [step.instruction.base for step in first].count("LDG") == 1
    assert [step.instruction.base for step in other].count("ATOMG") == 0
    assert len(first) == len(other) + 2


SPILL = ("STL.128 [R1], R4", "LDL.128 R4, [R1]")


def spilling(spilled: int, shared: int, *lines: str) -> Code:
    """One block an SM of 32 warps, whose threads spill that many bytes."""
    program = assembled(*lines, "EXIT")
    return Code("spilling", program, Resources(64, spilled), shared, 32, 132, ())


@pytest.mark.parametrize(
    ("spilled", "shared", "place"),
    [(248, 0, L1), (249, 0, L2), (192, 60 * 1024, L1), (193, 60 * 1024, L2),
     (156, 64 * 1024, L1), (157, 64 * 1024, L2), (0, 200 * 1024, L1)],
)  # fmt: skip
def test_spills_stay_in_the_l1_cache_if_they_fit(spilled, shared, place):
    """It has the part of 256 KB that shared memory leaves, whose sizes come in steps."""
    assert place_of_spills(spilling(spilled, shared), 1) == place


def test_spills_that_do_not_fit_take_longer():
    """By the bandwidth of the L2 cache: 512 bytes a warp each time, 26 bytes a cycle."""
    near, far = (estimate(spilling(n, 0, *SPILL * 100), 1, "h200", frozenset()).us
                 for n in (240, 256))  # fmt: skip
    moved = 2 * 100 * 32 * 512
    assert far > moved / model.L2_RATE / model.CLOCK * 1e6 > 2 * near


def test_operands_as_expressions():
    o = Operands({0x210: 5, 0x214: 1})
    assert o.word("c[0x0][0x210]") == "5"
    assert o.double_word("c[0x0][0x210]") == str(5 | 1 << 32)
    assert o.word("-R3") == "(-R[3]&M)"
    assert o.address("[R2.X4+UR4+0x10]") == "+R[2]*4+U[4]+16"
    assert o.put_double("R2", "x") == "w = x; R[2] = w&M; R[3] = w>>32&M"


def test_without_a_compiler_the_error_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    model._simulator.cache_clear()
    with pytest.raises(model.NoCompilerError, match=r"g\+\+"):
        model._simulator()
    model._simulator.cache_clear()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.predict", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_command_estimates_both_directions_beside_a_baseline(tmp_path):
    out = tmp_path / "rows.jsonl"
    arguments = ("rms", "4096x1024", "bfloat16", "--gpu", "h200", "--out", str(out))
    ran = command(*arguments, "--baseline", str(ROOT))
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["direction"] for row in rows] == ["forward", "backward"]
    for row in rows:
        us = sum(e["us"] + e["tail_us"] for e in row["launches"]) + 1.2 * len(row["launches"])
        assert row["estimated_us"] == pytest.approx(us)
        share = row["estimated_percent_of_floor"] / 100 * row["estimated_us"]
        assert row["floor_us"] == pytest.approx(share)
    assert ran.stdout.count("1.00 times as fast as the baseline") == 3
    assert ran.stdout.count("estimated") >= 5


def test_command_refuses_what_it_does_not_know(tmp_path):
    assert "no case has the words" in command("7x7x7").stderr
    assert "name a checkout" in command("rms", "--baseline", str(tmp_path)).stderr
