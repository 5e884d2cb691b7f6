"""Compiles the kernels that fastnorm's functions launch, for any GPU, without having one.

A driver that claims a GPU of the wanted compute capability replaces the real one, and every launch
becomes a compilation. Tensors may be on the meta device: no memory is touched, and their addresses
are aligned like freshly allocated ones. Results are garbage.

All this lasts for the rest of the process, so tests do it in their own process. Kernels decorated
under TRITON_INTERPRET=1 cannot be compiled.
"""

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import fastnorm
from benchmarks.inputs import shapes_alone
from benchmarks.machine_code import assembler_resources
from benchmarks.predict.model import SMS
from benchmarks.providers import Provider
from benchmarks.shapes import Case
from fastnorm import dispatch
from fastnorm.contract import Tensors
from fastnorm.kernels.clusters import MOST_CLUSTERS, ClusterLaunch
from fastnorm.kernels.occupancy import occupancy


class Argument(NamedTuple):
    """One pointer or number; those in a tuple have names like "tensors.x_ptr"."""

    name: str
    form: str  # in Triton's signature: "*fp32", "i32"
    value: int | float  # for a tensor its bytes


@dataclass(frozen=True)
class Launch:
    """One launch that became a compilation, or whose kernel was compiled already."""

    name: str
    folder: Path  # of the kernel's source
    kernel: Any  # triton's CompiledKernel
    shapes: dict[str, tuple[int, ...]]  # of the tensors, by the kernel's argument
    programs: int = 0
    arguments: tuple["Argument", ...] = ()  # of the compiled kernel, in order


class CompilingDriver:
    """The methods that JITFunction calls on a driver before it launches."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # JITFunction keeps kernels by device: one for each target

    def get_current_stream(self, device: int) -> int:
        return 0


def set_target(capability: int) -> None:
    """Compile for this compute capability from now on: 90 for 9.0."""
    driver.set_active(CompilingDriver(capability))


def compile_launches(capability: int) -> list[Launch]:
    """Turn every launch into a compilation; the list returned grows by one at each."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: the kernels are interpreted, not compiled")
    set_target(capability)
    fastnorm.set_backend("triton")
    # Lets tensors that are not on a GPU pass the backend's device check, and sends meta tensors the
    # way of tensors with memory.
    kernels: Any = importlib.import_module("fastnorm.kernels")
    kernels.INTERPRETED = True
    dispatch.is_traced = lambda x: False
    launches: list[Launch] = []
    run = JITFunction.run

    def at_once(self: ClusterLaunch, _x: Any, tensors: Tensors, floats: tuple[float, ...]) -> int:
        """As `ClusterLaunch._at_once`, on a GPU with that many multiprocessors."""
        before = len(launches)
        kernel = self._launch(1).without_loading(tensors, floats)
        del launches[before:]
        registers = assembler_resources(kernel.asm["cubin"]).registers
        warps = self.geometry.num_warps
        room = occupancy(capability, registers, kernel.metadata.shared, warps)
        units = min(self.geometry.units, MOST_CLUSTERS)
        return min(units, SMS * room.blocks // self.geometry.members)

    ClusterLaunch._at_once = at_once

    def compile_instead(
        self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any
    ) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        given = dict(zip(self.arg_names, args, strict=False)) | kwargs
        flat = [
            part
            for name in self.arg_names
            for part in _flat(name, given.get(name), kernel.src.signature[name])
        ]
        shapes = _shapes(flat)
        arguments = (
            Argument(n, form, v.nbytes if isinstance(v, torch.Tensor) else v)
            for n, form, v in flat
            if form != "constexpr"
        )
        folder = Path(inspect.getfile(self.fn)).parent
        programs = grid(given)[0] if callable(grid) else grid[0]
        launches.append(
            Launch(self.fn.__name__, folder, kernel, shapes, programs, tuple(arguments))
        )
        return kernel

    JITFunction.run = compile_instead
    return launches


def _shapes(flat: list[tuple[str, Any, Any]]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors by name. Triton up to 3.7 names the fields of a tuple t that are
    not None t, t_0, t_1 and so on: these names are included."""
    found: dict[str, tuple[int, ...]] = {}
    counts: dict[str, int] = {}
    for name, form, value in flat:
        if form == "constexpr":
            continue
        outer, dot, _ = name.partition(".")
        count = counts[outer] = counts.get(outer, -2) + 1
        if isinstance(value, torch.Tensor):
            found[name] = tuple(value.shape)
            if dot:
                found[outer if count < 0 else f"{outer}_{count}"] = tuple(value.shape)
    return found


def _flat(name: str, value: Any, form: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, form, value) of an argument or, if it is a NamedTuple, of each of its fields."""
    if isinstance(form, tuple):
        for field, part, inner in zip(value._fields, value, form, strict=True):
            yield from _flat(f"{name}.{field}", part, inner)
    else:
        yield name, form, value


def launches_of(
    case: Case, provider: Provider, launches: list[Launch]
) -> Iterator[tuple[str, list[Launch]]]:
    """("forward", its launches), then ("backward", its launches); empties `launches`."""
    inputs = shapes_alone(case)
    with provider.setting():
        launches.clear()
        y = provider.bind(case)(inputs)
        yield "forward", launches.copy()
        launches.clear()
        torch.autograd.grad(y, list(inputs.leaves(case.op).values()), inputs.dy)
        yield "backward", launches.copy()
