"""The look of the report's figures: one colour for each norm; solid is ours, dashed torch's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart. Paul Tol's wine replaces their
# yellow, which is too pale for a line on white; his olive is a ninth.
COLOURS = {
    "none": "#000000",
    "bn": "#0072B2",
    "in": "#E69F00",
    "bin": "#009E73",
    "ln": "#CC79A7",
    "gn": "#D55E00",
    "rms": "#999933",
    "sn": "#56B4E9",
    "wn": "#882255",
}
WIDTH = 8.6  # inches; 100 to the inch fill a page of 900 pixels, so 9 points are 12.5 pixels
DPI = 170  # finer than shown, for sharp screens

mpl.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.25,
        "lines.linewidth": 1.3,
    }
)


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its file, its alternative text and its caption (Markdown)."""

    name: str
    figure: Figure
    alt: str
    caption: str


def new_figure(height: float) -> Figure:
    """As wide as the page, `height` inches high; it belongs to no window or global state."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def colour(name: str) -> str:
    """The colour for a run's or a norm's name."""
    return COLOURS[name.partition("-")[0]]


def line_style(name: str) -> dict[str, Any]:
    """Keyword arguments of plot() for a run's line."""
    return {"color": colour(name), "linestyle": "--" if name.endswith("-builtin") else "-"}


def grid_of_panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    """`count` panels with common axes, row by row; the rest of the last row stays empty."""
    lines = -(-count // columns)
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel in axes[count:]:
        panel.remove()
    for panel in axes[max(0, count - columns) : count]:
        panel.tick_params(labelbottom=True)
    for panel in axes[:count]:
        panel.xaxis.get_major_locator().set_params(integer=True)
    return list(axes[:count])


def mean_curve(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, minimum and maximum (epochs,) over curves, each cut to the shortest."""
    length = min(map(len, curves))
    stacked = np.stack([curve[:length] for curve in curves])
    return stacked.mean(0), stacked.min(0), stacked.max(0)
