"""Make cifar-10-batches-py out of an archive of images: python cifar/pack.py --help."""

import io
import lzma
import pickle
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import tyro
from PIL import Image

from harness.archives import CIFAR10, CLASSES
from harness.errors import UserError, run_script, writing
from harness.image_files import rgb_values


@dataclass(frozen=True)
class PackConfig:
    """Write DATA_DIR/cifar-10-batches-py, CIFAR-10's own format, from a tar archive of images.

    The archive has train/CLASS/NAME and test/CLASS/NAME, images of 32x32 in any format that Pillow
    reads, and CIFAR-10's class names. Each split is shuffled, the same way each time.
    """

    archive: Path
    """Compressed or not."""
    data_dir: Path
    """For train.py's --data-dir."""


def read_images(archive: Path) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yields split, label and pixels uint8 (3, 32, 32) of each image. Raises UserError."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None
                    content = file.read()
                    pixels = decode(archive, member.name, content)
                    yield *place(archive, member.name), pixels.transpose(2, 0, 1)
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{archive} cannot be read as an archive of images: {error}") from None


def decode(archive: Path, name: str, content: bytes) -> np.ndarray:
    """uint8 (32, 32, 3)."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = rgb_values(image)
    except (OSError, SyntaxError, ValueError) as error:  # whatever Pillow's readers raise
        raise UserError(f"{archive}: {name} cannot be read as an image: {error}") from None
    if pixels.shape[:2] != (32, 32):
        raise UserError(f"{archive}: {name} is {pixels.shape[1]}x{pixels.shape[0]}, not 32x32")
    return pixels


def place(archive: Path, name: str) -> tuple[str, int]:
    """The split and label in an image's path."""
    match PurePosixPath(name).parts:
        case ("train" | "test" as split, label, _) if label in CLASSES:
            return split, CLASSES.index(label)
    raise UserError(f"{archive}: {name} is not train/CLASS/NAME or test/CLASS/NAME")


def pack(config: PackConfig) -> None:
    """Read all, then write all; DATA_DIR gets a complete folder or none."""
    target = config.data_dir / CIFAR10.folder
    if target.exists():
        raise UserError(f"{target} exists; remove it, or give another folder")
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for split, label, pixels in read_images(config.archive):
        images[split].append(pixels.reshape(-1))
        labels[split].append(label)
    with writing(target):
        config.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=config.data_dir) as work:
            folder = Path(work) / CIFAR10.folder
            folder.mkdir()
            for split, files in (("train", CIFAR10.train_files), ("test", (CIFAR10.test_file,))):
                order = np.random.default_rng(0).permutation(len(images[split]))
                if len(order) < len(files):
                    raise UserError(f"{config.archive} has {len(order)} images to {split} with")
                for file, part in zip(files, np.array_split(order, len(files)), strict=True):
                    batch = {
                        b"labels": [labels[split][i] for i in part],
                        b"data": np.stack([images[split][i] for i in part]),
                    }
                    (folder / file).write_bytes(pickle.dumps(batch, protocol=4))
            folder.rename(target)
    print(f"{len(images['train'])} and {len(images['test'])} images: {target}")


def main() -> None:
    """The command line."""
    pack(tyro.cli(PackConfig, config=(tyro.conf.PositionalRequiredArgs,)))


if __name__ == "__main__":
    run_script(main)
