"""Synthetic study folders, as study.py and speed.py would leave them: no network is trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study import describe

from harness.archives import CLASSES
from harness.plan import StudyConfig, planned

VARIANTS = {"bn-builtin": 0.88, "none": 0.80, "bn": 0.878, "in": 0.84, "bin": 0.885} | {
    "ln": 0.842, "gn": 0.86, "sn": 0.875, "wn": 0.83,
}  # fmt: skip
BUILTIN = {"in-builtin": 0.84, "ln-builtin": 0.84, "gn-builtin": 0.86}
BATCH = {"bn": {2: 0.55, 8: 0.82, 32: 0.85, 128: 0.84}, "gn": dict.fromkeys((2, 8, 32, 128), 0.83)}
LAYERS = [
    "norm",
    *(f"blocks.{block}.norm{k}" for block in range(6) for k in (1, 2)),
    *(f"blocks.{block}.shortcut.1" for block in (2, 4)),
]


class StudyFolder:
    """Writes runs with accuracies and curves of the right shapes; all random numbers are seeded."""

    def __init__(
        self,
        path: Path,
        labels: np.ndarray,
        *,
        dataset: str = "CIFAR-10 (JPEG q75)",
        epochs: int = 20,
        batch_epochs: int = 6,
        class_names: Sequence[str] = CLASSES,
    ) -> None:
        self.path, self.labels = path, labels
        self.dataset, self.epochs, self.batch_epochs = dataset, epochs, batch_epochs
        self.class_names = list(class_names)
        self.random = np.random.default_rng(0)
        # Images have a difficulty, so that variants fail on the same ones, as real ones do.
        self.difficulty = self.random.normal(size=len(labels))
        path.mkdir(parents=True, exist_ok=True)

    def plan(self, seeds: Sequence[int]) -> None:
        """study.json, as study.py writes it."""
        config = StudyConfig(
            output=self.path, seeds=tuple(seeds), variants=tuple(VARIANTS),
            epochs=self.epochs, batch_epochs=self.batch_epochs, batch_sizes=tuple(BATCH["bn"]),
        )  # fmt: skip
        self.write("study.json", describe(config, planned(config)))

    def write(self, name: str, content: dict[str, Any]) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def run(
        self, name: str, accuracy: float, seed: int = 0, *, stop: int | None = None, **flags: Any
    ) -> Path:
        """One run, unfinished after epoch `stop` with a torn last line; returns its folder."""
        norm, _, rest = name.partition("-")
        batch = int(rest.removeprefix("batch")) if rest.startswith("batch") else 128
        epochs = self.batch_epochs if batch != 128 or rest == "batch128" else self.epochs
        config = {
            "norm": norm, "backend": "torch" if rest == "builtin" else "auto", "depth_n": 2,
            "epochs": epochs, "batch_size": batch, "lr": 0.1 * batch / 128, "seed": seed,
            "recipe": "study", "dataset": "cifar10", "amp": "off", "groups": None, **flags,
        }  # fmt: skip
        description = {
            "config": config, "dataset": self.dataset, "class_names": self.class_names,
            "images": {"train": 40000, "val": 10000, "test": len(self.labels)},
            "mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26], "parameters": 175818,
            "device": "cpu", "interpreter": False, "threads": 1,
            "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "triton": None},
            "commit": "1234abcd",
        }  # fmt: skip
        run = f"runs/{name}/seed{seed}"
        folder = run if stop is None else f"{run}/unfinished"
        self.write(f"{folder}/config.json", description)
        rows = [self.row(norm, accuracy, epoch, epochs) for epoch in range(1, (stop or epochs) + 1)]
        self.append(f"{folder}/metrics.jsonl", rows)
        if stop is not None:
            with (self.path / folder / "metrics.jsonl").open("a") as file:
                file.write('{"epoch": 99, "train_lo')
            return self.path / folder
        predictions = self.predictions(accuracy)
        np.savez_compressed(
            self.path / folder / "predictions.npz",
            labels=self.labels.astype(np.int16),
            predictions=predictions,
        )
        test = float((predictions == self.labels).mean())
        values = {"train": min(1.0, accuracy + 0.07), "val": accuracy, "test": test}
        splits = {
            key: {"accuracy": value, "micro_f1": value, "macro_f1": value - 0.002}
            for key, value in values.items()
        }
        results = {**splits, "last_epoch": rows[-1], "steps": 313 * epochs, **description}
        self.write(f"{folder}/results.json", results)
        return self.path / folder

    def predictions(self, accuracy: float) -> np.ndarray:
        """int16 (N,): the most difficult images, more or less, are wrong, mostly one class off."""
        felt = self.difficulty + 0.4 * self.random.normal(size=len(self.labels))
        wrong = felt > np.quantile(felt, accuracy)
        shift = self.random.choice(
            [1, 2, len(self.class_names) - 1], len(self.labels), p=[0.7, 0.1, 0.2]
        )
        return np.where(wrong, (self.labels + shift) % len(self.class_names), self.labels).astype(
            np.int16
        )

    def row(self, norm: str, accuracy: float, epoch: int, epochs: int) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        done = epoch / epochs
        reached = accuracy * (1 - 0.6 * np.exp(-6 * done))
        noise = 0.03 * self.random.normal() * (done < 0.75)
        width = 1 + (40 * done**2 if norm == "none" else 0.5 * done)
        row = {
            "epoch": epoch, "train_loss": 2.3 * (1 - reached) + 0.02, "train_accuracy": reached,
            "val_accuracy": min(1.0, reached - abs(noise)), "images_per_second": 900.0,
            "seconds": 44.0, "lr": 0.1,
            "features": {
                "last_conv": [-3 * width, -width, width, 3.5 * width],
                "pooled": [0.0, 0.1 * width, width, 3 * width],
            },
        }  # fmt: skip
        if norm == "bin":
            row["rho"] = {
                layer: self.rho(min(1.0, done * (0.2 + 0.8 * k / len(LAYERS))))
                for k, layer in enumerate(LAYERS)
            }
        if norm == "sn":
            weights = np.exp(done * np.array([0.5, -0.5, 1.0]))
            weights /= weights.sum()
            row["switch"] = {
                layer: {"mean": weights.tolist(), "var": weights[::-1].tolist()} for layer in LAYERS
            }
        return row

    def rho(self, spread: float) -> dict[str, Any]:
        values = np.clip(1 - spread * self.random.random(64), 0, 1)
        counts, _ = np.histogram(values, 20, (0, 1))
        return {
            "min": float(values.min()), "mean": float(values.mean()), "max": float(values.max()),
            "histogram": counts.tolist(),
        }  # fmt: skip

    def speed(self) -> None:
        """speed.jsonl of two norms and of one that torch does not have."""
        rows = []
        for norm, ratio in (("bn", 1.4), ("gn", 1.9), ("bin", None)):
            for provider in ("fastnorm", "builtin", "fastnorm-compile", "builtin-compile"):
                if ratio is None and "builtin" in provider:
                    continue
                ours = provider.startswith("fastnorm")
                speed = 900.0 * (ratio or 1.2 if ours else 1.0)
                rows.append(
                    {
                        "norm": norm, "provider": provider, "batch_size": 128, "depth_n": 2,
                        "recipe": "study", "amp": "off",
                        "channels_last": False, "cuda_graph": False, "images_per_second": speed,
                        "p20": 0.97 * speed, "p80": 1.02 * speed,
                        "ratio": ratio and (ratio if ours else 1.0), "epoch_seconds": 40000 / speed,
                        "peak_mib": None, "device": "cpu", "threads": 1, "versions": {},
                        "commit": "1234abcd",
                    }
                )  # fmt: skip
        self.append("speed.jsonl", rows)


def whole_study(folder: StudyFolder, seeds: Sequence[int] = (0,)) -> None:
    """Every part of a study, finished."""
    folder.plan(seeds)
    batch = {f"{n}-batch{size}": a for n, sizes in BATCH.items() for size, a in sizes.items()}
    for seed in seeds:
        for name, accuracy in {**VARIANTS, **BUILTIN, **batch}.items():
            folder.run(name, accuracy + 0.003 * seed, seed)
    folder.speed()
