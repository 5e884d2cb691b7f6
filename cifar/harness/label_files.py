"""Labels and probabilities of images as CSV files, a line for each image."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from harness.errors import UserError
from harness.files import write_atomic


class Table:
    """Lines of a CSV, with the image's name first if `named`; all are written at the end."""

    def __init__(self, path: Path, named: bool) -> None:
        self.path, self.named, self.text = path, named, io.StringIO()
        self.writer = csv.writer(self.text, lineterminator="\n")

    def add(self, names: Sequence[str], rows: Iterable[list[Any]]) -> None:
        """Add a line for each image."""
        for name, row in zip(names, rows, strict=True):
            self.writer.writerow([name, *row] if self.named else row)

    def write(self) -> None:
        """The file appears whole. Raises UserError if the system refuses."""
        content = self.text.getvalue().encode(errors="surrogateescape")  # names need not be UTF-8
        write_atomic(self.path, lambda file: file.write(content))


def read_labels(path: Path, named: bool, class_names: Sequence[str]) -> dict[str, int]:
    """The label of each image by its name in a folder or, without `named`, "row 1", "row 2" ...

    A line is LABEL or NAME,LABEL; a label is an index or the name of a class. Raises UserError for
    the first line that is neither, or that names an image a second time.
    """
    known = {str(index): index for index in range(len(class_names))}
    known |= {name: index for index, name in enumerate(class_names)}
    found: dict[str, int] = {}
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for i, row in enumerate(csv.reader(file), start=1):
            form = "NAME,LABEL" if named else "LABEL"
            if len(row) != 1 + named:
                raise UserError(f"--labels {path}: line {i} has {len(row)} values, not {form}")
            label, name = row[-1].strip(), row[0] if named else f"row {i}"
            if label not in known:
                raise UserError(
                    f"--labels {path}: line {i} has the label {label!r}; give 0 to "
                    f"{len(class_names) - 1}, or a class: {', '.join(class_names)}"
                )
            if name in found:
                raise UserError(f"--labels {path}: line {i} names {name} again; give each once")
            found[name] = known[label]
    return found


def pick_labels(labels: dict[str, int], names: Sequence[str], path: Path) -> torch.Tensor:
    """int64 (N,): the labels of the images `names`. UserError unless both have the same images."""
    if missing := [name for name in names if name not in labels]:
        raise UserError(
            f"--labels {path} has no label for {len(missing)} of {len(names)} images, the first is "
            f"{missing[0]}; give one for each"
        )
    if len(labels) > len(names):
        known = set(names)
        other = next(name for name in labels if name not in known)
        raise UserError(
            f"--labels {path} has {len(labels)} labels for {len(names)} images: {other} is none of "
            "them; give one for each"
        )
    return torch.tensor([labels[name] for name in names])
