"""Which finished runs are compared, and by which tests; Missing if there are none."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.errors import UserError
from harness.plan import BATCH_NORMS
from reporting.significance import Pair, discordant, holm, indistinct_groups, mcnemar, welch
from reporting.study_files import TWINS, Missing, Run, Study

LEVEL = 0.05


def finished_variants(study: Study) -> dict[str, list[Run]]:
    """The variants with a finished run, in the published table's order."""
    return {name: runs for name in study.variants if (runs := study.finished(name))}


def best_of(found: dict[str, list[Run]]) -> str:
    """The best by mean validation accuracy: the test split must not affect the choice.

    Raises Missing if none of several is better than chance.
    """
    if len(found) > 1 and not any(run.learnt() for runs in found.values() for run in runs):
        raise Missing("No variant is better than chance on the validation split: none is the best.")
    return max(found, key=lambda name: np.mean([run.accuracy("val") for run in found[name]]))


@dataclass(frozen=True)
class Comparison:
    """All pairs of variants, the more accurate one first; p values corrected by Holm's rule."""

    names: list[str]  # by falling test accuracy
    accuracies: dict[str, float]
    seeds: list[int]
    mcnemar: dict[Pair, float]
    welch: dict[Pair, float]  # over the seeds' test accuracies; {} with one seed

    def groups(self, p_values: dict[Pair, float]) -> list[tuple[str, ...]]:
        """The largest groups without a difference at a family-wise 5%."""

        def differ(first: str, second: str) -> bool:
            return p_values.get((first, second), 1.0) < LEVEL

        return indistinct_groups(self.names, differ)


def compare(study: Study) -> Comparison:
    """McNemar's and Welch's tests of all pairs, over the seeds that every variant has finished.

    Raises Missing for fewer than two variants or no common seed, UserError if the runs' test labels
    are not the same.
    """
    found = {name: by_seed(runs) for name, runs in finished_variants(study).items()}
    found = {name: runs for name, runs in found.items() if runs}
    if len(found) < 2:
        raise Missing("Fewer than two variants have finished with their predictions.")
    seeds = sorted(set.intersection(*(set(runs) for runs in found.values())))
    if not seeds:
        raise Missing("No seed has finished in every variant that has begun: no pairs to compare.")
    scores = {name: [runs[k].accuracy("test") for k in seeds] for name, runs in found.items()}
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    names = sorted(found, key=lambda name: -means[name])
    pairs = list(itertools.combinations(names, 2))
    counts = {(a, b): pooled_counts(found[a], found[b], seeds) for a, b in pairs}
    tests = {(a, b): welch(scores[a], scores[b]) for a, b in pairs}
    return Comparison(
        names=names,
        accuracies=means,
        seeds=seeds,
        mcnemar=holm({pair: mcnemar(*count) for pair, count in counts.items()}),
        welch=holm({pair: p for pair, p in tests.items() if p is not None}),
    )


def by_seed(runs: Sequence[Run]) -> dict[int, Run]:
    return {run.seed: run for run in runs if run.answers is not None}


def pooled_counts(
    first: dict[int, Run], second: dict[int, Run], seeds: Sequence[int]
) -> tuple[int, int]:
    """Test images that only one of two variants gets right, seed by seed, added up."""
    total = np.zeros(2, dtype=np.int64)
    for seed in seeds:
        mine, other = first[seed].answers, second[seed].answers
        assert mine is not None and other is not None
        if not np.array_equal(mine[0], other[0]):
            folders = f"{first[seed].folder} and {second[seed].folder}"
            raise UserError(f"{folders} have different test labels: not runs of one study")
        total += discordant(mine[0], mine[1], other[1])
    return int(total[0]), int(total[1])


@dataclass(frozen=True)
class BuiltinPair:
    """Test accuracies of one norm with our modules and with torch's, seed by seed."""

    norm: str
    ours: list[float]
    theirs: list[float]
    p: float  # McNemar's, over all seeds

    def ahead(self) -> float:
        """Our mean accuracy minus torch's, in points of %."""
        return 100 * float(np.mean(self.ours) - np.mean(self.theirs))


def builtin_pairs(study: Study) -> list[BuiltinPair]:
    """Each norm with a finished seed in both. Raises Missing if there is none."""
    pairs = []
    for norm in TWINS:
        ours, theirs = (by_seed(study.finished(name)) for name in (norm, f"{norm}-builtin"))
        if seeds := sorted(set(ours) & set(theirs)):
            mine, other = (
                [runs[seed].accuracy("test") for seed in seeds] for runs in (ours, theirs)
            )
            p = mcnemar(*pooled_counts(ours, theirs, seeds))
            pairs.append(BuiltinPair(norm, mine, other, p))
    if not pairs:
        raise Missing("No norm has finished both with fastnorm and with torch.nn yet.")
    return pairs


def batch_runs(study: Study) -> dict[tuple[int, str], list[Run]]:
    """The finished runs of the batch part by size and norm. Raises Missing if there is none."""
    found = {
        (size, norm): runs
        for size in study.batch_sizes()
        for norm in BATCH_NORMS
        if (runs := study.finished(f"{norm}-batch{size}"))
    }
    if not found:
        raise Missing("No run of the batch sizes has finished.")
    return found
