"""Batches from a data set that lies on the device as one tensor: no worker processes, no copies."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from harness.datasets import Split, Triple
from harness.world import ALONE, World

PADDING = 4


class Normalise:
    """(images / 255 - mean) / std in float32, for images (N, 3, 32, 32) of values 0 to 255."""

    def __init__(
        self, mean: Triple, std: Triple, device: torch.device, channels_last: bool = False
    ) -> None:
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        shape = (1, 3, 1, 1)
        # A channel without contrast has std 0; its zeros stay zero with any other divisor.
        scale = [255 * value or 1.0 for value in std]
        self.shift = torch.tensor([255 * value for value in mean], device=device).view(shape)
        self.factor = torch.tensor([1 / value for value in scale], device=device).view(shape)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The images in float32, with the same shape, in the layout that was asked for."""
        values = images.to(torch.float32, memory_format=self.layout, copy=True)
        return values.sub_(self.shift).mul_(self.factor)


class Batch(NamedTuple):
    """A process's part of a batch."""

    images: torch.Tensor  # float32 (B, 3, 32, 32), normalised
    labels: torch.Tensor  # int64 (B,)
    whole: int  # number of images in all processes together


class TrainBatches:
    """Shuffled batches of a split; each image is cropped out of its zero-padded self and mirrored.

    The random numbers are drawn on the CPU, once an epoch, from a separate generator: so batches
    are the same on every device, for every backend and norm. A process gets its share of a batch.
    """

    def __init__(
        self,
        split: Split,
        normalise: Normalise,
        batch_size: int,
        *,
        flip: bool,
        seed: int,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        padded = torch.nn.functional.pad(split.images, (PADDING,) * 4)
        # Channels last, so that one index (image, row, column) fetches the three values of a pixel.
        self.pixels = padded.permute(0, 2, 3, 1).contiguous().to(device)
        self.labels = split.labels.to(device)
        self.normalise = normalise
        self.batch_size = batch_size
        self.flip = flip
        self.device = device
        self.world = world
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Batches an epoch; the last may be smaller."""
        return -(-len(self.labels) // self.batch_size)

    def epoch(self) -> Iterator[Batch]:
        """Yields batches that cover the split once."""
        count = len(self.labels)
        order = torch.randperm(count, generator=self.generator)
        corner = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=self.generator)
        offsets = torch.arange(32)
        rows = corner[0] + offsets
        columns = corner[1] + offsets
        if self.flip:
            mirrored = torch.rand(count, 1, generator=self.generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        order, rows, columns = (index.to(self.device) for index in (order, rows, columns))
        for start in range(0, count, self.batch_size):
            whole = min(self.batch_size, count - start)
            part = self.world.share(start, whole)
            chosen = order[part]
            index = chosen[:, None, None], rows[part, :, None], columns[part, None, :]
            images = self.normalise(self.pixels[index].permute(0, 3, 1, 2))
            yield Batch(images, self.labels[chosen], whole)
