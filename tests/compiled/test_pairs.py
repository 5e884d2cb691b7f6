"""The generator of cases: every pair that may occur does, and the cases are the same each time."""

import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.compiled import cases
from tests.compiled.cases import FACTORS, MODULATED, RULES
from tests.compiled.pairs import Factors, Pair, Row, Rule, Rules, covering, pairs_of, possible_pairs

ROOT = Path(__file__).parents[2]
TOY: Factors = {"a": (0, 1, 2), "b": (0, 1, 2, 3), "c": (0, 1), "d": (0, 1, 2)}


def all_rows(factors: Factors) -> list[Row]:
    return [
        dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())
    ]


def pairs_in(rows: list[Row]) -> set[Pair]:
    return {pair for row in rows for pair in pairs_of(row)}


def random_rules(seed: int) -> tuple[Rule, ...]:
    """Rules that few combinations of TOY keep."""
    draw = random.Random(seed)
    three = {
        values: draw.random() < 0.4 for values in itertools.product(range(3), range(4), range(3))
    }
    two = {values: draw.random() < 0.6 for values in itertools.product(range(3), range(2))}
    return (lambda a, b, d: three[a, b, d], lambda d, c, absent=0: two[d, c] and absent == 0)


@pytest.mark.parametrize("seed", range(20))
def test_the_pairs_are_those_of_all_allowed_combinations(seed: int) -> None:
    rules = random_rules(seed)
    allowed = [row for row in all_rows(TOY) if all(rule(**used(rule, row)) for rule in rules)]
    found = possible_pairs(Rules(rules, TOY))
    assert found.keys() == pairs_in(allowed)
    assert all(row in allowed and pair in pairs_of(row) for pair, row in found.items())
    covered = covering(TOY, rules)
    assert all(row in allowed for row in covered)
    assert pairs_in(covered) == pairs_in(allowed)


def used(rule: Rule, row: Row) -> Row:
    names = rule.__code__.co_varnames
    return {name: value for name, value in row.items() if name in names}


@pytest.mark.parametrize("factors", [FACTORS, MODULATED], ids=["cases", "modulated"])
def test_every_allowed_pair_occurs_in_the_cases(factors: Factors) -> None:
    made = cases.covering_cases() if factors is FACTORS else cases.modulated_cases()
    rows = [{name: getattr(case, name) for name in factors} for case in made]
    rules = Rules(RULES, factors)
    assert all(rules.allow(row) for row in rows)
    assert pairs_in(rows) == possible_pairs(rules).keys()
    values = [(name, value) for name in factors for value in factors[name]]
    assert set(values) == {item for row in rows for item in row.items()}, "each value is allowed"


def test_weight_norms_pairs_are_all_there() -> None:
    """Few combinations of it are allowed, so that drawing at random misses some."""
    weight = all_rows({**FACTORS, "op": ("weight",)})
    rules = Rules(RULES, FACTORS)
    expected = pairs_in([row for row in weight if rules.allow(row)])
    assert (("op", "weight"), ("size", cases.EVEN)) in expected
    assert (("op", "weight"), ("size", cases.INSTANCE)) in expected
    assert (("op", "weight"), ("dtype", torch.float64)) in expected
    found = [row for row in map(vars, cases.covering_cases()) if row["op"] == "weight"]
    mine = {pair for pair in expected if pair[0] == ("op", "weight")}
    assert mine <= pairs_in([{name: row[name] for name in FACTORS} for row in found])


def test_the_cases_are_the_same_in_another_process() -> None:
    code = (
        "from tests.compiled.cases import covering_cases, modulated_cases\n"
        "print(*covering_cases(), *modulated_cases(), sep='\\n')"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    here = [*cases.covering_cases(), *cases.modulated_cases()]
    assert done.stdout.splitlines() == list(map(str, here))
    assert len(set(here)) == len(here)
