"""The files of a run. A file appears under its name only when it is complete."""

import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from harness.config import flag
from harness.errors import UserError, writing

TEMPORARY = ".tmp"  # ending of the name of an incomplete file


def require_file(path: Path, flag: str = "") -> None:
    """Raises UserError if this name is that of something that no file may replace."""
    named = f"{flag} {path}".lstrip()
    if path.is_dir():
        raise UserError(f"{named} is a folder; give a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{named} is a device, pipe or socket; give another name")


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a new file beside `path`, then rename it: `path` is never half-written.

    A process that is killed during this leaves a file *.tmp, and `path` as it was. Raises UserError
    if the system refuses, or if `path` is no file, because the rename would replace it by one.
    """
    require_file(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=TEMPORARY)
        try:
            with open(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())  # else the rename may reach the disk before the content
            umask = os.umask(0)  # mkstemp makes private files: set the permissions of open()
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


def require_writable(path: Path, flag: str = "--output") -> None:
    """Raises UserError if no file can be written under this name, before work is lost."""
    require_file(path, flag)
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    with writing(path):
        with tempfile.TemporaryFile(dir=folder):
            pass
        if path.exists():
            path.open("ab").close()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented JSON; ValueError for NaN and Inf, which JSON does not have."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add one JSON line for each row: all or, if the system refuses (UserError), none."""
    text = "".join(map(json_line, rows))
    with writing(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            content = memoryview(text.encode())
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(before)
            raise


def write_torch(path: Path, content: dict[str, Any]) -> None:
    """Only tensors and plain values, so that load_checkpoint need not trust the file."""
    buffer = io.BytesIO()  # torch.save would turn the OSError of a full disk into a RuntimeError
    torch.save(content, buffer)
    write_atomic(path, lambda file: file.write(buffer.getbuffer()))


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz file."""
    write_atomic(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON line for each row; replaces the file's former contents."""
    text = "".join(map(json_line, rows))
    write_atomic(path, lambda file: file.write(text.encode()))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file, without an incomplete last line; [] if there is no file."""
    if not path.exists():
        return []
    *lines, _torn = path.read_text().split("\n")
    return [json.loads(line) for line in lines]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of train.py, on the CPU. Raises UserError for any other file, or none."""
    wanted = ("model", "architecture", "config", "mean", "std", "class_names")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give checkpoint.pt of a run of train.py"
        ) from None
    try:
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle can raise anything
        raise UserError(
            f"{path} is not a checkpoint, or is cut short: torch cannot read its {len(content):,} "
            "bytes; give another, or train again without --resume"
        ) from None
    if not (isinstance(checkpoint, dict) and all(key in checkpoint for key in wanted)):
        raise UserError(f"{path} is not a checkpoint of train.py")
    return checkpoint


class RunFolder:
    """The files of one run: in OUTPUT/unfinished while it lasts, then moved to OUTPUT.

    So a run that fails leaves an earlier run's files as they are, and its own for a later --resume.
    """

    CHECKPOINT, RESULTS = "checkpoint.pt", "results.json"
    OF_EPOCHS = ("steps.jsonl", "metrics.jsonl")
    OF_THE_END = ("predictions.npz", RESULTS)
    # In the order of the moves: results.json, the mark of a finished run, comes last.
    NAMES = (CHECKPOINT, "config.json", *OF_EPOCHS, *OF_THE_END)

    def __init__(self, output: Path) -> None:
        self.output = output
        self.unfinished = output / "unfinished"
        if output.exists() and not output.is_dir():
            raise UserError(f"--output {output} is a file; give a folder")
        for name in self.NAMES:
            require_file(output / name)

    def finished(self, config: dict[str, Any]) -> bool:
        """Whether OUTPUT holds this very run. Raises UserError if it holds another one."""
        results = self.output / self.RESULTS
        if not results.exists():
            return False
        try:
            found = json.loads(results.read_text())["config"]
        except (ValueError, KeyError):
            raise UserError(
                f"--resume: {results} is not the results of a run; give another --output"
            ) from None
        self.require_same(found, config)
        return True

    def saved(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """The checkpoint to go on from, None if there is none. UserError if it is another run's."""
        path = self.unfinished / self.CHECKPOINT
        if not path.exists():
            return None
        checkpoint = load_checkpoint(path)
        self.require_same(checkpoint["config"], config)
        return checkpoint

    def require_same(self, found: dict[str, Any], config: dict[str, Any]) -> None:
        """Raises UserError naming the flags that differ."""
        names = sorted(found.keys() | config.keys())
        changed = [
            f"{flag(name)} (there {found.get(name)}, here {config.get(name)})"
            for name in names
            if found.get(name) != config.get(name)
        ]
        if changed:
            raise UserError(
                f"--resume: {self.output} holds a run with another {', '.join(changed)}; "
                "give the same flags, or another --output"
            )

    def begin(self) -> None:
        """Create `unfinished`, or remove our files from it."""
        self.clear(set(self.NAMES))

    def go_on(self, epoch: int) -> None:
        """Delete everything that was written after the checkpoint of `epoch`."""
        self.clear(set(self.OF_THE_END))
        for name in self.OF_EPOCHS:
            rows = [row for row in read_rows(self.unfinished / name) if row["epoch"] <= epoch]
            write_rows(self.unfinished / name, rows)

    def clear(self, names: set[str]) -> None:
        """Remove these files, and those that a killed run left incomplete."""
        with writing(self.unfinished):
            self.unfinished.mkdir(parents=True, exist_ok=True)
            half_written = self.unfinished.glob(f"*{TEMPORARY}")
            for path in {self.unfinished / name for name in names}.union(half_written):
                path.unlink(missing_ok=True)

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Add one JSON line for each row."""
        append_rows(self.unfinished / name, rows)

    def finish(self) -> None:
        """Move every file up, over an earlier run's."""
        with writing(self.output):
            (self.output / self.RESULTS).unlink(missing_ok=True)  # no mark next to a mixture
            for name in self.NAMES:
                os.replace(self.unfinished / name, self.output / name)
            self.unfinished.rmdir()


def json_line(row: dict[str, Any]) -> str:
    """ValueError for NaN and Inf, which JSON does not have."""
    return json.dumps(row, allow_nan=False) + "\n"
