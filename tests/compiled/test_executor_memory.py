"""Bounds and alignment of every access; memory that nobody has written."""

import numpy as np
import pytest

from tests.compiled.conftest import LOAD, STORE, module, run_ptx
from tests.compiled.executor import EmulationError, Memory, Options, launch, parse
from tests.compiled.executor.memory import Bytes

SHARED = "mov.b32 %r7, global_smem;\nshl.b32 %r8, %r1, 2;\nadd.s32 %r7, %r7, %r8;\n"


@pytest.mark.parametrize(
    "access, what",
    [
        ("ld.global.b32 %r6, [%d4 + 4]", "out-of-bounds load of 4 bytes"),
        ("st.global.b32 [%d5 + 4], %r1", "out-of-bounds store of 4 bytes"),
        ("ld.global.b32 %r6, [%d4 + -4]", "-4 bytes from its start"),
        ("atom.global.add.u32 %r6, [%d4 + 4], 1", "out-of-bounds atomic of 4 bytes"),
        ("ld.global.v2.b32 {%r6, %r7}, [%d4]", "out-of-bounds load of 8 bytes"),
        ("ld.global.b32 %r6, [%d3]", "out-of-bounds load of 4 bytes at 0x0"),
    ],
)
def test_global_memory_ends_where_its_buffers_do(access, what):
    with pytest.raises(EmulationError, match=what) as error:
        run_ptx(f"{access};")
    assert access.split()[0] in str(error.value) and "kernel.py:7" in str(error.value)


@pytest.mark.parametrize("guard, runs", [("63", True), ("64", False)])
def test_only_threads_that_execute_an_access_are_checked(guard, runs):
    body = f"setp.lt.u32 %p1, %r1, {guard};\n@%p1 ld.global.b32 %r6, [%d4 + 4];"
    if runs:
        found = run_ptx("mov.b32 %r6, 7;\n" + body + STORE).out
        np.testing.assert_array_equal(found, [*range(1, 64), 7])
    else:
        with pytest.raises(EmulationError, match="256 bytes from its start, 0 from its end"):
            run_ptx(body)


@pytest.mark.parametrize(
    "access",
    [
        "ld.global.b32 %r6, [%d1 + 2]", "st.global.b32 [%d2 + 6], %r1",
        "ld.global.v2.b32 {%r6, %r7}, [%d1 + 4]",
        "ld.global.v4.b32 {%r6, %r7, %r8, %r9}, [%d1 + 8]",
        "ld.global.b64 %d8, [%d1 + 4]", "atom.global.add.u32 %r6, [%d1 + 1], 1",
    ],
)  # fmt: skip
def test_global_accesses_are_aligned_to_their_size(access):
    words = np.zeros(68, np.uint32)
    first = -words.ctypes.data % 16 // 4  # the buffer itself begins at a multiple of 16
    with pytest.raises(EmulationError, match="misaligned"):
        run_ptx(f"{access};", words[first : first + 64])


def test_vectors_are_loaded_and_stored_in_order():
    body = """
        shl.b64 %d8, %d3, 1;
        add.s64 %d9, %d1, %d8;
        ld.global.v2.b32 {%r5, %r6}, [%d9];
        mul.lo.s32 %r6, %r6, 100;
        add.s32 %r6, %r6, %r5;
    """
    words = np.zeros(132, np.uint32)
    first = -words.ctypes.data % 8 // 4
    words = words[first : first + 128]
    words[:] = np.arange(128)
    found = run_ptx(body + STORE, words).out
    np.testing.assert_array_equal(found, words[::2] + 100 * words[1::2])


def test_a_narrow_load_extends_by_its_type():
    body = "ld.global.{}.b16 %h1, [%d4];"
    words = np.full(64, 0xFFF0_80FF, np.uint32)
    for kind, expected in (("u8", 0xFF), ("s8", 0xFFFF_FFFF), ("s16", 0xFFFF_80FF)):
        width = "u16" if kind == "u8" else "s16"
        body = f"ld.global.{kind} %h1, [%d4];\ncvt.{width[0]}32.{width} %r6, %h1;"
        np.testing.assert_array_equal(run_ptx(body + STORE, words).out, expected)


@pytest.mark.parametrize(
    "access, message",
    [
        ("st.shared.b32 [%r7 + 4], %r1", r"bytes 4 \.\. 260 of 256 of shared memory"),
        ("st.shared.b32 [%r7 + -4], %r1", r"bytes -4 \.\. 252 of 256"),
        ("ld.shared.b32 %r6, [%r7 + 2]", "misaligned access of 4 bytes of shared memory|of 256"),
        ("ld.shared.v2.b32 {%r6, %r9}, [%r7]", "of 256 of shared memory"),
        ("ld.shared.b32 %r6, [%r8]", "of 256 of shared memory"),  # not from global_smem's address
        ("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r6}, [%r7]", "misaligned access of 16 bytes"),
    ],
)
def test_shared_memory_has_bounds_and_alignment(access, message):
    with pytest.raises(EmulationError, match=message):
        run_ptx(SHARED + f"{access};", shared=256)


def test_a_misaligned_shared_access_within_bounds_is_an_error():
    body = SHARED + "setp.lt.u32 %p1, %r1, 8;\n@%p1 ld.shared.b32 %r6, [%r7 + 2];"
    with pytest.raises(EmulationError, match="misaligned access of 4 bytes of shared memory"):
        run_ptx(body, shared=256)


def test_shared_memory_begins_as_poison_in_every_cta():
    body = SHARED + "ld.shared.b32 %r6, [%r7];\nst.shared.b32 [%r7], %r1;"
    run = run_ptx(body + STORE, shared=256, grid=3, races=True)
    np.testing.assert_array_equal(run.out, 0xCDCD_CDCD)
    assert run.statistics.warnings["shared memory read that nobody wrote"] == 3


def test_registers_begin_as_nan():
    assert np.isnan(run_ptx("add.f32 %r6, %r6, 0f3F800000;" + STORE).out.view(np.float32)).all()
    found = run_ptx("cvt.f32.bf16 %r6, %h3;" + STORE).out
    assert np.isnan(found.view(np.float32)).all()


def test_buffers_are_told_apart():
    """Two neighbours in memory: an access that crosses over, and one that goes to both."""
    words = np.zeros(64, np.uint32)
    out = np.zeros(64, np.uint32)
    memory = Memory()
    start = words.ctypes.data
    memory.register("first", start, 128, 4)
    memory.register("second", start + 128, 128, 4)
    memory.register("out", out.ctypes.data, 256, 4)
    memory.register("nothing", start, 0, 4)
    assert memory.find(start, start + 128).name == "first"
    assert memory.find(start + 124, start + 132) is None
    assert "'second'" in memory.describe(start + 300)
    assert Memory().describe(5) == "no buffer is registered"
    kernel = parse(module("ld.global.b32 %r6, [%d4];"))
    with pytest.raises(EmulationError, match="one load of several buffers"):
        launch(kernel, 1, [start, out.ctypes.data], 0, memory, Options())


def test_a_launch_takes_one_argument_for_each_parameter():
    with pytest.raises(EmulationError, match="1 arguments for 2 parameters"):
        launch(parse(module("")), 1, [0], 0, Memory(), Options())


def test_bytes_are_seen_as_words_and_vectors():
    view = Bytes(np.arange(32, dtype=np.uint8))
    assert view.vectors(4, 4).shape == (2, 4) and view.words[2][1] == 0x0302
    low, high = view.load(np.array([8, 16]), 4, 2)
    assert (low == [0x0B0A0908, 0x13121110]).all() and high[0] == 0x0F0E0D0C
    view.store(np.array([0]), [np.array([7], np.uint32), np.array([9], np.uint32)], 4)
    assert (view.words[4][:3] == [7, 9, 0x0B0A0908]).all()


def test_loads_are_unaffected_by_threads_that_do_not_execute():
    body = "setp.gt.u32 %p1, %r1, 70;\nmov.b32 %r6, 9;\n@%p1 ld.global.b32 %r6, [%d3];"
    np.testing.assert_array_equal(run_ptx(LOAD + body + STORE).out, 9)
