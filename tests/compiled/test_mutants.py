"""Compiled kernels with a fault in them: the executor must find each.

The faults are in programs that wait for, or count, one another; and hints that are false. They are
made in the PTX, by `Emulator.edit`, of small kernels and of fastnorm's.
"""

import functools
import re
from collections.abc import Callable, Sequence

import pytest
import torch
import triton
import triton.language as tl

from fastnorm import functional, reference
from fastnorm.backend import load_kernels
from fastnorm.kernels import launch
from tests.compiled.cases import Case
from tests.compiled.executor import EmulationError, Options
from tests.compiled.executor.triton_hook import Emulator
from tests.compiled.trying import called, setting, tensors_of, tickets_left, wrong

PROGRAMS, BLOCK = 8, 128
SCHEDULES = (
    Options(races=True),
    Options(schedule="interleaved", seed=1, grain="memory", resident=1000, races=True),
    Options(schedule="interleaved", seed=2, grain="memory", resident=1000, weak=True),
    Options(schedule="reversed", warps="backward"),
)
Edit = Callable[[str], str]


@triton.jit
def ticket_kernel(x, partials, counter, y, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    """The sum of x: by the program that comes last, of what each of them found."""
    program = tl.program_id(0)
    tl.store(partials + program, tl.sum(tl.load(x + program * BLOCK + tl.arange(0, BLOCK)), 0))
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == PROGRAMS - 1
    if last:
        tl.store(counter, 0)
    tl.debug_barrier()
    if last:
        tl.store(y, tl.sum(tl.load(partials + tl.arange(0, PROGRAMS)), 0))


@triton.jit
def exchange_kernel(x, counter, y, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    """Two rounds in which each program adds to its block that of the next one."""
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    others = (tl.program_id(0) + 1) % PROGRAMS * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + own)
    for turn in range(2):
        tl.store(y + own, value)
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="acq_rel")
        while tl.atomic_add(counter, 0, sem="acquire") < PROGRAMS * (2 * turn + 1):
            pass
        tl.debug_barrier()
        value += tl.load(y + others)
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="acq_rel")
        while tl.atomic_add(counter, 0, sem="acquire") < PROGRAMS * (2 * turn + 2):
            pass
        tl.debug_barrier()
    tl.store(y + own, value)


@triton.jit(do_not_specialize=["S"])
def rows_kernel(x, y, S, INNER: tl.constexpr, HINT: tl.constexpr):
    """A copy of 8 rows of S elements. The hint says that rows are neighbours in memory."""
    lane, position = tl.arange(0, 8), tl.arange(0, INNER)
    offsets = (lane * S)[None, :, None] + position[None, None, :]
    if HINT:
        offsets = tl.max_contiguous(offsets, [1, 2, INNER])
    mask = (position < S)[None, None, :] & (lane < 8)[None, :, None]
    tl.store(y + offsets, tl.load(x + offsets, mask=mask, other=0.0), mask=mask)


def take_ticket() -> str:
    """Runs ticket_kernel twice, as the counter must serve again; what is wrong, or ""."""
    x, counter = torch.arange(float(PROGRAMS * BLOCK)), torch.zeros(1, dtype=torch.int32)
    for turn in range(2):
        partials, y = torch.full((PROGRAMS,), float("nan")), torch.full((1,), float("nan"))
        ticket_kernel[(PROGRAMS,)](x, partials, counter, y, BLOCK, PROGRAMS)
        if y.item() != x.sum().item():
            return f"wrong in turn {turn}"
    return f"counter left at {counter.item()}" if counter.item() else ""


def exchange() -> str:
    x = torch.arange(float(PROGRAMS * BLOCK)) % 1000
    y, counter = torch.full_like(x, float("nan")), torch.zeros(1, dtype=torch.int32)
    exchange_kernel[(PROGRAMS,)](x, counter, y, BLOCK, PROGRAMS, launch_cooperative_grid=True)
    once = x + x.roll(-BLOCK)
    return "" if torch.equal(y, once + once.roll(-BLOCK)) else "wrong"


def found_by(
    emulator: Emulator,
    run: Callable[[], str],
    edit: Edit | None = None,
    schedules: Sequence[Options] = SCHEDULES,
    edits: Callable[[str], bool] = bool,
) -> list[str]:
    """What each schedule finds ("" for nothing); `edits` says of a PTX whether it is edited."""
    emulator.edit = edit and (lambda name, ptx: edit(ptx) if edits(ptx) else ptx)
    found = []
    for options in schedules:
        emulator.options = options
        emulator.statistics.clear()
        try:
            wrong_result = run()
        except EmulationError as error:
            wrong_result = f"error: {error}"
        races = [race for each in emulator.statistics.values() for race in each.races]
        found.append(races[0] if races else wrong_result)
    return found


def relaxed(ptx: str) -> str:
    """All atomics and loads that acquire or release do neither."""
    edited = re.sub(r"\.(acq_rel|acquire|release)\b", ".relaxed", ptx)
    assert edited != ptx
    return edited


def without_reset(ptx: str) -> str:
    """The store that sets the ticket's counter back is missing."""
    (counter,) = re.findall(r"atom\.global\S* %r\d+, \[ (%rd\d+) \+ 0 \]", ptx)
    edited, count = re.subn(rf".*\bst\.global\S* \[ {counter} \+ 0 \].*", "", ptx)
    assert count == 1
    return edited


def meets(ptx: str) -> bool:
    """Whether the kernel's programs meet others: by an atomic."""
    return "atom." in ptx


def barriers(ptx: str) -> list[list[tuple[int, int]]]:
    """The places of barriers; those with no access of memory between them are one."""
    found: list[list[tuple[int, int]]] = []
    for match in re.finditer(r"\b(bar\.sync\s+0;)|\b(?:ld|st|atom|red)\.(?:global|shared)", ptx):
        if match[1] is None:
            found.append([])
        elif found:
            found[-1].append(match.span())
    return [places for places in found if places]


def without_barrier(which: int) -> Edit:
    """One of the barriers is missing."""

    def edit(ptx: str) -> str:
        for start, end in reversed(barriers(ptx)[which]):
            ptx = ptx[:start] + ptx[end:]
        return ptx

    return edit


def neighbours(ptx: str, size: int) -> str:
    """Every second global load and store goes to the item behind the one before it."""
    access = re.compile(r"((?:ld|st)\.global\S* (?:\{ %\w+ \}, )?\[ )(%rd\d+) \+ 0 \]")
    addresses = {"ld": [], "st": []}

    def edited(match: re.Match[str]) -> str:
        before = addresses[match[1][:2]]
        before.append(match[2])
        if len(before) % 2:
            return match[0]
        return f"{match[1]}{before[-2]} + {size} ]"

    return access.sub(edited, ptx)


def copy_rows(size: int = 81, dtype: torch.dtype = torch.float32, hint: bool = False) -> str:
    x, y = torch.randn(8, size).to(dtype), torch.zeros(8, size, dtype=dtype)
    rows_kernel[(1,)](x, y, size, triton.next_power_of_2(size), hint, num_warps=4)
    return "" if torch.equal(x, y) else f"wrong in {int((x != y).sum())} elements"


OWN = {"ticket": take_ticket, "exchange": exchange}


@pytest.mark.parametrize("name", OWN)
def test_kernels_without_a_fault_pass(emulator, name):
    assert found_by(emulator, OWN[name]) == [""] * len(SCHEDULES)


@pytest.mark.parametrize("name", OWN)
def test_without_order_others_stores_are_read_too_early(emulator, name):
    found = found_by(emulator, OWN[name], relaxed)
    assert all(each.startswith("read after write") for each in found[:2])
    if name == "exchange":  # whose second round reads lines that the first one brought in
        assert found[2] == "wrong"


def test_a_ticket_that_is_not_reset_serves_once(emulator):
    assert found_by(emulator, take_ticket, without_reset) == ["wrong in turn 1"] * len(SCHEDULES)


@pytest.mark.parametrize("name", OWN)
def test_a_missing_barrier_is_a_race(emulator, name):
    """All but those before which the result of the atomic was handed round behind another one."""
    OWN[name]()
    count = len(barriers(emulator.log[-1][2].asm["ptx"]))
    found = [found_by(emulator, OWN[name], without_barrier(i), SCHEDULES[:2]) for i in range(count)]
    missed = [i for i, each in enumerate(found) if not any(each)]
    assert count >= 4 and len(missed) <= count / 4, f"missed {missed} of {count}"
    assert 0 not in missed


@pytest.mark.parametrize("dtype, bits", [(torch.float32, 32), (torch.float16, 16)])
def test_rows_addressed_as_neighbours_are_copied_wrong(emulator, dtype, bits):
    """What a false hint comes to, made in the PTX of a kernel without one."""
    run = functools.partial(copy_rows, dtype=dtype)
    edit = functools.partial(neighbours, size=bits // 8)
    assert found_by(emulator, run, schedules=[Options()]) == [""]
    (found,) = found_by(emulator, run, edit, [Options()])
    assert found.startswith("wrong in ")


def test_triton_3_9_copies_wrong_under_a_false_hint(emulator):
    """The others that are supported happen to make right code of it."""
    expected = triton.__version__.startswith("3.9.")
    assert copy_rows(81, hint=True).startswith("wrong") == expected
    assert copy_rows(81, hint=False) == ""


# fastnorm's kernels: a ticket, of programs that each have a part of a set, and a cluster's barrier.
TICKET = Case("layer", "prime", tier="streaming")
CLUSTER = Case("batch", "one channel", tier="cluster")
ROWS = Case("instance", "odd")  # contiguous sets of 81 elements


@functools.cache
def tensors_and_truth(case: Case) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Of the forward pass."""
    tensors = tensors_of(case)
    exact = {name: value.double() for name, value in tensors.items()}
    return tensors, called(reference, case, exact)[0]


@pytest.fixture
def forward(monkeypatch):
    """Runs a case's forward pass in fastnorm's compiled kernels; what is wrong, or ""."""
    # CPU tensors may take the kernels: they are executed here, as others are interpreted.
    monkeypatch.setattr(load_kernels(), "INTERPRETED", True)

    def run(case: Case) -> str:
        tensors, truth = tensors_and_truth(case)
        with setting(case), launch.record() as launched, torch.no_grad():
            y = called(functional, case, tensors)[0]
        assert launched
        return "".join(wrong({"y": y}, {"y": truth})) or (tickets_left() and "ticket left") or ""

    yield run
    launch._counters.clear()  # a mutant may have left anything there


@pytest.mark.parametrize("case", [TICKET, CLUSTER, ROWS], ids=str)
def test_fastnorms_kernels_pass(emulator, forward, case):
    assert found_by(emulator, lambda: forward(case), schedules=SCHEDULES[:2]) == ["", ""]


@pytest.mark.parametrize("case", [TICKET, CLUSTER], ids=str)
def test_fastnorms_kernels_without_order(emulator, forward, case):
    (found,) = found_by(emulator, lambda: forward(case), relaxed, SCHEDULES[:1], meets)
    assert found.startswith("read after write")


def test_fastnorms_ticket_that_is_not_reset(emulator, forward):
    run = functools.partial(forward, TICKET)
    (found,) = found_by(emulator, run, without_reset, SCHEDULES[:1], meets)
    assert found == "ticket left"
    emulator.edit = None
    assert "elements wrong" in run()  # nobody is the last any more


@pytest.mark.parametrize("case", [TICKET, CLUSTER], ids=str)
def test_fastnorms_kernels_with_a_barrier_missing(emulator, forward, case):
    """A part of them, spread over the kernel; those that Triton doubles are one."""
    run = functools.partial(forward, case)
    run()
    texts = [compiled.asm["ptx"] for _, _, compiled, _ in emulator.log]
    count, found = len(barriers(next(filter(meets, texts)))), []
    for which in range(0, count, -(-count // 5)):
        found += found_by(emulator, run, without_barrier(which), SCHEDULES[:1], meets)
    assert sum(map(bool, found)) >= 0.75 * len(found), found


def test_fastnorms_rows_addressed_as_neighbours(emulator, forward):
    run = functools.partial(forward, ROWS)
    (found,) = found_by(emulator, run, functools.partial(neighbours, size=4), SCHEDULES[:1])
    assert "elements wrong" in found or "out-of-bounds" in found
