"""Train the study's ResNet on CIFAR-10, norm against norm: python cifar/train.py --help."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import tyro

from harness.config import TrainConfig
from harness.datasets import Dataset, load_dataset
from harness.environment import commit, describe_device, select_backend, select_device, versions
from harness.errors import UserError, run_script
from harness.files import RunFolder, write_arrays, write_json, write_torch
from harness.progress import Progress
from harness.recipes import RECIPES, default_epochs
from harness.tensorboard import open_curves
from harness.training import Training
from harness.world import join, leave


def describe(training: Training, interpreted: bool) -> dict[str, Any]:
    """config.json: the flags, and everything else that a result depends on."""
    dataset = training.dataset
    return {
        "config": training.config.record(),
        "dataset": dataset.name,
        "class_names": dataset.class_names,
        "images": {name: len(getattr(dataset, name)) for name in ("train", "val", "test")},
        "mean": training.mean,
        "std": training.std,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "device": describe_device(training.device),
        "processes": training.world.size,
        "threads": torch.get_num_threads() if training.device.type == "cpu" else None,
        "interpreter": interpreted,
        "versions": versions(),
        "commit": commit(),
    }


def complete(config: TrainConfig, dataset: Dataset, interpreted: bool) -> TrainConfig:
    """`config` with nothing left open."""
    return dataclasses.replace(
        config,
        epochs=config.epochs or default_epochs(config.recipe, dataset.key, interpreted),
        shortcut=config.chosen_shortcut(),
        output=config.output
        or Path("runs") / f"{dataset.key}-{config.norm}-{config.backend}-seed{config.seed}",
    )


def run(training: Training, folder: RunFolder, description: dict[str, Any]) -> None:
    """From where `training` is to the end. The leading process alone writes."""
    config, leads = training.config, training.world.leads
    assert config.epochs is not None
    curves = open_curves(folder.output, training.epoch) if config.tensorboard and leads else None
    with Progress(training.total_images(), training.step * config.batch_size, leads) as progress:
        progress.line(
            f"{description['dataset']}: ResNet-{6 * config.depth_n + 2}, norm {config.norm}, "
            f"backend {config.backend}, {description['device']}, {config.epochs} epoch(s), "
            f"{training.steps} steps" + (f", from epoch {training.epoch}" * bool(training.epoch))
        )
        while training.step < training.steps:
            row, steps = training.run_epoch(progress)
            if leads:
                folder.append("steps.jsonl", steps)
                folder.append("metrics.jsonl", [row])
                write_torch(folder.unfinished / "checkpoint.pt", training.state())
            if curves is not None:
                curves.add(row)
            progress.epoch(row, config.epochs)
        final, predictions = training.final()
        progress.splits(final)
        if leads:
            write_arrays(folder.unfinished / "predictions.npz", predictions)
            results = {**final, "steps": training.step, **description}
            write_json(folder.unfinished / "results.json", results)
            folder.finish()
        progress.line(f"results, checkpoint and curves: {folder.output}")


def train(config: TrainConfig) -> Path:
    """Run `config` from the data to results.json; returns the folder with the results."""
    config.check()
    device = select_device(config.device, config.cuda_graph)
    world = join(device)
    if config.cuda_graph and world.size > 1:
        raise UserError("--cuda-graph is for one process; leave it out under torchrun")
    interpreted = select_backend(config.backend, device)
    if interpreted and world.leads:
        print(
            "warning: --backend triton without a GPU runs the kernels in Triton's interpreter: a "
            "debugging tool, very slow; its images/s say nothing about any GPU",
            file=sys.stderr,
        )
    if not world.leads:
        world.wait()  # the leading process may have to download
    share = RECIPES[config.recipe].validation_share
    dataset = load_dataset(config.dataset, config.data_dir, config.dataset_label, share)
    if world.leads:
        world.wait()
    config = complete(config, dataset, interpreted)
    assert config.output is not None
    folder = RunFolder(config.output)
    if config.resume and folder.finished(config.record()):
        if world.leads:
            print(f"already finished: {config.output}")
        return config.output
    training = Training(config, dataset, device, world)
    saved = folder.saved(config.record()) if config.resume else None
    if saved is not None:
        training.restore(saved)
    world.wait()  # until all have read what the leading process may change
    description = describe(training, interpreted)
    if world.leads:
        if saved is None:
            folder.begin()
        else:
            folder.go_on(training.epoch)
        write_json(folder.unfinished / "config.json", description)
    run(training, folder, description)
    return config.output


def main() -> None:
    """The command line."""
    try:
        train(tyro.cli(TrainConfig))
    finally:
        leave()


if __name__ == "__main__":
    run_script(main)
