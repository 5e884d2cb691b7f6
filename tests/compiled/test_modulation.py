"""Parameters of each sample, made by kernels compiled and executed."""

import pytest

from fastnorm.kernels import ENGINE
from tests.compiled.executor import Emulator
from tests.compiled.schedules import SCHEDULES
from tests.kernels.modulation_cases import CASES, check
from tests.kernels.test_modulation import KERNELS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(emulator: Emulator, case) -> None:
    for name in ("random", "in turns"):
        emulator.options, emulator.log = SCHEDULES[name], []
        check(ENGINE, case)
        assert [kernel for kernel, *_ in emulator.log] == KERNELS
        assert not [race for *_, statistics in emulator.log for race in statistics.races]
