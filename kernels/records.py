"""Which functions of an engine ran: for tests, and for whoever wants to see it."""

import contextlib
from collections.abc import Iterator


class Record:
    """The names of what an engine runs, kept while somebody asks for them."""

    def __init__(self) -> None:
        self._kept: list[str] | None = None

    def add(self, name: str) -> None:
        """Called before each run."""
        if self._kept is not None:
            self._kept.append(name)

    @contextlib.contextmanager
    def names(self) -> Iterator[list[str]]:
        """Yield a list that receives the name of each run inside the `with` block."""
        outer, inner = self._kept, list[str]()
        self._kept = inner
        try:
            yield inner
        finally:
            self._kept = outer
            if outer is not None:
                outer.extend(inner)
