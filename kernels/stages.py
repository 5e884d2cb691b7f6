"""The stages as single calls in Triton, for merges made outside of the kernels."""

import torch
from torch import Tensor

from fastnorm.contract import NormSpec
from fastnorm.tensors import accumulation, dense

from . import tiers
from .channel_types import Backward, Forward
from .launch import counters
from .plans import Plan, backward_plan, forward_plan, planned
from .routing import GIVEN, LaidOutStages
from .tensors import accumulators, dtypes_of

STREAMING: tiers.State = (False, "streaming")
INSTANCES = planned(NormSpec("instance"))


class TritonStages(LaidOutStages):
    """Each stage runs the matching kernel of the two launches."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = dense(x)
        t = Forward(x)
        key = (x.shape, x.is_contiguous(), dtypes_of(t), False)
        plan = forward_plan(*key, INSTANCES, False, False, STREAMING)
        stats, table = accumulators(x, plan.stats), accumulators(x, plan.table)
        assert plan.first is not None and stats is not None
        tickets = counters(x, "tickets", plan.tickets)
        plan.first(t._replace(stats=stats, table=table, tickets=tickets), (0.0, 0.0))
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
        t = Forward(x, residual, stats=table)
        key = (x.shape, x.is_contiguous(), dtypes_of(t), mask is not None)
        plan = forward_plan(*key, _given(activation), False, False, STREAMING)
        assert plan.second is not None
        plan.second(t._replace(y=y, bits=mask), (0.0,))

    def sums(
        self,
        dy: Tensor,
        x: Tensor,
        residual: Tensor | None,
        mask: Tensor | None,
        table: Tensor,
        activation: str | None,
    ) -> tuple[Tensor, Tensor]:
        t = Backward(x, dy, residual=residual, bits=mask, stats=table)
        plan = _backward_plan(t, activation, True, False)
        sums, scratch = accumulators(x, plan.sums), accumulators(x, plan.table)
        assert plan.first is not None and sums is not None
        tickets = counters(x, "tickets", plan.tickets)
        plan.first(t._replace(sums=sums, table=scratch, tickets=tickets))
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
        t = Backward(x, dy, residual=residual, bits=mask, stats=table)
        plan = _backward_plan(t, activation, dx is not None, dresidual is not None)
        assert plan.second is not None
        sums = None if dx is None else slopes
        plan.second(t._replace(sums=sums, dx=dx, dresidual=dresidual))


def _given(activation: str | None) -> NormSpec:
    return planned(GIVEN._replace(activation=activation))


def _backward_plan(t: Backward, activation: str | None, dx: bool, dresidual: bool) -> Plan:
    needs = (dx, dresidual, False, False, False)
    x, spec = t.x, _given(activation)
    return backward_plan(x.shape, x.is_contiguous(), dtypes_of(t), spec, False, needs, STREAMING)


STAGES = TritonStages()
