"""Refusals: torch's own exception class for the same call, a text that helps, and nothing written.

Each case is called on torch.nn.functional first; its exception class is expected of ours. torch
cannot be asked about batch-instance norm (instead its parts are, batch_norm and instance_norm) or
about arguments that torch does not have (activation, residual).
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as TF

import fastnorm
import fastnorm.functional as F
from tests.conftest import BACKENDS, DEVICE, make_input, raised_by
from tests.norms import Torch


def x_of(*shape, dtype=torch.float32):
    return (
        torch.ones(shape, dtype=dtype, device=DEVICE)
        if not dtype.is_floating_point
        else make_input(shape, dtype=dtype)
    )


def vector(n):
    return torch.ones(n, device=DEVICE)


def stats(n, m=None):
    return vector(n) * 2, vector(n if m is None else m) * 3


X = (2, 6, 4)
NONE = {"running_mean": None, "running_var": None}
SIX = {"running_mean": 6, "running_var": 6}
TRAIN = {**SIX, "training": True}
RHO = {"rho": 6}
GN, LN, RMS, BN, IN, BIN = (
    "group_norm",
    "layer_norm",
    "rms_norm",
    "batch_norm",
    "instance_norm",
    "batch_instance_norm",
)

# name: (operator, shape of x, arguments, words the message must contain). For a tensor, a number
# stands for a vector of that many ones and a tuple for ones of that shape.
CASES = {
    "gn groups do not divide": (GN, X, {"num_groups": 4}, ["6", "4"]),
    "gn more groups than channels": (GN, X, {"num_groups": 12}, ["6", "12"]),
    "gn negative groups": (GN, X, {"num_groups": -2}, ["-2"]),
    "gn rank 1": (GN, (6,), {"num_groups": 2}, ["6"]),
    "gn weight size": (GN, X, {"num_groups": 2, "weight": 5}, ["weight", "5", "6"]),
    "gn weight rank": (GN, X, {"num_groups": 2, "weight": (1, 6)}, ["weight", "1, 6"]),
    "gn bias size": (GN, X, {"num_groups": 2, "bias": 5}, ["bias", "5", "6"]),
    "gn one value per group": (GN, (1, 6, 1), {"num_groups": 6}, ["1, 6, 1"]),
    "ln weight size": (LN, X, {"normalized_shape": (4,), "weight": 5}, ["weight", "5", "4"]),
    "ln bias size": (LN, X, {"normalized_shape": (4,), "bias": 5}, ["bias", "5", "4"]),
    "ln other shape": (LN, X, {"normalized_shape": (5,)}, ["5", "2, 6, 4"]),
    "ln other dims": (LN, X, {"normalized_shape": (6, 5)}, ["6, 5", "2, 6, 4"]),
    "ln too many dims": (LN, (6, 4), {"normalized_shape": X}, ["2, 6, 4"]),
    "ln no dims": (LN, X, {"normalized_shape": ()}, ["normalized_shape"]),
    "rms weight size": (RMS, X, {"normalized_shape": (4,), "weight": 5}, ["weight", "5", "4"]),
    "rms other shape": (RMS, X, {"normalized_shape": (5,)}, ["5", "2, 6, 4"]),
    "rms too many dims": (RMS, (6, 4), {"normalized_shape": X}, ["2, 6, 4"]),
    "rms rank 0": (RMS, (), {"normalized_shape": (4,)}, ["4"]),
    "rms no dims": (RMS, X, {"normalized_shape": ()}, ["normalized_shape"]),
    "bn weight size": (BN, X, TRAIN | {"weight": 5}, ["weight", "5", "6"]),
    "bn bias size": (BN, X, TRAIN | {"bias": 5}, ["bias", "5", "6"]),
    "bn mean size": (BN, X, TRAIN | {"running_mean": 5}, ["running_mean", "5", "6"]),
    "bn var size": (BN, X, TRAIN | {"running_var": 5}, ["running_var", "5", "6"]),
    "bn mean size, eval": (BN, X, SIX | {"running_mean": 5}, ["running_mean", "5", "6"]),
    "bn mean alone": (BN, X, TRAIN | {"running_var": None}, ["running_var"]),
    "bn var alone": (BN, X, TRAIN | {"running_mean": None}, ["running_mean"]),
    "bn eval without statistics": (BN, X, NONE, ["running_mean"]),
    "bn one value": (BN, (1, 6), TRAIN, ["1, 6"]),
    "bn one value, rank 4": (BN, (1, 6, 1, 1), TRAIN, ["1, 6, 1, 1"]),
    "bn eps 0": (BN, X, TRAIN | {"eps": 0.0}, ["eps"]),
    "bn eps negative": (BN, X, TRAIN | {"eps": -1.0}, ["eps", "-1"]),
    "bn eps negative, eval": (BN, X, SIX | {"eps": -1.0}, ["eps", "-1"]),
    "bn rank 1": (BN, (6,), TRAIN, ["6"]),
    "bn momentum None": (BN, X, TRAIN | {"momentum": None}, ["momentum"]),
    "in weight size": (IN, X, {"weight": 5}, ["weight", "5", "6"]),
    "in bias size": (IN, X, {"bias": 5}, ["bias", "5", "6"]),
    "in mean size": (IN, X, SIX | {"running_mean": 5}, ["running_mean", "5", "6"]),
    "in mean alone": (IN, X, {"running_mean": 6}, ["running_var"]),
    "in eval without statistics": (IN, X, {"use_input_stats": False}, ["running_mean"]),
    "in one position": (IN, (2, 6, 1), SIX, ["2, 6, 1"]),
    "in rank 2": (IN, (2, 6), {}, ["2, 6"]),
    "in rank 1": (IN, (6,), {}, ["6"]),
    "in one position, other weight": (IN, (2, 6, 1), {"weight": 5}, ["2, 6, 1"]),
    "bn one value, other weight": (BN, (1, 6), TRAIN | {"weight": 5}, ["1, 6"]),
    "gn one value, groups do not divide": (GN, (1, 5, 1), {"num_groups": 4}, ["1, 5, 1"]),
    "bn momentum a word": (BN, X, TRAIN | {"momentum": "0.1"}, ["momentum"]),
    "bin one position": (BIN, (2, 6, 1), TRAIN | RHO, ["2, 6, 1"]),
    "bin one position, eval": (BIN, (2, 6, 1), SIX | RHO, ["2, 6, 1"]),
    "bin rank 2": (BIN, (2, 6), TRAIN | RHO, ["2, 6"]),
    "bin mean size": (BIN, X, TRAIN | RHO | {"running_mean": 5}, ["running_mean", "5", "6"]),
    "bin eval without statistics": (BIN, X, NONE | RHO, ["running_mean"]),
    "bin eps 0": (BIN, X, TRAIN | RHO | {"eps": 0.0}, ["eps"]),
    "bin rho size": (BIN, X, TRAIN | {"rho": 5}, ["rho", "5", "6"]),
    "bin weight size": (BIN, X, TRAIN | RHO | {"weight": 5}, ["weight", "5", "6"]),
}
TENSORS = ("weight", "bias", "rho", "running_mean", "running_var")


def attempt(functional, op, shape, arguments):
    """Call `op` as the table says."""
    made = {
        k: torch.ones(v, device=DEVICE) if k in TENSORS and v is not None else v
        for k, v in arguments.items()
    }
    return getattr(functional, op)(x_of(*shape), **made)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_class_as_torch(backend, case):
    *what, words = CASES[case]
    theirs = raised_by(lambda: attempt(Torch, *what))
    with fastnorm.use_backend(backend):
        ours = raised_by(lambda: attempt(F, *what))
    assert isinstance(ours, type(theirs)) and isinstance(theirs, type(ours)), (ours, theirs)
    for word in words:
        assert word in str(ours), f"{word!r} is not in {str(ours)!r}"


STATISTICS = (vector(6), vector(6))
WRONG_TYPES = {
    "eps None": (LN, ((4,),), {"eps": None}, "eps=None"),
    "eps text": (GN, (2,), {"eps": "1"}, "eps='1'"),
    "eps list": (IN, (), {"eps": [1e-5]}, "eps="),
    "eps text, RMS": (RMS, ((4,),), {"eps": "1"}, "eps='1'"),
    "eps text, BN": (BN, STATISTICS, {"eps": "1"}, "eps='1'"),
    "training None": (BN, STATISTICS, {"training": None}, "training=None"),
    "training text": (BN, STATISTICS, {"training": "yes"}, "training='yes'"),
    "training number": (BN, STATISTICS, {"training": 1}, "training=1"),
    "use_input_stats None": (IN, STATISTICS, {"use_input_stats": None}, "use_input_stats=None"),
    "momentum text": (BN, STATISTICS, {"training": True, "momentum": "1"}, "momentum='1'"),
    "weight list, GN": (GN, (2,), {"weight": [1.0] * 6}, "weight"),
    "weight list, LN": (LN, ((4,),), {"weight": [1.0] * 4}, "weight"),
    "bias list, BN": (BN, STATISTICS, {"bias": [1.0] * 6}, "bias"),
}


@pytest.mark.parametrize("case", WRONG_TYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_type_error(backend, case):
    """An argument of another type: TypeError, as in torch, and it is named."""
    op, arguments, more, word = WRONG_TYPES[case]
    assert isinstance(raised_by(lambda: getattr(TF, op)(x_of(*X), *arguments, **more)), TypeError)
    with fastnorm.use_backend(backend), pytest.raises(TypeError) as caught:
        getattr(F, op)(x_of(*X), *arguments, **more)
    assert word in str(caught.value)


@pytest.mark.parametrize("op", ["add_layer_norm", "add_rms_norm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_type_error_of_an_adding_norm(backend, op):
    with fastnorm.use_backend(backend), pytest.raises(TypeError, match="eps='1'"):
        getattr(F, op)(x_of(*X), x_of(*X), (4,), eps="1")


@pytest.mark.parametrize("backend", BACKENDS)
def test_type_error_of_the_gated_norm(backend):
    with fastnorm.use_backend(backend), pytest.raises(TypeError, match="eps='1'"):
        F.gated_rms_norm(x_of(*X), x_of(*X), eps="1")


@pytest.mark.parametrize("input", [None, [1.0], np.ones((2, 6, 4))], ids=["None", "list", "numpy"])
@pytest.mark.parametrize("op", ["batch_norm", "instance_norm", "layer_norm", "rms_norm"])
def test_no_tensor(op, input):
    arguments = {"batch_norm": (*STATISTICS,), "instance_norm": ()}.get(op, ((4,),))
    with pytest.raises(TypeError, match="it has to be a tensor"):
        getattr(F, op)(input, *arguments)


@pytest.mark.parametrize("op", [BN, IN])
@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_that_require_a_gradient(backend, op, flag):
    """There is none in torch either; without grad mode nobody asks for it."""
    mean, var = vector(6).requires_grad_(), vector(6).requires_grad_()
    more = {"training" if op == BN else "use_input_stats": flag}
    assert isinstance(raised_by(lambda: getattr(TF, op)(x_of(*X), mean, var, **more)), RuntimeError)
    with fastnorm.use_backend(backend):
        with pytest.raises(RuntimeError, match="requires a gradient"):
            getattr(F, op)(x_of(*X), mean, var, **more)
        assert (mean == 1).all() and (var == 1).all()
        with torch.no_grad():
            getattr(F, op)(x_of(*X), mean, var, **more)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_groups(backend):
    """Documented exception: torch divides by zero; ours is the class of other bad group counts."""
    with fastnorm.use_backend(backend), pytest.raises(RuntimeError, match="num_groups=0"):
        F.group_norm(x_of(*X), 0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize(
    "op", ["batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm"]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_integer_and_complex_input(backend, op, dtype):
    """NotImplementedError as in torch, naming the dtype."""
    if (op, dtype) == ("rms_norm", torch.complex64):
        pytest.skip("torch's RMS norm takes complex numbers; ours, as all others, does not")
    arguments = {
        "batch_norm": (*stats(6), None, None, True),
        "instance_norm": (),
        "layer_norm": ((4,),),
        "rms_norm": ((4,),),
        "group_norm": (2,),
    }[op]
    x = x_of(2, 6, 4, dtype=dtype)
    theirs = raised_by(lambda: getattr(TF, op)(x, *arguments))
    with fastnorm.use_backend(backend):
        ours = raised_by(lambda: getattr(F, op)(x, *arguments))
    assert isinstance(ours, type(theirs)), (ours, theirs)
    assert str(dtype).removeprefix("torch.") in str(ours)


def call_with(op, x, **kwargs):
    """`op` of x (2, 6, 4) in training mode with statistics where it has them."""
    if op == "batch_norm":
        return F.batch_norm(
            x, kwargs.pop("mean", None), kwargs.pop("var", None), training=True, **kwargs
        )
    if op == "batch_instance_norm":
        mean, var = kwargs.pop("mean", None), kwargs.pop("var", None)
        return F.batch_instance_norm(x, mean, var, vector(6), training=True, **kwargs)
    if op == "instance_norm":
        return F.instance_norm(x, kwargs.pop("mean", None), kwargs.pop("var", None), **kwargs)
    kwargs = {k: v for k, v in kwargs.items() if k not in ("mean", "var")}
    return getattr(F, op)(x, 2 if op == GN else (4,), **kwargs)


OPS = (BN, IN, BIN, LN, RMS, GN)
RESIDUALS = {
    "shape": (lambda: x_of(2, 6, 5), ["2, 6, 5", "2, 6, 4"]),
    "broadcastable shape": (lambda: x_of(1, 6, 1), ["1, 6, 1", "2, 6, 4"]),
    "dtype": (lambda: x_of(2, 6, 4, dtype=torch.bfloat16), ["bfloat16", "float32"]),
    "wider dtype": (lambda: x_of(2, 6, 4, dtype=torch.float64), ["float64", "float32"]),
    "device": (lambda: torch.empty(2, 6, 4, device="meta"), ["meta", DEVICE]),
}


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_residual_mismatch(backend, op, residual):
    """No broadcasting, no promotion: shape, dtype and device are x's; nothing is written."""
    make, words = RESIDUALS[residual]
    mean, var = stats(6)
    with fastnorm.use_backend(backend), pytest.raises(RuntimeError) as caught:
        call_with(op, x_of(2, 6, 4), mean=mean, var=var, residual=make())
    for word in ("residual", *words):
        assert word in str(caught.value)
    assert (mean == 2).all() and (var == 3).all()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_unknown_activation(backend, op):
    mean, var = stats(6)
    with fastnorm.use_backend(backend), pytest.raises(ValueError, match="swoosh") as caught:
        call_with(op, x_of(2, 6, 4), mean=mean, var=var, activation="swoosh")
    for remedy in ("relu", "silu", "gelu"):
        assert remedy in str(caught.value)
    assert (mean == 2).all() and (var == 3).all()


BAD_TRAINING = {
    "one value": lambda m, v: F.batch_norm(x_of(1, 6), m, v, training=True),
    "eps": lambda m, v: F.batch_norm(x_of(2, 6, 4), m, v, training=True, eps=0.0),
    "weight": lambda m, v: F.batch_norm(x_of(2, 6, 4), m, v, vector(5), training=True),
    "bias": lambda m, v: F.batch_norm(x_of(2, 6, 4), m, v, None, vector(5), training=True),
    "channels": lambda m, v: F.batch_norm(x_of(2, 5, 4), m, v, training=True),
    "integer": lambda m, v: F.batch_norm(x_of(2, 6, 4, dtype=torch.int64), m, v, training=True),
    "in position": lambda m, v: F.instance_norm(x_of(2, 6, 1), m, v),
    "in weight": lambda m, v: F.instance_norm(x_of(2, 6, 4), m, v, vector(5)),
    "bin rho": lambda m, v: F.batch_instance_norm(x_of(2, 6, 4), m, v, vector(5), training=True),
    "bin weight": lambda m, v: F.batch_instance_norm(
        x_of(2, 6, 4), m, v, vector(6), vector(5), training=True
    ),
    "bin position": lambda m, v: F.batch_instance_norm(
        x_of(2, 6, 1), m, v, vector(6), training=True
    ),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
@pytest.mark.parametrize("backend", BACKENDS)
def test_errors_come_before_any_write(backend, case):
    mean, var = stats(6)
    with fastnorm.use_backend(backend):
        raised_by(lambda: BAD_TRAINING[case](mean, var))
    assert (mean == 2).all() and (var == 3).all()
