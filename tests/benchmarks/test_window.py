"""The plans for a GPU's minutes: limits are kept, whatever a part does, and all is reported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import parts, pytest_lines, window
from benchmarks.parts import PLANS, Part, Settings

ROOT = Path(__file__).parents[2]
GONE = 20  # seconds, on a busy machine, until what was killed is seen to be gone


def script(name: str, code: str, seconds: float = 60, **more: object) -> Part:
    return Part(name, seconds, (sys.executable, "-c", code), **more)  # type: ignore[arg-type]


def outcomes(ended: list[window.Ended]) -> dict[str, str]:
    return {each.part.name: each.outcome for each in ended}


def alive(pid: int) -> bool:
    """Whether the process runs: a zombie has ended."""
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_each_part_has_its_turn_whatever_became_of_the_others(tmp_path: Path, capfd) -> None:
    ended = window.run_plan(
        [
            script("right", "print('a word')"),
            script("wrong", "print('another'); raise SystemExit(2)"),
            script("later", "raise SystemExit(3)", resumes=True),
            script("broken", "raise SystemExit(3)"),
            script("last", ""),
        ],
        tmp_path,
        60,
    )
    assert outcomes(ended) == {
        "right": "passed", "wrong": "failed", "later": "call again",
        "broken": "failed", "last": "passed",
    }  # fmt: skip
    assert (tmp_path / "right.log").read_text() == "a word\n"
    assert "another\n" in capfd.readouterr().out
    assert window.last_line(ended, tmp_path) == (
        f"passed: right, last; failed: wrong, broken; call again: later; files: {tmp_path}"
    )


def test_a_part_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    """It ignores the polite signal, and its child holds the pipe that it prints to."""
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(os.getpid(), child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    begin = time.monotonic()
    (ended,) = window.run_plan([script("hangs", code, seconds=3)], tmp_path, 60)
    assert ended.outcome == "timed out" and ended.detail == "killed after 3 s"
    assert time.monotonic() - begin < 3 + 2 * window.KILL_SECONDS
    pids = list(map(int, (tmp_path / "hangs.log").read_text().split()))
    deadline = time.monotonic() + GONE
    while any(map(alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_terminated_window_leaves_no_part_behind(tmp_path: Path) -> None:
    code = (
        "from benchmarks import window\n"
        "from benchmarks.parts import PLANS, Part, Plan\n"
        "sleeps = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'\n"
        "part = Part('sleeps', 600, (window.sys.executable, '-c', sleeps))\n"
        "PLANS['gpu'] = Plan(600, lambda settings: [part])\n"
        f"window.main(['gpu', '--out', {str(tmp_path)!r}])\n"
    )
    log = tmp_path / "sleeps.log"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL) as it:
        while not (log.exists() and log.read_text().endswith("\n")):
            assert it.poll() is None
            time.sleep(0.05)
        it.terminate()
    assert it.returncode == 128 + signal.SIGTERM
    deadline = time.monotonic() + GONE
    while alive(int(log.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_plan_has_a_limit_of_its_own(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(600)"
    ended = window.run_plan([script("long", sleep), script("after", "")], tmp_path, 2)
    assert outcomes(ended) == {"long": "timed out", "after": "not begun"}


def test_a_part_waits_for_what_it_needs(tmp_path: Path) -> None:
    needs = script("clusters", "", after=("smoke",))
    ended = window.run_plan([script("smoke", "raise SystemExit(1)"), needs], tmp_path, 60)
    assert outcomes(ended) == {"smoke": "failed", "clusters": "not begun"}
    assert "smoke did not pass" in window.table(ended, tmp_path)[1]
    assert outcomes(window.run_plan([needs.alone()], tmp_path, 60)) == {"clusters": "passed"}


@pytest.mark.parametrize(("name", "most"), [("gpu", 360), ("tune", 90), ("study", 240)])
def test_the_parts_fit_the_plan(name: str, most: int, tmp_path: Path) -> None:
    """With seconds to spare for what `make` does first."""
    plan = PLANS[name]
    found = plan.parts(Settings(tmp_path, data=tmp_path / "archive"))
    assert sum(part.seconds for part in found) <= plan.seconds <= most
    assert len({part.name for part in found}) == len(found)
    for part in found:
        assert set(part.after) <= {other.name for other in found}


def test_the_limits_of_the_first_window() -> None:
    seconds = {part.name: part.seconds for part in PLANS["gpu"].parts(Settings(Path("out")))}
    assert seconds["smoke"] + seconds["smoke-clusters"] <= 60
    assert seconds["test"] <= 120
    assert sum(each for name, each in seconds.items() if name.startswith("bench")) <= 150


def test_a_rehearsal_has_the_same_parts(tmp_path: Path) -> None:
    for plan in PLANS.values():
        real, rehearsed = (
            [part.name for part in plan.parts(Settings(tmp_path, rehearse))]
            for rehearse in (False, True)
        )
        assert real == rehearsed


def test_the_files_of_the_tests_exist() -> None:
    assert all((ROOT / file).exists() for file in parts.TESTS)


# --- a line for each test ---

TESTS = """
import os, time
def test_right(record_property):
    record_property("error", "1e-7")
def test_wrong():
    assert 1 + 1 == 3, "sums"
def test_killed():
    os._exit(1)
def test_hangs():
    time.sleep(600)
"""


def run_pytest(folder: Path, *words: str, plugin: str = "benchmarks.pytest_lines") -> Path:
    """The lines of pytest on test_it.py in the folder."""
    file = folder / "lines.jsonl"
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", plugin, "--lines", str(file),
        "-c", os.devnull, "--rootdir", str(folder), *words, str(folder / "test_it.py"),
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    env["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(folder)))
    subprocess.run(command, cwd=ROOT, env=env, timeout=120, check=False)
    return file


@pytest.mark.slow
def test_lines_tell_of_tests_that_crash_or_hang(tmp_path: Path) -> None:
    """Each costs its process and no other test; the file has every word before the next test."""
    (tmp_path / "test_it.py").write_text(TESTS)
    file = run_pytest(tmp_path, "-n", "2", "--timeout", "5", "--timeout-method", "thread")
    told = pytest_lines.summary(file)
    assert told[0] == "4 of 4 tests ended: 3 failed, 1 passed"
    assert any(line.endswith("test_wrong: AssertionError: sums") for line in told)
    for name in ("test_killed", "test_hangs"):
        assert any(line.startswith("FAILED") and f"::{name}: " in line for line in told)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    (right,) = [line for line in lines if line.get("outcome") == "passed"]
    assert right["error"] == "1e-7" and right["test"].endswith("::test_right")


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_what_would_begin_too_late_is_told(workers: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import time\n"
        "def test_first(request):\n"
        "    plugins = request.config.pluginmanager.get_plugins()\n"
        "    (until,) = [plugin for plugin in plugins if hasattr(plugin, 'not_after')]\n"
        "    assert until.not_after > time.time()\n"
        "    until.not_after = 0.0\n"
        "def test_second():\n"
        "    pass\n"
    )
    told = pytest_lines.summary(run_pytest(tmp_path, *workers, "--seconds", "600"))
    assert told == ["2 of 2 tests ended: 1 not reached, 1 passed"]


def test_a_run_that_reached_no_test_has_not_passed(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it():\n    pass\n")
    lines = tmp_path / "lines.jsonl"
    words = ("-q", "-p", "benchmarks.pytest_lines", "--lines", str(lines), "--seconds", "0")
    command = (sys.executable, "-m", "pytest", "-c", os.devnull, *words, str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert pytest_lines.summary(lines) == ["1 of 1 tests ended: 1 not reached"]


def test_a_test_that_was_cut_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    lines = (
        {"collected": 3},
        {"test": "a", "outcome": "running"},
        {"test": "a", "outcome": "passed"},
        {"test": "b", "outcome": "running"},
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"test": "c", "out')
    assert pytest_lines.summary(file) == [
        "1 of 3 tests ended: 1 passed, 1 running", "never ended: b",
    ]  # fmt: skip
    assert pytest_lines.summary(tmp_path / "none") == ["0 of 0 tests ended: none"]


def test_a_broken_device_costs_one_process(tmp_path: Path) -> None:
    """An illegal access fails every later test of its process, unless that ends."""
    (tmp_path / "test_it.py").write_text(
        "import broken, pytest\n"
        "@pytest.mark.parametrize('k', range(6))\n"
        "def test_it(k):\n"
        "    broken.now |= k == 0\n"
        "    assert not broken.now, 'illegal memory access'\n"
    )
    (tmp_path / "broken.py").write_text(
        "from benchmarks import pytest_lines\n"
        "from benchmarks.pytest_lines import pytest_addoption, pytest_configure\n"
        "now = False\n"
        "pytest_lines.is_broken = lambda: now\n"
    )
    file = run_pytest(tmp_path, "-n", "1", plugin="broken")
    told = pytest_lines.summary(file)
    assert told[0] == "6 of 6 tests ended: 1 failed, 5 passed"
    assert told[1].endswith("test_it[0]: AssertionError: illegal memory access")


# --- through make ---


def make(*words: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "MAKE"))}
    command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=3000)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a busy machine's: twenty seconds of its time
def test_a_part_through_make(tmp_path: Path) -> None:
    """The smoke's clusters, interpreted, as they are called where there is a GPU."""
    done = make("gpu", f"OUT={tmp_path}", "REHEARSE=1", "PARTS=smoke-clusters")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"passed: smoke-clusters; files: {tmp_path}"
    lines = [json.loads(line) for line in (tmp_path / "smoke-clusters.jsonl").open()]
    ended = [line for line in lines if line.get("outcome") == "passed"]
    assert len(ended) >= 13 and all(line["kernels"] and line["error"] for line in ended)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", ["gpu", "gpu-tune", "gpu-study"])
def test_the_whole_rehearsal(target: str, tmp_path: Path) -> None:
    done = make(target, f"OUT={tmp_path}", "REHEARSE=1")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    names = ", ".join(part.name for part in PLANS[target.removeprefix("gpu-")].parts(
        Settings(tmp_path, rehearse=True)))  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"passed: {names}; files: {tmp_path}"
