"""Figures of the networks' inside: features, rho of BIN, weights of SN."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reporting.plot_style import COLOURS, Picture, colour, grid_of_panels, new_figure
from reporting.study_files import Missing, Run, Study
from reporting.wording import NO_NORM, conditions, label, unfinished_note

PLACES = {
    "last_conv": "output of the last convolution, before its norm and ReLU",
    "pooled": "features after global average pooling, which the linear layer reads",
}
DIVERGED = 8.0  # times the narrower fan: beyond, a linear axis would show only one of them


def draw_features(study: Study, place: str) -> Picture:
    """Percentiles of `place`, a key of PLACES, over training: each norm against none."""
    fans = {
        name: fan for name in study.variants if (fan := first_run_with(study, name, "features"))
    }
    if not study.alone:
        fans.pop("bn-builtin", None)  # it would repeat bn's
    norms = [name for name in fans if study.alone or name != "none"]
    if not norms:
        raise Missing("No norm has percentiles of its features in metrics.jsonl yet.")
    values = {name: percentiles(run, place) for name, run in fans.items()}
    figure = new_figure(0.7 + 2.2 * -(-len(norms) // 4))
    panels = grid_of_panels(figure, len(norms), min(4, len(norms)))
    for panel, name in zip(panels, norms, strict=True):
        draw_fan(panel, fans[name], values[name], colour(name))
        if "none" in fans and not study.alone:
            panel.plot(fans["none"].epochs(), values["none"], color="black", linewidth=0.8)
        panel.set_title(label(name), loc="left")
    asinh = scale_to(panels, list(values.values()))
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("value", fontsize=9)
    key = [
        Patch(color="0.3", alpha=0.25, label="1st to 99th percentile"),
        Patch(color="0.3", alpha=0.7, label="20th to 80th"),
        Line2D([], [], color="black", linewidth=0.8, label=f"the same four, {NO_NORM}"),
    ]
    compared = "none" in fans and not study.alone
    handles = key if compared else key[:2]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    shown = list(fans.values())
    absent = (
        ""
        if "none" in fans or study.alone
        else f" The network with {NO_NORM} is not there yet to compare."
    )
    axis = " The axis is linear near 0 and logarithmic beyond." if asinh else ""
    return Picture(
        f"features_{place}",
        figure,
        alt=f"Fans of percentiles over training of the {PLACES[place]}, one panel for each norm",
        caption=f"Percentiles of the {PLACES[place]}, on fixed validation images, "
        f"{'' if study.alone else f'each norm (coloured) against {NO_NORM} (black lines): '}"
        f"{conditions(shown)}.{axis}{absent}"
        f"{unfinished_note(shown)}",
    )


def first_run_with(study: Study, name: str, key: str) -> Run | None:
    """The run of `name` with the lowest seed, if its rows have `key`."""
    runs = [run for run in study.curves(name) if key in run.rows[0]]
    return runs[0] if runs else None


def percentiles(run: Run, place: str) -> np.ndarray:
    """float64 (epochs, 4): the percentiles 1, 20, 80, 99."""
    return np.array([row["features"][place] for row in run.rows], dtype=np.float64)


def draw_fan(panel: Axes, run: Run, values: np.ndarray, fill: str) -> None:
    """The two ranges of (epochs, 4) percentiles as a pale and a full band."""
    for low, high, alpha in ((0, 3, 0.25), (1, 2, 0.6)):
        panel.fill_between(
            run.epochs(), values[:, low], values[:, high], color=fill, alpha=alpha, linewidth=0
        )


def scale_to(panels: Sequence[Axes], fans: Sequence[np.ndarray]) -> bool:
    """Whether the y axis was made asinh, so that the narrowest and the widest fan are both seen."""
    ends = [float(np.nanmax(np.abs(fan))) for fan in fans]
    narrow, wide = min(ends), max(ends)
    if narrow == 0 or wide <= DIVERGED * narrow:
        return False
    linear = narrow / 3
    marks = round_values(linear, wide)
    for panel in panels:
        panel.set_yscale("asinh", linear_width=linear)  # symlog without its kink
        low, high = panel.get_ylim()
        ticks = [*(-mark for mark in marks), 0.0, *marks]
        panel.set_yticks([tick for tick in ticks if low <= tick <= high])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
    return True


def round_values(low: float, high: float) -> list[float]:
    """At most four of 1, 3, 10, 30, ... from `low` to `high`, the largest among them."""
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    found = [digit * 10.0**k for k in decades for digit in (1, 3) if low <= digit * 10.0**k <= high]
    return found[:: -max(1, -(-len(found) // 4))]


def draw_rho(study: Study) -> Picture:
    """The distribution of BIN's rho over the channels of each layer, epoch by epoch."""
    run = first_run_with(study, "bin", "rho")
    if run is None:
        raise Missing("No run of BIN has histograms of rho in metrics.jsonl yet.")
    layers = list(run.rows[0]["rho"])
    figure = new_figure(0.6 + 1.6 * -(-len(layers) // 5))
    panels = grid_of_panels(figure, len(layers), 5)
    shades = LinearSegmentedColormap.from_list("bin", ["white", COLOURS["bin"], "#00281d"])
    scale = PowerNorm(0.5, vmin=0, vmax=100)

    for panel, layer in zip(panels, layers, strict=True):
        counts = np.array([row["rho"][layer]["histogram"] for row in run.rows], dtype=np.float64)
        share = 100 * counts / counts.sum(1, keepdims=True)
        edges = np.append(run.epochs() - 0.5, run.epochs()[-1] + 0.5)
        bins = np.linspace(0, 1, counts.shape[1] + 1)
        panel.pcolormesh(edges, bins, share.T, cmap=shades, norm=scale)
        means = [row["rho"][layer]["mean"] for row in run.rows]
        panel.plot(run.epochs(), means, color="black", linewidth=1.0)
        panel.set_title(layer, loc="left", fontsize=8)
        panel.grid(visible=False)
    bar = figure.colorbar(
        ScalarMappable(scale, shades), ax=panels, aspect=40, pad=0.01, ticks=[0, 5, 20, 50, 100]
    )
    bar.set_label("% of the layer's channels")
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("rho: 1 is batch norm, 0 instance norm", fontsize=9)
    return Picture(
        "rho",
        figure,
        alt="Histograms of BIN's rho over training, one panel for each layer",
        caption=f"BIN's rho in each layer over training: shades are the share of the layer's "
        f"channels, the line is their mean; all begin at 1, which is batch norm. "
        f"{conditions([run])}.{unfinished_note([run])}",
    )


def draw_switch(study: Study) -> Picture:
    """SN's weights for the statistics of IN, LN and BN in each layer, epoch by epoch."""
    run = first_run_with(study, "sn", "switch")
    if run is None:
        raise Missing("No run of SN has its weights in metrics.jsonl.")
    layers = list(run.rows[0]["switch"])
    figure = new_figure(0.8 + 1.6 * -(-len(layers) // 5))
    panels = grid_of_panels(figure, len(layers), 5)
    looks: dict[str, Literal["-", ":"]] = {"mean": "-", "var": ":"}
    for panel, layer in zip(panels, layers, strict=True):
        for moment, style in looks.items():
            weights = np.array([row["switch"][layer][moment] for row in run.rows])
            for norm, column in zip(("in", "ln", "bn"), weights.T, strict=True):
                panel.plot(run.epochs(), column, style, color=COLOURS[norm])
        panel.set_title(layer, loc="left", fontsize=8)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(min(low, 0.2), max(high, 0.5))  # so that noise does not fill the panels
    key = [
        *(Patch(color=COLOURS[norm], label=label(norm)) for norm in ("in", "ln", "bn")),
        *(Line2D([], [], color="0.3", linestyle=looks[k], label=k) for k in looks),
    ]
    figure.legend(handles=key, loc="outside upper center", ncols=5)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("weight", fontsize=9)
    return Picture(
        "switch",
        figure,
        alt="SN's weights of the IN, LN and BN statistics over training, one panel for each layer",
        caption=f"SN's weights of the statistics that it mixes, for the mean (solid) and the "
        f"variance (dotted); they add up to 1 and begin at 1/3. {conditions([run])}."
        f"{unfinished_note([run])}",
    )
