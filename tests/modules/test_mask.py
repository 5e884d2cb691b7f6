"""BatchNorm1d(mask=...): padding enters no statistic, whatever it holds."""

import copy

import pytest
import torch

import fastnorm
from tests.conftest import BACKENDS, DEVICE, LAYOUTS, assert_close, make_input, running

N, C, L = 4, 3, 6
LENGTHS = torch.tensor([6, 2, 0, 5])
MASK = (torch.arange(L) < LENGTHS[:, None]).to(DEVICE)


def make(**kwargs):
    module = fastnorm.BatchNorm1d(C, **kwargs).to(DEVICE, torch.float64)
    for i, parameter in enumerate(module.parameters()):
        parameter.data += 0.3 * make_input(parameter.shape, seed=40 + i)
    return module


def padded(layout="contiguous", seed=0, requires_grad=False):
    """NaN and infinity where nobody is to look."""
    x = make_input((N, C, L), layout, seed=seed)
    hidden = ~MASK[:, None, :].expand_as(x)
    x[hidden] = torch.tensor([torch.nan, torch.inf], device=DEVICE).double()[seed % 2]
    return x.requires_grad_(requires_grad)


def step(module, x, residual, dy, **kwargs):
    y = module(x, residual, **kwargs)
    return y, *torch.autograd.grad(y, [x, residual, *module.parameters()], dy)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_a_loop_over_sequences(backend, activation, training, layout):
    """The truth packs the sequences one behind the other, in torch."""
    module = make(activation=activation).train(training)
    exact = torch.nn.BatchNorm1d(C).to(DEVICE, torch.float64).train(training)
    exact.load_state_dict(module.state_dict())
    x, residual = padded(layout, 0, True), padded(seed=1, requires_grad=True)
    dy = make_input((N, C, L), seed=8)
    sequences = [x[n, :, : LENGTHS[n]].T for n in range(N)]
    z = exact(torch.cat(sequences)) + torch.cat([residual[n, :, : LENGTHS[n]].T for n in range(N)])
    z = z if activation is None else getattr(torch.nn.functional, activation)(z)
    weights = torch.cat([dy[n, :, : LENGTHS[n]].T for n in range(N)])
    truth = torch.autograd.grad(z, [x, residual, *exact.parameters()], weights)
    with running(backend):
        y, *grads = step(module, x, residual, dy, mask=MASK)
    parts = z.split(LENGTHS.tolist())
    for n in range(N):
        assert_close(y[n, :, : LENGTHS[n]], parts[n].T)
        assert (y[n, :, LENGTHS[n] :] == 0).all()
    for mine, right in zip(grads, truth, strict=True):
        assert_close(mine, right)
    for key, value in exact.state_dict().items():
        assert_close(module.state_dict()[key], value, key)


def test_a_mask_of_ones_changes_nothing():
    module, x = make(), make_input((N, C, L))
    twin = copy.deepcopy(module)
    everything = torch.ones(N, L, dtype=torch.bool, device=DEVICE)
    assert_close(module(x, mask=everything), twin(x))
    assert_close(module.running_var, twin.running_var)
    rows = make_input((N, C))
    chosen = torch.tensor([True, False, True, True], device=DEVICE)
    assert_close(module(rows, mask=chosen)[chosen], twin(rows[chosen]))


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.ones(N, L), RuntimeError),
        (torch.ones(N, C, L, dtype=torch.bool), RuntimeError),
        (torch.ones(N, dtype=torch.bool), RuntimeError),
        (torch.eye(N, L) * torch.tensor([1.0, 0, 0, 0])[:, None] > 0, ValueError),  # one value
    ],
)
def test_refusals_change_nothing(mask, error):
    module = make()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(error):
        module(make_input((N, C, L)), mask=mask.to(DEVICE))
    with pytest.raises(RuntimeError, match="residual"):
        module(make_input((N, C, L)), make_input((N, C, L + 1)), mask=MASK)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_all_padding_is_an_empty_batch():
    module = make()
    y = module(padded(), mask=torch.zeros_like(MASK))
    assert (y == 0).all()
    assert (module.running_mean == 0).all() and module.num_batches_tracked == 1
