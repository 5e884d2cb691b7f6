"""Which implementation serves a call. Nothing falls back silently.

    auto        triton for CUDA tensors, cpu for CPU tensors, torch for all others
    triton      the kernels; CPU tensors need Triton's interpreter
    cpu         the engine in C, compiled when first needed; only CPU tensors
    torch       torch's own norms, any device: for comparison, or if nothing else runs
    reference   the formulas of `fastnorm.reference`, any device: slow, for tests

If auto finds no C compiler, it warns once and takes torch for CPU tensors too.

The choice holds for the process and all its threads. It starts as the environment variable
FASTNORM_BACKEND, or auto.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import os
import re
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch

from .contract import Engine

BACKENDS = ("auto", "triton", "cpu", "torch", "reference")
REMEDIES = {
    "fastnorm.kernels": "this fastnorm is a source tree, whose kernels lie elsewhere. Start Python "
    "outside of it to use the installed one, or install the tree: pip install -e .",
    "numpy": "Triton's interpreter needs it: pip install numpy",
    "triton": "pip install triton (for Linux only), or fastnorm.set_backend('cpu')",
}


def set_backend(name: str) -> None:
    """Choose the backend of all later calls. Raises ValueError for an unknown name."""
    global _current
    _current = _checked(name, "backend")


def get_backend() -> str:
    """The backend chosen: "auto", "triton", "cpu", "torch" or "reference"."""
    return _current


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend inside a `with` block; the former one comes back on leaving it.

    The backward of a call in the block runs on the block's backend, even if it runs later.
    Raises ValueError for an unknown name.
    """
    former = get_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(former)


def backend_for(x: torch.Tensor) -> str:
    """The name of the backend that serves x: "triton", "cpu", "torch" or "reference"."""
    if _current == "auto":
        return "triton" if x.is_cuda else "cpu" if x.is_cpu else "torch"
    return _current


def kernels_for(x: torch.Tensor) -> Engine:
    """The engine of `fastnorm.kernels`. Raises RuntimeError if it cannot run on x's device."""
    kernels = load_kernels()
    if not x.is_cuda and not kernels.INTERPRETED:
        raise RuntimeError(
            f"backend 'triton' got a tensor of shape {tuple(x.shape)} on device '{x.device}': "
            "compiled kernels need CUDA tensors. Move it to a GPU, set TRITON_INTERPRET=1 in the "
            "environment before fastnorm's first use to interpret the kernels on the CPU (slow), "
            "or choose another backend: fastnorm.set_backend('cpu')"
        )
    engine: Engine = kernels.ENGINE
    return engine


@functools.cache
def load_kernels() -> ModuleType:
    """The kernels, imported at the first call that needs them: fastnorm alone imports no Triton.

    Raises ModuleNotFoundError if the kernels, or a module that they need, are not installed, and
    ImportError if they are to be interpreted by a Triton that does not work with the numpy.
    """
    try:
        importlib.import_module("fastnorm.kernels.launch")  # the package itself imports no Triton
        kernels = importlib.import_module("fastnorm.kernels")
    except ModuleNotFoundError as error:
        if error.name not in REMEDIES:
            raise
        message = f"backend 'triton' found no module '{error.name}': {REMEDIES[error.name]}"
        raise ModuleNotFoundError(message, name=error.name) from error
    if kernels.INTERPRETED and (problem := interpreter_problem()):
        raise ImportError(f"backend 'triton': {problem}")
    return kernels


def interpreter_problem() -> str:
    """Why this Triton's interpreter does not work with this numpy; "" if it does. Triton 3.6 makes
    numbers of arrays with one dimension, which numpy 2.4 refuses."""
    try:
        triton, numpy = map(importlib.metadata.version, ("triton", "numpy"))
    except importlib.metadata.PackageNotFoundError:  # under another name: nothing is known
        return ""
    if not triton.startswith("3.6.") or release(numpy) < (2, 4):
        return ""
    return (
        f"the interpreter of Triton {triton} does not work with numpy {numpy}: "
        "pip install 'numpy<2.4', or a newer Triton"
    )


def release(version: str) -> tuple[int, ...]:
    """(major, minor) of a version such as 2.4.0rc1."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def engine_for(x: torch.Tensor) -> Engine | None:
    """`compiled_engine`; None if it cannot be compiled and the backend is `auto`."""
    cpu = load_engine()
    try:
        return compiled_engine(x)
    except cpu.build.BuildError as error:
        if _current != "auto":
            raise
        _warn_once(str(error))
        return None


def compiled_engine(x: torch.Tensor) -> Engine:
    """The engine of `fastnorm.kernels.cpu`, compiled for x's dtype.

    Raises RuntimeError for a tensor that is not on the CPU, and if the engine cannot be
    compiled.
    """
    cpu = load_engine()
    if not x.is_cpu:
        raise RuntimeError(
            f"backend 'cpu' got a tensor of shape {tuple(x.shape)} on device '{x.device}': move it "
            "to the CPU, or choose another backend: fastnorm.set_backend('auto')"
        )
    cpu.build.functions(x.dtype)
    engine: Engine = cpu.ENGINE
    return engine


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(f"{message}\nUntil then CPU tensors take torch's own norms.", stacklevel=2)


@functools.cache
def load_engine() -> ModuleType:
    """`fastnorm.kernels.cpu`. Raises ModuleNotFoundError if it is not installed."""
    try:
        return importlib.import_module("fastnorm.kernels.cpu")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"backend 'cpu' found no module '{error.name}': {REMEDIES['fastnorm.kernels']}",
            name=error.name,
        ) from error


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"unknown {source} {name!r}: choose one of {', '.join(BACKENDS)}")
    return name


_current = _checked(os.environ.get("FASTNORM_BACKEND", "auto"), "FASTNORM_BACKEND")
