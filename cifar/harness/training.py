"""One run: its model, optimizer and batches, an epoch at a time."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.batches import Batch, Normalise, TrainBatches
from harness.config import TrainConfig
from harness.datasets import Dataset
from harness.errors import UserError
from harness.evaluation import EVAL_BATCH, Scores, accuracy, infer_splits
from harness.model import Architecture, ResNet, build_model, initialise, synchronise
from harness.optimizers import Average, make_optimizer
from harness.probes import FeatureProbe, mixing
from harness.progress import Progress
from harness.recipes import RECIPES, Recipe
from harness.steps import EagerStep, GraphedStep, Outcome
from harness.world import World

STATISTICS_IMAGES = 8 * EVAL_BATCH  # of the training split, for the averaged weights

Row = dict[str, Any]


class Training:
    """One run: its model, its data, and its progress."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        device: torch.device,
        world: World,
        most_evaluated: int | None = None,
    ) -> None:
        """At most the first `most_evaluated` images of each split are evaluated; None for all."""
        assert config.epochs is not None and config.shortcut is not None
        assert config.batch_size is not None and config.lr is not None
        self.batch_size = config.batch_size
        self.config, self.dataset, self.device, self.world = config, dataset, device, world
        recipe = RECIPES[config.recipe]
        self.mean, self.std = dataset.channel_moments()
        self.normalise = Normalise(self.mean, self.std, device, config.channels_last)
        self.batches = TrainBatches(
            dataset.train,
            self.normalise,
            self.batch_size,
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
        self.largest_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.average = None if config.ema is None else Average(self.model, config.ema)
        self.eager = EagerStep(
            self.trained(), self.optimizer, device, config.amp, world, recipe.label_smoothing
        )
        self.train_step: Callable[[Batch], Outcome] = self.eager
        if config.cuda_graph:
            self.train_step = GraphedStep(self.eager, self.batch_size)
        self.evaluated = {
            name: getattr(dataset, name).first(most_evaluated) for name in ("train", "val", "test")
        }
        self.probe = FeatureProbe(self.evaluated["val"], self.normalise, device)
        self.steps = config.epochs * len(self.batches)
        if config.max_steps is not None:
            self.steps = min(self.steps, config.max_steps)
        self.step = self.epoch = 0

    def build(self, recipe: Recipe) -> ResNet:
        """The model that is trained, saved and evaluated."""
        config = self.config
        model = build_model(
            self.architecture, config.backend, config.seed, recipe.he_initialisation
        )
        model = model.to(self.device)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        first = self.dataset.train.images[: self.batch_size].to(self.device)
        initialise(model, config.norm, self.normalise(first))
        return synchronise(model, config.backend) if self.world.size > 1 else model

    def evaluated_counts(self) -> dict[str, int]:
        """The number of evaluated images of each split."""
        return {name: len(split) for name, split in self.evaluated.items()}

    def trained(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model as a step calls it: data-parallel, compiled."""
        called: Any = self.model
        if self.world.size > 1:
            called = nn.parallel.DistributedDataParallel(called)
        return torch.compile(called) if self.config.compile else called

    def total_images(self) -> int:
        """The number of images that all steps process."""
        epochs, rest = divmod(self.steps, len(self.batches))
        return epochs * len(self.dataset.train) + rest * self.batch_size

    def train_epoch(self, progress: Progress) -> tuple[torch.Tensor, float, int]:
        """Losses (steps,) in float32, accuracy on the augmented batches, number of images.

        Nothing in the loop waits for the device: its results are read when the epoch ends.
        """
        self.model.train()
        losses, hits, images = [], [], 0
        for batch in self.batches.epoch():
            outcome = self.train_step(batch)
            losses.append(outcome.loss)
            hits.append(outcome.hits)
            images += batch.whole
            if self.average is not None:
                self.average.update(self.model)
            self.step += 1
            progress.images(batch.whole)
            if self.step == self.steps:
                break
        found = self.world.sum(torch.stack(losses)).cpu()
        return found, self.world.sum(torch.stack(hits).sum()).item() / images, images

    def set_rates(self) -> float:
        """Set the learning rates of the next epoch; returns that of the first group."""
        assert self.config.epochs is not None
        schedule = RECIPES[self.config.recipe].schedule
        factor = schedule.factor(self.epoch, self.config.epochs)
        groups = self.optimizer.param_groups
        for group, largest in zip(groups, self.largest_rates, strict=True):
            group["lr"] = factor * largest
        return groups[0]["lr"]

    def some_batches(self) -> Iterator[Batch]:
        """The same few images each time, cropped and mirrored as in training, with separate random
        numbers; every process gets all of them."""
        return TrainBatches(
            self.dataset.train.first(STATISTICS_IMAGES),
            self.normalise,
            EVAL_BATCH,
            flip=self.dataset.flip,
            seed=self.config.seed,
            device=self.device,
        ).epoch()

    def validate(self) -> dict[str, float]:
        """The accuracy of the weights and, with --ema, of their average."""
        split = self.evaluated["val"]
        found = {"val_accuracy": accuracy(self.model, split, self.normalise, self.device)}
        if self.average is not None:
            self.average.estimate(batch.images for batch in self.some_batches())
            found["ema_val_accuracy"] = accuracy(
                self.average.model, split, self.normalise, self.device
            )
        return found

    def run_epoch(self, progress: Progress) -> tuple[Row, list[Row]]:
        """Train and validate once; the rows of metrics.jsonl and of steps.jsonl."""
        progress.at(f"epoch {self.epoch + 1}/{self.config.epochs}")
        start, first = time.perf_counter(), self.step + 1
        lr = self.set_rates()
        losses, train_accuracy, images = self.train_epoch(progress)
        seconds = time.perf_counter() - start
        if not losses.isfinite().all():
            step = first + int((~losses.isfinite()).nonzero()[0])
            raise UserError(f"the loss of step {step} is not finite; try a smaller --lr")
        self.epoch += 1
        progress.at(f"epoch {self.epoch}/{self.config.epochs}, validation")
        row = {
            "epoch": self.epoch,
            "train_loss": losses.double().mean().item(),
            "train_accuracy": train_accuracy,
            **self.validate(),
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
        """The data for test.py and for `restore`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.average is None else self.average.state(),
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
        """Continue from the point at which the run saved `state`."""
        if (state["mean"], state["std"]) != (self.mean, self.std):
            raise UserError(
                "--resume: the images are not those that the run began with; "
                "give the same --data-dir, or another --output"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.restore(state["ema"])
        self.eager.scaler.load_state_dict(state["scaler"])
        self.batches.generator.set_state(state["batches"])
        torch.set_rng_state(state["random"])
        self.epoch, self.step = state["epoch"], state["step"]

    def final(self) -> tuple[dict[str, Scores], dict[str, np.ndarray]]:
        """Scores of the last weights and, with --ema, of their average; and the test split's
        labels, the last weights' predictions and their probabilities."""
        logits, found = infer_splits(self.model, self.evaluated, self.normalise, self.device)
        results = {"": found}
        if self.average is not None:
            averaged = self.average.model
            results["ema"] = infer_splits(averaged, self.evaluated, self.normalise, self.device)[1]
        labels, z = self.evaluated["test"].labels, logits["test"]
        arrays = {"labels": labels, "predictions": z.argmax(1)}
        confidences = z.float().softmax(1).amax(1).numpy()
        return results, {
            **{name: values.numpy().astype(np.int16) for name, values in arrays.items()},
            "confidences": confidences,
        }
