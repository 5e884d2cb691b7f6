"""A few combinations of many factors; every allowed pair of values occurs in one of them.

Rules say which values may occur together. A rule is a function of some factors, named as its
parameters. A factor that does not exist has the parameter's default.
"""

import functools
import inspect
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Pair = tuple[tuple[str, Any], tuple[str, Any]]
Factors = Mapping[str, Sequence[Any]]
Rule = Callable[..., bool]


def pairs_of(row: Row) -> Iterator[Pair]:
    """The pairs of values that a combination has."""
    yield from itertools.combinations(row.items(), 2)


def every_pair(factors: Factors) -> Iterator[Pair]:
    """The pairs of values of two factors, allowed or not."""
    for (one, values), (other, others) in itertools.combinations(factors.items(), 2):
        yield from (((one, a), (other, b)) for a, b in itertools.product(values, others))


class Rules:
    """Rules for certain factors, each asked once for the same values."""

    def __init__(self, rules: Sequence[Rule], factors: Factors) -> None:
        self.factors = factors
        self._of = [
            ([name for name in inspect.signature(rule).parameters if name in factors], rule)
            for rule in rules
        ]
        self._asked: dict[tuple[Any, ...], bool] = {}

    def allow(self, row: Row) -> bool:
        """Whether a combination, or what there is of one, breaks no rule whose factors it has."""
        return all(
            self._answer(names, rule, row)
            for names, rule in self._of
            if all(name in row for name in names)
        )

    def completed(self, row: Row) -> Row | None:
        """The first allowed combination that has these values, in the order of the factors; None
        where there is none. Exact: every value is tried, and a broken rule ends a try at once."""
        if not self.allow(row):
            return None
        name = next((name for name in self._order if name not in row), None)
        if name is None:
            return {name: row[name] for name in self.factors}
        found = (self.completed(row | {name: value}) for value in self.factors[name])
        return next((each for each in found if each is not None), None)

    @functools.cached_property
    def _order(self) -> list[str]:
        """The factors of most rules first: a factor of none would only repeat what follows it."""
        counts = {name: sum(name in names for names, _ in self._of) for name in self.factors}
        return sorted(self.factors, key=lambda name: -counts[name])

    def _answer(self, names: list[str], rule: Rule, row: Row) -> bool:
        values = {name: row[name] for name in names}
        key = (rule, *values.values())
        if key not in self._asked:
            self._asked[key] = rule(**values)
        return self._asked[key]


def possible_pairs(rules: Rules) -> dict[Pair, Row]:
    """Each pair of values that an allowed combination has, and one that has it."""
    completed = ((pair, rules.completed(dict(pair))) for pair in every_pair(rules.factors))
    return {pair: row for pair, row in completed if row is not None}


def covering(factors: Factors, rules: Sequence[Rule], tries: int = 20) -> list[Row]:
    """Allowed combinations that have every possible pair between them; the same ones each time.

    Greedy: of some combinations grown at random around a pair that is missing, the one with the
    most missing pairs is taken.
    """
    of = Rules(rules, factors)
    examples = possible_pairs(of)
    missing = dict.fromkeys(examples)
    draw = random.Random(1)
    rows = []
    while missing:
        pair = next(iter(missing))
        best, most = examples[pair], sum(p in missing for p in pairs_of(examples[pair]))
        for _ in range(tries):
            row = examples[pair] | {}
            for name in draw.sample(list(factors), len(factors)):
                if name not in dict(pair):
                    changed = row | {name: draw.choice(factors[name])}
                    row = changed if of.allow(changed) else row
            new = sum(p in missing for p in pairs_of(row))
            if new > most:
                best, most = row, new
        rows.append(best)
        for each in pairs_of(best):
            missing.pop(each, None)
    return rows
