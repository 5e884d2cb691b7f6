"""Predict the labels of a CSV of images with a checkpoint: python cifar/test.py --help."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import tyro
from backends import select_backend, select_device
from batches import EVAL_BATCH, Normalise, predict
from config import PredictConfig
from errors import UserError, run_script
from files import load_checkpoint, write_atomic
from model import Architecture, ResNet, make_model

PIXELS = 3 * 32 * 32


def parse_row(line: str, where: str) -> np.ndarray:
    """float32 (3, 32, 32) of one CSV row. Raises UserError, which begins with `where`."""
    fields = line.split(",")
    if len(fields) != PIXELS:
        raise UserError(f"{where} has {len(fields)} values, an image has {PIXELS}")
    try:
        values = np.fromiter(map(float, fields), np.float32, PIXELS)
    except ValueError as error:
        raise UserError(f"{where}: {error} (there must be no header)") from None
    outside = ~((values >= 0) & (values <= 255))  # NaN compares false, so it is outside
    if outside.any():
        column = int(outside.argmax())
        raise UserError(f"{where}: value {column + 1} is {fields[column].strip()}, not 0 to 255")
    return values.reshape(3, 32, 32)


def read_images(path: Path) -> Iterator[torch.Tensor]:
    """Yields float32 (B, 3, 32, 32) with B <= EVAL_BATCH, so that a large file needs little memory.

    Raises UserError naming the first malformed row.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        rows = (parse_row(line, f"{path}: row {i}") for i, line in enumerate(file, start=1))
        while chunk := list(itertools.islice(rows, EVAL_BATCH)):
            yield torch.from_numpy(np.stack(chunk))


def load_model(config: PredictConfig, device: torch.device) -> tuple[ResNet, Normalise]:
    """The trained model and its normalisation. Raises UserError if the checkpoint does not fit."""
    checkpoint = load_checkpoint(config.checkpoint)
    model = make_model(Architecture(**checkpoint["architecture"]), config.backend)
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError:
        message = f"the weights in {config.checkpoint} do not fit the model that its config names"
        raise UserError(message) from None
    return model.to(device), Normalise(checkpoint["mean"], checkpoint["std"], device)


def test(config: PredictConfig) -> None:
    """Read, predict, write; the output appears only if every row is an image."""
    if config.output.resolve() in (config.images.resolve(), config.checkpoint.resolve()):
        raise UserError(f"--output {config.output} would overwrite an input")
    device = select_device(config.device)
    select_backend(config.backend, device)
    model, normalise = load_model(config, device)
    parts = [predict(model, images, normalise, device) for images in read_images(config.images)]
    if not parts:
        raise UserError(f"{config.images} has no rows")
    text = "".join(f"{label}\n" for label in torch.cat(parts).tolist())
    write_atomic(config.output, lambda file: file.write(text.encode()))
    print(f"{sum(map(len, parts))} labels: {config.output}")


def main() -> None:
    """The command line."""
    test(tyro.cli(PredictConfig))


if __name__ == "__main__":
    run_script(main)
