"""`python -m fastnorm.kernels.cpu`: compile the engine for CPUs before it is needed."""

import argparse

from .build import BuildError, compile_all, folder


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m fastnorm.kernels.cpu",
        description="Compile fastnorm's engine for CPUs, for all dtypes that are not compiled yet. "
        "Exit code 1 if it cannot be compiled.",
    ).parse_args()
    try:
        compiled = compile_all()
    except BuildError as error:
        raise SystemExit(f"{error}\nUntil then CPU tensors take torch's own norms.") from None
    for name, seconds in compiled:
        print(f"{name}: compiled in {seconds:.1f} s")
    print(f"the engine of CPUs is in {folder()}")


if __name__ == "__main__":
    main()
