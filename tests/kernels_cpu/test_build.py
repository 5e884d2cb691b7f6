"""How the engine is compiled and kept: its folder and name, many at once, or not at all."""

import os
import stat
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch

import fastnorm
import fastnorm.functional as F
from fastnorm import backend, plain
from fastnorm.kernels.cpu import build
from tests.conftest import in_a_process

pytestmark = pytest.mark.no_kernel
USE = "import torch, fastnorm; print(fastnorm.functional.layer_norm(torch.ones(2, 3), (3,)).sum())"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for this process's build functions, which remember nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in (build.folder, build._temporary, build._key, build._compiler):
        function.cache_clear()
    yield tmp_path / "fastnorm"
    for function in (build.folder, build._temporary, build._key, build._compiler):
        function.cache_clear()


def test_the_folder_is_the_users_alone(cache):
    assert build.folder() == cache
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.mark.parametrize("fault", ["others may write", "someone else's", "a file", "read-only"])
def test_a_folder_that_is_not(cache, monkeypatch, fault):
    """What lies there would be executed: a private temporary folder takes its place."""
    if fault == "a file":
        cache.write_text("")
    else:
        cache.mkdir(mode=0o700)
    if fault == "others may write":
        cache.chmod(0o777)
    elif fault == "someone else's":
        monkeypatch.setattr(os, "getuid", lambda: os.stat(cache).st_uid + 1)
    elif fault == "read-only":
        monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: (_ for _ in ()).throw(OSError))
    found = build.folder()
    assert found != cache and found.parent == Path(tempfile.gettempdir())
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_the_name_says_what_it_is_made_of(cache, monkeypatch):
    names = {build.path_of("float32").name, build.path_of("float64").name}
    for attribute, value in (("_cpu", lambda: "another"), ("FLAGS", ("-O1",))):
        with monkeypatch.context() as patch:
            patch.setattr(build, attribute, value)
            build._key.cache_clear()
            names.add(build.path_of("float32").name)
    assert len(names) == 4


def test_a_compiler_that_fails(cache, monkeypatch):
    """Its message, and the way out; no half of a library stays."""
    monkeypatch.setattr(build, "FLAGS", ("--no-such-flag",))
    with pytest.raises(build.BuildError, match=r"(?s)no-such-flag.*set_backend\('torch'\)"):
        build.library("float32")
    assert list(cache.iterdir()) == []


def test_no_compiler(tmp_path):
    """auto warns once and takes torch's norms; cpu, which was asked for, raises."""
    code = (
        "import warnings, torch, fastnorm\n"
        "from fastnorm.kernels.cpu import calls\n"
        "x = torch.randn(4, 6, 5, requires_grad=True)\n"
        "with warnings.catch_warnings(record=True) as caught, calls.record() as called:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(2):\n"
        "        y = fastnorm.functional.batch_norm(x, None, None, training=True)\n"
        "        y.sum().backward()\n"
        "        fastnorm.functional.add_layer_norm(x, x, (5,))\n"
        "        fastnorm.functional.moment_norm(x, lambda m, v, n: (1.0, m, 0.0))\n"
        "truth = torch.nn.functional.batch_norm(x, None, None, training=True)\n"
        "torch.testing.assert_close(y, truth)\n"
        "assert not called\n"
        "(warning,) = caught\n"
        "print(warning.message)\n"
        "fastnorm.set_backend('cpu')\n"
        "try: fastnorm.functional.layer_norm(x, (5,))\n"
        "except RuntimeError as error: print(error)\n"
    )  # fmt: skip
    done = in_a_process("-c", code, PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("needs a C compiler, and none was found: install") == 2
    assert done.stdout.count("CPU tensors take torch's own norms") == 1


def test_two_processes_at_once(tmp_path):
    """Each compiles or finds it; one library is left, and nothing else."""
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "FASTNORM_BACKEND": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", USE]
    processes = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [p.communicate(timeout=280)[0].strip() for p in processes] == ["tensor(0.)"] * 2
    (library,) = (tmp_path / "fastnorm").iterdir()
    assert library.name.startswith("float32-") and library.suffix == ".so"


def test_compile_all_says_what_it_compiled(cache, monkeypatch):
    monkeypatch.setattr(build, "compile_library", lambda name, path: path.write_text(""))
    assert [name for name, _ in build.compile_all()] == list(build.DTYPES.values())
    assert build.compile_all() == []


def test_a_warning_is_given_once(monkeypatch):
    def fails(dtype):
        raise build.BuildError("no compiler")

    monkeypatch.setattr(build, "functions", fails)
    monkeypatch.setattr(plain, "READY", {})
    backend._warn_once.cache_clear()
    with fastnorm.use_backend("auto"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            F.layer_norm(torch.ones(2, 3), (3,))
    assert len(caught) == 1 and "no compiler" in str(caught[0].message)
    backend._warn_once.cache_clear()
