"""How the scripts end: one line on stderr for what the user can mend, else a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A flag, file or result that the user must change; the message says how, in one line.

    Where images cannot be read, one more line for each names it.
    """


def run_script(main: Callable[[], None]) -> None:
    """Run `main`; turn UserError and OSError (unreadable, full, forbidden ...) into exit code 1."""
    try:
        main()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
