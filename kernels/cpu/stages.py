"""The stages as single calls in C, for merges made outside of the engine."""

import torch
from torch import Tensor

from ..routing import LaidOutStages
from .calls import NORMS, numbered, pack_job, pointer, run
from .channels import seen


class CpuStages(LaidOutStages):
    """Each stage is one call of the engine; tables, slopes and sums are float64."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, N, C, S, last = seen(x)
        found = x.new_empty((2, N, C), dtype=torch.float64)
        job = pack_job(
            x.data_ptr(), *[0] * 15, found.data_ptr(), N, C, S, last, NORMS["moments"], 1, True,
            False, 0, 0, 0, torch.get_num_threads(), 0.0, 0.0, 0.0,
        )  # fmt: skip
        run("norm", x, job)
        mean, var = found
        return mean, var

    def table_dtype(self, x: Tensor) -> torch.dtype:
        return torch.float64

    def write(
        self,
        x: Tensor,
        residual: Tensor | None,
        table: Tensor,
        activation: str | None,
        y: Tensor,
        mask: Tensor | None,
    ) -> None:
        x, N, C, S, last = seen(x)
        after, number = numbered(activation)
        job = pack_job(
            x.data_ptr(), 0, pointer(residual), pointer(mask), *[0] * 5, table.data_ptr(),
            y.data_ptr(), *[0] * 6, N, C, S, last, NORMS["given"], 1, True,
            False, after, 0, 0, torch.get_num_threads(), 0.0, 0.0, number,
        )  # fmt: skip
        run("norm", x, job)

    def sums(
        self,
        dy: Tensor,
        x: Tensor,
        residual: Tensor | None,
        mask: Tensor | None,
        table: Tensor,
        activation: str | None,
    ) -> tuple[Tensor, Tensor]:
        found = x.new_empty((2, *x.shape[:2]), dtype=torch.float64)
        written = (None, None, None, found)
        _backward(dy, x, residual, mask, table, activation, written)
        sum_g, sum_gx = found
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
        written = (dx, dresidual, slopes, None)
        _backward(dy, x, residual, mask, table, activation, written)


def _backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
    table: Tensor,
    activation: str | None,
    others: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
) -> None:
    """`others` are dx, dresidual, slopes and sums."""
    x, N, C, S, last = seen(x)
    dx, dresidual, slopes, sums = others
    after, number = numbered(activation)
    job = pack_job(
        x.data_ptr(), dy.data_ptr(), pointer(residual), pointer(mask), *[0] * 5, table.data_ptr(),
        pointer(dx), pointer(dresidual), 0, 0, 0, pointer(slopes), pointer(sums), N, C, S, last,
        NORMS["given"], 1, True, False, after, 0, 0, torch.get_num_threads(), 0.0, 0.0, number,
    )  # fmt: skip
    run("norm_backward", x, job)


STAGES = CpuStages()
