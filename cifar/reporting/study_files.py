"""A study's folder as its runs left it: the plan, the runs, finished or not, and the timings."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np

from harness import files
from harness.errors import UserError
from harness.plan import BATCH_NORMS, BUILTIN, Variant

Row = dict[str, Any]

# What config.json must hold.
CONDITIONS = (
    *("config", "dataset", "class_names", "images", "parameters", "device", "threads"),
    *("interpreter", "versions", "commit"),
)

VARIANTS = get_args(Variant)
TWINS = ("bn", *(name.removesuffix("-builtin") for name in BUILTIN))  # torch's is NORM-builtin
BATCH_NAME = re.compile(rf"(?:{'|'.join(BATCH_NORMS)})-batch(\d+)")


class Missing(Exception):
    """What a section of the report lacks; the message is the line that it shows instead."""


@dataclass(frozen=True)
class Run:
    """One training run; `rows` are those of metrics.jsonl, `results` is {} while it lasts."""

    folder: Path
    name: str
    seed: int
    finished: bool
    description: dict[str, Any]
    rows: list[Row]
    results: dict[str, Any]

    @property
    def flags(self) -> dict[str, Any]:
        """The train flags that decide what is computed."""
        return self.description["config"]

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.description["dataset"]

    def class_names(self) -> list[str]:
        """Of the labels 0, 1, ..."""
        return self.description["class_names"]

    def column(self, key: str) -> np.ndarray:
        """float64 (epochs,) of metrics.jsonl; NaN where a row lacks the key."""
        return np.array([row.get(key) for row in self.rows], dtype=np.float64)

    def epochs(self) -> np.ndarray:
        """int64 (epochs,), counted from 1."""
        return np.array([row["epoch"] for row in self.rows], dtype=np.int64)

    def accuracy(self, split: str) -> float:
        """Of the last weights on "train", "val" or "test"; of a finished run."""
        return self.results[split]["accuracy"]

    @cached_property
    def answers(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Labels and predictions (N,) of the test split in its order; None without the file."""
        path = self.folder / "predictions.npz"
        if not (self.finished and path.is_file()):
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                labels, predictions = arrays["labels"], arrays["predictions"]
        except (KeyError, ValueError, EOFError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); run {self.name} again") from None
        if labels.shape != predictions.shape or labels.ndim != 1:
            raise UserError(f"{path}: labels {labels.shape}, predictions {predictions.shape}")
        return labels, predictions


@dataclass(frozen=True)
class Study:
    """All that lies in a study's folder; a part not yet written is empty."""

    folder: Path
    plan: dict[str, Any]  # study.json
    runs: list[Run]  # by name and seed
    speed: list[Row]  # speed.jsonl

    def finished(self, name: str) -> list[Run]:
        """The finished runs of this name, by seed."""
        return [run for run in self.runs if run.name == name and run.finished]

    def curves(self, name: str) -> list[Run]:
        """The runs to draw: the finished ones, else the one that has come farthest, if any."""
        begun = [run for run in self.runs if run.name == name and run.rows]
        finished = [run for run in begun if run.finished]
        return finished or sorted(begun, key=lambda run: len(run.rows))[-1:]

    def batch_sizes(self) -> list[int]:
        """Of the runs of the batch part, finished or not, in increasing order."""
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
    """The rows of a JSON lines file, without a torn last line; [] if there is none.

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


def read_study(folder: Path) -> Study:
    """Whatever of a study is there. Raises UserError if there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one that study.py wrote to")
    plan = folder / "study.json"
    runs = []
    for path in sorted(folder.glob("runs/*/seed*")):
        seed = path.name.removeprefix("seed")
        if seed.isdigit() and (run := read_run(path, path.parent.name, int(seed))):
            runs.append(run)
    return Study(
        folder=folder,
        plan=read_json(plan) if plan.is_file() else {},
        runs=sorted(runs, key=lambda run: (run.name, run.seed)),
        speed=read_rows(folder / "speed.jsonl"),
    )
