"""Which functions of an engine ran: for tests and for the curious."""

import contextlib
from collections.abc import Iterator


class Record:
    """The names of an engine's functions that ran, kept while somebody asks for them."""

    def __init__(self) -> None:
        self.kept: list[str] | None = None  # each run adds its name, if this is a list

    @contextlib.contextmanager
    def names(self) -> Iterator[list[str]]:
        """Yield a list that receives the name of each run inside the `with` block."""
        outer, inner = self.kept, list[str]()
        self.kept = inner
        try:
            yield inner
        finally:
            self.kept = outer
            if outer is not None:
                outer.extend(inner)
