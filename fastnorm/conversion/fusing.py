"""`fuse`: norm and activation in one call, batch norms folded. There are two ways to do it."""

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

    Without `example`: in place, and only in `torch.nn.Sequential` (or subclasses with its forward).
    If ReLU, SiLU or the exact GELU follows a norm of fastnorm's, the norm gets `activation=`, and
    a `FusedActivation`, an identity, replaces the activation. So indices and `state_dict` stay, and
    `revert` can restore it. A model that reads the tensor between the two (by index, or by
    iterating over the Sequential) then reads the activation's output.

    With `example`, the positional inputs (one tensor or a tuple): `torch.fx` traces the model, and
    norm -> activation and norm -> add -> activation are fused everywhere, as modules or as
    functions. The report's model is a GraphModule that shares parameters and buffers with the given
    model, which stays as it was; the two are compared on `example`. If a forward calls a norm, only
    a trace shows what follows it: without an example the report lists such norms as kept.

    With `fold`, batch norms, torch's or ours, are also folded into the convolution before them
    (with an example: a linear layer too); their activation stays. This is for inference: the model
    has to be in eval mode, and cannot be trained as before. Results are the same within rounding.

    Norms of torch.nn are not fused: `convert` them first. The report lists the fused norms and the
    neighbours were not, with the reason.

    Raises ValueError and leaves the model as it was: for `fold` in training mode, for a model that
    torch.fx cannot trace faithfully (see the message), and for one whose traced form gives another
    result on `example`. Raises TypeError if `model` is no module.
    """
    check_model("fuse", model)
    training = [name or "the model" for name, m in model.named_modules() if m.training]
    if fold and training:
        raise ValueError(f"fuse got fold=True with {training[0]} in training mode: call eval()")
    if example is not None:
        return fuse_traced(model, example if isinstance(example, tuple) else (example,), fold)
    return fuse_sequentials(model, fold)
