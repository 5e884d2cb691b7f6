"""Scores of predicted labels."""

import torch
from sklearn.metrics import f1_score  # type: ignore[import-untyped]


def scores(labels: torch.Tensor, predictions: torch.Tensor) -> dict[str, float]:
    """Accuracy, micro F1 (the same, with one label an image) and macro F1 of int64 (N,) tensors."""
    truth, guess = labels.numpy(), predictions.numpy()
    return {
        "accuracy": float((truth == guess).mean()),
        "micro_f1": float(f1_score(truth, guess, average="micro")),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0)),
    }
