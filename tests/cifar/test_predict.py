"""test.py: a CSV of images in, one label a line out."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from config import PredictConfig, TrainConfig
from data import load_dataset
from errors import UserError
from train import train


@pytest.fixture(scope="module")
def checkpoint(tiny_cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with torch's own modules, well enough to tell the tiny CIFAR-10's classes apart."""
    output = tmp_path_factory.mktemp("run")
    flags = {"epochs": 4, "batch_size": 16, "depth_n": 1, "backend": "builtin"}
    return train(TrainConfig(data_dir=tiny_cifar, output=output, **flags)) / "checkpoint.pt"


@pytest.fixture
def csv(tiny_cifar: Path, tmp_path: Path) -> Path:
    images = load_dataset("auto", tiny_cifar, None, 0.2).train.images
    file = tmp_path / "images.csv"
    np.savetxt(file, images.reshape(len(images), -1).numpy(), fmt="%d", delimiter=",")
    return file


def test_round_trip(
    checkpoint: Path,
    csv: Path,
    tiny_cifar: Path,
    tmp_path: Path,
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """The classes are the training images' own, so a wrong order, scale or layout would show."""
    output = tmp_path / "labels.csv"
    flags = ("--checkpoint", checkpoint, "--images", csv, "--output", output)
    done = run_script("test.py", *flags)
    assert done.returncode == 0, done.stderr
    labels = torch.tensor([int(line) for line in output.read_text().splitlines()])
    truth = load_dataset("auto", tiny_cifar, None, 0.2).train.labels
    assert (labels == truth).double().mean() > 0.9
    assert set(labels.tolist()) == {0, 1, 2}


def test_every_backend_reads_the_checkpoint(
    predict_script: ModuleType, checkpoint: Path, csv: Path, tmp_path: Path
) -> None:
    texts = set()
    for backend in ("auto", "reference", "builtin"):
        predict_script.test(PredictConfig(checkpoint, csv, tmp_path / backend, backend))
        texts.add((tmp_path / backend).read_text())
    assert len(texts) == 1


def test_reads_the_numbers_that_savetxt_writes(predict_script: ModuleType) -> None:
    values = np.arange(3072) % 256
    line = ",".join(f"{value:.18e}" for value in values) + "\n"
    parsed = predict_script.parse_row(line, "row 1")
    assert parsed.shape == (3, 32, 32) and (parsed.ravel() == values).all()


def replaced(row: str, column: int, value: str) -> str:
    fields = row.split(",")
    fields[column] = value
    return ",".join(fields)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda row: row.rsplit(",", 1)[0], "row 3 has 3071 values"),
        (lambda row: row + ",1", "row 3 has 3073 values"),
        (lambda row: "", "row 3 has 1 values"),
        (lambda row: replaced(row, 5, "red"), "row 3: .*'red'"),
        (lambda row: replaced(row, 5, "256"), "row 3: value 6 is 256"),
        (lambda row: replaced(row, 5, "-1"), "row 3: value 6 is -1"),
        (lambda row: replaced(row, 5, "nan"), "row 3: value 6 is nan"),
    ],
)
def test_a_malformed_row_is_named_and_nothing_written(
    predict_script: ModuleType,
    checkpoint: Path,
    csv: Path,
    tmp_path: Path,
    damage: Callable[[str], str],
    reason: str,
) -> None:
    rows = csv.read_text().splitlines()
    rows[2] = damage(rows[2])
    csv.write_text("\n".join(rows))
    output = tmp_path / "labels.csv"
    output.write_text("earlier")
    with pytest.raises(UserError, match=reason):
        predict_script.test(PredictConfig(checkpoint, csv, output))
    assert output.read_text() == "earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"images.csv", "labels.csv"}


def test_refuses_what_is_no_checkpoint(
    predict_script: ModuleType, checkpoint: Path, csv: Path, tmp_path: Path
) -> None:
    output, other = tmp_path / "labels.csv", tmp_path / "other.pt"
    for content in (b"", b"abc", checkpoint.read_bytes()[:1000]):
        other.write_bytes(content)
        with pytest.raises(UserError, match="not a checkpoint"):
            predict_script.test(PredictConfig(other, csv, output))
    torch.save({"weights": torch.zeros(1)}, other)
    with pytest.raises(UserError, match=r"not a checkpoint of train\.py"):
        predict_script.test(PredictConfig(other, csv, output))
    values = torch.load(checkpoint, weights_only=True)
    torch.save({**values, "config": {**values["config"], "depth_n": 2}}, other)
    with pytest.raises(UserError, match="do not fit"):
        predict_script.test(PredictConfig(other, csv, output))


def test_does_not_overwrite_its_input(
    predict_script: ModuleType, checkpoint: Path, csv: Path
) -> None:
    with pytest.raises(UserError, match="overwrite"):
        predict_script.test(PredictConfig(checkpoint, csv, csv))


def test_an_empty_file_has_no_images(
    predict_script: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match="no rows"):
        predict_script.test(
            PredictConfig(checkpoint, tmp_path / "empty.csv", tmp_path / "labels.csv")
        )
