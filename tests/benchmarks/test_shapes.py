"""The benchmark's cases as data: their least traffic, and what the lists hold."""

import pytest
import torch

from benchmarks import shapes, summary
from benchmarks.measure import describe
from benchmarks.shapes import Case

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
    for goal in summary.GOALS:
        cases = [
            case
            for case in shapes.quick()
            if any(
                goal.applies({**describe(case), "l2": l2, "timing": "graph"})
                for l2 in ("cold", "warm")
            )
        ]
        assert cases, goal.name
        assert any(case.compiled for case in cases), goal.name


def test_full_has_every_dtype_layout_and_fusion_of_every_image_operator() -> None:
    for op in ("bn", "bn_eval", "in", "bin", "gn"):
        mine = [case for case in shapes.full() if case.op == op]
        found = {(case.dtype, case.layout, case.fused) for case in mine}
        assert len(found) == len(shapes.DTYPES) * len(shapes.LAYOUTS) * len(shapes.FUSIONS)


def test_groups() -> None:
    assert Case("gn", (2, 16, 8, 8)).num_groups == 4
    assert Case("gn", (2, 320, 8, 8), groups=32).num_groups == 32
    assert Case("ln", (2, 16, 8, 8)).num_groups == 1
