"""The labels that a model predicts for images, and their scores."""

from collections.abc import Mapping

import torch
from sklearn.metrics import f1_score  # type: ignore[import-untyped]

from harness.batches import Normalise
from harness.datasets import Split

EVAL_BATCH = 512
Scores = dict[str, dict[str, float]]  # by split and measure


@torch.inference_mode()
def infer(
    model: torch.nn.Module, images: torch.Tensor, normalise: Normalise, device: torch.device
) -> torch.Tensor:
    """Logits (N, classes), on the CPU, of the model in eval mode for images (N, 3, 32, 32)."""
    model.eval()
    return torch.cat([model(normalise(part.to(device))) for part in images.split(EVAL_BATCH)]).cpu()


def accuracy(
    model: torch.nn.Module, split: Split, normalise: Normalise, device: torch.device
) -> float:
    """The accuracy of the labels that the model in eval mode gives to the images."""
    found = infer(model, split.images, normalise, device).argmax(1)
    return (found == split.labels).double().mean().item()


def infer_splits(
    model: torch.nn.Module,
    splits: Mapping[str, Split],
    normalise: Normalise,
    device: torch.device,
) -> tuple[dict[str, torch.Tensor], Scores]:
    """Logits (N, classes) of each split's unchanged images (no crop, no mirror), and scores."""
    logits = {name: infer(model, split.images, normalise, device) for name, split in splits.items()}
    return logits, {name: scores(splits[name].labels, z.argmax(1)) for name, z in logits.items()}


def scores(labels: torch.Tensor, predictions: torch.Tensor) -> dict[str, float]:
    """Accuracy, micro F1 (the same, with one label an image) and macro F1 of int64 (N,) tensors."""
    truth, guess = labels.numpy(), predictions.numpy()
    return {
        "accuracy": float((truth == guess).mean()),
        "micro_f1": float(f1_score(truth, guess, average="micro")),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0)),
    }
