"""How many epochs fit, and the arguments for cifar/study.py."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import fitting_study
from benchmarks.fitting_study import BESIDE, STARTING, epochs_that_fit


def speed(norm: str, seconds: float, provider: str = "fastnorm") -> dict[str, Any]:
    return {"norm": norm, "provider": provider, "epoch_seconds": seconds}


ROWS = [speed("bn", 2.0), speed("bn", 9.0, "builtin"), speed("none", 1.0, "builtin")]


def test_all_variants_have_as_many_epochs_as_fit_together() -> None:
    seconds = STARTING + BESIDE * 30.5
    assert epochs_that_fit(ROWS, ["bn", "none"], seconds) == 10
    assert epochs_that_fit(ROWS, ["bn", "none", "gn"], seconds) == 6, "gn counts as 1.5 s"


def test_there_is_an_epoch_and_never_more_than_the_studys() -> None:
    assert epochs_that_fit(ROWS, ["bn"], 1.0) == 1
    assert epochs_that_fit([], ["bn"], 1000.0) == 1
    assert epochs_that_fit(ROWS, ["bn"], 1e6) == 100


@pytest.mark.parametrize(("before", "epochs"), [(None, 10), (7, 7)])
def test_a_study_that_was_begun_goes_on_with_its_epochs(
    before: int | None, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        called.append(command)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(fitting_study.subprocess, "run", run)
    (tmp_path / "speed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    if before is not None:
        (tmp_path / "study.json").write_text(json.dumps({"epochs": before}))
    words = ["--seconds", str(STARTING + BESIDE * 30.5), "--output", str(tmp_path)]
    code = fitting_study.main([*words, "--variants", "bn", "none", "--device", "cuda"])
    assert code == 3, "study.py's: call again"
    (command,) = called
    assert command[1] == "cifar/study.py" and command[-2:] == ["--device", "cuda"]
    assert command[command.index("--epochs") + 1] == str(epochs)
    assert command[command.index("--jobs") + 1] == "2"
