"""--tensorboard, with a stand-in for the package: which values it gets, at which steps, where."""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import train as train_script

from harness import config
from harness.errors import UserError
from harness.files import read_rows

TAGS = (
    *("train_loss", "train_accuracy", "val_accuracy", "images_per_second", "seconds", "lr"),
    *("rho_min", "rho_mean", "rho_max"),
)


class SummaryWriter:
    """torch.utils.tensorboard's, as far as it is used."""

    opened: list["SummaryWriter"]  # since the test began

    def __init__(self, log_dir: str, *, purge_step: int) -> None:
        self.log_dir, self.purge_step = log_dir, purge_step
        self.scalars: dict[tuple[str, int], float] = {}
        self.flushed: dict[tuple[str, int], float] = {}
        self.opened.append(self)

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        assert (tag, global_step) not in self.scalars
        self.scalars[tag, global_step] = scalar_value

    def flush(self) -> None:
        self.flushed = dict(self.scalars)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[SummaryWriter]:
    """The writers of a run, whose tensorboard is this stand-in."""
    package = ModuleType("tensorboard")
    package.__spec__ = ModuleSpec("tensorboard", None)
    adapter = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboard", package)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", adapter)
    monkeypatch.setattr(SummaryWriter, "opened", [], raising=False)
    return SummaryWriter.opened


def scalars(folder: Path, *epochs: int) -> dict[tuple[str, int], float]:
    """The numbers of these epochs in metrics.jsonl."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["epoch"] in epochs]
    return {(tag, row["epoch"]): row[tag] for row in rows for tag in TAGS}


def test_each_number_of_an_epoch_is_a_scalar(
    run: Callable[..., Path], opened: list[SummaryWriter]
) -> None:
    folder = run(norm="bin", tensorboard=True)
    (writer,) = opened
    assert (writer.log_dir, writer.purge_step) == (str(folder / "tensorboard"), 1)
    assert writer.flushed == scalars(folder, 1, 2)


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(
    run: Callable[..., Path], opened: list[SummaryWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the checkpoint of epoch 2."""
    flags = {"norm": "bin", "tensorboard": True}
    write, calls = train_script.write_torch, [0]

    def dies(path: Path, content: dict[str, object]) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(train_script, "write_torch", dies)
        with pytest.raises(KeyboardInterrupt):
            run(**flags)
    folder = run(resume=True, **flags)
    killed, resumed = opened
    assert killed.flushed == scalars(folder, 1)
    assert resumed.purge_step == 2 and resumed.flushed == scalars(folder, 2)


def test_nothing_is_opened_unasked(run: Callable[..., Path], opened: list[SummaryWriter]) -> None:
    run(max_steps=1)
    assert not opened


def test_the_package_is_asked_for_before_anything_is_touched(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(config.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        run("run", tensorboard=True)
    assert not (tmp_path / "run").exists()
