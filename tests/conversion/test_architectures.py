"""convert and fuse on real architectures, small and with random weights: `pip install .[models]`.

Run with -s for the differences. The models are float64: what a norm rounds otherwise than torch's
must not be amplified into the tolerance.
"""

import copy

import pytest
import torch

import fastnorm
from tests.conftest import DEVICE, make_input

pytestmark = pytest.mark.slow
WHY = "needs the models of the extra: pip install 'fastnorm-triton[models]'"
transformers = pytest.importorskip("transformers", reason=WHY)
diffusers = pytest.importorskip("diffusers", reason=WHY)

IMAGE = (2, 3, 32, 32)


def resnet():
    """BatchNorm2d, ReLU, residual additions in place."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic"
    )
    return transformers.ResNetModel(config), {"pixel_values": make_input(IMAGE)}


def convnext():
    """LayerNorm, and a subclass of it over the channels of images."""
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)
    return transformers.ConvNextModel(config), {"pixel_values": make_input(IMAGE)}


def vit():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8,
    )  # fmt: skip
    return transformers.ViTModel(config), {"pixel_values": make_input(IMAGE)}


def llama():
    """RMS norms of a class of its own."""
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    tokens = torch.arange(24, device=DEVICE).view(2, 12) * 7 % 64
    return transformers.LlamaForCausalLM(config), {"input_ids": tokens}


def unet():
    """GroupNorm followed by SiLU, in ResNet blocks and beside attention."""
    model = diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, {"sample": make_input((2, 3, 16, 16)), "timestep": torch.tensor(7, device=DEVICE)}


# model, how many norms are converted, the classes of what is kept
ARCHITECTURES = {
    "resnet": (resnet, 10, set()),
    "convnext": (convnext, 1, {"ConvNextLayerNorm"}),
    "vit": (vit, 5, set()),
    "llama": (llama, 0, {"LlamaRMSNorm"}),
    "unet": (unet, 21, set()),
}


def build(name):
    torch.manual_seed(0)
    model, inputs = ARCHITECTURES[name][0]()
    model = model.to(DEVICE, torch.float64)
    for i, p in enumerate(model.parameters()):  # no 0 of an initialisation may hide a difference
        if p.dim() == 1:
            p.data.add_(make_input(p.shape, seed=i) / 8)
    return model, inputs


def step(model, inputs):
    """Output, gradients and buffers by name, after a forward and a backward."""
    model.zero_grad()
    y = next(iter(model(**inputs, return_dict=False)))
    torch.manual_seed(1)
    y.backward(torch.randn_like(y))
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"output": y.detach(), **grads, **dict(model.named_buffers())}


def difference(found, expected):
    """(of the outputs, of all else), each against the tensor's largest magnitude.

    Or against 1e-3: the gradient of an attention's key bias is 0 but for rounding.
    """
    assert found.keys() == expected.keys()
    errors = {}
    for name, exact in expected.items():
        scale = max(exact.abs().max().item(), 1e-3)
        errors[name] = (found[name] - exact).abs().max().item() / scale
    return errors.pop("output"), max(errors.values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_converted_models_answer_as_before(name, training):
    twin, inputs = build(name)
    model, _ = build(name)
    _, count, kept = ARCHITECTURES[name]
    twin.train(training), model.train(training)
    report = fastnorm.convert(model)
    assert len(report.changed) == count, report
    assert {k.type.rsplit(".")[-1] for k in report.kept} == kept, report
    assert list(model.state_dict()) == list(twin.state_dict())
    fused = fastnorm.fuse(model)
    torch.manual_seed(2)
    expected = step(twin, inputs)
    torch.manual_seed(2)
    errors = difference(step(model, inputs), expected)
    print(f"\n{name} training={training}: {len(report.changed)} norms converted, "
          f"{len(fused.changed)} fused, {len(report.kept)} kept; differences "
          f"{errors[0]:.1e} output, {errors[1]:.1e} gradients and buffers")  # fmt: skip
    assert max(errors) < 1e-9
    fastnorm.revert(model)
    assert repr(model) == repr(twin)
    assert max(difference(step(model, inputs), step(twin, inputs))) < 1e-9


@pytest.mark.parametrize("to", ["in", "gn", "ln", "bin"])
def test_a_resnet_with_another_norm_trains(to):
    model, inputs = build("resnet")
    fastnorm.convert(model, to, groups=4 if to == "gn" else None)
    found = step(model, inputs)
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_blocks_of_a_resnet_are_traced():
    """The whole model has optional arguments; its residual blocks have not."""
    model, inputs = build("resnet")
    fastnorm.convert(model)
    with pytest.raises(ValueError, match="optional arguments"):
        fastnorm.fuse(model, inputs["pixel_values"])
    for stage, channels in zip(model.encoder.stages, (8, 16), strict=True):
        block = copy.deepcopy(stage.layers[-1])
        x = make_input((2, channels, 8, 8))
        report = fastnorm.fuse(block, x)
        assert len(report.changed) == 2 and "residual" in report.changed[1].new, report
        with torch.no_grad():
            assert (report.model(x) - copy.deepcopy(stage.layers[-1])(x)).abs().max() < 1e-12
