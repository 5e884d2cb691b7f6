"""torch.compile's files in the run's own folder: so a kill at any moment does no harm."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.errors import StartAgain, UserError

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@contextlib.contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Code compiled in this block lies in `folder`, which is removed when the block ends well.

    torch 2.13 writes shared objects under their final names. A killed process may leave one cut
    short, and the next process that loads it fails. Then the folder is cleared and the script
    starts again (StartAgain), once: the folder is empty the next time. Under torchrun that is an
    error, as its processes have to be started together.
    """
    used = folder.is_dir() and any(folder.iterdir())
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder.absolute())
    try:
        yield
    except Exception as error:
        if not (used and from_compiler(error)):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        reason = f"the compiled code in {folder} was damaged and is removed ({first_line(error)})"
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError(f"{reason}; give the same command again") from error
        raise StartAgain(reason) from error
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
    shutil.rmtree(folder, ignore_errors=True)


def from_compiler(error: BaseException) -> bool:
    """Whether the error comes from torch.compile or from its compiled code."""
    if isinstance(error, OSError | ImportError):  # the dynamic linker's errors
        return True
    from torch._dynamo.exc import TorchDynamoException  # slow to import
    from torch._inductor.exc import CppCompileError

    return isinstance(error, TorchDynamoException | CppCompileError)


def first_line(error: BaseException) -> str:
    """The first line of its message."""
    return str(error).strip().partition("\n")[0]
