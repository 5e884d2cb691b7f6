"""Shared by both engines: which function serves a call, empty tensors, layouts.

An engine is a `RoutedEngine` with its functions for rows and for channels, and `LaidOutStages` with
its functions for moments and apply, which get dense tensors of one layout.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fastnorm.contract import Engine, Inputs, NormSpec, Outputs, Stages, Tensors, side_input
from fastnorm.tensors import dense, laid_out_as

from .masks import mask_for, relu_mask

GIVEN = NormSpec("given")  # the engines' name for a norm whose merge is made outside of them


class RoutedEngine(Engine, ABC):
    """An engine over its functions for rows (layer and RMS norm) and for channels (the others).

    These get an x that is not empty. For a norm of rows, `groups` is its number of dimensions.
    """

    @abstractmethod
    def row_norm(self, inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
        """`norm`, with y contiguous."""

    @abstractmethod
    def row_add_norm(self, inputs: Inputs, spec: NormSpec) -> tuple[Tensor, Tensor, Tensor]:
        """`add_norm`; both results are contiguous and in x's dtype."""

    @abstractmethod
    def row_norm_backward(
        self,
        dy: Tensor,
        inputs: Inputs,
        mask: Tensor | None,
        stats: Tensor,
        needs: tuple[bool, ...],
        spec: NormSpec,
        dsum: Tensor | None = None,
    ) -> Tensors:
        """(dx, dresidual, dweight, dbias). dsum is added to dx: x's own gradient, if x is a sum
        that was returned."""

    @abstractmethod
    def channel_norm(self, inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
        """`norm`, with y in x's memory format."""

    @abstractmethod
    def channel_norm_backward(
        self,
        dy: Tensor,
        inputs: Inputs,
        mask: Tensor | None,
        stats: Tensor,
        needs: tuple[bool, ...],
        spec: NormSpec,
    ) -> Tensors:
        """`norm_backward`."""

    @abstractmethod
    def stats_like(self, x: Tensor, spec: NormSpec) -> Tensor:
        """Memory for the statistics that a forward of the dense x keeps; sizes may be symbolic."""

    def norm(self, inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
        """If x is empty, nothing is computed or updated."""
        if inputs[0].numel() == 0:
            y, mask, stats = self.like(inputs.x, inputs.residual is not None, spec, differentiable)
            return y, mask, stats.zero_()
        if spec.of_rows:
            return self.row_norm(inputs, spec, differentiable)
        return self.channel_norm(inputs, spec, differentiable)

    def norm_backward(
        self,
        dy: Tensor,
        inputs: Inputs,
        mask: Tensor | None,
        stats: Tensor,
        needs: tuple[bool, ...],
        spec: NormSpec,
    ) -> Tensors:
        if inputs[0].numel() == 0:
            tensors = (inputs.x, inputs.x, *inputs[2:5])
            pairs = zip(tensors, needs, strict=True)
            return tuple(torch.zeros_like(t) if n and t is not None else None for t, n in pairs)
        if spec.of_rows:
            return *self.row_norm_backward(dy, inputs, mask, stats, needs, spec), None
        return self.channel_norm_backward(dy, inputs, mask, stats, needs, spec)

    def add_norm(self, inputs: Inputs, spec: NormSpec) -> tuple[Tensor, Tensor, Tensor]:
        if inputs.x.numel() == 0:
            y, _, stats = self.like(inputs.x, False, spec, False)
            return y, torch.empty_like(y), stats.zero_()
        return self.row_add_norm(inputs, spec)

    def add_norm_backward(
        self,
        dy: Tensor,
        dsum: Tensor | None,
        inputs: Inputs,
        stats: Tensor,
        needs: tuple[bool, bool, bool],
        spec: NormSpec,
    ) -> Tensors:
        asked = (needs[0], False, *needs[1:])
        if inputs.x.numel() == 0:
            grads = self.norm_backward(dy, inputs, None, stats, (*asked, False), spec)
        else:
            grads = self.row_norm_backward(dy, inputs, None, stats, asked, spec, dsum)
        return grads[0], grads[2], grads[3]

    def like(self, x: Tensor, has_residual: bool, spec: NormSpec, differentiable: bool) -> Outputs:
        if spec.of_rows:
            y = torch.empty_like(x, memory_format=torch.contiguous_format)
        else:
            x = dense(x)
            y = torch.empty_like(x)
        return y, mask_for(x, has_residual, spec, differentiable), self.stats_like(x, spec)

    def relu_mask(self, mask: Tensor, x: Tensor, spec: NormSpec) -> Tensor:
        return relu_mask(mask, x, spec)


class LaidOutStages(Stages, ABC):
    """Stages over an engine's functions, which write to tensors created here in x's layout."""

    @abstractmethod
    def table_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of the coefficients."""

    @abstractmethod
    def write(
        self,
        x: Tensor,
        residual: Tensor | None,
        table: Tensor,
        activation: str | None,
        y: Tensor,
        mask: Tensor | None,
    ) -> None:
        """`apply` to y, and to the mask if there is one."""

    @abstractmethod
    def sums(
        self,
        dy: Tensor,
        x: Tensor,
        residual: Tensor | None,
        mask: Tensor | None,
        table: Tensor,
        activation: str | None,
    ) -> tuple[Tensor, Tensor]:
        """`gradient_moments`."""

    @abstractmethod
    def write_gradients(
        self,
        dy: Tensor,
        x: Tensor,
        residual: Tensor | None,
        mask: Tensor | None,
        table: Tensor,
        slopes: Tensor,
        activation: str | None,
        dx: Tensor | None,
        dresidual: Tensor | None,
    ) -> None:
        """`apply_backward` to dx and to dresidual, if they are there."""

    def table(self, center: Tensor, scale: Tensor, shift: Tensor, x: Tensor) -> Tensor:
        return torch.stack((center, scale, shift)).to(self.table_dtype(x))

    def apply(
        self,
        x: Tensor,
        residual: Tensor | None,
        table: Tensor,
        activation: str | None,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor | None]:
        x = dense(x)
        residual = laid_out_as(x, residual)
        spec = GIVEN._replace(activation=activation)
        y, mask = torch.empty_like(x), mask_for(x, residual is not None, spec, differentiable)
        self.write(x, residual, table, activation, y, mask)
        return y, residual if side_input(activation, residual is not None) == "residual" else mask

    def gradient_moments(
        self, dy: Tensor, x: Tensor, side: Tensor | None, table: Tensor, activation: str | None
    ) -> tuple[Tensor, Tensor]:
        x = dense(x)
        residual, mask = _sides(x, side, activation)
        return self.sums(laid_out_as(x, dy), x, residual, mask, table, activation)

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
        x = dense(x)
        dy, (residual, mask) = laid_out_as(x, dy), _sides(x, side, activation)
        dx = torch.empty_like(x) if needs[0] else None
        dresidual = torch.empty_like(x) if needs[1] and activation is not None else None
        if dx is not None or dresidual is not None:
            self.write_gradients(
                dy, x, residual, mask, table, slopes.to(self.table_dtype(x)).contiguous(),
                activation, dx, dresidual,
            )  # fmt: skip
        return dx, dy if needs[1] and activation is None else dresidual

    def relu_mask(self, mask: Tensor, x: Tensor) -> Tensor:
        return relu_mask(mask, x, GIVEN)


def _sides(
    x: Tensor, side: Tensor | None, activation: str | None
) -> tuple[Tensor | None, Tensor | None]:
    """The residual, in x's layout, and the mask: `side` is one of the two, or None."""
    masked = side_input(activation, True) == "mask"
    return (None, side) if masked else (laid_out_as(x, side), None)
