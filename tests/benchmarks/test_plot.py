"""What reads the rows: goals against what was reached, the figures, and the refusal of CPU rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import summary
from benchmarks.shapes import OPS, Case

from .rows import rows_of, timed_row

plot = pytest.importorskip("benchmarks.plot", reason="matplotlib is not installed")
plot_cpu = pytest.importorskip("benchmarks.plot_cpu", reason="matplotlib is not installed")

LARGE = {op: (256, 256, 56, 56) if op != "ln" else (32768, 4096) for op in OPS}


def goal_line(rows: list[dict[str, Any]], name: str) -> list[str]:
    (line,) = [line for line in summary.goals_table(rows, "fastnorm") if line[0] == name]
    return line


def test_goals_are_judged_by_medians_and_geometric_means() -> None:
    case = Case("ln", LARGE["ln"], torch.bfloat16)
    forward_us = case.floor_bytes("forward") / 1e6  # at the copy bandwidth of 1000 GB/s
    rows = [
        *(
            timed_row(case, "fastnorm", forward_us / share, direction="forward")
            for share in (0.5, 0.9, 0.95)
        ),
        timed_row(case, "fastnorm", 100.0),
        timed_row(case, "eager", 400.0),
        timed_row(Case("ln", (32768, 1024), torch.bfloat16), "fastnorm", 100.0),
        timed_row(Case("ln", (32768, 1024), torch.bfloat16), "eager", 100.0),
    ]
    line = goal_line(rows, "ln, 64 MB and more")
    assert line[1:] == ["90 / 90 yes", "no rows / 85", "", "2.00 / 1.50 yes", "no rows / 1.10"]


def test_a_missed_goal_says_so() -> None:
    case = Case("bn", LARGE["bn"], fused="residual_relu")
    rows = [timed_row(case, name, us) for name, us in (("fastnorm", 1e5), ("compile", 1.2e5))]
    line = goal_line(rows, "bn + residual + ReLU, 64 MB and more")
    percent = 100 * case.floor_bytes("both") / 1e5 / 1e6
    assert line[3] == f"{percent:.0f} / 75 NO"
    assert line[4:] == ["no rows / 2.20", "1.20 / 1.30 NO"]


def test_small_tensors_fused_ones_and_warm_l2_stay_out_of_a_goal() -> None:
    rows = [
        timed_row(Case("bn", (8, 16, 32, 32)), "fastnorm", 1.0, direction="forward"),
        timed_row(
            Case("bn", LARGE["bn"], fused="residual_relu"), "fastnorm", 1.0, direction="forward"
        ),
        timed_row(Case("bn", LARGE["bn"]), "fastnorm", 1.0, direction="forward", l2="warm"),
    ]
    assert goal_line(rows, "bn, 64 MB and more")[1] == "no rows / 80"


def test_a_time_by_events_is_not_compared_with_a_graphs() -> None:
    case = Case("gn", (128, 16, 32, 32), family="cifar")
    rows = [
        timed_row(case, "fastnorm", 5.0),
        timed_row(case, "eager", 500.0, timing="events"),
        timed_row(case, "compile", 10.0),
    ]
    assert goal_line(rows, "CIFAR shapes, cold L2")[4:] == ["no rows / 2.00", "2.00 / 1.20 yes"]


def test_host_cost_is_judged_alone_and_over_torchs() -> None:
    case = Case("gn", (128, 16, 32, 32))
    rows = [
        timed_row(case, "fastnorm", 5.0, direction="forward", host_us=14.0),
        timed_row(case, "eager", 5.0, direction="forward", host_us=8.0),
        timed_row(replace(case, fused="relu"), "fastnorm", 5.0, direction="forward", host_us=99.0),
    ]
    assert summary.host_table(rows, "fastnorm")[1] == ["gn", "14.0 / 15.0 yes", "6.0 / 5.0 NO"]


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def many_rows(**changes: Any) -> list[dict[str, Any]]:
    times = {"fastnorm": 500.0, "eager": 900.0, "compile": 700.0}
    rows = [row for op in OPS for row in rows_of(Case(op, LARGE[op]), times, **changes)]
    failed = {**rows[0], "provider": "liger", "error": "RuntimeError: no kernel"}
    return [*rows, {key: failed[key] for key in failed if key not in ("us_p50", "direction")}]


def test_figures_and_tables_are_drawn(tmp_path: Path) -> None:
    out = tmp_path / "figures"
    assert plot.main([str(written(tmp_path, many_rows())), "--out", str(out)]) == 0
    assert {file.name for file in out.iterdir()} == {"bandwidth.png", "speedup.png", "table.md"}
    for name in ("bandwidth.png", "speedup.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    table = (out / "table.md").read_text()
    assert "| bn | both | 1.80 | 1.40 |" in table
    assert "| gn | 256x256x56x56 | float32 | contiguous | plain | 500.0 | 700.0 | 900.0 |" in table
    assert "FAILED liger: RuntimeError: no kernel" in table
    assert "made up, torch 0, triton 0, commit none" in table


def test_rows_of_a_cpu_are_refused_but_for_a_rehearsal(tmp_path: Path) -> None:
    file = written(tmp_path, many_rows(gpu=None, timing="cpu"))
    out = tmp_path / "figures"
    with pytest.raises(SystemExit, match="measured on a CPU"):
        plot.main([str(file), "--out", str(out)])
    assert not out.exists()
    assert plot.main([str(file), "--out", str(out), "--rehearsal"]) == 0
    assert "CPU rehearsal" in (out / "table.md").read_text()


def test_rows_of_two_machines_or_none_are_refused(tmp_path: Path) -> None:
    mixed = many_rows() + many_rows(gpu="another")
    with pytest.raises(SystemExit, match="mixes rows"):
        plot.main([str(written(tmp_path, mixed)), "--out", str(tmp_path / "figures")])
    with pytest.raises(SystemExit, match="no row with a time"):
        plot.main([str(written(tmp_path, [])), "--out", str(tmp_path / "figures")])


def test_figure_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of our rows is a bar of its ratio."""
    rows = (plot_cpu.RESULTS / "cpu.jsonl").read_text().splitlines()
    (tmp_path / "cpu.jsonl").write_text("\n".join(rows[:4]))
    drawn = []
    barh = plot_cpu.plt.Axes.barh

    def spy(panel: Any, labels: list[str], values: list[float], **style: Any) -> Any:
        drawn.extend(values)
        return barh(panel, labels, values, **style)

    monkeypatch.setattr(plot_cpu.plt.Axes, "barh", spy)
    monkeypatch.setattr(plot_cpu, "RESULTS", tmp_path)
    plot_cpu.main()
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == [json.loads(rows[i])["ratio_p50"] for i in (1, 3)]
