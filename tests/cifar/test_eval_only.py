"""train.py --eval-only: a checkpoint's scores, as training printed them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import train as train_script

from harness import optimizers
from harness.config import TrainConfig
from harness.errors import UserError


@pytest.fixture
def evaluate(tiny_cifar: Path) -> Callable[..., None]:
    """In this process, on the tiny CIFAR-10."""
    return lambda path, **flags: train_script.evaluate(
        TrainConfig(eval_only=path, **{"data_dir": tiny_cifar, **flags})
    )


def table(printed: str) -> list[str]:
    """The lines of the splits."""
    lines = printed.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("split"))
    return [line for line in lines[start:] if not line.startswith("results, ")]


@pytest.mark.parametrize(
    "flags", [{"ema": 0.9, "channels_last": True}, {"recipe": "he", "norm": "gn", "groups": 4}]
)
def test_prints_what_training_printed(
    run: Callable[..., Path],
    evaluate: Callable[..., None],
    flags: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The he recipe has another validation split; nothing is written and no optimizer made."""
    layouts = []
    original = train_script.infer_splits

    def infer_splits(model: Any, *args: Any) -> Any:
        weight = model.blocks[0].conv1.weight
        layouts.append(weight.is_contiguous(memory_format=torch.channels_last))
        return original(model, *args)

    monkeypatch.setattr(train_script, "infer_splits", infer_splits)
    folder = run(backend="cpu", **flags)
    trained = table(capsys.readouterr().out)
    monkeypatch.setattr(torch.optim, "SGD", lambda *_, **__: pytest.fail("an optimizer"))
    monkeypatch.setattr(optimizers, "make_optimizer", lambda *_: pytest.fail("an optimizer"))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for path in (folder, folder / "checkpoint.pt"):
        evaluate(path, backend="cpu")
        assert table(capsys.readouterr().out) == trained
    assert set(layouts) == {flags.get("channels_last", False)}
    assert len(trained) == (7 if "ema" in flags else 4)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_refuses_what_it_would_not_heed(
    run: Callable[..., Path],
    evaluate: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for flags, name in (({"norm": "gn"}, "--norm"), ({"lr": 0.1}, "--lr"), ({"ema": 0.9}, "--ema")):
        with pytest.raises(UserError, match=f"--eval-only takes all but the data .* {name}$"):
            evaluate(tmp_path, **flags)
    with pytest.raises(UserError, match=f"--eval-only {tmp_path} holds no finished run"):
        evaluate(tmp_path)
    folder = run(backend="torch", max_steps=1)
    with pytest.raises(UserError, match="whose classes are not those of sklearn-digits"):
        evaluate(folder, dataset="digits", data_dir=None)
    other = tmp_path / "cut.pt"
    shutil.copy(folder / "checkpoint.pt", other)
    other.write_bytes(other.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut\.pt is not a checkpoint"):
        evaluate(other)
    monkeypatch.setattr(train_script, "train", lambda _: pytest.fail("has trained"))
    monkeypatch.setattr("sys.argv", ["train.py", "--eval-only", str(tmp_path / "absent.pt")])
    with pytest.raises(UserError, match=r"cannot read .*absent\.pt"):
        train_script.main()
