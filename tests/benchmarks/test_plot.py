"""The readers of the rows: the figures, the tables, and the refusal of CPU rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import summary
from benchmarks.rows import Row
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


def row_of_a_cpu(op: str, fused: str, ratio: float, shape: tuple[int, ...] = (8, 4, 2)) -> Row:
    return {
        "op": op, "shape": list(shape), "fused": fused, "layout": "contiguous", "dtype": "float32",
        "provider": "fastnorm", "ratio_p50": ratio, "cpu": "a CPU", "threads": 2, "torch": "2.13",
    }  # fmt: skip


def test_figure_and_tables_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each bar and each cell is the geometric mean of the rows it stands for, torch's left out."""
    rows = [
        row_of_a_cpu("bn", "plain", 0.5),
        row_of_a_cpu("bn", "plain", 2.0, (9, 4)),
        row_of_a_cpu("bn", "relu", 0.25),
        row_of_a_cpu("rms", "residual_relu", 0.75, (9, 4)),
    ]
    theirs = row_of_a_cpu("bn", "plain", 1.0) | {"provider": "torch"}
    lines = [json.dumps(row) for row in (*rows, theirs)]
    (tmp_path / "cpu.jsonl").write_text("\n".join(lines))
    drawn: list[float] = []
    barh = plot_cpu.plt.Axes.barh

    def spy(panel: Any, places: list[float], values: list[float], *args: Any, **style: Any) -> Any:
        drawn.extend(value for value in values if value)
        return barh(panel, places, values, *args, **style)

    monkeypatch.setattr(plot_cpu.plt.Axes, "barh", spy)
    monkeypatch.setattr(plot_cpu, "RESULTS", tmp_path)
    plot_cpu.main()
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == pytest.approx([1.0, 0.25, 0.75])
    printed = capsys.readouterr().out
    assert "| batch | 1.00 | 0.25 |  |" in printed and "| RMS |  |  | 0.75 |" in printed
    assert "| batch | 0.35 | 2.00 |" in printed and "largest 2.00: bn 9 x 4" in printed
