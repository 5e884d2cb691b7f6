"""Norms of your own as modules."""

from torch import Tensor

from .. import functional as F
from ..activations import ActivationLike
from ..merges import Coefficients
from .base import _Activated, is_proxy


class MomentNorm(_Activated):
    """A norm of your own: a subclass writes `merge`, see `fastnorm.functional.moment_norm`.

    ::

        class FilterResponseNorm(fastnorm.MomentNorm):  # arXiv 1911.09737, without its threshold
            def __init__(self, channels, eps=1e-6, **kwargs):
                super().__init__(**kwargs)
                self.eps = eps
                self.weight = nn.Parameter(torch.ones(channels))
                self.bias = nn.Parameter(torch.zeros(channels))

            def merge(self, mean, var, count):
                mean_square = mean.square() + var
                return self.weight * (mean_square + self.eps).rsqrt(), 0.0, self.bias
    """

    def __init__(self, *, activation: ActivationLike = None) -> None:
        super().__init__()
        self._set_activation(activation)

    def merge(self, mean: Tensor, var: Tensor, count: int) -> Coefficients:
        """(scale, center, shift) from the moments over `count` positions each.

        mean and the biased var are float64 tensors of shape (N, C); the results are numbers or
        tensors that broadcast to that. Raises NotImplementedError if a subclass has no `merge`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method `merge`: see MomentNorm")

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """act(z (1 + scale) + shift + residual); z is the input (N, C, ...) after the merge."""
        if is_proxy(input):
            return self._as_leaf(input, residual, scale=scale, shift=shift)
        return F.moment_norm(
            input, self.merge,
            activation=self.activation, residual=residual, scale=scale, shift=shift,
        )  # fmt: skip
