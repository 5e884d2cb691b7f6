"""Every operator as Triton compiled it, executed: values, gradients, statistics against float64.

`cases.py` gives the factors; each case runs in two orders of its programs and warps.
"""

import pytest
import torch

from tests.compiled.cases import (
    Case,
    asked_of,
    covering_cases,
    modulated_cases,
    own_cases,
)
from tests.compiled.executor import Emulator
from tests.compiled.schedules import SCHEDULES, schedules_of
from tests.compiled.trying import compiled_results, tensors_of, tickets_left, truth_of, wrong


def quick(cases: tuple[Case, ...], kinds_of: tuple[str, ...]) -> set[int]:
    """The cases, by their index, that have a tier with one of such kinds, an operator say, that
    those before them have not."""
    seen: set[tuple[object, ...]] = set()
    found = set()
    for i, case in enumerate(cases):
        kinds = {(case.tier, getattr(case, name)) for name in kinds_of}
        if not kinds <= seen:
            seen |= kinds
            found.add(i)
    return found


def parameters() -> list[object]:
    found: list[object] = []
    for cases, kinds in (
        (covering_cases(), ("op", "layout", "dtype", "size")),
        (modulated_cases(), ("op", "layout")),
        (own_cases(), ("op", "size")),
    ):
        few = quick(cases, kinds)
        found += [
            pytest.param(case, schedules_of(case, i), id=str(case), marks=marks(i in few))
            for i, case in enumerate(cases)
        ]
    return found


def marks(quick: bool) -> tuple[pytest.MarkDecorator, ...]:
    return () if quick else (pytest.mark.slow,)


@pytest.mark.parametrize(("case", "schedules"), parameters())
def test_case(emulator: Emulator, case: Case, schedules: tuple[str, ...]) -> None:
    check(emulator, case, schedules)


def check(emulator: Emulator, case: Case, schedules: tuple[str, ...]) -> None:
    """The case is right in every order, and has the same bits in all."""
    tensors = tensors_of(case)
    torch.manual_seed(0)
    truth = truth_of(case, tensors)
    first = None
    for name in schedules:
        emulator.options, emulator.log = SCHEDULES[name], []
        found, launched = compiled_results(case, tensors)
        assert launched == [kernel for kernel, *_ in emulator.log], "all of them were executed"
        forward = ["modulate_kernel"] * case.modulated + case.forward
        assert launched[: len(forward)] == forward
        if asked_of(case) != ("residual",):
            assert launched[len(forward) :], "a backward launches kernels"
        assert not wrong(found, truth), name
        races = [race for *_, statistics in emulator.log for race in statistics.races]
        assert not races, name
        assert tickets_left() == 0, name
        first = first or found
        different = [key for key in found if not torch.equal(found[key], first[key])]
        assert not different, f"{name} differs from {schedules[0]}"
