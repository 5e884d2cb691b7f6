"""The published files: one version, a wheel of only the package, a source distribution of the same.

Built from a copy of the tree, so that no file of earlier builds gets in, and with this
environment's setuptools, so that no network is needed.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import fastnorm
from tests.conftest import DEVICE

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
NAME = f"fastnorm_triton-{VERSION}"
NOT_SOURCES = (".*", "__pycache__", "*.egg-info", "build", "dist", "data", "runs")
SDIST = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml",
         "setup.cfg", "setup.py", "fastnorm", "fastnorm_triton.egg-info", "kernels"}  # fmt: skip


def build(tree: Path, out: Path, *flags: str) -> Path:
    """The wheel that `python -m build` puts into `out`; without flags it is the sdist's."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *flags, tree],
        check=True, cwd=out.parent, timeout=240,
    )  # fmt: skip
    return out / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources, of this file's checkout."""
    copy = tmp_path_factory.mktemp("sources") / "fastnorm"
    ignored = shutil.ignore_patterns(*NOT_SOURCES)
    shutil.copytree(ROOT, copy, ignore=ignored, symlinks=True)
    return copy


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """As `make dist` builds it: from the source distribution, which lies beside it."""
    return build(tree, tmp_path_factory.mktemp("published") / "dist")


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_one_version():
    """pyproject.toml has it, changelog and citation name it. A stale install fails: `make env`."""
    assert fastnorm.__version__ == VERSION
    assert f"\n## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


def test_make_help_is_complete():
    """A line of at most 100 columns for each target but the one that others need; all are phony."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w[\w-]*):(?!=)", makefile, re.MULTILINE))
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    assert sorted(phony) == sorted(targets)
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=2) for line in shown.stdout.splitlines()]
    assert all(make == "make" and what for make, _, what in lines)
    assert {target for _, target, _ in lines} == targets - {"gpu-ready"}
    assert max(map(len, shown.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    "missing, words",
    [("say where to", ["PYTHON=true"]), ("'false' has no torch", ["OUT=.", "PYTHON=false"])],
)
def test_gpu_targets_say_what_is_missing(missing, words):
    done = subprocess.run(["make", "gpu-plot", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and missing in done.stderr


@pytest.mark.slow
def test_wheel_holds_the_package_alone(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastnorm").rglob("*.py")}
    kernels = {
        f"fastnorm/{path.relative_to(ROOT).as_posix()}"
        for suffix in ("py", "c", "h")
        for path in (ROOT / "kernels").rglob(f"*.{suffix}")
    }
    assert modules >= {"fastnorm/__main__.py", "fastnorm/modules/batch.py"}
    assert {"fastnorm/kernels/launch.py", "fastnorm/kernels/cpu/vec.h"} <= kernels
    info = ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE", "top_level.txt")
    expected = modules | kernels | {"fastnorm/py.typed"} | {f"{NAME}.dist-info/{n}" for n in info}
    assert set(contents(wheel)) == expected
    assert contents(wheel)[f"{NAME}.dist-info/top_level.txt"] == b"fastnorm\n"


@pytest.mark.slow
def test_source_distribution_is_the_same(wheel, tree):
    """Without tests and what else is the repository's; its wheel is that of the tree itself."""
    with tarfile.open(wheel.parent / f"{NAME}.tar.gz") as archive:
        paths = [Path(name).parts for name in archive.getnames()]
    assert {parts[0] for parts in paths} == {NAME}
    assert {parts[1] for parts in paths if len(parts) > 1} == SDIST
    direct = build(tree, wheel.parent.parent / "direct", "--wheel")
    assert contents(direct) == contents(wheel)


@pytest.mark.slow
def test_wheel_installs_and_runs(wheel, tmp_path):
    """Where there is nothing of fastnorm: both backends, the version, `python -m fastnorm`."""
    site = tmp_path / "site"
    flags = ["--no-deps", "--no-index", "--no-build-isolation", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *flags, wheel], check=True)
    env = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    code = (
        "import torch, fastnorm, fastnorm.kernels\n"
        f"x = torch.randn(4, 8, device={DEVICE!r})\n"
        "for backend in ('cpu', 'triton'):\n"
        "    with fastnorm.use_backend(backend):\n"
        "        y = fastnorm.LayerNorm(8).to(x.device)(x)\n"
        "        torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (8,)))\n"
        "print(fastnorm.__version__, fastnorm.__file__, fastnorm.kernels.__file__, sep='\\n')"
    )
    for arguments in (["-c", code], ["-m", "fastnorm", "--help"]):
        done = subprocess.run(
            [sys.executable, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        if arguments[0] == "-c":
            version, *files = done.stdout.splitlines()
            assert version == VERSION
            assert files == [str(site / "fastnorm" / "__init__.py"),
                             str(site / "fastnorm" / "kernels" / "__init__.py")]  # fmt: skip
