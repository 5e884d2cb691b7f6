"""Shared parts of norm modules: the fused activation, running statistics, batch norms' forward."""

import inspect
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor, fx, nn

# Raised inside the last operator of a checkpointed block to end its recomputation. The forward is
# then as good as done, and counts the batch as torch.nn's norms do.
from torch.utils.checkpoint import _StopRecomputationError as StopRecomputation

from ..activations import ActivationLike, canonical
from .distributed import keep_residual


def is_proxy(input: object) -> bool:
    """Whether torch.fx calls a module with `input` to trace it."""
    return (
        type(input) is not Tensor  # the quickest test
        and isinstance(input, fx.Proxy)
        and isinstance(input.tracer, fx.Tracer)
    )


def affine_of(module: Any) -> tuple[Any, Any]:
    """module.weight and module.bias, not by torch's slow way to a parameter: 0.5 us each."""
    own = module._parameters
    if "weight" in own and "bias" in own:
        return own["weight"], own["bias"]
    return module.weight, module.bias


def running_of(module: Any) -> tuple[Any, Any]:
    """module.running_mean and module.running_var, likewise."""
    own = module._buffers
    if "running_mean" in own and "running_var" in own:
        return own["running_mean"], own["running_var"]
    return module.running_mean, module.running_var


class _Norm(nn.Module):
    """A norm as tracers and compilers see it."""

    def _as_leaf(self, *inputs: Any, **options: Any) -> Any:
        """The call of this module in the graph that torch.fx is tracing, whatever its tracer.

        Tracers know torch.nn's modules as leaves by the name of their Python module, and look into
        all others. So a forward that meets a tracer's proxy returns this. None is left out.
        """
        tracer = inputs[0].tracer
        given = tuple(value for value in inputs if value is not None)
        named = {name: value for name, value in options.items() if value is not None}
        return tracer.create_proxy("call_module", tracer.path_of_module(self), given, named)

    def _slow_forward(self, *inputs: Any, **options: Any) -> Any:
        """What torch.nn.Module calls in place of forward where torch.jit traces it.

        torch's older ONNX exporter passes every argument of forward by position, even those that
        are keyword only.
        """
        parameters = inspect.signature(self.forward).parameters
        by_keyword = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
        if by_keyword and len(inputs) == len(parameters):
            split = len(inputs) - len(by_keyword)
            options = dict(zip(by_keyword, inputs[split:], strict=True))
            inputs = inputs[:split]
        return super()._slow_forward(*inputs, **options)

    def __prepare_scriptable__(self) -> NoReturn:
        """torch.jit.script calls this on each module."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}, whose forward chooses among "
            "backends in Python: give it a model with torch.nn's norms (fastnorm.revert(model)), "
            "or use torch.jit.trace or torch.export"
        )


class _Activated(_Norm):
    """A norm that knows the activation it is fused with."""

    activation: str | None

    @property
    def _distribute_module_applied(self) -> bool:
        """torch.distributed.tensor.distribute_module sets this once it has registered its hooks."""
        return vars(self).get("_distribute_module_applied", False)

    @_distribute_module_applied.setter
    def _distribute_module_applied(self, applied: bool) -> None:
        vars(self)["_distribute_module_applied"] = applied
        keep_residual(self)

    def _set_activation(self, activation: ActivationLike) -> None:
        self.activation = canonical(activation, type(self).__name__)

    def extra_repr(self) -> str:
        return self._with_activation(super().extra_repr())

    def _with_activation(self, own: str) -> str:
        """The representation `own`, plus the activation if there is one."""
        fused = "" if self.activation is None else f"activation={self.activation!r}"
        return ", ".join(part for part in (own, fused) if part)


class _Tracking(_Activated):
    """A norm with running statistics, to be mixed into one of torch.nn's."""

    if TYPE_CHECKING:  # from torch.nn's class
        num_features: int
        eps: float
        momentum: float | None
        affine: bool
        track_running_stats: bool
        weight: nn.Parameter  # as torch types it, though it is None without affine
        bias: nn.Parameter
        running_mean: Tensor | None
        running_var: Tensor | None
        num_batches_tracked: Tensor | None

        def _check_input_dim(self, input: Tensor) -> None: ...

        def reset_parameters(self) -> None: ...


class _OverBatch(_Tracking):
    """The forward of norms over the batch, which keeps their running statistics."""

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        if is_proxy(input):
            return self._as_leaf(input, residual, scale=scale, shift=shift)
        self._check_input_dim(input)
        tracked = self.training and self.track_running_stats
        mean, var = running_of(self)
        batch_stats = self.training or (mean is None and var is None)
        if self.training and not tracked:
            mean = var = None
        momentum = 0.0 if self.momentum is None else self.momentum
        running = (mean, var)
        if tracked and self.momentum is None and mean is not None:
            # Copies: a batch without values does not change them.
            mean, var, momentum = mean.clone(), None if var is None else var.clone(), 1.0
        try:
            y = self._norm(
                input, mean, var, batch_stats, momentum,
                residual=residual, scale=scale, shift=shift,
            )  # fmt: skip
        except StopRecomputation:
            self._track(tracked, running, (mean, var))
            raise
        self._track(tracked, running, (mean, var))  # last: a call that fails does not count
        return y

    def _track(
        self, tracked: bool, running: tuple[Tensor | None, ...], batch: tuple[Tensor | None, ...]
    ) -> None:
        """Count a batch; if its statistics are separate, move the cumulative average towards them.

        Its factor stays on the device: reading num_batches_tracked would wait for the GPU.
        """
        if not tracked:
            return
        own = self._buffers
        known = "num_batches_tracked" in own  # as in running_of
        count = own["num_batches_tracked"] if known else self.num_batches_tracked
        if count is None:
            return
        if running[0] is not batch[0]:
            share = 1.0 / (count + 1).double()
            for buffer, new in zip(running, batch, strict=True):
                if buffer is not None and new is not None:
                    buffer.lerp_(new, share.to(buffer.dtype))
        count.add_(1)

    def _norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        **fused: Tensor | None,
    ) -> Tensor:
        """The norm; `fused` are residual, scale and shift."""
        raise NotImplementedError


def bias_argument(bias: bool) -> dict[str, bool]:
    """torch 2.11 has no `bias` here: it is passed only if False, so any version works."""
    return {} if bias else {"bias": False}
