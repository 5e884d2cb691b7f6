"""`python -m benchmarks.plot_cpu`: results/cpu.png, the rows of results/cpu.jsonl as a figure."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.plot import COLOURS
from benchmarks.rows import Row, read

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "in": "instance norm",
    "bn": "batch norm",
    "gn": "group norm",
    "ln": "layer norm",
    "bin": "batch-instance norm*",
}


def draw(rows: Sequence[Row], file: Path) -> None:
    """Time of forward + backward as a share of torch's, one bar a norm and shape."""
    ours = [row for row in rows if row["provider"] == "fastnorm"]
    figure, panel = plt.subplots(figsize=(8.6, 5.2), layout="constrained")
    labels = [f"{NAMES[row['op']]}  {' x '.join(map(str, row['shape']))}" for row in ours]
    ratios = [row["ratio_p50"] for row in ours]
    colours = [COLOURS["fastnorm"] if ratio <= 1 else COLOURS["eager"] for ratio in ratios]
    bars = panel.barh(labels, ratios, color=colours)
    panel.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3)
    panel.axvline(1, color="black", linewidth=1)
    panel.invert_yaxis()
    panel.set_xlim(0, 1.15 * max(ratios))
    panel.set_xlabel("time of forward + backward, torch's operator = 1 (shorter is faster)")
    panel.spines[["top", "right"]].set_visible(False)
    row = ours[0]
    figure.supxlabel(
        f"CPU, not a GPU: {row['cpu']}, {row['threads']} threads, torch {row['torch']}, float32, "
        "medians of pairs. *torch has none: against its batch norm.",
        fontsize=8,
        color="0.35",
    )
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> None:
    """The command line."""
    draw(read(RESULTS / "cpu.jsonl"), RESULTS / "cpu.png")


if __name__ == "__main__":
    main()
