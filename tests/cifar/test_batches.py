"""Augmentation against a plain loop, and its independence of device, backend and norm."""

import pytest
import torch

from harness.batches import Normalise, TrainBatches
from harness.datasets import Split

CPU = torch.device("cpu")
RAW = Normalise((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), CPU)  # leaves the values as they are


def random_split(count: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count))


def make(split: Split, *, flip: bool, seed: int = 0, batch_size: int = 7) -> TrainBatches:
    return TrainBatches(split, RAW, batch_size, flip=flip, seed=seed, device=CPU)


def find_crop(image: torch.Tensor, original: torch.Tensor) -> tuple[int, int, bool] | None:
    """Row and column of the crop that `image` is, and whether it is mirrored."""
    padded = torch.nn.functional.pad(original, (4,) * 4).float()
    for row in range(9):
        for column in range(9):
            crop = padded[:, row : row + 32, column : column + 32]
            for mirrored in (False, True):
                if torch.equal(image, crop.flip(2) if mirrored else crop):
                    return row, column, mirrored
    return None


@pytest.mark.parametrize("flip", [False, True])
def test_each_image_once_as_a_crop_of_itself(flip: bool) -> None:
    split = random_split(40)
    crops, seen = [], []
    for images, labels, _ in make(split, flip=flip).epoch():
        assert images.dtype == torch.float32 and images.is_contiguous()
        seen += labels.tolist()
        crops += [find_crop(x, split.images[i]) for x, i in zip(images, labels, strict=True)]
    assert sorted(seen) == list(range(40)) and seen != sorted(seen)
    assert None not in crops
    rows, columns, mirrored = (set(values) for values in zip(*crops, strict=True))
    assert len(rows) > 5 and len(columns) > 5
    assert mirrored == ({False, True} if flip else {False})


def test_batches_are_the_seeds() -> None:
    split = random_split(16)
    first, again, other = (make(split, flip=True, seed=seed) for seed in (1, 1, 2))
    for _ in range(2):  # the second epoch too
        x, y, z = (torch.cat([b[0] for b in batches.epoch()]) for batches in (first, again, other))
        assert torch.equal(x, y) and not torch.equal(x, z)


def test_length_counts_the_smaller_last_batch() -> None:
    batches = make(random_split(16), flip=False)
    sizes = [len(labels) for _, labels, _ in batches.epoch()]
    assert sizes == [7, 7, 2] and len(batches) == 3


def test_normalise() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    y = Normalise((0.5, 0.25, 0.0), (0.5, 0.25, 0.0), CPU)(images)
    # A channel of std 0 is only shifted: it cannot be scaled to 1.
    expected = torch.tensor([[-1.0, -1.0, 0.0], [1.0, 3.0, 255.0]])
    torch.testing.assert_close(y.view(2, 3), expected)
