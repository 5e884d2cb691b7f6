"""The smoke's table: it covers enough, a GPU has room for it, and wrong results are seen."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import kernels
from benchmarks import smoke, smoke_cases
from benchmarks.smoke_cases import SmokeCase
from fastnorm import reference
from fastnorm.activations import NAMES, parsed
from fastnorm.kernels import tiers

CASES = (*smoke_cases.cases(), *smoke_cases.cluster_cases())
KERNELS = {
    line.split()[1].partition("(")[0]
    for file in Path(kernels.__path__[0]).glob("*.py")
    for line in file.read_text().splitlines()
    if line.startswith("def ") and line.partition("(")[0].endswith("_kernel")
}
SMALL = SmokeCase("gn", (2, 8, 4, 4), activation="relu", residual=True)


def test_every_value_of_each_factor_comes_with_several_of_the_others() -> None:
    for op in ("bn", "gn", "in", "bin", "mean", *smoke_cases.OF_ROWS):
        mine = [case for case in CASES if case.op == op]
        assert {"one_program", "streaming"} <= {case.tier for case in mine}, op
        assert len({case.dtype for case in mine}) >= (2 if op in smoke_cases.OF_ROWS else 3), op
        if op not in smoke_cases.OF_ROWS:
            assert {case.layout for case in mine} == set(smoke_cases.LAYOUTS), op
            assert len({(case.activation, case.residual) for case in mine}) >= 4, op
    for tier in tiers.TIERS:
        mine = [case for case in CASES if case.tier == tier]
        assert {case.dtype for case in mine} >= set(smoke_cases.DTYPES)
    fusions = {(case.activation, case.residual) for case in CASES}
    assert fusions >= {(a, r) for a in (None, "relu", "silu", "gelu") for r in (False, True)}
    activations = {parsed(case.activation).name for case in smoke_cases.cases()}
    assert activations == {"", *NAMES}
    running = [case for case in CASES if case.op == "in_running"]
    assert {"one_program", "streaming"} <= {case.tier for case in running}
    assert len({case.name for case in CASES}) == len(CASES)
    assert any(case.shape[-1] % 2 for case in CASES) and any(case.unaligned for case in CASES)


@pytest.fixture(scope="module")
def on_a_gpu() -> dict[str, list[str]]:
    """The kernels of each case at a GPU's sizes, by its name."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.benchmarks.smoke_on_a_gpu"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(900)  # a busy machine's: ten seconds of its time
def test_a_gpu_has_room_for_each_case_in_its_tier(on_a_gpu: dict[str, list[str]]) -> None:
    """Its sizes are not the interpreter's: a tier without room would raise on a GPU alone."""
    assert len(on_a_gpu) == len(CASES)
    for name, launched in on_a_gpu.items():
        clusters = [kernel for kernel in launched if kernel.startswith("cluster ")]
        assert bool(clusters) == ("cluster" in name), name
        names = [kernel.removeprefix("cluster ") for kernel in launched]
        if any(tier in name for tier in tiers.TIERS):
            assert smoke.in_one_launch(names) == ("streaming" not in name), name


def test_the_page_has_the_numbers(on_a_gpu: dict[str, list[str]]) -> None:
    page = " ".join((Path(smoke.__file__).parent / "README.md").read_text().split())
    cases = len(smoke_cases.cases())
    launches = sum(map(len, list(on_a_gpu.values())[:cases]))
    assert f"The smoke's {cases} cases make {launches} launches" in page


def test_every_kernel_is_launched(on_a_gpu: dict[str, list[str]]) -> None:
    names = {kernel for launched in on_a_gpu.values() for kernel in launched}
    assert {name.removeprefix("cluster ") for name in names} == KERNELS


def test_unaligned_tensors_are_so() -> None:
    case = SmokeCase("bn", (2, 8, 4, 4), unaligned=True)
    t = smoke.tensors(case, "cpu")
    for tensors in (t, smoke.copied(t)):
        assert tensors["x"].data_ptr() % 16 and tensors["dy"].data_ptr() % 16


@pytest.mark.parametrize("wrong", ["output 0", "dx", "dweight", "running_var"])
def test_a_wrong_result_is_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = SmokeCase("bn", (3, 8, 4, 4))
    assert smoke.check(case, "cpu").error <= 2e-5
    results = smoke.results

    def one_off(functions: object, case: SmokeCase, t: smoke.Tensors) -> smoke.Tensors:
        found = results(functions, case, t)
        if functions is not reference:
            found[wrong].view(-1)[0] += 1e-3 * found[wrong].abs().max()
        return found

    monkeypatch.setattr(smoke, "results", one_off)
    outcome = smoke.check(case, "cpu")
    assert outcome.worst == wrong and outcome.error > outcome.allowed


def test_nan_is_wrong() -> None:
    nan, one = torch.tensor([float("nan"), 1.0]), torch.ones(2, dtype=torch.float64)
    error, _, allowed = smoke.worst_error(SMALL, {"dx": nan}, {"dx": one})
    assert error > allowed


@pytest.mark.parametrize(
    ("activation", "kink"),
    [("relu", 0), ("leaky_relu(0.2)", 0), ("elu(1.5)", 0), ("hardswish", -3), ("hardswish", 3)],
)
def test_dy_is_0_where_rounding_decides(activation: str, kink: float) -> None:
    case = SmokeCase("gn", SMALL.shape, activation=activation, residual=True)
    t = smoke.tensors(case, "cpu")
    z = smoke.call(reference, SmokeCase("gn", SMALL.shape, residual=True), smoke.copied(t, True))
    t["residual"][0, 0, 0, 0] += kink - z[0, 0, 0, 0].float()  # the kink or so
    assert smoke.away_from_the_kink(case, t)["dy"][0, 0, 0, 0] == 0
    assert (t["dy"] != 0).float().mean() > 0.9


def test_a_report_without_launches_fails() -> None:
    """What the engine of CPUs answered would be right, and say nothing of the kernels."""
    module = pytest.importorskip("benchmarks.test_smoke")
    outcome = smoke.Outcome(0.0, "dx", 1.0, [])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="no kernel"):
        patch.setattr(module, "smoke", SimpleNamespace(check=lambda case, device: outcome))
        module.hold(SMALL, lambda key, value: None)
