"""Programs to keep, torch.export, make_fx and jit.trace, and tensors without data."""

import io

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._sympy.numbers import int_oo

import fastnorm
import fastnorm.functional as F
from fastnorm.kernels import launch
from tests.conftest import DEVICE, make_input, running
from tests.tracing.nets import DIFFERENCE, MODULES, SHAPE, Net, difference, image


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_export(backend, train, strict):
    """A dynamic batch, saved and loaded; five operators, or under cpu none of ours."""
    model = Net().to(DEVICE).train(train)
    batch = torch.export.Dim("batch", min=2, max=64)
    with fastnorm.use_backend(backend):
        program = torch.export.export(
            model, (image(4),), dynamic_shapes=({0: batch},), strict=strict
        )
        program.run_decompositions()
    ours = [n for n in program.graph.nodes if "fastnorm" in str(n.target)]
    assert len(ours) == (5 if backend == "triton" else 0)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    with running(backend) if backend == "triton" else fastnorm.use_backend(backend):
        found = loaded(image(7))
    with fastnorm.use_backend(backend):
        expected = model(image(7))
    assert difference([found], [expected]) <= DIFFERENCE[backend]
    if train:
        named = dict(loaded.named_buffers())
        for name, buffer in model.named_buffers():
            assert difference([named[name].double()], [buffer.double()]) <= 1e-6, name


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("batch", [torch.export.Dim("batch"), torch.export.Dim.AUTO], ids=repr)
@pytest.mark.parametrize("name", MODULES)
def test_any_batch_size(name, batch, train):
    """No choice of ours binds a program to sizes."""
    model = MODULES[name]().to(DEVICE).train(train)
    x = make_input(SHAPE, dtype=torch.float32)
    with fastnorm.use_backend("cpu"):
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False)
        (bounds,) = program.range_constraints.values()
        assert bounds.lower <= 2 and bounds.upper == int_oo
        large = make_input((2**20 // 90 + 1, *SHAPE[1:]), dtype=torch.float32)
        found, expected = program.module()(large), model(large)
    assert difference([found], [expected]) <= 1e-4  # float32 sums of 2^20 in two orders


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_empty_batches_in_compiled_programs(norm):
    """What torch's own norms do not differentiate."""

    def program(x):
        if norm == "batch":
            return F.batch_norm(x, None, None, training=True).sum()
        return F.instance_norm(x).sum()

    x = torch.empty((0, 4, 3) if norm == "instance" else (2, 0, 3), device=DEVICE)
    x.requires_grad_()
    with fastnorm.use_backend("cpu"):
        torch.compile(program, backend="aot_eager", fullgraph=True)(x).backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_make_fx(backend, mode):
    def program(x, weight):
        y = F.batch_norm(x, None, None, weight, weight, True, activation="relu")
        return torch.autograd.grad(y.square().sum(), [x, weight])

    weight = make_input((6,), dtype=torch.float32, requires_grad=True)
    x, other = (
        make_input(s, dtype=torch.float32, requires_grad=True)
        for s in (SHAPE, SHAPE if mode != "symbolic" else (7, *SHAPE[1:]))
    )
    with fastnorm.use_backend(backend):
        traced = make_fx(program, tracing_mode=mode)(x, weight)
        targets = [str(n.target) for n in traced.graph.nodes if "fastnorm" in str(n.target)]
        expected = program(other, weight)
    names = ["fastnorm.norm_forward.default", "fastnorm.norm_backward.default"]
    assert targets == (names if backend == "triton" else [])
    with launch.record() as launched:
        found = traced(other, weight)
    assert bool(launched) == (backend == "triton")
    scale = max(t.abs().max().item() for t in expected)
    assert difference(found, expected) <= scale * DIFFERENCE[backend]


@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_jit_trace(backend):
    """Deprecated, still used: what it records must compute, for other batches too."""
    model = Net().to(DEVICE).eval()
    with fastnorm.use_backend(backend):
        traced = torch.jit.trace(model, image(4))
        assert difference([traced(image(5))], [model(image(5))]) <= DIFFERENCE[backend]


@pytest.mark.parametrize("backend", ["auto", "triton", "cpu", "reference"])
def test_meta_and_fake_tensors(backend):
    """Shapes, strides and gradients without data, without a launch."""
    with fastnorm.use_backend(backend), launch.record() as launched:
        model = Net().to("meta")
        x = torch.empty(4, 3, 9, 9, device="meta", requires_grad=True)
        model(x).sum().backward()
        assert x.grad.shape == x.shape and model.bn.weight.grad.shape == (6,)
        with FakeTensorMode():
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.empty(SHAPE).to(memory_format=layout)
                assert F.group_norm(x, 2).stride() == x.stride()
            with torch.no_grad():
                x = torch.empty(SHAPE, device="cuda").to(memory_format=torch.channels_last)
                y = F.batch_norm(x, None, None, training=True, residual=x)
        assert y.device.type == "cuda"
        assert y.stride() == x.stride()
    assert not launched


def test_torch_jit_script_is_refused_with_the_way_out():
    with pytest.raises(RuntimeError, match="revert"):
        torch.jit.script(torch.nn.Sequential(fastnorm.GroupNorm(2, 6)))
