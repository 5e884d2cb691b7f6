"""A norm and its gradients, written out in numpy's longest floating type.

It shares no route with fastnorm or torch: no autograd, no merge of moments, and on x86 64 bits of
mantissa, so that float64 results can be judged too. x is seen as (N, G, D, S), G sets of D
channels; for layer and RMS norm as (R, 1, L, 1). Every norm is then a choice of axes.
"""

import math

import numpy as np
import torch

from tests.conftest import DEVICE
from tests.norms import OF_ROWS
from tests.properties.cases import BY_CONSTANTS, MEAN_ONLY, Case, Tensors

Array = np.ndarray
AXES = {
    "bn": (0, 3), "me": (0, 3), "in": (3,), "ln": (2, 3), "rm": (2, 3), "gn": (2, 3),
}  # fmt: skip


def view_shape(case: Case) -> tuple[int, int, int, int]:
    if case.norm in OF_ROWS:
        length = math.prod(case.parameter_shape)
        return math.prod(case.shape) // max(length, 1), 1, length, 1
    N, C = case.shape[:2]
    groups = case.groups if case.norm == "gn" else C
    return N, groups, C // max(groups, 1), math.prod(case.shape[2:])


def wide(t: torch.Tensor) -> Array:
    return t.detach().double().cpu().numpy().astype(np.longdouble)


def viewed(case: Case, t: torch.Tensor) -> Array:
    return wide(t).reshape(view_shape(case))


class Exact:
    """How arithmetic rounds: not at all."""

    def term(self, a: Array) -> Array:
        """An argument, or a term of a sum that may cancel."""
        return a

    def centred(self, x: Array, center: Array) -> Array:
        """x, of which `center` is going to be subtracted."""
        return x


class Rounding(Exact):
    """Random roundings of one eps of the accumulation dtype, x relative to its distance from what
    is subtracted: what the kernels and the formulas are to be as good as."""

    def __init__(self, case: Case, seed: int) -> None:
        self.eps = torch.finfo(case.accumulation).eps
        self.rng = np.random.default_rng(seed)

    def term(self, a: Array) -> Array:
        return a * (1 + self.eps * self.rng.uniform(-1, 1, np.shape(a)))

    def centred(self, x: Array, center: Array) -> Array:
        return center + self.term(x - center)


class Truth:
    """y, z (before the activation), the gradients and the running statistics of one call."""

    def __init__(self, case: Case, t: Tensors, rounding: Exact | None = None) -> None:
        self.case, self.rounding = case, rounding or Exact()
        jitter = self.rounding.term
        self.dy = jitter(viewed(case, t.dy))
        self.residual = 0.0 if t.residual is None else jitter(viewed(case, t.residual))
        _, G, D, _ = view_shape(case)
        per_channel = (1, 1, D, 1) if case.norm in OF_ROWS else (1, G, D, 1)
        self.p = {k: jitter(wide(v).reshape(per_channel)) for k, v in t.p.items() if v is not None}
        self.x = viewed(case, t.x)
        self.x = self.rounding.centred(self.x, self._center())
        self.gamma = self.p.get("weight", np.longdouble(1))
        self.parts = self._parts()
        self.x_hat = sum(share * x_hat for share, x_hat, _, _ in self.parts)
        normed = self.gamma * self.x_hat + self.p.get("bias", 0.0)
        self.z = normed + self.residual
        self.y = activated(self.z, case.activation)

    def _center(self) -> Array:
        """The mean of the smallest sets that x is normalised by."""
        if self.case.norm in BY_CONSTANTS:
            return self.p["running_mean"]
        if self.case.norm == "rms":
            return np.longdouble(0)
        axes = AXES["in" if self.case.norm.startswith("bin") else self.case.norm[:2]]
        return self.x.mean(axes, keepdims=True)

    def _parts(self) -> list[tuple[Array, Array, Array, tuple[int, ...]]]:
        """(share, x_hat, rstd, axes) of each normalisation that the norm is made of."""
        one, norm = np.longdouble(1), self.case.norm
        if norm in BY_CONSTANTS:
            return [(one, *self._by_constants())]
        if not norm.startswith("bin"):
            return [(one, *self._normalised(AXES[norm[:2]]))]
        rho = self.p["rho"]
        batch = self._by_constants() if norm == "bin_eval" else self._normalised(AXES["bn"])
        return [(rho, *batch), (1 - rho, *self._normalised(AXES["in"]))]

    def _normalised(self, axes: tuple[int, ...]) -> tuple[Array, Array, tuple[int, ...]]:
        # Off the first value: a constant set's mean is then that value, to the last bit.
        if self.case.norm == "rms":
            rstd = 1 / np.sqrt((self.x**2).mean(axes, keepdims=True) + np.longdouble(self.case.eps))
            return self.rounding.term(self.x * rstd), rstd, axes
        first = self.x[tuple(slice(0, 1) if a in axes else slice(None) for a in range(4))]
        centred = self.x - first
        centred = centred - centred.mean(axes, keepdims=True)
        var = (centred**2).mean(axes, keepdims=True)
        rstd = 1 / np.sqrt(var + np.longdouble(self.case.eps))
        if self.case.norm in MEAN_ONLY:
            return self.rounding.term(centred), np.ones_like(rstd), axes
        return self.rounding.term(centred * rstd), rstd, axes

    def _by_constants(self) -> tuple[Array, Array, tuple[int, ...]]:
        rstd = np.longdouble(1)
        if self.case.norm not in MEAN_ONLY:
            rstd = 1 / np.sqrt(self.p["running_var"] + np.longdouble(self.case.eps))
        centred = self.x - self.p["running_mean"]
        return self.rounding.term(centred * rstd), rstd, ()

    def gradients(self, active: Array | None = None) -> dict[str, Array]:
        """By name, in the views' shapes. `active` is where ReLU let through, z > 0 by default."""
        if self.case.activation == "relu":
            g = self.dy * (self.z > 0 if active is None else active)
        else:
            g = self.dy * slope(self.z, self.case.activation)
        weighted, axes = self.gamma * g, (0, 1, 3) if self.case.norm in OF_ROWS else (0, 3)
        dx = sum(share * self._back(weighted, *part) for share, *part in self.parts)
        found = {"x": dx, "residual": g, "bias": g.sum(axes), "weight": (g * self.x_hat).sum(axes)}
        if len(self.parts) == 2:
            found["rho"] = (weighted * (self.parts[0][1] - self.parts[1][1])).sum(axes)
        return found

    def _back(self, g: Array, x_hat: Array, rstd: Array, axes: tuple[int, ...]) -> Array:
        """dx of x_hat = (x - mean) rstd for the gradient g of x_hat; without axes all constant."""
        if not axes:
            return g * rstd
        if self.case.norm in MEAN_ONLY:
            return g - self.rounding.term(g.mean(axes, keepdims=True))
        along = x_hat * self.rounding.term((g * x_hat).mean(axes, keepdims=True))
        level = g.mean(axes, keepdims=True) if self.case.norm != "rms" else np.longdouble(0)
        return rstd * (g - self.rounding.term(level) - self.rounding.term(along))

    def running(self) -> dict[str, Array]:
        """The statistics that there are after a training call."""
        N, _, _, S = self.x.shape
        axes, count = ((3,), S) if self.case.norm == "in_running" else ((0, 3), N * S)
        mean = self.x.mean(axes, keepdims=True)
        var = ((self.x - mean) ** 2).mean(axes, keepdims=True) * count / max(count - 1, 1)
        mean, var = mean.mean(0, keepdims=True), var.mean(0, keepdims=True)
        m = np.longdouble(self.case.momentum)
        new = {"running_mean": mean, "running_var": var}
        return {k: (1 - m) * self.p[k] + m * value for k, value in new.items() if k in self.p}


erf = np.vectorize(math.erf, otypes=[np.longdouble])


def activated(z: Array, activation: str | None) -> Array:
    if activation == "relu":
        return np.where(z <= 0, 0, z)
    if activation == "silu":
        return z / (1 + np.exp(-z))
    if activation == "gelu":
        return z * (1 + erf(z / math.sqrt(2))) / 2
    return z


def slope(z: Array, activation: str | None) -> Array:
    """The derivative of a smooth activation."""
    if activation == "silu":
        sigmoid = 1 / (1 + np.exp(-z))
        return sigmoid * (1 + z * (1 - sigmoid))
    if activation == "gelu":
        density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return (1 + erf(z / math.sqrt(2))) / 2 + z * density
    return np.ones_like(z)


def as_tensor(a: Array, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(a, dtype=np.float64).reshape(shape)).to(DEVICE)


def affected(case: Case, by_x: bool, index: int) -> torch.Tensor:
    """Which elements of y depend on the element of x, or of the residual, of that flat index."""
    bad = np.zeros(math.prod(case.shape), dtype=bool)
    bad[index] = True
    bad = bad.reshape(view_shape(case))
    if by_x and case.norm not in BY_CONSTANTS:
        norm = "in" if case.norm == "bin_eval" else case.norm
        axes = AXES["bn" if norm == "bin_train" else norm[:2]]
        bad = np.broadcast_to(bad.any(axes, keepdims=True), bad.shape)
    return torch.from_numpy(bad.reshape(case.shape).copy()).to(DEVICE)
