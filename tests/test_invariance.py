"""Whether results depend, to the bit, on the batch around a sample or on the number of threads.

docs/limits.md says for which they do not.
"""

import pytest
import torch

import fastnorm
from tests.conftest import BACKENDS, DEVICE, make_input, running
from tests.norms import NORMS, OF_ROWS, STATS, call, forward_backward, make_params

PER_SAMPLE = ("in", "ln", "rms", "gn", "bn_eval", "in_eval", "mean_eval")
SMALL, LARGE = (6, 4, 7, 5), (4, 16, 48, 48)
SUBSETS = ([2], [0, 2, 5], [5, 4, 3, 2, 1, 0])  # of the samples of SMALL


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU a tiling may follow the size of the batch")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", PER_SAMPLE)
@pytest.mark.parametrize(
    ("backend", "activation"), [*((backend, "relu") for backend in BACKENDS), ("cpu", "gelu")]
)
def test_no_sample_depends_on_its_batch(backend, activation, norm, dtype):
    """Alone, among others, elsewhere in the batch: the same bits, forward and backward.

    reference not with SiLU and GELU, which torch rounds otherwise in the elements that fill no
    vector of a CPU.
    """
    x, dy = (make_input(SMALL, dtype=dtype, seed=seed, mean=seed / 9) for seed in (0, 8))
    parameters = make_params(norm, SMALL, dtype=torch.float32)
    residual = make_input(SMALL, dtype=dtype, seed=7)

    def fused(x, residual):
        options = {"activation": activation, "residual": residual}
        return call(fastnorm.functional, norm, x, parameters, **options)

    with running(backend):
        assert_of_each_sample(fused, (x, residual), dy)


def modulation_of(norm, shape, dtype):
    """scale and shift: of each sample and channel, or of each element of a row."""
    size = shape if norm in OF_ROWS else shape[:2]
    return [make_input(size, dtype=dtype, seed=seed) for seed in (20, 21)]


def with_gradients(compute, tensors, dy):
    """y, and the gradients of all tensors."""
    leaves = [leaf(t) for t in tensors]
    y = compute(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def assert_of_each_sample(compute, tensors, dy):
    """y and the gradients of `tensors`, all of which have a part of each sample."""
    whole = with_gradients(compute, tensors, dy)
    for which in SUBSETS:
        part = with_gradients(compute, [t[which] for t in tensors], dy[which])
        for mine, of_all in zip(part, whole, strict=True):
            assert torch.equal(mine, of_all[which])


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU a tiling may follow the size of the batch")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", PER_SAMPLE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_modulated_sample_depends_on_its_batch(backend, norm, dtype):
    """Gradients of scale and shift too."""
    x, dy = (make_input(SMALL, dtype=dtype, seed=seed, mean=seed / 9) for seed in (0, 8))
    parameters = make_params(norm, SMALL, dtype=torch.float32)

    def modulated(x, scale, shift):
        return call(fastnorm.functional, norm, x, parameters, scale=scale, shift=shift)

    with running(backend):
        assert_of_each_sample(modulated, (x, *modulation_of(norm, SMALL, dtype)), dy)


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU a tiling may follow the size of the batch")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("group_size", [None, 12])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_no_gated_sample_depends_on_its_batch(backend, group_size, before, dtype):
    """reference not: its SiLU is torch's."""
    x, gate, dy = (make_input((6, 5, 36), dtype=dtype, seed=seed) for seed in (0, 7, 8))
    weight = make_input((36,), dtype=torch.float32, seed=1)

    def gated(x, gate):
        return fastnorm.functional.gated_rms_norm(
            x, gate, weight, group_size=group_size, norm_before_gate=before
        )

    with running(backend):
        assert_of_each_sample(gated, (x, gate), dy)


@pytest.mark.skipif(DEVICE != "cpu", reason="threads of a CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_nothing_depends_on_the_number_of_threads(norm, layout, dtype):
    """Outputs, gradients of parameters too, and running statistics; of torch's own some do."""
    x, dy = (make_input(LARGE, layout, dtype, seed=seed) for seed in (0, 8))

    def compute():
        p = make_params(norm, LARGE, dtype=torch.float32, requires_grad=True)
        results = forward_backward(fastnorm.functional, norm, leaf(x), p, dy)
        return [*results.values(), *(p[name] for name in STATS if p[name] is not None)]

    assert_of_any_number_of_threads(compute)


@pytest.mark.skipif(DEVICE != "cpu", reason="threads of a CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_nothing_modulated_depends_on_the_number_of_threads(norm, layout, dtype):
    x, dy = (make_input(LARGE, layout, dtype, seed=seed) for seed in (0, 8))
    tensors = (x, *modulation_of(norm, LARGE, dtype))

    def compute():
        p = make_params(norm, LARGE, dtype=torch.float32, requires_grad=True)
        own = [t for t in p.values() if t is not None and t.requires_grad]

        x, scale, shift = leaves = [leaf(t) for t in tensors]
        y = call(fastnorm.functional, norm, x, p, scale=scale, shift=shift)
        return [y.detach(), *torch.autograd.grad(y, [*leaves, *own], dy)]

    assert_of_any_number_of_threads(compute)


@pytest.mark.skipif(DEVICE != "cpu", reason="threads of a CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("group_size", [None, 64])
def test_nothing_gated_depends_on_the_number_of_threads(group_size, before, dtype):
    x, gate, dy = (make_input((500, 256), dtype=dtype, seed=seed) for seed in (0, 7, 8))
    weight = make_input((256,), dtype=torch.float32, seed=1)

    def gated(x, gate, weight):
        return fastnorm.functional.gated_rms_norm(
            x, gate, weight, group_size=group_size, norm_before_gate=before
        )

    assert_of_any_number_of_threads(lambda: with_gradients(gated, (x, gate, weight), dy))


def assert_of_any_number_of_threads(compute):
    """The tensors that `compute` answers, under the engine for CPUs."""
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with running("cpu"):
                found.append(compute())
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        for i, (mine, expected) in enumerate(zip(others, found[0], strict=True)):
            assert torch.equal(mine, expected), f"tensor {i}"


def leaf(x):
    return x.detach().requires_grad_()
