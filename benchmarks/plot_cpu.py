"""`python -m benchmarks.plot_cpu`: results/cpu.png and the pages' tables, of results/cpu.jsonl."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.rows import Row, read

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "bn": "batch",
    "in": "instance",
    "gn": "group",
    "ln": "layer",
    "rms": "RMS",
    "bin": "batch-instance*",
}
FUSIONS = {"plain": "alone", "relu": "+ ReLU", "residual_relu": "+ residual + ReLU"}
MODULATED = {"modulated": "+ modulation", "modulated_silu": "+ modulation + SiLU"}
COLOURS = ("#4c78a8", "#72b7b2", "#54a24b")


def mean_ratio(rows: Iterable[Row]) -> float | None:
    """The geometric mean of the rows' ratios to torch; None if there are no rows."""
    logs = [math.log(row["ratio_p50"]) for row in rows]
    return math.exp(sum(logs) / len(logs)) if logs else None


def shape_name(row: Row) -> str:
    return " x ".join(map(str, row["shape"]))


def table(rows: Sequence[Row], column: Callable[[Row], str], columns: Sequence[str]) -> str:
    """Markdown: a line for each norm, the mean ratio of the rows that belong to each column."""
    lines = [f"| norm | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for op, name in NAMES.items():
        of_norm = [row for row in rows if row["op"] == op]
        means = [mean_ratio(r for r in of_norm if column(r) == wanted) for wanted in columns]
        cells = ["" if mean is None else f"{mean:.2f}" for mean in means]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_fusion(rows: Sequence[Row]) -> str:
    """The README's table."""
    return table(rows, lambda row: FUSIONS[row["fused"]], list(FUSIONS.values()))


def by_shape(rows: Sequence[Row]) -> str:
    """The table of docs/benchmarks.md."""
    return table(rows, shape_name, list(dict.fromkeys(map(shape_name, rows))))


def kind(row: Row) -> str:
    """The row's dtype and layout, as the column of `modulated` is called."""
    last = ", channels last" if row["layout"] == "channels_last" else ""
    return f"{row['dtype']}{last}"


def modulated(rows: Sequence[Row]) -> str:
    """The table of modulated norms in docs/benchmarks.md: a line for each chain and shape."""
    kinds = list(dict.fromkeys(map(kind, rows)))
    lines = [f"| chain | shape | {' | '.join(kinds)} |", "|---" * (2 + len(kinds)) + "|"]
    chains: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        chain = f"{NAMES[row['op']]} {MODULATED[row['fused']]}", shape_name(row)
        chains.setdefault(chain, {})[kind(row)] = f"{row['ratio_p50']:.2f}"
    for chain, found in chains.items():
        lines.append(f"| {' | '.join((*chain, *(found.get(k, '') for k in kinds)))} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], file: Path) -> None:
    """Time of forward + backward as a share of torch's, a group of bars for each norm."""
    figure, panel = plt.subplots(figsize=(8.6, 5.2), layout="constrained")
    height = 0.8 / len(FUSIONS)
    for k, (fused, label) in enumerate(FUSIONS.items()):
        of_fusion = [row for row in rows if row["fused"] == fused]
        means = [mean_ratio(r for r in of_fusion if r["op"] == op) or 0.0 for op in NAMES]
        places = [n + (k - 1) * height for n in range(len(NAMES))]
        bars = panel.barh(places, means, height, label=label, color=COLOURS[k])
        panel.bar_label(bars, [f"{mean:.2f}" for mean in means], padding=3, fontsize=8)
    panel.set_yticks(range(len(NAMES)), list(NAMES.values()))
    panel.axvline(1, color="black", linewidth=1)
    panel.invert_yaxis()
    panel.set_xlim(right=1.15 * max(panel.get_xlim()[1], 1))
    panel.set_xlabel("time of forward + backward, torch's operators = 1 (shorter is faster)")
    panel.legend(loc="upper right")
    panel.spines[["top", "right"]].set_visible(False)
    row = rows[0]
    figure.supxlabel(
        f"CPU, not a GPU: {row['cpu']}, threads: {row['threads']}, torch {row['torch']}, eager; "
        f"geometric means\nof {len(rows)} rows (shapes, float32 and bfloat16, both layouts), each "
        "a median of pairs. *torch has none: its batch norm.",
        fontsize=8,
        color="0.35",
    )
    figure.savefig(file, dpi=130)
    plt.close(figure)


def measured() -> tuple[list[Row], list[Row]]:
    """Our rows in results/cpu.jsonl: the plain ones and the modulated ones."""
    rows = [row for row in read(RESULTS / "cpu.jsonl") if row["provider"] == "fastnorm"]
    return (
        [row for row in rows if row["fused"] in FUSIONS],
        [row for row in rows if row["fused"] in MODULATED],
    )


def main() -> None:
    """The command line."""
    rows, modulated_rows = measured()
    draw(rows, RESULTS / "cpu.png")
    print(f"{by_fusion(rows)}\n\n{by_shape(rows)}\n")
    print(modulated(modulated_rows), end="\n\n")
    worst = max(rows, key=lambda row: float(row["ratio_p50"]))
    print(
        f"{len(rows)} rows, mean {mean_ratio(rows):.2f}, largest {worst['ratio_p50']:.2f}: "
        f"{worst['op']} {shape_name(worst)} {worst['layout']} {worst['fused']} {worst['dtype']}"
    )


if __name__ == "__main__":
    main()
