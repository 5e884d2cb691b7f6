"""A program that uses every public name, as a user's type checker sees it.

`make lint` checks it with mypy, strictly. An `assert_type` fails if a name has another type or none
(Any); a `type: ignore` fails if the call should be an error but is not. tests/test_typing.py runs
it.
"""

from typing import assert_type

import torch
from torch import Tensor, nn

import fastnorm
import fastnorm.functional as F
from fastnorm import reference


class RootMeanSquareNorm(fastnorm.MomentNorm):
    def merge(self, mean: Tensor, var: Tensor, count: int) -> fastnorm.Coefficients:
        return (mean.square() + var + 1e-6).rsqrt(), 0.0, 0.0


def modules(images: Tensor) -> None:
    """The forward of each family over `images` (N, 4, H, W); its variants of other ranks."""
    norm = fastnorm.BatchNorm2d(4, activation="relu", dtype=images.dtype)
    assert_type(norm.forward(images, residual=images), Tensor)
    assert_type(norm.activation, str | None)
    leaky = fastnorm.Activation("leaky_relu", 0.2)
    assert_type(fastnorm.GroupNorm(2, 4, activation=leaky).forward(images), Tensor)
    assert_type(F.group_norm(images, 2, activation=("elu", 1.5)), Tensor)
    assert_type(norm.running_mean, Tensor | None)
    assert_type(fastnorm.InstanceNorm2d(4, affine=True).forward(images), Tensor)
    mixed = fastnorm.BatchInstanceNorm2d(4)
    assert_type(mixed.forward(images), Tensor)
    assert_type(mixed.rho, nn.Parameter)
    assert_type(fastnorm.MeanOnlyBatchNorm2d(4).forward(images), Tensor)
    assert_type(fastnorm.SwitchableNorm2d(4).forward(images), Tensor)
    assert_type(fastnorm.GroupNorm(2, 4).forward(images), Tensor)
    assert_type(fastnorm.LayerNorm(images.shape[-1]).forward(images), Tensor)
    assert_type(fastnorm.LayerNorm2d(4).forward(images, images), Tensor)
    assert_type(fastnorm.RMSNorm([images.shape[-1]]).forward(images), Tensor)
    rows = images.shape[-1:]
    assert_type(fastnorm.AddLayerNorm(rows).forward(images, images), tuple[Tensor, Tensor])
    assert_type(fastnorm.AddRMSNorm(rows).forward(images, images), tuple[Tensor, Tensor])
    gated = fastnorm.GatedRMSNorm(images.shape[-1], group_size=1, norm_before_gate=True)
    assert_type(gated.forward(images, images), Tensor)
    assert_type(gated.forward(images), Tensor)
    assert_type(RootMeanSquareNorm(activation="silu").forward(images), Tensor)
    mask = torch.ones(images.shape[0], dtype=torch.bool)
    assert_type(fastnorm.BatchNorm1d(4).forward(images[..., 0, 0], mask=mask), Tensor)
    assert_type(fastnorm.SyncBatchNorm(4).forward(images), Tensor)
    assert_type(fastnorm.SyncBatchInstanceNorm(4).forward(images), Tensor)


def of_other_ranks(x: Tensor, volumes: Tensor) -> None:
    """x is (N, 4, L), volumes (N, 4, D, H, W)."""
    assert_type(fastnorm.InstanceNorm1d(4).forward(x), Tensor)
    assert_type(fastnorm.BatchInstanceNorm1d(4).forward(x), Tensor)
    assert_type(fastnorm.MeanOnlyBatchNorm1d(4).forward(x), Tensor)
    assert_type(fastnorm.SwitchableNorm1d(4).forward(x), Tensor)
    assert_type(fastnorm.BatchNorm3d(4).forward(volumes), Tensor)
    assert_type(fastnorm.InstanceNorm3d(4).forward(volumes), Tensor)
    assert_type(fastnorm.BatchInstanceNorm3d(4).forward(volumes), Tensor)
    assert_type(fastnorm.MeanOnlyBatchNorm3d(4).forward(volumes), Tensor)
    assert_type(fastnorm.SwitchableNorm3d(4).forward(volumes), Tensor)


def functions(x: Tensor) -> None:
    """x is (N, 4, L)."""
    rho, row = torch.rand(4), (x.shape[-1],)
    assert_type(F.batch_norm(x, None, None, training=True, activation="relu"), Tensor)
    assert_type(F.instance_norm(x, residual=x), Tensor)
    assert_type(F.batch_instance_norm(x, None, None, rho, training=True), Tensor)
    assert_type(F.mean_only_batch_norm(x, None, training=True), Tensor)
    assert_type(F.group_norm(x, 2), Tensor)
    assert_type(F.layer_norm(x, row), Tensor)
    assert_type(F.rms_norm(x, row), Tensor)
    assert_type(F.add_layer_norm(x, x, row), tuple[Tensor, Tensor])
    assert_type(F.add_rms_norm(x, x, row), tuple[Tensor, Tensor])
    assert_type(F.gated_rms_norm(x, x, group_size=1), Tensor)
    assert_type(F.moment_norm(x, RootMeanSquareNorm().merge), Tensor)
    assert_type(F.weight_norm(x, x.square().sum((1, 2), keepdim=True)), Tensor)
    assert_type(reference.layer_norm(x, row), Tensor)
    mean, var = x.mean(2), x.var(2, correction=0)
    assert_type(fastnorm.merge_moments(mean, var, dim=(0, 1)), tuple[Tensor, Tensor])


def models(images: Tensor) -> None:
    """images are (N, 4, H, W)."""
    conv = fastnorm.weight_norm(nn.Conv2d(4, 4, 1))
    assert_type(conv, nn.Conv2d)
    model = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU())
    fastnorm.initialise_weight_norm(model, images)
    assert_type(fastnorm.no_decay_parameters(model), set[str])
    assert_type(fastnorm.convert(model, to="gn", groups=2), fastnorm.Conversion)
    fused = fastnorm.fuse(model)
    assert_type(fused.model, nn.Module)
    assert_type([change.new for change in fused.changed], list[str])
    assert_type([kept.reason for kept in fused.kept], list[str])
    assert isinstance(model[2], fastnorm.FusedActivation)
    assert_type(fastnorm.revert(model), fastnorm.Conversion)
    assert_type(fastnorm.convert_sync_batchnorm(model), nn.Module)


def backends() -> None:
    assert_type(fastnorm.__version__, str)
    assert_type(fastnorm.get_backend(), str)
    fastnorm.set_backend(fastnorm.get_backend())
    with fastnorm.use_backend("cpu") as nothing:
        assert_type(nothing, None)


def mistakes(x: Tensor) -> None:
    """Never called: each line would raise, and is an error of its types."""
    fastnorm.BatchNorm2d("64")  # type: ignore[arg-type]
    fastnorm.GroupNorm(8, 64, activation=nn.ReLU())  # type: ignore[arg-type]
    fastnorm.LayerNorm(64).forward(x, residual=1.0)  # type: ignore[arg-type]
    fastnorm.AddRMSNorm(64).forward(x)  # type: ignore[call-arg]
    F.rms_norm(x, 64)  # type: ignore[arg-type]
    F.group_norm(x, groups=8)  # type: ignore[call-arg]
    fastnorm.convert(x)  # type: ignore[arg-type]
    fastnorm.set_backend(None)  # type: ignore[arg-type]


def main() -> None:
    modules(torch.randn(2, 4, 3, 3))
    of_other_ranks(torch.randn(2, 4, 3), torch.randn(2, 4, 3, 3, 3))
    functions(torch.randn(2, 4, 3))
    models(torch.randn(2, 4, 3, 3))
    backends()


if __name__ == "__main__":
    main()
