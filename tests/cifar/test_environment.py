"""Which implementation serves the model."""

import os

import pytest
import torch

import fastnorm
from harness.environment import select_backend, select_device
from harness.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_selects_fastnorms_backend(backend: str) -> None:
    assert select_backend(backend, CPU) is False
    assert fastnorm.get_backend() == backend


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert select_backend("triton", CPU) is True
    assert (os.environ["TRITON_INTERPRET"], fastnorm.get_backend()) == ("1", "triton")


def test_triton_on_a_gpu_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert select_backend("triton", torch.device("cuda")) is False
    assert os.environ["TRITON_INTERPRET"] == "0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    assert select_device("auto") == CPU
    with pytest.raises(UserError, match="--device cuda"):
        select_device("cuda")
