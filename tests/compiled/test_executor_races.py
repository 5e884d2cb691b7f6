"""Happens-before checks of global and shared memory, and stale lines of an L1."""

import numpy as np
import pytest

from tests.compiled.conftest import STORE, Run, run_ptx

INTERLEAVED = {"schedule": "interleaved", "grain": "memory", "races": True}

# Of `grid` CTAs each stores its number to the words; who takes the last ticket adds them up.
TICKET = """
    st.global.b32 [%d4], %r2;
    bar.sync 0;
    setp.eq.u32 %p1, %r1, 0;
    mov.b32 %r7, 0;
    @%p1 atom.global.gpu.{order}.add.u32 %r7, [%d2], 1;
    shfl.sync.idx.b32 %r7, %r7, 0, 31, -1;
    bar.sync 0;
    mov.u32 %r8, %nctaid.x;
    add.s32 %r8, %r8, -1;
    setp.ne.u32 %p2, %r7, %r8;
    @%p2 ret;
    ld.global.b32 %r6, [%d1 + 4];
"""


def races(body: str, words: np.ndarray | None = None, **options: object) -> list[str]:
    options = {"races": True} | options
    return run_ptx(body, words, **options).statistics.races


def ticket(order: str, **options: object) -> Run:
    words = np.zeros(32 * 4, np.uint32)
    return run_ptx(TICKET.format(order=order), words, threads=32, grid=4, **options)


@pytest.mark.parametrize("seed", range(4))
def test_a_ticket_that_acquires_and_releases_orders_ctas(seed):
    assert not ticket("acq_rel", seed=seed, **INTERLEAVED).statistics.races


@pytest.mark.parametrize("order", ["relaxed", "acquire", "release"])
def test_a_ticket_of_any_weaker_order_is_a_race(order):
    found = ticket(order, races=True).statistics.races  # CTA 3 is the last
    assert found and found[0].startswith("read after write: source[1]")
    assert "ld.global.b32 %r6, [%d1 + 4]" in found[0] and "kernel.py:7" in found[0]


def test_a_release_announces_what_was_before_the_barrier_alone():
    """Thread 0 takes the ticket while other threads have still to store."""
    body = TICKET.format(order="acq_rel").replace("bar.sync 0;", "", 1)
    words = np.zeros(32 * 4, np.uint32)
    assert races(body, words, threads=32, grid=4, schedule="order")


def test_threads_of_a_cta_are_ordered_by_a_barrier():
    """Each thread stores, and reads what its neighbour stored."""
    neighbour = """
        st.global.b32 [%d4], %r1;
        {};
        xor.b32 %r7, %r1, 1;
        mul.wide.u32 %d8, %r7, 4;
        add.s64 %d8, %d1, %d8;
        ld.global.b32 %r6, [%d8];
    """
    assert not races(neighbour.format("bar.sync 0"))
    (found,) = races(neighbour.format(""))
    assert found.startswith("read after write: source[1] (64 of 64 units): CTA 0 thread 0")


@pytest.mark.parametrize(
    "first, second, what",
    [
        ("ld.global.b32 %r6, [%d1]", "st.global.b32 [%d1], %r2", "write after read"),
        ("st.global.b32 [%d1], %r2", "st.global.b32 [%d1], %r2", "write after write"),
        ("st.global.b32 [%d1], %r2", "ld.global.b32 %r6, [%d1]", "read after write"),
        ("st.global.b32 [%d1], %r2", "atom.global.add.u32 %r6, [%d1], 1", "write after write"),
        ("atom.global.add.u32 %r6, [%d1], 1", "ld.global.b32 %r6, [%d1]", "read after write"),
        ("ld.global.b32 %r6, [%d1]", "ld.global.b32 %r6, [%d1]", ""),
        ("atom.global.add.u32 %r6, [%d1], 1", "atom.global.add.u32 %r6, [%d1], 1", ""),
        ("atom.global.add.u32 %r6, [%d1], 1", "ld.volatile.global.b32 %r6, [%d1]", ""),
    ],
)
def test_accesses_of_two_ctas_race_unless_they_read_or_are_atomic(first, second, what):
    """CTA 0 does the first and CTA 1 the second, by one thread each."""
    body = f"""
        setp.eq.u32 %p1, %r1, 0;
        setp.eq.and.u32 %p2, %r2, 0, %p1;
        setp.eq.and.u32 %p3, %r2, 1, %p1;
        @%p2 {first};
        @%p3 {second};
    """
    found = races(body, grid=2)
    assert [race.partition(":")[0] for race in found] == ([what] if what else [])


def test_only_so_many_races_are_told_and_all_are_counted():
    body = "st.global.b32 [%d1], %r2;\nld.global.b32 %r6, [%d1];"
    run = run_ptx(body, grid=30, races=True, max_races=3)
    assert len(run.statistics.races) == 3 and run.statistics.warnings["races"] > 29


def test_threads_that_store_different_values_to_one_address_race():
    (found,) = races("st.global.b32 [%d1], %r1;")
    assert found.startswith("one store, one address, values that differ")
    run = run_ptx("st.global.b32 [%d1], %r2;", races=True)
    assert not run.statistics.races
    assert run.statistics.warnings["one store, several threads, one address"] == 1


SHARED = """
    mov.b32 %r7, global_smem;
    shl.b32 %r8, %r1, 2;
    add.s32 %r8, %r8, %r7;
    xor.b32 %r9, %r8, {};
    {}
"""
READ = "st.shared.b32 [%r8], %r1; bar.sync 0; ld.shared.b32 %r6, [%r9];"
OVERWRITE = "ld.shared.b32 %r6, [%r9]; bar.sync 0; st.shared.b32 [%r8], %r1;"
REPLACE = "st.shared.b32 [%r8], %r1; bar.sync 0; st.shared.b32 [%r9], %r1;"


@pytest.mark.parametrize(
    "accesses, what",
    [(READ, "read after write"), (OVERWRITE, "write after read"), (REPLACE, "write after write")],
)
def test_warps_race_in_shared_memory_without_a_barrier(accesses, what):
    """128 ^ an address is one of another warp, 4 ^ it one of the same warp."""
    without = accesses.replace("bar.sync 0;", "")
    assert not races(SHARED.format(128, accesses), shared=256)
    assert not races(SHARED.format(4, without), shared=256)
    found = races(SHARED.format(128, without), shared=256)
    assert found and found[0].startswith(f"shared memory, {what}: byte ")


def test_a_byte_that_several_warps_read_is_overwritten_by_none_of_them():
    """The last to read is the one that writes; the other warp's read must not be forgotten."""
    body = """
        mov.b32 %r7, global_smem;
        ld.shared.b32 %r6, [%r7];
        setp.eq.u32 %p1, %r1, 63;
        @%p1 st.shared.b32 [%r7], %r1;
    """
    found = races(body, shared=16)
    assert found and "write after read" in found[0]


def test_warps_that_store_the_same_are_no_race():
    body = "mov.b32 %r7, global_smem;\nst.shared.b32 [%r7], %r2;\nst.shared.b32 [%r7], %r2;"
    run = run_ptx(body, shared=16, races=True)
    assert not run.statistics.races
    assert run.statistics.warnings["shared stores of the same by several warps"] > 0


# CTA 1 reads, waits for CTA 0 to announce what it stored, and reads again.
STALE = """
    setp.eq.u32 %p1, %r2, 0;
    @%p1 bra $STORES;
    ld.global.b32 %r6, [%d1 + 128];
$WAITS:
    ld.{order}.global.b32 %r7, [%d2];
    setp.eq.u32 %p2, %r7, 0;
    @%p2 bra $WAITS;
    {fence}
    ld.global{cache}.b32 %r6, [%d1 + 128];
    st.global.b32 [%d5], %r6;
    ret;
$STORES:
    mov.b32 %r6, 77;
    st.global.b32 [%d1 + 128], %r6;
    bar.sync 0;
    atom.global.gpu.release.add.u32 %r7, [%d2], 1;
"""


@pytest.mark.parametrize(
    "order, fence, cache, fresh",
    [
        ("acquire.gpu", "", "", True),
        ("relaxed.gpu", "", "", False),
        ("relaxed.gpu", "fence.acq_rel.gpu;", "", True),
        ("relaxed.gpu", "", ".cg", True),
    ],
)
def test_a_plain_load_is_stale_until_an_acquire(order, fence, cache, fresh):
    """The reader starts first, so it has the line before the other CTA stores."""
    body = STALE.format(order=order, fence=fence, cache=cache)
    options = {"schedule": "reversed", "weak": True, "cooperative": True}
    run = run_ptx(body, np.full(64, 5, np.uint32), threads=32, grid=2, **options)
    np.testing.assert_array_equal(run.out[32:], 77 if fresh else 5)
    assert (run.statistics.warnings["stale L1 sectors read"] > 0) == (not fresh)
    options |= {"weak": False}
    run = run_ptx(body, np.full(64, 5, np.uint32), threads=32, grid=2, **options)
    np.testing.assert_array_equal(run.out[32:], 77)


def test_ctas_of_one_multiprocessor_share_its_l1():
    """One SM: the store goes through the L1 that the reader reads."""
    body = STALE.format(order="relaxed.gpu", fence="", cache="")
    options = {"schedule": "reversed", "weak": True, "cooperative": True, "sms": 1}
    run = run_ptx(body, np.full(64, 5, np.uint32), threads=32, grid=2, **options)
    np.testing.assert_array_equal(run.out[32:], 77)


@pytest.mark.parametrize("sector, fresh", [(32, True), (128, False)])
def test_a_miss_brings_in_a_whole_sector(sector, fresh):
    """Word 33 was not asked for before, but lies in the same 128 bytes as word 32."""
    words = np.zeros(96, np.uint32)
    first = -words.ctypes.data % 128 // 4
    body = STALE.replace("[%d1 + 128];\n$", "[%d1 + 160];\n$").format(
        order="relaxed.gpu", fence="", cache=""
    )
    view = words[first : first + 64]
    view[:] = 5
    options = {"schedule": "reversed", "weak": True, "cooperative": True, "sector": sector}
    run = run_ptx(body, view, threads=32, grid=2, **options)
    np.testing.assert_array_equal(run.out[32:], 77 if fresh else 5)


def test_a_store_is_seen_by_its_own_cta():
    body = "ld.global.b32 %r6, [%d4];\nst.global.b32 [%d4], %r2;\nld.global.b32 %r6, [%d4];"
    found = run_ptx(body + STORE, grid=2, weak=True).out
    np.testing.assert_array_equal(found, np.arange(128) // 64)
