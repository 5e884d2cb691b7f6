"""What reads the rows: the figures, the tables, and the refusal of CPU rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import summary
from benchmarks.shapes import OPS, ROW_OPS, Case

from .rows import rows_of, timed_row

plot = pytest.importorskip("benchmarks.plot", reason="matplotlib is not installed")
plot_cpu = pytest.importorskip("benchmarks.plot_cpu", reason="matplotlib is not installed")

LARGE = {op: (256, 256, 56, 56) if op not in ROW_OPS else (32768, 4096) for op in OPS}


def test_host_cost_stands_beside_torchs() -> None:
    case = Case("gn", (128, 16, 32, 32))
    rows = [
        timed_row(case, "fastnorm", 5.0, direction="forward", host_us=14.0),
        timed_row(case, "eager", 5.0, direction="forward", host_us=8.0),
        timed_row(replace(case, fused="relu"), "fastnorm", 5.0, direction="forward", host_us=99.0),
    ]
    assert summary.host_table(rows, "fastnorm")[1] == ["gn", "14.0", "8.0"]


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
    assert "FAILED liger in bn 256x256x56x56 float32: RuntimeError: no kernel" in table
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
