"""How a kernel is launched: compiled handles, counters shared by programs, a record for tests."""

import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.runtime import driver

from fastnorm.contract import Tensors

from .records import Record

PLANS = 1024  # sizes whose launches are remembered

# Set by TRITON_INTERPRET=1 when this package, and with it every kernel, is first imported.
INTERPRETED: bool = triton.knobs.runtime.interpret

# Triton's interpreter keeps the running program's index in globals, and patches triton.language
# while it runs: so one launch at a time, and no fork during a launch.
_one_at_a_time: Any = threading.RLock() if INTERPRETED else contextlib.nullcontext()
if INTERPRETED:
    os.register_at_fork(
        before=_one_at_a_time.acquire,
        after_in_parent=_one_at_a_time.release,
        after_in_child=_one_at_a_time.release,
    )

RECORD = Record()
record = RECORD.names


class Launch:
    """A kernel with its grid, scalars and constants fixed: only the tensors are missing.

    At each call Triton works out which compiled kernel fits the arguments. That takes longer than
    the rest of the call. Here the sizes are known before: for tensors aligned to 16 bytes the
    compiled handle is kept for each device and called directly; others go through Triton. The grid
    has one dimension: its x holds 2^31 - 1 programs, y and z only 65,535.
    """

    def __init__(
        self,
        kernel: Any,
        programs: int,
        scalars: tuple[int | None, ...],
        constants: dict[str, Any],
        num_warps: int,
        maxnreg: int | None = None,
        cooperative: bool = False,
    ) -> None:
        self.name = kernel.fn.__name__
        self.kernel, self.programs, self.scalars = kernel, programs, scalars
        names = [name for name in inspect.signature(kernel.fn).parameters if name in constants]
        self.constants = {name: constants[name] for name in names}  # its own, in its order
        self.options = {
            "num_warps": num_warps,
            "maxnreg": maxnreg,
            "enable_fp_fusion": True,
            "launch_cooperative_grid": cooperative,
        }
        self._tail = (*scalars, *self.constants.values())
        self._handles: dict[int, Any] = {}

    def __call__(self, tensors: Tensors, floats: tuple[float, ...] = ()) -> bool:
        """Launch on the device of the first tensor and its current stream; always returns True.

        A launch serves one pattern of dtypes and of tensors that are None. A NamedTuple of tensors
        is passed as one argument of the kernel.
        """
        x = tensors[0]
        assert x is not None
        if RECORD.kept is not None:
            RECORD.kept.append(self.name)
        device = x.get_device()
        if not x.is_cuda:
            self._launch(tensors, floats)
        elif device == torch.cuda.current_device():
            self._launch_on(device, tensors, floats)
        else:
            with torch.cuda.device(device):
                self._launch_on(device, tensors, floats)
        return True

    def _launch_on(self, device: int, tensors: Tensors, floats: tuple[float, ...]) -> None:
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        together = 0
        for pointer in pointers:
            together |= pointer or 0
        handle = self._handles.get(device)
        if handle is None or together % 16 or _hooked():
            handle = self._launch(tensors, floats)
            if together % 16 == 0:
                self._handles[device] = handle
            return
        stream = driver.active.get_current_stream(device)
        arguments = (tuple(pointers),) if _is_one_argument(tensors) else pointers
        handle.run(
            self.programs, 1, 1, stream, handle.function, handle.packed_metadata, None, None, None,
            *arguments, *floats, *self._tail,
        )  # fmt: skip

    def _launch(self, tensors: Tensors, floats: tuple[float, ...]) -> Any:
        """Launch through Triton; returns the compiled kernel, or None from the interpreter."""
        try:
            with _one_at_a_time:
                return self.kernel[(self.programs,)](
                    *_arguments(tensors), *floats, *self.scalars, **self.constants, **self.options
                )
        except BaseException:
            _counters.clear()  # some program may have counted, and others never will
            raise

    def is_compiled_for(self, x: torch.Tensor) -> bool:
        """Whether aligned tensors on x's device are launched without a compilation by Triton."""
        return x.get_device() in self._handles

    def compile(self, tensors: Tensors, floats: tuple[float, ...]) -> Any:
        """The compiled kernel for these tensors, loaded on the current device, not launched."""
        handle = self.without_loading(tensors, floats)
        handle._init_handles()
        return handle

    def without_loading(self, tensors: Tensors, floats: tuple[float, ...]) -> Any:
        """The compiled kernel for these tensors."""
        return self.kernel.warmup(
            *_arguments(tensors),
            *floats,
            *self.scalars,
            **self.constants,
            **self.options,
            grid=(1,),
        )


def _is_one_argument(tensors: Tensors) -> bool:
    return hasattr(tensors, "_fields")


def _arguments(tensors: Tensors) -> tuple[Any, ...]:
    return (tensors,) if _is_one_argument(tensors) else tensors


def _hooked() -> bool:
    """Whether a profiler wants to hear of launches: only Triton's own launch tells it."""
    runtime = triton.knobs.runtime
    hooks = (runtime.launch_enter_hook, runtime.launch_exit_hook)
    return any(hook is not None and getattr(hook, "calls", True) for hook in hooks)


_counters: dict[tuple[Any, ...], torch.Tensor] = {}


class _Thread(threading.local):
    own_counters = False


_thread = _Thread()


@contextlib.contextmanager
def own_counters() -> Iterator[None]:
    """Launches of this thread inside the `with` block share counters with no others.

    For programs that others compile: torch.compile warms up in its own memory pool, and nothing in
    that pool may outlive the call.
    """
    former, _thread.own_counters = _thread.own_counters, True
    try:
        yield
    finally:
        _thread.own_counters = former


def counters(x: torch.Tensor, kind: str, count: int) -> torch.Tensor | None:
    """`count` int32 counters, 0 before a launch, shared by its programs; None if count is 0.

    Launches on a stream follow one another, so each stream has one set. A CUDA graph may be
    replayed on any stream, so it has its own. `kind` separates tickets from barriers, which are not
    set back to 0. On a CPU each thread has its own.
    """
    if count == 0:
        return None
    if _thread.own_counters:
        return torch.zeros(count, dtype=torch.int32, device=x.device)
    key: tuple[Any, ...] = (kind, "cpu", threading.get_ident())
    if x.is_cuda:
        device = x.get_device()
        if _capturing(device):
            return torch.zeros(count, dtype=torch.int32, device=x.device)
        key = (kind, device, driver.active.get_current_stream(device))
    found = _counters.get(key)
    if found is None or found.numel() < count:
        size = triton.next_power_of_2(count)
        found = torch.zeros(size, dtype=torch.int32, device=x.device)
        _counters[key] = found
    return found


def _capturing(device: int) -> bool:
    """Whether the device's current stream is being captured into a CUDA graph."""
    if device == torch.cuda.current_device():
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


@functools.cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _shared_memory(device: int) -> int:
    # The system takes 1 KB of it.
    return int(torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor) - 1024


def shared_memory(x: torch.Tensor) -> int:
    """Bytes of shared memory for programs on x's device; for a CPU tensor those of an H200."""
    return _shared_memory(x.get_device()) if x.is_cuda else 227 * 1024


def multiprocessors(x: torch.Tensor) -> int:
    """The multiprocessors of x's device; for a CPU tensor those of an H200."""
    return _multiprocessors(x.get_device()) if x.is_cuda else 132
