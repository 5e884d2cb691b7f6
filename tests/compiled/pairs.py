"""A few combinations of many factors; every allowed pair of values occurs in one of them."""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs_of(row: Row) -> Iterator[Pair]:
    """The pairs of values that a combination has."""
    yield from itertools.combinations(row.items(), 2)


def possible_pairs(
    factors: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool], draws: int = 400
) -> dict[Pair, Row]:
    """Each pair of values that allowed combinations have, and one that has it.

    Combinations are drawn at random, at last `draws` for each pair not met yet.
    """
    draw = random.Random(0)
    found: dict[Pair, Row] = {}

    def keep(fixed: Row) -> bool:
        row = {name: fixed.get(name, draw.choice(values)) for name, values in factors.items()}
        if allowed(row):
            for pair in pairs_of(row):
                found.setdefault(pair, row)
            return True
        return False

    for _ in range(10 * draws):
        keep({})
    for (one, values), (other, others) in itertools.combinations(factors.items(), 2):
        for value, second in itertools.product(values, others):
            if ((one, value), (other, second)) not in found:
                fixed = {one: value, other: second}
                any(keep(fixed) for _ in range(draws))
    return found


def covering(
    factors: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool], tries: int = 20
) -> list[Row]:
    """Allowed combinations that have every possible pair between them; the same ones each time.

    Greedy: of some combinations grown at random around a pair that is missing, the one with the
    most missing pairs is taken.
    """
    examples = possible_pairs(factors, allowed)
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
                    row = changed if allowed(changed) else row
            new = sum(p in missing for p in pairs_of(row))
            if new > most:
                best, most = row, new
        rows.append(best)
        for each in pairs_of(best):
            missing.pop(each, None)
    return rows
