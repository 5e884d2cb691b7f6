"""`python -m tests.kernels_cpu.all_cases FOLDER FLAG...`: runs all checked calls of an engine that
is compiled with more flags into FOLDER; for tests that need this in a separate process."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastnorm.kernels.cpu import build
from tests.kernels_cpu import cases, gated_cases, sample_cases


def checked() -> Iterator[tuple[Any, float]]:
    """Each call, and its error as a multiple of what is allowed."""
    for case in cases.cases():
        yield case, cases.check(case)
    for dtype in cases.DTYPES:
        for norm in cases.NORMS[-2:]:
            yield (dtype, norm), cases.check_add_norm(dtype, norm)
        yield dtype, cases.check_weight_norm(dtype)
        for norm in sample_cases.CHANNEL_NORMS:
            for channels in sample_cases.channel_cases(norm, dtype):
                yield channels, sample_cases.check(channels)
        for norm in sample_cases.ROW_NORMS:
            for rows in sample_cases.row_cases(norm, dtype):
                yield rows, sample_cases.check(rows)
        for gated in gated_cases.cases(dtype):
            yield gated, gated_cases.check(gated)


def main() -> int:
    folder, flags = Path(sys.argv[1]), sys.argv[2:]
    os.environ.pop("LD_PRELOAD", None)  # of a sanitizer, which is not for the compiler
    for dtype, name in build.DTYPES.items():
        build.compile_library(name, folder / f"{name}.so", *flags)
        build.LOADED[dtype] = build._open(folder / f"{name}.so", name)
    found = dict(checked())
    wrong = {case: error for case, error in found.items() if error > 1}
    print(f"{len(found)} cases, {len(wrong)} wrong", *wrong.items(), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
