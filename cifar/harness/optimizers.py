"""A recipe's optimizer, and the moving average of the weights."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from harness.recipes import Recipe

RHO_SHARE = 10  # times the learning rate


def make_optimizer(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.SGD:
    """The recipe's SGD; BIN's rho has 10 times the learning rate and no weight decay.

    That is the recipe of BIN's authors (arXiv 1805.07925). They also clamp rho after each step;
    here the module itself keeps it within [0, 1].
    """
    undecayed: set[str] = set()
    if not recipe.decay_norms:
        import fastnorm  # not at the top: select_backend has to run before it

        undecayed = fastnorm.no_decay_parameters(model)
    kinds: dict[str, list[nn.Parameter]] = {"decayed": [], "undecayed": [], "rho": []}
    for name, parameter in model.named_parameters():
        kind = "undecayed" if name in undecayed else "decayed"
        kinds["rho" if name.endswith("rho") else kind].append(parameter)
    flags: dict[str, dict[str, Any]] = {
        "decayed": {"weight_decay": recipe.weight_decay},
        "undecayed": {},
        "rho": {"lr": RHO_SHARE * lr},
    }
    groups = [{"params": found, **flags[kind]} for kind, found in kinds.items() if found]
    return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=recipe.nesterov)


class Average:
    """The exponential moving average of a model's parameters, as a model of its own.

    After step t it moves by 1 - min(decay, (1 + t) / (10 + t)) of the way to the parameters, so
    that a short run is not held back by its initial weights. Running statistics are not averaged:
    the raw weights' statistics belong to other features. `estimate` takes them again, as stochastic
    weight averaging does (arXiv 1803.05407, section 3.2).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Call it after an optimizer step of `model`."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_([*self.model.parameters()], [*model.parameters()], share)

    @torch.no_grad()
    def estimate(self, batches: Iterable[torch.Tensor]) -> None:
        """Running statistics as means over batches (N, 3, 32, 32), normalised and augmented as in
        training: unaugmented images would give statistics of other features. Models without running
        statistics stay as they are."""
        norms: list[Any] = [
            module
            for module in self.model.modules()
            if getattr(module, "running_mean", None) is not None
        ]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # in torch this means the mean over all batches
        self.model.train()
        for images in batches:
            self.model(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def state(self) -> dict[str, Any]:
        """The state for `restore`."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def restore(self, state: dict[str, Any]) -> None:
        """Set everything from a saved state."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
