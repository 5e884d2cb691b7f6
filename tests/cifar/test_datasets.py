"""Reading, refusing and replacing CIFAR-10 and CIFAR-100."""

import dataclasses
import hashlib
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import archives, download
from harness.archives import ARCHIVES, CIFAR10, CIFAR100
from harness.datasets import Dataset, load_dataset
from harness.errors import UserError

from .conftest import ROWS, ROWS_100, tiny_batches, tiny_batches_100


def load(dataset: str = "auto", data_dir: Path | None = None, label: str | None = None) -> Dataset:
    """With the study's share for validation."""
    return load_dataset(dataset, data_dir, label, 0.2)


def test_reads_every_row(tiny_cifar: Path) -> None:
    data = load(data_dir=tiny_cifar)
    assert (len(data.train), len(data.val), len(data.test)) == (44, 11, ROWS["test_batch"])
    batches = tiny_batches()
    files = [batches[name] for name in CIFAR10.train_files]
    images = torch.cat([data.train.images, data.val.images]).reshape(-1, 3072).numpy()
    assert (images == np.concatenate([file[b"data"] for file in files])).all()
    labels = torch.cat([data.train.labels, data.val.labels]).tolist()
    assert labels == [label for file in files for label in file[b"labels"]]
    assert data.test.labels.tolist() == batches["test_batch"][b"labels"]
    assert (data.key, data.name, data.flip) == ("cifar10", "CIFAR-10", True)
    assert (len(data.class_names), data.class_names[9]) == (10, "truck")


def test_reads_cifar100(tiny_cifar100: Path) -> None:
    data = load("cifar100", tiny_cifar100)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, ROWS_100["test"])
    files = tiny_batches_100()
    images = torch.cat([data.train.images, data.val.images]).reshape(-1, 3072).numpy()
    assert (images == files["train"][b"data"]).all()
    labels = torch.cat([data.train.labels, data.val.labels]).tolist()
    assert labels == files["train"][b"fine_labels"]
    assert data.test.labels.tolist() == files["test"][b"fine_labels"]
    assert (data.key, data.name, data.flip) == ("cifar100", "CIFAR-100", True)
    assert data.class_names == tuple(f"fine {i}" for i in range(100))


def test_the_last_images_are_for_validation(tiny_cifar: Path) -> None:
    wider, narrower = (load_dataset("cifar10", tiny_cifar, None, share) for share in (0.2, 0.1))
    assert (len(narrower.train), len(narrower.val)) == (49, 6)  # a tenth of 55 is 5.5
    assert torch.equal(narrower.val.images, wider.val.images[-6:])
    assert torch.equal(narrower.train.labels[:44], wider.train.labels)


def test_shares_of_the_whole_set_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.zeros((50_000, 3, 32, 32), np.uint8), np.zeros(50_000, np.int64)
    monkeypatch.setattr(archives, "read_folder", lambda *_: (whole, whole, CIFAR10.class_names))
    for share, count in ((0.2, 10_000), (0.1, 5_000)):
        data = load_dataset("cifar10", Path("anywhere"), None, share)
        assert (len(data.train), len(data.val)) == (50_000 - count, count)


def test_data_dir_may_be_the_inner_folder(tiny_cifar: Path) -> None:
    data = load("auto", tiny_cifar / "cifar-10-batches-py", "tiny")
    assert (len(data.train), data.name) == (44, "tiny")


def test_data_dir_may_hold_both(tiny_cifar: Path, tiny_cifar100: Path, tmp_path: Path) -> None:
    for folder in (tiny_cifar, tiny_cifar100):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert [load(key, tmp_path).key for key in ("auto", "cifar100")] == ["cifar10", "cifar100"]


@pytest.mark.parametrize("inner", [False, True])
def test_data_dir_of_the_other_archive(tiny_cifar: Path, tiny_cifar100: Path, inner: bool) -> None:
    if inner:
        tiny_cifar, tiny_cifar100 = (next(path.iterdir()) for path in (tiny_cifar, tiny_cifar100))
    with pytest.raises(UserError, match="holds CIFAR-100, not CIFAR-10; add --dataset cifar100"):
        load("auto", tiny_cifar100)
    with pytest.raises(UserError, match="holds CIFAR-10, not CIFAR-100; add --dataset cifar10,"):
        load("cifar100", tiny_cifar)


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
        archives.read_batch(CIFAR10, file)
    assert str(file) in str(raised.value)
    assert not Path("owned").exists()


def test_reads_what_the_damaged_files_are_made_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(GOOD)
    images, labels = archives.read_batch(CIFAR10, tmp_path / "file")
    assert (images.shape, labels.tolist()) == ((2, 3, 32, 32), [0, 9])


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("train", {b"fine_labels": None}, "train: 'fine_labels' must be a list of 20"),
        ("test", {b"fine_labels": [0, 1, 2, 3, 4, 100]}, "test: 'fine_labels' .* 0 to 99"),
        ("meta", {b"fine_label_names": None}, "meta: 'fine_label_names' must be a list of 100"),
        ("meta", {b"fine_label_names": [b"a"] * 99}, "must be a list of 100"),
        ("meta", {b"fine_label_names": list(range(100))}, "must be strings"),
        ("meta", None, "meta is missing"),
    ],
)
def test_refuses_a_damaged_cifar100(
    name: str, fields: dict[bytes, Any] | None, reason: str, tiny_cifar100: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_cifar100, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "cifar-100-python" / name
    file.unlink()
    if fields is not None:
        file.write_bytes(pickle.dumps(tiny_batches_100()[name] | fields))
    with pytest.raises(UserError, match=reason):
        load("cifar100", tmp_path)


def test_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test_batch is missing"):
        archives.read_folder(CIFAR10, tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        archives.read_folder(CIFAR100, tmp_path / "nowhere")


def test_digits() -> None:
    data = load("digits")
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
    data = load(data_dir=tiny_cifar)
    values = data.train.images.double() / 255
    expected = values.mean((0, 2, 3)), values.std((0, 2, 3), correction=0)
    for actual, exact in zip(data.channel_moments(), expected, strict=True):
        torch.testing.assert_close(torch.tensor(actual).double(), exact, rtol=1e-6, atol=0)


@pytest.fixture(params=["cifar10", "cifar100"])
def archive(
    request: pytest.FixtureRequest,
    tiny_cifar: Path,
    tiny_cifar100: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, Path]:
    """A --dataset and the local file in the place of its download; the cache is empty."""
    key, file = request.param, tmp_path / "cifar.tar.gz"
    folder = {"cifar10": tiny_cifar, "cifar100": tiny_cifar100}[key] / ARCHIVES[key].folder
    with tarfile.open(file, "w:gz") as tar:
        tar.add(folder, folder.name)
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    local = dataclasses.replace(ARCHIVES[key], url=file.as_uri(), md5=md5)
    monkeypatch.setitem(ARCHIVES, key, local)
    monkeypatch.setattr(download, "CACHE", tmp_path / "cache")
    return key, file


def test_download_is_cached(archive: tuple[str, Path]) -> None:
    key, file = archive
    first = load(key)
    assert first.key == key
    file.unlink()
    assert torch.equal(load(key).train.images, first.train.images)
    assert [path.name for path in download.CACHE.iterdir()] == [ARCHIVES[key].folder]


def test_download_with_another_md5_is_refused(
    archive: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = archive
    monkeypatch.setitem(ARCHIVES, key, dataclasses.replace(ARCHIVES[key], md5="0" * 32))
    with pytest.raises(UserError, match="MD5"):
        load(key)
    assert list(download.CACHE.iterdir()) == []


def test_offline_names_the_remedy(archive: tuple[str, Path]) -> None:
    key, file = archive
    file.unlink()
    with pytest.raises(UserError, match=r"cifar\.tar\.gz .*--data-dir"):
        load(key)


@pytest.mark.parametrize("archive", ["cifar10"], indirect=True)
def test_auto_downloads_or_means_digits_and_says_so(
    archive: tuple[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert load().key == "cifar10"
    archive[1].unlink()
    shutil.rmtree(download.CACHE)
    assert load().name == "sklearn-digits-32x32"
    assert "NOT CIFAR-10" in capfd.readouterr().err
