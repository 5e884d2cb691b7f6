"""torch.compile's files in a folder of the run's own: a kill at any moment costs nothing."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.errors import StartAgain, UserError

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@contextlib.contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """What is compiled in this block lies in `folder`, which goes when the block has ended well.

    torch 2.13 writes shared objects under their final names. One that a killed process
    left cut short fails whoever finds it there: then the folder is cleared and the script begins
    anew (StartAgain), once, as the folder is empty the next time. Under torchrun that is an error:
    its processes have to be started together.
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
    """Whether torch.compile, or what it has compiled, raised it."""
    if isinstance(error, OSError | ImportError):  # what the dynamic linker says
        return True
    from torch._dynamo.exc import TorchDynamoException  # slow to import
    from torch._inductor.exc import CppCompileError

    return isinstance(error, TorchDynamoException | CppCompileError)


def first_line(error: BaseException) -> str:
    """Of its message."""
    return str(error).strip().partition("\n")[0]
