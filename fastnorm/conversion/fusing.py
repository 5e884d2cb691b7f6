"""Norm and activation in one call, batch norms folded: the two ways to it."""

from typing import Any

import torch
from torch import nn

from ..checks import check_model
from .report import Conversion
from .sequential_fusion import fuse_sequentials
from .traced_fusion import fuse_traced


def fuse(
    model: nn.Module, example: torch.Tensor | tuple[Any, ...] | None = None, fold: bool = False
) -> Conversion:
    """Let fastnorm's norms compute the activations that follow them; results stay the same.

    Without `example`: in place, and in `torch.nn.Sequential` alone (subclasses with its forward
    too). Where a norm of fastnorm's is followed by ReLU, SiLU or the exact GELU, the norm gets
    `activation=` and the activation's place a `FusedActivation`, an identity: indices and
    `state_dict` stay, and `revert` restores it. A model that reads between the two (by index, or by
    iterating over the Sequential) reads the activation's output there.

    With `example`, the positional inputs (one tensor or a tuple): `torch.fx` traces the model, and
    norm -> activation and norm -> add -> activation are fused wherever they stand, as modules or
    as functions. The report's model is a GraphModule that shares parameters and buffers with the
    given one, which stays as it was. It is compared with it on `example`. Only so is it known what
    follows a norm that a forward calls: without an example the report lists such norms as kept.

    With `fold`, batch norms, torch's or ours, also disappear into the convolution before them (with
    an example: a linear layer too); an activation of theirs stays. This is for inference: the model
    has to be in eval mode and cannot be trained as before; results are the same within rounding.

    Norms of torch.nn are not fused: `convert` them first. The report lists what was fused and which
    neighbours were not, with the reason.

    Raises ValueError, the model untouched: `fold` in training mode; a model that torch.fx cannot
    trace faithfully (see the message), or whose traced form answers otherwise on `example`.
    TypeError where `model` is no module.
    """
    check_model("fuse", model)
    training = [name or "the model" for name, m in model.named_modules() if m.training]
    if fold and training:
        raise ValueError(f"fuse got fold=True with {training[0]} in training mode: call eval()")
    if example is not None:
        return fuse_traced(model, example if isinstance(example, tuple) else (example,), fold)
    return fuse_sequentials(model, fold)
