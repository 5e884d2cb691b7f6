"""One case: its tensors, its results from the compiled kernels, and the truth in float64.

The truth is `fastnorm.reference` in float64 on the same, rounded, inputs. Memory starts as NaN, so
elements that no kernel wrote are visible.
"""

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import fastnorm
from fastnorm import functional, reference
from fastnorm.backend import use_backend
from fastnorm.kernels import clusters, launch, rows, tiers, tilings
from tests.compiled.cases import ADDING, OF_ROWS, Case, asked_of, parameters_of
from tests.kernels.tilings import fresh_plans

# CPU tensors may take the kernels: they are executed, as others are interpreted. And new memory is
# NaN, as torch.empty makes it under deterministic algorithms.
fastnorm.backend.load_kernels().INTERPRETED = True  # type: ignore[attr-defined]
torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]

Tensors = dict[str, torch.Tensor]
EPS = 1e-5
FEW_CLUSTERS = 1
FEW_MULTIPROCESSORS = 2

# What an element may be off by: half a unit in its last place, of its own magnitude, and so much of
# the largest of its tensor for what was rounded on the way there.
TOLERANCE = {
    torch.float32: (2**-24, 3e-6),
    torch.bfloat16: (2**-8, 1e-5),
    torch.float16: (2**-11, 1e-5),
    torch.float64: (2**-53, 1e-13),
}
ALL_CANCELS = 1e-9  # float64's roundings of a gradient that is 0


def tensors_of(case: Case) -> Tensors:
    """x, dy and whatever else the operator takes, the same values each time."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    def placed(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return at_offset(value.to(dtype), case.offset)

    def laid_out(value: torch.Tensor) -> torch.Tensor:
        if case.layout == "channels_last":
            value = value.movedim(1, -1).contiguous().movedim(-1, 1)
        return placed(value, case.dtype)

    shape, same = case.shape, case.parameters == "as x"
    dtype = case.dtype if same or case.dtype == torch.float64 else torch.float32
    found = {"x": laid_out(draw(*shape) + case.mean), "dy": laid_out(draw(*shape))}
    if case.has_residual or case.op in ADDING:
        found["residual"] = laid_out(draw(*shape))
    if case.op in ADDING:
        found["dsum"] = laid_out(draw(*shape))
    size = shape[-1:] if case.op in OF_ROWS else shape[1:2]
    names = parameters_of(case.op)
    if case.parameters != "none":
        if "weight" in names:
            found["weight"] = placed(1 + 0.3 * draw(*size), dtype)
        if "bias" in names:
            found["bias"] = placed(draw(*size), dtype)
    if "rho" in names:
        found["rho"] = placed(draw(*size).sigmoid(), dtype)
    if case.modulated:
        found |= {name: placed(0.5 * draw(*shape[:2]), dtype) for name in ("scale", "shift")}
    if "g" in names:
        found["g"] = placed(1 + draw(shape[0], *[1] * (len(shape) - 1)).abs(), dtype)
    if case.op in (
        "batch", "batch_eval", "instance_stats", "instance_eval", "batch_instance",
        "batch_instance_eval", "mean_only", "mean_only_eval",
    ):  # fmt: skip
        found["running_mean"] = placed(0.2 * draw(*size), dtype)
        if not case.op.startswith("mean_only"):
            found["running_var"] = placed(0.5 + draw(*size).abs(), dtype)
    return found


def at_offset(value: torch.Tensor, elements: int) -> torch.Tensor:
    """The same values and strides, `elements` past an address aligned to 16 bytes."""
    base = torch.empty(value.numel() + 16, dtype=value.dtype)
    aligned = -base.data_ptr() % 16 // value.element_size()
    placed = base[aligned + elements :].as_strided(value.shape, value.stride())
    return placed.copy_(value)


def called(F: Any, case: Case, t: Tensors) -> tuple[torch.Tensor, ...]:
    """What the operator returns, of `fastnorm.functional` or `fastnorm.reference`."""
    x, residual = t["x"], t.get("residual")
    fused = {"activation": case.activation, "residual": residual if case.has_residual else None}
    stats = t.get("running_mean"), t.get("running_var")
    weight, bias = t.get("weight"), t.get("bias")
    affine = {"weight": weight, "bias": bias}
    if case.modulated:
        affine |= {"scale": t["scale"], "shift": t["shift"]}
    uses_input = not case.op.endswith("_eval")
    match case.op:
        case "batch" | "batch_eval" | "batch_no_stats":
            return (F.batch_norm(x, *stats, **affine, training=uses_input, **fused),)
        case "instance" | "instance_stats" | "instance_eval":
            return (F.instance_norm(x, *stats, **affine, use_input_stats=uses_input, **fused),)
        case "batch_instance" | "batch_instance_eval":
            rho = t["rho"]
            return (F.batch_instance_norm(x, *stats, rho, **affine, training=uses_input, **fused),)
        case "mean_only" | "mean_only_eval":
            if affine["weight"] is None:
                affine.pop("weight")
            return (F.mean_only_batch_norm(x, stats[0], training=uses_input, **affine, **fused),)
        case "group" | "group_1":
            return (F.group_norm(x, case.groups, **affine, **fused),)
        case "layer":
            return (F.layer_norm(x, x.shape[-1:], **affine, **fused),)
        case "rms":
            return (F.rms_norm(x, x.shape[-1:], weight, EPS, **fused),)
        case "weight":
            return (F.weight_norm(x, t["g"], 0),)
        case "moment":
            return (moment_norm(F, x, weight, bias, fused),)
        case "switchable":
            return (switchable_norm(x, weight, bias),)
        case "add_layer":
            return F.add_layer_norm(x, residual, x.shape[-1:], **affine)
        case "add_rms":
            return F.add_rms_norm(x, residual, x.shape[-1:], weight, EPS)
    raise ValueError(f"unknown operator {case.op!r}")


def moment_norm(
    F: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, fused: Any
) -> torch.Tensor:
    """Batch norm, written as a merge; its truth is batch norm."""
    if F is reference:
        return reference.batch_norm(x, None, None, weight, bias, training=True, **fused)

    def merge(
        mean: torch.Tensor, var: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, var = fastnorm.merges.merge_moments(mean, var, 0)
        scale = (var + EPS).rsqrt()
        shift = torch.zeros_like(mean) if bias is None else bias
        return (scale if weight is None else weight * scale), mean, shift

    return functional.moment_norm(x, merge, **fused)


def switchable_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    assert weight is not None
    module = fastnorm.SwitchableNorm2d(x.shape[1], dtype=weight.dtype)
    return torch.func.functional_call(module, {"weight": weight, "bias": bias}, x)


def results(F: Any, case: Case, tensors: Tensors) -> Tensors:
    """Outputs, the gradients asked for and the running statistics, by name."""
    t, exact = dict(tensors), F is reference
    for name in ("running_mean", "running_var"):
        if name in t:  # written to in place
            t[name] = at_offset(t[name], case.offset)
    if exact:
        t = {name: value.double() for name, value in t.items()}
    leaves = asked_of(case)
    for name in leaves:
        t[name] = t[name].detach().requires_grad_()
    if exact and case.op in ADDING:
        outputs, grads = rounded_sum(case, t, leaves)
    else:
        outputs = called(F, case, t)
        grads = gradients(outputs, [t[name] for name in leaves], t)
    found = {f"y{i}" if i else "y": y.detach() for i, y in enumerate(outputs)}
    found |= {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return found | {name: t[name] for name in ("running_mean", "running_var") if name in t}


def rounded_sum(case: Case, t: Tensors, leaves: tuple[str, ...]) -> tuple[Any, Any]:
    """The adding forms' truth: the sum is rounded to x's dtype, and gradients pass it by."""
    total = (t["x"].detach() + t["residual"].detach()).to(case.dtype).double().requires_grad_()
    norm = Case(**vars(case) | {"op": case.op.removeprefix("add_")})
    (y,) = called(reference, norm, t | {"x": total})
    sources = [total if name in ("x", "residual") else t[name] for name in leaves]
    return (y, total), gradients((y, total * 1), sources, t)


def gradients(outputs: Any, sources: list[torch.Tensor], t: Tensors) -> tuple[torch.Tensor, ...]:
    """By the sources, of those outputs that depend on one."""
    pairs = zip(outputs, (t["dy"], t.get("dsum")), strict=False)
    differentiable = [(y, dy) for y, dy in pairs if y.requires_grad]
    ys, dys = zip(*differentiable, strict=True)
    return torch.autograd.grad(ys, sources, dys, allow_unused=True)


def truth_of(case: Case, tensors: Tensors) -> Tensors:
    with use_backend("reference"):
        return results(reference, case, tensors)


@contextlib.contextmanager
def setting(case: Case) -> Iterator[None]:
    """The case's tier, and as few clusters or multiprocessors as it says."""
    at_once, sms = clusters.ClusterLaunch._at_once, rows.multiprocessors

    def few_at_once(self: Any, *args: Any) -> int:
        return min(at_once(self, *args), FEW_CLUSTERS)

    with contextlib.ExitStack() as stack:
        stack.enter_context(fresh_plans())
        stack.enter_context(use_backend("triton"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(tilings, "SEVERAL_TILES", case.several_tiles)
        patch.setattr(tilings, "CLUSTER_WARPS", next(iter(case.several_tiles), 0))
        if case.forces_tier:
            stack.enter_context(tiers.force(case.tier))
        if case.few:
            clusters.ClusterLaunch._at_once = few_at_once  # type: ignore[method-assign]
            rows.multiprocessors = lambda x: FEW_MULTIPROCESSORS
        try:
            yield
        finally:
            clusters.ClusterLaunch._at_once = at_once  # type: ignore[method-assign]
            rows.multiprocessors = sms


def compiled_results(case: Case, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """From the compiled kernels, and the names of those that were launched."""
    with setting(case), launch.record() as launched:
        return results(functional, case, tensors), launched


def wrong(found: Tensors, truth: Tensors) -> list[str]:
    """What is not within TOLERANCE of the truth, a line each."""
    if found.keys() != truth.keys():
        return [f"found {sorted(found)}, expected {sorted(truth)}"]
    lines = []
    for name, exact in truth.items():
        value = found[name]
        unit, beside = TOLERANCE[value.dtype]
        if value.shape != exact.shape:
            lines.append(f"{name}: shape {tuple(value.shape)}, expected {tuple(exact.shape)}")
            continue
        least = least_scale(exact, truth["y"].numel()) if name.startswith("d") else 1e-30
        scale = exact.abs().max().clamp(min=least)
        error = (value.double() - exact).abs()
        share = error / (1.01 * unit * exact.abs() + beside * scale)
        if not (share <= 1).all():
            lines.append(
                f"{name}: {int((~(share <= 1)).sum())} of {share.numel()} elements wrong, by up to "
                f"{(error.max() / scale).item():.1e} of the largest"
            )
    return lines


def least_scale(gradient: torch.Tensor, elements: int) -> float:
    """What a gradient's error is measured by at least, of an output with so many elements.

    One that sums some of dy may cancel, and has the roundings of its terms, which are about 1. dx
    of a tiny set cancels, and is judged by dy's scale; of a set of one value nothing is left but
    dy's roundings times 1 / sqrt(eps).
    """
    if gradient.numel() < elements:
        return (elements / gradient.numel()) ** 0.5
    return 1e-2 if gradient.abs().max() > ALL_CANCELS else 0.1 * EPS**-0.5


def tickets_left() -> int:
    """Tickets that are not back at 0."""
    return sum(
        int((counters != 0).sum())
        for key, counters in launch._counters.items()
        if key[0] == "tickets"
    )
