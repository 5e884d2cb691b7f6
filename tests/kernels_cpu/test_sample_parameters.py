"""The engine for CPUs with parameters of each sample: (N, C), or several parameter rows."""

import pytest
import torch

from fastnorm.kernels.cpu import calls
from tests.kernels_cpu import sample_cases as cases

pytestmark = pytest.mark.no_kernel
ALL = (*cases.CHANNEL_NORMS, *cases.ROW_NORMS)


def chosen(norm, dtype):
    of = cases.row_cases if norm in cases.ROW_NORMS else cases.channel_cases
    return list(of(norm, dtype))


@pytest.mark.parametrize("norm", ALL)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_values(norm, dtype):
    all_of_it = chosen(norm, dtype)
    with calls.record() as called:
        errors = {case: cases.check(case) for case in all_of_it}
    assert len(called) == 2 * len(all_of_it) >= 28
    assert {case: error for case, error in errors.items() if error > 1} == {}


@pytest.mark.parametrize("norm", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_depends_on_the_number_of_threads(norm, dtype):
    threads = torch.get_num_threads()
    for case in chosen(norm, dtype):
        call, found = cases.make(case), []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(cases.results(*call))
        finally:
            torch.set_num_threads(threads)
        for others in found[1:]:
            assert all(torch.equal(others[name], found[0][name]) for name in others), case


ASKED = (("x",), ("weight",), ("bias",), ("residual",), ("x", "bias"), ("weight", "rho"))


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("norm", ALL)
def test_gradients_asked_for_in_part(norm, asked):
    """The same as of all: each pass of the backward is left out where nobody asks for it."""
    for case in chosen(norm, torch.float32):
        case = case._replace(given=("weight", "bias"))
        inputs, spec, dy = cases.make(case)
        whole = cases.results(inputs, spec, dy)
        cases.results(inputs, spec, -dy)  # what is left in freed memory
        some = cases.results(inputs, spec, dy, asked)
        assert set(some) == {"y"} | {n for n in asked if getattr(inputs, n) is not None}
        assert all(torch.equal(some[name], whole[name]) for name in some), case


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("norm", cases.CHANNEL_NORMS)
def test_equal_parameters_are_those_of_channels(norm, layout):
    """(N, C) of one row N times says the same as (C,); its gradients add up to that one's."""
    case = cases.Case(norm, (5, 12, 9, 7), (5, 12), torch.float32, layout, "silu")
    inputs, spec, dy = cases.make(case)
    one = inputs._replace(weight=inputs.weight[0], bias=inputs.bias[0])
    many = inputs._replace(weight=one.weight.expand(5, 12), bias=one.bias.expand(5, 12))
    expected, found = cases.results(one, spec, dy), cases.results(many, spec, dy)
    assert torch.equal(found["y"], expected["y"])
    torch.testing.assert_close(found["x"], expected["x"])
    for name in ("weight", "bias"):
        torch.testing.assert_close(found[name].sum(0), expected[name])


@pytest.mark.parametrize("norm", ["batch", "batch_instance"])
def test_running_statistics_do_not_depend_on_parameters(norm):
    case = cases.Case(norm, (4, 6, 5, 5), (4, 6), torch.float32)
    for layout in ("contiguous", "channels_last"):
        inputs, spec, _ = cases.make(case._replace(layout=layout))
        kept = []
        for weight, bias in ((inputs.weight, inputs.bias), (None, None)):
            running = [inputs.running_mean.clone(), inputs.running_var.clone()]
            cases.ENGINE.norm(inputs._replace(weight=weight, bias=bias, running_mean=running[0],
                                              running_var=running[1]), spec, False)  # fmt: skip
            kept.append(torch.stack(running))
        assert torch.equal(kept[0], kept[1])
        assert not torch.equal(kept[0][0], inputs.running_mean)
