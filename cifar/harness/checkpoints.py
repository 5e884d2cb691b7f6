"""Reads a trained model from its checkpoint."""

from pathlib import Path
from typing import Any

import torch

from harness.batches import Normalise
from harness.config import Backend
from harness.errors import UserError
from harness.model import Architecture, ResNet, make_model


def find_checkpoint(path: Path, flag: str) -> Path:
    """`path`, or its checkpoint.pt if it is the folder of a run; `flag` is the flag that gave it.

    Raises UserError for the folder of an unfinished run, and for any other folder.
    """
    if not path.is_dir():
        return path
    if (path / "results.json").is_file():  # the mark of a finished run
        return path / "checkpoint.pt"
    for file in (path / "unfinished" / "checkpoint.pt", path / "checkpoint.pt"):
        if file.is_file():
            raise UserError(
                f"{flag} {path}: this run has not finished; let it end, or give {file} for "
                "the weights that it has"
            )
    raise UserError(f"{flag} {path} holds no finished run; give checkpoint.pt or its folder")


def make_trained(
    checkpoint: dict[str, Any], file: Path, backend: Backend, device: torch.device
) -> tuple[dict[str, ResNet], Normalise]:
    """The models by the name of their weights, and their normalisation.

    "" are the weights, "ema" their average if the run had --ema. They have the run's memory layout,
    so that they give the same answers as at its end. Raises UserError if the weights in `file` do
    not fit its architecture.
    """
    weights = {"": checkpoint["model"]}
    if checkpoint.get("ema"):  # a run of an earlier version has no such key
        weights["ema"] = checkpoint["ema"]["model"]
    channels_last = checkpoint["config"].get("channels_last", False)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    models = {}
    for name, values in weights.items():
        model = make_model(Architecture(**checkpoint["architecture"]), backend)
        try:
            model.load_state_dict(values)
        except RuntimeError:
            message = f"the weights in {file} do not fit the model that its config names"
            raise UserError(message) from None
        models[name] = model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    return models, Normalise(checkpoint["mean"], checkpoint["std"], device, channels_last)
