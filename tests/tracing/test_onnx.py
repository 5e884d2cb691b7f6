"""torch.onnx.export: standard operators under every backend, right in ONNX Runtime."""

import io
from collections import Counter

import pytest
import torch
from torch import nn

import fastnorm
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input
from tests.modules.own_norms import FilterResponseNorm

onnx = pytest.importorskip("onnx", reason="the dev extra has it, a machine with a GPU may not")
onnxruntime = pytest.importorskip("onnxruntime", reason="the dev extra has it, as onnx")
pytest.importorskip("onnxscript", reason="the dev extra has it, as onnx")

C, REST = 8, (10, 12)
MEANS = (0.0, 1e2, 1e4)


class Norms(nn.Module):
    """Every norm of one input, and those with an activation and a residual."""

    def __init__(self):
        super().__init__()
        self.bn = fastnorm.BatchNorm2d(C)
        self.sync = fastnorm.SyncBatchNorm(C)
        self.inorm = fastnorm.InstanceNorm2d(C, affine=True)
        self.gn = fastnorm.GroupNorm(2, C)
        self.ln = fastnorm.LayerNorm(REST)
        self.rms = fastnorm.RMSNorm(REST[-1])
        self.bin = fastnorm.BatchInstanceNorm2d(C)
        self.mean_only = fastnorm.MeanOnlyBatchNorm2d(C)
        self.sn = fastnorm.SwitchableNorm2d(C)
        self.add_ln = fastnorm.AddLayerNorm(REST[-1])
        self.fused = fastnorm.GroupNorm(4, C, activation="silu")
        for i, (name, tensor) in enumerate(self.state_dict().items()):
            if tensor.is_floating_point() and "_weight" not in name:
                tensor.copy_(make_input(tensor.shape, seed=i).abs() / 4 + 0.5)

    def forward(self, x):
        y, total = self.add_ln(x, x)
        return (
            self.bn(x), self.sync(x), self.inorm(x), self.gn(x), self.ln(x), self.rms(x),
            self.bin(x), self.mean_only(x), self.sn(x), y, total, self.fused(x, residual=x),
        )  # fmt: skip


def exported(model, x, opset, **options):
    """The model in ONNX's own form, for any batch."""
    if options.get("dynamo"):
        program = torch.onnx.export(
            model, (x,), dynamic_shapes=({0: "batch"},), opset_version=opset, verbose=False,
            **options,
        )  # fmt: skip
        return program.model_proto
    file = io.BytesIO()
    torch.onnx.export(
        model, (x,), file, input_names=["x"], dynamic_axes={"x": {0: "batch"}},
        opset_version=opset, **options,
    )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def assert_right_in_the_runtime(proto, model):
    """At means of up to 10^4 standard deviations, as the formulas in float64."""
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (name,) = (tensor.name for tensor in session.get_inputs())
    truth = type(model)().to("cpu", torch.float64).eval()
    for mean in MEANS:
        x = make_input((3, C, *REST), dtype=torch.float32, seed=5, mean=mean).cpu()
        found = session.run(None, {name: x.numpy()})
        with fastnorm.use_backend("reference"):
            expected = truth(x.double())
        # The mean in float32 is off by half an eps of it; the scales here are below 2, and SiLU and
        # the residual add little. What a runtime sums naively is off by some times that.
        slack = 8 * torch.finfo(torch.float32).eps * mean
        for i, (mine, exact) in enumerate(zip(found, expected, strict=True)):
            assert_close(torch.from_numpy(mine), exact, f"output {i}, mean {mean}", slack=slack)


@pytest.mark.parametrize(
    ("backend", "opset"), [("triton", 23), ("cpu", 18), ("reference", 23)], ids=str
)
def test_dynamo_exporter(backend, opset):
    """The operators that ONNX has for these norms, and no custom one."""
    model = Norms().to(DEVICE).eval()
    x = make_input((2, C, *REST), dtype=torch.float32)
    with fastnorm.use_backend(backend):
        proto = exported(model, x, opset, dynamo=True)
    found = Counter(node.op_type for node in proto.graph.node)
    assert {node.domain for node in proto.graph.node} == {""}
    expected = {"BatchNormalization": 3, "InstanceNormalization": 4, "LayerNormalization": 2}
    expected |= {"RMSNormalization": 1} if opset >= 23 else {}
    assert {kind: found[kind] for kind in expected} == expected
    assert not found["GroupNormalization"]
    assert_right_in_the_runtime(proto, model)


class Older(Norms):
    """Without a switchable norm. The older exporter makes an invalid model of it, and a program of
    torch.export holds its formula in float32."""

    def forward(self, x):
        y, total = self.add_ln(x, x)
        return (
            self.bn(x), self.inorm(x), self.gn(x), self.ln(x), self.rms(x), self.bin(x),
            self.mean_only(x), y, total, self.fused(x, residual=x),
        )  # fmt: skip


def test_a_program_of_torch_export():
    """One that was exported before, and holds our operators."""
    model = Older().to(DEVICE).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    with fastnorm.use_backend("triton"):
        x = make_input((2, C, *REST), dtype=torch.float32)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    assert any("fastnorm" in str(node.target) for node in program.graph.nodes)
    proto = torch.onnx.export(program, (), opset_version=23, verbose=False).model_proto
    assert {node.domain for node in proto.graph.node} == {""}
    assert_right_in_the_runtime(proto, model)


@pytest.mark.filterwarnings("ignore")  # of the exporter, that it is an old one, and of tracing
@pytest.mark.parametrize("backend", BACKENDS)
def test_older_exporter(backend):
    model = Older().to(DEVICE).eval()
    with fastnorm.use_backend(backend):
        x = make_input((2, C, *REST), dtype=torch.float32)
        proto = exported(model, x, 18, dynamo=False)
    assert_right_in_the_runtime(proto, model)


ALONE = {
    "bn1d": lambda: fastnorm.BatchNorm1d(C),
    "bn": lambda: fastnorm.BatchNorm2d(C),
    "sync": lambda: fastnorm.SyncBatchNorm(C),
    "in": lambda: fastnorm.InstanceNorm2d(C),
    "bin": lambda: fastnorm.BatchInstanceNorm2d(C),
    "sync_bin": lambda: fastnorm.SyncBatchInstanceNorm(C),
    "mean_only": lambda: fastnorm.MeanOnlyBatchNorm2d(C),
    "gn": lambda: fastnorm.GroupNorm(2, C),
    "ln": lambda: fastnorm.LayerNorm(REST),
    "ln2d": lambda: fastnorm.LayerNorm2d(C),
    "rms": lambda: fastnorm.RMSNorm(REST[-1]),
    "gated": lambda: fastnorm.GatedRMSNorm(REST[-1]),
    "own": lambda: FilterResponseNorm(C),
    "add_ln": lambda: fastnorm.AddLayerNorm(REST[-1]),
    "add_rms": lambda: fastnorm.AddRMSNorm(REST[-1]),
}


def assert_exported_alone(norm, inputs, **named):
    """By the older exporter, which passes all arguments of a forward by position."""
    file, given = io.BytesIO(), [*inputs, *named.values()]
    names = [f"x{i}" for i in range(len(given))]
    torch.onnx.export(
        norm, (*inputs, named), file, input_names=names, opset_version=17, dynamo=False
    )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    feed = {name: t.cpu().numpy() for name, t in zip(names, given, strict=True)}
    found = session.run(None, feed)
    expected = norm(*inputs, **named)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(mine), exact.detach().cpu())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ALONE)
def test_older_exporter_of_a_norm_alone(name):
    norm = ALONE[name]().to(DEVICE).eval()
    x = make_input((2, C, REST[-1]) if name == "bn1d" else (2, C, *REST), dtype=torch.float32)
    with fastnorm.use_backend("reference"):
        assert_exported_alone(norm, (x, x) if name.startswith("add") else (x,))


@pytest.mark.filterwarnings("ignore")
def test_older_exporter_of_a_modulated_norm_alone():
    norm = fastnorm.GroupNorm(2, C).to(DEVICE).eval()
    x, residual = (make_input((2, C, *REST), dtype=torch.float32, seed=seed) for seed in (1, 2))
    scale, shift = (make_input((2, C), dtype=torch.float32, seed=seed) for seed in (3, 4))
    with fastnorm.use_backend("reference"):
        assert_exported_alone(norm, (x, residual), scale=scale, shift=shift)
        assert_exported_alone(norm, (x, residual), scale=scale)
