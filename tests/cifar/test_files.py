"""Files that appear whole or not at all, whenever their writer is killed."""

import os
import subprocess
import sys
from pathlib import Path

import files
import pytest
from files import RunFolder, write_json

CIFAR = Path(__file__).parents[2] / "cifar"

# Children that save without end, each killed after a random while: what is under the name must load
# and be one checkpoint, not the mixture of two.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from files import load_checkpoint, save_checkpoint

path, kills = Path(sys.argv[1]), int(sys.argv[2])
rest = dict.fromkeys(("config", "mean", "std", "class_names"), 0)
draw, finished = random.Random(0), set()

def save_for_ever():
    i = 0
    while True:
        i += 1
        model = {name: torch.full((200, 200), float(i)) for name in "abcdef"}
        save_checkpoint(path, rest | {"model": model})

save_checkpoint(path, rest | {"model": {"a": torch.zeros(1)}})
for _ in range(kills):
    child = os.fork()
    if child == 0:
        save_for_ever()
    time.sleep(draw.uniform(0.0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    values = {t[0, 0].item() for t in load_checkpoint(path)["model"].values() if t.dim() == 2}
    assert len(values) <= 1, values
    finished |= values
temporary = sorted(path.parent.glob("*.tmp"))
print(len(finished), len(temporary))
"""


def test_a_process_killed_while_it_saves(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "checkpoint.pt"), "40"],
        env=os.environ | {"PYTHONPATH": str(CIFAR), "OMP_NUM_THREADS": "1"}, cwd=tmp_path,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    finished, temporary = map(int, done.stdout.split())
    assert finished >= 2 and temporary >= 2, "the kills missed what they were meant to hit"


def test_what_a_killed_run_left_does_not_stop_the_next(tmp_path: Path) -> None:
    """Its temporary files go when the next run begins, whose folder must be empty to end."""
    killed = RunFolder(tmp_path)
    (killed.unfinished / "checkpoint.ptabc.tmp").write_bytes(b"half of it")
    killed.append("steps.jsonl", [{"step": 1}])
    run = RunFolder(tmp_path)
    assert not list(run.unfinished.iterdir())
    for name in RunFolder.NAMES:
        write_json(run.unfinished / name, {})
    run.finish()
    assert {path.name for path in tmp_path.iterdir()} == set(RunFolder.NAMES)


def test_a_run_killed_while_it_moves_its_files_does_not_pass_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier run's results.json must not stand beside the later one's checkpoint."""
    for _ in range(2):
        run = RunFolder(tmp_path)
        for name in RunFolder.NAMES:
            write_json(run.unfinished / name, {})
        if not (tmp_path / "results.json").exists():
            run.finish()
    replace, left = os.replace, [2]

    def replace_two(source: Path, target: Path) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", replace_two)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    assert (tmp_path / "checkpoint.pt").exists() and not (tmp_path / "results.json").exists()


def test_a_failed_write_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})

    def half(file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(tmp_path / "a.json", half)
    assert (tmp_path / "a.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
