"""A row of a report: one direction of a case, with its launches' estimates and their sum."""

from collections.abc import Iterable, Iterator
from math import exp, log, prod
from typing import Any

import triton

from benchmarks.compile_only import Launch
from benchmarks.shapes import Case

from .cases import launches_of
from .estimate import Estimate, code_of, estimate
from .model import BANDWIDTH, LAUNCH

Row = dict[str, Any]


def rows_of(case: Case, launches: list[Launch], gpus: Iterable[str]) -> Iterator[Row]:
    """The rows for each direction on each GPU."""
    elements = prod(case.shape)
    for direction, made in launches_of(case, launches):
        codes = [code_of(launch) for launch in made]
        for gpu in gpus:
            seen: frozenset[str] = frozenset()
            found: list[Estimate] = []
            for code in codes:
                found.append(estimate(code, elements, gpu, seen))
                seen |= set(found[-1].moved)
            yield row_of(case, direction, gpu, found)


def row_of(case: Case, direction: str, gpu: str, launched: list[Estimate]) -> Row:
    floor = case.floor_bytes(direction) / BANDWIDTH[gpu] * 1e6
    us = sum(e.us + e.tail_us + LAUNCH * 1e6 for e in launched)
    return {
        "case": case.name,
        "direction": direction,
        "gpu": gpu,
        "floor_us": floor,
        "estimated_us": us,
        "estimated_percent_of_floor": 100 * floor / us,
        "launches": [e.as_row() for e in launched],
        "triton": triton.__version__,
    }


def key_of(row: Row) -> tuple[str, str, str]:
    return row["case"], row["direction"], row["gpu"]


def text(row: Row, former: Row | None) -> str:
    """A line for the row and one for each launch; `former` is the other version's row."""
    line = (
        f"{row['case']} {row['direction']} {row['gpu']}: estimated {row['estimated_us']:.1f} us, "
        f"{row['estimated_percent_of_floor']:.0f}% of the floor"
    )
    if former is not None:
        line += (
            f", {former['estimated_us'] / row['estimated_us']:.2f} times as fast as the baseline"
        )
    return "\n".join([line, *(f"    {_launch_text(e)}" for e in row["launches"])])


def _launch_text(e: Row) -> str:
    return (
        f"{e['kernel']:26} {e['programs']} programs of {e['warps']} warps, {e['registers']} "
        f"registers, {e['spilled']} bytes spilled, {e['resident_warps']} warps an SM, "
        f"{e['peak_kb']:.0f} KB in flight an SM, {e['mean_kb']:.0f} on average, "
        f"{e['instructions']:.1f} instructions an element, {e['waves']:.2f} waves, "
        f"estimated {e['us']:.1f} + {e['tail_us']:.1f} us"
    )


def geometric_mean(values: Iterable[float]) -> float:
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))
