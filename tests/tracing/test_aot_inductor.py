"""AOTInductor: a model compiled ahead of time into a package, loaded and run."""

import pytest
import torch

import fastnorm
from fastnorm.kernels import launch
from tests.conftest import DEVICE
from tests.tracing.nets import Net, difference, image


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_package_and_load(tmp_path, backend):
    """Any batch; under triton the package calls the kernels, under cpu it holds none of ours."""
    model = Net().to(DEVICE).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    with fastnorm.use_backend(backend), torch.no_grad():
        program = torch.export.export(model, (image(4),), dynamic_shapes=({0: batch},))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "net.pt2")
        )
        expected = model(image(7))
    loaded = torch._inductor.aoti_load_package(path)
    with launch.record() as launched, torch.no_grad():
        found = loaded(image(7))
    assert bool(launched) == (backend == "triton")
    assert difference([found], [expected]) <= 1e-4  # Inductor's convolution is not eager's
