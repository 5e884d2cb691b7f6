"""Files that appear whole or not at all, whenever their writer is killed."""

import os
from pathlib import Path

import pytest
import torch

from harness import files
from harness.errors import UserError
from harness.files import (
    RunFolder,
    append_rows,
    load_checkpoint,
    read_rows,
    require_writable,
    write_json,
)

from .conftest import CIFAR, run_python

# Children that save without end, each killed after a random while: what is under the name must load
# and be one checkpoint, not the mixture of two.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from harness.files import load_checkpoint, write_torch

path, most = Path(sys.argv[1]), int(sys.argv[2])
rest = dict.fromkeys(("architecture", "config", "mean", "std", "class_names"), 0)
draw, finished = random.Random(0), set()

def save_for_ever():
    i = 0
    while True:
        i += 1
        model = {name: torch.full((200, 200), float(i)) for name in "abcdef"}
        write_torch(path, rest | {"model": model})

write_torch(path, rest | {"model": {"a": torch.zeros(1)}})
kills = 0
def hit():
    return len(finished) >= 2 and len(list(path.parent.glob("*.tmp"))) >= 2

while kills < 40 or (kills < most and not hit()):
    kills += 1
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
    done = run_python("-c", KILLED, tmp_path / "checkpoint.pt", 400, PYTHONPATH=str(CIFAR))
    assert done.returncode == 0, done.stderr
    finished, temporary = map(int, done.stdout.split())
    assert finished >= 2 and temporary >= 2, "the kills missed what they were meant to hit"


def fill(folder: RunFolder) -> RunFolder:
    """All files of a run."""
    folder.begin()
    for name in RunFolder.NAMES:
        write_json(folder.unfinished / name, {"config": {"lr": 0.1, "norm": "bn"}})
    return folder


def test_what_a_killed_run_left_does_not_stop_the_next(tmp_path: Path) -> None:
    """Its temporary files go when the next run begins, whose folder must be empty to end."""
    killed = fill(RunFolder(tmp_path))
    (killed.unfinished / "checkpoint.ptabc.tmp").write_bytes(b"half of it")
    run = RunFolder(tmp_path)
    run.begin()
    assert not list(run.unfinished.iterdir())
    fill(run).finish()
    assert {path.name for path in tmp_path.iterdir()} == set(RunFolder.NAMES)


def test_a_run_killed_while_it_moves_its_files_does_not_pass_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier run's results.json must not stand beside the later one's checkpoint."""
    fill(RunFolder(tmp_path)).finish()
    run = fill(RunFolder(tmp_path))
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


def test_going_on_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    """Rows of an epoch that has no checkpoint, a last line cut short, files half-written."""
    folder = RunFolder(tmp_path)
    folder.begin()
    folder.append("steps.jsonl", [{"step": i, "epoch": i} for i in (1, 2, 3)])
    folder.append("metrics.jsonl", [{"epoch": i} for i in (1, 2)])
    with (folder.unfinished / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "va')
    for name in ("checkpoint.pt", "config.json", "results.json", "checkpoint.ptx.tmp"):
        (folder.unfinished / name).write_text(name)
    folder.go_on(epoch=2)
    assert [row["step"] for row in read_rows(folder.unfinished / "steps.jsonl")] == [1, 2]
    assert read_rows(folder.unfinished / "metrics.jsonl") == [{"epoch": 1}, {"epoch": 2}]
    left = {path.name for path in folder.unfinished.iterdir()}
    assert left == {"checkpoint.pt", "config.json", "steps.jsonl", "metrics.jsonl"}


def test_finished_is_this_very_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.finished({"lr": 0.1, "norm": "bn"})
    fill(folder).finish()
    assert folder.finished({"lr": 0.1, "norm": "bn"})
    with pytest.raises(UserError, match=r"another --lr \(there 0.1, here 0.2\); give"):
        folder.finished({"lr": 0.2, "norm": "bn"})
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json is not the results of a run"):
        folder.finished({"lr": 0.1, "norm": "bn"})


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from harness.errors import run_script
from harness.files import write_torch

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes past the limit raise OSError instead
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
run_script(lambda: write_torch(Path(sys.argv[1]), {"model": torch.zeros(100_000)}))
"""


def test_a_full_disk_is_one_line_and_overwrites_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the same OSError out of write."""
    (tmp_path / "checkpoint.pt").write_text("earlier")
    done = run_python("-c", FULL, tmp_path / "checkpoint.pt", PYTHONPATH=str(CIFAR))
    expected = f"error: cannot write {tmp_path / 'checkpoint.pt'}: File too large\n"
    assert (done.returncode, done.stderr) == (1, expected)
    assert (tmp_path / "checkpoint.pt").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_failed_write_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})

    def half(file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(UserError, match=r"cannot write .*a\.json: disk full"):
        files.write_atomic(tmp_path / "a.json", half)
    assert (tmp_path / "a.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


APPENDED = """
import resource, signal, sys
from pathlib import Path
from harness.errors import run_script
from harness.files import append_rows

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
rows = [{"text": "x" * 500}] * 100
run_script(lambda: append_rows(Path(sys.argv[1]), rows))
"""


def test_rows_on_a_full_disk_are_added_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"a": 1}])
    done = run_python("-c", APPENDED, path, PYTHONPATH=str(CIFAR))
    expected = f"error: cannot write {path}: File too large\n"
    assert (done.returncode, done.stderr) == (1, expected)
    assert path.read_text() == '{"a": 1}\n'


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where a folder should be, as nobody may forbid root anything; no temporary name."""
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / "inner" / "a.json"
    for attempt in (lambda: write_json(path, {}), lambda: require_writable(path)):
        with pytest.raises(UserError, match=r"^cannot write .*inner/a\.json: Not a directory$"):
            attempt()
    with pytest.raises(UserError, match="is a folder; give a file"):
        require_writable(tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*unfinished: Not a directory"):
        RunFolder(tmp_path / "file" / "run").begin()


def test_a_file_takes_the_place_of_files_alone(tmp_path: Path) -> None:
    """A pipe stays, behind a link too: as root the rename would put a file in a device's place."""
    pipe, file = tmp_path / "pipe", tmp_path / "file.json"
    os.mkfifo(pipe)
    file.write_text("{}")
    for link, target in (("to_pipe", pipe), ("to_file", file), ("to_nothing", tmp_path / "no")):
        (tmp_path / link).symlink_to(target)
    for path in (pipe, tmp_path / "to_pipe"):
        with pytest.raises(UserError, match=f"^{path} is a device, pipe or socket; give another"):
            write_json(path, {})
        with pytest.raises(UserError, match=f"^--output {path} is a device, pipe or socket"):
            require_writable(path)
    assert pipe.is_fifo() and (tmp_path / "to_pipe").is_fifo()
    for name in ("file.json", "to_file", "to_nothing"):
        require_writable(tmp_path / name)
        write_json(tmp_path / name, {"a": 1})
        assert (tmp_path / name).read_text() == '{\n  "a": 1\n}\n'


def test_a_run_says_at_its_start_what_is_in_the_way_of_its_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(UserError, match=r"results\.json is a device, pipe or socket"):
        RunFolder(tmp_path)
    (tmp_path / "results.json").unlink()
    (tmp_path / "checkpoint.pt").mkdir()
    with pytest.raises(UserError, match=r"checkpoint\.pt is a folder"):
        RunFolder(tmp_path)


def test_a_read_only_folder_is_named_without_a_temporary_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path, prefix: str, suffix: str) -> None:
        raise PermissionError(13, "Permission denied", f"{dir}/{prefix}x7k2{suffix}")

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    with pytest.raises(UserError) as caught:
        write_json(tmp_path / "a.json", {})
    assert str(caught.value) == f"cannot write {tmp_path / 'a.json'}: Permission denied"


def test_asking_whether_a_file_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "folder" / "a.csv")
    (tmp_path / "old.csv").write_text("kept")
    require_writable(tmp_path / "old.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "kept"


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.9, 0.999])
def test_a_checkpoint_cut_short(tmp_path: Path, kept: float) -> None:
    """Anywhere: torch raises OSError, EOFError, RuntimeError or UnpicklingError, by the place."""
    path = tmp_path / "checkpoint.pt"
    files.write_torch(path, {"model": {"a": torch.zeros(1000)}, "config": {}})
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(UserError, match=r"checkpoint\.pt is not a checkpoint, or is cut short"):
        load_checkpoint(path)


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*x\.pt: No such file or directory; give"):
        load_checkpoint(tmp_path / "x.pt")
