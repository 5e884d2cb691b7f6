"""PyTorch's tests of its own norms: the samples of `op_db` and `module_db`, by name.

Samples are drawn from a fixed seed, so that every backend and every run sees the same values.
"""

import contextlib
import functools
import importlib.util
import inspect
import sys
import types
import unittest
from typing import Any, NamedTuple

import torch
import torch.nn.functional as TF

from tests.conftest import DEVICE

if importlib.util.find_spec("expecttest") is None:
    # torch's test classes, of which nothing here makes use, derive from its TestCase.
    stand_in = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase
    sys.modules["expecttest"] = stand_in
# Has an effect on the process: torch.backends' flags can be set by their context managers alone.
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


def _parameters(function: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


# op_db's operator: torch.nn.functional's function that computes it, the operator's arguments in
# their order. The native ones come with combinations that the others lack, as a bias alone.
OPERATORS = {
    "nn.functional.batch_norm": ("batch_norm", _parameters(TF.batch_norm)),
    "nn.functional.instance_norm": ("instance_norm", _parameters(TF.instance_norm)),
    "nn.functional.layer_norm": ("layer_norm", _parameters(TF.layer_norm)),
    "nn.functional.rms_norm": ("rms_norm", _parameters(TF.rms_norm)),
    "nn.functional.group_norm": ("group_norm", _parameters(TF.group_norm)),
    "native_batch_norm": (
        "batch_norm",
        ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
    ),
    "native_layer_norm": ("layer_norm", ("input", "normalized_shape", "weight", "bias", "eps")),
}
# op_db's other norms whose samples are no cases of ours, and why.
SAMPLES_NOT_RUN = {
    "native_group_norm": "its samples are nn.functional.group_norm's",
    "_native_batch_norm_legit": "its samples are native_batch_norm's",
    "_batch_norm_with_update": "its samples are native_batch_norm's with training=True",
    "nn.functional.batch_norm.without_cudnn": "its samples are nn.functional.batch_norm's; op_db "
    "gives it no dtype on a CPU, and cuDNN is not what serves ours",
}
# Norms of torch that fastnorm does not have.
NOT_OURS = {
    "nn.functional.local_response_norm",
    "nn.LocalResponseNorm",
}
MODULES = {
    info.module_cls.__name__: info
    for info in module_db
    if "Norm" in info.name and info.name not in NOT_OURS
}


class ModuleCase(NamedTuple):
    """One module_db input: the constructor's arguments, and forward's only one."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    input: torch.Tensor
    description: str


class ErrorCase(NamedTuple):
    """What torch's database says raises `error`: constructor or forward, as `on` has it."""

    arguments: Any
    error: type[Exception]
    on: str


@contextlib.contextmanager
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _op_info(name: str) -> Any:
    return next(op for op in op_db if op.name == name and not op.variant_test_name)


@functools.cache
def functional_cases(name: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """The arguments of each sample by their names in torch.nn.functional."""
    with _seeded():  # the reference inputs are the samples and more
        samples = list(_op_info(name).reference_inputs(DEVICE, dtype, requires_grad=True))
    return [_named(name, sample) for sample in samples]


@functools.cache
def functional_error_cases(name: str) -> list[ErrorCase]:
    info = _op_info(name)
    if info.error_inputs_func is None:
        return []
    with _seeded():
        found = list(info.error_inputs(DEVICE))
    return [ErrorCase(_named(name, e.sample_input), e.error_type, "forward") for e in found]


@functools.cache
def module_cases(name: str, dtype: torch.dtype, training: bool) -> list[ModuleCase]:
    info = MODULES[name]
    with _seeded():
        inputs = info.module_inputs_func(
            info, device=DEVICE, dtype=dtype, requires_grad=True, training=training
        )
    return [_module_case(i) for i in inputs]


@functools.cache
def module_error_cases(name: str, dtype: torch.dtype) -> list[ErrorCase]:
    info = MODULES[name]
    if info.module_error_inputs_func is None:
        return []
    with _seeded():
        found = info.module_error_inputs_func(
            info, device=DEVICE, dtype=dtype, requires_grad=True, training=True
        )
    return [
        ErrorCase(
            _module_case(e.module_error_input),
            e.error_type,
            "construction" if e.error_on.name == "CONSTRUCTION_ERROR" else "forward",
        )
        for e in found
    ]


def _named(name: str, sample: Any) -> dict[str, Any]:
    given = (sample.input, *sample.args)
    return dict(zip(OPERATORS[name][1], given, strict=False)) | sample.kwargs


def _module_case(case: Any) -> ModuleCase:
    made, given = case.constructor_input, case.forward_input
    (x,) = (*given.args, *given.kwargs.values()) or (None,)
    return ModuleCase(made.args, made.kwargs, x, case.desc)
