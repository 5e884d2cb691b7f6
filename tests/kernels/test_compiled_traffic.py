"""A cluster's tile stays in registers: compiled, each tensor is read or written once for each unit.

The interpreter runs the kernels of the cluster tier in halves, so test_traffic.py cannot tell.
"""

import json

import pytest

from tests.kernels.compiling import output_of

# What a pass loads and stores. The mask of bits is of an eighth of the elements.
EXPECTED = {
    ("plain", "forward"): ["load x", "store y"],
    ("plain", "backward"): ["load dy", "load x", "store dx"],
    ("add", "forward"): ["load addend", "load x", "store sum", "store y"],
    ("add", "backward"): ["load dsum", "load dy", "load x", "store dx"],
    ("residual_relu", "forward"): ["load residual", "load x", "store bits", "store y"],
    ("residual_relu", "backward"): [
        "load bits", "load dy", "load x", "store dresidual", "store dx",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def kernels():
    return json.loads(output_of("tests.kernels.compiled_traffic"))


def test_each_tensor_is_touched_once(kernels):
    assert {(kernel["case"][0], kernel["case"][3]) for kernel in kernels} == {
        (norm, way)
        for norm in ("bn", "in", "bin", "gn", "ln", "rms")
        for way in ("forward", "backward")
    }
    for kernel in kernels:
        *_, fusion, direction = kernel["case"]
        rows = "row_norm" if kernel["case"][0] in ("ln", "rms") else "resident"
        backward = "_backward" if direction == "backward" else ""
        assert kernel["kernel"] == f"{rows}{backward}_kernel"
        found = sorted(f"{a['kind']} {a['tensor']}" for a in kernel["accesses"])
        assert found == EXPECTED[fusion, direction], kernel


def test_in_the_loop_over_units_and_nowhere_deeper(kernels):
    """No branch either; and the compiler has made one set of instructions of it."""
    for kernel in kernels:
        for access in kernel["accesses"]:
            assert access["regions"] == ["for"], kernel["case"]
            assert access["times"] == 1, (kernel["case"], access)
            assert access["whole"] == (access["tensor"] != "bits")
