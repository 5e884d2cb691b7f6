"""The paired benchmark of a CPU: its arithmetic and its command end to end."""

from pathlib import Path

import pytest
import torch

from benchmarks import cpu, small, threads
from benchmarks.rows import read
from benchmarks.shapes import Case, on_a_cpu

OPS = ("in", "bn", "gn", "ln", "bin")
SMALL = (*(Case(op, (2, 8, 5, 3)) for op in OPS), Case("ln", (6, 16)))
BLOCK = Case("bn", (128, 16, 32, 32), fused="residual_relu")


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


def test_a_ratio_above_the_goal_is_a_miss() -> None:
    us = {"torch": [1.0, 1.0], "fastnorm": [0.7, 0.7]}
    result = cpu.summarise(BLOCK, us)
    assert result.verdict == "MISS" and cpu.summarise(SMALL[0], us).verdict == "pass"
    assert cpu.summarise(BLOCK, us, "compile").verdict == "pass"
    assert "MISS" in cpu.table_line(result)


def test_a_ratio_below_the_goal_passes_however_wide_its_spread() -> None:
    """Of 100 pairs 30 are disturbed, so 20%-80% spans the goal; the median's interval does not."""
    ours = [0.3] * 70 + [15.0] * 30
    result = cpu.summarise(BLOCK, {"torch": [1.0] * 100, "fastnorm": ours})
    assert result.ratio.p20 < result.goal < result.ratio.p80
    assert result.verdict == "pass"


@pytest.mark.parametrize("ours", [[0.07, 15.0], [0.07] * 24 + [15.0] * 26, [0.3] * 3 + [0.7] * 3])
def test_a_verdict_is_noisy_where_the_interval_spans_the_goal(ours: list[float]) -> None:
    result = cpu.summarise(BLOCK, {"torch": [1.0] * len(ours), "fastnorm": ours})
    assert result.verdict == "noisy" and "noisy" in cpu.table_line(result)
    others = [cpu.summarise(SMALL[1], {"torch": [1.0] * 2, "fastnorm": [9.0] * 2})]
    text = cpu.warning([result, *others], (7.0, 8.0))
    assert text is not None and "1 of 2 verdicts are noisy" in text and "7.0 at the start" in text
    assert cpu.warning(others, (0.0, 0.0)) is None


def test_the_interval_of_the_median() -> None:
    """Ranks of the binomial distribution's tables: 2 of 9, 18 of 50, 40 of 100; 1 of 6."""
    for n, rank in ((2, 1), (5, 1), (6, 1), (9, 2), (50, 18), (100, 40), (1000, 469), (3000, 1446)):
        values = [float(k) for k in range(n, 0, -1)]
        assert cpu.median_interval(values) == (rank, n + 1 - rank)


def test_the_geometric_mean() -> None:
    results = [
        cpu.summarise(SMALL[0], {"torch": [1.0] * 2, "fastnorm": [ratio] * 2})
        for ratio in (0.25, 1.0)
    ]
    assert cpu.geometric_mean(results) == pytest.approx(0.5)


def test_the_rows_are_those_of_the_goals() -> None:
    """Norms, fusions, dtypes and layouts at seven shapes of images; two of rows."""
    cases = on_a_cpu()
    assert len(cases) == len(set(cases)) == 5 * 7 * 2 * 2 * 3 + 2 * 2 * 2 * 3
    assert sum(case.shape in cpu.BLOCKS for case in cases) == 5 * 2 * 2 * 2 * 3


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
    lines = printed[-len(SMALL) - 2 : -2]
    assert [line.split()[0] for line in lines] == [case.op for case in SMALL]
    assert printed[-2].startswith(f"geometric mean of {len(SMALL)} ratios")
    assert printed[-1].startswith("largest")
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


def test_noise_is_said_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = cpu.summarise(SMALL[0], {"torch": [1.0] * 2, "fastnorm": [0.07, 15.0]})
    monkeypatch.setattr(cpu, "measure", lambda *_: noisy)
    cpu.main(["--rounds", "2", "--ops", "in"])
    assert capsys.readouterr().err.startswith("warning: 1 of 1 verdicts are noisy")


def test_a_missing_folder_is_an_error_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        cpu.main(["--out", str(tmp_path / "missing" / "rows.jsonl")])
    assert "there is no such folder" in capsys.readouterr().err


def test_threads_are_torchs(capsys: pytest.CaptureFixture[str]) -> None:
    former = torch.get_num_threads()
    try:
        cpu.main(["--rounds", "2", "--ops", "in", "--threads", "1"])
    finally:
        torch.set_num_threads(former)
    assert ", 1 thread," in capsys.readouterr().out


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cpu.main(["--rounds", "1"])
    assert "--rounds must be at least 2" in capsys.readouterr().err


def test_small_calls(capsys):
    """A line for each module, without an activation and with two."""
    small.main(["--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == [name for name in small.NORMS for _ in range(3)]
    with pytest.raises(SystemExit):
        small.main(["--rounds", "1"])


def test_threads_are_compared_in_pairs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large cases alone, a line each; the calls take turns with one thread and with two."""
    counts: list[int] = []

    def timed(call: object, count: int) -> float:
        counts.append(torch.get_num_threads())
        return 3.0 / torch.get_num_threads()

    monkeypatch.setattr(threads, "CASES", (SMALL[0], BLOCK))
    monkeypatch.setattr(threads, "wall_us", timed)
    former = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        threads.main(["--rounds", "2"])
        torch.set_num_threads(1)
        with pytest.raises(SystemExit):
            threads.main([])
    finally:
        torch.set_num_threads(former)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and printed[1].startswith(BLOCK.name) and " 2.00 " in printed[1]
    assert printed[2] == "geometric mean of 1 speed-ups 2.00, 0 below 1.7"
    assert counts == [1, 2] * (len(counts) // 2)
