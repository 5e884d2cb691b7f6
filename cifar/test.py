"""Predict the labels of images with a checkpoint: python cifar/test.py --help."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from harness.checkpoints import find_checkpoint, make_trained
from harness.config import Backend, Device
from harness.environment import select_backend, select_device
from harness.errors import UserError, run_script
from harness.evaluation import infer, scores
from harness.files import load_checkpoint, require_writable
from harness.image_files import other_files, png_files, read_batches
from harness.label_files import Table, pick_labels, read_labels
from harness.progress import counted

SHOWN = 10  # names of files, at most


@dataclass(frozen=True)
class PredictConfig:
    """Predict the labels of a CSV or of a folder of images with a trained checkpoint."""

    checkpoint: Path
    """checkpoint.pt of a run of train.py, or the run's folder."""
    images: Path
    """A CSV, a row for each image: 3072 values 0-255 in CHW order, no header. Or a folder of PNG
    files of 32x32 pixels; other files in it are left out, and named."""
    output: Path
    """For a CSV: one predicted label (an integer) a line, in the order of the rows. For a folder:
    lines NAME,LABEL in the order of the names."""
    backend: Backend = "auto"
    """Any backend can read any checkpoint, whichever backend trained it."""
    device: Device = "auto"
    class_names: bool = False
    """Write the names of classes instead of their integers."""
    probabilities: Path | None = None
    """Also write a CSV here, with a line for each image as in OUTPUT, and a probability for each
    class in the order of the integers."""
    labels: Path | None = None
    """The true labels, in the form of OUTPUT, as integers or names of classes: prints the accuracy
    and macro F1."""
    ema: bool = False
    """Predict with the average of the weights, from a run with --ema."""


def check_paths(config: PredictConfig, checkpoint: Path) -> None:
    """Raises UserError if an input is missing, or if a file to write is an input or cannot be
    written."""
    inputs = {checkpoint.resolve(), config.images.resolve()}
    if config.images.is_dir():
        inputs |= {file.resolve() for file in png_files(config.images)}
    if config.labels is not None:
        inputs.add(config.labels.resolve())
        if not config.labels.is_file():
            raise UserError(f"--labels {config.labels} is missing; give a CSV, a label a line")
    outputs = {"--output": config.output}
    if config.probabilities is not None:
        outputs["--probabilities"] = config.probabilities
    for flag, path in outputs.items():
        if path.resolve() in inputs:
            raise UserError(f"{flag} {path} would overwrite an input; give another file")
        require_writable(path, flag)
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise UserError(f"--probabilities {config.probabilities} is --output; give another file")


def warn_of_others(folder: Path) -> None:
    """Name the other files in the folder."""
    if others := other_files(folder):
        shown = ", ".join(others[:SHOWN]) + f" and {len(others) - SHOWN} more" * (
            len(others) > SHOWN
        )
        print(f"warning: left out, for they are no .png files: {shown}", file=sys.stderr)


def test(config: PredictConfig) -> None:
    """Read, predict, write; files appear only if every image and label can be read."""
    if not config.images.exists():
        raise UserError(f"--images {config.images} is missing; give a CSV or a folder of PNG files")
    file = find_checkpoint(config.checkpoint, "--checkpoint")
    check_paths(config, file)
    device = select_device(config.device)
    select_backend(config.backend, device)
    checkpoint = load_checkpoint(file)
    models, normalise = make_trained(checkpoint, file, config.backend, device)
    if config.ema and "ema" not in models:
        raise UserError(f"--ema: {file} has no average; leave it out, or train with --ema 0.999")
    classes, named = checkpoint["class_names"], config.images.is_dir()
    known = None if config.labels is None else read_labels(config.labels, named, classes)
    tables = [Table(config.output, named)]
    if config.probabilities is not None:
        tables.append(Table(config.probabilities, named))
    every: list[str] = []
    guesses: list[torch.Tensor] = []
    for names, images in read_batches(config.images):
        logits = infer(models["ema" if config.ema else ""], images, normalise, device)
        found = logits.argmax(1)
        shown = [classes[i] if config.class_names else i for i in found.tolist()]
        tables[0].add(names, [[label] for label in shown])
        for table in tables[1:]:
            values = logits.double().softmax(1).tolist()
            table.add(names, [[f"{p:.7g}" for p in row] for row in values])
        every += names
        guesses.append(found)
    truth = None
    if known is not None and config.labels is not None:
        truth = pick_labels(known, every, config.labels)
    for table in tables:
        table.write()
    if named:
        warn_of_others(config.images)
    print(f"{counted(len(every), 'label')}: {config.output}")
    if truth is not None:
        measures = scores(truth, torch.cat(guesses))
        print(f"accuracy {measures['accuracy']:.4f}, macro F1 {measures['macro_f1']:.4f}")


def main() -> None:
    """The command line."""
    test(tyro.cli(PredictConfig))


if __name__ == "__main__":
    run_script(main)
