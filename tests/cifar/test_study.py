"""The study's plan, and study.py at work."""

import dataclasses
import itertools
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro
from speed import SpeedConfig
from study import command_line, left, speed_flags

from harness.config import TrainConfig, flag_words
from harness.errors import UserError
from harness.files import read_rows
from harness.plan import SEVEN, StudyConfig, planned
from harness.recipes import RECIPES

SMALL = ("--seeds", 0, "--epochs", 1, "--depth-n", 1, "--device", "cpu", "--variants", "none", "gn")


def plan(**flags: Any) -> dict[str, list[TrainConfig]]:
    found: dict[str, list[TrainConfig]] = {}
    for run in planned(StudyConfig(output=Path("out"), **flags)):
        found.setdefault(run.name, []).append(run.config)
    return found


def test_the_whole_study() -> None:
    runs = plan()
    assert [len(configs) for configs in runs.values()] == [3] * (7 + 3 + 10)
    assert tuple(runs)[:7] == SEVEN
    assert all(config.epochs == 100 and config.lr == 0.1 for name in SEVEN for config in runs[name])
    assert {(c.norm, c.backend) for c in runs["bn-builtin"]} == {("bn", "torch")}
    assert [c.seed for c in runs["gn-batch8"]] == [0, 1, 2]
    batch = {c.batch_size: (c.lr, c.epochs) for n, cs in runs.items() if "batch" in n for c in cs}
    expected = {size: (pytest.approx(0.1 * size / 128), 60) for size in (128, 32, 8, 4, 2)}
    assert batch == expected
    assert runs["in"][1].output == Path("out/runs/in/seed1")


def test_parts_and_recipes() -> None:
    assert list(plan(parts=("builtin",), seeds=(7,))) == ["in-builtin", "ln-builtin", "gn-builtin"]
    he = plan(recipe="he", parts=("variants",), variants=("sn", "wn"), depth_n=3)
    assert {name: (c.epochs, c.lr, c.shortcut) for name, (c, *_) in he.items()} == {
        "sn": (182, 0.1, "pad"),
        "wn": (182, 0.03, "pad"),
    }
    fast = plan(recipe="fast", parts=("variants",), variants=("gn",))["gn"][0]
    assert (fast.epochs, fast.lr, fast.shortcut) == (30, 0.1, "projection")
    assert plan(parts=("batch",), epochs=5)["bn-batch2"][0].epochs == 3
    digits = plan(dataset="digits", batch_sizes=(32, 8))
    (first, *_), (small, *_) = digits["gn"], digits["gn-batch8"]
    recipe = RECIPES["digits"]
    assert (first.recipe, first.epochs, first.batch_size) == (
        "digits",
        recipe.epochs,
        recipe.batch_size,
    )
    assert (first.lr, small.lr) == (recipe.lr, recipe.lr * 8 / recipe.batch_size)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"jobs": 0}, "--jobs is 0"),
        ({"seeds": ()}, "--seeds must name at least one"),
        ({"batch_sizes": (8, 8)}, "--batch-sizes must name at least one, and none twice"),
    ],
)
def test_bad_flags(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StudyConfig(output=Path("out"), **flags).check()


def test_scripts_get_the_flags_that_were_meant() -> None:
    study = StudyConfig(
        output=Path("out dir"), data_dir=Path("d"), dataset_label="CIFAR-10 (JPEG q75)",
        amp="bf16", channels_last=True, depth_n=3, variants=("bn-builtin", "bn", "sn"),
    )  # fmt: skip
    for run in planned(study):
        assert tyro.cli(TrainConfig, args=flag_words(vars(run.config))) == run.config
    speed = tyro.cli(SpeedConfig, args=flag_words(speed_flags(study)))
    assert speed.norms == ("bn", "sn") and speed.output == Path("out dir/speed.jsonl")
    for field in dataclasses.fields(speed):
        if field.name not in ("norms", "output", "compile") and hasattr(study, field.name):
            assert getattr(speed, field.name) == getattr(study, field.name)


@pytest.mark.slow
def test_a_study_from_the_command_line(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tiny_cifar: Path, tmp_path: Path
) -> None:
    """Two runs and their speed; then there is nothing to do; then a study of other flags."""
    flags = ("--output", tmp_path, "--data-dir", tiny_cifar, *SMALL)
    done = run_script("study.py", *flags, "--parts", "variants", "--jobs", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("none", "gn"):
        results = json.loads((tmp_path / f"runs/{name}/seed0/results.json").read_text())
        assert results["config"]["norm"] == name and results["config"]["epochs"] == 1
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["planned"] == [{"name": n, "seed": 0, "part": "variants"} for n in ("none", "gn")]
    again = run_script("study.py", *flags, "--parts", "variants")
    assert "2 runs, 2 finished before" in again.stdout and ": done" not in again.stdout
    other = run_script("study.py", *flags, "--parts", "variants", "--amp", "bf16")
    assert other.returncode == 1 and "another --amp (there off, here bf16)" in other.stderr


@pytest.mark.slow
def test_what_failed_is_named_and_the_others_go_on(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tiny_cifar: Path, tmp_path: Path
) -> None:
    """Speed wants 128 images, of which the tiny data set has 44."""
    flags = ("--output", tmp_path, "--data-dir", tiny_cifar, *SMALL)
    done = run_script("study.py", *flags, "--parts", "speed", "variants", "--jobs", 2)
    assert "speed: FAILED" in done.stdout and "128, of 44 images" in done.stdout
    assert done.returncode == 1 and "error: failed: speed; see" in done.stderr
    assert len(list(tmp_path.glob("runs/*/seed0/results.json"))) == 2
    (tmp_path / "runs" / "bn").mkdir()
    (tmp_path / "runs" / "bn" / "seed0").write_text("")
    done = run_script("study.py", *flags, "--parts", "variants", "--variants", "bn")
    assert done.returncode == 1 and "seed0 is a file; give a folder" in done.stderr


def test_time_is_up(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tiny_cifar: Path, tmp_path: Path
) -> None:
    flags = ("--output", tmp_path, "--data-dir", tiny_cifar, *SMALL, "--parts", "variants")
    done = run_script("study.py", *flags, "--seconds", 0.1)
    assert done.returncode == 3 and "time is up; call again" in done.stdout
    assert not list(tmp_path.glob("runs/*/*/results.json"))


@pytest.mark.slow
def test_a_terminated_study_leaves_no_run_behind(tiny_cifar: Path, tmp_path: Path) -> None:
    flags = [*map(str, SMALL), "--parts", "variants", "--data-dir", str(tiny_cifar)]
    command = [*command_line("study.py", {"output": tmp_path}), *flags, "--epochs", "500"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as study:
        wait_for(lambda: list(tmp_path.glob("runs/*/*/unfinished/metrics.jsonl")), study)
        (metrics,) = tmp_path.glob("runs/*/*/unfinished/metrics.jsonl")
        study.send_signal(signal.SIGTERM)
    assert study.returncode == 128 + signal.SIGTERM
    rows = read_rows(metrics)
    time.sleep(1)
    assert read_rows(metrics) == rows


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def test_finished_runs_are_left_out(tmp_path: Path) -> None:
    study = StudyConfig(output=tmp_path, seeds=(0,), parts=("variants",))
    runs = planned(study)
    folder = tmp_path / "runs" / "bn" / "seed0"
    folder.mkdir(parents=True)
    record = next(run.config.record() for run in runs if run.name == "bn")
    (folder / "results.json").write_text(json.dumps({"config": record}))
    assert [run.name for run in left(runs)] == [name for name in SEVEN if name != "bn"]
    assert len(list(itertools.chain(runs))) == 7
