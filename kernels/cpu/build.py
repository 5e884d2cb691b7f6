"""Compiles the engine's C for this CPU when a dtype is first needed, and keeps the library.

Libraries are in the folder fastnorm of XDG_CACHE_HOME or ~/.cache; nobody else may write to it. A
library's name depends on the sources, the compiler, its flags and the CPU. It is written under
another name and then renamed: so processes may compile it at the same time.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
NUMBERS = {dtype: number for number, dtype in enumerate(DTYPES)}  # the same as in common.h
SOURCES = Path(__file__).parent
# Values keep their IEEE meaning: NaN, Inf and -0 go through. Only traps and errno are given up.
FLAGS = (
    "-std=gnu11",
    "-O2",
    "-ftree-vectorize",
    "-march=native",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
)
OPENMP = {False: "-fopenmp", True: "-fopenmp=libgomp"}  # by whether it is clang: torch's runtime
FUNCTIONS = (
    *("norm", "norm_backward", "rows", "rows_backward", "gated", "gated_backward"),
    *("modulate", "modulate_backward", "weight", "weight_backward"),
)
REMEDY = (
    "install a C compiler with OpenMP (Debian: apt install gcc) or name one in CC, or choose "
    "torch's own norms: fastnorm.set_backend('torch')"
)


class BuildError(RuntimeError):
    """The engine cannot be compiled here; the message says why, and gives a remedy."""


class Functions(SimpleNamespace):
    """The engine's FUNCTIONS for one dtype. Each has one argument: a struct of job.h, packed.

    `quick` has the same functions, called without releasing the interpreter's lock.
    """

    quick: SimpleNamespace


def _bound(library: Any, name: str) -> dict[str, Any]:
    bound = {function: getattr(library, f"{function}_{name}") for function in FUNCTIONS}
    for function in bound.values():
        function.argtypes, function.restype = (ctypes.c_char_p,), ctypes.c_int
    return bound


def _open(path: Path, name: str) -> Functions:
    quick = SimpleNamespace(**_bound(ctypes.PyDLL(str(path)), name))
    return Functions(quick=quick, **_bound(ctypes.CDLL(str(path)), name))


_one_at_a_time = threading.Lock()
LOADED: dict[torch.dtype, Functions] = {}  # opened by `functions`


def functions(dtype: torch.dtype) -> Functions:
    """The engine for tensors of a dtype. Raises BuildError if it cannot be compiled."""
    found = LOADED.get(dtype)
    if found is None:
        with _one_at_a_time:
            found = LOADED.get(dtype) or _open(library(DTYPES[dtype]), DTYPES[dtype])
            LOADED[dtype] = found
    return found


def library(name: str) -> Path:
    """The shared library for tensors of a dtype; compiled if it is missing."""
    path = path_of(name)
    if not path.exists():
        compile_library(name, path)
    return path


def path_of(name: str) -> Path:
    """The path of a dtype's library, whether it exists or not."""
    return folder() / f"{name}-{_key()}.so"


def flags() -> tuple[str, ...]:
    """The flags for the compiler."""
    return (*FLAGS, OPENMP["clang" in _compiler()[1]])


def compile_all() -> list[tuple[str, float]]:
    """Compile the missing libraries, one for each core at once: each one's name and seconds.

    Raises BuildError.
    """
    _compiler()  # once, before the threads need it

    def timed(name: str) -> tuple[str, float, bool]:
        start = time.perf_counter()
        known = path_of(name).exists()
        library(name)
        return name, time.perf_counter() - start, known

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(timed, DTYPES.values()))
    return [(name, seconds) for name, seconds, known in done if not known]


def compile_library(name: str, path: Path, *more: str) -> None:
    """Compile one dtype's engine to `path`, whole or not at all; `more` flags for tests."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    sources = [str(SOURCES / file) for file in (f"{name}.c", "common.c")]
    command = [*_compiler()[0].split(), *flags(), *more, "-shared", "-o", str(unfinished)]
    command += [*sources, "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(
                f"fastnorm's CPU engine was not compiled: {' '.join(command)} failed with\n"
                f"{done.stderr.strip()[-2000:]}\nUpdate the compiler, or {REMEDY}"
            )
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@functools.cache
def _compiler() -> tuple[str, str]:
    """The command, and the text of its version."""
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if command and shutil.which(command.split()[0]):
            asked = subprocess.run([*command.split(), "--version"], capture_output=True, text=True)
            if asked.returncode == 0:
                return command, asked.stdout
    raise BuildError(f"fastnorm's CPU engine needs a C compiler, and none was found: {REMEDY}")


@functools.cache
def _key() -> str:
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in (".c", ".h"))
    parts = [*_compiler(), *flags(), _cpu(), *(path.read_text() for path in sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    """The CPU as the compiler may see it: its model and its instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    found = dict(line.split(":", 1) for line in reversed(lines) if line.startswith(names))
    return f"{platform.machine()} {platform.processor()} {sorted(found.items())}"


@functools.cache
def folder() -> Path:
    """The folder of libraries; a temporary folder if others can write to the user's."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(home, "fastnorm")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        # Files in it are executed: a folder that another user may write to cannot be trusted.
        if status.st_uid == os.getuid() and not status.st_mode & 0o022 and path.is_dir():
            return path
    except OSError:
        pass
    return Path(_temporary().name)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process, removed when it ends."""
    return tempfile.TemporaryDirectory(prefix="fastnorm-")
