"""train.py from flags to files."""

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import train as train_script
from train import complete

from harness import training
from harness.config import Norm, TrainConfig
from harness.errors import UserError
from harness.files import read_rows
from harness.model import Architecture, build_model
from harness.optimizers import make_optimizer
from harness.progress import Progress
from harness.recipes import RECIPES, default_epochs

FILES = {"checkpoint.pt", "config.json", "metrics.jsonl", "predictions.npz", "results.json"} | {
    "steps.jsonl"
}


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in read_rows(folder / "steps.jsonl")])


def assert_same_training(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Losses (steps,) of the same few steps by two backends.

    The first differs by float32 rounding. The later ones follow gradients, whose own error in this
    network is about 1e-3, torch's modules included: rounding moves values across relu's kink.
    """
    torch.testing.assert_close(actual[0], expected[0], rtol=2e-6, atol=0)
    torch.testing.assert_close(actual, expected, rtol=2e-3, atol=0)


def test_writes_its_files(run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(backend="torch", dataset_label="tiny")
    assert {path.name for path in folder.iterdir()} == FILES
    metrics, steps = read_rows(folder / "metrics.jsonl"), read_rows(folder / "steps.jsonl")
    assert [row["epoch"] for row in metrics] == [1, 2]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]  # 44 images, batches of 16
    assert metrics[0]["train_loss"] == pytest.approx(sum(r["loss"] for r in steps[:3]) / 3)
    results = json.loads((folder / "results.json").read_text())
    assert results["dataset"] == "tiny" and results["steps"] == 6
    assert results["config"]["norm"] == "bn" and "data_dir" not in results["config"]
    assert results["val"]["accuracy"] == metrics[-1]["val_accuracy"]
    for split in ("train", "val", "test"):
        assert results[split]["micro_f1"] == pytest.approx(results[split]["accuracy"])
    assert f"test   {results['test']['accuracy']:8.4f}" in capsys.readouterr().out
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == 2 and checkpoint["optimizer"]["param_groups"]


def test_learns(run: Callable[..., Path]) -> None:
    """Three classes told apart by colour: chance is about a third."""
    results = json.loads((run(backend="torch", epochs=4) / "results.json").read_text())
    assert results["train"]["accuracy"] > 0.9


def test_losses_are_the_seeds(run: Callable[..., Path]) -> None:
    first, again, other = (losses(run(name, seed=s)) for name, s in (("a", 5), ("b", 5), ("c", 6)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_backends_train_alike(run: Callable[..., Path], norm: str) -> None:
    truth = losses(run("truth", norm=norm, backend="torch", max_steps=3))
    for backend in ("cpu", "reference"):
        assert_same_training(losses(run(backend, norm=norm, backend=backend, max_steps=3)), truth)


def test_backends_train_weight_norm_alike(run: Callable[..., Path]) -> None:
    """torch has no mean-only batch norm: the formula is the truth."""
    truth = losses(run("truth", norm="wn", backend="reference", max_steps=3))
    assert truth.isfinite().all()
    assert_same_training(losses(run("cpu", norm="wn", backend="cpu", max_steps=3)), truth)


def test_weight_norm_is_initialised_by_the_first_batch(run: Callable[..., Path]) -> None:
    """Before any step worth the name, scales are no longer the norms of the initial weights."""
    folder = run(norm="wn", backend="cpu", max_steps=1, lr=1e-30)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    g, v = (state[f"conv.parametrizations.weight.original{i}"] for i in (0, 1))
    assert (g / torch.norm_except_dim(v, 2, 0) - 1).abs().min() > 0.01


@pytest.mark.parametrize("norm", ["in", "ln", "none"])
def test_trains_with_every_norm(run: Callable[..., Path], norm: str) -> None:
    folder = run(norm=norm, max_steps=3)
    assert losses(folder).isfinite().all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rho_moves_within_its_bounds(run: Callable[..., Path], backend: str) -> None:
    folder = run(norm="bin", backend=backend, epochs=3)
    metrics = read_rows(folder / "metrics.jsonl")
    assert metrics[-1]["rho_min"] < 0.99  # it started at 1
    assert metrics[-1]["rho_mean"] != metrics[0]["rho_mean"]
    assert all(0 <= row["rho_min"] <= row["rho_max"] <= 1 for row in metrics)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    rho = torch.cat([value for name, value in state.items() if name.endswith("rho")])
    assert rho.min().item() == pytest.approx(metrics[-1]["rho_min"])


def test_rho_has_ten_times_the_learning_rate() -> None:
    model = build_model(Architecture("bin", depth_n=1), "cpu", seed=0)
    others, rho = make_optimizer(model, RECIPES["he"], 0.1).param_groups
    assert (others["lr"], rho["lr"]) == (0.1, 1.0)
    assert (others["weight_decay"], rho["weight_decay"]) == (1e-4, 0)
    assert (others["momentum"], rho["momentum"]) == (0.9, 0.9)
    assert len(rho["params"]) == 9  # 1 + 2 in each of 3 blocks + 2 in shortcuts
    assert len(others["params"]) + 9 == len(list(model.parameters()))


def test_learning_rate_falls_when_the_recipes_say() -> None:
    study, he = (RECIPES[name].schedule for name in ("study", "he"))
    assert study.milestones(100) == [75, 95]
    assert study.milestones(10) == [8, 10]
    assert study.milestones(1) == [1, 1]  # after the only epoch: never
    steps = -(-45_000 // 128)  # in an epoch of He et al.: drops at 32,000 and 48,000 of 64,000
    assert [steps * epochs for epochs in (*he.milestones(182), 182)] == [32_032, 48_224, 64_064]
    assert [he.factor(e, 10) for e in (0, 4, 5, 7, 8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_the_cosine_of_the_fast_recipe() -> None:
    """Of 30 epochs 5 of warm-up; the formula for the others, against torch's own schedule."""
    schedule = RECIPES["fast"].schedule
    factors = [schedule.factor(epoch, 30) for epoch in range(30)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=26)
    for factor in factors[4:]:
        assert factor == pytest.approx(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    assert cosine.get_last_lr()[0] == pytest.approx(0, abs=1e-12)
    assert [schedule.factor(epoch, 1) for epoch in range(1)] == [1.0]


@pytest.mark.parametrize("norm", ["bn", "bin", "none"])
def test_the_fast_recipe_decays_weights_alone(norm: Norm) -> None:
    """Those of convolutions and of the linear layer, which have more than one dimension."""
    model = build_model(Architecture(norm, depth_n=1), "cpu", seed=0)
    optimizer = make_optimizer(model, RECIPES["fast"], 0.1)
    decayed, free, *rho = optimizer.param_groups
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() == 1 for p in free["params"])
    assert (decayed["weight_decay"], free["weight_decay"]) == (5e-4, 0)
    assert len(rho) == (norm == "bin") and all(group["nesterov"] for group in (decayed, free, *rho))
    counted = sum(len(group["params"]) for group in optimizer.param_groups)
    assert counted == len(list(model.parameters()))


def test_the_fast_recipe_smooths_labels(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss, of the same weights and images, without it is another."""
    flags = {"recipe": "fast", "backend": "torch"}
    smooth = losses(run("smooth", max_steps=1, **flags)).item()
    with monkeypatch.context() as patch:
        plain = dataclasses.replace(RECIPES["fast"], label_smoothing=0.0)
        patch.setitem(RECIPES, "fast", plain)
        assert losses(run("plain", max_steps=1, **flags)).item() != pytest.approx(smooth, rel=1e-4)
    metrics = read_rows(run("rates", epochs=4, **flags) / "metrics.jsonl")
    assert [row["lr"] for row in metrics] == pytest.approx(
        [0.1, 0.1 * 0.853553, 0.1 * 0.5, 0.1 * 0.146447], rel=1e-5
    )


def test_learning_rate_is_recorded(run: Callable[..., Path]) -> None:
    metrics = read_rows(run(epochs=4, backend="torch") / "metrics.jsonl")
    assert [row["lr"] for row in metrics] == pytest.approx([0.1, 0.1, 0.1, 0.01])


def test_default_epochs() -> None:
    found = [default_epochs(name, "cifar10", False) for name in ("study", "he", "fast")]
    assert found == [100, 182, 30]
    assert [default_epochs("he", "digits", interpreted) for interpreted in (False, True)] == [13, 1]


def test_the_recipe_is_the_data_sets() -> None:
    """The study's for CIFAR is the study's: batches of 128 at 0.1, plain SGD."""
    for key, flags in (("cifar10", {}), ("cifar100", {}), ("digits", {"recipe": "study"})):
        dataset = SimpleNamespace(key=key)
        config = complete(TrainConfig(norm="gn", **flags), dataset, False)
        assert (config.recipe, config.batch_size, config.lr) == ("study", 128, 0.1)
        assert (RECIPES["study"].momentum, RECIPES["study"].weight_decay) == (0, 0)
    config = complete(TrainConfig(norm="gn"), SimpleNamespace(key="digits"), False)
    assert (config.recipe, config.epochs) == ("digits", 13)
    recipe = RECIPES["digits"]
    assert (config.batch_size, config.lr) == (recipe.batch_size, recipe.lr)
    cifar = SimpleNamespace(key="cifar10")
    rates = [complete(TrainConfig(norm="wn", lr=lr), cifar, False).lr for lr in (None, 0.2)]
    assert rates == [0.03, 0.2]


def test_max_steps_ends_in_the_middle_of_an_epoch(run: Callable[..., Path]) -> None:
    folder = run(max_steps=4, epochs=9, backend="torch")
    assert [row["epoch"] for row in read_rows(folder / "steps.jsonl")] == [1, 1, 1, 2]


def test_a_finished_run_replaces_and_a_failed_one_does_not(run: Callable[..., Path]) -> None:
    folder = run(seed=1, max_steps=1, backend="torch")
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"loss of step \d+ is not finite"):
        run(lr=1e30, norm="none", backend="torch")
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before
    run(seed=2, max_steps=1, backend="torch")
    assert json.loads((folder / "results.json").read_text())["config"]["seed"] == 2
    assert {path.name for path in folder.iterdir()} == {*FILES, "notes.txt"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"epochs": 0}, "--epochs is 0"),
        ({"batch_size": -1}, "--batch-size is -1"),
        ({"max_steps": 0}, "--max-steps is 0"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"seed": -1}, "--seed is -1"),
        ({"ema": 1.0}, "--ema is 1.0; it must lie between 0 and 1"),
        ({"dataset": "digits"}, "--data-dir is for CIFAR-10"),
        ({"data_dir": None, "dataset_label": "x"}, "--dataset-label"),
        ({"norm": "bin", "backend": "torch"}, "no BIN"),
        ({"groups": 4}, "--groups is for --norm gn"),
        ({"norm": "gn", "groups": 3}, "--groups is 3; it must divide 16"),
        ({"cuda_graph": True, "amp": "fp16"}, "--cuda-graph with --amp fp16"),
    ],
)
def test_bad_flags(run: Callable[..., Path], flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run("bad", **flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data-dir", "nowhere"], "error: --data-dir nowhere"),
        (["--norm", "batch"], "'--norm'"),
        (["--cuda-graph", "--device", "cpu"], "error: --cuda-graph: there is no GPU here"),
    ],
)
def test_errors_are_for_people(
    run_script: Callable[..., subprocess.CompletedProcess[str]],
    flags: list[str],
    message: str,
    tmp_path: Path,
) -> None:
    done = run_script("train.py", "--backend", "torch", "--output", tmp_path / "x", *flags)
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "x").exists()


def test_triton_without_a_gpu_runs_in_the_interpreter(
    run: Callable[..., Path],
    run_script: Callable[..., subprocess.CompletedProcess[str]],
    tiny_cifar: Path,
    tmp_path: Path,
) -> None:
    flags = {"batch_size": 8, "depth_n": 1, "norm": "bn", "device": "cpu", "max_steps": 2}
    truth = losses(run("truth", backend="reference", **flags))
    output = tmp_path / "triton"
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    done = run_script(
        "train.py", "--backend=triton", f"--data-dir={tiny_cifar}", f"--output={output}", *given
    )
    assert done.returncode == 0, done.stderr
    assert "interpreter" in done.stderr
    results = json.loads((output / "results.json").read_text())
    assert results["interpreter"] is True
    # Evaluating all would take far longer than the two steps of 8 images.
    assert results["evaluated"] == {"train": 2, "val": 2, "test": 2}
    assert "the first 2 images of each split" in done.stdout
    assert_same_training(losses(output), truth)


@pytest.mark.slow
def test_the_digits_are_learnt_by_default(tmp_path: Path) -> None:
    """What make train does without a network, with a margin below what it says to expect."""
    folder = train_script.train(TrainConfig(norm="gn", dataset="digits", output=tmp_path / "run"))
    assert json.loads((folder / "results.json").read_text())["test"]["accuracy"] >= 0.965


@pytest.mark.parametrize(
    "flags",
    [{"norm": "bin", "backend": "torch"}, {"output": "a file"}],
    ids=["a norm that torch lacks", "a file in the way"],
)
def test_what_cannot_be_is_refused_before_the_download(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    flags = {"output": tmp_path / "run"} | flags
    if flags["output"] == "a file":
        flags["output"] = tmp_path / "file"
    monkeypatch.setattr(train_script, "load_dataset", lambda *_: pytest.fail("has downloaded"))
    with pytest.raises(UserError, match=r"no BIN|is a file"):
        train_script.train(TrainConfig(**flags))


def test_an_interrupted_run_says_how_to_go_on(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first of two epochs."""
    command = [".venv/bin/python", "cifar/train.py", "--norm", "bn", "--output", "my runs/x"]
    monkeypatch.setattr(train_script.sys, "orig_argv", command)
    original = training.Training.run_epoch

    def stop(self: training.Training, progress: Any) -> Any:
        if self.epoch == 1:
            raise KeyboardInterrupt
        return original(self, progress)

    monkeypatch.setattr(training.Training, "run_epoch", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(backend="torch")
    assert str(caught.value) == (
        "go on after epoch 1 with: .venv/bin/python cifar/train.py --norm bn --output 'my runs/x' "
        "--resume"
    )


def test_progress_within_an_epoch(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a terminal a bar that each batch moves; elsewhere a line an epoch and no bar."""
    run(backend="torch", max_steps=2)
    assert "/32" not in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    seen = []
    original = Progress.images

    def images(self: Progress, count: int) -> None:
        original(self, count)
        (task,) = self.bar.tasks
        seen.append((task.description, task.completed, task.total))

    monkeypatch.setattr(Progress, "images", images)
    run(backend="torch", max_steps=2)
    assert seen == [("epoch 1/2", 16, 32), ("epoch 1/2", 32, 32)]
    assert "32/32" in capsys.readouterr().out
