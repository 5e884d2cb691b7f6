"""Modules with a process group's statistics, and their converter: tests with one process.

tests/distributed/ has the tests with several.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import fastnorm
from tests.conftest import DEVICE, NO_BIAS, assert_close, make_input, running

C = 4


# --- converting a model ---


def mixed_model():
    """Norms of both packages, nested, one without affine parameters and one without statistics."""
    torch.manual_seed(0)
    block = nn.Sequential(
        fastnorm.BatchNorm2d(C, activation="relu"),
        nn.BatchNorm2d(C, eps=1e-3, momentum=None),
        fastnorm.BatchInstanceNorm2d(C, activation="relu"),
    )
    return nn.Sequential(
        block,
        fastnorm.InstanceNorm2d(C, affine=True),
        fastnorm.GroupNorm(2, C),
        fastnorm.LayerNorm((C, 3, 2)),
        fastnorm.BatchNorm2d(C, affine=False, activation="gelu"),
        nn.BatchNorm2d(C, track_running_stats=False),
        fastnorm.BatchNorm2d(C, **NO_BIAS),
    ).to(DEVICE, torch.float64)


BATCH_NORMS = ("0.0", "0.1", "4", "5", "6")  # in mixed_model
MIXED = "0.2"
SETTINGS = ("num_features", "eps", "momentum", "affine", "track_running_stats")
CONVERTERS = {
    "function": fastnorm.convert_sync_batchnorm,
    "method": fastnorm.SyncBatchNorm.convert_sync_batchnorm,
}


@pytest.mark.parametrize("how", CONVERTERS)
def test_conversion_of_a_mixed_model(how):
    """Batch norms of either package and batch-instance norms become ours, the very objects."""
    model, group = mixed_model().eval(), object()
    model[4].train()
    before, tensors = dict(model.named_modules()), dict(model.state_dict(keep_vars=True))
    kinds = {key: type(module) for key, module in before.items()}
    settings = {
        key: {s: getattr(before[key], s) for s in SETTINGS} for key in (*BATCH_NORMS, MIXED)
    }
    modes = {key: module.training for key, module in before.items()}
    activations = {key: getattr(module, "activation", None) for key, module in before.items()}
    assert CONVERTERS[how](model, group) is model
    after = dict(model.named_modules())
    assert list(after) == list(before)
    for key, module in after.items():
        assert module is before[key] and module.training == modes[key], key
        if key not in settings:
            assert type(module) is kinds[key], key
            continue
        kind = fastnorm.SyncBatchInstanceNorm if key == MIXED else fastnorm.SyncBatchNorm
        assert type(module) is kind and module.process_group is group
        assert {s: getattr(module, s) for s in SETTINGS} == settings[key], key
        assert module.activation == activations[key]
    assert all(value is tensors[key] for key, value in model.state_dict(keep_vars=True).items())
    assert list(model.state_dict()) == list(tensors)


def test_conversion_of_a_batch_norm_itself():
    norm = fastnorm.BatchNorm1d(C, activation="silu", device=DEVICE)
    norm.qconfig = "mine"
    tensors = norm.weight, norm.running_var
    assert fastnorm.convert_sync_batchnorm(norm) is norm and norm.activation == "silu"
    assert type(norm) is fastnorm.SyncBatchNorm and norm.qconfig == "mine"
    assert norm.weight is tensors[0] and norm.running_var is tensors[1]
    group = object()
    assert fastnorm.convert_sync_batchnorm(norm, group).process_group is group


def test_conversion_keeps_pruning_hooks_and_attributes():
    """They are the instance's own: what it computes is as before."""
    norm = nn.BatchNorm2d(C, device=DEVICE, dtype=torch.float64)
    prune.l1_unstructured(norm, "weight", 2)
    norm.register_forward_hook(lambda module, inputs, y: y + 1)
    norm.weight_orig.data.uniform_(0.5, 1.0)
    norm.mine = 7
    x = make_input((3, C, 3, 2))
    expected = norm.eval()(x)
    converted = fastnorm.convert_sync_batchnorm(nn.Sequential(norm))[0]
    assert type(converted) is fastnorm.SyncBatchNorm and converted.mine == 7
    assert (converted.weight_mask == 0).sum() == 2
    assert_close(converted(x), expected, slack=1e-12)


class OnlyConstructs(nn.BatchNorm2d):
    """As models have it for other defaults."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-3, momentum=0.01)


class ForwardOfItsOwn(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class OursWithAMethod(fastnorm.BatchInstanceNorm2d):
    def reset_parameters(self):
        super().reset_parameters()


def test_a_subclass_that_only_constructs_is_converted(recwarn):
    norm = fastnorm.convert_sync_batchnorm(OnlyConstructs(C))
    assert type(norm) is fastnorm.SyncBatchNorm and (norm.eps, norm.momentum) == (1e-3, 0.01)
    assert not recwarn.list


def test_norms_with_ways_of_their_own_stay_and_are_named():
    parametrized, patched, marked = (nn.BatchNorm2d(C) for _ in range(3))
    parametrize.register_parametrization(parametrized, "weight", nn.Softplus())
    patched.forward = patched.forward
    marked.activation = "mine"
    lazy = nn.LazyBatchNorm2d()
    peculiar = [parametrized, patched, marked, lazy, ForwardOfItsOwn(C), OursWithAMethod(C)]
    model = nn.Sequential(*peculiar, fastnorm.BatchNorm2d(C))
    kinds = [type(module) for module in peculiar]
    with pytest.warns(UserWarning, match="statistics of each process") as warned:
        fastnorm.convert_sync_batchnorm(model)
    assert [type(module) for module in peculiar] == kinds
    assert type(model[6]) is fastnorm.SyncBatchNorm
    (message,) = (str(each.message) for each in warned)
    reasons = ("parametrized", "overridden", "called activation", "lazy", "subclass", "subclass")
    for i, reason in enumerate(reasons):
        part = message.split("; ")[i]
        assert f"{i}, " in part and reason in part, message


def test_a_batch_norm_in_two_places_is_converted_in_both():
    """One that torch's converter overlooks: it visits each child of a container once."""
    norm = fastnorm.BatchNorm2d(C, device=DEVICE)
    model = fastnorm.convert_sync_batchnorm(nn.Sequential(norm, nn.ReLU(), norm))
    assert type(norm) is fastnorm.SyncBatchNorm
    assert model[0] is model[2] is norm


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_a_converted_model_computes_the_same(backend, training):
    """Outside a process group: bit by bit, with its residuals, statistics and counts."""
    model = mixed_model().train(training)
    for tensor in model.parameters():
        tensor.data.uniform_(0.2, 1.0)
    twin = fastnorm.convert_sync_batchnorm(copy.deepcopy(model))
    x, residual = make_input((3, C, 3, 2)), make_input((3, C, 3, 2), seed=7)
    with running(backend):
        y, expected = twin(x), model(x)
        fused, separate = twin[0][0](x, residual), model[0][0](x, residual=residual)
    assert_close(y, expected, slack=1e-12)  # torch's own modules within are fastnorm's now
    assert torch.equal(fused, separate)
    for key, tensor in model.state_dict().items():
        assert_close(twin.state_dict()[key], tensor, key)


def test_what_torchs_converter_makes_of_our_norms():
    """Plain batch norms become torch's and compute the same; rho and the others stay."""
    model = mixed_model()
    before = dict(model.named_modules())
    for key in BATCH_NORMS:
        before[key].activation = None
    x = make_input((3, C, 3, 2))
    expected = copy.deepcopy(model)(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for key, module in converted.named_modules():
        if key in BATCH_NORMS:
            assert type(module) is nn.SyncBatchNorm
        else:
            assert module is before[key]
    assert "0.2.rho" in converted.state_dict()
    assert_close(converted(x), expected, slack=1e-12)


def test_torchs_converter_drops_the_activation():
    """Of docs/limits.md: torch's knows nothing of it. Our converter is the way."""
    x = make_input((3, C, 3, 2))
    norm = fastnorm.BatchNorm2d(C, activation="relu", device=DEVICE, dtype=torch.float64)
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(norm))
    ours = fastnorm.convert_sync_batchnorm(copy.deepcopy(norm))
    assert (theirs(x) < 0).any() and torch.equal(ours(x), norm(x))


# --- the module ---


def test_sync_batch_norm_is_a_batch_norm_like_torchs():
    """Not torch's own: DistributedDataParallel refuses any instance of that on CPUs."""
    theirs = nn.SyncBatchNorm(C, 1e-3, 0.2, process_group=None)
    ours = fastnorm.SyncBatchNorm(C, 1e-3, 0.2, process_group=None)
    assert isinstance(ours, nn.modules.batchnorm._BatchNorm) and repr(ours) == repr(theirs)
    assert not isinstance(ours, nn.SyncBatchNorm)
    assert "relu" in repr(fastnorm.SyncBatchNorm(C, activation="relu"))
    ours.load_state_dict(theirs.state_dict()), theirs.load_state_dict(ours.state_dict())
    for shape in ((C,), (2, C + 1)):
        for each in (ours, theirs):
            with pytest.raises((ValueError, RuntimeError)):
                each(torch.zeros(shape))
    with pytest.raises(ValueError, match="swoosh"):
        fastnorm.SyncBatchNorm(C, activation="swoosh")
