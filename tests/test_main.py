"""`python -m fastnorm`: its output and exit codes; its checks find wrong results."""

import importlib.metadata
import inspect
import platform
import sys

import pytest
import torch

import fastnorm
from fastnorm import __main__ as main_module
from fastnorm import backend, functional, kernels, selfcheck
from fastnorm.contract import NormSpec
from fastnorm.kernels import cpu
from tests.conftest import DEVICE, in_a_process

FEW = ("batch-instance norm", "group norm + residual, ReLU", "add RMS norm")
ON_GPU = DEVICE == "cuda"


@pytest.fixture
def few(monkeypatch):
    """Three of the checks, for a quick `python -m fastnorm` in this process."""
    norms = tuple(norm for norm in selfcheck.NORMS if norm.name in FEW)
    assert len(norms) == len(FEW)
    monkeypatch.setattr(selfcheck, "NORMS", norms)
    monkeypatch.setattr(sys, "argv", ["fastnorm"])


def outcomes(output, dtype=""):
    """(name, verdict) of each check's line."""
    lines = [line for line in output.splitlines() if dtype in line]
    return [(n, line.split()[-1]) for line in lines for n in FEW if line.startswith(f"  {n}  ")]


def test_report(few, capsys, monkeypatch):
    """Versions, machine and settings; a line for each check; exit code 0."""
    monkeypatch.setenv("TRITON_CACHE_DIR", "/some/where")
    monkeypatch.setenv("FASTNORM_BACKEND", "reference")  # read when fastnorm was imported
    with fastnorm.use_backend("reference"):
        assert main_module.main() == 0
        assert fastnorm.get_backend() == "reference"
    output = capsys.readouterr().out
    facts = dict(line.strip().split(maxsplit=1) for line in output.split("\n\n")[0].splitlines())
    assert facts["fastnorm"] == fastnorm.__version__
    assert facts["python"] == platform.python_version() and facts["torch"] == torch.__version__
    for package in ("numpy", "triton"):
        assert facts[package] == importlib.metadata.version(package)
    assert facts["TRITON_CACHE_DIR"] == "'/some/where'"
    assert facts["FASTNORM_BACKEND"] == "'reference'" and facts["backend"] == "reference"
    assert facts["auto"].startswith("is") and "cpu for CPU tensors" in facts["auto"]
    assert ("triton for CUDA tensors" in facts["auto"]) == ON_GPU
    allowed = "" if kernels.tiers.state()[0] else "not "
    assert facts["cooperative"] == f"kernels are {allowed}allowed"
    assert ("GPU 0" in output and "capability" in output) if ON_GPU else "none" in facts["GPU"]
    found = outcomes(output)
    assert {name for name, _ in found} == set(FEW) and {verdict for _, verdict in found} == {"ok"}
    assert "one program" in output and "streaming" in output and "channels last" in output
    assert ("in Triton's interpreter" in output) == kernels.INTERPRETED
    assert "bfloat16" in output
    assert output.endswith("\nall ok\n") and max(map(len, output.splitlines())) <= 100


def test_every_function_is_checked(monkeypatch):
    called = set()

    def recorded(name, function):
        def call(*args, **kwargs):
            called.add(name)
            return function(*args, **kwargs)

        return call

    norms = [name for name, _ in inspect.getmembers(functional, inspect.isfunction)
             if name.endswith("_norm") and not name.startswith("apply")]  # fmt: skip
    assert set(functional.__all__) <= set(norms)
    for name in norms:
        monkeypatch.setattr(functional, name, recorded(name, getattr(functional, name)))
    assert all(found.ok for found in selfcheck.run("cpu", "cpu", (torch.float32,)))
    assert called == set(norms)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_wrong_formula(few, capsys, monkeypatch, backend, direction):
    """A thousandth off in one gradient or output is found in float32, there alone."""
    engine = cpu.ENGINE if backend == "cpu" else kernels.ENGINE
    attribute = "norm" if direction == "forward" else "norm_backward"
    right = getattr(engine, attribute)

    def wrong(*args):
        first, *rest = right(*args)
        (spec,) = (arg for arg in args if isinstance(arg, NormSpec))
        return (first * 1.001 if spec.norm == "batch_instance" else first, *rest)

    monkeypatch.setattr(engine, attribute, wrong)
    assert main_module.main() == 1
    output = capsys.readouterr().out
    of_cpu, of_triton = (outcomes(part, "float32") for part in output.split("\ntriton on the "))
    for name, verdict in of_cpu if backend == "cpu" else of_triton:
        assert (verdict == "WRONG") == (name == "batch-instance norm")
    for _, verdict in of_triton if backend == "cpu" else of_cpu:
        assert verdict == "ok"
    wrong_lines = [line for line in output.splitlines() if line.endswith("WRONG")]
    assert output.endswith(f"\n{len(wrong_lines)} wrong: see above\n")
    assert len(wrong_lines) == 2 or backend == "triton"


def test_nan_is_wrong(few, capsys, monkeypatch):
    """One NaN, whatever the other results are."""
    right = cpu.ENGINE.norm_backward

    def wrong(*args, **kwargs):
        dx, *rest = right(*args, **kwargs)
        dx[0, 0] = float("nan")
        return dx, *rest

    monkeypatch.setattr(cpu.ENGINE, "norm_backward", wrong)
    assert main_module.main() == 1
    assert "nan  WRONG" in capsys.readouterr().out


def test_error_is_shown(few, capsys, monkeypatch):
    """A call that raises is one wrong line with its message; the other checks go on."""

    def raises(*args, **kwargs):
        raise RuntimeError("at 3:7:\n    x = tl.lod(ptr)\n\nno such thing as tl.lod")

    monkeypatch.setattr(functional, "group_norm", raises)
    assert main_module.main() == 1
    output = capsys.readouterr().out
    assert "    RuntimeError: at 3:7: ... no such thing as tl.lod\n" in output
    for name, verdict in outcomes(output):
        assert (verdict == "WRONG") == name.startswith("group norm")
    assert "raised  WRONG" in output


def test_kernels_have_to_run(monkeypatch):
    """What another backend computed does not pass for a kernel's result."""
    monkeypatch.setattr(selfcheck, "use_backend", lambda name: fastnorm.use_backend("cpu"))
    monkeypatch.setattr(selfcheck, "NORMS", selfcheck.NORMS[:1])
    for found in selfcheck.run("triton", DEVICE, (torch.float32,)):
        assert not found.ok and "no kernel was launched" in found.message


@pytest.mark.skipif(ON_GPU, reason="a GPU needs no interpreter")
def test_without_numpy(few, capsys, monkeypatch):
    """A core install on a machine without a GPU: nothing is wrong, and the remedy is named."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert main_module.main() == 0
    assert "no kernel was checked: numpy, which Triton's interpreter" in capsys.readouterr().out


@pytest.mark.skipif(ON_GPU, reason="a GPU needs no interpreter")
@pytest.mark.parametrize("numpy", ["2.3.5", "2.4.0"])
def test_the_interpreter_of_triton_3_6_needs_an_older_numpy(few, capsys, monkeypatch, numpy):
    """As after an install of torch 2.11: no fault of the kernels', and the remedy is named."""
    versions = {"triton": "3.6.0", "numpy": numpy}
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: versions.get(n) or version(n))
    assert main_module.main() == 0
    assert ("pip install 'numpy<2.4'" in capsys.readouterr().out) == (numpy == "2.4.0")
    load_kernels = backend.load_kernels.__wrapped__  # not the ones that it keeps
    if numpy == "2.4.0":
        with pytest.raises(ImportError, match=r"Triton 3\.6\.0.*numpy 2\.4\.0.*numpy<2\.4"):
            load_kernels()
    else:
        assert load_kernels() is kernels


def test_without_triton(few, capsys, monkeypatch):
    """No fault where no GPU needs it; the report says so."""
    monkeypatch.setitem(sys.modules, "triton", None)
    assert main_module.main() == (1 if ON_GPU else 0)
    output = capsys.readouterr().out
    assert "no kernel was checked: triton is not installed" in output
    assert len(outcomes(output)) == 15 and "cooperative" not in output


def test_kernels_that_cannot_be_imported(few, capsys, monkeypatch):
    def load_kernels():
        raise ModuleNotFoundError("No module named 'fastnorm.kernels'")

    monkeypatch.setattr(main_module, "load_kernels", load_kernels)
    assert main_module.main() == 1
    assert "ModuleNotFoundError: No module named 'fastnorm.kernels'" in capsys.readouterr().out


def test_unknown_backend_in_the_environment():
    """fastnorm cannot be imported: the last line says why."""
    done = in_a_process("-m", "fastnorm", FASTNORM_BACKEND="tritn")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ValueError: unknown FASTNORM_BACKEND 'tritn'")


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--quick", 2)])
def test_arguments(few, capsys, monkeypatch, argument, code):
    monkeypatch.setattr(sys, "argv", ["fastnorm", argument])
    with pytest.raises(SystemExit) as ended:
        main_module.main()
    assert ended.value.code == code and "python -m fastnorm" in "".join(capsys.readouterr())


def test_the_interpreter_is_switched_on():
    """In a fresh process, with nothing in the environment; what was found there is reported."""
    done = in_a_process(
        "-c",
        "import sys; from fastnorm import __main__, selfcheck\n"
        "assert 'triton' not in sys.modules\n"
        "selfcheck.NORMS = selfcheck.NORMS[-1:]\n"
        "sys.exit(__main__.main())",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TRITON_INTERPRET  not set" in done.stdout and "triton on the" in done.stdout
    assert ("in Triton's interpreter" in done.stdout) != ON_GPU


@pytest.mark.slow  # 10 s alone on a core
def test_all_of_it():
    done = in_a_process("-m", "fastnorm", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("  ok\n") > 60 and done.stdout.endswith("\nall ok\n")
