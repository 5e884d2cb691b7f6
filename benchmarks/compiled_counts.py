"""Counts of one launch, and of all launches of a case, executed as compiled without a GPU."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import triton

import fastnorm
import fastnorm.functional as F
from benchmarks.compiled_cases import ADDING, Cut
from benchmarks.inputs import Inputs, make_inputs, shapes_alone
from benchmarks.providers import EPS, OURS, ours
from benchmarks.shapes import Case
from fastnorm import dispatch
from tests.compiled.executor import Emulator, Options, Statistics

SECTOR, WARP = 32, 32
COUNTS = ("instructions", "load", "store", "load_asked", "store_asked", "conflicts")


@dataclass(frozen=True)
class Row:
    """One launch in one direction of a case: its counts, and their origin."""

    provider: str
    op: str
    shape: tuple[int, ...]  # of the benchmark
    run: tuple[int, ...]  # of the case that was executed instead
    dtype: str
    layout: str
    fused: str
    direction: str
    kernel: str
    instructions: float  # of threads, for each element of x
    load: float  # bytes of sectors touched, for each byte of x; an atomic loads and stores
    store: float
    load_asked: float  # bytes asked for, for each byte of sectors touched
    store_asked: float
    conflicts: float  # passes beyond the first, for each request of shared memory
    programs: int
    warps: int  # of a program
    programs_of_whole: int | None  # launched for the benchmark's shape on 132 multiprocessors
    triton: str
    arch: int

    @property
    def key(self) -> tuple[object, ...]:
        """Identifies the launch in a table."""
        return (
            self.provider, self.op, tuple(self.shape), self.dtype, self.layout, self.fused,
            self.direction, self.kernel,
        )  # fmt: skip


def row_of(
    case: Case, whole: Case, direction: str, provider: str, launched: Any, of_whole: int | None
) -> Row:
    """The counts of one launch; `launched` is an entry of the emulator's log."""
    name, programs, compiled, found = launched
    elements, itemsize = prod(case.shape), case.dtype.itemsize
    moved, asked = {}, {}
    for kind in ("load", "store"):
        touched = SECTOR * _of_kind(found.sectors, kind)
        moved[kind] = touched / (elements * itemsize)
        asked[kind] = _of_kind(found.asked, kind) / touched if touched else 1.0
    conflicts = found.bank_conflicts / found.shared_requests if found.shared_requests else 0.0
    return Row(
        provider, whole.op, whole.shape, case.shape, str(case.dtype).removeprefix("torch."),
        case.layout, case.fused, direction, name,
        instructions=round(found.executed * WARP / elements, 4),
        load=round(moved["load"], 4),
        store=round(moved["store"], 4),
        load_asked=round(asked["load"], 4),
        store_asked=round(asked["store"], 4),
        conflicts=round(conflicts, 4),
        programs=programs,
        warps=compiled.metadata.num_warps,
        programs_of_whole=of_whole,
        triton=triton.__version__,
        arch=compiled.metadata.target.arch,
    )  # fmt: skip


def _of_kind(counter: Any, kind: str) -> int:
    return sum(n for (which, _), n in counter.items() if which in (kind, "atomic"))


def forward(case: Case, i: Inputs) -> torch.Tensor | tuple[torch.Tensor, ...]:
    length = case.shape[1:]
    match case.op:
        case "rms":
            return F.rms_norm(i.x, length, i.weight, EPS)
        case "add_ln":
            assert i.residual is not None
            return F.add_layer_norm(i.x, i.residual, length, i.weight, i.bias)
        case "add_rms":
            assert i.residual is not None
            return F.add_rms_norm(i.x, i.residual, length, i.weight, EPS)
        case "wn":  # x is v, and g the parameter with one value for each row
            return F.weight_norm(i.x, i.weight, 0)
    return ours(case, i)


def inputs_of(case: Case, device: str) -> Inputs:
    """The case's inputs: on the CPU with values, or on the meta device without."""
    make = shapes_alone if device == "meta" else make_inputs
    if case.op in ADDING:
        return make(Case(case.op, case.shape, case.dtype, fused="residual_relu"))
    if case.op == "wn":
        g = torch.ones(case.shape[0], 1, dtype=case.dtype, device=device)
        return make(case)._replace(weight=g.requires_grad_())
    return make(case)


def leaves_of(case: Case, i: Inputs) -> list[torch.Tensor]:
    """Every tensor for which the operator has a gradient."""
    leaves = i.leaves(case.op)
    if case.op in ("rms", "add_rms", "wn"):
        leaves.pop("dbias", None)
    return list(leaves.values())


def step(case: Case, device: str, log: list[Any]) -> dict[str, list[Any]]:
    """Our forward and backward, and the entries that each adds to the log."""
    i = inputs_of(case, device)
    log.clear()
    y = forward(case, i)
    found = {"forward": log.copy()}
    log.clear()
    ys = y if isinstance(y, tuple) else (y,)
    torch.autograd.grad(ys, leaves_of(case, i), [i.dy] * len(ys))
    return found | {"backward": log.copy()}


@contextlib.contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """CPU and meta tensors run through the kernels."""
    kernels: Any = fastnorm.backend.load_kernels()
    former, traced = kernels.INTERPRETED, dispatch.is_traced
    kernels.INTERPRETED, dispatch.is_traced = True, lambda x: False
    _forget_plans()
    try:
        with fastnorm.use_backend("triton"):
            yield
    finally:
        kernels.INTERPRETED, dispatch.is_traced = former, traced
        _forget_plans()


@contextlib.contextmanager
def few_programs() -> Iterator[None]:
    """As few programs as there are units: then each takes many tiles, as in the whole case."""
    from fastnorm.kernels import rows, tilings

    former = tilings.ENOUGH_PROGRAMS, rows.multiprocessors
    tilings.ENOUGH_PROGRAMS, rows.multiprocessors = 1, lambda x: 1
    _forget_plans()
    try:
        yield
    finally:
        tilings.ENOUGH_PROGRAMS, rows.multiprocessors = former
        _forget_plans()


def _forget_plans() -> None:
    from fastnorm.kernels import launch, plans, row_plans

    for module in (plans, row_plans):
        module.forward_plan.cache_clear()
        module.backward_plan.cache_clear()
    launch._counters.clear()  # the meta device's counters have no memory


def whole_launches(emulator: Emulator, case: Case) -> dict[str, list[tuple[int, str]]]:
    """(programs, hash of the compiled kernel) for each launch of the whole case."""
    found: list[tuple[int, str]] = []
    execute = emulator.launch

    def note(compiled: Any, grid: Any, bound: Any) -> Statistics:
        found.append((grid[0], compiled.hash))
        return Statistics()

    emulator.launch = note  # type: ignore[method-assign]
    try:
        return step(case, "meta", found)
    finally:
        emulator.launch = execute  # type: ignore[method-assign]
        _forget_plans()


def count(emulator: Emulator, cut: Cut) -> list[Row]:
    """A row for each launch of ours, forward and backward.

    Raises ValueError if the cut case does not launch the whole one's compiled kernels.
    """
    case, rows = cut.case, []
    emulator.options, emulator.log = Options(count=True), []
    with kernels_on_cpu():
        whole = whole_launches(emulator, cut.whole)
        with few_programs():
            launched = step(case, "cpu", emulator.log)
    for direction, entries in launched.items():
        found = [compiled.hash for _, _, compiled, _ in entries]
        if found != [kernel for _, kernel in whole[direction]]:
            names = [name for name, *_ in entries]
            raise ValueError(
                f"{cut.name}, {direction}: {case.shape} launches other kernels: {names}"
            )
        for entry, (programs, _) in zip(entries, whole[direction], strict=True):
            rows.append(row_of(case, cut.whole, direction, OURS[0], entry, programs))
    return rows
