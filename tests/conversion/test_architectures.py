"""convert and fuse on real architectures, small and with random weights: `pip install .[models]`.

A missing library leaves its models out. The models are float64, so that differences in a norm's
rounding are not amplified beyond the tolerance.
"""

import copy
import importlib

import pytest
import torch

import fastnorm
from tests.conftest import make_input
from tests.conversion.architectures import ARCHITECTURES, build, difference, step

pytestmark = pytest.mark.slow


def missing(library):
    """Why its models cannot be built here, if they cannot: whatever an import raises."""
    try:
        importlib.import_module(library)
    except Exception as error:
        return f"{library} of the extra `models` does not import here: {error}"
    return None


WITHOUT = {a.library for a in ARCHITECTURES.values()}
WITHOUT = {library: reason for library in sorted(WITHOUT) if (reason := missing(library))}


def model_of(name):
    library = ARCHITECTURES[name].library
    if library in WITHOUT:
        pytest.skip(WITHOUT[library])
    return build(name, torch.float64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_converted_models_answer_as_before(name, training):
    """Outputs, gradients and buffers of the model converted, fused, and gone back."""
    model, inputs = model_of(name)
    architecture = ARCHITECTURES[name]
    twin = copy.deepcopy(model.train(training))
    report = fastnorm.convert(model)
    assert len(report.changed) == architecture.converted, report
    assert {k.type.rsplit(".")[-1] for k in report.kept} == architecture.kept, report
    assert list(model.state_dict()) == list(twin.state_dict())
    fastnorm.fuse(model)
    # Where a library computes in float32, that rounds.
    bound = 1e-5 if architecture.rounds else 1e-9
    assert max(difference(step(model, inputs), step(twin, inputs))) < bound
    fastnorm.revert(model)
    assert repr(model) == repr(twin)
    assert max(difference(step(model, inputs), step(twin, inputs))) < 1e-9


@pytest.mark.parametrize("to", ["in", "gn", "ln", "bin"])
def test_a_resnet_with_another_norm_trains(to):
    model, inputs = model_of("ResNet")
    fastnorm.convert(model, to, groups=4 if to == "gn" else None)
    found = step(model, inputs)
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_blocks_of_a_resnet_are_traced():
    """The whole model has optional arguments; its residual blocks have not."""
    model, inputs = model_of("ResNet")
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
