"""cifar/ on sys.path, as its scripts have it; tiny data sets, and a function to run a script."""

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

CIFAR = Path(__file__).parents[2] / "cifar"
sys.path.insert(0, str(CIFAR))

ROWS = {"data_batch_1": 12, "data_batch_2": 9, "data_batch_3": 10, "data_batch_4": 11} | {
    "data_batch_5": 13,
    "test_batch": 7,
}
ROWS_100 = {"train": 20, "test": 6}


@pytest.fixture(autouse=True)
def backend_restored() -> Iterator[None]:
    """Undo the scripts' set_backend, which is global, for the tests that follow in this process."""
    import fastnorm

    before = fastnorm.get_backend()
    yield
    fastnorm.set_backend(before)


def tiny_batches() -> dict[str, dict[bytes, Any]]:
    """CIFAR-10's files in miniature: three classes, told apart by the brighter of the channels."""
    generator = np.random.default_rng(0)
    batches = {}
    for name, rows in ROWS.items():
        labels = generator.integers(0, 3, rows)
        images = generator.integers(0, 120, (rows, 3, 1024))
        images[np.arange(rows), labels] += 130
        batches[name] = {
            b"data": images.reshape(rows, 3072).astype(np.uint8),
            b"labels": labels.tolist(),
        }
    return batches


@pytest.fixture(scope="session")
def tiny_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --data-dir. Read only: tests that damage files write their own."""
    folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-py"
    folder.mkdir()
    for name, batch in tiny_batches().items():
        (folder / name).write_bytes(pickle.dumps(batch))
    return folder.parent


def tiny_batches_100() -> dict[str, dict[bytes, Any]]:
    """CIFAR-100's files in miniature, all their fields; the labels are the first and the last."""
    generator = np.random.default_rng(1)
    files: dict[str, dict[bytes, Any]] = {
        name: {
            b"filenames": [b"%d.png" % i for i in range(rows)],
            b"batch_label": name.encode(),
            b"fine_labels": generator.choice([0, 99], rows).tolist(),
            b"coarse_labels": generator.integers(0, 20, rows).tolist(),
            b"data": generator.integers(0, 256, (rows, 3072), np.uint8),
        }
        for name, rows in ROWS_100.items()
    }
    names = {b"fine_label_names": [b"fine %d" % i for i in range(100)]}
    return files | {"meta": names | {b"coarse_label_names": [b"coarse"] * 20}}


@pytest.fixture(scope="session")
def tiny_cifar100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --data-dir. Read only, as tiny_cifar."""
    folder = tmp_path_factory.mktemp("data100") / "cifar-100-python"
    folder.mkdir()
    for name, fields in tiny_batches_100().items():
        (folder / name).write_bytes(pickle.dumps(fields, protocol=2))
    return folder.parent


@pytest.fixture(scope="session")
def predict_script() -> ModuleType:
    """cifar/test.py under another name: `test` is a package of the standard library."""
    spec = importlib.util.spec_from_file_location("cifar_test_script", CIFAR / "test.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_python(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python WORDS` on one thread, with these environment variables."""
    # The parent's choice of interpreter must not reach a script, which makes its own.
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs cifar/NAME as a user would, with its flags."""
    return lambda name, *flags: run_python(CIFAR / name, *flags)


@pytest.fixture
def run(tiny_cifar: Path, tmp_path: Path) -> Callable[..., Path]:
    """Trains in this process on the tiny CIFAR-10; small, unless the flags say otherwise."""
    from train import train

    from harness.config import TrainConfig

    def start(output: str = "run", **flags: Any) -> Path:
        values = {"epochs": 2, "batch_size": 16, "depth_n": 1, "data_dir": tiny_cifar, **flags}
        return train(TrainConfig(output=tmp_path / output, **values))

    return start
