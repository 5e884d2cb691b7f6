"""Figures of the scores and speeds; each function raises Missing if its data are missing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harness.plan import BATCH_NORMS
from reporting.comparisons import batch_runs
from reporting.plot_style import (
    COLOURS,
    Picture,
    colour,
    line_style,
    mean_curve,
    new_figure,
)
from reporting.speeds import NO_SPEEDS, provider_name, speed_groups
from reporting.study_files import TWINS, Missing, Run, Study
from reporting.wording import (
    conditions,
    escape,
    label,
    learning_rates,
    lengths,
    listing,
    seeds,
    several_seeds,
    unfinished_note,
)

ENLARGED = 8  # with this many epochs the last quarter gets its own panel
SPLITS = {"val_accuracy": "validation accuracy", "train_accuracy": "training accuracy"}


def draw_mean(panel: Axes, runs: Sequence[Run], key: str, first: int = 1, **style: Any) -> None:
    """The mean curve over runs from epoch `first` on, and their range as a band."""
    mean, low, high = mean_curve([run.column(key) for run in runs])
    epochs = runs[0].epochs()[: len(mean)]
    shown = epochs >= first
    name = runs[0].name
    marker = "." if shown.sum() == 1 else ""  # with one epoch there is no line
    look = {**line_style(name), "marker": marker, **style}
    panel.plot(epochs[shown], mean[shown], label=label(name), **look)
    if len(runs) > 1:
        panel.fill_between(
            epochs[shown], low[shown], high[shown], color=colour(name), alpha=0.15, linewidth=0
        )


def band_note(runs: Sequence[Run]) -> str:
    """The meaning of lines and bands, if there are several seeds."""
    if not several_seeds(runs):
        return ""
    return " A line is the mean over seeds, its band reaches from the lowest to the highest."


def last_accuracy(runs: Sequence[Run]) -> float:
    """The accuracy on the validation split after the last epoch, mean over runs."""
    return float(np.mean([run.rows[-1]["val_accuracy"] for run in runs]))


def draw_accuracy(study: Study) -> Picture:
    """Validation and training accuracy of all variants, whole and the last quarter enlarged."""
    curves = {name: runs for name in study.variants if (runs := study.curves(name))}
    if not curves:
        raise Missing("No variant has finished an epoch yet: no curves to show.")
    ranked = sorted(curves, key=lambda name: -last_accuracy(curves[name]))
    last = max(len(run.rows) for runs in curves.values() for run in runs)
    starts = (1, 1 + last * 3 // 4) if last >= ENLARGED else (1,)
    figure = new_figure(7.4)
    lines = figure.subplots(
        2, len(starts), sharex="col", width_ratios=(1.6, 1)[: len(starts)], squeeze=False
    )
    for line, (key, title) in zip(lines, SPLITS.items(), strict=True):
        for panel, first in zip(line, starts, strict=True):
            for name in ranked:
                draw_mean(panel, curves[name], key, first)
        line[0].set_ylabel(title)
    for panel, below, first in zip(*lines, starts, strict=True):
        panel.set_title("all epochs" if first == 1 else f"from epoch {first} on", loc="left")
        below.set_xlabel("epoch")
        below.xaxis.get_major_locator().set_params(integer=True)
    handles, texts = lines[0][0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper center", ncols=min(len(texts), 9))
    shown = [run for runs in curves.values() for run in runs]
    order = (
        " The key names the variants from the best to the worst by their last validation accuracy."
        if len(curves) > 1
        else ""
    )
    return Picture(
        "accuracy",
        figure,
        alt=f"Curves of validation and training accuracy over the epochs: {', '.join(texts)}",
        caption=f"Accuracy over training: {conditions(shown)}.{order} Training accuracy is "
        f"taken in passing, on augmented batches, so it is not that of the table.{band_note(shown)}"
        f"{unfinished_note(shown)}",
    )


def draw_builtin(study: Study) -> Picture:
    """Validation accuracy and training loss of ours and torch's, norm by norm."""
    pairs = [
        (norm, ours, theirs)
        for norm in TWINS
        if (ours := study.curves(norm)) and (theirs := study.curves(f"{norm}-builtin"))
    ]
    if not pairs:
        raise Missing("No norm has begun both with fastnorm and with torch.nn.")
    figure = new_figure(5.0)
    lines = figure.subplots(2, len(pairs), sharex="col", sharey="row", squeeze=False)
    for column, (norm, ours, theirs) in zip(lines.T, pairs, strict=True):
        for panel, key in zip(column, ("val_accuracy", "train_loss"), strict=True):
            draw_mean(panel, ours, key, linewidth=3.0, alpha=0.4)
            draw_mean(panel, theirs, key)
        column[0].set_title(label(norm), loc="left")
        column[1].set_xlabel("epoch")
        column[1].xaxis.get_major_locator().set_params(integer=True)
    lines[0, 0].set_ylabel("validation accuracy")
    lines[1, 0].set_ylabel("training loss")
    handles = (
        Line2D([], [], color="0.2", linewidth=3.0, alpha=0.4, label="fastnorm"),
        Line2D([], [], color="0.2", linestyle="--", label="torch.nn"),
    )
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    shown = [run for _, ours, theirs in pairs for run in (*ours, *theirs)]
    return Picture(
        "builtin",
        figure,
        alt="Validation accuracy and training loss with fastnorm, and with torch.nn drawn over it",
        caption=f"fastnorm's modules (wide, pale) and torch.nn's (dashed) from the same weights on "
        f"the same batches: {conditions(shown)}. The curves should coincide at first and tell the "
        f"same story to the end. They need not be equal: each rounds differently, and training "
        f"amplifies that, most of all while the learning rate is high.{band_note(shown)}"
        f"{unfinished_note(shown)}",
    )


def draw_batch_sizes(study: Study) -> Picture:
    """Test error of BN and GN by batch size: a bar for the mean, a dot for each seed."""
    found = batch_runs(study)
    sizes = list(dict.fromkeys(size for size, _ in found))
    figure = new_figure(3.6)
    panel = figure.subplots()
    for side, norm in zip((-0.2, 0.2), BATCH_NORMS, strict=True):
        errors = {
            k + side: [100 * (1 - run.accuracy("test")) for run in found[size, norm]]
            for k, size in enumerate(sizes)
            if (size, norm) in found
        }
        means = [float(np.mean(values)) for values in errors.values()]
        bars = panel.bar(list(errors), means, 0.38, color=colour(norm), label=label(norm))
        panel.bar_label(bars, [f"{mean:.1f}" for mean in means], padding=3)
        for place, values in errors.items():
            if len(values) > 1:
                panel.plot([place] * len(values), values, ".", color="black", markersize=4)
    panel.set_xticks(range(len(sizes)), map(str, sizes))
    panel.set_xlabel("images in a batch")
    panel.set_ylabel("test error, %")
    panel.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=2)
    runs = [run for group in found.values() for run in group]
    return Picture(
        "batch",
        figure,
        alt="Bars of the test error of BN and GN at batch sizes " + listing([*map(str, sizes)]),
        caption=f"Test error by batch size, lower is better: {escape(runs[0].dataset)}, "
        f"{lengths(runs)} each, {seeds(runs)}, {learning_rates(runs)}. "
        f"{'A bar is the mean, a dot one seed. ' if several_seeds(runs) else ''}"
        f"Chance is {100 - 100 / len(runs[0].class_names()):.0f}%.",
    )


def draw_speed(study: Study) -> Picture:
    """Training speed by norm: a panel for each set of conditions, a bar for each provider."""
    groups = speed_groups(study.speed)
    if not groups:
        raise Missing(NO_SPEEDS)
    providers = list(dict.fromkeys(map(provider_name, study.speed)))
    figure = new_figure(0.5 + 2.5 * len(groups))
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for panel, (title, rows) in zip(panels, groups.items(), strict=True):
        norms = [norm for norm in COLOURS if any(row["norm"] == norm for row in rows)]
        width = 0.84 / len(providers)
        for row in rows:
            k = providers.index(provider_name(row))
            place = norms.index(row["norm"]) + (k - (len(providers) - 1) / 2) * width
            speed = row["images_per_second"]
            errors = [[speed - row["p20"]], [row["p80"] - speed]]
            look = provider_look(provider_name(row), COLOURS[row["norm"]])
            panel.bar(place, speed, 0.9 * width, yerr=errors, ecolor="0.3", capsize=2, **look)
        panel.set_xticks(range(len(norms)), map(label, norms))
        panel.set_title(title, loc="left")
        panel.set_ylabel("images/s")
        panel.yaxis.set_major_formatter("{x:,.0f}")
        panel.grid(axis="x", visible=False)
    key = [Patch(**provider_look(name, "0.35"), label=name) for name in providers]
    figure.legend(handles=key, loc="outside upper center", ncols=len(key))
    return Picture(
        "speed",
        figure,
        alt="Bars of the training speed in images per second for each norm and provider",
        caption="Training speed, higher is better: a bar is the median, its whisker reaches from "
        "the 20th to the 80th percentile. Full bars are fastnorm's, pale ones torch.nn's.",
    )


def provider_look(name: str, fill: str) -> dict[str, Any]:
    """Keyword arguments of a bar: full for ours, pale with a dashed edge for torch's."""
    hatch = "///" if "compile" in name else None
    if name.startswith("torch.nn"):
        face = (*to_rgb(fill), 0.25)
        return {"facecolor": face, "edgecolor": fill, "linestyle": "--", "hatch": hatch}
    return {"facecolor": fill, "edgecolor": "white" if hatch else fill, "hatch": hatch}
