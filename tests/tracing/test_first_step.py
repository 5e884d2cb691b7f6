"""torch.compile's first training step of a converted model, compared with torch.nn's own."""

from pathlib import Path

import pytest

from tests.conftest import in_a_process

SCRIPT = str(Path(__file__).with_name("first_step.py"))


def seconds(norms: str) -> float:
    run = in_a_process(SCRIPT, norms)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


@pytest.mark.slow
def test_a_converted_model_compiles_as_quickly():
    assert seconds("ours") <= 1.5 * seconds("nn")
