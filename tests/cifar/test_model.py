"""The network: its size, and the same results with every backend of a norm."""

import pytest
import torch
from torch import nn

import fastnorm
from harness import builtin_norms
from harness.errors import UserError
from harness.model import (
    Architecture,
    PadShortcut,
    build_model,
    initialise,
    make_model,
    require_synchronised,
)

NORMS_OF_TORCH = ("bn", "in", "ln", "gn", "none")


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_parameter_count_is_the_studys(backend: str) -> None:
    model = build_model(Architecture("bn", depth_n=2), backend, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 175_818


@pytest.mark.parametrize("n", [1, 2, 3])
def test_has_6n_plus_2_layers(n: int) -> None:
    modules = list(build_model(Architecture("gn", depth_n=n), "torch", seed=0).modules())
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    linears = [m for m in modules if isinstance(m, nn.Linear)]
    assert len(convolutions) + len(linears) == 6 * n + 2
    assert all(m.bias is not None for m in convolutions)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_groups_of_ln_and_gn(backend: str) -> None:
    layer = build_model(Architecture("ln", depth_n=1), backend, seed=0)
    group = build_model(Architecture("gn", depth_n=1), backend, seed=0)
    assert [layer.norm.num_groups, layer.blocks[-1].norm2.num_groups] == [1, 1]
    assert [group.norm.num_groups, group.blocks[-1].norm2.num_groups] == [4, 16]


@pytest.mark.parametrize("norm", NORMS_OF_TORCH)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_same_as_builtin(norm: str, backend: str) -> None:
    """Training and eval: in float64, so what differs is the order of sums, not their precision."""
    ours = build_model(Architecture(norm, depth_n=1), backend, seed=3).double()
    torchs = build_model(Architecture(norm, depth_n=1), "torch", seed=3).double()
    assert list(ours.state_dict()) == list(torchs.state_dict())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    outputs, gradients = [], []
    for model in (ours, torchs):
        with fastnorm.use_backend(backend):
            train = model(x)
            train.square().sum().backward()
            outputs.append([train, model.eval()(x)])  # eval reads the statistics that train wrote
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    # A conv's bias before a norm has gradient 0 up to rounding, next to gradients of about 100.
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


def test_weights_depend_on_the_seed_alone() -> None:
    model = build_model(Architecture("bn", depth_n=1), "torch", seed=0).state_dict()
    for norm in ("bin", "rms", "sn", "wn", *NORMS_OF_TORCH):
        other = build_model(Architecture(norm, depth_n=1), "cpu", seed=0).state_dict()
        conv2 = "parametrizations.weight.original1" if norm == "wn" else "weight"
        assert torch.equal(model["blocks.2.conv2.weight"], other[f"blocks.2.conv2.{conv2}"])
        assert torch.equal(model["linear.bias"], other["linear.bias"])
    other = build_model(Architecture("bn", depth_n=1), "torch", seed=1).state_dict()
    assert not torch.equal(model["linear.bias"], other["linear.bias"])


@pytest.mark.parametrize(("norm", "missing"), [("bin", "BIN"), ("sn", "SN"), ("wn", "mean-only")])
def test_torch_does_not_have_it(norm: str, missing: str) -> None:
    with pytest.raises(UserError, match=f"no {missing}"):
        build_model(Architecture(norm, depth_n=1), "torch", seed=0)


def test_wn_normalises_all_convolutions_and_subtracts_means() -> None:
    model = build_model(Architecture("wn", depth_n=1), "cpu", seed=0)
    plain = build_model(Architecture("none", depth_n=1), "cpu", seed=0)
    named = dict(plain.named_modules())
    convolutions = [(k, m) for k, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 9
    with fastnorm.use_backend("cpu"):
        for name, convolution in convolutions:
            torch.testing.assert_close(convolution.weight, named[name].weight)
    assert all("parametrizations.weight.original0" in m.state_dict() for _, m in convolutions)
    means = [m for m in model.modules() if isinstance(m, fastnorm.MeanOnlyBatchNorm2d)]
    assert len(means) == 9 and sum(m.activation == "relu" for m in means) == 7


def test_wn_is_initialised_by_data() -> None:
    model = build_model(Architecture("wn", depth_n=1), "cpu", seed=0)
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    with fastnorm.use_backend("cpu"):
        initialise(model, "wn", x)
        for convolution in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
            convolution.register_forward_hook(lambda _module, _inputs, y: found.append(y.detach()))
        model(x)
    assert len(found) == 9
    for y in found:
        var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        torch.testing.assert_close(var, torch.ones_like(var), rtol=1e-3, atol=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-3)


def test_he_has_as_many_parameters_as_the_paper_says() -> None:
    """0.27, 0.46, 0.66, 0.85 and 1.7 million (arXiv 1512.03385, table 6); here with biases."""
    millions = [
        sum(p.numel() for p in make_model(Architecture("bn", n, "pad"), "torch").parameters())
        for n in (3, 5, 7, 9, 18)
    ]
    assert [round(count / 1e4) for count in millions] == [27, 47, 66, 86, 173]


def test_a_padded_shortcut_adds_nothing_but_zeros() -> None:
    x = torch.randn(2, 3, 8, 6)
    y = PadShortcut(3, 5)(x)
    assert y.shape == (2, 5, 4, 3) and not y[:, 3:].any()
    for row in range(4):
        for column in range(3):
            assert torch.equal(y[:, :3, row, column], x[:, :, 2 * row, 2 * column])


def test_he_initialisation() -> None:
    """Normal, variance 2 / fan-in; torch.nn's own is uniform with a sixth of it."""
    weight = build_model(Architecture("bn"), "torch", 0, True).blocks[-1].conv2.weight
    assert weight.var().item() == pytest.approx(2 / (9 * 64), rel=0.03)
    wn = build_model(Architecture("wn"), "cpu", 0, True).blocks[-1].conv2
    assert torch.equal(wn.weight, weight) or torch.allclose(wn.weight, weight, rtol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_number_of_groups(backend: str) -> None:
    model = build_model(Architecture("gn", groups=8), backend, 0)
    assert [model.norm.num_groups, model.blocks[-1].norm2.num_groups] == [8, 8]


def test_torchs_synchronised_batch_norm_keeps_relu_and_parameters() -> None:
    model = build_model(Architecture("bn"), "torch", 0)
    state = model.state_dict()
    converted = builtin_norms.convert_sync_batchnorm(model)
    norms = [m for m in converted.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 15 and [norm.activation for norm in norms].count("relu") == 13
    torch.testing.assert_close(converted.state_dict(), state)


def test_norms_that_cannot_be_synchronised() -> None:
    for norm, backend, message in (("wn", "cpu", "mean-only"), ("bn", "torch", "needs GPUs")):
        with pytest.raises(UserError, match=message):
            require_synchronised(norm, backend, torch.device("cpu"))


def test_rms_norm_of_images() -> None:
    """Against its definition; torch.nn.RMSNorm has it without the weight per channel."""
    norm = build_model(Architecture("rms"), "cpu", 0).blocks[-1].norm2.double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 64))
    x = 1 + torch.randn(3, 64, 5, 4, dtype=torch.float64, requires_grad=True)
    y = norm(x)
    plain = nn.functional.rms_norm(x, x.shape[1:], eps=1e-5)
    expected = (plain * norm.weight[:, None, None]).relu()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    dy = torch.randn_like(y)
    ours, truth = (torch.autograd.grad(z, (x, norm.weight), dy) for z in (y, expected))
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
