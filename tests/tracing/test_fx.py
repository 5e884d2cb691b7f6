"""torch.fx: every norm is a leaf, as torch.nn's are, for tools that trace or match."""

import copy
import pickle

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental import optimization

import fastnorm
from tests.conftest import DEVICE, make_input
from tests.modules.own_norms import FilterResponseNorm

C, SHAPE = 4, (3, 4, 5, 6)
NORMS = {
    "bn": lambda: fastnorm.BatchNorm2d(C, activation="relu"),
    "sync": lambda: fastnorm.SyncBatchNorm(C),
    "in": lambda: fastnorm.InstanceNorm2d(C, affine=True),
    "bin": lambda: fastnorm.BatchInstanceNorm2d(C, activation="silu"),
    "sync_bin": lambda: fastnorm.SyncBatchInstanceNorm(C),
    "mean_only": lambda: fastnorm.MeanOnlyBatchNorm2d(C),
    "gn": lambda: fastnorm.GroupNorm(2, C, activation="gelu"),
    "ln": lambda: fastnorm.LayerNorm(SHAPE[1:]),
    "rms": lambda: fastnorm.RMSNorm(SHAPE[-1]),
    "sn": lambda: fastnorm.SwitchableNorm2d(C),
    "own": lambda: FilterResponseNorm(C),
    "add_ln": lambda: fastnorm.AddLayerNorm(SHAPE[-1]),
    "add_rms": lambda: fastnorm.AddRMSNorm(SHAPE[-1]),
}


class Block(nn.Module):
    """A norm between functions, with a residual."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        y = self.norm(2 * x, x)
        return y[0] + y[1] if isinstance(self.norm, ADDING) else y + 1


ADDING = (fastnorm.AddLayerNorm, fastnorm.AddRMSNorm)


class Features(fx.Tracer):
    """As torchvision's feature extraction traces: by names, with leaves and scopes of its own."""

    def __init__(self):
        super().__init__()
        self.names = {}

    def call_module(self, m, forward, args, kwargs):
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            return forward(*args, **kwargs)
        return self.create_proxy("call_module", path, args, kwargs)

    def create_proxy(self, kind, target, args, kwargs, *more, **named):
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
        self.names[proxy.node] = target
        return proxy


def calls(graph):
    return [node.target for node in graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("tracer", [fx.Tracer, Features])
@pytest.mark.parametrize("name", NORMS)
def test_every_norm_is_a_leaf(name, tracer, train):
    """One call, the model's own module, the model's values, in training too; it can be pickled."""
    block = Block(NORMS[name]()).to(DEVICE).train(train)
    twin = copy.deepcopy(block)
    traced = fx.GraphModule(block, tracer().trace(block)).train(train)
    assert calls(traced.graph) == ["norm"]
    assert traced.norm is block.norm
    x = make_input(SHAPE, dtype=torch.float32)
    with fastnorm.use_backend("cpu"):
        assert torch.equal(traced(x), twin(x))
        assert torch.equal(pickle.loads(pickle.dumps(traced.eval()))(x), twin.eval()(x))


def test_a_mask_and_inputs_by_name():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.ln = fastnorm.BatchNorm1d(C), fastnorm.LayerNorm(5)

        def forward(self, x, mask):
            return self.ln(input=self.bn(x, residual=x, mask=mask), residual=x)

    model, x = Masked().to(DEVICE), make_input((3, C, 5), dtype=torch.float32)
    mask = torch.ones(3, 5, dtype=torch.bool, device=DEVICE)
    mask[1, 3:] = False
    traced = fx.symbolic_trace(model)
    assert calls(traced.graph) == ["bn", "ln"]
    with fastnorm.use_backend("cpu"):
        assert torch.equal(traced(x, mask), model(x, mask))


def conv_net(activation=None):
    torch.manual_seed(0)
    norm = fastnorm.BatchNorm2d(C, activation=activation)
    norm.running_mean.fill_(0.5)
    return nn.Sequential(nn.Conv2d(3, C, 3), norm, nn.ReLU(), nn.Conv2d(C, 2, 1)).to(DEVICE).eval()


@pytest.mark.parametrize("activation", [None, "silu"])
def test_torchs_folding_of_batch_norms(activation):
    """fx's own folds torch.nn's very types: ours stay, with their activation. `revert` makes them
    those."""
    model, x = conv_net(activation), make_input((2, 3, 6, 6), dtype=torch.float32)
    expected = model(x)
    folded = optimization.fuse(model)
    assert calls(folded.graph) == ["0", "1", "2", "3"]
    assert torch.equal(folded(x), expected)
    if activation is None:
        fastnorm.revert(model)
        folded = optimization.fuse(model)
        assert calls(folded.graph) == ["0", "2", "3"]
        torch.testing.assert_close(folded(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Please use quant_min")
@pytest.mark.parametrize("activation", [None, "silu"])
def test_quantisation_in_graph_mode(activation):
    """Convolutions are observed, ours stay as they are; reverted they are folded."""
    reason = "deprecated in torch 2.10: a later version may be without it"
    fx_mode = pytest.importorskip("torch.ao.quantization.quantize_fx", reason=reason)
    model, x = conv_net(activation), make_input((2, 3, 6, 6), dtype=torch.float32)
    expected = model(x)
    mapping = torch.ao.quantization.get_default_qconfig_mapping()
    prepared = fx_mode.prepare_fx(model, mapping, example_inputs=(x,))
    assert {"0", "1", "3"} <= set(calls(prepared.graph))
    torch.testing.assert_close(prepared(x), expected)
    if activation is None:
        fastnorm.revert(model)
        assert calls(fx_mode.fuse_fx(model).graph) == ["0", "3"]
