"""Images/s and memory of training, norm by norm, ours and torch's: python cifar/speed.py --help."""

import gc
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from harness.batches import Batch
from harness.compile_cache import own_cache
from harness.config import MISSING, Norm, Setting, TrainConfig
from harness.datasets import Dataset, load_dataset
from harness.environment import commit, describe_device, select_backend, select_device, versions
from harness.errors import UserError, run_script
from harness.files import read_rows, require_writable, write_rows
from harness.recipes import RECIPES
from harness.training import Training
from harness.world import ALONE

WARM_UP = 5  # steps: compilation, memory, and three eager ones before a CUDA graph


@dataclass(frozen=True)
class SpeedConfig(Setting):
    """Time the training loop of train.py with our norms, with torch.nn's, and with either compiled.

    The four take turns of --steps steps, --rounds times; the medians are kept. Appends a row for
    each to OUTPUT; skips norms that OUTPUT already has, for the same flags, data set and device.
    """

    output: Path = field(kw_only=True)
    """A JSON lines file; its folder is created."""
    norms: tuple[Norm, ...] = ("none", "bn", "in", "bin", "ln", "gn")
    batch_size: int = 128
    steps: int = 20
    """Steps of one turn."""
    rounds: int = 9
    compile: bool = True
    """Also measure the model compiled."""


def providers(config: SpeedConfig, norm: Norm) -> dict[str, TrainConfig]:
    """The runs that take turns, by name."""
    recipe = config.chosen_recipe()
    shared = config.settings() | {"recipe": recipe, "compile": False}
    shared["shortcut"] = config.chosen_shortcut()
    lr = RECIPES[recipe].rate(norm)
    ours = TrainConfig(**shared, norm=norm, batch_size=config.batch_size, lr=lr, epochs=1)
    found = {} if norm == "none" else {"fastnorm": ours}
    if norm not in MISSING:
        found["builtin"] = replace(ours, backend="torch")
    compiled = {f"{name}-compile": replace(c, compile=True) for name, c in found.items()}
    return found | (compiled if config.compile else {})


class Contender:
    """A training that runs a few steps at a time."""

    def __init__(self, config: TrainConfig, dataset: Dataset, device: torch.device) -> None:
        self.device = device
        before = self.memory()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.training = Training(config, dataset, device, ALONE)
        self.training.model.train()
        self.batches = self.full_batches()
        self.seconds(WARM_UP)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        self.peak_mib = None if peak is None or before is None else (peak - before) / 2**20

    def memory(self) -> int | None:
        """Bytes in use on a GPU."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else None

    def full_batches(self) -> Iterator[Batch]:
        """Endless full batches, without the smaller last batch of an epoch."""
        while True:
            yield from itertools.islice(self.training.batches.epoch(), self.full)

    @property
    def full(self) -> int:
        """Batches of full size in an epoch."""
        return len(self.training.dataset.train) // self.training.batch_size

    def seconds(self, steps: int) -> float:
        """Train; returns the time from an idle device to an idle device."""
        self.wait()
        start = time.perf_counter()
        for batch in itertools.islice(self.batches, steps):
            outcome = self.training.train_step(batch)
        self.wait()
        seconds = time.perf_counter() - start
        if not outcome.loss.isfinite():
            raise UserError(f"{self.training.config.norm}: the loss is not finite")
        return seconds

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(
    config: SpeedConfig, norm: Norm, dataset: Dataset, device: torch.device
) -> list[dict[str, Any]]:
    """One row for each provider of `norm`."""
    contenders = {
        name: Contender(run, dataset, device) for name, run in providers(config, norm).items()
    }
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(config.rounds):
        for name, contender in contenders.items():
            turns[name].append(contender.seconds(config.steps))
    images = config.steps * config.batch_size
    rows = []
    for name, contender in contenders.items():
        rates = sorted(images / seconds for seconds in turns[name])
        median = statistics.median(rates)
        pairs = zip(turns.get("builtin", ()), turns[name], strict=False)
        ratios = [builtin / seconds for builtin, seconds in pairs]
        rows.append(
            {
                **key(config, norm, dataset, device),
                "provider": name,
                "images_per_second": median,
                "p20": rates[round(0.2 * (len(rates) - 1))],
                "p80": rates[round(0.8 * (len(rates) - 1))],
                "ratio": statistics.median(ratios) if ratios else None,
                "epoch_seconds": len(dataset.train) / median,
                "peak_mib": contender.peak_mib,
                "steps": config.steps,
                "rounds": config.rounds,
                "threads": torch.get_num_threads() if device.type == "cpu" else None,
                "versions": versions(),
                "commit": commit(),
            }
        )
    return rows


def key(config: SpeedConfig, norm: Norm, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """The values that rows of the same measurement share."""
    names = ("batch_size", "depth_n", "amp", "channels_last", "cuda_graph")
    flags = {name: getattr(config, name) for name in names} | {"recipe": config.chosen_recipe()}
    return {"norm": norm, **flags, "dataset": dataset.name, "device": describe_device(device)}


def compare(config: SpeedConfig) -> None:
    """Measure the norms missing in OUTPUT. Raises UserError for flags that cannot be measured."""
    config.require_counts("steps", "rounds")
    for norm in config.norms:
        for run in providers(config, norm).values():
            run.check()
    require_writable(config.output)
    device = select_device(config.device, config.cuda_graph)
    select_backend("auto", device)
    share = RECIPES[config.chosen_recipe()].validation_share
    dataset = load_dataset(config.dataset, config.data_dir, config.dataset_label, share)
    if len(dataset.train) < config.batch_size:
        raise UserError(f"--batch-size is {config.batch_size}, of {len(dataset.train)} images")
    with own_cache(config.output.with_name(f"{config.output.name}.compiled")):
        try:
            compare_norms(config, dataset, device)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("give the same command again to go on") from None


def compare_norms(config: SpeedConfig, dataset: Dataset, device: torch.device) -> None:
    """Measure the norms missing in OUTPUT; write and print each."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    done = read_rows(config.output)
    for norm in config.norms:
        wanted = key(config, norm, dataset, device)
        if any(all(row[name] == value for name, value in wanted.items()) for row in done):
            continue
        rows = measure(config, norm, dataset, device)
        done += rows
        write_rows(config.output, done)
        for row in rows:
            ratio = "" if row["ratio"] is None else f"  {row['ratio']:.2f} x builtin"
            console.print(
                f"{norm:5s} {row['provider']:17s} {row['images_per_second']:9,.0f} images/s{ratio}"
            )
        torch.compiler.reset()  # else the ninth compiled model would silently run eagerly
        gc.collect()  # compiled models are kept alive by cycles


def main() -> None:
    """The command line."""
    compare(tyro.cli(SpeedConfig))


if __name__ == "__main__":
    run_script(main)
