"""Predict the labels of images with a checkpoint: python cifar/test.py --help."""

import csv
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from harness.batches import Normalise
from harness.config import Backend, Device
from harness.environment import select_backend, select_device
from harness.errors import UserError, run_script
from harness.evaluation import predict
from harness.files import load_checkpoint, require_writable, write_atomic
from harness.image_files import other_files, png_files, read_batches
from harness.model import Architecture, ResNet, make_model

SHOWN = 10  # names of files, at most


@dataclass(frozen=True)
class PredictConfig:
    """Predict the labels of a CSV or of a folder of images with a trained checkpoint."""

    checkpoint: Path
    """checkpoint.pt of a run of train.py, or the run's folder."""
    images: Path
    """A CSV, one image a row: 3072 values 0-255 in CHW order, no header. Or a folder of PNG files
    of 32x32 pixels; what else it holds is left out, and named."""
    output: Path
    """For a CSV one predicted label (an integer) a line, in the order of the rows; for a folder
    lines NAME,LABEL in the order of the names."""
    backend: Backend = "auto"
    """Any backend reads any checkpoint, whichever it was trained with."""
    device: Device = "auto"


def find_checkpoint(path: Path) -> Path:
    """`path`, or its checkpoint.pt if it is the folder of a run.

    Raises UserError for the folder of an unfinished run, and for any other.
    """
    if not path.is_dir():
        return path
    if (path / "results.json").is_file():  # the mark of a finished run
        return path / "checkpoint.pt"
    for file in (path / "unfinished" / "checkpoint.pt", path / "checkpoint.pt"):
        if file.is_file():
            raise UserError(
                f"--checkpoint {path}: this run has not finished; let it end, or give {file} for "
                "the weights that it has"
            )
    raise UserError(f"--checkpoint {path} holds no finished run; give checkpoint.pt or its folder")


def check_output(config: PredictConfig, checkpoint: Path) -> None:
    """Raises UserError if --output is a file that is read, or cannot be written."""
    inputs = [checkpoint, config.images]
    if config.images.is_dir():
        inputs += png_files(config.images)
    if config.output.resolve() in (file.resolve() for file in inputs):
        raise UserError(f"--output {config.output} would overwrite an input; give another file")
    require_writable(config.output)


def load_model(file: Path, backend: Backend, device: torch.device) -> tuple[ResNet, Normalise]:
    """The trained model and its normalisation. Raises UserError if the checkpoint does not fit."""
    checkpoint = load_checkpoint(file)
    model = make_model(Architecture(**checkpoint["architecture"]), backend)
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError:
        message = f"the weights in {file} do not fit the model that its config names"
        raise UserError(message) from None
    return model.to(device), Normalise(checkpoint["mean"], checkpoint["std"], device)


def test(config: PredictConfig) -> None:
    """Read, predict, write; the output appears only if every image can be read."""
    if not config.images.exists():
        raise UserError(f"--images {config.images} is missing; give a CSV or a folder of PNG files")
    checkpoint = find_checkpoint(config.checkpoint)
    check_output(config, checkpoint)
    device = select_device(config.device)
    select_backend(config.backend, device)
    model, normalise = load_model(checkpoint, config.backend, device)
    text, count = io.StringIO(), 0
    writer = csv.writer(text, lineterminator="\n")
    for names, images in read_batches(config.images):
        labels = predict(model, images, normalise, device).tolist()
        columns = (names, labels) if config.images.is_dir() else (labels,)
        writer.writerows(zip(*columns, strict=True))
        count += len(labels)
    content = text.getvalue().encode(errors="surrogateescape")  # a file's name may be no UTF-8
    write_atomic(config.output, lambda file: file.write(content))
    if config.images.is_dir() and (others := other_files(config.images)):
        shown = ", ".join(others[:SHOWN]) + f" and {len(others) - SHOWN} more" * (
            len(others) > SHOWN
        )
        print(f"warning: left out, for they are no .png files: {shown}", file=sys.stderr)
    print(f"{count} labels: {config.output}")


def main() -> None:
    """The command line."""
    test(tyro.cli(PredictConfig))


if __name__ == "__main__":
    run_script(main)
