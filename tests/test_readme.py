"""The pages are right: Python blocks run, commands parse, links lead somewhere.

A page's Python blocks run one after the other, as a reader would type them. Commands, in shell
blocks and between backticks, are checked as far as COMMANDS says, which also says why they are not
run. A block in another language, or a command that COMMANDS does not know, is an error.
"""

import argparse
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch.distributed.run

import fastnorm

NO_TOOLS = "of the tools for development, which a machine for `make gpu` need not have"
markdown_it = pytest.importorskip("markdown_it", reason=NO_TOOLS)
tyro = pytest.importorskip("tyro", reason=NO_TOOLS)

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "docs", "benchmarks", "cifar", "cifar/results")
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).glob("*.md")
)
LANGUAGES = {"python", "sh", "{toctree}", "{eval-rst}"}  # the last two are Sphinx's: `make docs`


def tokens(page: str) -> Iterator[markdown_it.token.Token]:
    """All of a page, with what stands inside its paragraphs and tables."""
    for token in markdown_it.MarkdownIt().enable("table").parse((ROOT / page).read_text()):
        yield token
        yield from token.children or ()


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, content); an indented block has no language."""
    kinds = ("fence", "code_block")
    return [(token.info, token.content) for token in tokens(page) if token.type in kinds]


@pytest.mark.parametrize("page", PAGES)
def test_blocks(page):
    found = blocks(page)
    assert {language for language, _ in found} <= LANGUAGES
    names: dict[str, object] = {}
    with fastnorm.use_backend("auto"):
        for language, content in found:
            if language == "python":
                exec(content, names)
    if page == "README.md":
        assert names["x"].grad is not None


def check_make(words: list[str]) -> None:
    """The target exists and the Makefile reads the variables."""
    makefile = (ROOT / "Makefile").read_text()
    for name in (word.partition("=")[0] for word in words if "=" in word):
        assert re.search(rf"\$\({name}\)|^ifdef {name}$", makefile, re.MULTILINE), name
    subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def exit_after(parse: Callable[..., object]) -> Callable[..., None]:
    def parsed(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        sys.exit(0)

    return parsed


PARSERS = {"tyro.cli(": (tyro, "cli"), ".parse_args(": (argparse.ArgumentParser, "parse_args")}


def check_arguments(file: Path, run: Callable[[], object], arguments: list[str]) -> None:
    """Run a script until its own parser has taken the arguments."""
    parsers = [parser for call, parser in PARSERS.items() if call in file.read_text()]
    if not parsers:  # nothing would stop it
        assert not arguments, f"{file} takes none"
        return
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        for owner, name in parsers:
            patch.setattr(owner, name, exit_after(getattr(owner, name)))
        patch.setattr(sys, "argv", [str(file), *arguments])
        run()
    assert end.value.code == 0, f"{file} refuses {arguments}"


def check_script(words: list[str]) -> None:
    script, *arguments = words
    file = ROOT / script
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)  # as python does
        check_arguments(file, partial(runpy.run_path, str(file), run_name="__main__"), arguments)


def check_module(words: list[str]) -> None:
    name, *arguments = words
    spec = importlib.util.find_spec(name)
    if spec and spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{name}.__main__")
    assert spec and spec.origin, f"no module {name}"
    run = partial(runpy.run_module, name, run_name="__main__")
    check_arguments(Path(spec.origin), run, arguments)


def check_torchrun(words: list[str]) -> None:
    found = torch.distributed.run.parse_args(words)
    check_script([found.training_script, *found.training_script_args])


def check_pytest(words: list[str]) -> None:
    """The paths exist, and pytest with its plugins knows the flags."""
    assert all((ROOT / word).exists() for word in words if not word.startswith("-"))
    parse = [sys.executable, "-m", "pytest", "--markers", *words]  # prints, collects nothing
    # As from a shell: below a worker of xdist pytest-benchmark switches itself off.
    shell = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    subprocess.run(parse, cwd=ROOT, env=shell, check=True, stdout=subprocess.DEVNULL)


def check_exists(words: list[str]) -> None:
    assert (ROOT / words[0]).exists()


def check_pip(words: list[str]) -> None:
    """The extras of this package exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {name for word in words for name in re.findall(r"^\.\[(.*)\]$", word)}
    assert named <= project["optional-dependencies"].keys()


def unchecked(words: list[str]) -> None:
    """Nothing of it lies in this repository."""


class Command(NamedTuple):
    start: str
    check: Callable[[list[str]], None]  # of the words that follow `start`
    not_run: str


COMMANDS = (
    Command("make", check_make, "installs, or takes minutes; CI runs most of them"),
    Command("bash", check_exists, "is CI"),
    Command("python -m", check_module, "measures for minutes; test_main.py, tests/benchmarks do"),
    Command("python", check_script, "trains for minutes; tests/cifar and test_examples.py do"),
    Command("torchrun", check_torchrun, "trains for minutes; tests/cifar/test_parallel.py does"),
    Command("pytest", check_pytest, "measures for minutes"),
    Command("pip", check_pip, "installs from the network; CI does"),
    Command("pre-commit", unchecked, "is not of .venv, and changes the clone"),
    Command("source", unchecked, "reads what `make` makes"),
)


def find(words: list[str]) -> tuple[Command, list[str]]:
    """The first entry that the command starts with, and what follows. KeyError without one."""
    for command in COMMANDS:
        start = command.start.split()
        if words[: len(start)] == start:
            return command, words[len(start) :]
    raise KeyError(shlex.join(words))


def is_command(text: str) -> bool:
    """Of a text between backticks: `python -m fastnorm`, but neither `make` nor `pip>=23`."""
    programs = {command.start.split()[0] for command in COMMANDS}
    return text.removeprefix(".venv/bin/").split()[0] in programs and " " in text


def command_lines(page: str) -> Iterator[list[str]]:
    """The words of each, in shell blocks and between backticks, without .venv/bin/."""
    shell = (content for language, content in blocks(page) if language == "sh")
    inline = (token.content for token in tokens(page) if token.type == "code_inline")
    lines = chain.from_iterable(text.replace("\\\n", " ").splitlines() for text in shell)
    for line in chain(lines, filter(is_command, inline)):
        for command in line.split("&&"):
            if words := shlex.split(command, comments=True):
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def test_commands():
    """Every page's, each once; every entry of COMMANDS is needed."""
    lines = dict.fromkeys(tuple(words) for page in PAGES for words in command_lines(page))
    found = [find(list(words)) for words in lines]
    assert {command for command, _ in found} == set(COMMANDS)
    for command, words in found:
        command.check(words)


@pytest.mark.parametrize(
    "line",
    ["make no-such-target", "make gpu OUTT=DIR", "python cifar/no_such_script.py",
     "python cifar/train.py --no-such-flag", "python cifar/train.py --norm none-such",
     "python -m benchmarks.none_such", "python -m benchmarks.cpu --no-such-flag",
     "python docs/drawings.py --no-such-flag", "torchrun --no-such-flag cifar/train.py",
     "torchrun cifar/train.py --no-such-flag", "pytest benchmarks/ --no-such-flag",
     "pytest no-such-folder", "bash no-such-script", "pip install .[no-such-extra]",
     "no-such-program"],
)  # fmt: skip
def test_wrong_commands_fail(line):
    with pytest.raises((AssertionError, KeyError, OSError, SystemExit, subprocess.SubprocessError)):
        command, words = find(line.split())
        command.check(words)


def anchors(page: str) -> set[str]:
    """Of its headings, as GitHub and the site write them."""
    found = list(tokens(page))
    titles = [after.content for token, after in pairwise(found)
              if token.type == "heading_open"]  # fmt: skip
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    """Those into the repository: the file is there, and the heading in it."""
    links = [token.attrs.get("href") or token.attrs.get("src") for token in tokens(page)]
    for link in filter(None, links):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(str(target)), link


def test_measured_speed():
    """The tables' figures are those of the rows."""
    plot_cpu = pytest.importorskip("benchmarks.plot_cpu", reason="matplotlib is not installed")
    rows, modulated = plot_cpu.measured()
    assert plot_cpu.by_fusion(rows) in (ROOT / "README.md").read_text()
    assert plot_cpu.modulated(modulated) in (ROOT / "docs/benchmarks.md").read_text()
    assert plot_cpu.by_shape(rows) in (ROOT / "docs/benchmarks.md").read_text()
