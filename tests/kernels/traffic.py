"""A traffic meter for interpreted kernels: the bytes that each load and store instruction touches.

    with traffic.meter() as t:
        y = F.batch_norm(x, ...)
    assert t.total == t.bytes_of(x) + t.bytes_of(y) + ...

It counts the distinct bytes of each executed instruction of each program: a masked-off lane counts
nothing, a parameter broadcast over a tile counts once per program, a second pass over x counts
again. That is the traffic of a machine without caches, and depends only on the kernels.
"""

import contextlib
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter

from fastnorm import dispatch

# What the interpreter runs for memory instructions of every form. Older versions of Triton lack the
# last three; newer ones implement those by the first two, which are then no instructions of their
# own.
INSTRUCTIONS = {
    "create_masked_load": "load",
    "create_masked_store": "store",
    "create_atomic_rmw": "atomic",
    "create_atomic_cas": "atomic",
    "create_atomic_load": "atomic",
    "create_atomic_store": "atomic",
    "create_atomic_poll": "atomic",
}

# Operators of torch that allocate without writing. Those that return a view say so themselves.
ALLOCATIONS = {
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
}


class Access(NamedTuple):
    """One executed instruction."""

    kind: str  # load, store or atomic
    kernel: str
    start: np.ndarray  # addresses of its runs of consecutive bytes, ascending and disjoint
    end: np.ndarray


class Traffic:
    """What kernels, and torch beside them, did to memory inside a `meter` block."""

    def __init__(self) -> None:
        self.launches: list[str] = []
        self.accesses: list[Access] = []
        self.torch_ops: list[tuple[str, int]] = []  # name, elements of its largest tensor
        # Holding what kernels were given keeps its memory from being handed out a second time:
        # until the end each address belongs to one tensor.
        self._arguments: list[Any] = []
        self._kernel: str | None = None
        self._inside_instruction = False

    @property
    def loads(self) -> int:
        return self._bytes("load")

    @property
    def stores(self) -> int:
        return self._bytes("store")

    @property
    def atomics(self) -> int:
        """Bytes of atomic instructions, each counted once although most both read and write."""
        return self._bytes("atomic")

    @property
    def total(self) -> int:
        return self.loads + self.stores + self.atomics

    def loads_of(self, tensor: torch.Tensor) -> int:
        """Bytes loaded between the tensor's first and last element."""
        return self._bytes("load", tensor)

    def stores_of(self, tensor: torch.Tensor) -> int:
        return self._bytes("store", tensor)

    def atomics_of(self, tensor: torch.Tensor) -> int:
        return self._bytes("atomic", tensor)

    def bytes_of(self, tensor: torch.Tensor) -> int:
        return self.loads_of(tensor) + self.stores_of(tensor) + self.atomics_of(tensor)

    def moved_by_torch(self, elements: int) -> list[str]:
        """Operators of torch that read or wrote a tensor of at least so many elements."""
        return [name for name, largest in self.torch_ops if largest >= elements]

    def __str__(self) -> str:
        """One line a kernel, for the message of a failed assertion."""
        sums: Counter[tuple[str, str]] = Counter()
        for access in self.accesses:
            sums[access.kernel, access.kind] += int((access.end - access.start).sum())
        return "\n".join(
            f"{count} x {kernel}: loads {sums[kernel, 'load']}, stores {sums[kernel, 'store']}, "
            f"atomics {sums[kernel, 'atomic']}"
            for kernel, count in Counter(self.launches).items()
        )

    def _bytes(self, kind: str, tensor: torch.Tensor | None = None) -> int:
        first, last = (0, np.iinfo(np.int64).max) if tensor is None else _extent(tensor)
        return sum(
            int(np.maximum(np.minimum(a.end, last) - np.maximum(a.start, first), 0).sum())
            for a in self.accesses
            if a.kind == kind
        )

    def _record(self, kind: str, pointers: Any, mask: Any) -> None:
        assert self._kernel is not None, "an instruction outside of any kernel"
        addresses = pointers.data.astype(np.int64)
        if mask is not None and not mask.data.all():
            addresses = addresses[np.broadcast_to(mask.data, addresses.shape)]
        itemsize = pointers.get_element_ty().primitive_bitwidth // 8  # booleans are cast to bytes
        self.accesses.append(Access(kind, self._kernel, *_runs(addresses.ravel(), itemsize)))


def _runs(addresses: np.ndarray, itemsize: int) -> tuple[np.ndarray, np.ndarray]:
    """First and past-the-last byte of each run that elements at `addresses`, in any order, form."""
    if not addresses.size:
        return addresses, addresses
    steps = np.diff(addresses)
    if (steps < 0).any():
        addresses = np.sort(addresses)
        steps = np.diff(addresses)
    breaks = np.flatnonzero(steps > itemsize)  # elements that repeat or overlap join a run
    start = addresses[np.concatenate(([0], breaks + 1))]
    return start, addresses[np.concatenate((breaks, [-1]))] + itemsize


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of the tensor's first byte and past its last; gaps between elements are inside."""
    if not tensor.numel():
        return 0, 0
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1 + sum((size - 1) * stride for size, stride in pairs)
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()


def _metered_instruction(traffic: Traffic, kind: str, run: Callable[..., Any]) -> Any:
    signature = inspect.signature(run)

    @functools.wraps(run)
    def instruction(*args: Any, **kwargs: Any) -> Any:
        if traffic._inside_instruction:
            return run(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        pointers = given["ptrs"] if "ptrs" in given else given["ptr"]
        traffic._record(kind, pointers, given.get("mask"))
        traffic._inside_instruction = True
        try:
            return run(*args, **kwargs)
        finally:
            traffic._inside_instruction = False

    return instruction


def _metered_launch(traffic: Traffic, run: Callable[..., Any]) -> Any:
    @functools.wraps(run)
    def launch(grid: Any, *args: Any, **kwargs: Any) -> Any:
        traffic.launches.append(grid.fn.__name__)
        traffic._arguments.append((args, kwargs))
        traffic._kernel = grid.fn.__name__
        try:
            return run(grid, *args, **kwargs)
        finally:
            traffic._kernel = None

    return launch


class _TorchOps(TorchDispatchMode):
    """Records the operators that move data, but for the interpreter's own."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        launching = self.traffic._kernel is not None
        if not (launching or func.is_view or func.overloadpacket in ALLOCATIONS):
            leaves = tree_leaves((args, kwargs, result))
            sizes = [t.numel() for t in leaves if isinstance(t, torch.Tensor)]
            self.traffic.torch_ops.append((str(func), max(sizes, default=0)))
        return result


@contextlib.contextmanager
def meter() -> Iterator[Traffic]:
    """Yield the traffic of everything that runs inside the `with` block: CPU tensors only.

    Of tensors elsewhere the interpreter makes copies, whose addresses say nothing about them.
    """
    traffic = Traffic()
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    with contextlib.ExitStack() as stack:
        for name, kind in INSTRUCTIONS.items():
            if hasattr(builder, name):
                run = _metered_instruction(traffic, kind, getattr(builder, name))
                stack.enter_context(mock.patch.object(builder, name, run))
        run = _metered_launch(traffic, executor.__call__)
        stack.enter_context(mock.patch.object(executor, "__call__", run))
        stack.enter_context(_TorchOps(traffic))
        # A dispatch mode would have calls go as a traced program's do: measured are eager ones.
        stack.enter_context(mock.patch.object(dispatch, "is_traced", lambda x: False))
        yield traffic
