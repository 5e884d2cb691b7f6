"""torch.compile's files, after a process was killed while it wrote them."""

import os
from pathlib import Path

import pytest

from harness.compile_cache import VARIABLE, own_cache
from harness.errors import StartAgain, UserError

from .conftest import CIFAR, run_python

# What dlopen says of a library that the linker was killed over.
SHORT = ImportError("/somewhere/c.so: file too short")

FAILS = """
import os, sys
from pathlib import Path
from harness.compile_cache import VARIABLE, own_cache
from harness.errors import run_script

def main():
    with own_cache(Path(sys.argv[1])):
        folder = Path(os.environ[VARIABLE])
        print("damaged" if folder.is_dir() else "empty", flush=True)
        folder.mkdir(exist_ok=True)
        (folder / "c.so").write_text("cut sh")
        if sys.argv[2] == "always" or len(list(folder.iterdir())) > 1:
            raise ImportError("c.so: file too short")

run_script(main)
"""

COMPILES = """
import sys
from pathlib import Path
import torch
from harness.compile_cache import own_cache
from harness.errors import run_script

def main():
    with own_cache(Path(sys.argv[1])):
        print(torch.compile(lambda x: x.sin() + 1)(torch.zeros(3)).tolist(), flush=True)
        if sys.argv[2] == "stop":
            raise KeyboardInterrupt

run_script(main)
"""


def test_a_damaged_cache_is_cleared_and_the_script_starts_again(tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    folder.mkdir()
    (folder / "b.so").write_text("cut")
    done = run_python("-c", FAILS, folder, "once", PYTHONPATH=str(CIFAR))
    assert (done.returncode, done.stdout) == (0, "damaged\nempty\n")
    assert done.stderr.startswith("warning: the compiled code in ") and not folder.exists()


def test_it_starts_again_once(tmp_path: Path) -> None:
    """What an empty cache fails with as well is an error of another kind."""
    folder = tmp_path / "compiled"
    folder.mkdir()
    (folder / "b.so").write_text("cut")
    done = run_python("-c", FAILS, folder, "always", PYTHONPATH=str(CIFAR))
    assert done.returncode == 1 and done.stdout == "damaged\nempty\n"
    assert done.stderr.count("starting again") == 1 and "file too short" in done.stderr


def test_only_what_the_compiler_raises_clears_it(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_text("whole")
    for error in (UserError("--lr"), KeyboardInterrupt()):
        with pytest.raises(type(error)), own_cache(tmp_path):
            raise error
    assert (tmp_path / "a.so").exists()
    with pytest.raises(StartAgain, match=r"c\.so: file too short"), own_cache(tmp_path):
        raise SHORT
    assert not tmp_path.exists()


def test_under_torchrun_the_whole_command_is_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    (tmp_path / "a.so").write_text("cut")
    with pytest.raises(UserError, match="give the same command again"), own_cache(tmp_path):
        raise SHORT


def test_the_users_own_cache_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "theirs")
    with own_cache(tmp_path / "compiled"):
        assert os.environ[VARIABLE] == str(tmp_path / "compiled")
    assert os.environ[VARIABLE] == "theirs"


@pytest.mark.slow
def test_shared_objects_cut_short(tmp_path: Path) -> None:
    """torch's own, as a process leaves them that is killed while they are linked.

    The program's alone: with a probe of the CPU's instructions cut short torch does without them,
    which is slower and not wrong.
    """
    folder = tmp_path / "compiled"
    run_python("-c", COMPILES, folder, "stop", PYTHONPATH=str(CIFAR))
    libraries = list(folder.rglob("*.main.so"))
    assert libraries
    for library in libraries:
        library.write_bytes(library.read_bytes()[:64])
    done = run_python("-c", COMPILES, folder, "go", PYTHONPATH=str(CIFAR))
    assert (done.returncode, done.stdout) == (0, "[1.0, 1.0, 1.0]\n"), done.stderr
    assert "starting again" in done.stderr and not folder.exists()
