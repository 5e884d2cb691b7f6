"""The types that fastnorm and the engines in `fastnorm.kernels` share. It imports neither.

A call of a norm is its `Inputs` and its `NormSpec`. A `Backend` computes it forward and backward;
an `Engine` is a backend that reads and writes memory: Triton's kernels and the C for CPUs.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .activations import WITH_MASK, parsed

ROW_NORMS = ("layer", "rms")  # norms of rows: the last dimensions of x
Tensors = tuple[Tensor | None, ...]
Outputs = tuple[Tensor, Tensor | None, Tensor]
"""y, ReLU's mask of bits if the backward needs one, and the statistics for the backward."""


class Inputs(NamedTuple):
    """The tensors of a call, named as in `fastnorm.functional`.

    x and residual have the same shape; rho and running statistics have one element for each
    channel. weight and bias, if both are given, have the same shape. They may be parameters of the
    channels or rows: (C,) or the sizes of a row. Or they are parameters of each sample
    (`are_of_samples`): (N, C), or as many dimensions as x. Then each leading size is 1 or x's, and
    the sizes that are not 1 are neighbours. So row r takes parameter row (r // inner) % A: there
    are A parameter rows, and each serves `inner` rows of x in turn.
    For a backward, residual is None unless `side_input` says "residual".
    """

    x: Tensor
    residual: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    rho: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None


class NormSpec(NamedTuple):
    """One norm with its numbers; the fields are named as in `fastnorm.functional`."""

    # batch, instance, batch_instance, mean_only_batch, group, layer or rms
    norm: str
    groups: int = 1  # group norm: groups; layer and RMS norm: the number of normalised dimensions
    use_input_stats: bool = True  # for batch statistics; the others are always the input's
    momentum: float = 0.0
    eps: float = 1e-5
    activation: str | None = None  # in the form of `activations.canonical`

    @property
    def of_rows(self) -> bool:
        """Whether it normalises the last dimensions (rows), not channels."""
        return self.norm in ROW_NORMS


def are_of_samples(inputs: Inputs, spec: NormSpec) -> bool:
    """Whether weight and bias are parameters of each sample, not of channels or rows."""
    parameter = inputs.bias if inputs.weight is None else inputs.weight
    if parameter is None:
        return False
    return parameter.dim() > (spec.groups if spec.of_rows else 1)


def neighbours(leading: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """The leading sizes of parameters of rows, each 1 or that of `sizes`. Any 1 between two sizes
    that are not 1 becomes that of `sizes`: the form of `Inputs` for parameters of samples."""
    own = [i for i, size in enumerate(leading) if size != 1]
    found = list(leading)
    if own:
        found[own[0] : own[-1] + 1] = sizes[own[0] : own[-1] + 1]
    return found


def side_input(activation: str | None, has_residual: bool) -> str | None:
    """What a backward needs besides x to find act'(z): "mask", "residual" or nothing.

    Without a residual it recomputes z from x. With a residual, ReLU needs a bit for each element:
    whether z was positive. The smooth activations need z, and so the residual itself.
    """
    if activation is None or not has_residual:
        return None
    return "mask" if parsed(activation).name in WITH_MASK else "residual"


class Backend(Protocol):
    """The functions that autograd calls: each norm, forward and backward."""

    def norm(self, inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
        """act(norm(x) + residual). Running statistics are updated in place if
        `spec.use_input_stats`. There is a mask only if `differentiable`."""
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
        """(dx, dresidual, dweight, dbias, drho); None if `needs` says that nobody wants it."""
        ...

    def add_norm(self, inputs: Inputs, spec: NormSpec) -> tuple[Tensor, Tensor, Tensor]:
        """norm(x + residual), that sum, and the statistics for add_norm_backward.

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
        """(the gradient of both x and the residual, dweight, dbias) from the gradients of
        add_norm's outputs. The x of `inputs` is the sum; dsum is None if it has no gradient."""
        ...

    def relu_mask(self, mask: Tensor, x: Tensor, spec: NormSpec) -> Tensor:
        """The booleans of the mask that a forward kept for x, in x's shape."""
        ...


class Stages(Protocol):
    """Moments and apply as two calls, for merges in plain PyTorch; x (N, C, ...) is not empty.

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
        """y, and the backward's other input besides x and the table: ReLU's mask, the residual or
        None."""
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
        """dx = scale g + slope (x - center) + level and dresidual = g, each if `needs` says so.

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
        norm(x silu(gate)) weight. Returns y, contiguous, and statistics for gated_norm_backward.

        x is not empty. The gate has x's shape and dtype; the weight is as in `Inputs`.
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
        """(dx, dgate, dweight); None if `needs` says that nobody wants it."""
        ...

    def modulate(
        self,
        weight: Tensor | None,
        bias: Tensor | None,
        scale: Tensor,
        shift: Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        """weight (1 + scale) and, if there is a bias or a shift, bias (1 + scale) + shift.

        They are for an x of `dtype`: in the dtype of its statistics, of scale's shape, contiguous.
        shift has scale's shape, which ends in the shape of weight and bias; scale is not empty.
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
        """(dweight, dbias, dscale, dshift) from the gradients of both outputs; a gradient that is
        None counts as 0. A result is None if `needs` says that nobody wants it."""
        ...

    def weight_norm(self, v: Tensor, g: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """w = g v / ||v|| in v's dtype and layout, and the norms for weight_norm_backward.

        v is not empty. The norm is over all dimensions but `dim`, or over all if dim is -1.
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
        """(dv, dg); None if `needs` says that nobody wants it."""
        ...
