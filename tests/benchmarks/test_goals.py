"""The goals against rows: the rows of a verdict, and its words."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import goals, page
from benchmarks.goals import COPY, GOALS, HOST, PUBLISHED, Goal
from benchmarks.rows import read
from benchmarks.shapes import BN_OF_FP16, RMS_OF_QUACK, Case

from .rows import timed_row

LN = Case("ln", (32768, 4096), torch.bfloat16)
BN = Case("bn", (256, 256, 56, 56), torch.bfloat16)
CIFAR = Case("gn", (128, 16, 32, 32), family="cifar")


def goal(start: str, unit: str = COPY) -> Goal:
    (found,) = [g for g in (*GOALS, *PUBLISHED) if g.name.startswith(start) and g.unit == unit]
    return found


def row(case: Case, share: float, provider: str = "fastnorm", **changes: Any) -> dict[str, Any]:
    """A forward at this share of the copy bandwidth, which is 1000 GB/s."""
    changes = {"direction": "forward", **changes}
    us = case.floor_bytes(changes["direction"]) / share / 1e6
    return timed_row(case, provider, us, **changes)


def verdict(which: Goal, rows: list[dict[str, Any]]) -> tuple[str, str]:
    _, _, measured, said = goals.line(which, rows)
    return measured, said


def test_a_share_is_a_median_of_large_tensors_with_cold_l2() -> None:
    rows = [row(LN, share) for share in (0.5, 0.92, 0.95)]
    aside = [
        row(replace(LN, shape=(4096, 256)), 0.1),
        row(LN, 0.1, l2="warm"),
        row(LN, 0.1, direction="backward"),
        row(LN, 0.1, provider="eager"),
        row(replace(LN, fused="residual_relu"), 0.1),
    ]
    assert verdict(goal("ln forward"), rows + aside) == ("92", "met")


def test_a_missed_goal_says_by_how_much() -> None:
    assert verdict(goal("ln forward"), [row(LN, 0.72)]) == ("72", "missed by 20%")
    assert verdict(goal("ln forward"), []) == ("", "not measured")
    assert verdict(goal("ln forward"), [row(LN, 0.9) | {"error": "wrong"}])[1] == "not measured"


def test_where_the_goal_is_of_clusters_only_they_count() -> None:
    forward = goal("bn forward, 64 MB")
    assert verdict(forward, [row(BN, 0.9)]) == ("", "not measured")
    assert verdict(forward, [row(BN, 0.9, provider="fastnorm-coop")]) == ("90", "met")
    both = goal("bn + residual")
    residual = replace(BN, fused="residual_relu")
    rows = [row(residual, 0.5, direction="both")]
    assert verdict(both, rows) == ("50", "missed by 14%")


def test_a_speedup_compares_graphs_with_graphs() -> None:
    rows = [
        timed_row(CIFAR, "fastnorm", 5.0),
        timed_row(CIFAR, "eager", 500.0, timing="events"),
        timed_row(CIFAR, "compile", 10.0),
        timed_row(replace(CIFAR, op="in"), "fastnorm", 5.0),
        timed_row(replace(CIFAR, op="in"), "compile", 5.0 * 2.0**5),
    ]
    eager, compiled = (
        goal("CIFAR shapes in a CUDA graph, cold", f"x {rival}") for rival in goals.RIVALS
    )
    assert verdict(eager, rows) == ("", "not measured")
    assert verdict(compiled, rows) == ("8.00", "met"), "the geometric mean of 2 and 32"


def test_the_hosts_cost_is_a_bound_from_above() -> None:
    which = goal("an eager forward", HOST)
    forward = {"direction": "forward"}
    assert verdict(which, [timed_row(CIFAR, "fastnorm", 5.0, host_us=14.0, **forward)])[1] == "met"
    slow = timed_row(CIFAR, "fastnorm", 5.0, host_us=18.0, **forward)
    assert verdict(which, [slow]) == ("18", "missed by 20%")
    assert goals.line(which, [])[1] == "at most 15 us of the host"


def test_what_others_published_is_compared_in_their_own_measure() -> None:
    assert verdict(goal("rms backward 8192"), [row(RMS_OF_QUACK, 0.81, direction="backward")]) == (
        "81",
        "met",
    )
    # 50% of the copy by the floor of 2 S is 75% by the 3 S that they count.
    assert verdict(goal("bn forward in training 4x128"), [row(BN_OF_FP16, 0.5)]) == ("75", "met")


def test_every_line_of_the_table_has_a_name_of_its_own() -> None:
    lines = goals.table([])
    assert len({tuple(line[:2]) for line in lines}) == len(lines) == 1 + len(GOALS) + len(PUBLISHED)
    assert {line[3] for line in lines[1:]} == {"not measured"}


def test_the_pages_table_is_that_of_the_rows() -> None:
    """What `python -m benchmarks.page` would write is there; no figure is of a CPU."""
    rows = read(page.ROWS)
    text = page.PAGE.read_text()
    assert page.replaced(text, rows) == text, "python -m benchmarks.page writes it"
    assert all(row["gpu"] for row in rows)


def test_the_pages_table_takes_what_was_measured() -> None:
    rows = [row(LN, 0.72) | {"driver": "1.2"}]
    text = page.replaced(f"before\n{page.BEGIN}old\n{page.END}\nafter\n", rows)
    assert text.startswith("before\n") and text.endswith(f"\n{page.END}\nafter\n")
    assert "| at least 90 % of copy | 72 | missed by 20% |" in text and "old\n" not in text
    assert "Measured on one made up, driver 1.2, torch 0" in text and "1000 GB/s" in text
    with pytest.raises(ValueError, match=r"benchmarks.md has no <!-- python -m benchmarks.page"):
        page.replaced("a page without the marks", rows)


def test_a_row_that_was_cut_is_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"op": "bn"}\n{"op": "l')
    assert read(file) == [{"op": "bn"}]
    assert read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("text", ["{broken}\n", "[1, 2\n"])
def test_a_broken_line_is_an_error(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError):
        read(file)
