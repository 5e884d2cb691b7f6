"""train.py's display: a progress bar in a terminal, and one plain line for each epoch anywhere."""

from types import TracebackType
from typing import Any

from rich import progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from harness.evaluation import Scores


def counted(number: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{number} {noun}{'s' * (number != 1)}"


class ImagesPerSecond(ProgressColumn):
    """The recent speed of a bar that counts images."""

    def render(self, task: Task) -> Text:
        """Called by rich a few times a second."""
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")


class Progress:
    """A context manager around the training, which has processed `done` of `total` images."""

    def __init__(self, total: int, done: int, shown: bool) -> None:
        console = Console(soft_wrap=True, highlight=False, markup=False, quiet=not shown)
        self.bar = progress.Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            ImagesPerSecond(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total, completed=done)

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def images(self, count: int) -> None:
        """Count more processed images."""
        self.bar.advance(self.task, count)

    def at(self, stage: str) -> None:
        """Set the text next to the bar."""
        self.bar.update(self.task, description=stage)

    def line(self, text: str) -> None:
        """Print above the bar."""
        self.bar.console.print(text)

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Print one line for a row of metrics.jsonl."""
        text = (
            f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  "
            f"train {row['train_accuracy']:.4f}  val {row['val_accuracy']:.4f}  "
            + (f"ema {row['ema_val_accuracy']:.4f}  " if "ema_val_accuracy" in row else "")
            + f"{row['images_per_second']:,.0f} images/s  lr {row['lr']:g}"
        )
        if "rho_mean" in row:
            text += f"  rho {row['rho_min']:.3f} / {row['rho_mean']:.3f} / {row['rho_max']:.3f}"
        self.line(text)

    def splits(self, results: dict[str, Scores]) -> None:
        """Print the final table; `results` by the name of the weights, "" for the raw ones."""
        rows = {
            f"{weights} {split}".strip(): values
            for weights, found in results.items()
            for split, values in found.items()
        }
        width = max(5, *map(len, rows))
        self.line(f"{'split':{width}}  accuracy  micro F1  macro F1")
        for name, values in rows.items():
            columns = (values["accuracy"], values["micro_f1"], values["macro_f1"])
            text = "".join(f"{value:8.4f}  " for value in columns).rstrip()
            self.line(f"{name:{width}}  {text}")
