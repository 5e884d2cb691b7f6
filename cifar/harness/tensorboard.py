"""The metrics of a run in TensorBoard."""

from pathlib import Path
from typing import Any


class Curves:
    """Writes rows of metrics.jsonl as scalars."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def add(self, row: dict[str, Any]) -> None:
        """Write each number of the row, at its epoch."""
        for name, value in row.items():
            if isinstance(value, int | float) and name != "epoch":
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()


def open_curves(output: Path, epoch: int) -> Curves:
    """Curves in OUTPUT/tensorboard that go on after `epoch`."""
    from torch.utils.tensorboard import SummaryWriter  # needs a package that few runs need

    return Curves(SummaryWriter(str(output / "tensorboard"), purge_step=epoch + 1))
