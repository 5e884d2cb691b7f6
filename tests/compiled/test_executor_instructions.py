"""Instructions as PTX writes them, in handwritten kernels, against NumPy."""

import numpy as np
import pytest
import torch

from tests.compiled.conftest import LOAD, STORE, map_words, run_ptx
from tests.compiled.executor import EmulationError

THREAD = np.arange(64)
LANE = THREAD % 32
RANDOM = np.random.default_rng(0).integers(0, 1 << 32, 64, np.uint32, endpoint=False)
FLOATS = np.array(
    [0.0, -0.0, 1.0, 1.5, -1.5, 2.5, np.nan, np.inf, -np.inf, 3e9, -3e9, 1e-40], np.float32
)


def as_words(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32)


@pytest.mark.parametrize(
    "comparison, with_nan, compared",
    [
        ("lt", 0, np.less), ("ltu", 1, np.less), ("le", 0, np.less_equal),
        ("leu", 1, np.less_equal), ("gt", 0, np.greater), ("gtu", 1, np.greater),
        ("ge", 0, np.greater_equal), ("geu", 1, np.greater_equal), ("eq", 0, np.equal),
        ("equ", 1, np.equal), ("ne", 0, np.not_equal), ("neu", 1, np.not_equal),
        ("num", 0, lambda a, b: a == a), ("nan", 1, lambda a, b: a != a),
    ],
)  # fmt: skip
def test_comparisons_of_floats_know_nan(comparison, with_nan, compared):
    body = f"setp.{comparison}.f32 %p1, %r5, 0f3F800000;\nselp.b32 %r6, 1, 0, %p1;"
    expected = np.where(np.isnan(FLOATS), with_nan, compared(FLOATS, np.float32(1)))
    np.testing.assert_array_equal(map_words(body, as_words(FLOATS)), expected)


def test_a_comparison_combines_with_a_predicate_and_gives_the_opposite():
    body = """
        setp.lt.u32 %p1, %r1, 40;
        setp.gt.and.u32 %p2|%p3, %r1, 20, %p1;
        selp.b32 %r6, 1, 0, %p2;
        @%p3 add.s32 %r6, %r6, 2;
        @!%p1 add.s32 %r6, %r6, 4;
    """
    found = run_ptx(body + STORE).out
    low, high = THREAD < 40, THREAD > 20
    np.testing.assert_array_equal(found, (high & low) + 2 * (~high & low) + 4 * ~low)


@pytest.mark.parametrize("name, of_nan", [("max.f32", 1.0), ("max.NaN.f32", np.nan)])
def test_maximum_drops_nan_unless_told_otherwise(name, of_nan):
    found = map_words(f"{name} %r6, %r5, 0f3F800000;", as_words(FLOATS)).view(np.float32)
    expected = np.where(np.isnan(FLOATS), np.float32(of_nan), np.maximum(FLOATS, np.float32(1)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "body, expected",
    [
        ("bfe.s32 %r6, %r5, 5, 9;", (RANDOM.view(np.int32) << 18) >> 23),
        ("bfe.u32 %r6, %r5, 28, 9;", RANDOM >> 28),
        ("and.b32 %r7, %r1, 31;\nbfe.u32 %r6, %r5, %r7, 7;", RANDOM >> (THREAD & 31) & 127),
        ("shl.b32 %r6, %r5, 7;", RANDOM << 7),
        ("shl.b32 %r6, %r5, 32;", RANDOM * 0),
        ("shr.s32 %r6, %r5, %r1;", RANDOM.view(np.int32) >> np.minimum(THREAD, 31)),
        ("shf.l.wrap.b32 %r6, %r5, %r1, 8;", THREAD << 8 | RANDOM >> 24),
        ("prmt.b32 %r6, %r5, %r1, 0x5410;", RANDOM & 0xFFFF | THREAD << 16),
        ("lop3.b32 %r6, %r5, %r1, 0, 0x3C;", RANDOM ^ THREAD),
        ("div.s32 %r6, %r5, 7;", np.trunc(RANDOM.view(np.int32) / 7)),
        ("rem.u32 %r6, %r5, 1000;", RANDOM % 1000),
        ("mul.hi.s32 %r6, %r5, -12345;", RANDOM.view(np.int32).astype(np.int64) * -12345 >> 32),
        ("mul.wide.s32 %d8, %r5, -3;\nmov.b64 {%r7, %r6}, %d8;",
         RANDOM.view(np.int32).astype(np.int64) * -3 >> 32),
        ("mad.lo.s32 %r6, %r5, 3, %r1;", RANDOM.astype(np.int64) * 3 + THREAD),
        ("min.s32 %r6, %r5, 5;", np.minimum(RANDOM.view(np.int32), 5)),
        ("not.b32 %r6, %r5;", ~RANDOM),
        ("cvt.u16.u32 %h1, %r5;\ncvt.s32.s16 %r6, %h1;", RANDOM.astype(np.int16)),
        ("mov.b32 {%h1, %h2}, %r5;\nmov.b32 %r6, {%h2, %h1};", RANDOM << 16 | RANDOM >> 16),
        ("mov.b64 %d8, {%r1, %r5};\nshr.u64 %d8, %d8, 32;\ncvt.u32.u64 %r6, %d8;", RANDOM),
        ("popc.b32 %r6, %r5;", np.bitwise_count(RANDOM)),
    ],
)  # fmt: skip
def test_integers_and_bits(body, expected):
    low_bits = (np.asarray(expected).astype(np.int64) & 0xFFFF_FFFF).astype(np.uint32)
    np.testing.assert_array_equal(map_words(body, RANDOM), low_bits)


@pytest.mark.parametrize(
    "body, expected",
    [
        ("fma.rn.f32 %r6, %r5, %r5, 0f3F800000;", lambda x: x.astype(np.float64) ** 2 + 1),
        ("add.ftz.f32 %r6, %r5, 0f00000000;", lambda x: np.where(np.abs(x) < 1e-38, 0, x)),
        ("neg.f32 %r6, %r5;", lambda x: -x),
        ("abs.f32 %r6, %r5;", lambda x: np.abs(x)),
        ("rcp.rn.f32 %r6, %r5;", lambda x: 1 / x.astype(np.float64)),
        ("div.full.f32 %r6, 0f40000000, %r5;", lambda x: 2 / x),
        ("sqrt.approx.f32 %r6, %r5;", lambda x: np.sqrt(x.astype(np.float64))),
        ("ex2.approx.f32 %r6, %r5;", lambda x: np.exp2(x.astype(np.float64))),
        ("copysign.f32 %r6, %r5, 0f40000000;", lambda x: np.copysign(2, x)),
        ("cvt.rpi.f32.f32 %r6, %r5;", lambda x: np.ceil(x)),
        ("cvt.f64.f32 %d8, %r5;\nadd.f64 %d8, %d8, 0d3FF0000000000000;\ncvt.rn.f32.f64 %r6, %d8;",
         lambda x: x.astype(np.float64) + 1),
        ("cvt.rn.f32.s32 %r6, %r1;", lambda x: np.arange(12)),
        ("cvt.rzi.s32.f32 %r7, %r5;\ncvt.rn.f32.s32 %r6, %r7;",
         lambda x: [0, 0, 1, 1, -1, 2, 0, 2**31, -(2**31), 2**31, -(2**31), 0]),
    ],
)  # fmt: skip
def test_floats(body, expected):
    with np.errstate(all="ignore"):
        expected = np.asarray(expected(FLOATS)).astype(np.float32)
    found = map_words(body, as_words(FLOATS)).view(np.float32)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype, kind", [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_packed_halves(dtype, kind):
    """Two of them in a word: the product with 1.5 of both, of torch."""
    x = torch.randn(128, generator=torch.Generator().manual_seed(0)).to(dtype)
    one_and_a_half = torch.full((2,), 1.5, dtype=dtype).view(torch.int32).item()
    words = x.view(torch.int32).numpy()
    found = map_words(f"mul.rn.{kind}x2 %r6, %r5, {one_and_a_half};", words)
    assert torch.equal(torch.from_numpy(found.view(np.int32)).view(dtype), x * 1.5)
    found = map_words(f"neg.{kind}x2 %r6, %r5;", words)
    assert torch.equal(torch.from_numpy(found.view(np.int32)).view(dtype), -x)
    body = f"mov.b32 {{%h1, %h2}}, %r5;\ncvt.f32.{kind} %r6, %h2;"
    assert torch.equal(torch.from_numpy(map_words(body, words).view(np.float32)), x.float()[1::2])


@pytest.mark.parametrize("dtype, kind", [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_two_floats_become_a_word_of_halves_the_first_one_above(dtype, kind):
    found = map_words(f"cvt.rn.{kind}x2.f32 %r6, %r5, 0f3F800000;", as_words(FLOATS[:6]))
    halves = torch.from_numpy(FLOATS[:6]).to(dtype).view(torch.int16).numpy().view(np.uint16)
    one = torch.ones(1, dtype=dtype).view(torch.int16).item()
    np.testing.assert_array_equal(found, halves.astype(np.uint32) << 16 | one)


@pytest.mark.parametrize(
    "shuffle, expected",
    [
        ("up.b32 %r6|%p1, %r5, 3, 0, -1", np.where(LANE >= 3, THREAD - 3, 7)),
        ("down.b32 %r6|%p1, %r5, 5, 31, -1", np.where(LANE < 27, THREAD + 5, 7)),
        ("bfly.b32 %r6|%p1, %r5, 9, 31, -1", THREAD ^ 9),
        ("idx.b32 %r6|%p1, %r5, %r7, 0x181f, -1", (THREAD & ~7) + (THREAD * 3 & 7)),
        ("down.b32 %r6|%p1, %r5, 1, 0x1c03, -1", np.where(LANE % 4 < 3, THREAD + 1, 7)),
    ],
)
def test_shuffles(shuffle, expected):
    body = f"mul.lo.s32 %r7, %r1, 3;\nand.b32 %r7, %r7, 7;\nshfl.sync.{shuffle};\n"
    found = map_words(body + "selp.b32 %r6, %r6, 7, %p1;", THREAD.astype(np.uint32))
    np.testing.assert_array_equal(found, expected)


def test_a_shuffle_in_a_part_of_a_warp_is_an_error():
    body = "setp.lt.u32 %p1, %r1, 5;\n@%p1 shfl.sync.bfly.b32 %r6, %r1, 1, 31, -1;"
    with pytest.raises(EmulationError, match="shfl from a thread that does not execute it"):
        run_ptx(body)
    with pytest.raises(EmulationError, match=r"part of a warp(?s:.*)kernel.py:7"):
        run_ptx(body.replace("5", "6", 1))


def test_votes_and_reductions_are_of_a_warp():
    body = "setp.gt.u32 %p1, %r1, 40;\n{};\nselp.b32 %r6, 1, 0, %p2;"
    for vote, expected in (("any", THREAD >= 32), ("all", THREAD < 0)):
        found = run_ptx(body.format(f"vote.sync.{vote}.pred %p2, %p1, -1") + STORE).out
        np.testing.assert_array_equal(found, expected)
    body = "setp.gt.u32 %p1, %r1, 40;\nvote.sync.ballot.b32 %r6, %p1, -1;"
    expected = np.where(THREAD < 32, 0, (1 << 32) - (1 << 9))
    np.testing.assert_array_equal(run_ptx(body + STORE).out, expected)
    found = map_words("redux.sync.add.s32 %r6, %r5, -1;", THREAD.astype(np.uint32))
    np.testing.assert_array_equal(found, np.where(THREAD < 32, 496, 1520))


def test_matrices_go_through_shared_memory_and_come_back_transposed():
    """Thread t writes halves 2t and 2t + 1 of a matrix of 8 rows; its rows lie 16 bytes apart."""
    body = """
        and.b32 %r7, %r1, 31;
        shr.u32 %r8, %r1, 5;
        shl.b32 %r8, %r8, 7;
        and.b32 %r9, %r7, 7;
        shl.b32 %r9, %r9, 4;
        mov.b32 %r10, global_smem;
        add.s32 %r9, %r9, %r8;
        add.s32 %r9, %r9, %r10;
        stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r9], {%r5};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r6}, [%r9];
    """
    words = np.arange(128, dtype=np.uint16).view(np.uint32)
    found = map_words(body, words, shared=256, races=True)
    expected = np.arange(128, dtype=np.uint16).reshape(2, 8, 8).swapaxes(1, 2)
    np.testing.assert_array_equal(found.view(np.uint16).reshape(2, 8, 8), expected)


@pytest.mark.parametrize(
    "atomic, before, left, found",
    [
        ("add.u32 %r6, [%d1], 3", 10, 10 + 64 * 3, 10 + 3 * THREAD),
        ("exch.b32 %r6, [%d1], %r1", 10, 63, np.append(10, THREAD[:-1])),
        ("cas.b32 %r6, [%d1], 10, %r1", 10, 0, np.append(10, THREAD[1:] * 0)),
        ("max.u32 %r6, [%d1], %r1", 60, 63, np.maximum(60, np.append(0, THREAD[:-1]))),
        ("min.s32 %r6, [%d1], -1", 60, 2**32 - 1, np.append(60, THREAD[1:] * 0 + 2**32 - 1)),
        ("inc.u32 %r6, [%d1], 9", 0, 4, THREAD % 10),
        ("or.b32 %r6, [%d1], 4", 1, 5, np.append(1, THREAD[1:] * 0 + 5)),
    ],
)
def test_atomics_are_executed_by_one_thread_after_another(atomic, before, left, found):
    words = np.full(1, before, np.uint32)
    run = run_ptx(f"atom.global.gpu.acq_rel.{atomic};" + STORE, words, races=True)
    assert words[0] == left and not run.statistics.races
    np.testing.assert_array_equal(run.out, found)


def test_local_memory_belongs_to_a_thread():
    body = """
        mov.b64 %d8, depot;
        st.local.v2.b32 [%d8 + 8], {%r5, %r1};
        ld.local.b32 %r6, [%d8 + 8];
        ld.local.b32 %r7, [%d8 + 12];
        add.s32 %r6, %r6, %r7;
    """
    declared = ".local .align 16 .b8 depot[16];"
    run = run_ptx(LOAD + body + STORE, RANDOM, declarations=declared)
    np.testing.assert_array_equal(run.out, RANDOM + THREAD.astype(np.uint32))
    with pytest.raises(EmulationError, match=r"bytes 16 \.\. 20 of 16 of local memory"):
        run_ptx(LOAD + body.replace("8 + 8", "8 + 12"), RANDOM, declarations=declared)


@pytest.mark.parametrize(
    "instruction",
    [
        "frobnicate.b32 %r6, %r5", "add.sat.f32 %r6, %r5, %r5", "cvt.rn.satfinite.f16.f32 %h1, %r5",
        "atom.shared.add.u32 %r6, [%r5], 1", "ld.b32 %r6, [%d4]", "bar.sync 1",
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 %r6, %r5, %r5, %r5",
        "cvt.rn.satfinite.e4m3x2.f32 %h1, %r5, %r5", "atom.global.add.f16 %h1, [%d1], %h1",
    ],
)  # fmt: skip
def test_an_unknown_instruction_is_an_error_that_quotes_it(instruction):
    with pytest.raises(EmulationError, match=r"not understood: handwritten PTX line \d+") as error:
        run_ptx(f"{instruction};")
    assert instruction in str(error.value)
