"""Every kernel compiles to machine code for a GPU, with or without one here.

The interpreter accepts much that the compiler does not: so this test finds such code without a GPU.
It runs in a separate process, because this one's kernels may be interpreted.
"""

import pytest

from tests.kernels.compiling import output_of

KERNELS = {
    "resident_kernel",
    "resident_backward_kernel",
    "row_norm_kernel",
    "row_norm_backward_kernel",
    "cluster_kernel",
    "cluster_backward_kernel",
    "several_tiles_kernel",
    "several_tiles_backward_kernel",
    "several_tiles_row_kernel",
    "moments_kernel",
    "apply_kernel",
    "gradient_sums_kernel",
    "apply_backward_kernel",
    "row_moments_kernel",
    "row_apply_kernel",
    "row_sums_kernel",
    "row_dx_kernel",
    "add_shares_kernel",
    "weight_norm_kernel",
    "weight_norm_backward_kernel",
}


def compiled(*arguments: str) -> list[tuple[str, int, int]]:
    """(name, registers, bytes of stack) of each kernel that compile_all.py compiled."""
    output = output_of("tests.kernels.compile_all", *arguments)
    rows = [line.split() for line in output.splitlines()]
    return [(name, int(registers), int(stack)) for name, registers, stack in rows]


@pytest.mark.slow  # tests/compiled runs what it compiles
def test_every_kernel_compiles():
    """bfloat16, contiguous, ReLU and residual, for compute capability 9.0."""
    kernels = compiled("90", "quick")
    assert {name for name, _, _ in kernels} == KERNELS


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_every_dtype_layout_and_activation_compiles(capability):
    assert {name for name, _, _ in compiled(capability)} == KERNELS
