"""The command line of train.py, which is saved with every run; and flags in words."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from harness.errors import UserError
from harness.recipes import RECIPES, RecipeName, Shortcut, choose_recipe

Norm = Literal["bn", "in", "bin", "ln", "gn", "rms", "sn", "wn", "none"]
Backend = Literal["auto", "triton", "cpu", "torch", "reference"]
Device = Literal["auto", "cpu", "cuda"]
Amp = Literal["off", "bf16", "fp16"]

MISSING = {
    "bin": "BIN",
    "rms": "RMS norm with a weight per channel",
    "sn": "SN",
    "wn": "mean-only batch norm",
}  # from torch.nn

# They give places on one machine or the way of display, and do not affect results.
NOT_RECORDED = ("data_dir", "output", "resume", "tensorboard", "eval_only")
# Flags that go with --eval-only; all others come from the checkpoint.
OF_EVALUATION = ("eval_only", "dataset", "data_dir", "dataset_label", "device", "backend")


def flag(name: str) -> str:
    """A field's flag as a user types it: --batch-size for batch_size."""
    return f"--{name.replace('_', '-')}"


def flag_words(values: Mapping[str, Any]) -> list[str]:
    """The fields of a command line, as a user would type them; None is left to the default."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        elif isinstance(value, tuple):
            words += [flag(name), *map(str, value)]
        elif value is not None:
            words += [flag(name), str(value)]
    return words


@dataclass(frozen=True)
class Setting:
    """Settings that the runs of a study share."""

    recipe: RecipeName = "auto"
    """study (Singh and Mittal, "Normalizations in Deep Learning", 2021): plain SGD, x0.1 after 75%
    and 95% of the epochs, 1x1 convolutions as shortcuts, a fifth of the training images for
    validation. he (arXiv 1512.03385): momentum 0.9, weight decay 1e-4, x0.1 after 50% and 75%,
    zero-padded shortcuts, a tenth for validation. fast: warm-up and half a cosine, Nesterov
    momentum 0.9, weight decay 5e-4 of weights alone, label smoothing 0.1, the study's network, a
    tenth for validation; quickest with --amp bf16 --channels-last if the processor has
    instructions for bfloat16. digits: as fast, at a rate of 0.03 and batches of 32. auto: digits
    for the digits, study for CIFAR."""
    depth_n: int = 2
    """Residual blocks per stage, n: 6n+2 layers."""
    shortcut: Shortcut | None = None
    """If the shape changes: 1x1 convolution + norm, or every second pixel padded with zero
    channels. Default: the recipe's."""
    dataset: Literal["auto", "cifar10", "cifar100", "digits"] = "auto"
    """auto: CIFAR-10 from --data-dir, else downloaded; if that fails, scikit-learn's digits."""
    data_dir: Path | None = None
    """A folder with cifar-10-batches-py or cifar-100-python in it, or that folder itself."""
    dataset_label: str | None = None
    """The name of the data in --data-dir for the results, e.g. "CIFAR-10 (JPEG q75)"."""
    device: Device = "auto"
    amp: Amp = "off"
    """Autocast in training; fp16 with loss scaling. Evaluation is in float32."""
    channels_last: bool = False
    """Memory layout of images and weights."""
    compile: bool = False
    """torch.compile the model for training."""
    cuda_graph: bool = False
    """Replay each step as a CUDA graph."""

    def settings(self) -> dict[str, Any]:
        """Only these flags, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Setting)}

    def chosen_shortcut(self) -> Shortcut:
        """The flag's value, or else the recipe's."""
        return self.shortcut or RECIPES[self.chosen_recipe()].shortcut

    def chosen_recipe(self) -> RecipeName:
        """The flag's value, or else that for --dataset."""
        return choose_recipe(self.recipe, self.dataset)

    def require_counts(self, *names: str) -> None:
        """Raises UserError for one of these flags that is given and below 1."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{flag(name)} is {value}; it must be at least 1")


@dataclass(frozen=True)
class TrainConfig(Setting):
    """Train a ResNet of 6n+2 layers on CIFAR and compare normalizations.

    Writes checkpoint.pt, config.json, metrics.jsonl, steps.jsonl, predictions.npz and results.json.
    While a run lasts they are in OUTPUT/unfinished; when it ends they move to OUTPUT and replace
    those of an earlier run there. Under torchrun the processes share each batch.
    """

    norm: Norm = "bn"
    """Normalization after each convolution; ln and rms have statistics over C, H, W, gn has C/4
    groups, sn is switchable, wn normalizes the convolutions' weights and has mean-only batch
    normalization after them."""
    backend: Backend = "auto"
    """The norms' backend: one of fastnorm's; torch means torch.nn's modules, add and relu."""
    groups: int | None = None
    """Groups of gn, the same number in each layer. Default: C/4, four channels a group."""
    epochs: int | None = None
    """Default: 100 (study), 182 (he) or 30 (fast) for CIFAR, 13 for the digits, 1 for the digits in
    Triton's interpreter."""
    batch_size: int | None = None
    """Images of all processes together. Default: 128, for the recipe digits 32."""
    lr: float | None = None
    """The largest rate of the schedule. Default: 0.1, for the recipe digits 0.01; for wn 0.3 times
    that. The rho of bin has 10 times the rate."""
    ema: float | None = None
    """Also keep, save and evaluate the exponential moving average of the weights, with this decay,
    e.g. 0.999. Before each evaluation, training images give it its own running statistics."""
    seed: int = 0
    """Determines the weights, the batches and their augmentation, the same for every backend."""
    output: Path | None = None
    """Default: runs/DATASET-NORM-BACKEND-seedSEED. Replaces an earlier run's files at the end."""
    resume: bool = False
    """Go on from the last complete epoch in OUTPUT/unfinished, with the same losses as a run that
    was never interrupted. Begin if there is none; do nothing if OUTPUT holds the finished run."""
    tensorboard: bool = False
    """Also write the metrics to OUTPUT/tensorboard; needs the package tensorboard."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; evaluate and save all the same."""
    eval_only: Path | None = None
    """Train nothing: print the scores of this checkpoint, or of a run's folder, on the splits. The
    network is the checkpoint's, and so is the data set without --dataset. Writes nothing."""

    def check(self) -> None:
        """Raises UserError for values that no run can have."""
        if self.eval_only is not None:
            self.require_evaluation()
        self.require_counts("depth_n", "groups", "epochs", "batch_size", "max_steps")
        if self.backend == "torch":
            require_builtin(self.norm)
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise UserError(f"--lr is {self.lr}; it must be positive and finite")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"--ema is {self.ema}; it must lie between 0 and 1, e.g. 0.999")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed is {self.seed}; it must lie in [0, 2**63)")
        if self.dataset == "digits" and self.data_dir is not None:
            raise UserError(
                "--data-dir is for CIFAR-10 and CIFAR-100; leave it out with --dataset digits"
            )
        if self.dataset_label is not None and self.data_dir is None:
            raise UserError("--dataset-label names the data in --data-dir; give both or neither")
        if self.groups is not None and self.norm != "gn":
            raise UserError(f"--groups is for --norm gn; leave it out with --norm {self.norm}")
        if self.groups is not None and 16 % self.groups:
            raise UserError(f"--groups is {self.groups}; it must divide 16, the fewest channels")
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise UserError("--tensorboard: its package is not installed; pip install tensorboard")
        if self.cuda_graph and self.amp == "fp16":
            raise UserError(
                "--cuda-graph with --amp fp16: loss scaling asks the host at each step; use bf16"
            )

    def require_evaluation(self) -> None:
        """Raises UserError for a flag that --eval-only would ignore."""
        for field in fields(self):
            if field.name not in OF_EVALUATION and getattr(self, field.name) != field.default:
                raise UserError(
                    f"--eval-only takes all but the data from the checkpoint; leave out "
                    f"{flag(field.name)}"
                )

    def record(self) -> dict[str, Any]:
        """The flags that affect results, as plain values."""
        names = (field.name for field in fields(self))
        return {name: getattr(self, name) for name in names if name not in NOT_RECORDED}


def require_builtin(norm: Norm) -> None:
    """Raises UserError for a norm that torch.nn does not have."""
    if norm in MISSING:
        raise UserError(f"--backend torch: torch.nn has no {MISSING[norm]}; use another backend")
