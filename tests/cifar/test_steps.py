"""One optimizer step."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.batches import Batch
from harness.steps import EagerStep, GraphedStep

CPU = torch.device("cpu")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


def batches(sizes: list[int], device: torch.device = CPU) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.randn(n, 3, 8, 8, generator=generator).to(device),
            torch.randint(0, 10, (n,), generator=generator).to(device),
            n,
        )
        for n in sizes
    ]


def test_a_step_is_sgd_on_the_mean_cross_entropy() -> None:
    model, (batch,) = make_model(), batches([6])
    model(batch.images)
    expected = copy.deepcopy(model).double()
    loss = F.cross_entropy(expected(batch.images.double()), batch.labels)
    loss.backward()
    hits = (expected(batch.images.double()).argmax(1) == batch.labels).sum()
    outcome = EagerStep(model, torch.optim.SGD(model.parameters(), lr=0.5), CPU)(batch)
    assert outcome.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert outcome.hits == hits
    for ours, truth in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), truth - 0.5 * truth.grad, rtol=1e-5, atol=1e-6)


def test_label_smoothing_is_a_mixture_with_the_uniform_distribution() -> None:
    """arXiv 1512.00567, section 7: 0.9 of the label and 0.01 of each of ten classes."""
    model, (batch,) = make_model(), batches([5])
    model(batch.images)
    target = 0.9 * F.one_hot(batch.labels, 10) + 0.01
    expected = -(target * model(batch.images).double().log_softmax(1)).sum(1).mean()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = EagerStep(model, optimizer, CPU, label_smoothing=0.1)(batch).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_shares_of_a_batch_add_up() -> None:
    """The mean over processes of their gradients, data-parallel training's, is the whole's."""
    model, (batch,) = make_model(), batches([7])
    model(batch.images)
    gradients, losses = [], []
    for part in (slice(0, 3), slice(3, 7)):
        share = Batch(batch.images[part], batch.labels[part], 7)
        world = SimpleNamespace(size=2)
        step = EagerStep(model, torch.optim.SGD(model.parameters(), lr=0.0), CPU, world=world)
        losses.append(step(share).loss)
        gradients.append([p.grad.clone() for p in model.parameters()])
    whole = EagerStep(model, torch.optim.SGD(model.parameters(), lr=0.0), CPU)(batch)
    torch.testing.assert_close(sum(losses), whole.loss)
    for p, *shares in zip(model.parameters(), *gradients, strict=True):
        torch.testing.assert_close(sum(shares) / 2, p.grad)


def test_amp_computes_in_bfloat16() -> None:
    model, (batch,) = make_model(), batches([4])
    model(batch.images)
    seen = []
    model[-1].register_forward_hook(lambda _m, _i, y: seen.append(y.dtype))
    for amp in ("off", "bf16"):
        EagerStep(model, torch.optim.SGD(model.parameters(), lr=0.1), CPU, amp)(batch)
    assert seen == [torch.float32, torch.bfloat16]
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


SIZES = [4, 4, 4, 4, 4, 3, 4, 4, 3]
DROP = 6  # where the learning rate falls


def losses_of(step, optimizer: torch.optim.Optimizer, device: torch.device) -> list[float]:
    found = []
    for i, batch in enumerate(batches(SIZES, device)):
        if i == DROP:
            optimizer.param_groups[0]["lr"] *= 0.1
        found.append(step(batch).loss)
    return [loss.item() for loss in found]


def pair(device: torch.device) -> list[tuple[nn.Module, torch.optim.SGD]]:
    model = make_model().to(device)
    model(batches([4], device)[0].images)
    models = model, copy.deepcopy(model)
    return [(m, torch.optim.SGD(m.parameters(), lr=0.2, momentum=0.9)) for m in models]


def test_when_a_graph_is_captured_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of warm-up, capture, replay and smaller batches, without a GPU: here a replay is
    the eager step on the graph's own batch."""
    stream = SimpleNamespace(wait_stream=lambda _other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    captured = []

    class Replayed(GraphedStep):
        def capture(self, batch: Batch) -> None:
            self.batch = Batch(batch.images.clone(), batch.labels.clone(), batch.whole)
            captured.append(self.step.optimizer.param_groups[0]["lr"])
            self.graph = SimpleNamespace(replay=self.replay)

        def replay(self) -> None:
            self.outcome = self.step(self.batch)

    (eager, optimizer), (model, other) = pair(CPU)
    expected = losses_of(EagerStep(eager, optimizer, CPU), optimizer, CPU)
    found = losses_of(Replayed(EagerStep(model, other, CPU), 4), other, CPU)
    assert found == expected
    assert captured == pytest.approx([0.2, 0.02])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_graph_trains_as_eager_steps_do() -> None:
    device = torch.device("cuda")
    (eager, optimizer), (model, other) = pair(device)
    expected = losses_of(EagerStep(eager, optimizer, device), optimizer, device)
    found = losses_of(GraphedStep(EagerStep(model, other, device), 4), other, device)
    assert found == pytest.approx(expected, rel=1e-4)
