"""What might race within a program, and does not: each in orders that would show it."""

from typing import Any

import pytest
import torch

from tests.compiled.cases import ODD, Case
from tests.compiled.executor import Emulator, Options
from tests.compiled.executor.global_memory import GlobalMemory
from tests.compiled.test_cases import check
from tests.compiled.trying import compiled_results, tensors_of, truth_of, wrong

FP32, BF16 = torch.float32, torch.bfloat16
RUNNING = ("running_mean", "running_var")
# A warp goes on alone to its next barrier: what it stores, those behind it would read.
ONE_WARP_AFTER_ANOTHER = {
    way: Options(schedule="order", warps=way, races=True) for way in ("forward", "backward")
}


class Grouped(Case):
    """24 channels of 12 x 12, channels last, all in one tile's lanes; `size` names the groups."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, 24, 12, 12)

    @property
    def groups(self) -> int:
        return int(self.size[0])


GROUPED = [
    Grouped("group", f"{groups} groups", fusion, dtype=dtype, layout="channels_last")
    for groups in (2, 3)
    for dtype, fusion in ((BF16, "relu residual"), (FP32, "plain"))
]


QUICK = (("3 groups", BF16), ("2 groups", FP32))


def grouped() -> list[object]:
    return [
        pytest.param(
            case,
            id=f"{case} in {case.size}",
            marks=() if (case.size, case.dtype) in QUICK else pytest.mark.slow,
        )
        for case in GROUPED
    ]


@pytest.mark.parametrize("case", grouped())
def test_groups_of_channels_last(emulator: Emulator, case: Case) -> None:
    """Values change threads in shared memory, some by stmatrix, again and again in one place."""
    check(emulator, case, ("in turns", "warps backward"))


@pytest.fixture
def read_late(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Loads of running statistics by "all" threads, and of them those that found new ones, "late".

    Threads that load have not stored before: what is there at the first load is old.
    """
    found = {"all": 0, "late": 0}
    first: dict[int, Any] = {}
    run = GlobalMemory.load

    def noting(self: Any, address: Any, width: int, count: int, mask: Any, *more: Any) -> Any:
        values = run(self, address, width, count, mask, *more)
        there = slice(None) if mask is None else mask
        buffer = values and self.state.memory.find(
            int(address[there][0]), int(address[there][0]) + 1
        )
        if buffer and buffer.name.removeprefix("t.").removesuffix("_ptr") in RUNNING:
            old = first.setdefault(id(buffer), (buffer, buffer.bytes.raw.copy()))[1]
            offset = (address[there] - buffer.base).astype(int) // width
            new = values[0][there] != old.view(values[0].dtype)[offset]
            found["all"] += len(offset)
            found["late"] += int(new.sum())
        return values

    monkeypatch.setattr(GlobalMemory, "load", noting)
    return found


UPDATING = [
    Case("batch", ODD, "relu"),
    Case("batch", ODD, layout="channels_last", dtype=BF16),
    Case("batch", ODD, tier="streaming", dtype=BF16, parameters="as x"),
    pytest.param(Case("batch", ODD, tier="cluster"), marks=pytest.mark.slow),
    Case("batch_instance", ODD),
    Case("instance_stats", ODD, dtype=BF16),
]


@pytest.mark.parametrize("case", UPDATING, ids=str)
def test_running_statistics_are_read_before_they_are_stored(
    emulator: Emulator, read_late: dict[str, int], case: Case
) -> None:
    """All threads read them, and one stores new ones."""
    tensors = tensors_of(case)
    truth = truth_of(case, tensors)
    for way, options in ONE_WARP_AFTER_ANOTHER.items():
        emulator.options, emulator.log = options, []
        read_late.update(all=0, late=0)
        found, _ = compiled_results(case, tensors)
        assert not wrong(found, truth), way
        assert read_late["all"] > len(RUNNING) * case.shape[1], "several threads read each"
        assert read_late["late"] == 0, way
        assert not [race for *_, statistics in emulator.log for race in statistics.races], way
