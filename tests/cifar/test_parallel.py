"""torchrun with several processes is one process with the same batches."""

import subprocess
from pathlib import Path

import pytest
import torch

from harness.files import read_rows
from harness.world import World

from .conftest import CIFAR, run_python

FLAGS = ["--epochs=2", "--batch-size=15", "--depth-n=1", "--device=cpu"]


def run(output: Path, processes: int, *flags: str) -> subprocess.CompletedProcess[str]:
    """A run in `processes` processes, each on one thread."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher * (processes > 1), CIFAR / "train.py"]
    return run_python(*command, f"--output={output}", *FLAGS, *flags)


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in read_rows(folder / "steps.jsonl")])


@pytest.mark.slow  # the norms in two processes are tests/distributed's
@pytest.mark.parametrize("norm", ["bn", "gn", "bin", "sn"])
def test_two_processes_train_as_one(norm: str, tiny_cifar: Path, tmp_path: Path) -> None:
    """44 images in batches of 15, 15 and 14: the shares of the first two are 7 and 8.

    The first loss differs by rounding alone. The later ones follow gradients, which relu's kinks
    make differ by about 1e-3, as between backends (test_train.py).
    """
    flags = [f"--norm={norm}", f"--data-dir={tiny_cifar}"]
    for processes in (1, 2):
        done = run(tmp_path / str(processes), processes, *flags)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 2/2") == 1, "the leading process alone prints"
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    torch.testing.assert_close(two[0], one[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(two, one, rtol=5e-3, atol=0)
    names = [{path.name for path in (tmp_path / run).iterdir()} for run in ("1", "2")]
    assert names[0] == names[1]


def test_shares_cover_a_batch() -> None:
    for count in range(9):
        parts = [World(rank, 4).share(100, count) for rank in range(4)]
        assert [i for part in parts for i in range(part.start, part.stop)] == list(
            range(100, 100 + count)
        )
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1
