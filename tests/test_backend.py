"""Which implementation serves a call: the setting, its scope, the environment, the refusals."""

import importlib
import re

import pytest
import torch

import fastnorm
import fastnorm.functional as F
from fastnorm import backend, dispatch
from fastnorm.kernels import launch
from fastnorm.kernels.cpu import calls
from tests.conftest import DEVICE, in_a_process, make_input

NAMES = ("auto", "triton", "cpu", "torch", "reference")


@pytest.fixture(autouse=True)
def restored():
    """Whatever a test sets, the next one starts from the same backend."""
    before = fastnorm.get_backend()
    yield
    fastnorm.set_backend(before)


def printed_by(code, **environment):
    """stdout of `code` run by a fresh interpreter."""
    done = in_a_process("-c", code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", NAMES)
def test_set_and_get(name):
    fastnorm.set_backend(name)
    assert fastnorm.get_backend() == name


def test_use_backend_nests_and_restores():
    fastnorm.set_backend("cpu")
    with fastnorm.use_backend("reference"):
        assert fastnorm.get_backend() == "reference"
        with fastnorm.use_backend("triton"):
            assert fastnorm.get_backend() == "triton"
        assert fastnorm.get_backend() == "reference"
    assert fastnorm.get_backend() == "cpu"


def test_use_backend_restores_after_an_exception():
    fastnorm.set_backend("cpu")
    with pytest.raises(KeyError), fastnorm.use_backend("reference"):
        raise KeyError
    assert fastnorm.get_backend() == "cpu"


@pytest.mark.parametrize("name", ["cuda", "", "Triton", None])
def test_unknown_backend(name):
    """Refused before anything changes; the text lists what there is."""
    before = fastnorm.get_backend()
    with pytest.raises(ValueError) as caught:
        fastnorm.set_backend(name)
    for known in NAMES:
        assert known in str(caught.value)
    with pytest.raises(ValueError), fastnorm.use_backend(name):
        pass
    assert fastnorm.get_backend() == before


@pytest.mark.parametrize("op", ["batch_norm", "layer_norm"])
def test_each_backend_computes_where_it_says(op):
    """Each runs what is its own, and auto the kernels on CUDA, the engine on the CPU."""
    x = make_input((3, 4, 5))
    ran = {}
    for name in NAMES:
        with fastnorm.use_backend(name), launch.record() as launched, calls.record() as called:
            F.batch_norm(x, None, None, training=True) if op == "batch_norm" else F.layer_norm(
                x, (5,)
            )
        ran[name] = (bool(launched), bool(called))
        if DEVICE == "cuda" and name == "triton":
            break  # the engine refuses what is not on the CPU
    assert ran["auto"] == (DEVICE == "cuda", DEVICE == "cpu") and ran["triton"] == (True, False)
    if DEVICE == "cpu":
        assert ran["cpu"] == (False, True)
        assert ran["torch"] == ran["reference"] == (False, False)


@pytest.mark.parametrize("name", ["cpu", "auto"])
def test_tensors_elsewhere(name):
    """The engine is for CPUs: its error says what to do; auto takes torch's own norms."""
    x = torch.ones(2, 3, device="meta")
    with fastnorm.use_backend(name):
        if name == "auto":
            assert backend.backend_for(x) == "torch"
            return
        with pytest.raises(RuntimeError, match=r"\(2, 3\) on device 'meta': move it to the CPU"):
            backend.engine_for(x)


def test_reference_namespace_ignores_the_setting():
    """fastnorm.reference is the formula itself, whatever backend is set."""
    with fastnorm.use_backend("triton"), launch.record() as launched:
        fastnorm.reference.layer_norm(make_input((3, 4)), (4,))
    assert not launched


def test_the_initial_backend():
    code = "import fastnorm; print(fastnorm.get_backend())"
    assert printed_by(code) == "auto"
    assert printed_by(code, FASTNORM_BACKEND="reference") == "reference"


def test_unknown_backend_in_the_environment():
    """A typo in FASTNORM_BACKEND is a ValueError that names it, on import or at the first use."""
    code = (
        "try:\n import torch, fastnorm\n fastnorm.functional.layer_norm(torch.ones(2, 3), (3,))\n"
        "except ValueError as e: print(e)"
    )
    message = printed_by(code, FASTNORM_BACKEND="tritn")
    assert "tritn" in message and "cpu" in message


def test_triton_on_the_cpu_needs_the_interpreter():
    """CPU tensors cannot run compiled kernels: the error names both ways out."""
    code = (
        "import torch, fastnorm\nfastnorm.set_backend('triton')\n"
        "try: fastnorm.functional.layer_norm(torch.ones(2, 3), (3,))\n"
        "except RuntimeError as e: print(e)"
    )
    message = printed_by(code)
    assert "TRITON_INTERPRET=1" in message and "cpu" in message


def test_import_loads_no_kernel():
    """`import fastnorm` and the CPU path load no Triton: TRITON_INTERPRET may be set afterwards."""
    code = (
        "import sys, torch, fastnorm\nfastnorm.functional.layer_norm(torch.ones(2, 3), (3,))\n"
        "print('fastnorm.kernels.cpu' in sys.modules, 'triton' in sys.modules)"
    )
    assert printed_by(code) == "True False"
    code = (
        "import os, torch, fastnorm\nos.environ['TRITON_INTERPRET'] = '1'\n"
        "fastnorm.set_backend('triton')\n"
        "print(fastnorm.functional.layer_norm(torch.ones(2, 3), (3,)).abs().max().item())"
    )
    assert printed_by(code) == "0.0"


def test_record_nests():
    """An inner record does not hide its launches from the outer one."""
    x = make_input((3, 4))
    with fastnorm.use_backend("triton"), launch.record() as outer:
        F.layer_norm(x, (4,))
        with launch.record() as inner:
            F.layer_norm(x, (4,))
    assert inner and len(outer) == 2 * len(inner)
    assert all(isinstance(name, str) for name in outer)


def test_autograd_runs_on_the_forward_backend():
    """Leaving `with` before backward() changes nothing about who computes the gradient."""
    for name in ("triton", "cpu", "torch", "reference"):
        x = make_input((3, 4, 5), requires_grad=True)
        with fastnorm.use_backend(name):
            y = F.instance_norm(x)
        with launch.record() as launched:
            y.backward(torch.ones_like(y))
        assert bool(launched) == (name == "triton")


@pytest.mark.parametrize(
    "missing, remedy",
    [("fastnorm.kernels", "pip install -e"), ("numpy", "pip install numpy"), ("triton", "'cpu'")],
)
def test_missing_kernels_say_what_to_do(missing, remedy, monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ModuleNotFoundError, match=re.escape(remedy)) as caught:
        backend.load_kernels.__wrapped__()
    assert caught.value.name == missing


@pytest.mark.parametrize("in_dynamo", [True, False])
@pytest.mark.parametrize("always", [True, False])
def test_an_older_torch_takes_every_compilation_for_an_export(monkeypatch, always, in_dynamo):
    """What its compiler says counts only outside of it."""
    monkeypatch.setattr(dispatch, "ALWAYS_EXPORTING", always)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: in_dynamo)
    assert dispatch.is_exporting() != (always and in_dynamo)
