"""Residuals with torch.distributed.tensor.parallel, whose SequenceParallel knows only one input.

Its hook passes on the first positional input as a DTensor and drops the others. Two hooks around it
keep the residual: the first also passes it by keyword; the second, if the positional one is gone,
makes it a DTensor like the input.
"""

from typing import Any

from torch import Tensor, nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def keep_residual(module: nn.Module) -> None:
    """Let `module`, whose hooks distribute_module has just registered, keep its residual."""
    module.register_forward_pre_hook(_also_by_keyword, prepend=True, with_kwargs=True)
    module.register_forward_pre_hook(_as_the_input_is, with_kwargs=True)


def _also_by_keyword(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments | None:
    return (args, {**kwargs, "residual": args[1]}) if len(args) == 2 else None


def _as_the_input_is(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments | None:
    from torch.distributed.tensor import DTensor

    residual = kwargs.get("residual")
    if len(args) == 2 or residual is None:  # an input_fn that knows both inputs kept both
        return args, {key: value for key, value in kwargs.items() if key != "residual"}
    x = args[0] if args else kwargs.get("input", kwargs.get("x"))
    if isinstance(x, DTensor) and isinstance(residual, Tensor):
        if not isinstance(residual, DTensor):
            residual = DTensor.from_local(residual, x.device_mesh, x.placements, run_check=False)
        elif residual.placements != x.placements:
            residual = residual.redistribute(placements=x.placements)
    return args, {**kwargs, "residual": residual}
