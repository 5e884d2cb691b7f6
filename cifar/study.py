"""The whole study, norm against norm, in one command: python cifar/study.py --output DIR."""

import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from harness.config import flag_words
from harness.environment import commit
from harness.errors import UserError, run_script
from harness.files import RunFolder, require_file, write_json
from harness.plan import PlannedRun, StudyConfig, planned
from harness.progress import counted

HERE = Path(__file__).parent
POLL = 0.2  # seconds
STOPPED = 3  # exit code of a study that --seconds ended: call again


def command_line(script: str, flags: dict[str, Any]) -> list[str]:
    """The command for another script of this folder."""
    return [sys.executable, str(HERE / script), *flag_words(flags)]


def speed_flags(study: StudyConfig) -> dict[str, Any]:
    """The study's flags that speed.py has too."""
    norms = tuple(dict.fromkeys(name.split("-")[0] for name in study.variants))
    shared = study.settings() | {"compile": None}  # speed.py measures both unless told otherwise
    return {**shared, "norms": norms, "output": study.output / "speed.jsonl"}


class Job:
    """A running script; its output goes to a log."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self.log, self.start = name, log, time.perf_counter()
        log.parent.mkdir(parents=True, exist_ok=True)
        require_file(log)
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )

    def outcome(self) -> str:
        """One line, after its end."""
        seconds = f"{time.perf_counter() - self.start:,.0f} s"
        if self.process.returncode == 0:
            return f"{self.name}: done, {seconds}"
        lines = self.log.read_text().strip().splitlines()
        return f"{self.name}: FAILED, {seconds}: {lines[-1] if lines else 'no word'}"


class Jobs:
    """The running jobs, at most --jobs at a time, until --seconds are over."""

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.console = Console(soft_wrap=True, highlight=False, markup=False)
        self.deadline = time.perf_counter() + (config.seconds or float("inf"))
        self.running: list[Job] = []
        self.failed: list[str] = []

    def out_of_time(self) -> bool:
        """Whether --seconds are over."""
        return time.perf_counter() >= self.deadline

    def start(self, name: str, command: list[str]) -> bool:
        """Run `command` as soon as fewer than --jobs run; False if time is up before."""
        while len(self.running) >= self.config.jobs and not self.out_of_time():
            self.collect()
        if self.out_of_time():
            return False
        self.running.append(Job(name, command, self.config.output / "logs" / f"{name}.log"))
        return True

    def collect(self) -> None:
        """Wait a little; report the jobs that ended."""
        time.sleep(POLL)
        for job in [job for job in self.running if job.process.poll() is not None]:
            self.running.remove(job)
            self.console.print(job.outcome())
            if job.process.returncode != 0:
                self.failed.append(job.name)

    def finish(self) -> None:
        """Wait for all jobs, or until time is up."""
        while self.running and not self.out_of_time():
            self.collect()

    def stop(self) -> None:
        """End the jobs at once; the files that they saved stay."""
        for job in self.running:
            job.process.terminate()
        for job in self.running:
            job.process.wait()

    def run(self, runs: list[PlannedRun]) -> bool:
        """Measure speed, alone, then train all of `runs`; False if time was up before the end."""
        if "speed" in self.config.parts:
            self.start("speed", command_line("speed.py", speed_flags(self.config)))
            self.finish()
        for run in runs:
            name = f"{run.name}-seed{run.config.seed}"
            if not self.start(name, command_line("train.py", vars(run.config))):
                return False
        self.finish()
        return not self.running


def left(runs: list[PlannedRun]) -> list[PlannedRun]:
    """The runs that are not finished. Raises UserError if another study's run is in the way."""
    found = []
    for run in runs:
        assert run.config.output is not None
        run.config.check()
        if not RunFolder(run.config.output).finished(run.config.record()):
            found.append(run)
    return found


def describe(config: StudyConfig, runs: list[PlannedRun]) -> dict[str, Any]:
    """study.json: the planned runs, which the report compares with the finished ones."""
    flags = {
        name: value
        for name, value in asdict(config).items()
        if name not in ("output", "data_dir", "seconds", "jobs")
    }
    return {
        **flags,
        "planned": [{"name": r.name, "seed": r.config.seed, "part": r.part} for r in runs],
        "commit": commit(),
    }


def main() -> None:
    """The command line."""
    config = tyro.cli(StudyConfig)
    config.check()
    runs = planned(config)
    todo = left(runs)
    write_json(config.output / "study.json", describe(config, runs))
    # `timeout` and batch systems end a study by SIGTERM; as an exception it also ends the runs.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))
    jobs = Jobs(config)
    jobs.console.print(f"{counted(len(runs), 'run')}, {len(runs) - len(todo)} finished before")
    try:
        complete = jobs.run(todo)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("give the same command again to go on") from None
    finally:
        jobs.stop()
    if jobs.failed:
        raise UserError(f"failed: {', '.join(jobs.failed)}; see {config.output / 'logs'}")
    if not complete:
        jobs.console.print("time is up; call again to go on")
        sys.exit(STOPPED)
    jobs.console.print(f"finished; now: python cifar/report.py {config.output}")


if __name__ == "__main__":
    run_script(main)
