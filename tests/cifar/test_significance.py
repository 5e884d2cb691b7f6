"""The tests of differences, each against another way to compute the same number."""

import math
from statistics import mean, variance

import numpy as np
import pytest
from scipy import integrate

from reporting.significance import discordant, holm, indistinct_groups, mcnemar, welch


@pytest.mark.parametrize("counts", [(0, 1), (3, 3), (0, 6), (5, 14), (130, 96)])
def test_mcnemar_is_the_sum_of_binomial_tails(counts: tuple[int, int]) -> None:
    few, total = min(counts), sum(counts)
    tail = sum(math.comb(total, k) for k in range(few + 1)) / 2**total
    assert mcnemar(*counts) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(*counts) == pytest.approx(mcnemar(*counts[::-1]))


def test_mcnemar_of_equal_predictions() -> None:
    assert mcnemar(0, 0) == 1.0


def test_discordant_counts_what_only_one_gets_right() -> None:
    labels, first, second = np.array([[0, 1, 2, 3, 4], [0, 1, 2, 0, 0], [0, 1, 0, 3, 1]])
    assert discordant(labels, first, second) == (1, 1)
    assert discordant(labels, labels, second) == (2, 0)
    assert discordant(labels, second, labels) == (0, 2)


def student_tail(t: float, df: float) -> float:
    """Two-sided p of Student's t by integrating its density."""
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    tail, _ = integrate.quad(lambda x: scale * (1 + x * x / df) ** (-(df + 1) / 2), abs(t), np.inf)
    return 2 * tail


def test_welch_by_its_formula() -> None:
    first, second = [0.880, 0.884, 0.879], [0.871, 0.878, 0.860, 0.869]
    a, b = variance(first) / 3, variance(second) / 4
    t = (mean(first) - mean(second)) / math.sqrt(a + b)
    df = (a + b) ** 2 / (a**2 / 2 + b**2 / 3)
    assert welch(first, second) == pytest.approx(student_tail(t, df), rel=1e-6)


def test_welch_has_nothing_to_say_without_a_variance() -> None:
    assert welch([0.88], [0.85, 0.86]) is None
    assert welch([0.88, 0.88], [0.85, 0.85]) is None
    assert welch([0.88, 0.88], [0.85, 0.86]) is not None


def test_holm_by_hand() -> None:
    """Three times the least, twice the next, and none below one before it; at most 1."""
    p_values = {("a", "b"): 0.03, ("a", "c"): 0.01, ("b", "c"): 0.029}
    assert holm(p_values) == pytest.approx({("a", "c"): 0.03, ("b", "c"): 0.058, ("a", "b"): 0.058})
    assert holm({("a", "b"): 0.9, ("a", "c"): 0.7}) == {("a", "c"): 1.0, ("a", "b"): 1.0}


def test_groups_overlap_where_likeness_is_not_transitive() -> None:
    different = {("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")}
    groups = indistinct_groups("abcd", lambda x, y: (x, y) in different)
    assert groups == [("a", "b"), ("b", "c"), ("d",)]
    assert indistinct_groups("abc", lambda x, y: False) == [("a", "b", "c")]
