"""Our compiled kernels execute exactly the counts in the committed table.

`python -m benchmarks.compiled` made the table. A higher count is a loss that no test of values
sees. A lower one has to be written down, or it could rise again unseen.
"""

from math import prod
from pathlib import Path

import pytest
import triton

from benchmarks import compiled
from benchmarks.compiled import RESULTS, read, table
from benchmarks.compiled_cases import BF16, FUSED, OPS, Cut, all_cuts
from benchmarks.compiled_counts import COUNTS, Row, count
from tests.compiled.executor import Emulator

VERSION, CAPABILITY = "3.9.0", 90  # of the table
OURS = "fastnorm"
MOST = 0.05  # that a count may differ by
# Counts have four digits behind the point: of small ones 5% is less than the last.
ROUNDING = 1e-4
COMMAND = "python -m benchmarks.compiled --peers .peers --out benchmarks/results/compiled.jsonl"
RENEW = f"If that is meant, renew the table: {COMMAND}"


def quick() -> set[Cut]:
    """The smallest case of each operator, and two of the costliest kind."""
    smallest = {min((c for c in all_cuts() if c.whole.op == op), key=size) for op in OPS}
    return smallest | {
        cut
        for cut in all_cuts()
        if (cut.whole.op, cut.whole.dtype, cut.whole.fused) == ("bn", BF16, FUSED)
        and (cut.whole.shape[-1] == 7 or cut.whole.layout == "channels_last")
        and cut.whole.shape != cut.shape
    }


def size(cut: Cut) -> int:
    return prod(cut.shape)


def parameters() -> list[object]:
    few = quick()
    return [
        pytest.param(cut, id=cut.name, marks=() if cut in few else pytest.mark.slow)
        for cut in all_cuts()
    ]


def case_of(row: Row) -> tuple[object, ...]:
    return row.op, row.shape, row.run, row.dtype, row.layout, row.fused


def committed(cut: Cut) -> dict[tuple[object, ...], Row]:
    """The table's rows of a case, in the order of the launches."""
    case, dtype = cut.whole, str(cut.whole.dtype).removeprefix("torch.")
    wanted = (case.op, case.shape, cut.shape, dtype, case.layout, case.fused)
    return {row.key: row for row in read() if row.provider == OURS and case_of(row) == wanted}


def differences(found: Row, known: Row) -> list[str]:
    """Each count that is not within MOST of the table's, a line each."""
    lines = []
    for name in COUNTS:
        now, then = getattr(found, name), getattr(known, name)
        if abs(now - then) > MOST * then + ROUNDING:
            way = "rose" if now > then else "fell"
            lines.append(f"{found.kernel}, {found.direction}: {name} {way} from {then} to {now}")
    for name in ("programs", "warps", "programs_of_whole"):
        now, then = getattr(found, name), getattr(known, name)
        if now != then:
            lines.append(f"{found.kernel}, {found.direction}: {name} were {then}, are {now}")
    return lines


@pytest.mark.skipif(
    triton.__version__ != VERSION, reason=f"the table is of Triton {VERSION}: others compile others"
)
@pytest.mark.parametrize("cut", parameters())
def test_counts(emulator: Emulator, pytestconfig: pytest.Config, cut: Cut) -> None:
    if pytestconfig.getoption("--capability") != CAPABILITY:
        pytest.skip(f"the table is of sm_{CAPABILITY}")
    known, found = committed(cut), {row.key: row for row in count(emulator, cut)}
    assert list(found) == list(known), f"other kernels. {RENEW}"
    lines = [line for key, row in found.items() for line in differences(row, known[key])]
    assert not lines, "\n".join([*lines, RENEW])


def test_the_table_has_every_case_once() -> None:
    rows = read()
    assert len({row.key for row in rows}) == len(rows)
    assert all((row.triton, row.arch) == (VERSION, CAPABILITY) for row in rows)
    for cut in all_cuts():
        directions = {row.direction for row in committed(cut).values()}
        assert directions == {"forward", "backward"}, cut.name
    ours = {case_of(row) for row in rows if row.provider == OURS}
    assert len(ours) == len(all_cuts())


def test_the_page_is_made_of_the_rows() -> None:
    page = RESULTS.with_suffix(".md").read_text()
    assert page == table(read(), COMMAND)


def test_a_count_that_differs_is_told() -> None:
    known = read()[0]
    worse = Row(**vars(known) | {"instructions": known.instructions * 1.06})
    better = Row(**vars(known) | {"load": known.load * 0.94})
    assert not differences(known, known)
    assert "instructions rose" in differences(worse, known)[0]
    assert "load fell" in differences(better, known)[0]


def test_a_cut_that_launches_other_kernels_is_refused(emulator: Emulator) -> None:
    """A set of 16 x 49 elements fits one program, the whole case's 256 x 49 do not."""
    cut = next(c for c in all_cuts() if c.whole.shape[2:] == (7, 7) and c.whole.op == "bn")
    with pytest.raises(ValueError, match="launches other kernels"):
        count(emulator, Cut(cut.whole, (16, *cut.shape[1:])))


@pytest.mark.skipif(triton.__version__ != VERSION, reason=f"the table is of Triton {VERSION}")
def test_the_command_makes_the_table(tmp_path: Path) -> None:
    out = tmp_path / "counts.jsonl"
    compiled.main(["--ops", "wn", "--out", str(out)])
    rows = read(out)
    assert rows == [row for row in read() if row.op == "wn"]
    assert table(rows, f"python -m benchmarks.compiled --ops wn --out {out}") == (
        out.with_suffix(".md").read_text()
    )
