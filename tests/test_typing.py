"""The program that `make lint` type checks: complete, and it runs."""

import ast
import inspect

import fastnorm
from fastnorm import functional
from tests import typed_user

MODULES = {"functional", "reference"}


def used(of):
    """The NAMEs of `of.NAME` in the program, its mistakes aside: those are no use of a name."""
    tree = ast.parse(inspect.getsource(typed_user))
    tree.body = [n for n in tree.body if n.__dict__.get("name") != typed_user.mistakes.__name__]
    attributes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    return {n.attr for n in attributes if isinstance(n.value, ast.Name) and n.value.id == of}


def test_every_public_name_is_listed():
    """What fastnorm/__init__.py imports is in its __all__."""
    public = {n for n, v in vars(fastnorm).items() if n[0] != "_" and not inspect.ismodule(v)}
    assert public | MODULES == set(fastnorm.__all__)


def test_completion_shows_public_names_alone():
    for module in (fastnorm, functional):
        assert {name for name in dir(module) if name[0] != "_"} == set(module.__all__)


def test_every_public_name_is_used():
    assert used("fastnorm") >= set(fastnorm.__all__) - MODULES
    assert used("F") >= set(functional.__all__)


def test_it_runs():
    with fastnorm.use_backend("auto"):
        typed_user.main()
