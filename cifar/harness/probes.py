"""Quantities of a model recorded in training, besides its accuracy."""

from typing import Any

import torch

from harness.batches import Normalise
from harness.datasets import Split
from harness.model import ResNet

PERCENTILES = (0.01, 0.2, 0.8, 0.99)
IMAGES = 512
RHO_BINS = 20


class FeatureProbe:
    """How features spread over training: percentiles 1, 20, 80, 99 (Wu and He, arXiv 1803.08494,
    figure 6) of the last convolution's output, before norm and relu, and of the pooled features.

    In eval mode, for the first IMAGES images of `split`, all values together.
    """

    def __init__(self, split: Split, normalise: Normalise, device: torch.device) -> None:
        self.images = normalise(split.images[:IMAGES].to(device))

    @torch.inference_mode()
    def __call__(self, model: ResNet) -> dict[str, Any]:
        """A row's "features"; None for a percentile that is not finite."""
        seen: dict[str, torch.Tensor] = {}
        last_block = model.blocks[-1]
        assert isinstance(last_block.conv2, torch.nn.Module)
        hooks = [
            last_block.conv2.register_forward_hook(
                lambda _module, _inputs, y: seen.update(last_conv=y.clone())
            ),
            model.linear.register_forward_pre_hook(
                lambda _module, inputs: seen.update(pooled=inputs[0])
            ),
        ]
        try:
            model.eval()(self.images)
        finally:
            for hook in hooks:
                hook.remove()
        return {"features": {name: percentiles(values) for name, values in seen.items()}}


def percentiles(values: torch.Tensor) -> list[float | None]:
    """PERCENTILES of a tensor of at most 2**24 values (torch.quantile's limit)."""
    levels = torch.tensor(PERCENTILES, device=values.device)
    found = torch.quantile(values.float().flatten(), levels)
    return [value if abs(value) < float("inf") else None for value in found.tolist()]


def mixing(model: torch.nn.Module) -> dict[str, Any]:
    """BIN's rho and SN's weights, layer by layer; {} for models without such norms."""
    rho, switch = {}, {}
    for name, module in model.named_modules():
        if hasattr(module, "rho"):
            rho[name] = module.rho.detach().float()  # reading it clamps it to [0, 1]
        if hasattr(module, "mean_weight"):
            switch[name] = {
                kind: getattr(module, f"{kind}_weight").detach().softmax(0).tolist()
                for kind in ("mean", "var")
            }
    row: dict[str, Any] = {"switch": switch} if switch else {}
    if rho:
        layers = {name: describe_rho(values) for name, values in rho.items()}
        together = describe_rho(torch.cat(list(rho.values())))
        row |= {"rho": layers} | {f"rho_{name}": value for name, value in together.items()}
    return row


def describe_rho(rho: torch.Tensor) -> dict[str, Any]:
    """Range, mean and histogram over [0, 1] of rho (C,)."""
    return {
        "min": rho.min().item(),
        "mean": rho.mean().item(),
        "max": rho.max().item(),
        "histogram": torch.histc(rho, RHO_BINS, 0, 1).int().tolist(),
    }
