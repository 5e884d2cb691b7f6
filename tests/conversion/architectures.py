"""Real architectures of transformers, diffusers, timm, torchvision and monai, random weights.

`python -m tests.conversion.architectures` prints the table of docs/converting.md: the converted
norms of each model, and how far its outputs and gradients are then from the original model's.
"""

import argparse
import copy
import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

import fastnorm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMAGE = (2, 3, 64, 64)
TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


Built = tuple[nn.Module, dict[str, torch.Tensor]]
Build = Callable[[Any], Built]


class Architecture(NamedTuple):
    """`build(library)` is (model, inputs by name or position); counts are of norms."""

    library: str
    build: Build
    converted: int
    kept: frozenset[str]  # classes
    rounds: bool  # whether the library computes norms in float32 in a float64 model too


def rand(*shape: int) -> torch.Tensor:
    """Of a generator of its own: inputs do not depend on the weights."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def tokens(length: int = 12) -> torch.Tensor:
    return torch.arange(2 * length, device=DEVICE).view(2, length) * 7 % 62 + 1


def causal(name: str, config: str = "") -> Build:
    def build(transformers: Any) -> Built:
        kind = getattr(transformers, config or f"{name}Config")
        return getattr(transformers, f"{name}ForCausalLM")(kind(**TEXT)), {"input_ids": tokens()}

    return build


def of_images(name: str, **options: Any) -> Build:
    def build(transformers: Any) -> Built:
        config = getattr(transformers, f"{name}Config")(**options)
        return getattr(transformers, f"{name}Model")(config), {"pixel_values": rand(2, 3, 32, 32)}

    return build


def t5(transformers: Any) -> Built:
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )  # fmt: skip
    ids = {"input_ids": tokens(), "decoder_input_ids": tokens(6)}
    return transformers.T5ForConditionalGeneration(config), ids


def mamba2(transformers: Any) -> Built:
    config = transformers.Mamba2Config(
        vocab_size=64, hidden_size=32, num_heads=8, head_dim=8, state_size=8, n_groups=2,
        num_hidden_layers=2, chunk_size=4,
    )  # fmt: skip
    return transformers.Mamba2ForCausalLM(config), {"input_ids": tokens()}


def convnext(transformers: Any) -> Built:
    """LayerNorm, and a subclass of it over the channels of images."""
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)
    return transformers.ConvNextModel(config), {"pixel_values": rand(2, 3, 32, 32)}


def qwen3_next(transformers: Any) -> Built:
    """Gated RMS norms after linear attention, and weights that count from 1."""
    config = transformers.Qwen3NextConfig(
        **TEXT, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
        mlp_only_layers=[0, 1],  # experts have no float64
    )  # fmt: skip
    return transformers.Qwen3NextForCausalLM(config), {"input_ids": tokens()}


def timm_model(name: str, **options: Any) -> Build:
    return lambda timm: (timm.create_model(name, **options), {"x": rand(*IMAGE)})


def torchvision_model(name: str) -> Build:
    return lambda torchvision: (getattr(torchvision.models, name)(), {"x": rand(*IMAGE)})


def monai_net(name: str, shape: tuple[int, ...], **options: Any) -> Build:
    def build(monai: Any) -> Built:
        nets = importlib.import_module("monai.networks.nets")
        return getattr(nets, name)(**options), {"": rand(*shape)}

    return build


def vit_3d(monai: Any) -> Built:
    nets = importlib.import_module("monai.networks.nets")
    model = nets.ViT(1, (16, 16, 16), (8, 8, 8), hidden_size=24, mlp_dim=48, num_heads=2)
    return model, {"x": rand(*VOLUME)}


def unet(diffusers: Any) -> Built:
    """GroupNorm followed by SiLU, in ResNet blocks and beside attention."""
    model = diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, {"sample": rand(2, 3, 16, 16), "timestep": torch.tensor(7, device=DEVICE)}


def dit(diffusers: Any) -> Built:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8,
        norm_num_groups=4, num_embeds_ada_norm=10, out_channels=4,
    )  # fmt: skip
    numbers = {"timestep": torch.tensor([3, 7], device=DEVICE)}
    numbers["class_labels"] = torch.tensor([1, 2], device=DEVICE)
    return model, {"hidden_states": rand(2, 4, 8, 8), **numbers}


def flux(diffusers: Any) -> Built:
    model = diffusers.FluxTransformer2DModel(
        in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    inputs = {
        "hidden_states": rand(2, 6, 8), "encoder_hidden_states": rand(2, 4, 16),
        "pooled_projections": rand(2, 16), "timestep": torch.tensor([0.3, 0.7], device=DEVICE),
        "img_ids": torch.arange(18.0, device=DEVICE).view(6, 3),
        "txt_ids": torch.zeros(4, 3, device=DEVICE),
    }  # fmt: skip
    return model, inputs


def ada_group(diffusers: Any) -> Built:
    blocks = importlib.import_module("diffusers.models.unets.unet_2d_blocks")
    model = blocks.KDownBlock2D(16, 32, temb_channels=16, num_layers=2, resnet_group_size=8)
    return model, {"hidden_states": rand(2, 16, 8, 8), "temb": rand(2, 16)}


def of(library: str, build: Any, converted: int, *kept: str, rounds: bool = False) -> Architecture:
    return Architecture(library, build, converted, frozenset(kept), rounds)


VIT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
RESNET = {
    "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic",
}  # fmt: skip
VOLUME = (1, 1, 16, 16, 16)
MONAI_UNET = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": (4, 8), "strides": (2,),
}  # fmt: skip
ARCHITECTURES = {
    "Llama": of("transformers", causal("Llama"), 5, rounds=True),
    "Mistral": of("transformers", causal("Mistral"), 5, rounds=True),
    "Qwen3": of("transformers", causal("Qwen3"), 9, rounds=True),
    "Gemma2": of("transformers", causal("Gemma2"), 9, rounds=True),
    "Gemma3": of("transformers", causal("Gemma3", "Gemma3TextConfig"), 13, rounds=True),
    "Phi3": of("transformers", causal("Phi3"), 5, rounds=True),
    "Olmo2": of("transformers", causal("Olmo2"), 9, rounds=True),
    "Cohere": of("transformers", causal("Cohere"), 3, rounds=True),
    "T5": of("transformers", t5, 12, rounds=True),
    "Mamba2": of("transformers", mamba2, 5, rounds=True),
    "Qwen3Next": of("transformers", qwen3_next, 8, rounds=True),
    "ViT": of("transformers", of_images("ViT", **VIT), 5),
    "ResNet": of("transformers", of_images("ResNet", **RESNET), 10),
    "ConvNeXt": of("transformers", convnext, 6),
    "UNet2D": of("diffusers", unet, 21),
    "DiT": of("diffusers", dit, 7),
    "Flux": of("diffusers", flux, 16),
    "KDownBlock2D": of("diffusers", ada_group, 4),
    "convnext_atto": of("timm", timm_model("convnext_atto"), 17),
    "resnetv2_50d_gn": of("timm", timm_model("resnetv2_50d_gn", layers=(1, 1, 1, 1)), 15),
    "efficientnet_b0": of("timm", timm_model("efficientnet_b0"), 49),
    "vit_tiny": of("timm", timm_model("vit_tiny_patch16_224", img_size=64, depth=2), 5),
    "convnext_tiny": of("torchvision", torchvision_model("convnext_tiny"), 23),
    "resnet18": of("torchvision", torchvision_model("resnet18"), 20),
    "swin_t": of("torchvision", torchvision_model("swin_t"), 29),
    "SegResNet": of("monai", monai_net("SegResNet", VOLUME), 25),
    "UNet": of("monai", monai_net("UNet", VOLUME, **MONAI_UNET), 2),
    "ViT3D": of("monai", vit_3d, 37),
}


def build(name: str, dtype: torch.dtype) -> Built:
    architecture = ARCHITECTURES[name]
    library = importlib.import_module(architecture.library)
    torch.manual_seed(0)
    model, inputs = architecture.build(library)
    model = model.to(DEVICE, dtype)
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():  # no 0 of an initialisation may hide a difference
        if p.dim() == 1:
            p.data.add_((torch.randn(p.shape, generator=generator) / 8).to(p))
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    return model, cast


def step(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Output, gradients and buffers by name, after a forward and a backward."""
    model.zero_grad()
    torch.manual_seed(3)  # of dropout
    y = model(*inputs.values()) if "" in inputs else model(**inputs)
    while not isinstance(y, torch.Tensor):
        y = y[0] if isinstance(y, tuple | list) else next(iter(y.values()))
    torch.manual_seed(1)
    y.backward(torch.randn_like(y))
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"output": y.detach(), **grads, **dict(model.named_buffers())}


def difference(found: dict[str, Any], expected: dict[str, Any]) -> tuple[float, float]:
    """(of the outputs, of all else), each against the tensor's largest magnitude.

    Or against a hundredth of the largest of all tensors: the gradient of a bias before a norm is 0
    but for rounding.
    """
    assert found.keys() == expected.keys()
    largest = max(exact.abs().max().item() for exact in expected.values())
    errors = {}
    for name, exact in expected.items():
        scale = max(exact.abs().max().item(), largest / 100)
        errors[name] = (found[name] - exact).abs().max().item() / scale
    return errors.pop("output"), max(errors.values())


def compare(
    name: str, dtype: torch.dtype, training: bool = True
) -> tuple[fastnorm.Conversion, tuple[float, float]]:
    """What was converted, and the differences that it makes."""
    model, inputs = build(name, dtype)
    twin = copy.deepcopy(model.train(training))
    report = fastnorm.convert(model)
    return report, difference(step(model, inputs), step(twin, inputs))


def main() -> None:
    parser = argparse.ArgumentParser(description="the table of docs/converting.md")
    parser.add_argument("names", nargs="*", default=list(ARCHITECTURES))
    warnings.simplefilter("ignore")
    errors = "float32: output | gradients | float64: output | gradients"
    print(f"| model | library | norms converted | of | {errors} |")
    print("|---|---|---|---|---|---|---|---|")
    for name in parser.parse_args().names:
        library = ARCHITECTURES[name].library
        try:
            report, single = compare(name, torch.float32)
            _, double = compare(name, torch.float64)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        version = importlib.metadata.version(library)
        numbers = len(report.changed), len(report.changed) + len(report.kept)
        errors = [f"{error:.0e}" for error in (*single, *double)]
        cells = name, f"{library} {version}", *numbers, *errors
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        for kept in report.kept:
            print(f"{name}: {kept}", file=sys.stderr)


if __name__ == "__main__":
    main()
