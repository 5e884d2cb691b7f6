"""What a run leaves behind. A file appears under its name only when it is complete."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from errors import UserError

TEMPORARY = ".tmp"  # how the name of a file ends that is not complete yet


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a new file beside `path`, then rename it: `path` is never half-written.

    Whoever is killed on the way leaves a file *.tmp and `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=TEMPORARY)
    try:
        with open(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # else the rename may reach the disk before the content
        umask = os.umask(0)  # mkstemp makes private files; give the permissions that open() would
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented JSON; ValueError for NaN and Inf, which JSON does not have."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Tensors and plain values only, so that load_checkpoint need not trust the file."""
    write_atomic(path, lambda file: torch.save(checkpoint, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of train.py, on the CPU. Raises UserError for any other file."""
    wanted = ("model", "config", "mean", "std", "class_names")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # a damaged pickle can raise anything
        raise UserError(f"{path} is not a checkpoint: torch cannot read it") from None
    if not (isinstance(checkpoint, dict) and all(key in checkpoint for key in wanted)):
        raise UserError(f"{path} is not a checkpoint of train.py")
    return checkpoint


class RunFolder:
    """The files of one run: in OUTPUT/unfinished while it lasts, then moved to OUTPUT.

    So a run that fails leaves an earlier run's files as they are, and its own for inspection.
    """

    # In the order in which they move: results.json, the mark of a finished run, comes last.
    NAMES = ("checkpoint.pt", "config.json", "steps.jsonl", "metrics.jsonl", "results.json")

    def __init__(self, output: Path) -> None:
        self.output = output
        self.unfinished = output / "unfinished"
        if output.exists() and not output.is_dir():
            raise UserError(f"--output {output} is a file; give a folder")
        self.unfinished.mkdir(parents=True, exist_ok=True)
        leftover = {self.unfinished / name for name in self.NAMES}
        for path in leftover.union(self.unfinished.glob(f"*{TEMPORARY}")):  # a failed run's
            path.unlink(missing_ok=True)

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Add one JSON line for each row."""
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        with (self.unfinished / name).open("a") as file:
            file.writelines(lines)

    def finish(self) -> None:
        """Move every file up, over an earlier run's."""
        (self.output / self.NAMES[-1]).unlink(missing_ok=True)  # no mark beside a mixture of runs
        for name in self.NAMES:
            os.replace(self.unfinished / name, self.output / name)
        self.unfinished.rmdir()
