"""The report's words: names of runs, their conditions, numbers, Markdown."""

import re
from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from harness.progress import counted
from reporting.study_files import Run

NO_NORM = "no norm"


def label(name: str) -> str:
    """The report's name for a run or a norm: BN, BN (torch), BN batch 8, no norm."""
    norm, _, rest = name.partition("-")
    text = NO_NORM if norm == "none" else norm.upper()
    if rest == "builtin":
        return f"{text} (torch)"
    return f"{text} {rest.replace('batch', 'batch ')}" if rest else text


def conditions(runs: Sequence[Run]) -> str:
    """Data set, length, batch size and seeds of the runs; every value of each, if they differ."""
    return ", ".join(
        [
            _values((escape(run.dataset) for run in runs), "{}"),
            lengths(runs),
            _values((run.flags["batch_size"] for run in runs), "batch {}"),
            seeds(runs),
        ]
    )


def lengths(runs: Iterable[Run]) -> str:
    """1 epoch, 8 epochs, or all lengths."""
    found = [run.flags["epochs"] for run in runs]
    return _values(found, "{} epoch" if max(found) == 1 else "{} epochs")


def seeds(runs: Iterable[Run]) -> str:
    """seed 0, or seeds 0, 1, 2."""
    found = sorted({run.seed for run in runs})
    return ("seed " if len(found) == 1 else "seeds ") + ", ".join(map(str, found))


def learning_rates(runs: Sequence[Run]) -> str:
    """learning rate 0.1, or each rate with its batch sizes."""
    sizes: dict[float, set[int]] = {}
    for run in runs:
        sizes.setdefault(run.flags["lr"], set()).add(run.flags["batch_size"])
    if len(sizes) == 1:
        return f"learning rate {min(sizes):g}"
    parts = [
        f"{lr:g} at batch {listing([*map(str, sorted(found))])}" for lr, found in sizes.items()
    ]
    return f"learning rate {', '.join(parts)}"


def device_name(device: str, threads: int | None) -> str:
    """A GPU's own name, or CPU, 2 threads."""
    if device != "cpu":
        return device
    assert threads is not None
    return f"CPU, {counted(threads, 'thread')}"


def several_seeds(runs: Iterable[Run]) -> bool:
    """Whether there is more than one seed."""
    return len({run.seed for run in runs}) > 1


def _values(values: Iterable[object], form: str) -> str:
    return form.format(" or ".join(map(str, dict.fromkeys(values))))


def unfinished_note(runs: Iterable[Run]) -> str:
    """A sentence about the unfinished runs that a figure shows; "" if there are none."""
    parts = [
        f"{label(run.name)} at epoch {len(run.rows)} of {run.flags['epochs']}"
        for run in runs
        if not run.finished
    ]
    return f" Unfinished: {', '.join(parts)}." if parts else ""


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation (n-1), without a line break; for one value only that."""
    text = f"{mean(values):.3f}"
    return f"{text}\u00a0±\u00a0{stdev(values):.3f}" if len(values) > 1 else text


def p_value(p: float) -> str:
    """Three decimals, bold below 0.05."""
    text = "<0.001" if p < 0.001 else f"{p:.3f}"
    return f"**{escape(text)}**" if p < 0.05 else text


def listing(items: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def escape(text: object) -> str:
    """Text of a file or flag with all of Markdown's and HTML's special characters escaped."""
    return re.sub(r"([\\`*_{}\[\]<>|~&!#])", r"\\\1", " ".join(str(text).split()))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """A Markdown table: the first column to the left, the others to the right if `numbers`."""
    rule = [":--", *["--:" if numbers else ":--"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
