"""Which parameters weight decay should leave alone."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..checks import check_model
from .base import _Norm

NORMS = (_Norm, _NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def no_decay_parameters(model: nn.Module) -> set[str]:
    """The names, as in `model.named_parameters()`, of parameters that usually get no weight decay.

    They are all parameters of norms, fastnorm's and torch.nn's (weight, bias, rho, a switchable
    norm's mean_weight and var_weight, those of a norm of your own), and the bias of every other
    module. Weights are not, nor g and v of weight normalisation: g carries the scale of its weight.

    Raises TypeError if `model` is no module.
    """
    check_model("no_decay_parameters", model)
    names = set()
    for path, module in model.named_modules(remove_duplicate=False):
        for name, _ in module.named_parameters(recurse=isinstance(module, NORMS)):
            if isinstance(module, NORMS) or "bias" in name:
                names.add(f"{path}.{name}" if path else name)
    every = {name for name, _ in model.named_parameters()}  # shared ones have one name each
    return names & every
