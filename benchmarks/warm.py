"""`python -m benchmarks.warm --quick`: compiles for benchmarks.run in advance, in many processes.

Triton and torch.compile keep compiled code on the disk: a later run finds it there, and can spend
its time on timing. Each provider takes one step of each case; errors are left to the run, which
reports them in its rows.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import fastnorm
from benchmarks import run
from benchmarks.check import step
from benchmarks.inputs import make_inputs
from benchmarks.providers import DEFAULT, FACTORIES
from benchmarks.timing import clock, versions


def take_a_step(cases: str, number: int, name: str) -> str | None:
    """One forward and backward of a case of the list `cases`; returns the error, or None."""
    try:
        case, provider, device = run.LISTS[cases]()[number], FACTORIES[name](), clock()
        about = versions()
        backend = "triton" if about["gpu"] or about["interpreted"] else "auto"
        if provider.serves(case):
            with fastnorm.use_backend(backend), device.session(), provider.setting():
                step(provider.bind(case), case.op, make_inputs(case, device.device))
                device.synchronize()
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}".partition("\n")[0]
    return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    run.add_cases(parser)
    parser.add_argument("--providers", nargs="+", choices=list(FACTORIES), default=DEFAULT)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    tasks = [
        (args.cases, number, name)
        for number in range(len(run.LISTS[args.cases]()))
        for name in args.providers
        if name != "eager"
    ]
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        futures = [pool.submit(take_a_step, *task) for task in tasks]
        raised = [error for each in as_completed(futures) if (error := each.result())]
    print(f"{len(tasks)} steps, {len(raised)} raised", *dict.fromkeys(raised), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
