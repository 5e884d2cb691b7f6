"""The plans of `benchmarks.window`: which parts, in which order, with how many seconds each.

The limits are for a GPU that is there for 15 minutes in all, transfers included, with 16 cores; a
part that a limit cuts off still leaves its lines. Rehearsals do the same without a GPU.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from benchmarks import pytest_lines
from benchmarks.rows import failures, read, timed

REHEARSED = 40  # times the seconds, on two slow and busy cores
STARTING = 9.0  # seconds for a process to start, import torch, and end
LAST_TEST = 7.0  # seconds for the tests that still run when no more may begin
PATIENCE = 15.0  # seconds for one test; most of them compile
OTHERS = ("fastnorm", "eager", "compile", "liger", "quack", "cudnn")
CLUSTERS = ("fastnorm-coop",)
CPUS = 14  # processes that compile and test; two cores are left to watch them
DATA = Path("runs/data")
LABEL = "CIFAR-10 (JPEG q75)"
NORMS = ("bn", "bin", "gn", "in", "ln", "none")
# Tests beyond smoke, the most telling first: odd shapes, running statistics, gradients checked by
# finite differences, far means, fusions. Most of the time is Triton's compilation, 1 to 2 s for a
# kernel and core; tests that are not reached in 120 s are counted.
TESTS = (
    "tests/functional/test_forward.py",
    "tests/functional/test_running_stats.py",
    "tests/test_gradients.py",
    "tests/test_precision.py",
    "tests/functional/test_fused.py",
    "tests/functional/test_add_norm_gradients.py",
    "tests/functional/test_weight.py",
    "tests/test_regressions.py",
)


def no_tale(out: Path) -> list[str]:
    """Adds nothing to the outcome."""
    return []


@dataclass(frozen=True)
class Part:
    """A command, the seconds it may take, and `tell`, which reads its files in the folder `out`.

    It starts only if the parts named in `after` passed. `resumes`: its exit code 3 says that
    another call goes on.
    """

    name: str
    seconds: float
    command: tuple[str, ...]
    tells: Callable[[Path], list[str]] = no_tale
    after: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    resumes: bool = False

    def alone(self) -> "Part":
        """The part run by itself."""
        return replace(self, after=())


class Settings(NamedTuple):
    """Settings that all parts of a plan depend on."""

    out: Path
    rehearse: bool = False
    commit: str | None = None
    data: Path | None = None  # an archive of images, for the study


class Plan(NamedTuple):
    """Parts, which take at most `seconds` together."""

    seconds: float
    parts: Callable[[Settings], list[Part]]


def python(*words: str | Path) -> tuple[str, ...]:
    return (sys.executable, *map(str, words))


def budget(to: Settings, seconds: float, spare: float = STARTING) -> str:
    """The seconds of a part in which something may begin, so that the part ends by itself."""
    return str(REHEARSED * seconds if to.rehearse else seconds - spare)


def pytest(to: Settings, name: str, seconds: float, jobs: int, *words: str) -> Part:
    """Tests in `jobs` processes, in order; one that hangs costs PATIENCE seconds and its process.

    No test begins so late that it might not end in time.
    """
    command = python(
        "-m", "pytest", "-q", "--tb=short", "-n", "2" if to.rehearse else str(jobs),
        "--dist", "load", "--maxschedchunk", "2", "--timeout-method", "thread",
        "--timeout", str(280 if to.rehearse else PATIENCE),
        "--seconds", budget(to, seconds, LAST_TEST),
        "-p", "benchmarks.pytest_lines", "--lines", to.out / f"{name}.jsonl", *words,
    )  # fmt: skip
    return Part(name, seconds, command, tests_ended(name))


def tests_ended(name: str) -> Callable[[Path], list[str]]:
    return lambda out: pytest_lines.summary(out / f"{name}.jsonl")


def rows_written(providers: Sequence[str]) -> Callable[[Path], list[str]]:
    """The number of these rows with a time, and any failures or late cases."""

    def tell(out: Path) -> list[str]:
        rows = [row for row in read(out / "rows.jsonl") if row["provider"] in providers]
        cases = {(row["op"], *row["shape"], row["dtype"], row["fused"]) for row in timed(rows)}
        return [f"{len(timed(rows))} rows with a time, of {len(cases)} cases", *failures(rows)]

    return tell


def limited(parts: list[Part], to: Settings) -> list[Part]:
    """The parts as they are or, in a rehearsal, with time for a slow CPU that interprets."""
    slower = REHEARSED if to.rehearse else 1
    return [replace(part, seconds=slower * part.seconds) for part in parts]


def measuring(to: Settings) -> list[Part]:
    """Smoke, tests, benchmarks, figures."""
    smoke, clusters = "benchmarks/test_smoke.py", "cluster"  # their tests' names have this word
    tests = TESTS[:1] if to.rehearse else TESTS
    kernels = ("-m", "not slow and not no_kernel")
    return limited(
        [
            pytest(to, "smoke", 37, CPUS, smoke, "-k", f"not {clusters}"),
            pytest(to, "smoke-clusters", 23, CPUS, smoke, "-k", clusters),
            pytest(to, "test", 120, CPUS, *kernels, *tests),
            *timing(to, "bench", OTHERS[:2] if to.rehearse else OTHERS, (25, 75)),
            *timing(to, "bench-clusters", CLUSTERS, (15, 30), "--append"),
            Part(
                "plot", 20,
                python("-m", "benchmarks.plot", to.out / "rows.jsonl", "--out", to.out,
                       *(("--rehearsal",) if to.rehearse else ())),
            ),
        ],
        to,
    )  # fmt: skip


def timing(
    to: Settings, name: str, providers: Sequence[str], seconds: tuple[float, float], *words: str
) -> list[Part]:
    """Compiling for `providers` in all processes, then timing them in one.

    Clusters wait for one another: if the smoke test of clusters did not pass, they are left out.
    """
    after = ("smoke-clusters",) if providers == CLUSTERS else ()
    cases = "--tiny" if to.rehearse else "--quick"
    jobs = 2 if to.rehearse else CPUS
    rows = to.out / "rows.jsonl"
    run = python(
        "-m", "benchmarks.run", cases, "--out", rows, "--budget", budget(to, seconds[1]),
        *(("--commit", to.commit) if to.commit else ()), *words, "--providers", *providers,
    )  # fmt: skip
    warm = python(
        "-m", "benchmarks.warm", cases, "--jobs", str(jobs), "--providers", *providers
    )  # fmt: skip
    return [
        Part(f"{name}-compile", seconds[0], warm, after=after),
        Part(name, seconds[1], run, rows_written(providers), after=after),
    ]


def tuning(to: Settings) -> list[Part]:
    """The alternatives for goals that the rows in `out` miss."""
    command = python(
        "-m", "benchmarks.tune", to.out / "rows.jsonl", "--out", to.out / "tune.jsonl",
        "--budget", budget(to, 90), *(("--rehearse",) if to.rehearse else ()),
    )  # fmt: skip
    return limited([Part("tune", 90, command)], to)


def studying(to: Settings) -> list[Part]:
    """Images/s of every norm, then as many epochs as fit; a second call goes on from there."""
    study = Path("runs/gpu-study-rehearsal" if to.rehearse else "runs/gpu-study")
    if to.rehearse:
        norms: tuple[str, ...] = ("bn", "none")
        turns, most = ("--steps", "1", "--rounds", "1"), 1
        shared: tuple[str, ...] = ("--dataset", "digits", "--device", "cpu", "--depth-n", "1")
        once: tuple[str, ...] = ("--no-compile",)
    else:
        norms, turns, most, once = NORMS, ("--steps", "20", "--rounds", "5"), 100, ()
        shared = ("--data-dir", str(DATA), "--dataset-label", LABEL, "--device", "cuda", "--amp",
                  "bf16", "--channels-last", "--cuda-graph")  # fmt: skip
    # Compiling takes most of the time: first run all untimed norms at once, to fill the caches.
    compiling = [
        f"{{ cp -f {study}/speed.jsonl $rows/{norm}.jsonl 2>/dev/null; "
        + shlex.join(python("cifar/speed.py", *shared, *once, "--steps", "1", "--rounds", "1",
                            "--norms", norm, "--output"))
        + f" $rows/{norm}.jsonl; }} &"
        for norm in norms
    ]  # fmt: skip
    speed = python("cifar/speed.py", *shared, *once, *turns, "--norms", *norms, "--output",
                   study / "speed.jsonl")  # fmt: skip
    train = python("-m", "benchmarks.fitting_study", "--seconds", budget(to, 65), "--output", study,
                   "--most", str(most), "--variants", *norms, *shared)  # fmt: skip
    parts = [
        Part(
            "speed-compile",
            55,
            ("bash", "-c", " ".join(("rows=$(mktemp -d);", *compiling, "wait"))),
        ),
        Part("speed", 75, speed),
        Part("train", 65, train, resumes=True),
        Part("report", 20, ("bash", "-c", REPORT, "bash", sys.executable, str(study), str(to.out))),
    ]
    if to.data is not None and not DATA.exists():
        parts.insert(0, Part("unpack", 20, python("cifar/pack.py", to.data, DATA)))
    return limited(parts, to)


REPORT = """
"$1" cifar/report.py "$2" && cp "$2/report.html" "$3" &&
tar czf "$3/study.tar.gz" -C "$(dirname "$2")" "$(basename "$2")"
"""
# Begun by `make gpu`, `make gpu-tune` and `make gpu-study`.
PLANS = {
    "gpu": Plan(345, measuring),
    "tune": Plan(90, tuning),
    "study": Plan(235, studying),
}
