"""How a run trains where its flags leave it open."""

from dataclasses import dataclass
from typing import Literal

Shortcut = Literal["projection", "pad"]
RecipeName = Literal["auto", "study", "he", "digits"]

WN_SHARE = 0.3  # of the learning rate: with all of it weight norm diverges


@dataclass(frozen=True)
class Recipe:
    """SGD, cross entropy, crops after padding by 4, mirror images (not of digits); and:"""

    epochs: int
    lr: float
    batch_size: int
    drops: tuple[int, int]
    """The learning rate falls to a tenth after these percentages of the epochs, rounded up."""
    momentum: float
    weight_decay: float
    """Of all parameters but BIN's rho."""
    shortcut: Shortcut
    he_initialisation: bool
    """Of the convolutions; else torch.nn's own."""
    validation_share: float
    """Of the training images; the last ones. The digits have a split of their own."""
    expectation: str
    """Of a run of so many epochs, for whoever starts it."""

    def milestones(self, epochs: int) -> list[int]:
        """The epochs after which the rate falls."""
        return [-(-epochs * percent // 100) for percent in self.drops]

    def rate(self, norm: str) -> float:
        """The learning rate at the start, at batches of `batch_size`."""
        return self.lr * WN_SHARE if norm == "wn" else self.lr


RECIPES = {
    # Singh and Mittal, "Normalizations in Deep Learning":
    # https://github.com/HarmanDotpy/Normalizations-in-Deep-Learning
    "study": Recipe(
        epochs=100,
        lr=0.1,
        batch_size=128,
        drops=(75, 95),
        momentum=0.0,
        weight_decay=0.0,
        shortcut="projection",
        he_initialisation=False,
        validation_share=0.2,
        expectation="0.85 to 0.88 on CIFAR-10's test images, by norm (the published study), in "
        "an hour or more of a CPU",
    ),
    # He et al., arXiv 1512.03385, section 4.2: 64,000 steps, of which 182 epochs of 45,000 images
    # make 64,064, and drops after 32,000 and 48,000.
    "he": Recipe(
        epochs=182,
        lr=0.1,
        batch_size=128,
        drops=(50, 75),
        momentum=0.9,
        weight_decay=1e-4,
        shortcut="pad",
        he_initialisation=True,
        validation_share=0.1,
        expectation="0.91 on CIFAR-10's test images with bn and --depth-n 3 (He et al.)",
    ),
    # Our own, for a first try: the study's 0.1 without momentum, in the 100 steps that 10 epochs of
    # the digits have at batches of 128, ends between 0.1 and 0.7.
    "digits": Recipe(
        epochs=13,
        lr=0.01,
        batch_size=32,
        drops=(60, 90),
        momentum=0.9,
        weight_decay=1e-4,
        shortcut="projection",
        he_initialisation=False,
        validation_share=0.2,
        expectation="0.95 on the digits' test images with gn, in a minute of a CPU",
    ),
}
INTERPRETED_DIGITS_EPOCHS = 1


def choose_recipe(name: RecipeName, dataset: str) -> RecipeName:
    """`name`; for auto that of the data set, "digits" or one of CIFAR."""
    if name != "auto":
        return name
    return "digits" if dataset == "digits" else "study"


def default_epochs(recipe: str, dataset: str, interpreted: bool) -> int:
    """The recipe's for CIFAR, few for the digits, fewest for them in Triton's interpreter."""
    if dataset != "digits":
        return RECIPES[recipe].epochs
    return INTERPRETED_DIGITS_EPOCHS if interpreted else RECIPES["digits"].epochs
