"""Train the study's ResNet on CIFAR-10, norm against norm: python cifar/train.py --help."""

import dataclasses
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import tyro

from harness.checkpoints import find_checkpoint, make_trained
from harness.compile_cache import own_cache
from harness.config import TrainConfig
from harness.datasets import Dataset, load_dataset
from harness.environment import commit, describe_device, select_backend, select_device, versions
from harness.errors import UserError, run_script
from harness.evaluation import infer_splits
from harness.files import RunFolder, load_checkpoint, write_arrays, write_json, write_torch
from harness.model import require_synchronised
from harness.progress import Progress, counted
from harness.recipes import RECIPES, choose_recipe, default_epochs
from harness.tensorboard import open_curves
from harness.training import Training
from harness.world import World, join, leave


def describe(training: Training, interpreted: bool) -> dict[str, Any]:
    """config.json: the flags, and everything else that affects a result."""
    dataset = training.dataset
    return {
        "config": training.config.record(),
        "dataset": dataset.name,
        "class_names": dataset.class_names,
        "images": {name: len(getattr(dataset, name)) for name in ("train", "val", "test")},
        "evaluated": training.evaluated_counts(),
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
    """`config` with a value for every flag."""
    name = choose_recipe(config.recipe, dataset.key)
    recipe = RECIPES[name]
    return dataclasses.replace(
        config,
        recipe=name,
        epochs=config.epochs or default_epochs(name, dataset.key, interpreted),
        batch_size=config.batch_size or recipe.batch_size,
        lr=config.lr or recipe.rate(config.norm),
        shortcut=config.shortcut or recipe.shortcut,
        output=config.output
        or Path("runs") / f"{dataset.key}-{config.norm}-{config.backend}-seed{config.seed}",
    )


def notes(training: Training) -> list[str]:
    """The expected accuracy, if it is known, and what is left out."""
    config, dataset, lines = training.config, training.dataset, []
    recipe = RECIPES[config.recipe]
    known = "digits" if config.recipe == "digits" else "cifar10"
    whole = (dataset.key, config.epochs, config.max_steps) == (known, recipe.epochs, None)
    if whole and recipe.expectation is not None:
        lines.append(f"expect an accuracy of {recipe.expectation}")
    counts = training.evaluated_counts()
    if counts["test"] < len(dataset.test) or counts["train"] < len(dataset.train):
        first = counted(counts["train"], "image")
        lines.append(f"evaluated, in Triton's interpreter: the first {first} of each split")
    return lines


def how_to_go_on(world: World, epoch: int) -> str:
    """A hint for a user who interrupts a run."""
    words = [word for word in sys.orig_argv if word not in ("--resume", "--no-resume")]
    again = f"{shlex.join(words)} --resume" if world.size == 1 else "torchrun ... --resume"
    return f"go on after epoch {epoch} with: {again}"


def run(training: Training, folder: RunFolder, description: dict[str, Any]) -> None:
    """Run from the present point of `training` to the end. Only the leading process writes."""
    config, leads = training.config, training.world.leads
    assert config.epochs is not None
    curves = open_curves(folder.output, training.epoch) if config.tensorboard and leads else None
    with Progress(training.total_images(), training.step * training.batch_size, leads) as progress:
        progress.line(
            f"{description['dataset']}: ResNet-{6 * config.depth_n + 2}, norm {config.norm}, "
            f"backend {config.backend}, {description['device']}, "
            f"{counted(config.epochs, 'epoch')}, {counted(training.steps, 'step')}"
            + (f", from epoch {training.epoch}" * bool(training.epoch))
        )
        for line in notes(training):
            progress.line(line)
        while training.step < training.steps:
            row, steps = training.run_epoch(progress)
            if leads:
                folder.append("steps.jsonl", steps)
                folder.append("metrics.jsonl", [row])
                write_torch(folder.unfinished / "checkpoint.pt", training.state())
            if curves is not None:
                curves.add(row)
            progress.epoch(row, config.epochs)
        progress.at("evaluation")
        final, predictions = training.final()
        progress.splits(final)
        if leads:
            write_arrays(folder.unfinished / "predictions.npz", predictions)
            averaged = {"ema": final["ema"]} if "ema" in final else {}
            results = {**final[""], **averaged, "steps": training.step, **description}
            write_json(folder.unfinished / "results.json", results)
            folder.finish()
        progress.line(f"results, checkpoint and curves: {folder.output}")


def require_shared(config: TrainConfig, device: torch.device) -> None:
    """Raises UserError for flags that several processes cannot train with."""
    if config.cuda_graph:
        raise UserError("--cuda-graph is for one process; leave it out under torchrun")
    require_synchronised(config.norm, config.backend, device)


def load(config: TrainConfig, world: World) -> Dataset:
    """Load the data, the leading process first: it may have to download."""
    if not world.leads:
        world.wait()
    share = RECIPES[config.chosen_recipe()].validation_share
    dataset = load_dataset(config.dataset, config.data_dir, config.dataset_label, share)
    if world.leads:
        world.wait()
    return dataset


def most_evaluated(config: TrainConfig, interpreted: bool) -> int | None:
    """Images of a split that are evaluated; in the interpreter an eighth of those that --max-steps
    trains on. A run ends with five passes over them, which should be shorter than its training."""
    if not interpreted or config.max_steps is None:
        return None
    assert config.batch_size is not None
    return max(1, config.max_steps * config.batch_size // 8)


def evaluate(config: TrainConfig) -> None:
    """Print the scores of --eval-only's checkpoint in the way of a training's last scores."""
    config.check()
    assert config.eval_only is not None
    file = find_checkpoint(config.eval_only, "--eval-only")
    checkpoint = load_checkpoint(file)
    device = select_device(config.device)
    select_backend(config.backend, device)
    models, normalise = make_trained(checkpoint, file, config.backend, device)
    trained = checkpoint["config"]
    if config.dataset == "auto":
        config = dataclasses.replace(config, dataset=trained["dataset"])
        config.check()  # of these data and --data-dir
    share = RECIPES[trained["recipe"]].validation_share
    dataset = load_dataset(config.dataset, config.data_dir, config.dataset_label, share)
    if list(dataset.class_names) != list(checkpoint["class_names"]):
        raise UserError(
            f"{file} was trained on {checkpoint['dataset']}, whose classes are not those of "
            f"{dataset.name}; give its data with --dataset or --data-dir"
        )
    splits = {name: getattr(dataset, name) for name in ("train", "val", "test")}
    with Progress(0, 0, shown=True) as progress:
        progress.line(
            f"{dataset.name}: ResNet-{6 * trained['depth_n'] + 2}, norm {trained['norm']}, "
            f"backend {config.backend}, {describe_device(device)}, {file}"
        )
        progress.splits(
            {name: infer_splits(m, splits, normalise, device)[1] for name, m in models.items()}
        )


def train(config: TrainConfig) -> Path:
    """Run `config` from the data to results.json; returns the folder with the results."""
    config.check()
    if config.output is not None:
        RunFolder(config.output)
    device = select_device(config.device, config.cuda_graph)
    world = join(device)
    if world.size > 1:
        require_shared(config, device)
    interpreted = select_backend(config.backend, device)
    if interpreted and world.leads:
        print(
            "warning: --backend triton without a GPU runs the kernels in Triton's interpreter: a "
            "debugging tool, very slow; its images/s say nothing about any GPU",
            file=sys.stderr,
        )
    dataset = load(config, world)
    config = complete(config, dataset, interpreted)
    assert config.output is not None
    folder = RunFolder(config.output)
    if config.resume and folder.finished(config.record()):
        if world.leads:
            print(f"already finished: {config.output}")
        return config.output
    training = Training(config, dataset, device, world, most_evaluated(config, interpreted))
    saved = folder.saved(config.record()) if config.resume else None
    if saved is not None:
        training.restore(saved)
    world.wait()  # until all have read the files that the leading process may change
    description = describe(training, interpreted)
    if world.leads:
        if saved is None:
            folder.begin()
        else:
            folder.go_on(training.epoch)
        write_json(folder.unfinished / "config.json", description)
    try:
        with own_cache(config.output / "compiled") if config.compile else nullcontext():
            run(training, folder, description)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_go_on(world, training.epoch)) from None
    return config.output


def main() -> None:
    """The command line."""
    try:
        config = tyro.cli(TrainConfig)
        if config.eval_only is None:
            train(config)
        else:
            evaluate(config)
    finally:
        leave()


if __name__ == "__main__":
    run_script(main)
