"""`python -m benchmarks.tune rows.jsonl --out tune.jsonl`: suggests changes for missed goals.

For each goal that the rows miss by more than a tenth, worst first, it forces the alternatives of
alternatives.py, checks them against float64 and times them on the goal's worst row, next to the
present choice. Prints which one to take. One JSON line for each, as soon as it is measured.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import fastnorm
from benchmarks import goals
from benchmarks.alternatives import AS_IT_IS, Alternative, alternatives, forced
from benchmarks.check import check
from benchmarks.goals import COPY, Goal, ratios
from benchmarks.measure import Budget, calls, input_sets
from benchmarks.providers import FACTORIES
from benchmarks.rows import Row, read, timed
from benchmarks.shapes import Case, describe, quick, tiny
from benchmarks.timing import Clock, clock, versions

Line = dict[str, Any]
MISSED = 0.1  # share of the target: a smaller gap is worth no alternative
GAIN = 1.03  # over the present choice: less than that is noise


class Task(NamedTuple):
    """A goal's row, to be timed in other ways."""

    goal: Goal
    case: Case


def missed(rows: Sequence[Row]) -> list[Task]:
    """Each goal that is missed by more than MISSED, worst first, with its worst row's case."""
    found = []
    for goal in goals.GOALS:
        lacking = goal.missed_by(rows)
        if lacking is not None and lacking > MISSED:
            found.append((lacking, Task(goal, _case(_worst(goal, rows)))))
    return [task for _, task in sorted(found, key=lambda each: -each[0])]


def _worst(goal: Goal, rows: Sequence[Row]) -> Row:
    mine = goal.rows(rows)
    if goal.unit == COPY:
        return min(mine, key=lambda row: row["pct_copy"])
    rival = goal.unit.removeprefix("x ")
    found = ratios([*mine, *timed(rows, rival)], goal.provider, rival)
    return min(found, key=lambda each: each[1])[0] if found else mine[0]


def _case(row: Row) -> Case:
    """The case of the list that belongs to a row."""
    return next(case for case in quick() if describe(case).items() <= row.items())


def rehearsal() -> list[Task]:
    """For each list of alternatives, a goal and a case that a CPU can interpret."""
    kinds: dict[tuple[Alternative, ...], Task] = {}
    for goal, case in product(goals.GOALS, tiny()):
        if goal.unit == COPY and goal.name.split()[0] != case.op:
            continue
        kinds.setdefault(alternatives(goal, case.op), Task(goal, case))
    kinds.pop(())
    return list(kinds.values())


def time_one(task: Task, alternative: Alternative, device: Clock, copy_gbps: float) -> Line:
    """A line: the time and share of the bandwidth, or the error."""
    goal, case = task
    line: Line = {
        "goal": goal.name, "unit": goal.unit, "alternative": alternative.name, "error": None,
        **describe(case), "direction": goal.direction,
    }  # fmt: skip
    provider = FACTORIES[goal.provider]()
    try:
        with forced(alternative), device.session(), provider.setting():
            forward = provider.bind(case)
            check(case, forward, device.device)
            made = calls(forward, case.op, goal.direction, input_sets(case, device))
            timing, samples = device.device_us(made)
    except Exception as error:  # a tile too large for the registers, a tier without room
        line["error"] = f"{type(error).__name__}: {error}".partition("\n")[0]
        device.synchronize()
        return line
    us = statistics.median(samples)
    percent = 100 * case.floor_bytes(goal.direction) / us / 1e3 / copy_gbps
    return line | {"timing": timing, "us_p50": round(us, 3), "pct_copy": round(percent, 2)}


def advice(task: Task, lines: Sequence[Line]) -> str:
    """Which of the alternatives to take."""
    measured = {line["alternative"]: line["us_p50"] for line in lines if not line["error"]}
    now = measured.pop(AS_IT_IS.name, None)
    what = f"{task.goal.name} ({task.case.name})"
    if now is None or not measured:
        return f"{what}: nothing to compare"
    best = min(measured, key=measured.__getitem__)
    gain = now / measured[best]
    if gain < GAIN:
        return f"{what}: keep it as it is, {now:.1f} us; next is {best}, {measured[best]:.1f} us"
    return f"{what}: TAKE {best}: {measured[best]:.1f} us, not {now:.1f} ({gain:.2f}x)"


def tuned(tasks: Sequence[Task], device: Clock, budget: Budget) -> Iterator[Line]:
    """A line for each alternative of each task, within the budget; prints the advice."""
    copy_gbps = device.copy_gbps()
    for task in tasks:
        lines = []
        for alternative in (AS_IT_IS, *alternatives(task.goal, task.case.op)):
            if not budget.allows("tune"):
                print(f"not reached: {task.goal.name}: {alternative.name}")
                continue
            with budget.lap("tune"):
                lines.append(time_one(task, alternative, device, copy_gbps))
            result = lines[-1].get("us_p50", lines[-1]["error"])
            print(f"    {alternative.name}: {result}", flush=True)
            yield lines[-1]
        print(advice(task, lines), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="JSON lines of benchmarks.run")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines go to this file")
    parser.add_argument("--budget", type=float, help="seconds after which nothing is timed")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, whatever the rows say")
    args = parser.parse_args(argv)
    budget, device, about = Budget(args.budget), clock(), versions()
    if about["gpu"] is None and not args.rehearse:
        sys.exit("torch sees no GPU here; --rehearse goes the same way on the CPU")
    rows = read(args.file)
    if not rows and not args.rehearse:
        sys.exit(f"{args.file} has no rows: make gpu comes first")
    if args.rehearse:
        tasks = rehearsal()
        print("REHEARSAL ON A CPU: its advice says nothing about a GPU")
    else:
        tasks = missed(rows)
        print(f"{len(tasks)} goals are missed by more than {MISSED:.0%}")
    with fastnorm.use_backend("triton"), args.out.open("w") as out:
        for line in tuned(tasks, device, budget):
            out.write(json.dumps({**line, **about}) + "\n")
            out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
