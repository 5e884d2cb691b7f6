"""Modules that replace a library's class if none of fastnorm's own computes the same.

They are the adaptive norms of diffusers, with the modulation inside the norm's call. Each replaces
the class of its name, and computes the same with the same children and attributes. `linear` makes
scale and shift from an embedding, and the norm applies them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import functional as F
from .. import modules as ours
from ..modules.base import is_proxy
from ..tensors import HALF

Draw = Callable[..., Tensor]  # a random tensor of these sizes


class RMSNormInWeightDtype(ours.RMSNorm):
    """RMS norm whose output has the weight's dtype if that is half precision; for T5.

    T5 holds some layers in float32, and the next layer in half precision takes the norm's output.
    """

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        y = super().forward(x, residual, scale=scale, shift=shift)
        if is_proxy(x) or self.weight is None or self.weight.dtype not in HALF:
            return y
        return y.to(self.weight.dtype)


class Adaptive(nn.Module):
    """Never constructed: modules of the library's class become one."""

    if TYPE_CHECKING:
        linear: nn.Linear
        norm: ours.LayerNorm | ours.RMSNorm
        silu: nn.Module
        emb: nn.Module | None

    def trial_arguments(self, draw: Draw) -> tuple[Any, ...]:
        """Arguments of a call that shows whether it computes the same as the library's class."""
        raise NotImplementedError


class AdaGroupNorm(Adaptive):
    """Group norm without parameters, modulated (arXiv 2105.05233)."""

    if TYPE_CHECKING:
        act: nn.Module | None
        num_groups: int
        eps: float

    def trial_arguments(self, draw: Draw) -> tuple[Any, ...]:
        return draw(4, self.linear.out_features // 2, 2, 3), draw(4, self.linear.in_features)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        emb = emb if self.act is None else self.act(emb)
        scale, shift = self.linear(emb).chunk(2, dim=1)
        return F.group_norm(x, self.num_groups, eps=self.eps, scale=scale, shift=shift)


class AdaLayerNorm(Adaptive):
    """Layer norm of tokens (N, L, D), modulated by a time step or its embedding."""

    if TYPE_CHECKING:
        chunk_dim: int

    def trial_arguments(self, draw: Draw) -> tuple[Any, ...]:
        x = draw(4, 3, *self.norm.normalized_shape)
        if self.emb is not None:
            steps = torch.arange(4, device=x.device) % 2
            return x, steps[1] if self.chunk_dim == 0 else steps, None
        samples = (4,) if self.chunk_dim == 1 else ()
        return x, None, draw(*samples, self.linear.in_features)

    def forward(
        self, x: Tensor, timestep: Tensor | None = None, temb: Tensor | None = None
    ) -> Tensor:
        if self.emb is not None:
            temb = self.emb(timestep)
        parts = self.linear(self.silu(temb))
        if self.chunk_dim == 1:
            shift, scale = parts[:, None].chunk(2, dim=-1)
        else:
            scale, shift = parts.chunk(2, dim=0)
        return self.norm(x, scale=scale, shift=shift)


class AdaLayerNormZero(Adaptive):
    """Layer norm of tokens, modulated, and the parts for the rest of a block (arXiv 2212.09748)."""

    def trial_arguments(self, draw: Draw) -> tuple[Any, ...]:
        x = draw(4, 3, *self.norm.normalized_shape)
        if self.emb is None:
            return x, None, None, None, draw(4, self.linear.in_features)
        steps = torch.arange(4, device=x.device)
        return x, steps, steps % 2, x.dtype, None

    def forward(
        self,
        x: Tensor,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        hidden_dtype: torch.dtype | None = None,
        emb: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        if self.emb is not None:
            emb = self.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
        parts = self.linear(self.silu(emb)).chunk(6, dim=1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts  # torch.fx follows these six
        y = self.norm(x, scale=scale[:, None], shift=shift[:, None])
        return y, gate, mlp_shift, mlp_scale, mlp_gate


class AdaLayerNormZeroSingle(Adaptive):
    """Layer norm of tokens, modulated, and a gate."""

    def trial_arguments(self, draw: Draw) -> tuple[Any, ...]:
        return draw(4, 3, *self.norm.normalized_shape), draw(4, self.linear.in_features)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> tuple[Tensor, ...]:
        shift, scale, gate = self.linear(self.silu(emb)).chunk(3, dim=1)
        return self.norm(x, scale=scale[:, None], shift=shift[:, None]), gate


class AdaLayerNormContinuous(Adaptive):
    """Layer or RMS norm of tokens, modulated."""

    def trial_arguments(self, draw: Draw) -> tuple[Any, ...]:
        return draw(4, 3, *self.norm.normalized_shape), draw(4, self.linear.in_features)

    def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
        parts = self.linear(self.silu(conditioning_embedding).to(x.dtype))
        scale, shift = parts[:, None].chunk(2, dim=-1)
        return self.norm(x, scale=scale, shift=shift)
