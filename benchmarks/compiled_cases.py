"""The cases whose instructions are counted: those of shapes.py, cut to a size for the executor.

A cut case launches the very kernels of the whole one: `compiled.py` compares the compiled code of
the two, and refuses a difference. Everything that the counts of one element depend on stays the
same: the dtype, the layout, the length of rows and so their alignment, the channels of a group, the
tier, the shape of a tile and how full it is. These are cut:

- instances, channels and rows: to a few whole tiles, but enough to keep the sets in their tier;
- positions, if an image is larger than several tiles: its sets then still take the same tier. Not
  those of contiguous instance norm, as a program may keep all tiles of such a set;
- programs: a whole case has many tiles for each, so the cut one has as few programs as there are
  units of work (`tilings.ENOUGH_PROGRAMS`, multiprocessors: 1); they walk over all the tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch

from benchmarks.shapes import CIFAR, DTYPES, LAYOUTS, STYLE, UNET, VOLUME, Case

FP32, BF16, _ = DTYPES
DTYPES_COUNTED = (FP32, BF16)
PLAIN, FUSED = "plain", "residual_relu"
# Besides shapes.OPS: RMS norm, the norms of a sum that also return it, weight norm.
ADDING = ("add_ln", "add_rms")
OPS = ("bn", "bn_eval", "in", "bin", "gn", "ln", "rms", *ADDING, "wn")

ELEMENTS = 1 << 17  # of a cut case of rows
STAGE2, STAGE4, STAGE5 = (256, 256, 56, 56), (256, 1024, 14, 14), (256, 2048, 7, 7)


@dataclass(frozen=True)
class Cut:
    """A case with a benchmark's shape, and the shape that is run instead."""

    whole: Case
    shape: tuple[int, ...]

    @property
    def case(self) -> Case:
        """The case that is run; it has as many channels a group as the whole case."""
        groups = None
        if self.whole.op == "gn":
            groups = self.shape[1] * self.whole.num_groups // self.whole.shape[1]
        return replace(self.whole, shape=self.shape, groups=groups)

    @property
    def name(self) -> str:
        return self.whole.name


def of_channels() -> Iterator[Cut]:
    """Every dtype, layout and fusion of each operator at a shape that occurs in use, streamed."""
    # Contiguous tiles are 4 rows of 1,024 positions, of 4 channels or of groups of 8; over the
    # batch they are 16 rows of 256: two tiles of instances for each of 4 channels. Channels last
    # they are 64 channels of 64 positions. All sets are larger than one program's 16,384 elements;
    # for instance norm with channels last the limit is 2,048 positions. But a contiguous forward
    # within an instance may keep several tiles of a set, and needs all of its elements.
    shapes = {
        ("bn", "contiguous"): (STAGE2, (32, 4, 56, 56)),
        ("bn", "channels_last"): (STAGE2, (1, 64, 56, 56)),
        ("bn_eval", "contiguous"): (STAGE2, (32, 4, 56, 56)),
        ("bn_eval", "channels_last"): (STAGE2, (1, 64, 56, 56)),
        ("gn", "contiguous"): (STAGE2, (2, 32, 56, 56)),
        ("gn", "channels_last"): (STAGE2, (1, 64, 56, 56)),
        ("in", "contiguous"): (STYLE[0], (1, 4, 256, 256)),
        ("in", "channels_last"): (STYLE[0], (1, 64, 9, 256)),
        ("bin", "contiguous"): (STYLE[0], (1, 4, 96, 256)),
        ("bin", "channels_last"): (STYLE[0], (1, 64, 9, 256)),
    }
    for (op, layout), (whole, cut) in shapes.items():
        for dtype, fused in product(DTYPES_COUNTED, (PLAIN, FUSED)):
            yield Cut(Case(op, whole, dtype, layout, fused, 32 if op == "gn" else None), cut)


def of_small_images() -> Iterator[Cut]:
    """14 x 14 and 7 x 7, whose rows fill no tile: several channels or instances share one. For
    batch norm these are up to 40 channels."""
    shapes = (
        ("bn", STAGE4, (80, 16, 14, 14)), ("bn", STAGE5, (64, 48, 7, 7)),
        ("bn_eval", STAGE4, (80, 16, 14, 14)), ("bn_eval", STAGE5, (64, 48, 7, 7)),
        ("bin", STAGE4, (80, 16, 14, 14)), ("bin", STAGE5, (64, 16, 7, 7)),
        ("gn", STAGE4, (8, 64, 14, 14)), ("gn", STAGE5, (8, 256, 7, 7)),
    )  # fmt: skip
    for (op, whole, cut), dtype in product(shapes, DTYPES_COUNTED):
        yield Cut(Case(op, whole, dtype, groups=32 if op == "gn" else None), cut)
    yield Cut(Case("bn", STAGE4, BF16, fused=FUSED), (80, 16, 14, 14))
    yield Cut(Case("bn", STAGE5, BF16, fused=FUSED), (64, 48, 7, 7))


def of_whole_sets() -> Iterator[Cut]:
    """CIFAR's shapes: sets that one program keeps; with larger batches some are too large."""
    few = CIFAR[5]  # 8 x 64 x 8 x 8, not cut
    for op, dtype, layout in product(("bn", "in", "gn", "bin"), DTYPES_COUNTED, LAYOUTS):
        yield Cut(Case(op, few, dtype, layout), few)
    for op, layout in product(("bn", "gn"), LAYOUTS):
        yield Cut(Case(op, few, BF16, layout, FUSED), few)
    for op, dtype in product(("in", "gn"), DTYPES_COUNTED):
        yield Cut(Case(op, CIFAR[0], dtype), (8, *CIFAR[0][1:]))
    yield Cut(Case("gn", CIFAR[0], FP32, "channels_last"), (8, *CIFAR[0][1:]))


def of_large_images() -> Iterator[Cut]:
    """Groups whose number of channels is no power of two, and volumes."""
    yield Cut(Case("gn", UNET[0], BF16, groups=32), (1, 40, 64, 64))
    yield Cut(Case("gn", UNET[0], BF16, "channels_last", groups=32), (1, 240, 64, 64))
    for op, channels, depth in (("in", 4, 6), ("gn", 16, 3)):
        yield Cut(Case(op, VOLUME[0], BF16), (1, channels, depth, 128, 128))


def of_rows() -> Iterator[Cut]:
    """Lengths that one program keeps, that stream, and an odd length."""

    def cut(op: str, length: int, dtype: torch.dtype, fused: str = PLAIN) -> Cut:
        return Cut(Case(op, (32768, length), dtype, fused=fused), (ELEMENTS // length, length))

    for length in (256, 1024, 4096, 16384, 65536):
        yield cut("ln", length, BF16)
    for length in (1024, 4096):
        yield cut("ln", length, FP32)
    for dtype in DTYPES_COUNTED:
        yield cut("ln", 4096, dtype, FUSED)
        for op in ("rms", *ADDING):
            yield cut(op, 4096, dtype)
    for op, dtype in (("ln", BF16), ("ln", FP32), ("rms", BF16)):
        yield Cut(Case(op, (32768, 999), dtype), (128, 999))
    for shape in ((256, 2304), (64, 147)):  # of convolutions of 256 x 3 x 3 and 3 x 7 x 7 inputs
        yield Cut(Case("wn", shape), (64, shape[1]))


def all_cuts() -> tuple[Cut, ...]:
    return (
        *of_rows(),
        *of_channels(),
        *of_small_images(),
        *of_whole_sets(),
        *of_large_images(),
    )
