"""Triton's launches of this process, executed here: from kernel[grid](...) to scheduler.launch.

Triton compiles as always, for the GPU that HostDriver reports, and keeps the compiled code in its
cache (~/.triton/cache, or TRITON_CACHE_DIR). It also runs its ptxas. Then the PTX is executed here,
on CPU tensors, instead of on a GPU.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .memory import Memory
from .options import Options, Statistics
from .parser import Kernel, parse
from .ptx_types import WARP, EmulationError
from .scheduler import launch

Edit = Callable[[str, str], str]
MOST_SHARED = 227 * 1024  # bytes of shared memory for a program, in compute capability 9.0


class HostDriver:
    """What Triton asks of a driver in order to compile; stands in for that of a GPU."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, WARP)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        """By which Triton keeps kernels apart, so another one for each capability."""
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


class Emulator:
    """Executes this process's launches; all attributes may be changed between two of them."""

    def __init__(self, options: Options, capability: int) -> None:
        from triton.runtime import driver
        from triton.runtime.jit import JITFunction

        self.options = options
        self.statistics: dict[str, Statistics] = {}  # by kernel name, of all its launches
        # A list that receives (name, grid, compiled kernel, Statistics) of each launch.
        self.log: list[tuple[str, int, Any, Statistics]] | None = None
        # A function of (kernel name, PTX) that returns the PTX to run instead.
        self.edit: Edit | None = None
        self._driver, self._function = driver, JITFunction
        # `driver.active` would raise where there is no GPU.
        self._former_driver, self._former_run = driver._active, JITFunction.run
        driver.set_active(HostDriver(capability))
        JITFunction.run = self._emulating_run()

    def uninstall(self) -> None:
        """Give launches back to Triton, and its driver."""
        self._driver.set_active(self._former_driver)
        self._function.run = self._former_run

    def _emulating_run(self) -> Callable[..., Any]:
        emulator, compile_only = self, self._former_run

        def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            compiled = compile_only(self, *args, grid=grid, warmup=True, **kwargs)
            if not warmup:
                parameters = self.signature.parameters
                defaults = {name: each.default for name, each in parameters.items()}
                bound = defaults | dict(zip(self.arg_names, args, strict=False)) | kwargs
                emulator.launch(compiled, grid, bound)
            return compiled

        return run

    def launch(self, compiled: Any, grid: Any, bound: Mapping[str, Any]) -> Statistics:
        """Execute a compiled kernel; `bound` has its arguments by name."""
        programs = _programs(grid, bound)
        text = compiled.asm["ptx"]
        if self.edit is not None:
            text = self.edit(compiled.metadata.name, text)
        kernel = parse(text)
        _check_metadata(kernel, compiled.metadata)
        memory, arguments = Memory(), []
        for name, kind in compiled.src.signature.items():
            for path, value in _passed(name, kind, bound[name]):
                if hasattr(value, "data_ptr"):
                    _check_tensor(kernel, path, value)
                    itemsize = value.element_size()
                    # From the first element to the last in memory, whatever the strides.
                    extent = _extent(value) * itemsize
                    memory.register(path, value.data_ptr(), extent, itemsize)
                    value = value.data_ptr()
                arguments.append(value)
        # Behind the arguments Triton passes pointers to scratch memory, of which there is none.
        arguments += [0] * (len(kernel.parameters) - len(arguments))
        cooperative = bool(compiled.metadata.launch_cooperative_grid)
        shared = compiled.metadata.shared
        found = launch(kernel, programs, arguments, shared, memory, self.options, cooperative)
        self.statistics.setdefault(kernel.name, Statistics(kernel.name)).add(found)
        if self.log is not None:
            self.log.append((kernel.name, programs, compiled, found))
        return found


def install(options: Options | None = None, capability: int = 90) -> Emulator:
    """Execute all of Triton's launches in this process, as compiled for a capability (80, 90)."""
    import triton

    if triton.knobs.runtime.interpret:
        raise EmulationError(
            "Triton interprets its kernels in this process: unset TRITON_INTERPRET before the "
            "first kernel is imported"
        )
    return Emulator(options or Options(), capability)


def _programs(grid: Any, bound: Mapping[str, Any]) -> int:
    if callable(grid):
        grid = grid(bound)
    grid = tuple(grid) if isinstance(grid, (tuple, list)) else (grid,)
    if any(size != 1 for size in grid[1:]):
        raise EmulationError(f"grid {grid}: only one-dimensional ones are known")
    return int(grid[0])


def _check_metadata(kernel: Kernel, metadata: Any) -> None:
    """Refuse what a launch would need beyond a grid and shared memory."""
    ctas = getattr(metadata, "num_ctas", 1)
    scratch = [getattr(metadata, f"{kind}_scratch_size", 0) for kind in ("global", "profile")]
    if ctas != 1 or any(scratch):
        raise EmulationError(
            f"{kernel.name}: {ctas} CTAs a program and {scratch} bytes of global and profile "
            "scratch; expected 1 and none"
        )
    # launch.shared_memory says so much for a tensor on a CPU, whatever the capability.
    if metadata.shared > MOST_SHARED:
        raise EmulationError(
            f"{kernel.name}: {metadata.shared} bytes of shared memory; a GPU of compute "
            f"capability 9.0 has {MOST_SHARED}"
        )


def _passed(path: str, kind: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """The arguments that the compiled kernel has a parameter for, with their names.

    `kind` is what Triton made of the argument: "constexpr" for constants, None and integers that
    are 1, which the kernel knows; of a tuple a tuple. Its items are parameters of their own.
    """
    if isinstance(kind, (tuple, list)):
        names = getattr(value, "_fields", range(len(kind)))
        for name, item_kind, item in zip(names, kind, value, strict=True):
            yield from _passed(f"{path}.{name}", item_kind, item)
    elif kind != "constexpr":
        yield path, value


def _check_tensor(kernel: Kernel, path: str, tensor: Any) -> None:
    if tensor.device.type != "cpu":
        raise EmulationError(f"{kernel.name}: {path} is on {tensor.device}; expected a CPU tensor")


def _extent(tensor: Any) -> int:
    """The number of items from a tensor's first to its last in memory."""
    if tensor.numel() == 0:
        return 0
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in strides)
