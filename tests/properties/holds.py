"""The decorator of a property: a test of each backend, with examples as its speed allows."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import BACKENDS

FASTER = 6  # the backends without an interpreter; in truth they are 50 times as fast


def holds(
    **strategies: st.SearchStrategy[Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test of (backend, **drawn) on examples of the strategies, for each of the backends."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("backend", BACKENDS)
        def on_backend(backend: str) -> None:
            def example(drawn: list[dict[str, Any]]) -> None:
                test(backend, **drawn[0])

            # What Hypothesis tells tests apart by, in what it derives examples from and keeps.
            example.__module__, example.__qualname__ = test.__module__, test.__qualname__
            example.__name__ = f"{test.__name__}_{backend}"
            count = settings.default.max_examples * (1 if backend == "triton" else FASTER)
            settings(max_examples=count)(given(independent(strategies))(example))()

        on_backend.__doc__ = test.__doc__
        return on_backend

    return decorate


def independent(strategies: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """A list of one drawing of each. What is part of a unique collection Hypothesis does not copy
    from place to place; otherwise five of six examples are near copies of the sixth, too many where
    there are twenty."""
    return st.lists(st.fixed_dictionaries(strategies), min_size=1, max_size=1, unique_by=id)
