"""Whether two variants differ by more than chance: tests of pairs, corrected for their number."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

Pair = tuple[str, str]


def discordant(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """How many of the (N,) labels only the first predictions get right, and how many the second."""
    hit, other = first == labels, second == labels
    return int((hit & ~other).sum()), int((other & ~hit).sum())


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test, two-sided: p of such an uneven split if both are equally accurate."""
    count = only_first + only_second
    return float(stats.binomtest(only_first, count, 0.5).pvalue) if count else 1.0


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """p of Welch's t-test, two-sided; None without a variance to judge by."""
    if min(len(first), len(second)) < 2 or np.ptp(first) == np.ptp(second) == 0:
        return None
    moments = (
        value
        for sample in (first, second)
        for value in (np.mean(sample), np.std(sample, ddof=1), len(sample))
    )
    return float(stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue)


def holm(p_values: Mapping[Pair, float]) -> dict[Pair, float]:
    """Adjusted by Holm's step-down rule: all below 0.05 are differences at a family-wise 5%."""
    adjusted, largest = {}, 0.0
    for k, pair in enumerate(sorted(p_values, key=lambda pair: p_values[pair])):
        largest = max(largest, min(1.0, (len(p_values) - k) * p_values[pair]))
        adjusted[pair] = largest
    return adjusted


def indistinct_groups(
    names: Sequence[str], differ: Callable[[str, str], bool]
) -> list[tuple[str, ...]]:
    """The largest groups in which no two names differ, in the names' order; they may overlap."""
    groups: list[tuple[str, ...]] = []
    for size in range(len(names), 0, -1):
        for group in itertools.combinations(names, size):
            inside = any(set(group) <= set(larger) for larger in groups)
            if not inside and not any(differ(*pair) for pair in itertools.combinations(group, 2)):
                groups.append(group)
    return sorted(groups, key=lambda group: [names.index(name) for name in group])
