"""The command line of train.py, which is also the record saved with every run."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from errors import UserError

Norm = Literal["bn", "in", "bin", "ln", "gn", "sn", "wn", "none"]
Backend = Literal["auto", "triton", "aten", "reference", "builtin"]
Device = Literal["auto", "cpu", "cuda"]

# They say where things lie on one machine, not what was computed, so they are not recorded.
PATHS = ("data_dir", "output")


@dataclass(frozen=True)
class TrainConfig:
    """Train a ResNet of 6n+2 layers on CIFAR-10 and compare normalizations.

    Writes checkpoint.pt, config.json, metrics.jsonl, steps.jsonl and results.json. While a run
    lasts they are in OUTPUT/unfinished; when it ends they move to OUTPUT and replace those of an
    earlier run there.
    """

    norm: Norm = "bn"
    """Normalization after each convolution; ln has statistics over C, H, W, gn has C/4 groups, sn
    is switchable, wn normalizes the convolutions' weights and has mean-only batch normalization
    after them."""
    backend: Backend = "auto"
    """Who computes it: a fastnorm backend, or builtin for torch.nn's modules, add and relu."""
    depth_n: int = 2
    """Residual blocks per stage, n: 6n+2 layers."""
    epochs: int | None = None
    """Default: 100 for CIFAR-10, 10 for the digits, 1 for the digits in Triton's interpreter."""
    batch_size: int = 128
    lr: float = 0.1
    """Of plain SGD; x0.1 after 75% and after 95% of the epochs. The rho of bin has 10 times it."""
    seed: int = 0
    """Decides the weights, the batches and their augmentation, alike for every backend."""
    dataset: Literal["auto", "cifar10", "cifar100", "digits"] = "auto"
    """auto: CIFAR-10 from --data-dir, else downloaded; if that fails, scikit-learn's digits."""
    data_dir: Path | None = None
    """A folder with cifar-10-batches-py or cifar-100-python in it, or that folder itself."""
    dataset_label: str | None = None
    """What the results call the data in --data-dir, e.g. "CIFAR-10 (JPEG q75)"."""
    output: Path | None = None
    """Default: runs/DATASET-NORM-BACKEND-seedSEED. Replaces an earlier run's files at the end."""
    device: Device = "auto"
    max_steps: int | None = None
    """Stop after this many optimizer steps; evaluate and save all the same."""

    def check(self) -> None:
        """Raises UserError for values that no run can have."""
        for name in ("depth_n", "epochs", "batch_size", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"--lr is {self.lr}; it must be positive and finite")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed is {self.seed}; it must lie in [0, 2**63)")
        if self.dataset == "digits" and self.data_dir is not None:
            raise UserError(
                "--data-dir is for CIFAR-10 and CIFAR-100; leave it out with --dataset digits"
            )
        if self.dataset_label is not None and self.data_dir is None:
            raise UserError("--dataset-label names the data in --data-dir; give both or neither")

    def record(self) -> dict[str, Any]:
        """The flags that decide what is computed, as plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in PATHS}


def default_epochs(dataset: str, interpreted: bool) -> int:
    """The study's 100 for CIFAR-10; few for the digits, so that a first try ends within minutes."""
    if dataset != "digits":
        return 100
    return 1 if interpreted else 10
