"""convert, and revert after it: tensors are shared, other modules stay, results are the same."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fastnorm
from tests.conftest import BACKENDS, DEVICE, NO_BIAS, assert_close, make_input, running
from tests.conversion.models import (
    C,
    assert_same_results,
    fingerprint,
    images,
    results,
    small_net,
    tensors_of,
)
from tests.modules.cases import SHAPES

# class name -> arguments: every one that torch.nn and fastnorm share
TWINS = {
    **{f"BatchNorm{d}d": (C,) for d in (1, 2, 3)},
    **{f"InstanceNorm{d}d": (C, 1e-5, 0.1, True, True) for d in (1, 2, 3)},
    "LayerNorm": ((C, 4, 3),),
    "GroupNorm": (2, C),
    "SyncBatchNorm": (C,),
}


# --- convert ---


@pytest.mark.parametrize("name", TWINS)
def test_a_norm_is_converted_and_reverted(name):
    """The same object and tensors all the way, frozen and in eval mode as it was."""
    norm = getattr(nn, name)(*TWINS[name], device=DEVICE).eval()
    norm.weight.requires_grad_(False)
    before, printed, names = tensors_of(norm), repr(norm), list(norm.state_dict())
    report = fastnorm.convert(norm)
    assert report.model is norm and type(norm) is getattr(fastnorm, name)
    assert report.changed == [("", f"torch.nn.{name}", f"fastnorm.{name}")] and not report.kept
    assert not norm.training and not norm.weight.requires_grad and norm.bias.requires_grad
    assert tensors_of(norm) == before and list(norm.state_dict()) == names
    assert repr(norm) == printed
    assert fastnorm.revert(norm).changed == [("", f"fastnorm.{name}", f"torch.nn.{name}")]
    assert (
        type(norm) is getattr(nn, name)
        and vars(norm).keys() == vars(type(norm)(*TWINS[name])).keys()
    )
    assert tensors_of(norm) == before


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_as_before(backend, training):
    """Outputs, gradients and running statistics of a whole network, converted and gone back."""
    twin, net = small_net().train(training), small_net().train(training)
    keys = list(net.state_dict())
    fastnorm.convert(net)
    assert list(net.state_dict()) == keys
    with running(backend):
        assert_same_results(net, twin, images())
    fastnorm.revert(net)
    assert [type(m) for m in net.modules()] == [type(m) for m in twin.modules()]
    assert_same_results(net, twin, images(1))


@pytest.mark.parametrize("training", [True, False])
def test_a_transformer_layer(training):
    """Its evaluation takes a way of its own, with the norms' parameters."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    layer = layer.to(DEVICE, torch.float64).train(training)
    twin, x = copy.deepcopy(layer), make_input((2, 5, 8))
    assert len(fastnorm.convert(layer).changed) == 2
    assert_same_results(layer, twin, x)
    with torch.no_grad():
        assert_close(layer(x), twin(x))


def test_the_optimizer_stays_valid():
    """An optimizer made before trains the converted model, step for step as the twin's does."""
    twin, net = small_net(), small_net()
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-4, momentum=0.9) for m in (net, twin)]
    fastnorm.convert(net)
    for step in range(3):
        for model, optimizer in zip((net, twin), optimizers, strict=True):
            results(model, images(step))
            optimizer.step()
    for (name, mine), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert_close(mine, theirs, name, slack=1e-10)


def test_shared_modules_stay_shared():
    shared = nn.BatchNorm2d(C)
    model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.Sequential(nn.ReLU(), shared))
    model.aside = [shared]  # a reference that is not in the tree
    report = fastnorm.convert(model)
    assert [change.name for change in report.changed] == ["0.0"]
    assert model[0][0] is model[1][1] is model.aside[0] and type(shared) is fastnorm.BatchNorm2d


def test_hooks_stay():
    """Forward, backward and state-dict hooks run; a handle from before removes its hook."""
    norm, called = nn.BatchNorm2d(C, device=DEVICE), []
    handle = norm.register_forward_hook(lambda *_: called.append("forward"))
    norm.register_forward_pre_hook(lambda *_: called.append("pre"))
    norm.register_full_backward_hook(lambda *_: called.append("backward"))
    norm.register_state_dict_post_hook(lambda *_: called.append("state"))
    norm.register_load_state_dict_post_hook(lambda *_: called.append("load"))
    for target in ("bn", "gn"):
        fastnorm.convert(norm, to=target, groups=2 if target == "gn" else None)
        norm(make_input(SHAPES[2], dtype=torch.float32, requires_grad=True)).sum().backward()
        norm.load_state_dict(norm.state_dict())
        assert called == ["pre", "forward", "backward", "state", "load"], target
        called.clear()
    handle.remove()
    norm(make_input(SHAPES[2], dtype=torch.float32))
    assert called == ["pre"]


class Own(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class RootMeanSquareNorm(nn.Module):
    def forward(self, x):
        return x / x.square().mean(-1, keepdim=True).sqrt()


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def peculiar_modules():
    """(module, words of the reason) of what is left alone."""
    parametrized, patched, marked = (nn.BatchNorm2d(C) for _ in range(3))
    parametrize.register_parametrization(parametrized, "weight", Double())
    patched.forward = patched.forward
    marked.activation = "mine"
    return [
        (Own(C), "subclass of torch.nn.LayerNorm"),
        (RootMeanSquareNorm(), "no norm of torch.nn"),
        (nn.LocalResponseNorm(2), "no norm of torch.nn"),
        (nn.LazyBatchNorm2d(), "lazy"),
        (parametrized, "parametrized"),
        (patched, "forward is overridden"),
        (marked, "attribute called activation"),
    ]


@pytest.mark.parametrize("to", [None, "ln"])
def test_what_has_ways_of_its_own_is_left_alone(to):
    modules, reasons = zip(*peculiar_modules(), strict=True)
    kinds = [type(m) for m in modules]
    report = fastnorm.convert(nn.Sequential(*modules, nn.BatchNorm2d(C)), to)
    assert [type(m) for m in modules] == kinds
    assert [name for name, *_ in report.changed] == [str(len(modules))]
    assert [kept.name for kept in report.kept] == [str(i) for i in range(len(modules))]
    for kept, words in zip(report.kept, reasons, strict=True):
        assert words in kept.reason


def test_a_lazy_norm_is_converted_once_it_is_known():
    lazy = nn.LazyBatchNorm2d()
    lazy(torch.zeros(2, C, 1, 1))
    fastnorm.convert(lazy)
    assert type(lazy) is fastnorm.BatchNorm2d


def test_the_report_is_a_table():
    model = nn.Sequential(nn.BatchNorm2d(C), RootMeanSquareNorm())
    text = str(fastnorm.convert(model))
    assert text.splitlines() == [
        "1 changed, 1 kept",
        "  0  torch.nn.BatchNorm2d -> fastnorm.BatchNorm2d",
        f"  1  {__name__}.RootMeanSquareNorm kept: no norm of torch.nn or a library that fastnorm "
        "has",
    ]
    assert "(model)  torch.nn.LayerNorm -> fastnorm.LayerNorm" in str(
        fastnorm.convert(nn.LayerNorm(C))
    )
    assert str(fastnorm.convert(model[:1])) == "0 changed, 0 kept"


# --- another norm ---


def expected_of(norm, to, groups, x):
    """What the exchanged batch norm has to answer, in torch's functions."""
    weight, bias = norm.weight, norm.bias
    if to == "bn":
        return copy.deepcopy(norm)(x)
    if to == "in":
        return nn.functional.instance_norm(x, weight=weight, bias=bias, eps=norm.eps)
    if to == "bin":  # rho is 1
        return copy.deepcopy(norm)(x)
    return nn.functional.group_norm(x, groups, weight, bias, norm.eps)


@pytest.mark.parametrize("kwargs", [{}, {"affine": False}, NO_BIAS, {"momentum": None},
                                    {"track_running_stats": False}], ids=str)  # fmt: skip
@pytest.mark.parametrize("to", ["bn", "in", "gn", "ln", "bin"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_another_norm_with_the_same_affine_map(d, to, kwargs):
    norm = getattr(nn, f"BatchNorm{d}d")(C, 1e-3, **kwargs).to(DEVICE, torch.float64)
    for i, p in enumerate(norm.parameters()):
        p.data.copy_(make_input(p.shape, seed=i))
    parameters, buffers = dict(norm._parameters), dict(norm._buffers)
    norm.note = "mine"
    x = make_input(SHAPES[d], mean=1.0)
    expected = expected_of(norm, to, {"gn": 2, "ln": 1}.get(to), x)
    fastnorm.convert(norm, to, groups=2 if to == "gn" else None)
    kind = {"bn": f"BatchNorm{d}d", "in": f"InstanceNorm{d}d", "bin": f"BatchInstanceNorm{d}d"}
    assert type(norm) is getattr(fastnorm, kind.get(to, "GroupNorm"))
    assert norm.weight is parameters["weight"] and norm.bias is parameters["bias"]
    assert norm.note == "mine" and repr(norm) and copy.deepcopy(norm) is not norm
    assert_close(norm(x), expected, slack=1e-13)
    if to in ("bn", "bin"):
        assert norm.running_mean is buffers["running_mean"]
        assert norm.momentum == kwargs.get("momentum", 0.1)
    else:
        assert not any(key.startswith(("running", "num_b")) for key in norm.state_dict())
    if to == "bin":
        assert norm.rho.dtype == (norm.running_mean if norm.weight is None else norm.weight).dtype
    fresh = getattr(nn, kind.get(to, "GroupNorm")) if to in ("in", "gn", "ln") else None
    if fresh is not None:
        arguments = (C,) if to == "in" else (2 if to == "gn" else 1, C)
        assert vars(norm).keys() - {"note", "activation"} == vars(fresh(*arguments)).keys()


@pytest.mark.parametrize("frozen", [True, False])
def test_rho_is_trained_where_the_weight_is(frozen):
    norm = nn.BatchNorm2d(C).requires_grad_(not frozen)
    fastnorm.convert(norm, "bin")
    assert norm.rho.requires_grad is not frozen
    assert [name for name, _ in norm.named_parameters()] == ["weight", "bias", "rho"]


def test_only_batch_norms_change_kind_and_activations_stay():
    model = nn.Sequential(
        fastnorm.BatchNorm2d(C, activation="silu"), nn.SyncBatchNorm(C), nn.LayerNorm(C),
        nn.InstanceNorm2d(C), fastnorm.BatchInstanceNorm2d(C),
    )  # fmt: skip
    fastnorm.convert(model, "gn", groups=2)
    kinds = ["GroupNorm", "GroupNorm", "LayerNorm", "InstanceNorm2d", "BatchInstanceNorm2d"]
    assert [type(m) for m in model] == [getattr(fastnorm, kind) for kind in kinds]
    assert model[0].activation == "silu" and model[1].activation is None


@pytest.mark.parametrize(("arguments", "words"), [
    (("gm",), "'gm': choose None or one of bn, in, gn, ln, bin"),
    (("ln", 2), "only 'gn' has groups"),
    ((None, 2), "only 'gn' has groups"),
    (("gn", 0), "groups=0"),
    (("gn", 3), "1.0 has 4 channels.* 1, 2, 4"),
    (("gn",), "0 has 6 channels"),
    (("bin",), "1.1 is a SyncBatchNorm"),
    (("in",), "1.1 is a SyncBatchNorm"),
])  # fmt: skip
def test_errors_leave_the_model_untouched(arguments, words):
    model = nn.Sequential(
        nn.BatchNorm2d(6), nn.Sequential(nn.BatchNorm2d(C), nn.SyncBatchNorm(C)), nn.LayerNorm(C)
    )
    before = fingerprint(model)
    with pytest.raises(ValueError, match=words):
        fastnorm.convert(model, *arguments)
    assert fingerprint(model) == before
