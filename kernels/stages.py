"""The stages one by one in Triton, for merges that are made outside of the kernels."""

import torch
from torch import Tensor

from fastnorm.tensors import accumulation, dense

from . import tiers
from .launch import counters
from .plans import Norm, Plan, backward_plan, forward_plan
from .routing import LaidOutStages
from .tensors import Tensors, accumulators, dtypes_of

STREAMING: tiers.State = (False, "streaming")


class TritonStages(LaidOutStages):
    """Each stage is what two launches have of it."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = dense(x)
        norm = Norm("instance", 1, True, None)
        plan = forward_plan(x.shape, x.is_contiguous(), (x.dtype, None), norm, False, STREAMING)
        stats, table = accumulators(x, plan.stats), accumulators(x, plan.table)
        assert plan.first is not None and stats is not None
        plan.first((x, None, None, stats, table, counters(x, "tickets", plan.tickets)), (0.0, 0.0))
        center, offset, rstd = stats.view(3, *x.shape[:2]).double()
        return center + offset, rstd.pow(-2)

    def table_dtype(self, x: Tensor) -> torch.dtype:
        return accumulation(x)

    def write(
        self,
        x: Tensor,
        residual: Tensor | None,
        table: Tensor,
        activation: str | None,
        y: Tensor,
        mask: Tensor | None,
    ) -> None:
        dtypes, norm = dtypes_of((x, residual, mask)), Norm("given", 1, True, activation)
        plan = forward_plan(x.shape, x.is_contiguous(), dtypes, norm, False, STREAMING)
        assert plan.second is not None
        plan.second((x, residual, None, None, None, None, None, y, mask, table), (0.0,))

    def sums(
        self,
        dy: Tensor,
        x: Tensor,
        residual: Tensor | None,
        mask: Tensor | None,
        table: Tensor,
        activation: str | None,
    ) -> tuple[Tensor, Tensor]:
        inputs: Tensors = (x, dy, residual, mask, None, None, None, table)
        plan = _backward_plan(x, inputs, activation, True, False)
        sums, scratch = accumulators(x, plan.sums), accumulators(x, plan.table)
        assert plan.first is not None and sums is not None
        tickets = counters(x, "tickets", plan.tickets)
        plan.first((*inputs, sums, None, None, None, scratch, tickets))
        sum_g, sum_gx = sums.view(2, *x.shape[:2])
        return sum_g, sum_gx

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
        inputs: Tensors = (x, dy, residual, mask, None, None, None, table)
        plan = _backward_plan(x, inputs, activation, dx is not None, dresidual is not None)
        assert plan.second is not None
        plan.second((*inputs, None if dx is None else slopes, dx, dresidual))


def _backward_plan(
    x: Tensor, inputs: Tensors, activation: str | None, dx: bool, dresidual: bool
) -> Plan:
    norm, needs = Norm("given", 1, True, activation), (dx, dresidual, False, False, False)
    return backward_plan(x.shape, x.is_contiguous(), dtypes_of(inputs), norm, needs, STREAMING)


STAGES = TritonStages()
