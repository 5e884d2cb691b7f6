"""Which implementation serves a call. Nothing falls back silently.

    auto        triton for CUDA tensors, aten for all others
    triton      the kernels; CPU tensors need Triton's interpreter
    aten        plain PyTorch from ATen's fused operators, any device
    reference   the formulas of `fastnorm.reference`, any device: slow, for tests

The choice is one for the process and all its threads. It starts as the environment's
FASTNORM_BACKEND, or auto.
"""

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from types import ModuleType

import torch

BACKENDS = ("auto", "triton", "aten", "reference")
REMEDIES = {
    "fastnorm.kernels": "this fastnorm is a source tree, whose kernels lie elsewhere. Start Python "
    "outside of it to use the installed one, or install the tree: pip install -e .",
    "numpy": "Triton's interpreter needs it: pip install numpy",
    "triton": "pip install triton (Linux alone has it), or fastnorm.set_backend('aten')",
}


def set_backend(name: str) -> None:
    """Choose the backend of all later calls. Raises ValueError for an unknown name."""
    global _current
    _current = _checked(name, "backend")


def get_backend() -> str:
    """The backend chosen: "auto", "triton", "aten" or "reference"."""
    return _current


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend inside a `with` block; the former one comes back on leaving it.

    The backward of a call made inside the block runs on the block's backend, wherever it is called.
    Raises ValueError for an unknown name.
    """
    former = get_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(former)


def backend_for(x: torch.Tensor) -> str:
    """The name of the backend that serves x: "triton", "aten" or "reference"."""
    if _current == "auto":
        return "triton" if x.is_cuda else "aten"
    return _current


def kernels_for(x: torch.Tensor) -> ModuleType:
    """`fastnorm.kernels`. Raises RuntimeError where they cannot run on x's device."""
    kernels = load_kernels()
    if not x.is_cuda and not kernels.INTERPRETED:
        raise RuntimeError(
            f"backend 'triton' got a tensor of shape {tuple(x.shape)} on device '{x.device}': "
            "compiled kernels need CUDA tensors. Move it to a GPU, set TRITON_INTERPRET=1 in the "
            "environment before fastnorm's first use to interpret the kernels on the CPU (slow), "
            "or choose another backend: fastnorm.set_backend('aten')"
        )
    return kernels


@functools.cache
def load_kernels() -> ModuleType:
    """Imported at the first call that needs it: importing fastnorm alone does not import Triton.

    Raises ModuleNotFoundError where the kernels or what they need are not installed.
    """
    try:
        return importlib.import_module("fastnorm.kernels")
    except ModuleNotFoundError as error:
        if error.name not in REMEDIES:
            raise
        message = f"backend 'triton' found no module '{error.name}': {REMEDIES[error.name]}"
        raise ModuleNotFoundError(message, name=error.name) from error


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"unknown {source} {name!r}: choose one of {', '.join(BACKENDS)}")
    return name


_current = _checked(os.environ.get("FASTNORM_BACKEND", "auto"), "FASTNORM_BACKEND")
