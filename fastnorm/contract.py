"""What fastnorm and the engines in `fastnorm.kernels` agree on; it imports neither the one
nor the other.

A call of a norm is its `Inputs` and its `NormSpec`. A `Backend` computes it forward and backward;
an `Engine` is a backend with memory to read and write: Triton's kernels and the C for CPUs.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .activations import WITH_MASK, parsed

ROW_NORMS = ("layer", "rms")  # whose x is seen as rows
Tensors = tuple[Tensor | None, ...]
Outputs = tuple[Tensor, Tensor | None, Tensor]
"""y, ReLU's mask of bits where the backward wants one, and the statistics that it takes."""


class Inputs(NamedTuple):
    """The tensors of a call, named as in `fastnorm.functional`.

    x and residual have one shape; rho and running statistics have that of the channels. weight and
    bias, where both are there, have one shape. They are parameters of the channels or rows, (C,) or
    the sizes of a row, or of each sample, `are_of_samples`: (N, C), or as many dimensions as x, of
    which the leading ones are 1 or x's and those that are not 1 are neighbours. So row r takes
    parameter row (r // inner) % A of A, where x has `inner` rows for each of them in turn.
    For a backward, residual is None unless `side_input` says that it takes it.
    """

    x: Tensor
    residual: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    rho: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None


class NormSpec(NamedTuple):
    """One norm with its numbers; every field is named as in `fastnorm.functional`."""

    # batch, instance, batch_instance, mean_only_batch, group, layer or rms
    norm: str
    groups: int = 1  # of group norm; of layer and RMS norm, the number of normalised dimensions
    use_input_stats: bool = True  # for the batch's statistics; all others are always the input's
    momentum: float = 0.0
    eps: float = 1e-5
    activation: str | None = None  # as `activations.canonical` has it

    @property
    def of_rows(self) -> bool:
        """Whether statistics and parameters are those of the last dimensions, not of channels."""
        return self.norm in ROW_NORMS


def are_of_samples(inputs: Inputs, spec: NormSpec) -> bool:
    """Whether weight and bias are parameters of each sample, not of channels or rows."""
    parameter = inputs.bias if inputs.weight is None else inputs.weight
    if parameter is None:
        return False
    return parameter.dim() > (spec.groups if spec.of_rows else 1)


def neighbours(leading: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """The leading sizes of parameters of rows, each 1 or that of `sizes`, with those between two
    that are not 1 as `sizes` has them: as `Inputs` wants parameters of each sample."""
    own = [i for i, size in enumerate(leading) if size != 1]
    found = list(leading)
    if own:
        found[own[0] : own[-1] + 1] = sizes[own[0] : own[-1] + 1]
    return found


def side_input(activation: str | None, has_residual: bool) -> str | None:
    """What a backward needs beside x to know act'(z): "mask", "residual" or nothing.

    Without a residual z is recomputed from x. With one, a bit for each element says where ReLU let
    it through; the smooth activations need z and so the residual itself.
    """
    if activation is None or not has_residual:
        return None
    return "mask" if parsed(activation).name in WITH_MASK else "residual"


class Backend(Protocol):
    """What the autograd Functions ask: each norm, forward and backward."""

    def norm(self, inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
        """act(norm(x) + residual); running statistics are updated in place where
        `spec.use_input_stats`. There is a mask only where `differentiable`."""
        ...

    def norm_backward(
        self,
        dy: Tensor,
        inputs: Inputs,
        mask: Tensor | None,
        stats: Tensor,
        needs: tuple[bool, ...],
        spec: NormSpec,
    ) -> Tensors:
        """(dx, dresidual, dweight, dbias, drho); None where `needs` says that nobody asked."""
        ...

    def add_norm(self, inputs: Inputs, spec: NormSpec) -> tuple[Tensor, Tensor, Tensor]:
        """norm(x + residual), that sum, and the statistics that add_norm_backward takes.

        The norm is one of rows, without an activation.
        """
        ...

    def add_norm_backward(
        self,
        dy: Tensor,
        dsum: Tensor | None,
        inputs: Inputs,
        stats: Tensor,
        needs: tuple[bool, bool, bool],
        spec: NormSpec,
    ) -> Tensors:
        """(the gradient of both x and the residual, dweight, dbias) from those of add_norm's
        outputs; the x of `inputs` is the sum, which has no gradient itself where dsum is None."""
        ...

    def relu_mask(self, mask: Tensor, x: Tensor, spec: NormSpec) -> Tensor:
        """The booleans of the mask that a forward kept for x, in x's shape."""
        ...


class Stages(Protocol):
    """Moments and apply by themselves, for merges in plain PyTorch; x is (N, C, ...) with elements.

    The second stage takes a table (3, N, C) of centers, scales and shifts:
    y = act((x - center) * scale + shift + residual).
    """

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each (n, c): two of (N, C), float64."""
        ...

    def table(self, center: Tensor, scale: Tensor, shift: Tensor, x: Tensor) -> Tensor:
        """The coefficients, each (N, C), as the engine takes them for x."""
        ...

    def apply(
        self,
        x: Tensor,
        residual: Tensor | None,
        table: Tensor,
        activation: str | None,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """y, and what backward needs beside x and the table: ReLU's mask, the residual or None."""
        ...

    def gradient_moments(
        self, dy: Tensor, x: Tensor, side: Tensor | None, table: Tensor, activation: str | None
    ) -> tuple[Tensor, Tensor]:
        """Sums of g = dy * act' and of g (x - center) over each (n, c): two of (N, C)."""
        ...

    def apply_backward(
        self,
        dy: Tensor,
        x: Tensor,
        side: Tensor | None,
        table: Tensor,
        slopes: Tensor,
        activation: str | None,
        needs: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """dx = scale g + slope (x - center) + level and dresidual = g, each where `needs` says so.

        `slopes` (2, N, C) are slope and level.
        """
        ...

    def relu_mask(self, mask: Tensor, x: Tensor) -> Tensor:
        """The booleans of the mask that `apply` kept for x, in x's shape."""
        ...


class Engine(Backend, Protocol):
    """A backend whose functions read and write memory: no traced tensors, no batches of vmap."""

    @property
    def stages(self) -> Stages: ...

    def like(self, x: Tensor, has_residual: bool, spec: NormSpec, differentiable: bool) -> Outputs:
        """Tensors of the shapes, dtypes and strides that `norm` returns, their values unset.

        x may have symbolic sizes.
        """
        ...

    def gated_norm(
        self, x: Tensor, gate: Tensor, weight: Tensor | None, norm_before_gate: bool, eps: float
    ) -> tuple[Tensor, Tensor]:
        """RMS norm of the last dimension: norm(x) weight silu(gate) or, without `norm_before_gate`,
        norm(x silu(gate)) weight. y, contiguous, and the statistics that gated_norm_backward takes.

        x, which has elements, and the gate are alike; the weight is as in `Inputs`.
        """
        ...

    def gated_norm_backward(
        self,
        dy: Tensor,
        x: Tensor,
        gate: Tensor,
        weight: Tensor | None,
        stats: Tensor,
        norm_before_gate: bool,
        needs: tuple[bool, bool, bool],
    ) -> Tensors:
        """(dx, dgate, dweight); None where `needs` says that nobody asked."""
        ...

    def modulate(
        self,
        weight: Tensor | None,
        bias: Tensor | None,
        scale: Tensor,
        shift: Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        """weight (1 + scale) and, where there is a bias or a shift, bias (1 + scale) + shift, for
        an x of `dtype`: in the dtype of its statistics, of scale's shape and contiguous.

        shift has scale's shape, which ends in that of weight and bias; scale has elements.
        """
        ...

    def modulate_backward(
        self,
        dgamma: Tensor | None,
        dbeta: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        scale: Tensor,
        shift: Tensor | None,
        dtype: torch.dtype,
        needs: tuple[bool, bool, bool, bool],
    ) -> Tensors:
        """(dweight, dbias, dscale, dshift) from the gradients of both, None being 0; None where
        `needs` says that nobody asked."""
        ...

    def weight_norm(self, v: Tensor, g: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """w = g v / ||v|| in v's dtype and layout, and the norms that weight_norm_backward takes.

        v has elements; its norm is taken over all dimensions but `dim`, over all where that is -1.
        g has an element for each norm.
        """
        ...

    def weight_norm_backward(
        self,
        dw: Tensor,
        v: Tensor,
        g: Tensor,
        norms: Tensor,
        dim: int,
        needs: tuple[bool, bool],
    ) -> Tensors:
        """(dv, dg); None where `needs` says that nobody asked."""
        ...
