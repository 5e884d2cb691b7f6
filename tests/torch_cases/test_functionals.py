"""torch.nn.functional's norms on the samples and error inputs of torch's `op_db`."""

from itertools import product

import pytest
import torch
import torch.nn.functional as TF

import fastnorm
import fastnorm.functional as F
from tests.conftest import DEVICE, epsilon_term
from tests.torch_cases.comparison import (
    BACKENDS,
    Three,
    assert_follows_torch,
    forward_and_backward,
    gradient_of,
    laid_out,
    marks,
)
from tests.torch_cases.database import (
    DTYPES,
    NOT_OURS,
    OPERATORS,
    SAMPLES_NOT_RUN,
    functional_cases,
    functional_error_cases,
    op_db,
)

SAMPLES = [
    pytest.param(
        backend, name, i, layout, dtype,
        id=f"{backend}-{name}-{i}-{layout}-{dtype}",
        marks=marks(backend, arguments["input"], layout, dtype),
    )
    for name in OPERATORS
    for i, arguments in enumerate(functional_cases(name, torch.float32))
    for backend, layout, dtype in product(BACKENDS, ("contiguous", "noncontiguous"), DTYPES)
]  # fmt: skip
# No channels and no positions: torch 2.15 refuses what 2.13 answers with an empty tensor, as ours
# does beside any torch.
ANSWERED = [("nn.functional.group_norm", i) for i in (2, 3)]
ERRORS = [
    pytest.param(name, i, id=f"{name}-{i}")
    for name in OPERATORS
    for i in range(len(functional_error_cases(name)))
    if (name, i) not in ANSWERED
]


def copied(arguments, layout, dtype=None):
    """Every tensor anew, so that one call's running statistics are not the next one's."""

    def copy(t):
        wide = t.detach().to(dtype or t.dtype).requires_grad_(t.requires_grad)
        return laid_out(wide, layout)

    return {k: copy(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def results(namespace, name, arguments, backend=None):
    """y, the gradients, and after the call what has none: the running statistics."""
    function = getattr(namespace, OPERATORS[name][0])
    tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    found = forward_and_backward(
        lambda: function(**arguments),
        arguments["input"],
        {k: v for k, v in tensors.items() if v.requires_grad},
        backend,
    )
    return found | {f"{k} afterwards": v for k, v in tensors.items() if not v.requires_grad}


def rounding_of_a_tiny_set(name, arguments):
    """How far gradients may be off where all of the input is one set of one or two values.

    There x_hat is 0 or +-1 whatever the values are: the terms of the exact gradients of input and
    weight cancel, but for eps, and their rounding stays. It is float32's or the dtype's own.
    """
    x, weight = arguments["input"].detach().double(), arguments.get("weight")
    by_constants = OPERATORS[name][0] == "batch_norm" and not arguments.get("training", False)
    if not 1 <= x.numel() <= 2 or by_constants:
        return 0.0
    arithmetic = torch.float64 if arguments["input"].dtype == torch.float64 else torch.float32
    rstd = (x.var(correction=0) + arguments.get("eps", 1e-5)).rsqrt()
    factor = max(1.0, *(t.abs().max().item() for t in (x, weight) if t is not None))
    return epsilon_term(arithmetic, rstd * gradient_of(x).abs().max() * factor)


@pytest.mark.parametrize(("backend", "name", "i", "layout", "dtype"), SAMPLES)
def test_sample(backend, name, i, layout, dtype):
    arguments = functional_cases(name, DTYPES[dtype])[i]
    assert_follows_torch(
        Three(
            results(F, name, copied(arguments, layout), backend),
            results(TF, name, copied(arguments, layout)),
            results(TF, name, copied(arguments, layout, torch.float64)),
        ),
        gradient_slack=rounding_of_a_tiny_set(name, arguments),
    )


@pytest.mark.parametrize("shape", [(1, 0, 2), (1, 2, 0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_inputs_that_later_torchs_refuse(backend, shape):
    with fastnorm.use_backend(backend):
        assert F.group_norm(torch.zeros(shape, device=DEVICE), 1).shape == shape


@pytest.mark.parametrize(("name", "i"), ERRORS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_error_input(backend, name, i):
    """The class that op_db names, that torch raises, and that we raise are one."""
    case = functional_error_cases(name)[i]
    with pytest.raises(case.error) as theirs:
        getattr(TF, OPERATORS[name][0])(**case.arguments)
    with fastnorm.use_backend(backend), pytest.raises(case.error) as ours:
        getattr(F, OPERATORS[name][0])(**case.arguments)
    assert ours.type is theirs.type


@pytest.mark.parametrize("name", SAMPLES_NOT_RUN)
def test_samples_not_run(name):
    pytest.skip(SAMPLES_NOT_RUN[name])


def test_every_norm_of_op_db_has_its_place():
    """A norm that a later torch brings has to be run, or named with a reason."""
    named = {f"{op.name}.{op.variant_test_name}".removesuffix(".") for op in op_db}
    norms = {n for n in named if "_norm" in n and not n.startswith(("linalg", "log_"))}
    assert norms == {*OPERATORS, *SAMPLES_NOT_RUN, *NOT_OURS} & named
