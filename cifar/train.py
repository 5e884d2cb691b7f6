"""Train the study's ResNet on CIFAR-10, norm against norm: python cifar/train.py --help."""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from backends import commit, describe_device, select_backend, select_device, versions
from batches import Batch, Normalise, TrainBatches, predict
from config import TrainConfig
from curves import open_curves
from data import Dataset, load_dataset
from errors import UserError, run_script
from files import RunFolder, write_arrays, write_json, write_torch
from metrics import scores
from model import Architecture, ResNet, build_model, initialise, synchronise
from probes import FeatureProbe, mixing
from progress import Progress
from recipes import RECIPES, Recipe, default_epochs
from steps import EagerStep, GraphedStep, Outcome
from torch import nn
from world import World, join, leave

Row = dict[str, Any]


def make_optimizer(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.SGD:
    """The recipe's SGD; BIN's rho has 10 times the learning rate and no weight decay.

    The latter is the recipe of BIN's authors (arXiv 1805.07925). They also clamp rho after each
    step; here the module itself keeps it within [0, 1].
    """
    named = list(model.named_parameters())
    rho = [parameter for name, parameter in named if name.endswith("rho")]
    others = [parameter for name, parameter in named if not name.endswith("rho")]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": recipe.weight_decay}]
    if rho:
        groups.append({"params": rho, "lr": 10 * lr})
    return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum)


class Training:
    """One run: what it trains, on what, and how far it is."""

    def __init__(
        self, config: TrainConfig, dataset: Dataset, device: torch.device, world: World
    ) -> None:
        assert config.epochs is not None and config.shortcut is not None
        self.config, self.dataset, self.device, self.world = config, dataset, device, world
        recipe = RECIPES[config.recipe]
        self.mean, self.std = dataset.channel_moments()
        self.normalise = Normalise(self.mean, self.std, device, config.channels_last)
        self.batches = TrainBatches(
            dataset.train,
            self.normalise,
            config.batch_size,
            flip=dataset.flip,
            seed=config.seed,
            device=device,
            world=world,
        )
        self.architecture = Architecture(
            config.norm, config.depth_n, config.shortcut, config.groups, len(dataset.class_names)
        )
        self.model = self.build(recipe)
        self.optimizer = make_optimizer(self.model, recipe, config.lr)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(
            self.optimizer, recipe.milestones(config.epochs)
        )
        self.eager = EagerStep(self.trained(), self.optimizer, device, config.amp, world)
        self.train_step: Callable[[Batch], Outcome] = self.eager
        if config.cuda_graph:
            self.train_step = GraphedStep(self.eager, config.batch_size)
        self.probe = FeatureProbe(dataset.val, self.normalise, device)
        self.steps = config.epochs * len(self.batches)
        if config.max_steps is not None:
            self.steps = min(self.steps, config.max_steps)
        self.step = self.epoch = 0

    def build(self, recipe: Recipe) -> ResNet:
        """The model whose weights are trained, saved and evaluated."""
        config = self.config
        model = build_model(
            self.architecture, config.backend, config.seed, recipe.he_initialisation
        )
        model = model.to(self.device)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        first = self.dataset.train.images[: config.batch_size].to(self.device)
        initialise(model, config.norm, self.normalise(first))
        return synchronise(model, config.norm, config.backend) if self.world.size > 1 else model

    def trained(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model as a step calls it: data-parallel, compiled."""
        called: Any = self.model
        if self.world.size > 1:
            called = nn.parallel.DistributedDataParallel(called)
        return torch.compile(called) if self.config.compile else called

    def total_images(self) -> int:
        """What all steps process."""
        epochs, rest = divmod(self.steps, len(self.batches))
        return epochs * len(self.dataset.train) + rest * self.config.batch_size

    def train_epoch(self, progress: Progress) -> tuple[torch.Tensor, float, int]:
        """Losses (steps,) in float32, accuracy on the augmented batches, number of images.

        Nothing in the loop waits for the device: what is measured is collected when the epoch ends.
        """
        self.model.train()
        losses, hits, images = [], [], 0
        for batch in self.batches.epoch():
            outcome = self.train_step(batch)
            losses.append(outcome.loss)
            hits.append(outcome.hits)
            images += batch.whole
            self.step += 1
            progress.images(batch.whole)
            if self.step == self.steps:
                break
        found = self.world.sum(torch.stack(losses)).cpu()
        return found, self.world.sum(torch.stack(hits).sum()).item() / images, images

    def run_epoch(self, progress: Progress) -> tuple[Row, list[Row]]:
        """Train and validate once; the rows of metrics.jsonl and of steps.jsonl."""
        start, first = time.perf_counter(), self.step + 1
        lr = self.optimizer.param_groups[0]["lr"]
        losses, accuracy, images = self.train_epoch(progress)
        seconds = time.perf_counter() - start
        if not losses.isfinite().all():
            step = first + int((~losses.isfinite()).nonzero()[0])
            raise UserError(f"the loss of step {step} is not finite; try a smaller --lr")
        self.scheduler.step()
        self.epoch += 1
        val = predict(self.model, self.dataset.val.images, self.normalise, self.device)
        row = {
            "epoch": self.epoch,
            "train_loss": losses.double().mean().item(),
            "train_accuracy": accuracy,
            "val_accuracy": (val == self.dataset.val.labels).double().mean().item(),
            "images_per_second": images / seconds,
            "seconds": seconds,
            "lr": lr,
            **self.probe(self.model),
            **mixing(self.model),
        }
        steps = [
            {"step": first + i, "epoch": self.epoch, "loss": loss}
            for i, loss in enumerate(losses.tolist())
        ]
        return row, steps

    def state(self) -> dict[str, Any]:
        """All that test.py needs, and all that `restore` does."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.eager.scaler.state_dict(),
            "batches": self.batches.generator.get_state(),
            "random": torch.get_rng_state(),
            "epoch": self.epoch,
            "step": self.step,
            "architecture": dataclasses.asdict(self.architecture),
            "config": self.config.record(),
            "dataset": self.dataset.name,
            "class_names": self.dataset.class_names,
            "mean": self.mean,
            "std": self.std,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Be where the run was that saved `state`."""
        if (state["mean"], state["std"]) != (self.mean, self.std):
            raise UserError("--resume: the images are not those that the run began with")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.eager.scaler.load_state_dict(state["scaler"])
        self.batches.generator.set_state(state["batches"])
        torch.set_rng_state(state["random"])
        self.epoch, self.step = state["epoch"], state["step"]

    def final(self) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
        """Scores of the last weights, in eval mode, on the images as they are (no crop, no mirror);
        and the test split's labels and predictions."""
        splits = {
            "train": self.dataset.train,
            "val": self.dataset.val,
            "test": self.dataset.test,
        }
        found = {
            name: predict(self.model, split.images, self.normalise, self.device)
            for name, split in splits.items()
        }
        test = {"labels": self.dataset.test.labels, "predictions": found["test"]}
        return (
            {name: scores(splits[name].labels, labels) for name, labels in found.items()},
            {name: labels.numpy().astype(np.int16) for name, labels in test.items()},
        )


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
        shortcut=config.shortcut or RECIPES[config.recipe].shortcut,
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
    device = select_device(config.device)
    if config.cuda_graph and device.type == "cpu":
        raise UserError("--cuda-graph: there is no GPU here; leave it out")
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
