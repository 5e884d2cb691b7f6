"""Weight normalisation of modules (arXiv 1602.07868): parametrisation and initialisation."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations, parametrize

from .. import functional as F
from ..checks import check_model

Module = TypeVar("Module", bound=nn.Module)


class _WeightNorm(parametrizations._WeightNorm):
    """torch's parametrisation, computed by fastnorm."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return F.weight_norm(weight_v, weight_g, self.dim)


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Make module's parameter `name` w = g v / ||v||, trained by g and v; returns module.

    torch.nn.utils.parametrizations.weight_norm, with the norm from fastnorm's backends. g and v are
    `parametrizations.NAME.original0` and `.original1`. So a checkpoint of either loads into the
    other, and one of torch's older weight_norm into both. The norm is over all dimensions but
    `dim`, or of the whole tensor if dim is None or -1. w starts as the parameter was.

    torch.nn.utils.parametrize.remove_parametrizations(module, name) undoes it. Errors are torch's.
    """
    parametrizations.weight_norm(module, name, dim)  # type: ignore[arg-type]  # None is torch's too
    stack: Any = module.parametrizations
    stack[name][len(stack[name]) - 1] = _WeightNorm(dim)
    return module


@torch.no_grad()
def initialise_weight_norm(model: nn.Module, batch: Any) -> None:
    """Scale and shift weight-normalised layers to outputs of mean 0 and variance 1 on `batch`.

    One forward pass, model(batch), sets g and bias of each convolution and linear layer whose
    weight is weight-normalised, ours or torch's, before the next layer sees its output. With t the
    output before, g /= std(t) and bias = (bias - mean(t)) / std(t) for each output channel (arXiv
    1602.07868, section 3, which begins with g = 1 and bias = 0). A layer without bias keeps its
    mean; a channel with constant output keeps its g; a layer that runs several times is initialised
    by the first. Otherwise the pass is usual: in training mode it updates running statistics.

    Raises TypeError if model is no module, and ValueError if it has no such layer, or one whose
    norms are not those of its output channels: `dim` has to be 0 or, for transposed convolutions,
    which may have no groups, 1.
    """
    check_model("initialise_weight_norm", model)
    layers = [module for module in model.modules() if _weight_norm_of(module) is not None]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no weight-normalised convolution or linear layer: call "
            "fastnorm.weight_norm on those that should be initialised"
        )

    def hook(layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        handles.pop(layer).remove()
        return _standardise(layer, output)

    handles = {layer: layer.register_forward_hook(hook) for layer in layers}
    try:
        model(batch)
    finally:
        for handle in handles.values():
            handle.remove()


def _weight_norm_of(module: nn.Module) -> parametrizations._WeightNorm | None:
    """The weight normalisation of a convolution's or linear layer's weight, or None."""
    layers = isinstance(module, (nn.Linear, _ConvNd))
    if not layers or not parametrize.is_parametrized(module, "weight"):
        return None
    stack: Any = module.parametrizations
    return next((p for p in stack.weight if isinstance(p, parametrizations._WeightNorm)), None)


def _standardise(layer: Any, output: Tensor) -> Tensor:
    """The output standardised channel by channel; sets g and bias so that they yield it."""
    channel_dim = output.dim() - (layer.weight.dim() - 1)  # with or without a batch
    g, bias = layer.parametrizations.weight.original0, layer.bias
    found = _weight_norm_of(layer)
    wanted = 1 if getattr(layer, "transposed", False) else 0
    if found is None or found.dim != wanted or g.numel() != output.shape[channel_dim]:
        raise ValueError(
            f"{layer} has weight norms of shape {tuple(g.shape)} for {output.shape[channel_dim]} "
            f"output channels: to be initialised it needs one each, weight_norm(dim={wanted})"
        )
    t = output.to(torch.promote_types(output.dtype, torch.float32))
    t = t.movedim(channel_dim, -1)
    var, mean = torch.var_mean(t.flatten(0, -2), 0, correction=0)
    scale = torch.where(var > 0, var.rsqrt(), 1.0)
    g.mul_(scale.view_as(g))
    if bias is None:
        mean = torch.zeros_like(mean)
    else:
        bias.sub_(mean).mul_(scale)
    return ((t - mean) * scale).movedim(-1, channel_dim).to(output.dtype)
