"""A model's predictions and their scores."""

import pytest
import torch

from harness.batches import Normalise
from harness.evaluation import infer, scores
from harness.model import Architecture, build_model

CPU = torch.device("cpu")
NORMALISE = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), CPU)


def test_predict_takes_each_image_by_itself() -> None:
    """In eval mode: a batch norm that used, or updated, batch statistics would show."""
    model = build_model(Architecture("bn", depth_n=1), "torch", seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images //= torch.arange(1, 7, dtype=torch.uint8).view(-1, 1, 1, 1)  # statistics of their own
    together = infer(model, images, NORMALISE, CPU).argmax(1)
    alone = [infer(model, image[None], NORMALISE, CPU).argmax(1).item() for image in images]
    assert together.tolist() == alone
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scores_by_hand() -> None:
    """F1 of the classes: 2/3, 1/2 and, for the one never predicted, 0."""
    found = scores(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1]))
    assert found == pytest.approx({"accuracy": 0.5, "micro_f1": 0.5, "macro_f1": 7 / 18})
