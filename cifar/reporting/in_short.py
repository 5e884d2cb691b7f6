"""The report's first lines: one sentence for each question that the data can answer."""

from collections.abc import Sequence

import numpy as np

from harness.plan import BATCH_NORMS
from reporting.comparisons import batch_runs, best_of, builtin_pairs, compare, finished_variants
from reporting.speeds import speed_groups
from reporting.study_files import Missing, Run, Study
from reporting.wording import escape, label, lengths, listing, spread


def in_short(study: Study) -> list[str]:
    """The sentences for which there are data."""
    lines = []
    for sentence in (alone, best_and_worst, indistinct, against_torch, small_batches, speed):
        try:
            lines.append(sentence(study))
        except Missing:
            continue
    return lines


def accuracies(runs: Sequence[Run]) -> str:
    """The accuracies on the validation and the test split."""
    val, test = (spread([run.accuracy(split) for run in runs]) for split in ("val", "test"))
    return f"{val} (test {test})"


def alone(study: Study) -> str:
    """The scores of a single run."""
    found = finished_variants(study)
    if not study.alone or not found:
        raise Missing("a study, or an unfinished run")
    ((name, runs),) = found.items()
    return f"**{label(name)}**: validation accuracy {accuracies(runs)}."


def best_and_worst(study: Study) -> str:
    """The best and the worst by validation accuracy: the test split must not choose."""
    found = finished_variants(study)
    if len(found) < 2:
        raise Missing("fewer than two variants")
    means = {name: np.mean([run.accuracy("val") for run in runs]) for name, runs in found.items()}
    worst = min(found, key=lambda name: means[name])
    try:
        best = best_of(found)
    except Missing as none:
        return str(none)
    return (
        f"Best validation accuracy: **{label(best)}**, {accuracies(found[best])}; worst: "
        f"**{label(worst)}**, {accuracies(found[worst])}; {len(found)} variants."
    )


def indistinct(study: Study) -> str:
    """The variants that the test predictions cannot tell apart."""
    comparison = compare(study)
    tests = {"McNemar's test of the predictions": comparison.mcnemar}
    if comparison.welch:
        tests["Welch's test of the seeds' accuracies"] = comparison.welch
    texts = []
    for test, p_values in tests.items():
        groups = [group for group in comparison.groups(p_values) if len(group) > 1]
        names = "; ".join(listing([*map(label, group)]) for group in groups)
        texts.append(f"{names or 'none'} (by {test})")
    return f"Test accuracies not distinguishable at 5%: {'. '.join(texts)}."


def against_torch(study: Study) -> str:
    """The difference between our modules and torch's."""
    pairs = builtin_pairs(study)
    widest = max(pairs, key=lambda pair: abs(pair.ahead()))
    norms = listing([label(pair.norm) for pair in pairs])
    return (
        f"fastnorm against torch.nn ({norms}): the test accuracies differ by at most "
        f"{abs(widest.ahead()):.2f} points ({label(widest.norm)})."
    )


def small_batches(study: Study) -> str:
    """Test accuracy at the smallest and at the largest batch size that both norms have."""
    found = batch_runs(study)
    sizes = [size for size, _ in found if all((size, norm) in found for norm in BATCH_NORMS)]
    if not sizes:
        raise Missing("no size with both")
    parts = []
    for size in dict.fromkeys((sizes[0], sizes[-1])):
        scores = [
            f"{label(norm)} {spread([run.accuracy('test') for run in found[size, norm]])}"
            for norm in BATCH_NORMS
        ]
        parts.append(f"{', '.join(scores)} at batch {size}")
    length = lengths(found[sizes[0], BATCH_NORMS[0]])
    return f"Test accuracy after {length}: {'; '.join(parts)}."


def speed(study: Study) -> str:
    """The range of fastnorm's ratios to torch.nn, for each set of conditions."""
    parts = []
    for title, rows in speed_groups(study.speed).items():
        ratios = {
            label(row["norm"]): row["ratio"]
            for row in rows
            if row["provider"] == "fastnorm" and row["ratio"] is not None
        }
        if ratios:
            low, high = (choose(ratios, key=lambda norm: ratios[norm]) for choose in (min, max))
            ends = [f"{ratios[norm]:.2f} ({norm})" for norm in dict.fromkeys((low, high))]
            parts.append(f"{' to '.join(ends)} times torch.nn's speed on {escape(title)}")
    if not parts:
        raise Missing("no ratio")
    return f"Training with fastnorm runs at {'; at '.join(parts)}."
