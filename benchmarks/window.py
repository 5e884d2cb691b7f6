"""`python -m benchmarks.window gpu --out DIR`: all work for a GPU, within its minutes.

A plan is a list of parts. Each is a command in its own process with a hard limit in seconds: the
process and all that it started are killed. A part's output goes to the terminal and to DIR/PART.log
as it comes. Each plan ends with a table and, last, one line: which parts passed, and where the
files are. Exit code 0 if all passed, 3 if another call goes on.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.parts import PLANS, REHEARSED, Part, Settings

OUTCOMES = ("passed", "failed", "timed out", "not begun", "call again")
CALL_AGAIN = 3  # study.py's exit code: another call goes on (pytest's 3 is an internal error)
KILL_SECONDS = 5.0  # for a killed process to end: if the GPU is broken, it may hang


@dataclass(frozen=True)
class Ended:
    """The end of a part: `outcome` is one of OUTCOMES."""

    part: Part
    outcome: str
    seconds: float
    detail: str = ""


def run_part(part: Part, out: Path, limit: float) -> Ended:
    """Run the part for at most `limit` seconds."""
    begin = time.perf_counter()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **part.environment}
    with (out / f"{part.name}.log").open("wb") as log:
        process = subprocess.Popen(
            part.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        reader = threading.Thread(target=_copy, args=(process.stdout, log), daemon=True)
        reader.start()
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # its leftovers too, and all of it if this process is interrupted
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECONDS)
        reader.join(KILL_SECONDS)
    seconds = time.perf_counter() - begin
    if code is None:
        return Ended(part, "timed out", seconds, f"killed after {limit:.0f} s")
    if code == CALL_AGAIN and part.resumes:
        return Ended(part, "call again", seconds, "time was up; another call goes on")
    return Ended(part, "failed" if code else "passed", seconds, f"exit code {code}" if code else "")


def _copy(source: IO[bytes], log: IO[bytes]) -> None:
    """Copy to the log and the terminal, line by line, until all writers are gone."""
    for line in source:
        with contextlib.suppress(ValueError):  # the log is closed: a process outlived its part
            log.write(line)
            log.flush()
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def run_plan(parts: Sequence[Part], out: Path, seconds: float) -> list[Ended]:
    """All parts in turn, within `seconds` together."""
    deadline = time.perf_counter() + seconds
    ended: list[Ended] = []
    for part in parts:
        passed = {each.part.name for each in ended if each.outcome == "passed"}
        if not passed.issuperset(part.after):
            missing = ", ".join(name for name in part.after if name not in passed)
            ended.append(Ended(part, "not begun", 0.0, f"{missing} did not pass"))
            continue
        limit = min(part.seconds, deadline - time.perf_counter())
        if limit <= 0:
            ended.append(Ended(part, "not begun", 0.0, "no time was left"))
            continue
        print(f"== {part.name}, at most {limit:.0f} s", flush=True)
        ended.append(run_part(part, out, limit))
    return ended


def table(ended: Sequence[Ended], out: Path) -> list[str]:
    """A line for each part, with a summary of its files."""
    lines = []
    for each in ended:
        part = each.part
        limit = f"{each.seconds:6.1f} of {part.seconds:3.0f} s"
        lines.append(f"{part.name:22} {each.outcome:9} {limit}  {each.detail}".rstrip())
        lines += [f"    {line}" for line in part.tells(out)]
    return lines


def last_line(ended: Sequence[Ended], out: Path) -> str:
    """Which parts passed, which did not, and where the files are."""
    words = []
    for outcome in OUTCOMES:
        names = [each.part.name for each in ended if each.outcome == outcome]
        if names:
            words.append(f"{outcome}: {', '.join(names)}")
    return f"{'; '.join(words)}; files: {out}"


def parsed(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[Part]]:
    """The arguments, and the parts that they name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("plan", choices=list(PLANS))
    parser.add_argument("--out", type=Path, required=True, help="folder for all files")
    parser.add_argument("--parts", nargs="+", help="only these of the plan's parts")
    parser.add_argument("--data", type=Path, help="archive of images, for the study")
    parser.add_argument("--commit", help="for the rows, in a copy without git")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: tiny, interpreted")
    args = parser.parse_args(argv)
    parts = PLANS[args.plan].parts(Settings(args.out, args.rehearse, args.commit, args.data))
    if args.parts:
        unknown = ", ".join(set(args.parts) - {part.name for part in parts})
        if unknown:
            parser.error(f"no part {unknown}: there are {', '.join(part.name for part in parts)}")
        parts = [part.alone() for part in parts if part.name in args.parts]
    return args, parts


def main(argv: Sequence[str] | None = None) -> int:
    args, parts = parsed(argv)
    # As an exception it also ends the running part, which would otherwise outlive this process.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))
    args.out.mkdir(parents=True, exist_ok=True)
    seconds = PLANS[args.plan].seconds * (REHEARSED if args.rehearse else 1)
    ended = run_plan(parts, args.out, seconds)
    print("", *table(ended, args.out), last_line(ended, args.out), sep="\n", flush=True)
    found = {each.outcome for each in ended}
    if found <= {"passed", "call again"}:
        return CALL_AGAIN if "call again" in found else 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
