"""Figures of the networks' errors: confusion matrices and misclassified images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from sklearn.metrics import confusion_matrix  # type: ignore[import-untyped]

from harness.datasets import DIGITS_NAME, Split, load_dataset, load_digits
from harness.errors import UserError
from harness.recipes import RECIPES
from reporting.comparisons import best_of
from reporting.plot_style import Picture, new_figure
from reporting.study_files import Missing, Run, Study
from reporting.wording import NO_NORM, conditions, escape, label

SHOWN, COLUMNS = 24, 8  # misclassified images
CLASSES = 20  # in a matrix, at most, so that its numbers are readable


def answered(study: Study, name: str) -> list[Run]:
    """The finished runs of `name` that kept their predictions."""
    return [run for run in study.finished(name) if run.answers is not None]


def best_variant(study: Study) -> str:
    """The best of the variants that kept their predictions; see best_of."""
    found = {name: runs for name in study.variants if (runs := answered(study, name))}
    if not found:
        raise Missing("No variant has finished with its predictions yet.")
    return best_of(found)


def confusion(runs: Sequence[Run]) -> np.ndarray:
    """float64 (classes, classes): % of a class (row) given each label (column), over all runs."""
    classes = len(runs[0].class_names())
    total = np.zeros((classes, classes))
    for run in runs:
        assert run.answers is not None
        labels, predictions = run.answers
        total += confusion_matrix(labels, predictions, labels=range(classes))
    return 100 * total / np.maximum(total.sum(1, keepdims=True), 1)


def hardest(values: np.ndarray) -> np.ndarray:
    """At most CLASSES classes, those with the most errors in a confusion matrix; in order."""
    return np.sort(values.diagonal().argsort(kind="stable")[:CLASSES])


def draw_matrix(
    panel: Axes,
    shades: np.ndarray,
    texts: np.ndarray,
    names: Sequence[str],
    colours: ScalarMappable,
) -> None:
    """Draw (classes, classes) values as colours and texts; rows are true, columns predicted."""
    pixels = colours.to_rgba(np.ma.masked_invalid(shades))
    panel.imshow(pixels)
    for (i, j), text in np.ndenumerate(texts):
        red, green, blue, _ = pixels[i, j]
        ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
        panel.text(j, i, text, ha="center", va="center", color=ink)
    panel.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(names)), names)
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)


def draw_confusion(study: Study) -> Picture:
    """The confusion matrix of the best variant."""
    name = best_variant(study)
    runs = answered(study, name)
    whole = confusion(runs)
    kept = hardest(whole)
    values = whole[np.ix_(kept, kept)]
    names = [runs[0].class_names()[k] for k in kept]
    figure = new_figure(2.0 + 0.36 * len(names))
    shades = np.where(np.eye(len(names), dtype=bool), np.nan, values)
    shading = colormaps["YlOrBr"].with_extremes(bad="0.93")  # the diagonal: it shows no errors
    colours = ScalarMappable(Normalize(0, np.nanmax(shades)), shading)
    texts = np.vectorize(lambda value: f"{value:.0f}" if value > 0.5 else "")(values)
    draw_matrix(figure.subplots(), shades, texts, names, colours)
    diagonal = values.diagonal()
    best = "" if study.alone else ", the best on the validation split,"
    off = np.unravel_index(np.nanargmax(shades), shades.shape)
    return Picture(
        "confusion",
        figure,
        alt=f"Confusion matrix of {label(name)} on the test split",
        caption=f"What {label(name)}{best} takes the test images for, in % of the true class "
        f"(below 0.5 left out): {conditions(runs)}.{kept_note(kept, whole)} "
        f"Most often right: {escape(names[diagonal.argmax()])}; least: "
        f"{escape(names[diagonal.argmin()])}; most frequent confusion: "
        f"{escape(names[off[0]])} taken for {escape(names[off[1]])}.",
    )


def kept_note(kept: np.ndarray, whole: np.ndarray) -> str:
    """A sentence if not all classes are shown."""
    if len(kept) == len(whole):
        return ""
    return f" Of {len(whole)} classes the {len(kept)} hardest."


def draw_confusion_change(study: Study) -> Picture:
    """The confusions of the best variant, compared with the network without norm."""
    name = best_variant(study)
    runs, plain = answered(study, name), answered(study, "none")
    if not plain:
        raise Missing(f"The run with {NO_NORM} is not finished: no change to show.")
    if name == "none":
        raise Missing(f"The best variant is the one with {NO_NORM}: no change to show.")
    whole = confusion(runs)
    kept = hardest(whole)
    change = (whole - confusion(plain))[np.ix_(kept, kept)]
    names = [runs[0].class_names()[k] for k in kept]
    better = np.where(np.eye(len(names), dtype=bool), change, -change)
    largest = float(np.abs(better).max()) or 1.0
    colours = ScalarMappable(Normalize(-largest, largest), colormaps["RdBu"])
    texts = np.vectorize(lambda value: f"{value:+.0f}" if abs(value) > 0.5 else "")(change)
    figure = new_figure(2.0 + 0.36 * len(names))
    draw_matrix(figure.subplots(), better, texts, names, colours)
    return Picture(
        "confusion_change",
        figure,
        alt=f"Confusion matrix of {label(name)} less that of {NO_NORM}",
        caption=f"What changes from {NO_NORM} to {label(name)}, in points of % of the true class: "
        f"blue is better (more on the diagonal, less elsewhere), red is worse. "
        f"{conditions([*runs, *plain])}.{kept_note(kept, whole)}",
    )


def read_test_split(run: Run, data_dir: Path | None) -> Split:
    """The test split of `run`: from --data-dir, or the digits, which need none."""
    if run.dataset == DIGITS_NAME:
        return load_digits().test
    if data_dir is None:
        raise Missing("Pass `--data-dir FOLDER` to see the images that it gets wrong.")
    share = RECIPES[run.flags["recipe"]].validation_share
    return load_dataset(run.flags["dataset"], data_dir, None, share).test


def draw_misclassified(study: Study, data_dir: Path | None) -> Picture:
    """The best variant's surest errors among the test images, and how many variants share each."""
    name = best_variant(study)
    run = answered(study, name)[0]
    split = read_test_split(run, data_dir)
    assert run.answers is not None
    labels, predictions = run.answers
    # A run in Triton's interpreter evaluates fewer, the first ones.
    if not np.array_equal(split.labels.numpy()[: len(labels)], labels):
        raise UserError(f"--data-dir {data_dir}: its test labels are not those of {run.folder}")
    others = [found[0] for variant in study.variants if (found := answered(study, variant))]
    wrong = sum((other.answers[1] != labels).astype(int) for other in others if other.answers)
    sure, errors = run.confidences, np.flatnonzero(predictions != labels)
    if sure is not None:
        errors = errors[np.argsort(-sure[errors], kind="stable")]
    order = "in the split's order" if sure is None else "the surest errors first"
    chosen = errors[:SHOWN]
    if not len(chosen):
        raise Missing(f"{label(name)} gets every test image right.")
    names = run.class_names()
    share = "" if study.alone else f", and how many of the {len(others)} variants get it wrong"
    lines = -(-len(chosen) // COLUMNS)
    figure = new_figure(1.55 * lines)
    panels = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
    for panel in panels:
        panel.axis("off")
    for panel, k in zip(panels, chosen, strict=False):
        panel.imshow(split.images[k].permute(1, 2, 0).numpy())
        text = f"{names[labels[k]]}\n→ {names[predictions[k]]}"
        text += "" if sure is None else f" {100 * sure[k]:.0f}%"
        if not study.alone:
            text += f"\n{wrong[k]} of {len(others)} wrong"
        panel.set_title(text, fontsize=8)
    return Picture(
        "misclassified",
        figure,
        alt=f"{len(chosen)} test images that {label(name)} gets wrong",
        caption=f"The first {len(chosen)} of the {len(errors):,} test images that "
        f"{label(name)} (seed {run.seed}) gets wrong, {order}: the true class, what it is taken "
        f"for{'' if sure is None else ' and with what probability'}{share}.",
    )
