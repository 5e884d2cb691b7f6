"""Reading, refusing and replacing CIFAR-10."""

import hashlib
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import cifar10
import numpy as np
import pytest
import torch
from config import TrainConfig
from data import load_dataset
from errors import UserError

from .conftest import ROWS, tiny_batches


def test_reads_every_row(tiny_cifar: Path) -> None:
    data = load_dataset(TrainConfig(data_dir=tiny_cifar))
    assert (len(data.train), len(data.val), len(data.test)) == (44, 11, ROWS["test_batch"])
    batches = tiny_batches()
    files = [batches[name] for name in cifar10.TRAIN_FILES]
    images = torch.cat([data.train.images, data.val.images]).reshape(-1, 3072).numpy()
    assert (images == np.concatenate([file[b"data"] for file in files])).all()
    labels = torch.cat([data.train.labels, data.val.labels]).tolist()
    assert labels == [label for file in files for label in file[b"labels"]]
    assert data.test.labels.tolist() == batches["test_batch"][b"labels"]
    assert (data.name, data.flip, data.class_names[9]) == ("CIFAR-10", True, "truck")


def test_data_dir_may_be_the_inner_folder(tiny_cifar: Path) -> None:
    config = TrainConfig(data_dir=tiny_cifar / "cifar-10-batches-py", dataset_label="tiny")
    data = load_dataset(config)
    assert (len(data.train), data.name) == (44, "tiny")


class RunsACommand:
    """What a hostile pickle looks like."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


GOOD = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 9]}, protocol=2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GOOD[:-40], "cannot be read"),
        (b"", "cannot be read"),
        (pickle.dumps(RunsACommand()), "mkdir"),
        (pickle.dumps([1]), "holds a list"),
        (pickle.dumps({"labels": [0]}), "'data' must be a uint8"),
        (pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 9]}), "'data' must be a uint8"),
        (pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 9]}), "3071"),
        (pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": []}), "N >= 1"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "list of 2"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}), "0 to 9"),
    ],
)
def test_refuses_a_damaged_file(
    content: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "data_batch_1"
    file.write_bytes(content)
    with pytest.raises(UserError, match=reason) as raised:
        cifar10.read_batch(file)
    assert str(file) in str(raised.value)
    assert not Path("owned").exists()


def test_reads_what_the_damaged_files_are_made_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(GOOD)
    images, labels = cifar10.read_batch(tmp_path / "file")
    assert (images.shape, labels.tolist()) == ((2, 3, 32, 32), [0, 9])


def test_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test_batch is missing"):
        cifar10.read_folder(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        cifar10.read_folder(tmp_path / "nowhere")


def test_digits() -> None:
    data = load_dataset(TrainConfig(dataset="digits"))
    splits = (data.train, data.val, data.test)
    assert [len(split) for split in splits] == [1197, 300, 300]
    images = torch.cat([split.images for split in splits])
    assert images.shape == (1797, 3, 32, 32) and images.dtype == torch.uint8
    assert torch.equal(images[:, 0], images[:, 2]) and images.max() == 255
    assert len(images.flatten(1).unique(dim=0)) == 1797  # no image in two splits
    counts = torch.cat([split.labels for split in splits]).bincount()
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (data.name, data.flip) == ("sklearn-digits-32x32", False)


def test_channel_moments(tiny_cifar: Path) -> None:
    data = load_dataset(TrainConfig(data_dir=tiny_cifar))
    values = data.train.images.double() / 255
    expected = values.mean((0, 2, 3)), values.std((0, 2, 3), correction=0)
    for actual, exact in zip(data.channel_moments(), expected, strict=True):
        torch.testing.assert_close(torch.tensor(actual).double(), exact, rtol=1e-6, atol=0)


@pytest.fixture
def archive(tiny_cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local file in the place of the download, and an empty cache."""
    file = tmp_path / "cifar.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        tar.add(tiny_cifar / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(cifar10, "URL", file.as_uri())
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(file.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar10, "CACHE", tmp_path / "cache")
    return file


def test_download_is_cached(archive: Path) -> None:
    assert len(load_dataset(TrainConfig()).train) == 44
    archive.unlink()
    assert len(load_dataset(TrainConfig(dataset="cifar10")).train) == 44
    assert [path.name for path in cifar10.CACHE.iterdir()] == ["cifar-10-batches-py"]


def test_download_with_another_md5_is_refused(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "MD5", "0" * 32)
    with pytest.raises(UserError, match="MD5"):
        load_dataset(TrainConfig())
    assert list(cifar10.CACHE.iterdir()) == []


def test_offline_means_digits_and_says_so(archive: Path, capfd: pytest.CaptureFixture[str]) -> None:
    archive.unlink()
    with pytest.raises(UserError, match="--data-dir"):
        load_dataset(TrainConfig(dataset="cifar10"))
    assert load_dataset(TrainConfig()).name == "sklearn-digits-32x32"
    assert "NOT CIFAR-10" in capfd.readouterr().err
