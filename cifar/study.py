"""The whole study, norm against norm, in one command: python cifar/study.py --output DIR."""

import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tyro
from backends import commit
from config import TrainConfig
from errors import UserError, run_script
from files import RunFolder, write_json
from plan import Run, StudyConfig, planned
from rich.console import Console

HERE = Path(__file__).parent
POLL = 0.2  # seconds
STOPPED = 3  # the exit code of a study that --seconds ended: call again


def command_line(script: str, flags: dict[str, Any]) -> list[str]:
    """The flags of a tyro dataclass, as a user would type them; None is left to the default."""
    words = [sys.executable, str(HERE / script)]
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words


def train_flags(config: TrainConfig) -> dict[str, Any]:
    """All fields of a run."""
    return {field.name: getattr(config, field.name) for field in fields(config)}


def speed_flags(study: StudyConfig) -> dict[str, Any]:
    """What speed.py has in common with the study."""
    norms = tuple(dict.fromkeys(name.split("-")[0] for name in study.variants))
    shared = study.settings() | {"compile": None}  # speed.py measures both unless told otherwise
    return {**shared, "norms": norms, "output": study.output / "speed.jsonl"}


class Job:
    """A script at work; what it prints goes to a log."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self.log, self.start = name, log, time.perf_counter()
        log.parent.mkdir(parents=True, exist_ok=True)
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


class Study:
    """What is left to do, and a few jobs that do it."""

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
        """End the jobs at once; what they have saved stays."""
        for job in self.running:
            job.process.terminate()
        for job in self.running:
            job.process.wait()

    def run(self, runs: list[Run]) -> bool:
        """Measure speed, alone, then train all of `runs`; False if time was up before the end."""
        if "speed" in self.config.parts:
            self.start("speed", command_line("speed.py", speed_flags(self.config)))
            self.finish()
        for run in runs:
            name = f"{run.name}-seed{run.config.seed}"
            if not self.start(name, command_line("train.py", train_flags(run.config))):
                return False
        self.finish()
        return not self.running


def left(runs: list[Run]) -> list[Run]:
    """Those that are not finished. Raises UserError where another study's run is in the way."""
    found = []
    for run in runs:
        assert run.config.output is not None
        run.config.check()
        if not RunFolder(run.config.output).finished(run.config.record()):
            found.append(run)
    return found


def describe(config: StudyConfig, runs: list[Run]) -> dict[str, Any]:
    """study.json: what was asked for, which the report holds against what is there."""
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
    # `timeout` and batch systems end a study so; as an exception it ends the runs as well.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))
    study = Study(config)
    study.console.print(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished before")
    try:
        complete = study.run(todo)
    finally:
        study.stop()
    if study.failed:
        raise UserError(f"failed: {', '.join(study.failed)}; see {config.output / 'logs'}")
    if not complete:
        study.console.print("time is up; call again to go on")
        sys.exit(STOPPED)
    study.console.print(f"finished; now: python cifar/report.py {config.output}")


if __name__ == "__main__":
    run_script(main)
