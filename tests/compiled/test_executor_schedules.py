"""The order of CTAs and warps, divergence, deadlocks."""

import numpy as np
import pytest

from tests.compiled.conftest import LOAD, STORE, run_ptx
from tests.compiled.executor import EmulationError, Options

THREAD = np.arange(64)
# %r6 = how many CTAs took their number before this one.
TAKE_A_NUMBER = """
    setp.eq.u32 %p1, %r1, 0;
    @%p1 atom.global.gpu.relaxed.add.u32 %r6, [%d1], 1;
"""
# A CTA waits here until all have come; %r7 receives how many it saw.
WAIT_FOR_ALL = """
    mov.u32 %r8, %nctaid.x;
    setp.eq.u32 %p1, %r1, 0;
    @!%p1 bra $PASSED;
    atom.global.gpu.acq_rel.add.u32 %r7, [%d1], 1;
$AGAIN:
    ld.acquire.gpu.global.b32 %r7, [%d1];
    setp.lt.u32 %p2, %r7, %r8;
    @%p2 bra $AGAIN;
$PASSED:
    bar.sync 0;
    mov.b32 %r6, %r7;
"""


def order_of_ctas(body: str = TAKE_A_NUMBER, grid: int = 8, **options: object) -> list[int]:
    """The CTAs, the first to take a number first."""
    run = run_ptx(body + STORE, np.zeros(64 * grid, np.uint32), grid=grid, **options)
    return np.argsort(run.out.reshape(grid, -1)[:, 0]).tolist()


def test_ctas_run_in_order_reversed_or_at_random():
    assert order_of_ctas() == list(range(8))
    assert order_of_ctas(schedule="reversed") == list(range(7, -1, -1))
    shuffled = [order_of_ctas(schedule="random", seed=seed) for seed in (1, 2)]
    assert shuffled[0] != shuffled[1] and sorted(shuffled[0]) == list(range(8))
    assert shuffled[0] == order_of_ctas(schedule="random", seed=1)


@pytest.mark.parametrize("policy", ["random", "starve", "bursts"])
def test_interleaved_ctas_take_turns_and_all_end(policy):
    """Each of 8 CTAs counts one location up 20 times: in turns, so their counts mix."""
    body = """
        mov.b32 %r7, 0;
    $LOOP:
        setp.eq.u32 %p1, %r1, 0;
        @%p1 atom.global.gpu.relaxed.add.u32 %r6, [%d1], 1;
        add.s32 %r7, %r7, 1;
        setp.lt.u32 %p2, %r7, 20;
        @%p2 bra $LOOP;
    """
    words = np.zeros(512, np.uint32)
    options = {"schedule": "interleaved", "seed": 3, "policy": policy}
    run = run_ptx(body + STORE, words, grid=8, **options)
    last = run.out.reshape(8, -1)[:, 0]  # the number that each CTA took last
    assert words[0] == 160 and run.statistics.switches >= 160
    alone = np.arange(8) * 20 + 19  # what they would take one after another
    assert len(set(last.tolist()) - set(alone.tolist())) > 2
    if policy == "starve":  # one of them ends after all others
        assert last.max() == 159 and np.sort(last)[-2] < 145


@pytest.mark.parametrize("grain, turns", [("sync", 2), ("memory", 4), ("block", 5)])
def test_a_grain_says_where_a_cta_may_stop(grain, turns):
    """Before an atomic; a load and a store too; and the first block. Then the turn that ends it."""
    body = LOAD + TAKE_A_NUMBER + "bar.sync 0;" + STORE
    run = run_ptx(body, schedule="interleaved", grain=grain)
    assert run.statistics.switches == turns


def test_as_many_ctas_are_alive_as_are_resident():
    """CTAs that wait for one another end where all are alive, and deadlock where they are not."""
    words = np.zeros(64 * 5, np.uint32)
    options = {"schedule": "interleaved", "spins": 3000}
    run = run_ptx(WAIT_FOR_ALL + STORE, words, grid=5, resident=5, races=True, **options)
    assert words[0] == 5 and not run.statistics.races
    with pytest.raises(EmulationError, match=r"3 alive, 2 not started: a deadlock\?"):
        run_ptx(WAIT_FOR_ALL + STORE, words * 0, grid=5, resident=3, **options)


@pytest.mark.parametrize("schedule", ["order", "reversed", "random", "interleaved"])
def test_all_ctas_of_a_cooperative_launch_are_alive(schedule):
    words = np.zeros(64 * 5, np.uint32)
    options = {"schedule": schedule, "resident": 1, "spins": 3000}
    run_ptx(WAIT_FOR_ALL + STORE, words, grid=5, cooperative=True, **options)
    assert words[0] == 5


def test_one_cta_that_waits_for_another_not_yet_started_never_ends():
    """Without turns there is no scheduler to notice, so it takes turns to find a deadlock."""
    words = np.zeros(64 * 2, np.uint32)
    with pytest.raises(EmulationError, match="no CTA ended in 50 turns"):
        run_ptx(WAIT_FOR_ALL, words, grid=2, schedule="interleaved", resident=1, spins=50)


DIVERGENT = """
    rem.u32 %r7, %r1, 5;
    mov.b32 %r6, 0;
    mov.b32 %r8, 0;
$LOOP:
    setp.ge.u32 %p1, %r8, %r7;
    @%p1 bra $DONE;
    add.s32 %r6, %r6, %r1;
    add.s32 %r8, %r8, 1;
    bra.uni $LOOP;
$DONE:
    setp.lt.u32 %p2, %r1, 20;
    @%p2 bra $FEW;
    add.s32 %r6, %r6, 1000;
    bar.sync 0;
    bra.uni $ALL;
$FEW:
    add.s32 %r6, %r6, 2000;
    bar.sync 0;
$ALL:
    shfl.sync.idx.b32 %r6, %r6, 19, 31, -1;
    setp.gt.u32 %p3, %r1, 50;
    @%p3 ret;
"""


@pytest.mark.parametrize("warps", ["lockstep", "forward", "backward", "random"])
def test_threads_part_and_meet_again(warps):
    """Loops of different lengths, a barrier reached on two ways, a shuffle, and an early exit."""
    run = run_ptx(DIVERGENT + STORE, warps=warps, seed=4)
    value = THREAD * (THREAD % 5) + np.where(THREAD < 20, 2000, 1000)
    expected = np.where(THREAD > 50, 0, value[THREAD // 32 * 32 + 19])
    np.testing.assert_array_equal(run.out, expected)


MEETING_FIRST = """
    mov.u32 %r6, %r1;
    setp.lt.u32 %p1, %r1, 20;
    bra.uni $PART;
$MEET:
    shfl.sync.idx.b32 %r6, %r6, 19, 31, -1;
    bra.uni $DONE;
$PART:
    @%p1 bra $MEET;
    add.s32 %r6, %r6, 1000;
    bra.uni $MEET;
$DONE:
"""


@pytest.mark.parametrize("warps", ["lockstep", "forward", "backward", "random"])
def test_a_shuffle_waits_for_its_warp(warps):
    """Threads may come to it before others that are still on their way, in a later block."""
    run = run_ptx(MEETING_FIRST + STORE, warps=warps, seed=4)
    value = THREAD + np.where(THREAD < 20, 0, 1000)
    np.testing.assert_array_equal(run.out, value[THREAD // 32 * 32 + 19])


# Every warp stores its number to one place; who comes last stays.
STORE_WARP = """
    shr.u32 %r7, %r1, 5;
    and.b32 %r8, %r1, 31;
    setp.eq.u32 %p1, %r8, 0;
    @%p1 st.global.b32 [%d1], %r7;
"""


def test_warps_run_one_by_one_forward_or_backward():
    left = {}
    for warps in ("forward", "backward", "random"):
        found = set()
        for seed in range(6):
            words = np.zeros(128, np.uint32)
            run_ptx(STORE_WARP, words, threads=128, warps=warps, seed=seed)
            found.add(int(words[0]))
        left[warps] = found
    assert left["forward"] == {3} and left["backward"] == {0} and len(left["random"]) > 1


def test_a_warp_stops_at_its_barrier():
    """Between two barriers all warps come by: what the others stored before it is seen."""
    shared = """
        mov.b32 %r7, global_smem;
        shl.b32 %r8, %r1, 2;
        add.s32 %r8, %r8, %r7;
        st.shared.b32 [%r8], %r1;
        bar.sync 0;
        xor.b32 %r9, %r1, 63;
        shl.b32 %r9, %r9, 2;
        add.s32 %r9, %r9, %r7;
        ld.shared.b32 %r6, [%r9];
    """
    for warps in ("lockstep", "forward", "backward", "random"):
        run = run_ptx(shared + STORE, shared=256, warps=warps, races=True)
        np.testing.assert_array_equal(run.out, THREAD ^ 63)
        assert not run.statistics.races
    found = run_ptx(shared.replace("bar.sync 0;", "") + STORE, shared=256, warps="forward").out
    assert (found != THREAD ^ 63).any()  # without the barrier it is poison


def test_special_registers_tell_threads_and_ctas_apart():
    body = """
        mov.u32 %r6, %warpid;
        mad.lo.s32 %r6, %r6, 100, %r2;
        mov.u32 %r7, %nctaid.x;
        mad.lo.s32 %r6, %r7, 10000, %r6;
        mov.u32 %r8, %tid.y;
        add.s32 %r6, %r6, %r8;
    """
    found = run_ptx(body + STORE, grid=3).out.reshape(3, 64)
    expected = 30000 + THREAD[None] // 32 * 100 + np.arange(3)[:, None]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["schedule", "grain", "policy", "warps"])
def test_unknown_options_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}='sideways'"):
        Options(**{name: "sideways"})
