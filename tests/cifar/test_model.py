"""The network: its size, and that a norm's backend changes nothing but who computes it."""

import pytest
import torch
from errors import UserError
from model import build_model, initialise
from torch import nn

import fastnorm

NORMS_OF_TORCH = ("bn", "in", "ln", "gn", "none")


@pytest.mark.parametrize("backend", ["builtin", "aten"])
def test_parameter_count_is_the_studys(backend: str) -> None:
    model = build_model("bn", backend, depth_n=2, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 175_818


@pytest.mark.parametrize("n", [1, 2, 3])
def test_has_6n_plus_2_layers(n: int) -> None:
    modules = list(build_model("gn", "builtin", depth_n=n, seed=0).modules())
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    linears = [m for m in modules if isinstance(m, nn.Linear)]
    assert len(convolutions) + len(linears) == 6 * n + 2
    assert all(m.bias is not None for m in convolutions)


@pytest.mark.parametrize("backend", ["builtin", "aten"])
def test_groups_of_ln_and_gn(backend: str) -> None:
    layer = build_model("ln", backend, depth_n=1, seed=0)
    group = build_model("gn", backend, depth_n=1, seed=0)
    assert [layer.norm.num_groups, layer.blocks[-1].norm2.num_groups] == [1, 1]
    assert [group.norm.num_groups, group.blocks[-1].norm2.num_groups] == [4, 16]


@pytest.mark.parametrize("norm", NORMS_OF_TORCH)
@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_same_as_builtin(norm: str, backend: str) -> None:
    """Training and eval: in float64, so what differs is the order of sums, not their precision."""
    ours = build_model(norm, backend, depth_n=1, seed=3).double()
    torchs = build_model(norm, "builtin", depth_n=1, seed=3).double()
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
    model = build_model("bn", "builtin", depth_n=1, seed=0).state_dict()
    for norm in ("bin", "sn", "wn", *NORMS_OF_TORCH):
        other = build_model(norm, "aten", depth_n=1, seed=0).state_dict()
        conv2 = "parametrizations.weight.original1" if norm == "wn" else "weight"
        assert torch.equal(model["blocks.2.conv2.weight"], other[f"blocks.2.conv2.{conv2}"])
        assert torch.equal(model["linear.bias"], other["linear.bias"])
    other = build_model("bn", "builtin", depth_n=1, seed=1).state_dict()
    assert not torch.equal(model["linear.bias"], other["linear.bias"])


@pytest.mark.parametrize(("norm", "missing"), [("bin", "BIN"), ("sn", "SN"), ("wn", "mean-only")])
def test_torch_does_not_have_it(norm: str, missing: str) -> None:
    with pytest.raises(UserError, match=f"no {missing}"):
        build_model(norm, "builtin", depth_n=1, seed=0)


def test_wn_normalises_all_convolutions_and_subtracts_means() -> None:
    model = build_model("wn", "aten", depth_n=1, seed=0)
    plain = build_model("none", "aten", depth_n=1, seed=0)
    named = dict(plain.named_modules())
    convolutions = [(k, m) for k, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 9
    with fastnorm.use_backend("aten"):
        for name, convolution in convolutions:
            torch.testing.assert_close(convolution.weight, named[name].weight)
    assert all("parametrizations.weight.original0" in m.state_dict() for _, m in convolutions)
    means = [m for m in model.modules() if isinstance(m, fastnorm.MeanOnlyBatchNorm2d)]
    assert len(means) == 9 and sum(m.activation == "relu" for m in means) == 7


def test_wn_is_initialised_by_data() -> None:
    model = build_model("wn", "aten", depth_n=1, seed=0)
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    with fastnorm.use_backend("aten"):
        initialise(model, "wn", x)
        for convolution in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
            convolution.register_forward_hook(lambda _module, _inputs, y: found.append(y.detach()))
        model(x)
    assert len(found) == 9
    for y in found:
        var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        torch.testing.assert_close(var, torch.ones_like(var), rtol=1e-3, atol=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-3)
