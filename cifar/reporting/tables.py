"""The report's tables and their explanations; Missing if there are no data."""

from collections.abc import Sequence

from harness.plan import BATCH_NORMS
from reporting.comparisons import (
    Comparison,
    batch_runs,
    builtin_pairs,
    by_seed,
    compare,
    finished_variants,
    pooled_counts,
)
from reporting.overview import PUBLISHED_STUDY
from reporting.plot_style import COLOURS
from reporting.significance import Pair, mcnemar
from reporting.speeds import NO_SPEEDS, PROVIDERS, provider_name, speed_groups
from reporting.study_files import Missing, Row, Run, Study
from reporting.wording import escape, label, listing, p_value, spread, table

# Accuracies of the training, validation and test split in the published study. Its BIN's rho never
# trained, so that row is another run of BN; here rho trains.
PUBLISHED = {
    "bn-builtin": (0.970, 0.881, 0.879),
    "none": (0.915, 0.833, 0.849),
    "bn": (0.977, 0.880, 0.878),
    "in": (0.923, 0.851, 0.847),
    "bin": (0.977, 0.876, 0.881),
    "ln": (0.911, 0.849, 0.849),
    "gn": (0.937, 0.861, 0.858),
}


SCORES_NOTE = (
    "Accuracy of the last weights on each split's own images, neither cropped nor mirrored; F1 on "
    "the test split; n seeds, mean ± standard deviation where there are several."
)
PUBLISHED_NOTE = (
    f" Published is what plain SGD reached in 100 epochs of the original CIFAR-10: "
    f"{PUBLISHED_STUDY}. There BIN's rho never trained, so its BIN was BN in truth; here it trains."
)


def score(runs: Sequence[Run], split: str, metric: str = "accuracy") -> str:
    """Mean ± standard deviation over the runs."""
    return spread([run.results[split][metric] for run in runs])


def scores_table(study: Study) -> str:
    """Accuracies and F1 of each variant; for CIFAR-10 with the published accuracies."""
    found = finished_variants(study)
    if not found:
        raise Missing("No run of a variant has finished yet: no scores.")
    what = "norm" if study.alone else "variant"
    header = [what, "n", "train", "val", "test", "micro F1", "macro F1"]
    rows = [
        [
            label(name),
            str(len(runs)),
            *(score(runs, split) for split in ("train", "val", "test")),
            *(score(runs, "test", metric) for metric in ("micro_f1", "macro_f1")),
        ]
        for name, runs in found.items()
    ]
    if not study.cifar10():
        return f"{table(header, rows)}\n\n{SCORES_NOTE}"
    for name, row in zip(found, rows, strict=True):
        published = PUBLISHED.get(name)
        row.append(" / ".join(f"{value:.3f}" for value in published) if published else "–")
    header.append("published: train / val / test")
    return f"{table(header, rows)}\n\n{SCORES_NOTE}{PUBLISHED_NOTE}"


def mcnemar_matrix(comparison: Comparison) -> str:
    """p values below the diagonal; above it the row's lead, in points of %."""
    rows = []
    for i, first in enumerate(comparison.names):
        cells = []
        for j, second in enumerate(comparison.names):
            ahead = 100 * (comparison.accuracies[first] - comparison.accuracies[second])
            if i > j:
                cells.append(p_value(comparison.mcnemar[second, first]))
            else:
                cells.append(f"{ahead:+.1f}" if i < j else "·")
        rows.append([f"{label(first)} {comparison.accuracies[first]:.3f}", *cells])
    return table(["", *map(label, comparison.names)], rows)


def welch_matrix(comparison: Comparison) -> str:
    """p values below the diagonal; a dash if no accuracy varies with the seed."""
    rows = []
    for i, first in enumerate(comparison.names[1:], start=1):
        ps = [comparison.welch.get((second, first)) for second in comparison.names[:i]]
        cells = ["–" if p is None else p_value(p) for p in ps]
        rows.append([label(first), *cells, *[""] * (len(comparison.names) - 1 - i)])
    return table(["", *map(label, comparison.names[:-1])], rows)


def groups_list(comparison: Comparison, p_values: dict[Pair, float]) -> str:
    """A line for each group that cannot be told apart."""
    return "\n".join(
        "- " + listing([f"{label(name)} {comparison.accuracies[name]:.3f}" for name in group])
        for group in comparison.groups(p_values)
    )


ONE_SEED = (
    "There is one seed ({seeds}) that all have finished, so this is about these trained networks: "
    "another seed may change the order."
)
POOLED = (
    "The images that only one of two networks gets right are counted in each of the seeds {seeds} "
    "and added up. The test takes these counts for independent, though the images are the same "
    "each time, and it knows nothing of the spread over seeds: its p values are too small. Welch's "
    "test, below, has that spread, but little power with few seeds."
)


def significance(study: Study) -> str:
    """The groups that cannot be told apart, then the tests of all pairs."""
    comparison = compare(study)
    several = len(comparison.seeds) > 1
    caution = (POOLED if several else ONE_SEED).format(seeds=listing([*map(str, comparison.seeds)]))
    parts = [
        "Not distinguishable at 5% by McNemar's exact test on the test predictions, corrected for "
        f"the number of pairs by Holm's rule; a variant may be in several groups. {caution}",
        groups_list(comparison, comparison.mcnemar),
        "Corrected p below the diagonal, bold below 0.05; above it by how many points of % the "
        "row's test accuracy is ahead of the column's.",
        mcnemar_matrix(comparison),
    ]
    if comparison.welch:
        parts += [
            "Not distinguishable at 5% by Welch's t-test of the seeds' test accuracies, corrected "
            "by Holm's rule:",
            groups_list(comparison, comparison.welch),
            welch_matrix(comparison),
        ]
    return "\n\n".join(parts)


UNCORRECTED = "p is of McNemar's exact test, over all seeds together, not corrected."


def builtin_table(study: Study) -> str:
    """Test accuracy with our modules and with torch's, and whether they differ."""
    rows = [
        [
            label(pair.norm),
            spread(pair.ours),
            spread(pair.theirs),
            f"{pair.ahead():+.2f}",
            p_value(pair.p),
            str(len(pair.ours)),
        ]
        for pair in builtin_pairs(study)
    ]
    header = ["norm", "fastnorm", "torch.nn", "difference, points", "p (McNemar)", "n"]
    return f"{table(header, rows)}\n\nTest accuracy, n seeds. {UNCORRECTED}"


def batch_table(study: Study) -> str:
    """Test and training accuracy of BN and GN at each batch size, and whether the tests differ."""
    found = batch_runs(study)
    rows = []
    for size in dict.fromkeys(size for size, _ in found):
        pair = [found.get((size, norm), []) for norm in BATCH_NORMS]
        tests, trains = (
            [score(runs, split) if runs else "–" for runs in pair] for split in ("test", "train")
        )
        first, second = map(by_seed, pair)
        seeds = sorted(set(first) & set(second))
        p = p_value(mcnemar(*pooled_counts(first, second, seeds))) if seeds else "–"
        counts = " / ".join(dict.fromkeys(str(len(runs)) for runs in pair))
        rows.append([str(size), *tests, p, *trains, counts])
    names = [*map(label, BATCH_NORMS)]
    header = ["batch", *(f"{name}, test" for name in names), "p (McNemar)"]
    header += [*(f"{name}, train" for name in names), "n"]
    return f"{table(header, rows)}\n\nAccuracy of the last weights, n seeds. {UNCORRECTED}"


SPEED_NOTE = (
    "Whole training steps, median and 20th to 80th percentile; × torch.nn is the median of ratios "
    "measured in pairs with torch.nn's modules of the same norm, eager. A dash: torch.nn has no "
    "such norm, or memory was not measured."
)


def speed_tables(study: Study) -> str:
    """A table for each set of conditions: images/s, ratio, seconds an epoch, memory."""
    if not study.speed:
        raise Missing(NO_SPEEDS)
    parts = []
    for title, rows in speed_groups(study.speed).items():
        header = ["norm, by", "images/s", "20–80%", "× torch.nn", "s/epoch", "peak MiB"]
        parts.append(
            f"**{escape(title)}**\n\n{table(header, map(_speed_row, sorted(rows, key=_order)))}"
        )
    return "\n\n".join([*parts, SPEED_NOTE])


def _order(row: Row) -> tuple[int, int]:
    return list(COLOURS).index(row["norm"]), list(PROVIDERS).index(row["provider"])


def _speed_row(row: Row) -> list[str]:
    peak, ratio = row.get("peak_mib"), row.get("ratio")
    return [
        f"{label(row['norm'])}, {provider_name(row)}",
        f"{row['images_per_second']:,.0f}",
        f"{row['p20']:,.0f}–{row['p80']:,.0f}",
        "–" if ratio is None else f"{ratio:.2f}",
        f"{row['epoch_seconds']:.1f}",
        "–" if peak is None else f"{peak:,.0f}",
    ]
