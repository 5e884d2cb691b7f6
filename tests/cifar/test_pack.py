"""An archive of images as CIFAR-10's own format."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pack import PackConfig, pack
from PIL import Image

from harness.archives import CLASSES
from harness.datasets import load_dataset
from harness.errors import UserError


def png(value: int, size: tuple[int, int] = (32, 32)) -> bytes:
    file = io.BytesIO()
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 1], pixels[0] = value, 255  # a green of its own for each image, a white first row
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:xz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def train_images(count: int) -> dict[str, bytes]:
    return {f"train/{CLASSES[i % 10]}/{i:04d}.png": png(i) for i in range(count)}


def test_packed_images_load_with_their_labels(tmp_path: Path) -> None:
    files = train_images(23) | {"test/ship/7.png": png(100), "test/cat/8.png": png(101)}
    pack(PackConfig(write(tmp_path / "a.tar.xz", files), tmp_path / "data"))
    found = load_dataset("cifar10", tmp_path / "data", "tiny", 0.2)
    images = [*found.train.images, *found.val.images]
    labels = [*found.train.labels.tolist(), *found.val.labels.tolist()]
    greens = [int(image[1, 5, 5]) for image in images]
    assert sorted(greens) == list(range(23)) and greens != sorted(greens)
    assert labels == [green % 10 for green in greens]
    assert all((image[:, 0] == 255).all() and image[0, 1:].max() == 0 for image in images)
    test = {
        int(image[1, 5, 5]): int(n) for image, n in zip(*vars(found.test).values(), strict=True)
    }
    assert test == {100: CLASSES.index("ship"), 101: CLASSES.index("cat")}


def test_images_of_16_bits_keep_their_upper_8(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32), 0x40FF, np.uint16)).save(file, "PNG")
    files = train_images(5) | {"test/cat/0.png": file.getvalue()}
    pack(PackConfig(write(tmp_path / "a.tar.xz", files), tmp_path / "data"))
    (image,) = load_dataset("cifar10", tmp_path / "data", "tiny", 0.2).test.images
    assert (image == 0x40).all()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/ship/1.png": png(1, (48, 32))}, r"train/ship/1\.png is 48x32, not 32x32"),
        ({"train/boat/1.png": png(1)}, r"train/boat/1\.png is not train/CLASS/NAME"),
        ({"ship/1.png": png(1)}, r"ship/1\.png is not train/CLASS/NAME"),
        ({"train/ship/1.png": png(1)[:60]}, r"train/ship/1\.png cannot be read as an image"),
        ({"train/ship/1.png": b"text"}, r"train/ship/1\.png cannot be read as an image"),
        (train_images(6), "has 0 images to test with"),
        (train_images(4), "has 4 images to train with"),
    ],
)
def test_other_archives(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar.xz", files)
    with pytest.raises(UserError, match=message):
        pack(PackConfig(archive, tmp_path / "data"))
    assert not list((tmp_path / "data").glob("*"))


def test_cut_short_or_no_archive(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar.xz", train_images(9))
    archive.write_bytes(archive.read_bytes()[:-200])
    (tmp_path / "b.tar").write_text("no archive")
    for path in (archive, tmp_path / "b.tar"):
        with pytest.raises(UserError, match="cannot be read as an archive of images"):
            pack(PackConfig(path, tmp_path / "data"))
    with pytest.raises(OSError, match="nowhere"):
        pack(PackConfig(tmp_path / "nowhere", tmp_path / "data"))


def test_nothing_is_overwritten(tiny_cifar: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cifar-10-batches-py exists; remove it"):
        pack(PackConfig(tmp_path / "any.tar", tiny_cifar))
