"""One optimizer step: eager, or replayed as a CUDA graph."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from harness.batches import Batch
from harness.config import Amp
from harness.world import ALONE, World

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Outcome(NamedTuple):
    """A step's results, on the device. The sums over all processes are the whole batch's."""

    loss: torch.Tensor  # float32 (), the share of these images in the batch's mean cross entropy
    hits: torch.Tensor  # int64 (), images with a correct prediction


class EagerStep:
    """Forward, cross entropy, backward and update, one operator at a time."""

    def __init__(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        amp: Amp = "off",
        world: World = ALONE,
        label_smoothing: float = 0.0,
    ) -> None:
        self.model, self.optimizer, self.world = model, optimizer, world
        self.loss = partial(F.cross_entropy, reduction="sum", label_smoothing=label_smoothing)
        self.autocast = torch.autocast(device.type, DTYPES[amp], enabled=amp != "off")
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def __call__(self, batch: Batch) -> Outcome:
        """Train on it."""
        self.optimizer.zero_grad()
        with self.autocast:
            logits = self.model(batch.images)
        loss = self.loss(logits.float(), batch.labels) / batch.whole
        # Data-parallel gradients are means over processes, whose shares may differ in size.
        self.scaler.scale(loss * self.world.size).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return Outcome(loss.detach(), (logits.detach().argmax(1) == batch.labels).sum())


class GraphedStep:
    """The same step as a CUDA graph, for batches of one size; others, an epoch's last, are eager.

    The first WARM_UP steps run eagerly on the capturing stream: there libraries allocate and choose
    their kernels. They train like any other. The learning rate is a constant of a graph, so each
    rate has its own graph.
    """

    WARM_UP = 3

    def __init__(self, step: EagerStep, batch_size: int) -> None:
        self.step, self.batch_size = step, batch_size
        self.stream = torch.cuda.Stream()
        self.warm = 0
        self.rate: float | None = None

    def __call__(self, batch: Batch) -> Outcome:
        """Train on it."""
        if len(batch.labels) != self.batch_size:
            return self.step(batch)
        if self.warm < self.WARM_UP:
            self.warm += 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outcome = self.step(batch)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outcome
        rate = self.step.optimizer.param_groups[0]["lr"]
        if rate != self.rate:
            self.capture(batch)
            self.rate = rate
        self.batch.images.copy_(batch.images)
        self.batch.labels.copy_(batch.labels)
        self.graph.replay()
        return Outcome(self.outcome.loss.clone(), self.outcome.hits.clone())

    def capture(self, batch: Batch) -> None:
        """Record a step without running it."""
        self.batch = Batch(batch.images.clone(), batch.labels.clone(), batch.whole)
        self.step.optimizer.zero_grad()  # gradients must come from the graph's own memory
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.outcome = self.step(self.batch)
