"""`pytest -p benchmarks.pytest_lines --lines FILE`: a line of JSON for each test, as it ends.

For runs that a time limit may cut: FILE tells which tests passed, failed, or were running. Each
line is on the disk before the next test starts. If a failure leaves the GPU unusable for its
process, pytest-xdist replaces that process: the tests after it still run.
"""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rows import NOT_REACHED, read

LONGEST_MESSAGE = 500  # characters


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lines", type=Path, help="write a line of JSON for each test to this file")
    parser.addoption("--seconds", type=float, help="skip tests that would begin after so long")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seconds is not None:
        config.pluginmanager.register(Until(config))
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(BrokenDevice())
    elif config.option.lines is not None:
        config.pluginmanager.register(Lines(config, config.option.lines))


class Until:
    """Skips tests that would begin too late. The workers get the controller's time."""

    def __init__(self, config: pytest.Config) -> None:
        here = {"not_after": time.time() + config.option.seconds}
        self.not_after: float = getattr(config, "workerinput", here)["not_after"]

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["not_after"] = self.not_after

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if time.time() > self.not_after:
            pytest.skip(NOT_REACHED)


class Lines:
    """Writes the file, and prints a test's records about itself."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self.config, self.begin, self.any_passed = config, time.perf_counter(), False
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file.open("w")

    def write(self, **what: Any) -> None:
        seconds = round(time.perf_counter() - self.begin, 2)
        self.file.write(json.dumps({"at": seconds, **what}) + "\n")
        self.file.flush()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self.write(collected=len(ids))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:  # with workers, they collect
            self.write(collected=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(test=nodeid, outcome="running")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        outcome: str = report.outcome
        self.any_passed |= report.when == "call" and report.passed
        recorded = dict(report.user_properties)
        if report.skipped:
            outcome = "xfailed" if hasattr(report, "wasxfail") else "not here"
            if NOT_REACHED in report.longreprtext:
                outcome = "not reached"
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else report.longreprtext
        message = text[:LONGEST_MESSAGE] if report.failed else ""
        self.write(
            test=report.nodeid, outcome=outcome, seconds=round(report.duration, 2), message=message,
            **recorded,
        )  # fmt: skip
        if recorded or report.failed:
            reporter = self.config.pluginmanager.getplugin("terminalreporter")
            words = (f"{key} {value}" for key, value in recorded.items())
            reporter.write_line(f"{outcome:8} {report.nodeid.split('::')[-1]}  {', '.join(words)}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.any_passed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED  # it ran no tests


class BrokenDevice:
    """In a worker: ends it after a test that left its GPU in an error that nothing clears."""

    def __init__(self) -> None:
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    @pytest.hookimpl(trylast=True)  # after the worker has reported the failure
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.failed and is_broken():
            os._exit(1)
        self.failed = False


def is_broken() -> bool:
    """Whether every further call of CUDA in this process fails."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def summary(file: Path) -> list[str]:
    """The results of the tests: a line of counts, failures, and tests that never ended."""
    lines = read(file)
    collected = max((line["collected"] for line in lines if "collected" in line), default=0)
    last = {line["test"]: line for line in lines if "test" in line}
    # A crash is reported after the failure that led to it; here the failure comes first.
    failed = {line["test"]: line for line in reversed(lines) if line.get("outcome") == "failed"}
    counts = Counter("failed" if name in failed else line["outcome"] for name, line in last.items())
    words = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    found = [f"{len(last) - counts['running']} of {collected} tests ended: {words or 'none'}"]
    for name, line in failed.items():
        message = line["message"].strip().splitlines() or ["no word"]
        found.append(f"FAILED {name}: {message[0][:200]}")
    found += [
        f"never ended: {name}"
        for name, line in last.items()
        if line["outcome"] == "running" and name not in failed
    ]
    return found
