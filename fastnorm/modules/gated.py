"""RMS norm with a gate, the end of Mamba-2's blocks."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F
from ..checks import check_group_size
from .base import _Norm, is_proxy


class GatedRMSNorm(_Norm):
    """RMS norm of the last dimension, of `hidden_size`, and a gate (arXiv 2405.21060).

    forward(x, gate) is rms(x silu(gate)) weight or, with `norm_before_gate`,
    rms(x) weight silu(gate); forward(x) is rms(x) weight. The mean square is over `group_size`
    neighbours, or over all. Arguments, state_dict and forward are those of Mamba-2's own class,
    `RMSNorm` of mamba_ssm.ops.triton.layernorm_gated, whose norm_before_gate is True by default;
    its blocks pass False. See `fastnorm.functional.gated_rms_norm`.

    Raises RuntimeError for a group_size that does not divide hidden_size.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        *,
        group_size: int | None = None,
        norm_before_gate: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_group_size(type(self).__name__, hidden_size, group_size)
        self.hidden_size, self.eps = hidden_size, eps
        self.group_size, self.norm_before_gate = group_size, norm_before_gate
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        if is_proxy(x):
            return self._as_leaf(x, gate)
        return F.gated_rms_norm(
            x, gate, self.weight, self.eps,
            group_size=self.group_size, norm_before_gate=self.norm_before_gate,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"{self.hidden_size}, eps={self.eps}, group_size={self.group_size}, "
            f"norm_before_gate={self.norm_before_gate}"
        )
