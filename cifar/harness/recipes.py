"""How a run trains: values for the flags that are not given."""

import math
from dataclasses import dataclass
from typing import Literal

Shortcut = Literal["projection", "pad"]
RecipeName = Literal["auto", "study", "he", "fast", "digits"]

WN_SHARE = 0.3  # times the learning rate: with the full rate weight norm diverges


@dataclass(frozen=True)
class Drops:
    """The learning rate falls to a tenth after these percentages of the epochs, rounded up."""

    percents: tuple[int, int]

    def milestones(self, epochs: int) -> list[int]:
        """The epochs after which the rate falls."""
        return [-(-epochs * percent // 100) for percent in self.percents]

    def factor(self, epoch: int, epochs: int) -> float:
        """The factor of the rate in `epoch`, which counts from 0."""
        return 0.1 ** sum(epoch >= milestone for milestone in self.milestones(epochs))

    def __str__(self) -> str:
        first, second = self.percents
        return f"learning rate x0.1 after {first}% and {second}% of the epochs"


@dataclass(frozen=True)
class Cosine:
    """The learning rate rises by equal steps in the first `warm_up` percent of the epochs, rounded
    up, then falls along half a cosine to nearly 0 (SGDR without restarts, arXiv 1608.03983).

    It is constant within an epoch: it is a constant of a CUDA graph, which then serves one epoch.
    """

    warm_up: int

    def factor(self, epoch: int, epochs: int) -> float:
        """The factor of the rate in `epoch`, which counts from 0; 1 in the warm-up's last epoch."""
        rising = -(-epochs * self.warm_up // 100)
        if epoch < rising:
            return (epoch + 1) / rising
        return (1 + math.cos(math.pi * (epoch + 1 - rising) / (epochs + 1 - rising))) / 2

    def __str__(self) -> str:
        return f"learning rate rising for {self.warm_up}% of the epochs, then half a cosine to 0"


@dataclass(frozen=True)
class Recipe:
    """SGD, cross entropy, crops after padding by 4, mirrored images (not for digits); and:"""

    source: str
    """Its origin; the text goes on after "the recipe"."""
    epochs: int
    lr: float
    """The largest rate of the schedule, at batches of `batch_size`."""
    batch_size: int
    schedule: Drops | Cosine
    momentum: float
    weight_decay: float
    """Never applied to BIN's rho."""
    shortcut: Shortcut
    he_initialisation: bool
    """Initialisation of the convolutions; else torch.nn's own."""
    validation_share: float
    """The share of the training images, the last ones. The digits have their own split."""
    expectation: str | None
    """What to expect of a run with that many epochs; None if it was never measured."""
    nesterov: bool = False
    decay_norms: bool = True
    """Whether weight decay also applies to norms' parameters and to biases."""
    label_smoothing: float = 0.0
    """In the training loss (arXiv 1512.00567, section 7)."""

    def rate(self, norm: str) -> float:
        """The largest learning rate, at batches of `batch_size`."""
        return self.lr * WN_SHARE if norm == "wn" else self.lr

    def __str__(self) -> str:
        momentum = f"{'Nesterov ' * self.nesterov}momentum {self.momentum:g}"
        decay = f"weight decay {self.weight_decay:g}" + " of weights alone" * (not self.decay_norms)
        smoothing = f", label smoothing {self.label_smoothing:g}" * (self.label_smoothing > 0)
        return f"{self.source}: SGD, {momentum}, {decay}{smoothing}, {self.schedule}"


RECIPES = {
    # Singh and Mittal, "Normalizations in Deep Learning":
    # https://github.com/HarmanDotpy/Normalizations-in-Deep-Learning
    "study": Recipe(
        source="of the published study (Singh and Mittal, 2021)",
        epochs=100,
        lr=0.1,
        batch_size=128,
        schedule=Drops((75, 95)),
        momentum=0.0,
        weight_decay=0.0,
        shortcut="projection",
        he_initialisation=False,
        validation_share=0.2,
        expectation="0.85 to 0.88 on CIFAR-10's test images, by norm (the published study), in "
        "an hour or more of a CPU",
    ),
    # He et al., arXiv 1512.03385, section 4.2: 64,000 steps, drops after 32,000 and 48,000; 182
    # epochs of 45,000 images make 64,064.
    "he": Recipe(
        source="of He et al. (arXiv 1512.03385)",
        epochs=182,
        lr=0.1,
        batch_size=128,
        schedule=Drops((50, 75)),
        momentum=0.9,
        weight_decay=1e-4,
        shortcut="pad",
        he_initialisation=True,
        validation_share=0.1,
        expectation="0.91 on CIFAR-10's test images with bn and --depth-n 3 (He et al.)",
    ),
    # Our own: usual choices for a short training, on the study's network. 30 epochs take one core
    # with bfloat16 instructions about half an hour.
    "fast": Recipe(
        source="of this harness for half an hour of a CPU",
        epochs=30,
        lr=0.1,
        batch_size=128,
        schedule=Cosine(warm_up=15),
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        decay_norms=False,
        label_smoothing=0.1,
        shortcut="projection",
        he_initialisation=False,
        validation_share=0.1,
        expectation="0.85 to 0.86 on the test images of CIFAR-10 (JPEG q75) with bn",
    ),
    # Our own, for a first try: as "fast", in the 494 steps that 13 epochs have at batches of 32.
    # The study's 0.1 without momentum, in 100 steps at batches of 128, ends between 0.1 and 0.7.
    "digits": Recipe(
        source="of this harness for the digits",
        epochs=13,
        lr=0.03,
        batch_size=32,
        schedule=Cosine(warm_up=15),
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        decay_norms=False,
        label_smoothing=0.1,
        shortcut="projection",
        he_initialisation=False,
        validation_share=0.2,
        expectation="0.97 to 0.99 on the digits' test images with gn, in a minute of a CPU",
    ),
}
INTERPRETED_DIGITS_EPOCHS = 1


def choose_recipe(name: RecipeName, dataset: str) -> RecipeName:
    """`name`; for auto the recipe of the data set: "digits", or "study" for CIFAR."""
    if name != "auto":
        return name
    return "digits" if dataset == "digits" else "study"


def default_epochs(recipe: str, dataset: str, interpreted: bool) -> int:
    """The recipe's for CIFAR, few for the digits, fewest for digits in Triton's interpreter."""
    if dataset != "digits":
        return RECIPES[recipe].epochs
    return INTERPRETED_DIGITS_EPOCHS if interpreted else RECIPES["digits"].epochs
