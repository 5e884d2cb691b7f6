"""The paired benchmark: its arithmetic, its check against wrong results, its command end to end."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import cases, cpu

SMALL = (*(cases.Case(op, (2, 8, 5, 3), goal=1.0) for op in cases.GOALS), cases.Case("ln", (6, 16)))


def test_ratios_are_taken_pair_by_pair() -> None:
    # Ours takes half of torch's time, but the machine slows down and one call is disturbed:
    # the ratio of the medians would be 17.5 / 17.
    result = cpu.summarise(
        cases.Case("bn", (2, 4, 3, 3), goal=0.5),
        {"torch": [2.0, 4.0, 30.0, 40.0], "fastnorm": [1.0, 20.0, 15.0, 20.0]},
    )
    assert result.ratio.p20 == result.ratio.p50 == 0.5
    assert result.us["torch"].p50 == 17e6
    assert result.verdict == "pass"


def test_a_ratio_above_the_goal_is_a_miss() -> None:
    result = cpu.summarise(
        cases.Case("in", (2, 4, 3, 3), goal=0.6), {"torch": [1.0, 1.0], "fastnorm": [0.7, 0.7]}
    )
    assert result.verdict == "MISS"
    assert "MISS" in cpu.table_line(result)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_operator_passes_its_check(case: cases.Case) -> None:
    cases.check(case)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_check_sees_a_wrong_output_and_a_wrong_gradient(case: cases.Case) -> None:
    def wrong_output(op: str, i: cases.Inputs) -> Tensor:
        return cases.definition(op, i) + 1e-3

    def wrong_gradient(op: str, i: cases.Inputs) -> Tensor:
        y = cases.definition(op, i)
        return y + 1e-3 * (i.x - i.x.detach())  # the value is right, dx is off by 1e-3 dy

    with pytest.raises(AssertionError, match="y is off"):
        cases.check(case, wrong_output)
    with pytest.raises(AssertionError, match="dx is off"):
        cases.check(case, wrong_gradient)


@pytest.mark.parametrize("op", ["bn", "bin"])
def test_the_check_sees_running_statistics_left_alone(op: str) -> None:
    def forgetful(op: str, i: cases.Inputs) -> Tensor:
        fresh = dataclasses.replace(
            i, running_mean=i.running_mean.clone(), running_var=i.running_var.clone()
        )
        return cases.definition(op, fresh)

    with pytest.raises(AssertionError, match="running_mean is off"):
        cases.check(cases.Case(op, (2, 8, 5, 3)), forgetful)


def test_bin_pays_for_the_gradient_of_rho_and_its_yardstick_does_not() -> None:
    inputs = cases.make_inputs(cases.Case("bin", (2, 8, 5, 3)))
    ours, theirs = (len(cases.step(p, "bin", inputs)) for p in (cases.ours, cases.builtin))
    assert (ours, theirs) == (5, 4)  # y, dx, dweight, dbias and, for ours, drho


def test_least_traffic_counts_five_passes() -> None:
    assert cases.Case("bn", (2, 4, 3, 3)).min_bytes == 5 * 72 * 4
    assert cases.Case("bn", (2, 4, 3, 3), dtype=torch.float64).min_bytes == 5 * 72 * 8


def test_command_prints_a_line_and_writes_two_rows_for_each_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu, "CASES", SMALL)
    out = tmp_path / "rows.jsonl"
    cpu.main(["--rounds", "3", "--out", str(out)])

    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-len(SMALL) :]] == [case.op for case in SMALL]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["op"], tuple(row["shape"])) for row in rows[::2]] == [
        (c.op, c.shape) for c in SMALL
    ]
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        assert (theirs["provider"], ours["provider"]) == ("torch", "fastnorm")
        assert theirs["shape"] == ours["shape"]
        assert theirs["ratio_p50"] == 1.0 and ours["ratio_p50"] > 0
        for row in (theirs, ours):
            assert 0 < row["us_p20"] <= row["us_p50"] <= row["us_p80"]
            assert row["dtype"] == "float32" and row["torch"] == torch.__version__
            assert row["threads"] == torch.get_num_threads() and row["cpu"]


def test_command_takes_only_the_named_operators(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu, "CASES", SMALL)
    out = tmp_path / "rows.jsonl"
    cpu.main(["--rounds", "2", "--ops", "in", "gn", "--out", str(out)])
    assert {json.loads(line)["op"] for line in out.read_text().splitlines()} == {"in", "gn"}


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cpu.main(["--rounds", "1"])
    assert "--rounds must be at least 2" in capsys.readouterr().err
