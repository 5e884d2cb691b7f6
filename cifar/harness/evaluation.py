"""The labels that a model gives to images, and their scores."""

import torch
from sklearn.metrics import f1_score  # type: ignore[import-untyped]

from harness.batches import Normalise

EVAL_BATCH = 512


@torch.inference_mode()
def infer(
    model: torch.nn.Module, images: torch.Tensor, normalise: Normalise, device: torch.device
) -> torch.Tensor:
    """Logits (N, classes), on the CPU, of the model in eval mode for images (N, 3, 32, 32)."""
    model.eval()
    return torch.cat([model(normalise(part.to(device))) for part in images.split(EVAL_BATCH)]).cpu()


def predict(
    model: torch.nn.Module, images: torch.Tensor, normalise: Normalise, device: torch.device
) -> torch.Tensor:
    """Labels int64 (N,), on the CPU, that the model in eval mode gives to images (N, 3, 32, 32)."""
    return infer(model, images, normalise, device).argmax(1)


def scores(labels: torch.Tensor, predictions: torch.Tensor) -> dict[str, float]:
    """Accuracy, micro F1 (the same, with one label an image) and macro F1 of int64 (N,) tensors."""
    truth, guess = labels.numpy(), predictions.numpy()
    return {
        "accuracy": float((truth == guess).mean()),
        "micro_f1": float(f1_score(truth, guess, average="micro")),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0)),
    }
