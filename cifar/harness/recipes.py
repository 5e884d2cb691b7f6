"""How a run trains where its flags leave it open."""

from dataclasses import dataclass
from typing import Literal

Shortcut = Literal["projection", "pad"]


@dataclass(frozen=True)
class Recipe:
    """SGD at 0.1 of batches of 128, cross entropy, crops after padding by 4, mirror images; and:"""

    epochs: int
    drops: tuple[int, int]
    """The learning rate falls to a tenth after these percentages of the epochs, rounded up."""
    momentum: float
    weight_decay: float
    """Of all parameters but BIN's rho."""
    shortcut: Shortcut
    he_initialisation: bool
    """Of the convolutions; else torch.nn's own."""
    validation_share: float
    """Of the training images; the last ones."""

    def milestones(self, epochs: int) -> list[int]:
        """The epochs after which the rate falls."""
        return [-(-epochs * percent // 100) for percent in self.drops]


RECIPES = {
    "study": Recipe(
        epochs=100,
        drops=(75, 95),
        momentum=0.0,
        weight_decay=0.0,
        shortcut="projection",
        he_initialisation=False,
        validation_share=0.2,
    ),
    # He et al., arXiv 1512.03385, section 4.2: 64,000 steps, of which 182 epochs of 45,000 images
    # make 64,064, and drops after 32,000 and 48,000.
    "he": Recipe(
        epochs=182,
        drops=(50, 75),
        momentum=0.9,
        weight_decay=1e-4,
        shortcut="pad",
        he_initialisation=True,
        validation_share=0.1,
    ),
}
DIGITS_EPOCHS = 10  # few, so that a first try ends within minutes
INTERPRETED_DIGITS_EPOCHS = 1


def default_epochs(recipe: str, dataset: str, interpreted: bool) -> int:
    """The recipe's for CIFAR, few for the digits, fewest for them in Triton's interpreter."""
    if dataset != "digits":
        return RECIPES[recipe].epochs
    return INTERPRETED_DIGITS_EPOCHS if interpreted else DIGITS_EPOCHS
