"""Which goals are tuned, which constants are forced meanwhile, and the advice."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import alternatives, goals, tune
from benchmarks.alternatives import AS_IT_IS, Alternative, forced
from benchmarks.shapes import ROW_OPS, Case, quick
from fastnorm.kernels import row_geometry, tiers, tilings
from fastnorm.kernels.geometry import Sets, view_of

from .rows import timed_row

NOTES = Path(alternatives.__file__).with_name("NOTES.md")
LN = next(case for case in quick() if case.op == "ln")
LISTS = {
    "ROWS_FORWARD": (LN, "forward"),
    "ROWS_BACKWARD": (LN, "backward"),
    "CLUSTERS": (Case("in", (8, 64, 256, 256)), "backward"),
    "STREAMED": (Case("bn", (256, 256, 56, 56), torch.bfloat16), "forward"),
    "SEVERAL_TILES": (Case("gn", (256, 256, 56, 56), torch.bfloat16, groups=32), "forward"),
    "SMALL_SETS": (Case("gn", (128, 16, 32, 32)), "forward"),
    "SMALL_BATCHES": (Case("bn", (128, 16, 32, 32)), "forward"),
}


def row(case: Case, provider: str, share: float, direction: str) -> dict[str, object]:
    us = case.floor_bytes(direction) / share / 1e6
    return timed_row(case, provider, us, direction=direction)


def test_goals_missed_by_more_than_a_tenth_worst_first() -> None:
    bn = next(case for case in quick() if case.op == "bn" and case.fused == "plain")
    rows = [
        row(LN, "fastnorm", 0.80, "forward"),  # 90 missed by 11%
        row(LN, "fastnorm", 0.80, "backward"),  # 85 missed by 6%
        row(bn, "fastnorm-coop", 0.40, "backward"),  # 75 missed by 47%
    ]
    found = tune.missed(rows)
    assert [(task.goal.name.split(",")[0], task.case) for task in found] == [
        ("bn backward", bn),
        ("ln forward", LN),
    ]


def chosen(case: Case, direction: str, clusters: bool) -> object:
    """The tier and geometry of a direction, as on a GPU."""
    if case.op in ROW_OPS:
        itemsize, backward = case.dtype.itemsize, direction == "backward"
        room = row_geometry.Room(16384)
        return row_geometry.choose(*case.shape, itemsize, backward, tiers.state(), room)
    depth = case.shape[1] // case.num_groups if case.op == "gn" else 1
    sets = Sets(depth, case.op == "bn", False)
    view = view_of(torch.Size(case.shape), True, case.dtype.itemsize, sets.of_batch)
    with tiers.cooperative(clusters):
        return tilings.choose(view, sets, False, direction == "backward", tiers.state())


@pytest.mark.parametrize("name", LISTS)
def test_each_alternative_is_another_and_nothing_of_it_stays(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tilings, row_geometry, tiers):
        monkeypatch.setattr(module, "launch", SimpleNamespace(INTERPRETED=False))
    case, direction = LISTS[name]
    clusters = name == "CLUSTERS"
    found = [chosen(case, direction, clusters)]
    for alternative in getattr(alternatives, name):
        with forced(alternative):
            found.append(chosen(case, direction, clusters))
    assert len(set(map(repr, found))) == len(found), found
    assert chosen(case, direction, clusters) == found[0]


def test_an_alternative_that_raises_leaves_nothing_behind() -> None:
    warps, choose = tilings.CLUSTER_WARPS, tiers.first_with_room
    other = Alternative((("tilings.CLUSTER_WARPS", 1),), warps=8, tier="streaming")
    with pytest.raises(RuntimeError, match="no room"), forced(other):
        assert tilings.CLUSTER_WARPS == 1 and tiers.state()[1] == "streaming"
        raise RuntimeError("no room")
    assert (tilings.CLUSTER_WARPS, tiers.first_with_room) == (warps, choose)
    assert tiers.state()[1] is None


@pytest.mark.parametrize("name", LISTS)
def test_the_notes_say_why(name: str) -> None:
    for alternative in getattr(alternatives, name):
        assert f"| {alternative.name} |" in NOTES.read_text(), alternative.name


def test_every_goal_but_the_hosts_has_alternatives() -> None:
    for goal in goals.GOALS:
        ops = {case.op for case in quick()} if goal.unit != goals.COPY else {goal.name.split()[0]}
        for op in ops:
            assert bool(alternatives.alternatives(goal, op)) == (goal.unit != goals.HOST)


def line(alternative: Alternative, us: float | None) -> tune.Line:
    error = None if us is not None else "OutOfResources: registers"
    return {"alternative": alternative.name, "error": error, "us_p50": us}


def test_the_advice() -> None:
    task = tune.Task(goals.GOALS[0], LN)
    first, second, third = alternatives.ROWS_FORWARD
    now = line(AS_IT_IS, 100.0)
    said = tune.advice(task, [now, line(first, 80.0), line(second, 120.0), line(third, None)])
    assert said.endswith(f"TAKE {first.name}: 80.0 us, not 100.0 (1.25x)")
    assert "keep it as it is" in tune.advice(task, [now, line(first, 99.0)])
    assert tune.advice(task, [now, line(third, None)]).endswith("nothing to compare")
    assert tune.advice(task, []).endswith("nothing to compare")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_there_is_only_the_rehearsal(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        tune.main([str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "tune.jsonl")])


def test_the_rehearsal_has_every_list_of_alternatives() -> None:
    found = {alternatives.alternatives(task.goal, task.case.op) for task in tune.rehearsal()}
    assert found == {getattr(alternatives, name) for name in LISTS}
