"""Runs that were interrupted, at any point, end like runs that were not."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train as train_script
from torch.utils._pytree import tree_map_only

from harness.errors import UserError
from harness.files import RunFolder, read_rows

FLAGS: dict[str, Any] = {"epochs": 3, "batch_size": 16, "depth_n": 1, "backend": "cpu"}
TIMES = ("images_per_second", "seconds")


class Killed(BaseException):
    """What no code of a run catches."""


@pytest.fixture
def start(run: Callable[..., Path]) -> Callable[..., Path]:
    return lambda output, **flags: run(output, **FLAGS | flags)


def untimed(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what differs from run to run."""
    rows = read_rows(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def exact(state: Any) -> Any:
    """A checkpoint with its tensors as lists, which compare."""
    return tree_map_only(torch.Tensor, torch.Tensor.tolist, state)


def assert_same_run(actual: Path, expected: Path) -> None:
    """All that a run leaves, bit for bit, but for what time it took."""
    assert read_rows(actual / "steps.jsonl") == read_rows(expected / "steps.jsonl")
    assert untimed(actual) == untimed(expected)
    results = [json.loads((run / "results.json").read_text()) for run in (actual, expected)]
    assert results[0] == results[1]
    states = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (actual, expected)]
    assert exact(states[0]) == exact(states[1])
    predictions = [np.load(run / "predictions.npz")["predictions"] for run in (actual, expected)]
    assert np.array_equal(*predictions)
    assert not (actual / "unfinished").exists()


@pytest.mark.parametrize(
    ("name", "call"),
    [("append", 3), ("append", 4), ("write_torch", 2), ("write_arrays", 1), ("finish", 1)],
    ids=["before the rows", "between the rows", "before the checkpoint", "evaluated", "done"],
)
def test_killed_and_resumed(
    name: str, call: int, start: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the `call`-th call of what writes; steps 4 to 6 are those of epoch 2."""
    norm = "bin" if name == "write_torch" else "bn"
    flags = {"norm": norm, "recipe": "he", "amp": "bf16" if call == 3 else "off"}
    if name == "write_arrays":
        flags |= {"recipe": "fast", "ema": 0.9}
    expected = start("unbroken", **flags)
    owner = RunFolder if hasattr(RunFolder, name) else train_script
    original, calls = getattr(owner, name), [0]

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Killed):
            start("killed", **flags)
    assert_same_run(start("killed", resume=True, **flags), expected)


def test_a_run_without_resume_begins_anew(start: Callable[..., Path]) -> None:
    first = start("run", seed=1)
    shutil.copytree(first, first.parent / "copy")
    (first / "unfinished").mkdir()
    shutil.copy(first / "checkpoint.pt", first / "unfinished")
    assert_same_run(start("run", seed=1), first.parent / "copy")


def test_a_finished_run_is_left_alone(
    start: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = start("run")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    assert start("run", resume=True) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert capsys.readouterr().out == f"already finished: {folder}\n"


def test_resuming_another_run(start: Callable[..., Path], tmp_path: Path) -> None:
    folder = start("run")
    with pytest.raises(UserError, match=r"another --lr \(there 0.1, here 0.2\), --norm"):
        start("run", resume=True, lr=0.2, norm="gn")
    unfinished = tmp_path / "other" / "unfinished"
    unfinished.mkdir(parents=True)
    checkpoint = unfinished / "checkpoint.pt"
    shutil.copy(folder / "checkpoint.pt", checkpoint)
    with pytest.raises(UserError, match=r"another --seed \(there 0, here 1\)"):
        start("other", resume=True, seed=1)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"checkpoint\.pt is not a checkpoint"):
        start("other", resume=True)
    assert checkpoint.stat().st_size == 1000 and list(unfinished.iterdir()) == [checkpoint]


def test_resuming_with_other_images(start: Callable[..., Path], tmp_path: Path) -> None:
    folder = start("run")
    unfinished = tmp_path / "other" / "unfinished"
    unfinished.mkdir(parents=True)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["mean"] = (0.1, 0.2, 0.3)
    torch.save(state, unfinished / "checkpoint.pt")
    with pytest.raises(UserError, match="images are not those that the run began with"):
        start("other", resume=True)


@pytest.mark.slow  # five points of it are test_killed_and_resumed's, in this process
def test_a_killed_process(tiny_cifar: Path, tmp_path: Path, start: Callable[..., Path]) -> None:
    """SIGKILL as soon as there is a checkpoint."""
    flags = {**FLAGS, "epochs": 60}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    script = Path(train_script.__file__)
    command = [sys.executable, str(script), f"--data-dir={tiny_cifar}", *words]
    output = tmp_path / "killed"
    with subprocess.Popen([*command, f"--output={output}"], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (output / "unfinished" / "checkpoint.pt").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (output / "results.json").exists()
    assert_same_run(start("killed", epochs=60, resume=True), start("unbroken", epochs=60))
