"""Stand-ins for classes of libraries: their names, attributes, signatures and formulas.

So the libraries are not needed. `tests.conversion.architectures` has the real ones.
"""

import torch
import torch.nn.functional as F
from torch import nn


def named(qualified):
    """A decorator: the class is called so, and by its own name in this file."""

    def rename(cls):
        cls.__module__, _, cls.__qualname__ = qualified.rpartition(".")
        cls.__name__ = cls.__qualname__
        return cls

    return rename


def of_transformers(model, name):
    return named(f"transformers.models.{model}.modeling_{model}.{name}")


def normalised(x, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class OfWidth(nn.Module):
    """What most of transformers' norms have."""

    def __init__(self, width=8, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps


@of_transformers("llama", "LlamaRMSNorm")
class Llama(OfWidth):
    """Rounds to the input's dtype before it multiplies."""

    def forward(self, hidden_states):
        y = normalised(hidden_states.float(), self.variance_epsilon)
        return self.weight * y.to(hidden_states.dtype)


@of_transformers("t5", "T5LayerNorm")
class T5(OfWidth):
    """Answers in the weight's dtype where that is half precision."""

    def forward(self, hidden_states):
        variance = hidden_states.float().square().mean(-1, keepdim=True)
        y = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            y = y.to(self.weight.dtype)
        return self.weight * y


@of_transformers("cohere", "CohereLayerNorm")
class Cohere(OfWidth):
    """Layer norm without a bias."""

    def forward(self, hidden_states):
        x = hidden_states.float()
        x = normalised(x - x.mean(-1, keepdim=True), self.variance_epsilon)
        return (self.weight.float() * x).to(hidden_states.dtype)


@of_transformers("gemma2", "Gemma2RMSNorm")
class Gemma(nn.Module):
    def __init__(self, width=8, eps=1e-6):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return (normalised(x.float(), self.eps) * (1.0 + self.weight.float())).type_as(x)


@of_transformers("mamba2", "MambaRMSNormGated")
class Mamba(OfWidth):
    """The gate first, then RMS norm of groups."""

    def __init__(self, width=8, group_size=4):
        super().__init__(width)
        self.group_size = group_size

    def forward(self, hidden_states, gate=None):
        x = hidden_states.float()
        x = x if gate is None else x * F.silu(gate.float())
        y = normalised(x.unflatten(-1, (-1, self.group_size)), self.variance_epsilon).flatten(-2)
        return self.weight * y.to(hidden_states.dtype)


@of_transformers("falcon_h1", "FalconH1RMSNormGated")
class Falcon(Mamba):
    """Says the number of groups and the order."""

    def __init__(self, width=8, n_groups=2, norm_before_gate=False):
        super().__init__(width, width // n_groups)
        self.n_groups, self.norm_before_gate = n_groups, norm_before_gate
        del self.group_size

    def forward(self, hidden_states, gate=None):
        x = hidden_states.float()
        first = gate is not None and not self.norm_before_gate
        x = x * F.silu(gate.float()) if first else x
        y = normalised(x.unflatten(-1, (self.n_groups, -1)), self.variance_epsilon).flatten(-2)
        y = self.weight * y
        later = gate is not None and self.norm_before_gate
        return (y * F.silu(gate.float()) if later else y).to(hidden_states.dtype)


@of_transformers("qwen3_next", "Qwen3NextRMSNormGated")
class QwenGated(OfWidth):
    """RMS norm first, then the gate, which it needs."""

    def __init__(self, width=8, activation="silu"):
        super().__init__(width)
        self.activation = activation

    def forward(self, hidden_states, gate=None):
        y = normalised(hidden_states.float(), self.variance_epsilon)
        y = self.weight * y.to(hidden_states.dtype)
        act = F.silu if self.activation == "silu" else torch.sigmoid
        return (y * act(gate.float())).to(hidden_states.dtype)


@of_transformers("olmo", "OlmoLayerNorm")
class Olmo(nn.Module):
    """Without parameters, and with an eps that no attribute tells."""

    def __init__(self, width=8):
        super().__init__()
        self.normalized_shape = (width,)

    def forward(self, hidden_states):
        y = F.layer_norm(hidden_states.float(), self.normalized_shape, None, None, eps=1e-5)
        return y.to(hidden_states.dtype)


@of_transformers("convnext", "ConvNextLayerNorm")
class ConvNext(nn.LayerNorm):
    def __init__(self, width=8, data_format="channels_first"):
        super().__init__(width, eps=1e-6)
        self.data_format = data_format

    def forward(self, features):
        if self.data_format == "channels_first":
            return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super().forward(features)


@named("torchvision.models.convnext.LayerNorm2d")
class TorchvisionLayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)


@named("timm.layers.norm.RmsNorm")
class TimmRmsNorm(nn.Module):
    def __init__(self, width=8, affine=True):
        super().__init__()
        self.normalized_shape, self.eps, self.elementwise_affine = (width,), 1e-6, affine
        self.register_parameter("weight", nn.Parameter(torch.ones(width)) if affine else None)

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class WithActivation:
    def add(self, act, drop):
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.ReLU(inplace=True) if act is None else act
        return self

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


@named("timm.layers.norm_act.GroupNormAct")
class TimmGroupNormAct(WithActivation, nn.GroupNorm):
    def __init__(self, channels=8, groups=2, act=None, drop=None):
        super().__init__(groups, channels)
        self.add(act, drop)

    def forward(self, x):
        return super().forward(x)


@named("timm.layers.norm_act.BatchNormAct2d")
class TimmBatchNormAct2d(WithActivation, nn.BatchNorm2d):
    def __init__(self, channels=8, act=None, drop=None):
        super().__init__(channels)
        self.add(act, drop)

    def forward(self, x):
        return super().forward(x)


@named("timm.layers.activations.GELU")
class TimmGELU(nn.Module):
    def forward(self, input):
        return F.gelu(input)


@named("diffusers.models.normalization.RMSNorm")
class DiffusersRMSNorm(nn.Module):
    """Its parameters may be plain attributes that are None."""

    def __init__(self, width=8, affine=True, bias=False):
        super().__init__()
        self.eps, self.elementwise_affine, self.dim = 1e-6, affine, torch.Size((width,))
        self.weight = self.bias = None
        if affine:
            self.weight = nn.Parameter(torch.ones(width))
        if bias:
            self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_states):
        variance = hidden_states.float().square().mean(-1, keepdim=True)
        y = hidden_states * torch.rsqrt(variance + self.eps)
        if self.weight is None:
            return y.to(hidden_states.dtype)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            y = y.to(self.weight.dtype)
        y = y * self.weight
        return y if self.bias is None else y + self.bias


@named("diffusers.models.normalization.FP32LayerNorm")
class DiffusersFP32LayerNorm(nn.LayerNorm):
    def forward(self, inputs):
        parameters = (None if p is None else p.float() for p in (self.weight, self.bias))
        y = F.layer_norm(inputs.float(), self.normalized_shape, *parameters, self.eps)
        return y.to(inputs.dtype)


@named("diffusers.models.normalization.AdaGroupNorm")
class DiffusersAdaGroupNorm(nn.Module):
    def __init__(self, width=6, channels=8, groups=2, act=None):
        super().__init__()
        self.num_groups, self.eps, self.act = groups, 1e-5, act
        self.linear = nn.Linear(width, 2 * channels)

    def forward(self, x, emb):
        emb = self.act(emb) if self.act else emb
        scale, shift = self.linear(emb)[:, :, None, None].chunk(2, dim=1)
        return F.group_norm(x, self.num_groups, eps=self.eps) * (1 + scale) + shift


@named("diffusers.models.normalization.AdaLayerNorm")
class DiffusersAdaLayerNorm(nn.Module):
    def __init__(self, width=8, embeddings=None, chunk_dim=0):
        super().__init__()
        self.chunk_dim = chunk_dim
        self.emb = nn.Embedding(embeddings, width) if embeddings else None
        self.silu, self.linear = nn.SiLU(), nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x, timestep=None, temb=None):
        parts = self.linear(self.silu(temb if self.emb is None else self.emb(timestep)))
        if self.chunk_dim == 1:
            shift, scale = (part[:, None, :] for part in parts.chunk(2, dim=1))
        else:
            scale, shift = parts.chunk(2, dim=0)
        return self.norm(x) * (1 + scale) + shift


class Embeddings(nn.Module):
    """Of time steps and classes; some classes are dropped in training, at random."""

    def __init__(self, width):
        super().__init__()
        self.steps, self.classes = nn.Linear(1, width), nn.Embedding(4, width)

    def forward(self, timestep, class_labels, hidden_dtype=None):
        labels = class_labels
        if self.training:
            labels = torch.where(torch.rand(labels.shape[0], device=labels.device) < 0.5, 3, labels)
        return self.steps(timestep[:, None].to(hidden_dtype)) + self.classes(labels)


@named("diffusers.models.normalization.AdaLayerNormZero")
class DiffusersAdaLayerNormZero(nn.Module):
    def __init__(self, width=8, embeddings=None, norm=None):
        super().__init__()
        self.emb = Embeddings(width) if embeddings else None
        self.silu, self.linear = nn.SiLU(), nn.Linear(width, 6 * width)
        self.norm = norm or nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)

    def forward(self, x, timestep=None, class_labels=None, hidden_dtype=None, emb=None):
        if self.emb is not None:
            emb = self.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
        shift, scale, *rest = self.linear(self.silu(emb)).chunk(6, dim=1)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None], *rest


@named("diffusers.models.normalization.AdaLayerNormZeroSingle")
class DiffusersAdaLayerNormZeroSingle(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.silu, self.linear = nn.SiLU(), nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)

    def forward(self, x, emb=None):
        shift, scale, gate = self.linear(self.silu(emb)).chunk(3, dim=1)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None], gate


@named("diffusers.models.normalization.AdaLayerNormContinuous")
class DiffusersAdaLayerNormContinuous(nn.Module):
    def __init__(self, width=8, norm=None):
        super().__init__()
        self.silu, self.linear = nn.SiLU(), nn.Linear(6, 2 * width)
        self.norm = norm or nn.LayerNorm(width, 1e-5)

    def forward(self, x, conditioning_embedding):
        emb = self.linear(self.silu(conditioning_embedding).to(x.dtype))
        scale, shift = emb.chunk(2, dim=1)
        return self.norm(x) * (1 + scale)[:, None, :] + shift[:, None, :]
