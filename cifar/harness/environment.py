"""The script's environment: device, backend (set before fastnorm is imported), versions, commit."""

import importlib.util
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from harness.config import Backend, Device
from harness.errors import UserError


def select_device(name: Device, cuda_graph: bool = False) -> torch.device:
    """auto is the GPU if there is one. Raises UserError if a GPU is needed and there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    device = torch.device("cuda" if available and name != "cpu" else "cpu")
    if cuda_graph and device.type == "cpu":
        raise UserError("--cuda-graph: there is no GPU here; leave it out")
    return device


def select_backend(backend: Backend, device: torch.device) -> bool:
    """Make `backend` serve fastnorm's modules; True if its kernels run in Triton's interpreter.

    Call it before anything imports triton (torch.optim does): triton reads TRITON_INTERPRET when
    its own functions are defined. Raises UserError if fastnorm or triton is not installed.
    """
    if backend == "torch":
        return False
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            raise UserError("--backend triton: triton is not installed; use --backend auto")
        if device.type == "cpu":
            os.environ["TRITON_INTERPRET"] = "1"
    try:
        import fastnorm
    except ModuleNotFoundError as error:
        remedy = "pip install -e . in the repository, or --backend torch"
        raise UserError(f"cannot import {error.name}: {remedy}") from None
    fastnorm.set_backend(backend)
    return backend == "triton" and device.type == "cpu"


def describe_device(device: torch.device) -> str:
    """The device's name for results."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def versions() -> dict[str, str | None]:
    """Versions that a result depends on; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("fastnorm-triton", "torch", "triton", "numpy", "scikit-learn"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # the metadata lack the build, +cpu or +cu130
    return found


def commit() -> str | None:
    """The checkout's commit, "-dirty" if changed since; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
