"""The program that `make lint` type checks: complete, and it runs."""

import inspect
import re

import fastnorm
from fastnorm import functional
from tests import typed_user


def test_every_public_name_is_used():
    source = inspect.getsource(typed_user)
    modules = {"functional", "reference"}
    assert set(re.findall(r"fastnorm\.(\w+)", source)) >= set(fastnorm.__all__) - modules
    assert set(re.findall(r"F\.(\w+)", source)) >= set(functional.__all__)


def test_it_runs():
    with fastnorm.use_backend("auto"):
        typed_user.main()
