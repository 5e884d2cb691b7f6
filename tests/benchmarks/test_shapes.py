"""The benchmark's cases as data: their least traffic, and the contents of the lists."""

import pytest
import torch

from benchmarks import goals, shapes
from benchmarks.providers import LARGEST_OF_A_PROGRAM
from benchmarks.shapes import Case, describe

S = 2 * 4 * 6 * 6 * 4  # bytes of the float32 tensor below


@pytest.mark.parametrize(
    ("op", "fused", "forward", "backward"),
    [
        ("bn", "plain", 2 * S, 3 * S),
        ("bn_eval", "plain", 2 * S, 3 * S),
        ("gn", "relu", 2 * S, 3 * S),
        ("bn", "residual_relu", 3 * S + S // 32, 4 * S + S // 32),
    ],
)
def test_floor_counts_each_tensor_once(op: str, fused: str, forward: int, backward: int) -> None:
    case = Case(op, (2, 4, 6, 6), fused=fused)
    assert case.floor_bytes("forward") == forward
    assert case.floor_bytes("backward") == backward
    assert case.floor_bytes("both") == forward + backward


def test_the_mask_is_a_bit_for_each_element_in_every_dtype() -> None:
    elements = 2 * 4 * 6 * 6
    case = Case("bn", (2, 4, 6, 6), torch.bfloat16, fused="residual_relu")
    assert case.floor_bytes("forward") == 3 * 2 * elements + elements // 8
    assert case.floor_bytes("backward") == 4 * 2 * elements + elements // 8


@pytest.mark.parametrize("cases", [shapes.quick(), shapes.full(), shapes.tiny()])
def test_every_list_has_every_operator_and_no_case_twice(cases: tuple[Case, ...]) -> None:
    assert {case.op for case in cases} == set(shapes.OPS)
    assert len(set(cases)) == len(cases)
    assert max(case.nbytes for case in cases) <= shapes.MOST_BYTES


def test_quick_serves_every_goal_and_its_rival() -> None:
    for goal in (*goals.GOALS, *goals.PUBLISHED):
        cases = [
            case
            for case in shapes.quick()
            if any(
                goal.applies({**describe(case), "l2": l2, "timing": "graph"})
                for l2 in ("cold", "warm")
            )
        ]
        assert cases, goal.name
        if goal.unit == "x compile":
            assert any(case.compiled for case in cases), goal.name
        if goal.provider == "fastnorm-coop":
            large = [case for case in cases if case.set_elements > LARGEST_OF_A_PROGRAM]
            assert large, f"{goal.name}: no set is too large for a program"


def test_the_goals_come_first() -> None:
    """A run that is cut has them."""
    first = [describe(case) for case in shapes.quick()[:16]]
    for goal in (*goals.GOALS, *goals.PUBLISHED):
        rows = [{**row, "l2": l2, "timing": "graph"} for row in first for l2 in ("cold", "warm")]
        assert any(map(goal.applies, rows)), goal.name


@pytest.mark.parametrize(
    ("case", "elements"),
    [
        (Case("bn", (4, 8, 5, 6)), 120),
        (Case("bin", (4, 8, 5, 6)), 120),
        (Case("in", (4, 8, 5, 6)), 30),
        (Case("gn", (4, 8, 5, 6)), 120),
        (Case("ln", (4, 8, 5, 6)), 240),
        (Case("rms", (7, 100)), 100),
    ],
)
def test_elements_that_share_statistics(case: Case, elements: int) -> None:
    assert case.set_elements == elements


def test_full_has_every_dtype_layout_and_fusion_of_every_image_operator() -> None:
    for op in ("bn", "bn_eval", "in", "bin", "gn"):
        mine = [case for case in shapes.full() if case.op == op]
        found = {(case.dtype, case.layout, case.fused) for case in mine}
        assert len(found) == len(shapes.DTYPES) * len(shapes.LAYOUTS) * len(shapes.FUSIONS)


def test_groups() -> None:
    assert Case("gn", (2, 16, 8, 8)).num_groups == 4
    assert Case("gn", (2, 320, 8, 8), groups=32).num_groups == 32
    assert Case("ln", (2, 16, 8, 8)).num_groups == 1
