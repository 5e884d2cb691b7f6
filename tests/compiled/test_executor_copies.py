"""Asynchronous copies to shared memory: reads before a wait, after it, and by others."""

import numpy as np
import pytest

from tests.compiled.conftest import STORE, run_ptx
from tests.compiled.executor import EmulationError

WORDS = np.arange(100, 164, dtype=np.uint32)
PLACE = "mov.b32 %r7, global_smem;\nshl.b32 %r8, %r1, 2;\nadd.s32 %r7, %r7, %r8;\n"
COPY = "cp.async.ca.shared.global [%r7 + {to}], [%d4 + 0], 0x4;\ncp.async.commit_group ;\n"
READ = "ld.shared.b32 %r6, [%r7 + {at}];" + STORE
POISON = 0xCDCDCDCD


def run(body: str, **options: object) -> list[int]:
    return run_ptx(PLACE + body, WORDS, shared=512, **options).out.tolist()


def test_a_copy_is_there_after_the_wait_for_its_group():
    body = COPY.format(to=0) + "cp.async.wait_group 0x0;\n" + READ.format(at=0)
    assert run(body) == WORDS.tolist()


def test_a_copy_is_not_there_before_it():
    assert run(COPY.format(to=0) + READ.format(at=0)) == [POISON] * 64


@pytest.mark.parametrize("left, found", [(0, WORDS.tolist()), (1, [POISON] * 64)])
def test_the_last_groups_may_be_under_way(left, found):
    body = COPY.format(to=0) + COPY.format(to=256) + f"cp.async.wait_group {left};\n"
    assert run(body + READ.format(at=0)) == WORDS.tolist()
    assert run(body + READ.format(at=256)) == found


def test_a_copy_that_is_in_no_group_is_not_waited_for():
    body = COPY.format(to=0).replace("cp.async.commit_group ;\n", "")
    assert run(body + "cp.async.wait_group 0x0;\n" + READ.format(at=0)) == [POISON] * 64


def test_a_copy_of_no_bytes_writes_zeros_and_reads_nothing():
    copy = COPY.format(to=0).replace("[%d4 + 0], 0x4", "[%d3 + 0], 0x4, %r9")
    body = "mov.b32 %r9, 0;\n" + copy + "cp.async.wait_group 0x0;\n" + READ.format(at=0)
    assert run(body) == [0] * 64


def test_vectors_and_guards():
    copy = "setp.lt.u32 %p1, %r1, 16;\nshl.b32 %r8, %r1, 4;\nmov.b32 %r9, global_smem;\n"
    copy += "add.s32 %r9, %r9, %r8;\nshl.b64 %d8, %d3, 2;\nadd.s64 %d8, %d8, %d1;\n"
    copy += "@%p1 cp.async.cg.shared.global [%r9 + 0], [%d8 + 0], 0x10;\n"
    body = copy + "cp.async.commit_group ;\ncp.async.wait_group 0x0;\nbar.sync 0;\n"
    assert run(body + READ.format(at=0)) == WORDS.tolist()


def test_copies_are_checked_for_bounds():
    with pytest.raises(EmulationError, match="out-of-bounds load of 4 bytes"):
        run(COPY.format(to=0).replace("%d4 + 0", "%d4 + 4"))
    with pytest.raises(EmulationError, match="of shared memory"):
        run(COPY.format(to=260))


OTHERS = "xor.b32 %r8, %r8, 128;\nmov.b32 %r9, global_smem;\nadd.s32 %r9, %r9, %r8;\n"


def races(body: str) -> int:
    return len(run_ptx(PLACE + OTHERS + body, WORDS, shared=512, races=True).statistics.races)


def test_anothers_copy_is_read_behind_a_barrier():
    """The wait is for one's own copies alone."""
    copied = COPY.format(to=0) + "cp.async.wait_group 0x0;\n"
    read = "ld.shared.b32 %r6, [%r9 + 0];" + STORE
    assert races(copied + "bar.sync 0;\n" + read) == 0
    assert races(copied + read) > 0


def test_a_copy_to_what_others_still_read_is_a_race():
    first = "st.shared.b32 [%r7], %r1;\nbar.sync 0;\nld.shared.b32 %r6, [%r9 + 0];\n"
    copied = COPY.format(to=0) + "cp.async.wait_group 0x0;" + STORE
    assert races(first + "bar.sync 0;\n" + copied) == 0
    assert races(first + copied) > 0


def test_a_part_of_a_copy_is_refused():
    copy = COPY.format(to=0).replace("0x4;", "0x4, %r9;", 1)
    with pytest.raises(EmulationError, match="a part of its bytes"):
        run("mov.b32 %r9, 2;\n" + copy)
