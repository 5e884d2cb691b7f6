"""The readings of compiled kernels, on kernels with known code; then fastnorm's own, judged.

Kernels are compiled in separate processes, because this one's may be interpreted.
"""

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import codegen
from benchmarks.compile_only import Launch
from benchmarks.machine_code import (
    Access,
    Code,
    Position,
    Resources,
    SassCounts,
    accesses,
    declared_stack,
    sass_counts,
)
from benchmarks.providers import OURS, load
from benchmarks.shapes import OPS, Case

ROOT = Path(__file__).parents[2]


def command(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m module`, kernels compiled even where this process interprets them."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


# --- the parsers on text ---


def test_sass_is_counted_by_width():
    # The widths of prefetches (LTC128B) and addresses (.64) are not those of accesses.
    counts = sass_counts(
        """
        /*0b80*/  @!P0 LDG.E.U16 R33, desc[UR20][R4.64] ;
        /*0c50*/  @!P0 LDG.E R32, desc[UR20][R12.64] ;
        /*0c60*/       LDG.E.LTC128B R32, desc[UR20][R12.64] ;
        /*10e0*/   @P0 LDG.E.128 R12, desc[UR20][R38.64] ;
        /*10f0*/       LDG.E.EF.LTC128B.128.CONSTANT R12, desc[UR20][R38.64] ;
        /*1140*/       LDGSTS.E.BYPASS.LTC128B.128 [R9], [R2.64] ;
        /*1150*/       LDG.E.ENL2.256 R4, R8, desc[UR4][R2.64] ;
        /*1c20*/   @P0 STG.E.64 desc[UR20][R2.64], R12 ;
        /*22f0*/       STG.E.U8 desc[UR20][R2.64], R12 ;
        /*2300*/       LDL.LU R2, [R1+0x4] ;
        /*2310*/       STL.128 [R1], R4 ;
        /*2320*/       STL [R1+0x8], R5 ;
        /*2330*/       LDS.128 R4, [R3] ;
        /*2340*/  @P0  DADD R4, R4, R6 ;
        /*2350*/       FADD R4, R4, R6 ;
        /*2360*/       DFMA R4, R4, R6, R8 ;
        """
    )
    assert counts.loads == Counter({16: 1, 32: 2, 128: 3, 256: 1})
    assert counts.stores == Counter({64: 1, 8: 1})
    assert (counts.stack_loads, counts.stack_stores) == (1, 2)
    assert counts.doubles == 2


def test_a_program_may_have_a_stack_of_its_own():
    ptx = "\t.local .align 16 .b8 \t__local_depot0[64];\n\tld.local.b32 \t%r1, [%rd2+4];\n"
    assert declared_stack(ptx) == 64
    assert code(stack=64, declared=64, stack_accesses=5).spilled == 0
    assert code(stack=80, declared=64, stack_accesses=5).spilled == 16
    assert code(stack=8, stack_accesses=0).spilled == 0  # room that no instruction uses
    assert code(stack=8, stack_accesses=1).spilled == 8


def test_an_asynchronous_copy_is_a_load_at_its_position():
    (access,) = accesses(
        '#loc = loc("/a/b.py":5:1)\n#loc1 = loc("/a/b.py":7:9)\n#loc2 = loc("x"(#loc1))\n'
        "  %0 = tt.splat %x_ptr : !tt.ptr<f32> -> tensor<2048x!tt.ptr<f32>> loc(#loc2)\n"
        "  %1 = tt.load %0 : tensor<2048x!tt.ptr<f32>> loc(#loc2)\n",
        "\t.loc\t1 7 9 // b.py:7:9\n\t// begin inline asm\n"
        "\tcp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;\n\t// end inline asm\n"
        '\t.file\t1 "/a/b.py"\n',
    )
    assert access.bits == (128,)


# --- the parsers on toy kernels ---


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Code]:
    """What was read of each kernel of toy_kernels.py."""
    file = tmp_path_factory.mktemp("toys") / "codes.pickle"
    done = command("tests.benchmarks.toy_kernels", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads(file.read_bytes())


def tiles(found: Code) -> list[tuple[str, str, tuple[int, ...], set[int]]]:
    return [(a.kind, a.argument, a.shape, set(a.bits)) for a in found.accesses if a.is_tile]


@pytest.mark.parametrize(("dtype", "itemsize"), [("bf16", 2), ("fp32", 4)])
def test_aligned_rows_are_copied_128_bits_at_a_time(dtype, itemsize, toys):
    found = toys[f"aligned {dtype}"]
    assert tiles(found) == [
        ("load", "x_ptr", (4, 1024), {128}),
        ("store", "y_ptr", (4, 1024), {128}),
    ]
    assert found.sass.stores == Counter({128: 4096 * itemsize // 16 // 128})
    assert found.spilled == 0


@pytest.mark.parametrize(("dtype", "itemsize"), [("bf16", 2), ("fp32", 4)])
def test_rows_of_unknown_alignment_are_copied_an_element_at_a_time(dtype, itemsize, toys):
    found = toys[f"unaligned {dtype}"]
    assert [widths for *_, widths in tiles(found)] == [{8 * itemsize}] * 2
    assert found.sass.stores == Counter({8 * itemsize: 4096 // 128})


def test_a_tile_is_told_from_the_values_of_its_rows(toys):
    vector, tile = (a for a in toys["aligned bf16"].accesses if a.kind == "load")
    assert (vector.shape, vector.is_tile) == ((4,), False)
    assert max(vector.bits) < 128
    assert tile.is_tile


def test_one_line_inlined_twice_is_two_accesses(toys):
    vector, tile = (a for a in toys["inlined"].accesses if a.kind == "load")
    assert vector.position.at == tile.position.at
    assert (vector.shape, set(vector.bits)) == ((512,), {32})
    assert (tile.shape, set(tile.bits)) == ((4, 512), {128})


def test_an_access_belongs_to_the_argument_that_it_is_computed_from(toys):
    assert {(kind, name) for kind, name, *_ in tiles(toys["branches"])} == {
        ("load", "z_ptr"),
        ("store", "y_ptr"),
        ("load", "x_ptr"),
        ("store", "z_ptr"),
    }


def test_too_few_registers_spill(toys):
    free, tight = toys["free"], toys["tight"]
    assert free.spilled == free.resources.stack == 0
    assert tight.resources.registers <= 40 < free.resources.registers
    assert tight.spilled > 0
    assert min(tight.sass.stack_loads, tight.sass.stack_stores) > 0


# --- the verdict ---


def code(
    stack: int = 0,
    declared: int = 0,
    stack_accesses: int = 0,
    found: tuple[Access, ...] = (),
    doubles: int = 0,
) -> Code:
    counts = SassCounts(Counter(), Counter(), stack_accesses, 0, doubles)
    return Code(Resources(64, stack), counts, list(found), declared)


def access(argument: str, bits: int = 32, shape: tuple[int, ...] = (4, 1024)) -> Access:
    return Access("load", shape, 2, argument, Position(("toy_kernels.py", 1, 1), None), (bits,))


def launch(**shapes: tuple[int, ...]) -> Launch:
    return Launch("a_kernel", Path(__file__).parent, None, shapes)


BF16 = torch.bfloat16
IMAGES = Case("bn", (8, 64, 32, 32), BF16)


@pytest.mark.parametrize(
    ("case", "shape", "matters"),
    [
        (IMAGES, IMAGES.shape, True),
        (IMAGES, (64,), False),  # a parameter
        (IMAGES, (8, 64, 128), False),  # a mask
        (IMAGES, (8, 64, 64), False),  # a table of statistics
        (Case("bn", (8, 64, 7, 7), BF16), (8, 64, 7, 7), False),
        (Case("bn", (8, 64, 7, 7), BF16, "channels_last"), (8, 64, 7, 7), True),
        (Case("bn", (8, 63, 8, 8), BF16, "channels_last"), (8, 63, 8, 8), False),
        (Case("ln", (64, 1024), BF16), (64, 1024), True),
        (Case("ln", (64, 1020), BF16), (64, 1020), False),
    ],
)
def test_widths_matter_for_aligned_tiles_that_carry_traffic(case, shape, matters):
    assert codegen.carries_traffic(launch(x_ptr=shape), access("x_ptr"), case) == matters


def test_per_row_values_are_no_tiles():
    x = launch(x_ptr=IMAGES.shape)
    assert not codegen.carries_traffic(x, access("x_ptr", shape=(4, 255)), IMAGES)


def test_gathers_are_no_tiles(toys, monkeypatch):
    found = next(a for a in toys["inlined"].accesses if a.is_tile)
    assert found.position.at[0] == "toy_kernels.py"
    x = launch(x_ptr=IMAGES.shape)
    assert codegen.carries_traffic(x, found, IMAGES)
    monkeypatch.setattr(codegen, "GATHERS", {"load"})
    assert not codegen.carries_traffic(x, found, IMAGES)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (code(found=(access("x_ptr", 128),)), None),
        (code(found=(access("x_ptr", 256),)), None),
        (
            code(found=(access("x_ptr", 64),)),
            "load x 4x1024: 64 at toy_kernels.py:1: not 128 bits wide",
        ),
        (code(found=(access("x_ptr", 8),)), "load x 4x1024: 8"),
        (code(stack=24, stack_accesses=3), "spills 24 bytes at 64 registers (3 LDL, 0 STL)"),
        (code(doubles=4), None),
        (code(doubles=5), "computes in float64: 5 instructions"),
    ],
)
def test_problems_name_the_kernel_and_its_first_call(found, problem):
    x = launch(x_ptr=IMAGES.shape)
    kernel = codegen.Kernel(90, x, found)
    kernel.add_call(IMAGES, "bn forward", x)
    if problem is None:
        assert kernel.problems({}) == []
    else:
        (line,) = kernel.problems({})
        assert line.startswith(f"sm_90 a_kernel (bn forward) {problem}")


@pytest.mark.parametrize(("name", "narrow"), [("aligned bf16", 0), ("unaligned bf16", 2)])
def test_narrow_tiles_of_x_and_y_are_problems(name, narrow, toys):
    case = Case("ln", (64, 1024), BF16)
    kernel = codegen.Kernel(90, launch(x_ptr=case.shape, y_ptr=case.shape), toys[name])
    kernel.add_call(case, "ln forward", kernel.launch)
    problems = [problem for problem in kernel.problems({}) if "not 128 bits wide" in problem]
    assert len(problems) == narrow
    assert all("4x1024: 16 at toy_kernels.py" in problem for problem in problems)


def test_a_kernel_may_spill_as_much_as_is_known_of_it():
    kernel = codegen.Kernel(90, launch(), code(stack=24, stack_accesses=3))
    kernel.add_call(IMAGES, "bn forward", kernel.launch)
    assert kernel.problems({"a_kernel": 24}) == []
    assert len(kernel.problems({"a_kernel": 16})) == 1
    assert len(kernel.problems({"another_kernel": 24})) == 1


def test_an_access_whose_instructions_were_not_found_is_a_problem():
    lost = Access("load", (4, 1024), 2, "x_ptr", Position(("toy_kernels.py", 1, 1), None))
    x = launch(x_ptr=IMAGES.shape)
    kernel = codegen.Kernel(90, x, code(found=(lost,)))
    kernel.add_call(IMAGES, "bn forward", x)
    assert len(kernel.problems({})) == 1


def test_a_case_that_does_not_compile_is_a_problem(monkeypatch):
    def broken(*args: Any) -> Any:
        raise ValueError("at 3:7:\nx = y\n    ^\nno y")

    monkeypatch.setattr(codegen, "set_target", lambda arch: None)
    monkeypatch.setattr(codegen, "launches_of", broken)
    found = codegen.compiled(90, [IMAGES], load(OURS[:1]), [])
    assert found.kernels == []
    assert found.problems({}) == [f"sm_90 {IMAGES.name}: ValueError: at 3:7: ... no y"]


# --- fastnorm's kernels ---


def judged(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """The kernels that benchmarks.codegen reports, none of which has a problem."""
    file = tmp_path / "kernels.json"
    done = command("benchmarks.codegen", *arguments, "--json", str(file))
    assert file.exists(), done.stderr[-3000:]
    found = json.loads(file.read_text())
    assert done.returncode == bool(found["problems"]), done.stderr[-3000:]
    assert not found["problems"], "\n".join(found["problems"])
    return found["kernels"]


def test_no_kernel_spills_and_every_tile_is_128_bits_wide(tmp_path):
    """The cases that matter most, for compute capability 9.0."""
    kernels = judged(tmp_path, "--arch", "90", "--quick", "--first", "11")
    calls = {call.split()[0] for kernel in kernels for call in kernel["calls"]}
    assert calls == set(OPS)
    for kernel in kernels:
        assert kernel["resident_blocks"] > 0, kernel
    wide = [tile for kernel in kernels for tile in kernel["tiles"] if tile["needs_128"]]
    assert {tile["kind"] for tile in wide} == {"load", "store"}


@pytest.mark.slow
@pytest.mark.timeout(10800)
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_no_kernel_of_any_case_spills_more_than_is_known(arch, tmp_path):
    judged(tmp_path, "--arch", arch)


# The kernels that all batch sizes of an operator at one C and S may need, by direction. Statistics
# over the batch take the next larger tile as it grows: four of one program, and the two kernels
# that stream. Those of an instance, a group or a row know nothing of the batch. Of clusters:
# kernels/test_clusters.py.
OVER_BATCH = 4 + 2
MOST_KERNELS = {
    "bn": {"forward": OVER_BATCH, "backward": OVER_BATCH},
    "bn_eval": {"forward": 1, "backward": 2},  # sums for dgamma and dbeta, then dx
    "in": {"forward": 1, "backward": 1},
    "bin": {"forward": OVER_BATCH, "backward": OVER_BATCH},
    "gn": {"forward": 1, "backward": 1},
    "ln": {"forward": 1, "backward": 2},  # dgamma and dbeta are added up apart
    "rms": {"forward": 1, "backward": 2},
}


def test_batch_sizes_share_their_kernels(tmp_path):
    file = tmp_path / "counts.json"
    done = command("benchmarks.recompilations", "--json", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(file.read_text())
    assert found.keys() == MOST_KERNELS.keys()
    for op, directions in MOST_KERNELS.items():
        for direction, most in directions.items():
            kernels = found[op][direction]
            assert 0 < sum(kernels.values()) <= most, f"{op} {direction}: {kernels}"
