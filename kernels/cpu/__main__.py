"""`python -m fastnorm.kernels.cpu`: compile the engine of CPUs before it is needed."""

from .build import BuildError, compile_all, folder

if __name__ == "__main__":
    try:
        compiled = compile_all()
    except BuildError as error:
        raise SystemExit(f"{error}\nUntil then CPU tensors take torch's own norms.") from None
    for name, seconds in compiled:
        print(f"{name}: compiled in {seconds:.1f} s")
    print(f"the engine of CPUs is in {folder()}")
