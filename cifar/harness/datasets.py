"""The data sets: CIFAR-10, CIFAR-100, or scikit-learn's digits if there is no network."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.panel import Panel

from harness import archives
from harness.archives import ARCHIVES, Archive
from harness.download import Offline, download
from harness.errors import UserError

DIGITS_NAME = "sklearn-digits-32x32"
DIGITS_HELD_OUT = 300  # of 1,797 for validation and as many for the test: CIFAR-10's 1/6 and 1/6

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, 3, 32, 32), labels int64 (N,), on the CPU."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> "Split":
        """Its first `count` images, or all."""
        return self if count is None else Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Dataset:
    """A data set; its splits are the same in every run, whatever the seed."""

    key: str  # "cifar10", "cifar100" or "digits"
    name: str  # its name in results
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    flip: bool  # whether a mirrored image still shows the same class

    def channel_moments(self) -> tuple[Triple, Triple]:
        """Mean and std of each channel of the training split, for values in [0, 1]; exact."""
        values = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in range(3):
            counts = self.train.images[:, channel].flatten().bincount(minlength=256).double()
            weights = counts / counts.sum()
            mean = (weights * values).sum()
            means.append(mean.item())
            stds.append((weights * (values - mean).square()).sum().sqrt().item())
        return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def load_dataset(
    dataset: str, data_dir: Path | None, label: str | None, validation_share: float
) -> Dataset:
    """The data set for --dataset, --data-dir and --dataset-label.

    Of CIFAR's training images the last `validation_share`, a fraction, are for validation; the
    digits have a split of their own. Raises UserError for missing or damaged files.
    """
    if dataset == "digits":
        return load_digits()
    archive = ARCHIVES["cifar10" if dataset == "auto" else dataset]
    if data_dir is not None:
        return load_archive(archive, data_dir, label, validation_share)
    try:
        data_dir = download(archive)
    except Offline as error:
        if dataset == "auto":
            announce_digits(str(error))
            return load_digits()
        message = f"cannot download {archive.url} ({error}); give a copy with --data-dir"
        raise UserError(message) from None
    return load_archive(archive, data_dir, label, validation_share)


def load_archive(
    archive: Archive, data_dir: Path, label: str | None, validation_share: float
) -> Dataset:
    """The archive's images, split in the files' order, which is random."""
    train, test, names = archives.read_folder(archive, data_dir)
    images, labels = (torch.from_numpy(array) for array in train)
    count = len(labels) - round(validation_share * len(labels))
    return Dataset(
        key=archive.key,
        name=label or archive.name,
        class_names=names,
        train=Split(images[:count], labels[:count]),
        val=Split(images[count:], labels[count:]),
        test=Split(*(torch.from_numpy(array) for array in test)),
        flip=True,
    )


def load_digits() -> Dataset:
    """scikit-learn's 1,797 grey 8x8 digits, interpolated to 32x32 and repeated over three channels.

    1,197 for training, 300 for validation, 300 for the test, by one fixed permutation.
    """
    # Imported here: it is slow to import, and CIFAR-10 does not need it.
    from sklearn.datasets import load_digits as load  # type: ignore[import-untyped]

    digits = load()
    grey = torch.from_numpy(digits.images / 16 * 255).float().unsqueeze(1)
    large = F.interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target.astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    held_out = 2 * DIGITS_HELD_OUT
    parts = order[held_out:], order[:DIGITS_HELD_OUT], order[DIGITS_HELD_OUT:held_out]
    train, val, test = (Split(images[part], labels[part]) for part in parts)
    names = tuple(str(digit) for digit in range(10))
    # No mirror images: a mirrored digit is another symbol, or none.
    return Dataset("digits", DIGITS_NAME, names, train, val, test, flip=False)


def announce_digits(reason: str) -> None:
    """Say clearly on stderr that the run does not use CIFAR-10."""
    text = (
        "this is NOT CIFAR-10\n"
        f"CIFAR-10 could not be downloaded ({reason}), so scikit-learn's 8x8 digits, enlarged to "
        f'32x32, take its place; results call them "{DIGITS_NAME}".\n'
        "For CIFAR-10 give --data-dir a folder that holds cifar-10-batches-py."
    )
    Console(file=sys.stderr).print(Panel(text, title="warning", border_style="bold red"))
