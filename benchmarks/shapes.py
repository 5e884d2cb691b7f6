"""The timed cases, as data: operators at the shapes of their use, and their least traffic."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import torch

OPS = ("bn", "bn_eval", "in", "bin", "gn", "ln", "rms")
ROW_OPS = ("ln", "rms")  # of a matrix, they normalise its rows
FUSIONS = ("plain", "relu", "residual_relu")
MODULATED = ("modulated", "modulated_silu")  # by a scale and a shift of each sample
LAYOUTS = ("contiguous", "channels_last")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DIRECTIONS = ("forward", "backward", "both")

MOST_BYTES = 2 << 30  # of one tensor: the check in float64 needs about 30 times as much


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    `bn` is in training, `bn_eval` not. `ln` and `rms` normalise rows, of a matrix or of samples
    (N, T, L); `ln` of an image, as CNNs use it, is group norm with one group. `fused` names the
    operations after the norm: act(norm + residual), or silu(norm (1 + scale) + shift).
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    fused: str = "plain"
    groups: int | None = None  # for gn; None is 4 channels a group
    family: str = ""
    compiled: bool = True  # also timed under torch.compile, which costs seconds to compile

    @property
    def name(self) -> str:
        parts = [self.op, "x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        parts += [word for word in (self.layout, self.fused) if word not in ("contiguous", "plain")]
        return " ".join(parts)

    @property
    def num_groups(self) -> int:
        return 1 if self.op == "ln" else self.groups or self.shape[1] // 4

    @property
    def set_elements(self) -> int:
        """The number of elements that share statistics."""
        instance = prod(self.shape[2:])
        if self.of_rows:
            return self.shape[-1]
        if self.op in ("gn", "ln"):
            return self.shape[1] // self.num_groups * instance
        return instance if self.op == "in" else self.shape[0] * instance

    @property
    def of_rows(self) -> bool:
        return self.op in ROW_OPS and len(self.shape) <= 3

    @property
    def modulated(self) -> bool:
        return self.fused in MODULATED

    @property
    def has_residual(self) -> bool:
        return self.fused == "residual_relu"

    @property
    def nbytes(self) -> int:
        """Bytes of the normalised tensor."""
        return prod(self.shape) * self.dtype.itemsize

    def floor_bytes(self, direction: str) -> int:
        """The least traffic of one call, which every version needs.

        Forward reads x and the residual and writes y. Backward reads x and dy and writes dx and the
        residual's gradient. ReLU's mask is recomputed from x. With a residual that would mean
        reading it again; 1 bit for each element, written and read back, is less.
        """
        mask = -(-prod(self.shape) // 8) if self.has_residual else 0
        forward = (2 + self.has_residual) * self.nbytes + mask
        backward = (3 + self.has_residual) * self.nbytes + mask
        return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


def describe(case: Case) -> dict[str, Any]:
    """The part of a row that describes the case."""
    return {
        "op": case.op,
        "family": case.family,
        "shape": list(case.shape),
        "dtype": str(case.dtype).removeprefix("torch."),
        "layout": case.layout,
        "fused": case.fused,
        "tensor_bytes": case.nbytes,
    }


CIFAR = tuple(
    (n, *chw) for n in (128, 8) for chw in ((16, 32, 32), (32, 16, 16), (64, 8, 8))
)  # the inputs of a CIFAR ResNet's norms
IMAGENET = tuple(
    (n, channels, side, side)
    for n in (256, 32)
    for channels, side in (
        *((64, 112), (64, 56), (256, 56), (128, 56), (128, 28)),
        *((512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)),
    )
)  # of ResNet-50's
UNET = ((8, 320, 64, 64), (8, 640, 32, 32), (8, 1280, 16, 16))  # of a diffusion model's
SMALL_UNET = (8, 64, 32, 32)
DIT = (8, 256, 1152)  # the tokens of DiT-XL at 256 x 256 pixels
STYLE = ((8, 64, 256, 256),)
VOLUME = ((2, 32, 64, 128, 128),)
# Cases for which others have published their share of the bandwidth: goals.PUBLISHED.
RMS_OF_QUACK = Case("rms", (8192, 4096), torch.float32, family="rows")
RMS_OF_CUDNN = Case("rms", (16384, 4096), torch.bfloat16, family="rows")
LN_OF_FP16 = Case("ln", (32768, 2048), torch.float16, family="rows")
BN_OF_FP16 = Case("bn", (4, 128, 1024, 1024), torch.float16, family="volume")
ROWS = tuple(product((4096, 32768), (256, 1024, 4096, 16384, 65536)))


def _family(
    family: str, ops: Iterable[str], shapes: Iterable[tuple[int, ...]], groups: int | None = None
) -> Iterator[Case]:
    """Every dtype, layout and fusion of the operators at the shapes."""
    layouts = LAYOUTS if family != "rows" else LAYOUTS[:1]
    for shape, op, dtype, layout, fused in product(shapes, ops, DTYPES, layouts, FUSIONS):
        case = Case(op, shape, dtype, layout, fused, groups if op == "gn" else None, family)
        if case.nbytes <= MOST_BYTES:
            yield case


def full() -> tuple[Case, ...]:
    """Every case: hours, mostly of torch.compile."""
    return (
        *_family("imagenet", ("bn", "bn_eval", "bin", "gn"), IMAGENET, groups=32),
        *_family("rows", ROW_OPS, ROWS),
        *_family("style", ("in", "bin"), STYLE),
        *_family("volume", ("in", "bn", "gn"), VOLUME),
        *_family("unet", ("gn",), UNET, groups=32),
        *_family("cifar", ("bn", "bn_eval", "in", "bin", "gn"), CIFAR),
    )


def quick() -> tuple[Case, ...]:
    """Every operator and every goal of goals.py, the most telling cases first: minutes."""
    bf16, fp32 = torch.bfloat16, torch.float32
    stage2, stage3 = (256, 256, 56, 56), (256, 512, 28, 28)
    goals = (
        Case("bn", stage2, bf16, fused="residual_relu", family="imagenet"),
        Case("ln", (32768, 4096), bf16, family="rows"),
        Case("gn", stage2, bf16, groups=32, family="imagenet"),
        Case("in", STYLE[0], fp32, family="style"),
        Case("bn", stage2, bf16, family="imagenet"),
        *(
            Case(op, CIFAR[0], fp32, fused=fused, family="cifar")
            for op, fused in (("bn", "residual_relu"), ("gn", "plain"), ("in", "plain"))
        ),
        Case("bin", stage2, bf16, family="imagenet"),
        RMS_OF_CUDNN,
        Case("bn_eval", stage2, bf16, fused="relu", family="imagenet"),
        Case("gn", UNET[0], bf16, fused="modulated_silu", groups=32, family="modulated"),
        Case("ln", DIT, bf16, fused="modulated", family="modulated"),
    )
    alone = (  # only next to eager torch and other packages
        RMS_OF_QUACK,
        LN_OF_FP16,
        BN_OF_FP16,
        Case("bn", stage2, bf16, "channels_last", "residual_relu", family="imagenet"),
        Case("bn", stage3, fp32, fused="residual_relu", family="imagenet"),
        Case("bn", IMAGENET[0], bf16, family="imagenet"),
        Case("bn", stage3, fp32, family="imagenet"),
        Case("bn", (256, 1024, 14, 14), bf16, fused="residual_relu", family="imagenet"),
        Case("ln", (8192, 8192), fp32, family="rows"),
        Case("ln", (4096, 65536), bf16, family="rows"),
        Case("ln", (32768, 1024), bf16, family="rows"),
        Case("ln", (4096, 256), fp32, family="rows"),
        Case("gn", VOLUME[0], bf16, family="volume"),
        *(Case("gn", shape, bf16, groups=32, family="unet") for shape in UNET),
        Case("gn", UNET[0], bf16, "channels_last", groups=32, family="unet"),
        Case("gn", UNET[0], bf16, "channels_last", "modulated_silu", 32, family="modulated"),
        Case("gn", SMALL_UNET, bf16, fused="modulated_silu", groups=32, family="modulated"),
        Case("in", VOLUME[0], bf16, family="volume"),
        Case("in", STYLE[0], bf16, "channels_last", family="style"),
        Case("bin", STYLE[0], fp32, family="style"),
        *(Case(op, CIFAR[0], fp32, family="cifar") for op in ("bn", "bin", "bn_eval")),
        *(Case(op, CIFAR[5], fp32, family="cifar") for op in ("bn", "in", "bin", "gn")),
    )
    return (*goals, *(replace(case, compiled=False) for case in alone))


def on_a_cpu() -> tuple[Case, ...]:
    """The cases of `python -m benchmarks.cpu`; `ln` of an image is group norm with 1 group."""
    images, rows = (*CIFAR, (32, 64, 56, 56)), ((4096, 768), (64, 256))
    return (
        *(
            Case(op, shape, dtype, layout, fused, family="images")
            for op, shape, dtype, layout, fused in product(
                ("bn", "in", "gn", "ln", "bin"), images, DTYPES[:2], LAYOUTS, FUSIONS
            )
        ),
        *(
            Case(op, shape, dtype, fused=fused, family="rows")
            for op, shape, dtype, fused in product(ROW_OPS, rows, DTYPES[:2], FUSIONS)
        ),
    )


def modulated() -> tuple[Case, ...]:
    """A diffusion U-Net's group norms and DiT-XL's layer norm, modulated by each sample."""
    images = product((UNET[0], SMALL_UNET), DTYPES[:2], LAYOUTS)
    return (
        *(
            Case("gn", shape, dtype, layout, "modulated_silu", 32, family="modulated")
            for shape, dtype, layout in images
        ),
        *(
            Case(op, DIT, dtype, fused="modulated", family="modulated")
            for op, dtype in product(ROW_OPS, DTYPES[:2])
        ),
    )


def paired() -> tuple[Case, ...]:
    """A few of them, for benchmarks/test_norms.py: float32, layer norm in a CNN too."""
    ops, shapes = ("in", "bn", "gn", "ln", "bin"), (CIFAR[0], CIFAR[2], SMALL_UNET)
    return (*(Case(op, shape) for shape in shapes for op in ops), Case("ln", (4096, 768)))


def tiny() -> tuple[Case, ...]:
    """Cases for a rehearsal in Triton's interpreter: every operator, dtype, layout and fusion."""
    fp32, bf16, fp16 = DTYPES
    return (
        Case("bn", (2, 8, 5, 4), fp32, fused="residual_relu", family="cifar"),
        Case("gn", (2, 8, 6, 4), fp32, "channels_last", "relu", family="cifar", compiled=False),
        Case("ln", (6, 32), bf16, family="rows", compiled=False),
        Case("rms", (6, 32), fp32, fused="residual_relu", family="rows", compiled=False),
        Case("in", (2, 2, 12, 28, 28), fp32, "channels_last", family="volume", compiled=False),
        Case("bin", (3, 4, 5, 4), bf16, fused="residual_relu", family="style", compiled=False),
        Case(
            "bn_eval",
            (2, 8, 5, 4),
            fp16,
            "channels_last",
            "relu",
            family="imagenet",
            compiled=False,
        ),
    )
