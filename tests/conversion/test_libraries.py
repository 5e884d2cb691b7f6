"""convert of libraries' classes: taken if they compute the same, kept if not, and back."""

import copy
import operator
import pickle
import re
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fastnorm
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running
from tests.conversion import library_classes as libraries
from tests.conversion.models import tensors_of

ROWS, IMAGES = (3, 4, 8), (3, 8, 4, 5)
RELU = {"activation": "relu"}
IN_WEIGHT_DTYPE = "conversion.adaptive.RMSNormInWeightDtype"
# The library's module, our class and its settings, the input's shape.
TAKEN = {
    "llama": (libraries.Llama, "RMSNorm", {"eps": 1e-6}, ROWS),
    "t5": (libraries.T5, IN_WEIGHT_DTYPE, {"eps": 1e-6}, ROWS),
    "gemma": (libraries.Gemma, "RMSNorm", {"zero_centered": True}, ROWS),
    "cohere": (libraries.Cohere, "LayerNorm", {"bias": None}, ROWS),
    "olmo": (libraries.Olmo, "LayerNorm", {"eps": 1e-5, "weight": None}, ROWS),
    "convnext": (libraries.ConvNext, "LayerNorm2d", {"eps": 1e-6}, IMAGES),
    "convnext_last": (lambda: libraries.ConvNext(8, "channels_last"), "LayerNorm", {}, ROWS),
    "torchvision": (lambda: libraries.TorchvisionLayerNorm2d(8), "LayerNorm2d", {}, IMAGES),
    "rms": (libraries.TimmRmsNorm, "RMSNorm", {}, ROWS),
    "rms_plain": (lambda: libraries.TimmRmsNorm(affine=False), "RMSNorm", {}, ROWS),
    "group": (libraries.TimmGroupNormAct, "GroupNorm", RELU, IMAGES),
    "group_gelu": (
        lambda: libraries.TimmGroupNormAct(act=libraries.TimmGELU()),
        "GroupNorm", {"activation": "gelu"}, IMAGES,
    ),
    "batch": (libraries.TimmBatchNormAct2d, "BatchNorm2d", RELU, IMAGES),
    "batch_alone": (
        lambda: libraries.TimmBatchNormAct2d(act=nn.Identity()),
        "BatchNorm2d", {"activation": None}, IMAGES,
    ),
    "diffusers": (libraries.DiffusersRMSNorm, IN_WEIGHT_DTYPE, {}, ROWS),
    "diffusers_plain": (
        lambda: libraries.DiffusersRMSNorm(affine=False), "RMSNorm", {"weight": None}, ROWS
    ),
    "fp32": (lambda: libraries.DiffusersFP32LayerNorm(8), "LayerNorm", {}, ROWS),
}  # fmt: skip


def made(name, dtype=torch.float32):
    """The module with parameters and statistics that no constructor would make."""
    module = TAKEN[name][0]().to(DEVICE, dtype)
    for i, tensor in enumerate(module.state_dict().values()):
        if tensor.is_floating_point():
            tensor.copy_(make_input(tensor.shape, seed=i).abs().clamp(max=2) / 4 + 0.5)
    return module


def results(module, x):
    """Output, gradients and buffers after a step."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = module(x)
    y.backward(make_input(y.shape, dtype=y.dtype, seed=5))
    grads = {name: p.grad for name, p in module.named_parameters()}
    return {"y": y, "x": x.grad, **grads, **dict(module.named_buffers())}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_librarys_norm_becomes_ours_and_goes_back(backend, name, training):
    """The same object with all that it had; values, gradients and buffers as before."""
    _, kind, settings, shape = TAKEN[name]
    twin, norm = made(name).train(training), made(name).train(training)
    norm.note = "mine"
    had, tensors, keys = vars(norm).copy(), tensors_of(norm), list(norm.state_dict())
    library, printed = type(norm), repr(norm)
    report = fastnorm.convert(norm)
    full = f"{library.__module__}.{library.__qualname__}"
    assert report.changed == [("", full, f"fastnorm.{kind}")] and not report.kept
    assert type(norm) is operator.attrgetter(kind)(fastnorm) and norm.training is training
    assert {key: getattr(norm, key) for key in settings} == settings
    assert tensors_of(norm) == tensors and list(norm.state_dict()) == keys
    assert {key: vars(norm)[key] for key in had} == had
    norm.load_state_dict(twin.state_dict())
    x = make_input(shape, dtype=torch.float32)
    with running(backend):
        found = results(norm, x)
    for key, exact in results(twin, x).items():
        assert_close(found[key], exact, key, slack=1e-6)
    assert fastnorm.revert(norm).changed == [("", f"fastnorm.{kind}", full)]
    assert type(norm) is library and repr(norm) == printed
    assert vars(norm).keys() == had.keys() and norm._parameters.keys() == twin._parameters.keys()


# --- what is kept ---


class Squared(libraries.Llama):
    def forward(self, hidden_states):
        return self.weight * super().forward(hidden_states)


class EpsOutside(libraries.Llama):
    def forward(self, hidden_states):
        root = hidden_states.square().mean(-1, keepdim=True).sqrt()
        return self.weight * hidden_states / (root + self.variance_epsilon)


class Unbiased(libraries.Cohere):
    def forward(self, hidden_states):
        x = hidden_states - hidden_states.mean(-1, keepdim=True)
        return self.weight * x / (x.var(-1, keepdim=True) + self.variance_epsilon).sqrt()


class Detached(libraries.Llama):
    """The same values, not the gradients."""

    def forward(self, hidden_states):
        variance = hidden_states.detach().square().mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


class Momentum(libraries.TimmBatchNormAct2d):
    """The same outputs, not the running statistics."""

    def forward(self, x):
        y = super().forward(x)
        self.running_mean.data.mul_(0.5)
        return y


class WithGate(libraries.Llama):
    def forward(self, hidden_states, gate=None):
        return super().forward(hidden_states)


class Tuple(libraries.Llama):
    def forward(self, hidden_states):
        return super().forward(hidden_states), hidden_states


class Refusing(libraries.Llama):
    def forward(self, hidden_states):
        raise NotImplementedError("ask again\nlater")


def named_as(cls, library):
    """The class under the name of a library's."""
    return libraries.named(f"{library.__module__}.{library.__qualname__}")(cls)


@pytest.mark.parametrize(("cls", "library", "words"), [
    (Squared, libraries.Llama, "computes something else than fastnorm.RMSNorm.*output 0"),
    (EpsOutside, libraries.Llama, "computes something else.*output 0"),
    (Unbiased, libraries.Cohere, "computes something else than fastnorm.LayerNorm.*output 0"),
    (Detached, libraries.Llama, "computes something else.*gradient of input 0"),
    (Momentum, libraries.TimmBatchNormAct2d, "computes something else.*running_mean"),
    (WithGate, libraries.Llama, "takes other arguments: hidden_states, gate=None"),
    (Tuple, libraries.Llama, "computes something else.*output 0, output 1"),
    (Refusing, libraries.Llama, "could not be compared.*NotImplementedError: ask again$"),
])  # fmt: skip
def test_what_computes_something_else_is_kept(cls, library, words):
    """A library may change what is behind a name."""
    norm = named_as(cls, library)()
    before = vars(norm).copy()
    report = fastnorm.convert(norm)
    assert not report.changed and type(norm) is cls and vars(norm) == before
    assert re.search(words, report.kept[0].reason), report


def peculiar_modules():
    """(module, words of the reason)."""
    overridden, parametrized, marked = (libraries.Llama() for _ in range(3))
    overridden.forward = overridden.forward
    parametrize.register_parametrization(parametrized, "weight", nn.Identity())
    marked.activation = "mine"
    other = libraries.TimmGroupNormAct()
    other.act.register_forward_hook(lambda *_: None)
    shape = libraries.TorchvisionLayerNorm2d((2, 8))
    width = libraries.TimmRmsNorm()
    width.normalized_shape = (4,)
    return [
        (overridden, "forward is overridden in the instance"),
        (parametrized, "parametrized"),
        (marked, "its activation is 'mine', not None"),
        (type("Mine", (libraries.Llama,), {})(), "a subclass of transformers.models.llama"),
        (libraries.DiffusersRMSNorm(bias=True), "its parameters are weight (8,), bias (8,)"),
        (libraries.TimmGroupNormAct(act=nn.Sigmoid()), "torch.nn.Sigmoid is none that fastnorm"),
        (libraries.TimmGroupNormAct(drop=nn.Dropout()), "it holds a module, drop"),
        (other, "its act has hooks"),
        (shape, "normalized shape is (2, 8)"),
        (width, "its normalized_shape is (4,), not (8,)"),
    ]


def test_what_has_ways_of_its_own_is_kept():
    modules, reasons = zip(*peculiar_modules(), strict=True)
    kinds = [type(m) for m in modules]
    report = fastnorm.convert(nn.Sequential(*modules, libraries.Llama()))
    assert [type(m) for m in modules] == kinds
    assert [change.name for change in report.changed] == [str(len(modules))]
    for kept, words in zip(report.kept, reasons, strict=True):
        assert words in kept.reason
    assert len(report.kept) == len(modules)


def test_what_holds_norms_is_no_norm():
    @libraries.of_transformers("hubert", "HubertEncoderLayerStableLayerNorm")
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer_norm = nn.LayerNorm(8)

    report = fastnorm.convert(Layer())
    assert [change.name for change in report.changed] == ["layer_norm"] and not report.kept


# --- half precision ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_is_told_where_it_changes(dtype):
    """Llama's class rounds twice: ours is closer to float64, and the report has both figures."""
    model = nn.Sequential(made("llama", dtype), made("gemma", dtype), libraries.Llama(16).to(dtype))
    x, twin = make_input((64, 8), dtype=dtype), copy.deepcopy(model)
    report = fastnorm.convert(model)
    (note,) = report.notes
    assert note.startswith(f"transformers.models.llama.modeling_llama.LlamaRMSNorm in {dtype}:")
    assert str(report).endswith(note)
    exact = nn.functional.rms_norm(x.double(), (8,), twin[0].weight.double(), 1e-6)
    before, after = ((m[0](x).double() - exact).norm() / exact.norm() for m in (twin, model))
    assert after < 0.9 * before
    assert not fastnorm.convert(made("llama")).notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["t5", "diffusers"])
def test_the_outputs_dtype_is_the_librarys(name, dtype):
    """In T5 some layers stay float32, and the norm's output must fit the next layer's weight."""
    x, twin, norm = make_input(ROWS, dtype=torch.float32), made(name), made(name)
    assert fastnorm.convert(norm).changed  # in float32, and then taken to half precision
    for module in (norm, twin):
        module.to(dtype)
    assert norm(x).dtype == twin(x).dtype == dtype
    assert norm(x.to(dtype)).dtype == dtype
    assert fastnorm.convert(made(name, dtype)).changed


class InDouble(libraries.Llama):
    """The same values in float32, another dtype in mixed precision."""

    def forward(self, hidden_states):
        y = super().forward(hidden_states)
        return y.double() if self.weight.dtype == torch.bfloat16 else y


def test_an_output_of_another_dtype_is_kept():
    report = fastnorm.convert(named_as(InDouble, libraries.Llama)())
    assert "in torch.bfloat16 it answers a float32 input in torch.float64" in report.kept[0].reason


# --- nothing but the classes changes ---


@pytest.mark.parametrize("name", TAKEN)
def test_a_trial_leaves_no_trace(name):
    """Statistics, gradients, hooks, the global generator: as if it had not been."""
    norm, called = made(name), []
    norm.register_forward_hook(lambda *_: called.append(1))
    state = copy.deepcopy(norm.state_dict())
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    with torch.inference_mode():
        assert fastnorm.convert(norm).changed
    assert torch.equal(torch.get_rng_state(), generator) and not called
    assert all(torch.equal(norm.state_dict()[key], value) for key, value in state.items())
    assert all(p.grad is None and not p.is_inference() for p in norm.parameters())
    norm(make_input(TAKEN[name][3], dtype=torch.float32))
    assert called == [1]


def test_parameters_without_values_are_no_hindrance():
    norm = libraries.Llama().to("meta")
    assert fastnorm.convert(norm).changed and norm.weight.is_meta


def test_copies_and_pickles_remember_the_library(monkeypatch):
    name = libraries.Llama.__module__
    while name:  # the packages too, which pickle imports
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        name = name.rpartition(".")[0]
    sys.modules[libraries.Llama.__module__].LlamaRMSNorm = libraries.Llama
    norm = made("llama")
    fastnorm.convert(norm)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert type(other) is fastnorm.RMSNorm
        fastnorm.revert(other)
        assert type(other) is libraries.Llama and "eps" not in vars(other)


# --- fused, exchanged, reverted ---


def test_batch_norms_with_an_activation_change_kind():
    norm = made("batch")
    fastnorm.convert(norm, "gn", groups=4)
    assert type(norm) is fastnorm.GroupNorm and norm.activation == "relu" and norm.num_groups == 4
    x = make_input(IMAGES, dtype=torch.float32)
    expected = nn.functional.group_norm(x, 4, norm.weight, norm.bias, norm.eps).relu()
    assert_close(norm(x), expected, slack=1e-6)
    with pytest.raises(ValueError, match="no activation='relu'"):
        fastnorm.revert(norm)


def test_batch_norms_with_an_activation_are_folded():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), made("batch")).eval()
    twin, x = copy.deepcopy(model), make_input(IMAGES, dtype=torch.float32)
    fastnorm.convert(model)
    fastnorm.fuse(model, fold=True)
    assert type(model[1]) is nn.ReLU
    assert_close(model(x), twin(x), slack=1e-5)


def test_fused_norms_go_back():
    model = nn.Sequential(made("torchvision"), nn.GELU(), nn.Flatten(2), nn.LazyLinear(8))
    model.extend([made("t5"), nn.SiLU()]).to(DEVICE)
    x = make_input(IMAGES, dtype=torch.float32)
    expected = model(x)
    fastnorm.convert(model)
    assert len(fastnorm.fuse(model).changed) == 2
    assert (model[0].activation, model[4].activation) == ("gelu", "silu")
    assert_close(model(x), expected, slack=1e-5)
    fastnorm.revert(model)
    assert type(model[0]) is libraries.TorchvisionLayerNorm2d and type(model[1]) is nn.GELU
    assert type(model[4]) is libraries.T5 and torch.equal(model(x), expected)


def test_changed_settings_are_not_lost_in_silence():
    norm = made("gemma")
    fastnorm.convert(norm)
    norm.activation = "silu"
    with pytest.raises(ValueError, match=r"\(model\): its activation was None.*Gemma2RMSNorm"):
        fastnorm.revert(norm)
    assert type(norm) is fastnorm.RMSNorm
    norm.activation = None
    fastnorm.revert(norm)
    assert type(norm) is libraries.Gemma


def test_synchronised_norms_go_back_to_torchs():
    norm = made("batch_alone")
    fastnorm.convert(norm)
    fastnorm.convert_sync_batchnorm(norm)
    fastnorm.revert(norm)
    assert type(norm) is nn.SyncBatchNorm and not hasattr(norm, "activation")
