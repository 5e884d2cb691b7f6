"""__torch_function__: subclasses and modes see the call of a norm, as they see torch's own."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

import fastnorm.functional as F
from tests.conftest import BACKENDS, assert_close, make_input, running
from tests.norms import NORMS, call, make_params

SHAPE = (2, 4, 3)
FUNCTIONS = {
    "bn": F.batch_norm, "in": F.instance_norm, "bin": F.batch_instance_norm,
    "mean": F.mean_only_batch_norm, "ln": F.layer_norm, "rms": F.rms_norm, "gn": F.group_norm,
}  # fmt: skip


class Refusing(torch.Tensor):
    """A subclass that takes the norms into its own hands."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in FUNCTIONS.values():
            return func, args, kwargs
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", ["x", "parameter", "residual"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_subclass_takes_the_call(norm, name):
    """Whichever argument it is; its handler can make the same call of what it was given."""
    x, residual, p = make_input(SHAPE), make_input(SHAPE, seed=7), make_params(norm, SHAPE)
    expected = call(F, norm, x, p, residual=residual, activation="relu")
    p = make_params(norm, SHAPE)  # some norms have updated the first ones
    parameter = "bias" if p["weight"] is None else "weight"
    given = {"x": x, "parameter": p[parameter], "residual": residual}
    given[name] = given[name].as_subclass(Refusing)
    function, args, kwargs = call(
        F, norm, given["x"], {**p, parameter: given["parameter"]},
        residual=given["residual"], activation="relu",
    )  # fmt: skip
    assert function is FUNCTIONS[norm.partition("_")[0]]
    with torch._C.DisableTorchFunctionSubclass():
        found = function(*args, **kwargs)
    assert_close(found.as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mode_sees_the_call(backend, norm):
    seen = []

    class Recording(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = make_input(SHAPE)
    with running(backend):
        expected = call(F, norm, x, make_params(norm, SHAPE))
        with Recording():
            found = call(F, norm, x, make_params(norm, SHAPE))
    assert FUNCTIONS[norm.partition("_")[0]] in seen
    assert torch.equal(found, expected)
