"""`python -m benchmarks.plot rows.jsonl --out DIR`: figures and README tables of a run's rows.

bandwidth.png   % of the copy bandwidth by size of the tensor, for each operator and direction
speedup.png     speed-up over torch eager and torch.compile, for each operator and direction
table.md        the goals, the speed-ups and every case

Rows from a CPU say nothing about a GPU: they are refused, except with --rehearsal, which is then
written across the figures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks import goals, summary
from benchmarks.rows import Row, Table, failures, markdown, read, timed
from benchmarks.shapes import DIRECTIONS, OPS

mpl.use("Agg")

# Okabe and Ito's colours, which colour-blind readers can tell apart; one for each provider.
COLOURS = {
    "fastnorm": "#0072B2",
    "fastnorm-coop": "#56B4E9",
    "compile": "#E69F00",
    "eager": "#999999",
    "liger": "#009E73",
    "quack": "#CC79A7",
    "cudnn": "#F0E442",
    "flag_gems": "#D55E00",
}
MARKERS = dict(zip(COLOURS, "oD^sPX*v", strict=True))
TITLES = {"forward": "forward", "backward": "backward", "both": "forward + backward"}


def caption(rows: Sequence[Row]) -> str:
    """The machine and the versions of the rows."""
    row = rows[0]
    machine = row["gpu"] or f"CPU rehearsal on {row['cpu']}"
    return (
        f"{machine}, torch {row['torch']}, triton {row['triton']}, commit {row['commit']}; copy "
        f"bandwidth {row['copy_gbps']:.0f} GB/s read + written; cold L2"
    )


def _finish(figure: Figure, rows: Sequence[Row], file: Path) -> None:
    figure.supxlabel(caption(rows), fontsize=8, color="0.35")
    if rows[0]["gpu"] is None:
        figure.text(
            0.5, 0.5, "REHEARSAL, not a GPU", fontsize=48, color="red", alpha=0.25, rotation=20,
            ha="center", va="center",
        )  # fmt: skip
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _cold(rows: Sequence[Row], **wanted: str) -> list[Row]:
    return [
        row
        for row in timed(rows)
        if row["l2"] == "cold" and all(row[key] == value for key, value in wanted.items())
    ]


def _present(rows: Sequence[Row], key: str, order: Sequence[str]) -> list[str]:
    found = {row[key] for row in rows}
    return [name for name in order if name in found]


def draw_bandwidth(rows: Sequence[Row], file: Path) -> None:
    """A panel for each direction and operator; a point for each case and provider."""
    rows = _cold(rows)
    ops = _present(rows, "op", OPS)
    figure, axes = plt.subplots(
        len(DIRECTIONS), len(ops), squeeze=False, sharex=True, sharey=True,
        figsize=(2.2 * len(ops) + 1.2, 7.5), layout="constrained",
    )  # fmt: skip
    for line, direction in zip(axes, DIRECTIONS, strict=True):
        for panel, op in zip(line, ops, strict=True):
            _bandwidth_panel(panel, _cold(rows, op=op, direction=direction))
        line[0].set_ylabel(f"{TITLES[direction]}\n% of copy bandwidth")
    for panel, op in zip(axes[0], ops, strict=True):
        panel.set_title(op)
    for panel in axes[-1]:
        panel.set_xlabel("MB of the tensor")
    _legend(figure, _present(rows, "provider", list(COLOURS)))
    _finish(figure, rows, file)


def _bandwidth_panel(panel: Axes, rows: Sequence[Row]) -> None:
    for k, provider in enumerate(COLOURS):
        mine = [row for row in rows if row["provider"] == provider]
        aside = 1.06 ** (k - len(COLOURS) // 2)  # so that providers do not hide one another
        panel.scatter(
            [aside * row["tensor_bytes"] / 1e6 for row in mine],
            [row["pct_copy"] for row in mine],
            s=22, alpha=0.85, color=COLOURS[provider], marker=MARKERS[provider], linewidths=0,
        )  # fmt: skip
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_ylim(0, max([105, *(1.05 * row["pct_copy"] for row in rows)]))
    panel.axhline(100, color="0.6", linewidth=0.8, linestyle="--")
    panel.axvline(goals.LARGE / 1e6, color="0.6", linewidth=0.8, linestyle=":")
    panel.grid(alpha=0.25)


def _legend(figure: Figure, providers: Sequence[str]) -> None:
    handles = [
        Line2D([], [], linestyle="", color=COLOURS[name], marker=MARKERS[name], label=name)
        for name in providers
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)


def draw_speedups(rows: Sequence[Row], file: Path) -> None:
    """A panel for each direction: geometric means over all cases of an operator."""
    rows = _cold(rows)
    ops, providers = _present(rows, "op", OPS), summary.ours(rows)
    figure, axes = plt.subplots(
        1, len(DIRECTIONS), figsize=(13, 4.6), sharey=True, layout="constrained"
    )
    for panel, direction in zip(axes, DIRECTIONS, strict=True):
        bars = [
            (provider, rival, [_gain(rows, provider, rival, op, direction) for op in ops])
            for provider in providers
            for rival in goals.RIVALS
        ]
        width = 0.8 / max(len(bars), 1)
        for k, (provider, rival, gains) in enumerate(bars):
            places = [n + (k - (len(bars) - 1) / 2) * width for n in range(len(ops))]
            drawn = panel.bar(
                places, gains, 0.92 * width, label=f"{provider} over {rival}",
                color=COLOURS[rival], hatch="//" if provider == "fastnorm-coop" else None,
                edgecolor="white",
            )  # fmt: skip
            labels = [f"{gain:.1f}" if gain else "" for gain in gains]
            panel.bar_label(drawn, labels=labels, fontsize=8, padding=1)
        panel.axhline(1, color="0.3", linewidth=0.8)
        panel.set_xticks(range(len(ops)), ops)
        panel.set_title(TITLES[direction])
        panel.grid(axis="y", alpha=0.25)
        panel.set_axisbelow(True)
    axes[0].set_ylabel("speed-up, geometric mean")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    _finish(figure, rows, file)


def _gain(rows: Sequence[Row], provider: str, rival: str, op: str, direction: str) -> float:
    """The gain; 0, an empty bar, if nothing can be compared."""
    cases = _cold(rows, op=op, direction=direction)
    return summary.speedup(cases, provider, rival, lambda _: True) or 0.0


def cases_table(rows: Sequence[Row]) -> Table:
    """Forward + backward of every case with cold L2: microseconds, and % of copy of ours."""
    rows = _cold(rows, direction="both")
    providers, mine = _present(rows, "provider", list(COLOURS)), summary.ours(rows)
    fields = ["op", "shape", "dtype", "layout", "fused"]
    heads = [f"{provider}, us" for provider in providers] + [f"{name}, % of copy" for name in mine]
    table = [[*fields, *heads]]
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = (row["op"], "x".join(map(str, row["shape"])), *(row[name] for name in fields[2:]))
        cases.setdefault(key, {})[row["provider"]] = row
    for key, found in cases.items():
        times = [_time(found.get(provider)) for provider in providers]
        percents = [f"{found[name]['pct_copy']:.0f}" if name in found else "" for name in mine]
        table.append([*key, *times, *percents])
    return table


def _time(row: Row | None) -> str:
    """A star marks a time that was not taken in a CUDA graph: it may include the host's cost."""
    return "" if row is None else f"{row['us_p50']:.1f}{'*' if row['timing'] == 'events' else ''}"


def write_tables(rows: Sequence[Row], file: Path) -> None:
    """Everything that README.md may quote."""
    parts = [f"{caption(_cold(rows))}.", markdown(goals.table(rows))]
    for provider in summary.ours(rows):
        parts.append(f"**{provider}**")
        makers = (summary.host_table, summary.operators_table)
        parts += [markdown(make(rows, provider)) for make in makers]
    parts.append("Forward + backward, median of replays; * by events, not in a CUDA graph")
    parts.append(markdown(cases_table(rows)))
    parts += failures(rows)
    file.write_text("\n\n".join(parts) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="JSON lines of benchmarks.run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--rehearsal", action="store_true", help="draw rows of a CPU, marked so")
    args = parser.parse_args(argv)
    rows = read(args.file)
    if not timed(rows):
        sys.exit(f"{args.file} has no row with a time")
    if len({(row["gpu"], row["commit"]) for row in rows}) > 1:
        sys.exit(f"{args.file} mixes rows of several machines or commits: draw one run at a time")
    if rows[0]["gpu"] is None and not args.rehearsal:
        sys.exit(f"{args.file} was measured on a CPU: not a GPU result (--rehearsal draws it)")
    print(summary.text(rows), flush=True)  # first: drawing takes long
    args.out.mkdir(parents=True, exist_ok=True)
    write_tables(rows, args.out / "table.md")
    draw_bandwidth(rows, args.out / "bandwidth.png")
    draw_speedups(rows, args.out / "speedup.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
