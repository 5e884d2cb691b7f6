"""How the scripts end: one line on stderr for an error that the user can fix, else a traceback."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


class UserError(Exception):
    """A flag, file or result that the user must change; the message says how, in one line.

    If images cannot be read, it has one more line for each of them.
    """


class StartAgain(Exception):
    """The script must begin anew, as a new process; the message says why."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """The system's errors in this block (full, forbidden, no folder ...) become a UserError that
    names `path`: a failed write names no file, and a temporary file has an unknown name."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def run_script(main: Callable[[], None]) -> None:
    """Run `main`; turn UserError and OSError (unreadable, forbidden ...) into exit code 1.

    The message of a KeyboardInterrupt says how to go on, and is printed.
    """
    try:
        main()
    except KeyboardInterrupt as stop:
        print(f"\nerror: interrupted{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        sys.exit(130)
    except StartAgain as reason:
        print(f"warning: {reason}; starting again", file=sys.stderr, flush=True)
        os.execv(sys.executable, sys.orig_argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        print(
            f"error: {f'{error.filename}: {error.strerror}' if named else error}", file=sys.stderr
        )
        sys.exit(1)
