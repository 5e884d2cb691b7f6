"""The paired benchmark of a CPU: its arithmetic and its command end to end."""

from pathlib import Path

import pytest
import torch

from benchmarks import cpu
from benchmarks.rows import read
from benchmarks.shapes import Case

SMALL = (*(Case(op, (2, 8, 5, 3)) for op in cpu.GOALS), Case("ln", (6, 16)))


@pytest.fixture(autouse=True)
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "CASES", SMALL)


def test_ratios_are_taken_pair_by_pair() -> None:
    # Ours takes half of torch's time, but the machine slows down and one call is disturbed:
    # the ratio of the medians would be 17.5 / 17.
    result = cpu.summarise(
        SMALL[0], {"torch": [2.0, 4.0, 30.0, 40.0], "fastnorm": [1.0, 20.0, 15.0, 20.0]}
    )
    assert result.ratio.p20 == result.ratio.p50 == 0.5
    assert result.us["torch"].p50 == 17.0
    assert result.verdict == "pass"


def test_a_ratio_above_the_goal_is_a_miss() -> None:
    assert SMALL[0].op == "in" and cpu.GOALS["in"] < 0.7
    result = cpu.summarise(SMALL[0], {"torch": [1.0, 1.0], "fastnorm": [0.7, 0.7]})
    assert result.verdict == "MISS"
    assert "MISS" in cpu.table_line(result)


def test_other_shapes_have_no_goal() -> None:
    result = cpu.summarise(Case("in", (2, 4, 3, 3)), {"torch": [1.0] * 2, "fastnorm": [9.0] * 2})
    assert result.goal is None and result.verdict == ""


def test_bin_pays_for_the_gradient_of_rho_and_its_yardstick_does_not() -> None:
    pair = cpu.steps(Case("bin", (2, 8, 5, 3)))
    found = {name: call() for name, call in pair.items()}
    assert isinstance(found["torch"], tuple) and isinstance(found["fastnorm"], tuple)
    assert len(found["torch"]) == 4  # y, dx, dweight, dbias
    assert len(found["fastnorm"]) == 5  # and drho


def test_command_prints_a_line_and_writes_two_rows_for_each_case(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    cpu.main(["--rounds", "3", "--out", str(out)])

    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-len(SMALL) :]] == [case.op for case in SMALL]
    rows = read(out)
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


def test_command_takes_only_the_named_operators(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    cpu.main(["--rounds", "2", "--ops", "in", "gn", "--out", str(out)])
    assert {row["op"] for row in read(out)} == {"in", "gn"}


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cpu.main(["--rounds", "1"])
    assert "--rounds must be at least 2" in capsys.readouterr().err
