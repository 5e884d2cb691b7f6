"""The norms under test, how each is called, and truths that share no code with fastnorm.

Every norm is called through a namespace with fastnorm.functional's signatures: fastnorm.functional,
fastnorm.reference, or `Torch` below (torch.nn.functional, batch-instance norm composed from it).
`numpy_norm` is a third route: the definition spelled out in float64 numpy.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as TF

from tests.conftest import DEVICE, make_input

NORMS = (
    "bn_train",
    "bn_eval",
    "bn_no_stats",
    "in",
    "in_eval",
    "bin_train",
    "bin_eval",
    "mean_train",
    "mean_eval",
    "ln",
    "rms",
    "gn",
)
OF_ROWS = ("ln", "rms")  # the last dimensions normalised, of which each element has a parameter
AFFINE = ("full", "weight", "none")
ACTIVATIONS = ("relu", "silu", "gelu")
EPS = 1e-5
GRADS = ("weight", "bias", "rho")  # the parameters that have a gradient
STATS = ("running_mean", "running_var")
Params = dict[str, torch.Tensor | None]


class Torch:
    """torch.nn.functional plus `activation`, `residual`, batch-instance norm: step by step."""

    @staticmethod
    def finish(
        y: torch.Tensor, activation: str | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        y = y if residual is None else y + residual
        return y if activation is None else getattr(TF, activation)(y)

    @classmethod
    def batch_norm(cls, *args: Any, activation=None, residual=None, **kwargs: Any) -> torch.Tensor:
        return cls.finish(TF.batch_norm(*args, **kwargs), activation, residual)

    @classmethod
    def instance_norm(
        cls, *args: Any, activation=None, residual=None, **kwargs: Any
    ) -> torch.Tensor:
        return cls.finish(TF.instance_norm(*args, **kwargs), activation, residual)

    @classmethod
    def layer_norm(cls, *args: Any, activation=None, residual=None, **kwargs: Any) -> torch.Tensor:
        return cls.finish(TF.layer_norm(*args, **kwargs), activation, residual)

    @classmethod
    def rms_norm(cls, *args: Any, activation=None, residual=None, **kwargs: Any) -> torch.Tensor:
        return cls.finish(TF.rms_norm(*args, **kwargs), activation, residual)

    @classmethod
    def group_norm(cls, *args: Any, activation=None, residual=None, **kwargs: Any) -> torch.Tensor:
        return cls.finish(TF.group_norm(*args, **kwargs), activation, residual)

    @classmethod
    def mean_only_batch_norm(
        cls,
        x: torch.Tensor,
        running_mean: torch.Tensor | None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        *,
        activation: str | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        per_channel = (1, -1) + (1,) * (x.dim() - 2)
        mean = x.transpose(0, 1).flatten(1).mean(1) if training else running_mean
        if training and running_mean is not None and x.numel():
            running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
        y = x - mean.view(per_channel)
        y = y if bias is None else y + bias.view(per_channel)
        return cls.finish(y.to(x.dtype), activation, residual)

    @classmethod
    def batch_instance_norm(
        cls,
        x: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        rho: torch.Tensor,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = EPS,
        *,
        activation: str | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        per_channel = (1, -1) + (1,) * (x.dim() - 2)
        over_batch = TF.batch_norm(
            x, running_mean, running_var, training=training, momentum=momentum, eps=eps
        )
        over_instance = TF.instance_norm(x, eps=eps)
        mix = rho.view(per_channel)
        y = mix * over_batch + (1 - mix) * over_instance
        y = y if weight is None else y * weight.view(per_channel)
        y = y if bias is None else y + bias.view(per_channel)
        return cls.finish(y.to(x.dtype), activation, residual)


def groups_of(channels: int) -> int:
    """A number of groups that divides `channels`, neither 1 nor all of them where possible."""
    return next((g for g in (2, 3, 5) if channels % g == 0 and channels > g), 1)


def make_params(
    norm: str,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    affine: str = "full",
    *,
    seed: int = 100,
    requires_grad: bool = False,
) -> Params:
    """What `norm` takes beside x of `shape`: rho in (0, 1), weights about 1, and statistics."""
    per_element = tuple(shape[1:]) if norm in OF_ROWS else (shape[1],)

    def draw(offset: int, size: tuple[int, ...]) -> torch.Tensor:
        return make_input(size, dtype=dtype, seed=seed + offset)

    params: Params = dict.fromkeys((*GRADS, *STATS))
    if affine in ("full", "weight") and not norm.startswith("mean"):
        params["weight"] = draw(1, per_element) * 0.3 + 1.1
    if affine == "full" and norm != "rms":
        params["bias"] = draw(2, per_element) * 0.5
    if norm.startswith("bin"):
        params["rho"] = torch.sigmoid(draw(3, (shape[1],)))
    if norm not in ("bn_no_stats", "in", "ln", "rms", "gn"):
        params["running_mean"] = draw(4, (shape[1],)) * 0.2
    if params["running_mean"] is not None and not norm.startswith("mean"):
        params["running_var"] = draw(5, (shape[1],)).abs() + 0.5
    for name in GRADS:
        if (p := params[name]) is not None and requires_grad:
            params[name] = p.detach().requires_grad_()
    return params


def call(functional: Any, norm: str, x: torch.Tensor, p: Params, **kwargs: Any) -> torch.Tensor:
    """`norm` of x with parameters p through `functional`'s function of that family."""
    affine = {"weight": p["weight"], "bias": p["bias"]}
    stats = (p["running_mean"], p["running_var"])
    if norm.startswith("bn"):
        return functional.batch_norm(x, *stats, **affine, training=norm != "bn_eval", **kwargs)
    if norm.startswith("in"):
        return functional.instance_norm(
            x, *stats, **affine, use_input_stats=norm != "in_eval", **kwargs
        )
    if norm.startswith("mean"):
        return functional.mean_only_batch_norm(
            x, p["running_mean"], p["bias"], training=norm == "mean_train", **kwargs
        )
    if norm.startswith("bin"):
        return functional.batch_instance_norm(
            x, *stats, p["rho"], **affine, training=norm == "bin_train", **kwargs
        )
    if norm == "ln":
        return functional.layer_norm(x, x.shape[1:], **affine, **kwargs)
    if norm == "rms":
        return functional.rms_norm(x, x.shape[1:], p["weight"], **{"eps": EPS, **kwargs})
    return functional.group_norm(x, groups_of(x.shape[1]), **affine, **kwargs)


def double(p: Params, *, requires_grad: bool = False) -> Params:
    """A float64 copy of the parameters, its own leaves: the truth's."""
    copy = {k: None if v is None else v.detach().double().clone() for k, v in p.items()}
    for name in GRADS:
        if requires_grad and copy[name] is not None:
            copy[name].requires_grad_()
    return copy


def numpy_norm(norm: str, x: torch.Tensor, p: Params, eps: float = EPS) -> torch.Tensor:
    """The definition in float64 numpy on the (N, C, S) view: facts any reader can check by hand."""
    v = x.detach().double().cpu().numpy()
    flat = v.reshape(v.shape[0], v.shape[1], -1)
    arrays = {k: None if t is None else t.detach().double().cpu().numpy() for k, t in p.items()}

    def normalise(a: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        centred = a - a.mean(axis=axes, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + eps)

    def by_stats() -> np.ndarray:
        mean, var = (arrays[k][None, :, None] for k in STATS)
        return (flat - mean) / np.sqrt(var + eps)

    if norm in ("bn_train", "bn_no_stats"):
        y = normalise(flat, (0, 2))
    elif norm in ("bn_eval", "in_eval"):
        y = by_stats()
    elif norm == "mean_train":
        y = flat - flat.mean(axis=(0, 2), keepdims=True)
    elif norm == "mean_eval":
        y = flat - arrays["running_mean"][None, :, None]
    elif norm == "in":
        y = normalise(flat, (2,))
    elif norm == "ln":
        y = normalise(flat, (1, 2))
    elif norm == "rms":
        y = flat / np.sqrt((flat**2).mean(axis=(1, 2), keepdims=True) + eps)
    elif norm == "gn":
        grouped = flat.reshape(flat.shape[0], groups_of(flat.shape[1]), -1)
        y = normalise(grouped, (2,)).reshape(flat.shape)
    else:
        rho = arrays["rho"][None, :, None]
        over_batch = by_stats() if norm == "bin_eval" else normalise(flat, (0, 2))
        y = rho * over_batch + (1 - rho) * normalise(flat, (2,))
    for name, combine in (("weight", np.multiply), ("bias", np.add)):
        if (a := arrays[name]) is not None:
            y = combine(y, a.reshape(1, *flat.shape[1:]) if norm in OF_ROWS else a[None, :, None])
    return torch.from_numpy(y.reshape(v.shape)).to(DEVICE)


def numpy_activation(y: torch.Tensor, activation: str | None) -> torch.Tensor:
    """relu, silu and the exact gelu from math.exp and math.erf, element by element."""
    rules = {
        None: lambda t: t,
        "relu": lambda t: max(t, 0.0),
        "silu": lambda t: t / (1.0 + math.exp(-t)),
        "gelu": lambda t: 0.5 * t * (1.0 + math.erf(t / math.sqrt(2.0))),
    }
    rule = rules[activation]
    return torch.tensor(
        [rule(t) for t in y.flatten().tolist()], dtype=torch.float64, device=DEVICE
    ).view(y.shape)


def grad_targets(x: torch.Tensor, p: Params) -> dict[str, torch.Tensor]:
    """x and the parameters of p that require a gradient, by name."""
    tensors = {"x": x, **{name: p[name] for name in GRADS}}
    return {name: t for name, t in tensors.items() if t is not None and t.requires_grad}


def forward_backward(
    functional: Any, norm: str, x: torch.Tensor, p: Params, dy: torch.Tensor, **kwargs: Any
) -> dict[str, torch.Tensor]:
    """y and every gradient, by name ("y", "x", "weight", "bias", "rho", "residual")."""
    y = call(functional, norm, x, p, **kwargs)
    targets = grad_targets(x, p)
    residual = kwargs.get("residual")
    if residual is not None and residual.requires_grad:
        targets["residual"] = residual
    grads = torch.autograd.grad(y, list(targets.values()), dy)
    return {"y": y.detach(), **dict(zip(targets, grads, strict=True))}
