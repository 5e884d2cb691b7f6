"""Whether results depend, to the bit, on the batch around a sample or on the number of threads.

docs/limits.md says for which they do not.
"""

import pytest
import torch

import fastnorm
from tests.conftest import BACKENDS, DEVICE, make_input, running
from tests.norms import NORMS, STATS, call, forward_backward, make_params

PER_SAMPLE = ("in", "ln", "rms", "gn", "bn_eval", "in_eval", "mean_eval")
SMALL, LARGE = (6, 4, 7, 5), (4, 16, 48, 48)


def of_batch(norm, x, parameters, dy, **options):
    """y and dx."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = call(fastnorm.functional, norm, x, parameters, **options)
    return y.detach(), torch.autograd.grad(y, x, dy)[0]


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
    options = {"activation": activation, "residual": make_input(SMALL, dtype=dtype, seed=7)}

    def part(which):
        chosen = options | {"residual": options["residual"][which]}
        return of_batch(norm, x[which], parameters, dy[which], **chosen)

    with running(backend):
        whole = of_batch(norm, x, parameters, dy, **options)
        for which in ([2], [0, 2, 5], [5, 4, 3, 2, 1, 0]):
            for mine, of_all in zip(part(which), whole, strict=True):
                assert torch.equal(mine, of_all[which])


@pytest.mark.skipif(DEVICE != "cpu", reason="threads of a CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_nothing_depends_on_the_number_of_threads(norm, layout, dtype):
    """Outputs, gradients of parameters too, and running statistics; of torch's own some do."""
    x, dy = (make_input(LARGE, layout, dtype, seed=seed) for seed in (0, 8))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            p = make_params(norm, LARGE, dtype=torch.float32, requires_grad=True)
            with running("cpu"):
                results = forward_backward(fastnorm.functional, norm, leaf(x), p, dy)
            found.append(results | {name: p[name] for name in STATS if p[name] is not None})
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        for name, expected in found[0].items():
            assert torch.equal(others[name], expected), name


def leaf(x):
    return x.detach().requires_grad_()
