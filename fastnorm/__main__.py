"""For issue reports: `python -m fastnorm` prints this machine's versions and runs a self-check.

Exit code 0: every check is ok. 1: a result is wrong, a call raised, or the kernels cannot run
though `auto` calls them.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch.utils import collect_env

from . import __version__, get_backend, selfcheck, use_backend
from .backend import backend_for, interpreter_problem, load_engine, load_kernels

VARIABLES = ("FASTNORM_BACKEND", "TRITON_INTERPRET", "TRITON_CACHE_DIR")
WIDTH = 100
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # on a CPU, Triton checks only the first
NO_TRITON = "triton is not installed"
NO_NUMPY = "numpy, which Triton's interpreter needs, is not installed: pip install numpy"
INTERPRETED = ", in Triton's interpreter: code compiled for GPUs is NOT checked"
COLUMNS = "  {:<29}  {:<13}  {:<11}  {:<8}  {:>13}  {}"
HEADER = COLUMNS.format("", "layout", "tier", "dtype", "largest error", "").rstrip()


def main() -> int:
    argparse.ArgumentParser(
        prog="python -m fastnorm",
        description="Print versions and settings for an issue report, then check every norm on "
        "this machine against its formula in float64. Exit code 1 if anything is wrong.",
    ).parse_args()
    asked = {name: os.environ.get(name) for name in VARIABLES}
    on_gpu = torch.cuda.is_available()
    if not on_gpu:  # before Triton is imported: nothing has imported it yet
        os.environ["TRITON_INTERPRET"] = "1"
    problem, is_fault = _why_no_kernels()
    print(f"fastnorm {__version__}")
    for name, value in [*_machine(), *_settings(asked, problem)]:
        print(f"  {name:<17} {value}")
    wrong = _check_engine()
    if problem:
        print(f"\nno kernel was checked: {problem}")
        wrong += is_fault
    elif on_gpu:
        print(f"\ntriton on the GPU{INTERPRETED if load_kernels().INTERPRETED else ''}\n{HEADER}")
        wrong += _show(selfcheck.run("triton", "cuda", DTYPES))
    else:
        print(f"\ntriton on the CPU{INTERPRETED}\n{HEADER}")
        wrong += _show(selfcheck.run("triton", "cpu", DTYPES[:1]))
    print(f"\n{wrong} wrong: see above" if wrong else "\nall ok")
    return 1 if wrong else 0


def _check_engine() -> int:
    """Compile and check the engine for CPUs; return the number of wrong results. Without a compiler
    auto uses other backends, and says so itself."""
    try:
        build = load_engine().build
        kept = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in build.compile_all())
    except (ModuleNotFoundError, RuntimeError) as error:
        print(f"\nthe engine of CPUs was not checked: {error}")
        return 0
    print(f"\ncpu on the CPU, compiled into {build.folder()}" + (f": {kept}" if kept else ""))
    print(HEADER)
    return _show(selfcheck.run("cpu", "cpu", DTYPES))


def _machine() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    yield "torch", torch.__version__
    for package in ("triton", "numpy"):
        yield package, _version(package)
    yield "system", platform.platform()
    yield "CPU", f"{_cpu()}, {os.cpu_count()} cores, torch on {torch.get_num_threads()}"
    if not torch.cuda.is_available():
        yield "GPU", "none that torch sees"
        return
    driver = collect_env.get_nvidia_driver_version(collect_env.run)
    yield "CUDA", f"{torch.version.cuda or torch.version.hip} of torch, driver {driver}"
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        memory = gpu.total_memory / 2**30
        yield f"GPU {i}", f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {memory:.0f} GiB"


def _settings(asked: dict[str, str | None], problem: str) -> Iterator[tuple[str, str]]:
    """The environment as it was found, and the settings that follow from it."""
    for name, value in asked.items():
        yield name, "not set" if value is None else repr(value)
    yield "backend", get_backend()
    with use_backend("auto"):
        served = [f"{backend_for(torch.empty(0))} for CPU tensors"]
        if torch.cuda.is_available():
            served.append(f"{backend_for(torch.empty(0, device='cuda'))} for CUDA tensors")
    yield "auto is", ", ".join(served)
    if not problem:
        allowed, _ = load_kernels().tiers.state()
        yield "cooperative", f"kernels are {'' if allowed else 'not '}allowed"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    """The CPU's name, if Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _why_no_kernels() -> tuple[str, bool]:
    """Why `fastnorm.kernels` cannot be imported, "" if it can; and whether that is a fault. Without
    a GPU auto calls no kernels, and their interpreter may lack what it needs."""
    on_gpu = torch.cuda.is_available()
    if importlib.util.find_spec("triton") is None:
        return NO_TRITON, on_gpu
    if not on_gpu:
        problem = NO_NUMPY if importlib.util.find_spec("numpy") is None else interpreter_problem()
        if problem:
            return problem, False
    try:
        load_kernels()
    except Exception as error:
        return f"fastnorm.kernels cannot be imported: {type(error).__name__}: {error}", True
    return "", False


def _show(outcomes: Iterable[selfcheck.Outcome]) -> int:
    """Print a line for each outcome; return the number of wrong ones."""
    wrong = 0
    for found in outcomes:
        tier, dtype = found.tier.replace("_", " "), str(found.dtype).removeprefix("torch.")
        error = "raised" if found.message else f"{found.error:.1e}"
        verdict = "ok" if found.ok else "WRONG"
        print(COLUMNS.format(found.name, found.layout, tier, dtype, error, verdict), flush=True)
        if found.message:
            print(textwrap.indent(textwrap.fill(found.message, WIDTH - 4), " " * 4))
        wrong += not found.ok
    return wrong


if __name__ == "__main__":
    sys.exit(main())
