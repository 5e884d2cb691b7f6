"""Reads a study's folder: the plan, the runs, finished or not, and the timings."""

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from harness import files
from harness.datasets import DIGITS_NAME
from harness.errors import UserError
from harness.plan import BATCH_NORMS, BUILTIN, Variant

Row = dict[str, Any]

# The keys that config.json must have.
CONDITIONS = (
    *("config", "dataset", "class_names", "images", "parameters", "device", "threads"),
    *("interpreter", "versions", "commit"),
)

VARIANTS = get_args(Variant)
TWINS = ("bn", *(name.removesuffix("-builtin") for name in BUILTIN))  # torch's is NORM-builtin
BATCH_NAME = re.compile(rf"(?:{'|'.join(BATCH_NORMS)})-batch(\d+)")


class Missing(Exception):
    """A section of the report lacks data; the message is the line that it shows instead."""


@dataclass(frozen=True)
class Run:
    """One training run; `rows` are those of metrics.jsonl; `results` is {} until it ends."""

    folder: Path
    name: str
    seed: int
    finished: bool
    description: dict[str, Any]
    rows: list[Row]
    results: dict[str, Any]

    @property
    def flags(self) -> dict[str, Any]:
        """The train flags that affect results."""
        return self.description["config"]

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.description["dataset"]

    def class_names(self) -> list[str]:
        """The names of the labels 0, 1, ..."""
        return self.description["class_names"]

    def column(self, key: str) -> np.ndarray:
        """A column of metrics.jsonl as float64 (epochs,); NaN if a row lacks the key."""
        return np.array([row.get(key) for row in self.rows], dtype=np.float64)

    def epochs(self) -> np.ndarray:
        """int64 (epochs,), counted from 1."""
        return np.array([row["epoch"] for row in self.rows], dtype=np.int64)

    def accuracy(self, split: str) -> float:
        """The accuracy of a finished run's last weights on "train", "val" or "test"."""
        return self.results[split]["accuracy"]

    def learnt(self) -> bool:
        """Whether the validation accuracy of a finished run is more than chance (p < 0.001)."""
        count = self.description.get("evaluated", self.description["images"])["val"]
        hits = round(self.accuracy("val") * count)
        test = stats.binomtest(hits, count, 1 / len(self.class_names()), alternative="greater")
        return bool(test.pvalue < 0.001)

    @property
    def answers(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Labels and predictions (N,) of the test split in its order; None without the file."""
        return None if self.arrays is None else (self.arrays["labels"], self.arrays["predictions"])

    @property
    def confidences(self) -> np.ndarray | None:
        """float32 (N,): the probability of each prediction; None if the run did not keep it."""
        return None if self.arrays is None else self.arrays.get("confidences")

    @cached_property
    def arrays(self) -> dict[str, np.ndarray] | None:
        """predictions.npz; None without the file."""
        path = self.folder / "predictions.npz"
        if not (self.finished and path.is_file()):
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
                labels, predictions = arrays["labels"], arrays["predictions"]
        except (KeyError, ValueError, EOFError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); run {self.name} again") from None
        if labels.shape != predictions.shape or labels.ndim != 1:
            raise UserError(f"{path}: labels {labels.shape}, predictions {predictions.shape}")
        return arrays


@dataclass(frozen=True)
class Study:
    """The contents of a study's folder; parts not yet written are empty."""

    folder: Path
    plan: dict[str, Any]  # study.json
    runs: list[Run]  # by name and seed
    speed: list[Row]  # speed.jsonl
    variants: tuple[str, ...] = VARIANTS  # the names that are compared; for a single run its own
    alone: bool = False  # a single run's folder

    def finished(self, name: str) -> list[Run]:
        """The finished runs of this name, by seed."""
        return [run for run in self.runs if run.name == name and run.finished]

    def curves(self, name: str) -> list[Run]:
        """The runs to draw: the finished ones, else the one that has come farthest, if any."""
        begun = [run for run in self.runs if run.name == name and run.rows]
        finished = [run for run in begun if run.finished]
        return finished or sorted(begun, key=lambda run: len(run.rows))[-1:]

    def cifar10(self) -> bool:
        """Whether all runs are of CIFAR-10, or of a copy of it."""
        return all(
            run.flags["dataset"] in ("auto", "cifar10") and run.dataset != DIGITS_NAME
            for run in self.runs
        )

    def batch_sizes(self) -> list[int]:
        """The batch sizes in the batch part, of finished and unfinished runs, in rising order."""
        matches = (BATCH_NAME.fullmatch(run.name) for run in self.runs)
        return sorted({int(match[1]) for match in matches if match})

    def planned(self) -> list[tuple[str, str, int]]:
        """(part, name, seed) of each run in study.json."""
        rows = self.plan.get("planned", [])
        return [(row["part"], row["name"], row["seed"]) for row in rows]


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError for anything but an object."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON lines file, without an incomplete last line; [] if there is none.

    Raises UserError for any other line that is not JSON.
    """
    try:
        return files.read_rows(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove its folder and run again") from None


def read_run(folder: Path, name: str, seed: int) -> Run | None:
    """The finished run in `folder`, else the one in `folder`/unfinished, else None."""
    finished = (folder / "results.json").is_file()
    inner = folder if finished else folder / "unfinished"
    if not (inner / "config.json").is_file():
        return None
    description = read_json(inner / "config.json")
    for key in CONDITIONS:
        if key not in description:
            raise UserError(f"{inner / 'config.json'} has no {key!r}: not a run of train.py")
    results = read_json(inner / "results.json") if finished else {}
    rows = read_rows(inner / "metrics.jsonl")
    return Run(inner, name, seed, finished, description, rows, results)


def read_alone(folder: Path) -> Study | None:
    """The study that consists of the run in `folder`; None if there is no run's file."""
    run = read_run(folder, "", 0)
    if run is None:
        return None
    flags = run.flags
    name = flags["norm"] + "-builtin" * (flags["backend"] == "torch" and flags["norm"] != "none")
    run = replace(run, name=name, seed=flags["seed"])
    return Study(folder, plan={}, runs=[run], speed=[], variants=(name,), alone=True)


def nothing_in(folder: Path) -> UserError:
    """The error of a folder that neither study.py nor train.py wrote to."""
    known = ("*/study.json", "*/config.json", "runs/*/study.json", "runs/*/config.json")
    inner = sorted(path.parent for pattern in known for path in folder.glob(pattern))
    meant = f"; did you mean {inner[0]}?" if inner else ""
    return UserError(
        f"{folder} holds neither a study nor a run; give the folder that study.py or train.py "
        f"wrote to{meant}"
    )


def read_study(folder: Path) -> Study:
    """The study, as far as it is there, or a single run.

    Raises UserError if there is no such folder, or neither in it.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; give the one that study.py or train.py wrote to"
        )
    if alone := read_alone(folder):
        return alone
    plan = folder / "study.json"
    runs = []
    for path in sorted(folder.glob("runs/*/seed*")):
        seed = path.name.removeprefix("seed")
        if seed.isdigit() and (run := read_run(path, path.parent.name, int(seed))):
            runs.append(run)
    speed = folder / "speed.jsonl"
    if not (runs or plan.is_file() or speed.is_file()):
        raise nothing_in(folder)
    return Study(
        folder=folder,
        plan=read_json(plan) if plan.is_file() else {},
        runs=sorted(runs, key=lambda run: (run.name, run.seed)),
        speed=read_rows(speed),
    )
