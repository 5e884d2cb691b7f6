"""Train the study's ResNet on CIFAR-10, norm against norm: python cifar/train.py --help."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from backends import describe_device, select_backend, select_device, versions
from batches import Normalise, TrainBatches, predict
from config import TrainConfig, default_epochs
from data import Dataset, load_dataset
from errors import UserError, run_script
from files import RunFolder, save_checkpoint, write_json
from metrics import scores
from model import ResNet, batch_instance_rho, build_model, initialise
from progress import Progress


def make_optimizer(model: ResNet, lr: float) -> torch.optim.SGD:
    """Plain SGD, without momentum and weight decay; BIN's rho has 10 times the learning rate.

    The latter is the recipe of BIN's authors (arXiv 1805.07925). They also clamp rho after each
    step; here the module itself keeps it within [0, 1].
    """
    named = list(model.named_parameters())
    rho = [parameter for name, parameter in named if name.endswith("rho")]
    others = [parameter for name, parameter in named if not name.endswith("rho")]
    groups: list[dict[str, Any]] = [{"params": others}]
    if rho:
        groups.append({"params": rho, "lr": 10 * lr})
    return torch.optim.SGD(groups, lr=lr)


def learning_rate_drops(epochs: int) -> list[int]:
    """The epochs after which the rate falls to a tenth: 75% and 95% of all, rounded up."""
    return [-(-epochs * percent // 100) for percent in (75, 95)]


class Training:
    """One run: what it trains, on what, and where it writes."""

    def __init__(self, config: TrainConfig, dataset: Dataset, device: torch.device) -> None:
        assert config.epochs is not None
        self.config, self.dataset, self.device = config, dataset, device
        self.epochs = config.epochs
        self.mean, self.std = dataset.channel_moments()
        self.normalise = Normalise(self.mean, self.std, device)
        self.batches = TrainBatches(
            dataset.train,
            self.normalise,
            config.batch_size,
            flip=dataset.flip,
            seed=config.seed,
            device=device,
        )
        model = build_model(config.norm, config.backend, config.depth_n, config.seed)
        self.model = model.to(device)
        first = dataset.train.images[: config.batch_size].to(device)
        initialise(self.model, config.norm, self.normalise(first))
        self.optimizer = make_optimizer(self.model, config.lr)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(
            self.optimizer, learning_rate_drops(self.epochs)
        )
        self.steps = self.epochs * len(self.batches)
        if config.max_steps is not None:
            self.steps = min(self.steps, config.max_steps)
        self.step = 0

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
        for x, labels in self.batches.epoch():
            logits = self.model(x)
            loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
            hits.append((logits.detach().argmax(1) == labels).sum())
            images += len(labels)
            self.step += 1
            progress.images(len(labels))
            if self.step == self.steps:
                break
        return torch.stack(losses).cpu(), torch.stack(hits).sum().item() / images, images

    def run_epoch(self, folder: RunFolder, progress: Progress, epoch: int) -> dict[str, Any]:
        """Train and validate once; write rows and checkpoint. Returns the row of metrics.jsonl."""
        start, first = time.perf_counter(), self.step + 1
        lr = self.optimizer.param_groups[0]["lr"]
        losses, accuracy, images = self.train_epoch(progress)
        seconds = time.perf_counter() - start
        if not losses.isfinite().all():
            step = first + int((~losses.isfinite()).nonzero()[0])
            raise UserError(f"the loss of step {step} is not finite; try a smaller --lr")
        self.scheduler.step()
        val = predict(self.model, self.dataset.val.images, self.normalise, self.device)
        row = {
            "epoch": epoch,
            "train_loss": losses.double().mean().item(),
            "train_accuracy": accuracy,
            "val_accuracy": (val == self.dataset.val.labels).double().mean().item(),
            "images_per_second": images / seconds,
            "seconds": seconds,
            "lr": lr,
            **self.rho_range(),
        }
        steps = [
            {"step": first + i, "epoch": epoch, "loss": loss}
            for i, loss in enumerate(losses.tolist())
        ]
        folder.append("steps.jsonl", steps)
        folder.append("metrics.jsonl", [row])
        save_checkpoint(folder.unfinished / "checkpoint.pt", self.checkpoint(epoch))
        return row

    def rho_range(self) -> dict[str, float]:
        """Of all BIN layers together; {} without BIN."""
        layers = batch_instance_rho(self.model)
        if not layers:
            return {}
        rho = torch.cat([layer.detach() for layer in layers])
        values = rho.min(), rho.mean(), rho.max()
        return {f"rho_{k}": v.item() for k, v in zip(("min", "mean", "max"), values, strict=True)}

    def checkpoint(self, epoch: int) -> dict[str, Any]:
        """All that test.py needs, and the optimizer."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": epoch,
            "config": self.config.record(),
            "dataset": self.dataset.name,
            "class_names": self.dataset.class_names,
            "mean": self.mean,
            "std": self.std,
        }

    def final_scores(self) -> dict[str, dict[str, float]]:
        """Of the last weights, in eval mode, on the images as they are (no crop, no mirror)."""
        splits = {
            "train": self.dataset.train,
            "val": self.dataset.val,
            "test": self.dataset.test,
        }
        return {
            name: scores(
                split.labels, predict(self.model, split.images, self.normalise, self.device)
            )
            for name, split in splits.items()
        }


def describe(training: Training, interpreted: bool) -> dict[str, Any]:
    """config.json: the flags, and everything else that a result depends on."""
    dataset = training.dataset
    return {
        "config": training.config.record(),
        "dataset": dataset.name,
        "images": {name: len(getattr(dataset, name)) for name in ("train", "val", "test")},
        "mean": training.mean,
        "std": training.std,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "device": describe_device(training.device),
        "interpreter": interpreted,
        "versions": versions(),
    }


def train(config: TrainConfig) -> Path:
    """Run `config` from the data to results.json; returns the folder with the results."""
    config.check()
    device = select_device(config.device)
    interpreted = select_backend(config.backend, device)
    if interpreted:
        print(
            "warning: --backend triton without a GPU runs the kernels in Triton's interpreter: a "
            "debugging tool, very slow; its images/s say nothing about any GPU",
            file=sys.stderr,
        )
    dataset = load_dataset(config.dataset, config.data_dir, config.dataset_label, 0.2)
    epochs = config.epochs or default_epochs(dataset.key, interpreted)
    config = dataclasses.replace(config, epochs=epochs)
    run_name = f"{dataset.key}-{config.norm}-{config.backend}-seed{config.seed}"
    output = config.output or Path("runs") / run_name
    training = Training(config, dataset, device)
    folder = RunFolder(output)
    description = describe(training, interpreted)
    write_json(folder.unfinished / "config.json", description)
    with Progress(training.total_images()) as progress:
        progress.line(
            f"{dataset.name}: ResNet-{6 * config.depth_n + 2}, norm {config.norm}, backend "
            f"{config.backend}, {description['device']}, {epochs} epoch(s), {training.steps} steps"
        )
        epoch, row = 0, {}
        while training.step < training.steps:
            epoch += 1
            row = training.run_epoch(folder, progress, epoch)
            progress.epoch(row, epochs)
        final = training.final_scores()
        progress.splits(final)
        results = {**final, "last_epoch": row, "steps": training.step, **description}
        write_json(folder.unfinished / "results.json", results)
        folder.finish()
        progress.line(f"results, checkpoint and curves: {output}")
    return output


def main() -> None:
    """The command line."""
    train(tyro.cli(TrainConfig))


if __name__ == "__main__":
    run_script(main)
