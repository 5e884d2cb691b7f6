"""Batch-instance norm as a module whose rho stays in [0, 1] under any optimizer."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .. import functional as F
from ..activations import ActivationLike
from ..dispatch import is_exporting
from .batch import _BatchNorm


class _BatchInstanceNorm(_BatchNorm):
    """y = act(weight * (rho * x_bn + (1 - rho) * x_in) + bias + residual), arXiv 1805.07925.

    Arguments, buffers and errors are those of torch.nn's BatchNorm of the same rank. A batch norm's
    checkpoint loads with strict=False and, with rho at its initial 1, gives the same results. It is
    not a torch.nn.BatchNorm: code that replaces or folds those must not touch it. In eval mode the
    batch part uses the running statistics, the instance part the input's own. Inputs with one value
    per instance raise ValueError.

    `rho`, shape (C,), is a leaf parameter that any optimizer trains. An optimizer's step may move
    it out of [0, 1]. The next read of it by `module.rho`, `forward` or `state_dict` first clamps it
    in place. This is the projection that the authors apply after each step, and the training loop
    need not know of it. (A tensor taken from `parameters()` before shows the step's raw result
    until then.) The authors give rho 10 times the learning rate and no weight decay.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            bias=bias, activation=activation,
        )  # fmt: skip
        self.rho = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))

    def __getattr__(self, name: str) -> Any:
        value: Any = super().__getattr__(name)
        # Only the module's own parameter: a tensor that functional_call or FSDP put there must not
        # be written, and an exported program writes to no parameter. _norm projects those.
        if name == "rho" and isinstance(value, nn.Parameter) and not is_exporting():
            # .data: the projection is idempotent between two steps, so a second forward before the
            # backward of the first must not count as an in-place change of what autograd saved.
            value.data.clamp_(0.0, 1.0)
        return value

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if "rho" in self._parameters:  # a parametrized rho is computed: there is no entry to clamp
            _ = self.rho
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _mixing_rho(self) -> Tensor:
        """rho in [0, 1]; clamped here if reading it does not clamp it."""
        rho: Tensor = self.rho
        own = isinstance(rho, nn.Parameter) and not is_exporting()
        return rho if own else _projected(rho)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if "rho" in self._parameters:  # not yet, when torch's constructor calls this
            nn.init.ones_(self.rho)

    def _norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        **fused: Tensor | None,
    ) -> Tensor:
        rho = self._mixing_rho()
        return F.batch_instance_norm(
            input, running_mean, running_var, rho, self.weight, self.bias, training, momentum,
            self.eps, activation=self.activation, **fused,
        )  # fmt: skip


class BatchInstanceNorm1d(_BatchInstanceNorm, _NormBase):
    __doc__ = _BatchInstanceNorm.__doc__
    _check_input_dim = nn.BatchNorm1d._check_input_dim


class BatchInstanceNorm2d(_BatchInstanceNorm, _NormBase):
    __doc__ = _BatchInstanceNorm.__doc__
    _check_input_dim = nn.BatchNorm2d._check_input_dim


class BatchInstanceNorm3d(_BatchInstanceNorm, _NormBase):
    __doc__ = _BatchInstanceNorm.__doc__
    _check_input_dim = nn.BatchNorm3d._check_input_dim


def _projected(rho: Tensor) -> Tensor:
    """rho clamped to [0, 1] for a rho that must not be written to.

    Its gradient passes unchanged, as for a parameter that was clamped in place. clamp's own
    gradient is 0 outside the interval: a step that left it would freeze rho there.
    """
    return rho.detach().clamp(0.0, 1.0) + (rho - rho.detach())
