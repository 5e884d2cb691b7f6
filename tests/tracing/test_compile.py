"""torch.compile: no break, no second compilation, no difference."""

import copy
import itertools
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import fastnorm
import fastnorm.functional as F
from tests.conftest import DEVICE, make_input, running, slow_unless, with_layout
from tests.tracing.nets import (
    DIFFERENCE,
    MODULES,
    SHAPE,
    Net,
    difference,
    image,
    loss,
    state_and_gradients,
)


def train_side_by_side(module, compiled, batches, sample):
    """The largest difference of output, dx, gradients and buffers between a module and a copy's
    compiled form, over some steps."""
    twin, run = compiled
    worst = 0.0
    for batch in batches:
        x, also_x = sample(batch), sample(batch)
        y, also_y = module(x), run(also_x)
        loss(y).backward()
        loss(also_y).backward()
        pairs = [y, x.grad, *state_and_gradients(module)]
        worst = max(worst, difference(pairs, [also_y, also_x.grad, *state_and_gradients(twin)]))
    return worst


# Compilers take seconds a program. One is made of each norm's training for each engine's sake, one
# of an evaluation; the formula's programs, and what evaluation shares with training, are slow.
QUICK_EVALUATION = ("bn", "bin")
ONE_GRAPH = [
    pytest.param(
        backend, name, train,
        marks=slow_unless(backend == "triton" and (train or name in QUICK_EVALUATION)),
    )
    for backend in ("triton", "cpu", "reference")
    for name in MODULES
    for train in (True, False)
]  # fmt: skip


@pytest.mark.parametrize(("backend", "name", "train"), ONE_GRAPH)
def test_one_graph_for_all_batch_sizes(backend, name, train):
    """fullgraph, dynamic: no break, no compilation for a new batch size, eager's values."""
    module = MODULES[name]().to(DEVICE).train(train)
    twin = copy.deepcopy(module)
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(twin, backend=counter, fullgraph=True, dynamic=True)

    def sample(batch):
        shape = (batch, *SHAPE[1:])
        return make_input(shape, dtype=torch.float32, seed=batch, requires_grad=True)

    with running(backend):
        worst = train_side_by_side(module, (twin, run), (3, 4), sample)
        compiled = counter.frame_count
        worst = max(worst, train_side_by_side(module, (twin, run), (2, 5), sample))
    assert counter.frame_count == compiled
    assert worst <= DIFFERENCE[backend]


@pytest.mark.parametrize(
    ("backend", "train"),
    [
        pytest.param(*values, marks=slow_unless(values == ("triton", True)))
        for values in itertools.product(("triton", "cpu"), (True, False))
    ],
)
def test_inductor(backend, train):
    """Under reference it is not tried: on a CPU torch 2.13 miscompiles the formula's second
    centring here (pytorch issue 185702), and dx is off by twice its size."""
    model = Net().to(DEVICE).train(train)
    twin = copy.deepcopy(model)
    run = torch.compile(twin, fullgraph=True, dynamic=True)
    with running(backend):
        worst = train_side_by_side(model, (twin, run), (4, 6), lambda n: image(n, True))
    # Inductor's convolution and sums are not eager's, and five norms in a row amplify that.
    assert worst <= 1e-4


# What the program says of dtypes and strides is of the training or evaluation of one layout as of
# the other: the other pairs are slow.
MODES = [
    pytest.param(True, "channels_last"),
    pytest.param(False, "contiguous"),
    pytest.param(True, "contiguous", marks=slow_unless(False)),
    pytest.param(False, "channels_last", marks=slow_unless(False)),
]


@pytest.mark.parametrize(("train", "layout"), MODES)
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_mixed_dtypes(backend, name, train, layout):
    """bfloat16 x, float64 parameters and running statistics: eager's dtypes, layout and values."""
    module = MODULES[name]().to(DEVICE, torch.float64).train(train)
    twin = copy.deepcopy(module)
    run = torch.compile(twin, backend="aot_eager", fullgraph=True)
    x = make_input(SHAPE, layout, dtype=torch.bfloat16)
    with running(backend):
        y, also_y = module(x), run(x)
    assert (y.dtype, y.stride()) == (also_y.dtype, also_y.stride())
    assert difference([y], [also_y]) <= 0.02  # a bfloat16 ulp of the largest value
    assert difference(module.buffers(), twin.buffers()) <= 1e-6


def test_no_graph_break_is_reported():
    with fastnorm.use_backend("triton"):
        explained = torch._dynamo.explain(Net().to(DEVICE))(image(4))
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1


@pytest.mark.parametrize(
    ("backend", "layout", "count"),
    [("triton", "contiguous", 5), ("cpu", "channels_last", 5), ("cpu", "contiguous", 1)],
)
def test_inference_in_a_compiled_program_keeps_nothing(backend, layout, count):
    """Without gradients the program holds fastnorm::norm, which saves no mask and no statistics.

    Norms of contiguous images are torch's own on a CPU, where inductor chooses another layout.
    """
    with fastnorm.use_backend(backend):
        assert operators_of_ours(layout) == ["fastnorm.norm.default"] * count


def operators_of_ours(layout):
    """Those in the program of a model without gradients."""
    counter = CompileCounterWithBackend("aot_eager")
    model, x = Net().to(DEVICE).eval(), with_layout(image(4), layout)
    if layout == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.compile(model, backend=counter, fullgraph=True)(x)
    (graph,) = counter.graphs
    return [str(node.target) for node in graph.graph.nodes if "fastnorm" in str(node.target)]


def test_compiled_without_a_c_compiler(monkeypatch):
    """The program of `auto` then holds torch's own norms."""
    from fastnorm.kernels.cpu import build

    def functions(dtype):
        raise build.BuildError("there is no compiler")

    monkeypatch.setattr(build, "functions", functions)
    with fastnorm.use_backend("auto"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that says so once
        assert operators_of_ours("channels_last") == []


@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_rho_is_projected_in_compiled_training(backend):
    """Steps that throw rho out of [0, 1], two forwards a step: as in eager training."""
    module = fastnorm.BatchInstanceNorm2d(6).to(DEVICE)
    twin = copy.deepcopy(module)
    run = torch.compile(twin, backend="aot_eager", fullgraph=True)
    weights = make_input(SHAPE, dtype=torch.float32, seed=3)
    with running(backend):
        for model, parameters in ((module, module.parameters()), (run, twin.parameters())):
            optimizer = torch.optim.SGD(parameters, lr=30.0)
            for step in range(5):
                x = make_input(SHAPE, dtype=torch.float32, seed=step)
                optimizer.zero_grad()
                ((model(x) + model(2 * x)) * weights).mean().backward()
                optimizer.step()
    rho, also_rho = (dict(m.named_parameters())["rho"] for m in (module, twin))
    assert rho.max() > 1.0, "no step left [0, 1]: the test says nothing"
    assert difference([rho], [also_rho]) <= DIFFERENCE[backend]


@pytest.mark.parametrize("name", ["grad", "vmap", "per_sample", "jvp", "second"])
@pytest.mark.parametrize("norm", ["gn", "ln", "rms"])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_transforms_inside_a_compiled_program(backend, norm, name):
    """vmap stays an operator; derivatives inside are the formula's."""
    from torch.func import grad, jvp, vmap

    def loss(x, weight):
        if norm == "gn":
            return F.group_norm(x, 2, weight, weight, activation="silu").square().mean()
        if norm == "rms":
            return F.rms_norm(x.movedim(1, -1), (6,), weight).square().mean()
        return F.layer_norm(x.movedim(1, -1), (6,), weight, weight).square().mean()

    programs = {
        "grad": lambda xs, w: grad(loss, (0, 1))(xs[0], w),
        "vmap": lambda xs, w: (vmap(loss, (0, None))(xs, w),),
        "per_sample": lambda xs, w: vmap(grad(loss, (0, 1)), (0, None))(xs, w),
        "jvp": lambda xs, w: jvp(lambda w: loss(xs[0], w), (w,), (w,)),
        "second": lambda xs, w: (grad(lambda w: grad(loss, 1)(xs[0], w).square().sum())(w),),
    }
    xs = make_input((3, *SHAPE), dtype=torch.float32)
    weight = make_input((6,), dtype=torch.float32, seed=1)
    with fastnorm.use_backend(backend):
        found = torch.compile(programs[name], backend="aot_eager", fullgraph=True)(xs, weight)
        expected = programs[name](xs, weight)
    assert difference(found, expected) <= 1e-5


@pytest.mark.parametrize("name", [name for name in MODULES if name != "bin"])
@pytest.mark.parametrize("compiled", [False, True])
def test_checkpointing(name, compiled):
    """bin is left out where compiled: PyTorch refuses the projection of rho there (limits.md)."""
    module, x = MODULES[name]().to(DEVICE), make_input(SHAPE, dtype=torch.float32)
    x.requires_grad_()
    with running("triton"):
        loss(module.eval()(x)).backward()
    expected = [x.grad.clone(), *(p.grad.clone() for p in module.parameters())]
    module.zero_grad()
    x.grad = None

    def run(x):
        return checkpoint(module, x, use_reentrant=False)

    run = torch.compile(run, backend="aot_eager", fullgraph=True) if compiled else run
    with running("triton"):
        loss(run(x)).backward()
    assert difference([x.grad, *(p.grad for p in module.parameters())], expected) == 0.0


@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_compiled_under_autocast(backend):
    model = Net().to(DEVICE)
    run = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    with fastnorm.use_backend(backend), torch.autocast(DEVICE, torch.bfloat16):
        found, expected = run(image(4)), model(image(4))
    assert found.dtype == expected.dtype
    assert difference([found], [expected]) <= 0.1  # bfloat16 through five layers
