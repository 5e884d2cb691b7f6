"""Launches that fail: before any of their programs has run, or between two of them."""

import pytest

from fastnorm.kernels import launch, tilings
from tests.faults.modules import LaunchError
from tests.kernels.tilings import fresh_plans


@pytest.fixture
def fail_at(monkeypatch):
    """fail_at(n): the nth launch from now on raises before any of its programs runs."""
    original = launch.Launch.__call__

    def arm(n):
        left = [n]

        def call(self, *args):
            left[0] -= 1
            if left[0] == 0:
                raise LaunchError(self.name)
            return original(self, *args)

        monkeypatch.setattr(launch.Launch, "__call__", call)

    return arm


@pytest.fixture
def fail_at_program(monkeypatch):
    """arm(n, i), disarm(): of the nth launch from now on the programs before i run, i raises."""
    if not launch.INTERPRETED:
        pytest.skip("only the interpreter stops between two programs")
    monkeypatch.setattr(tilings, "INTERPRETER_TILE", 128)  # several programs in every launch
    from triton.runtime.interpreter import interpreter_builder

    original = interpreter_builder.set_grid_idx

    def arm(n, program):
        left = [n]

        def set_grid_idx(x, y, z):
            left[0] -= x == 0
            if left[0] == 0 and x == program:
                raise KeyboardInterrupt
            original(x, y, z)

        monkeypatch.setattr(interpreter_builder, "set_grid_idx", set_grid_idx)

    def disarm():
        monkeypatch.setattr(interpreter_builder, "set_grid_idx", original)

    with fresh_plans():
        yield arm, disarm
