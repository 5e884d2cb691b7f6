"""`python -m benchmarks.run --tiny` end to end on this machine, and its way with failures."""

import importlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import providers, run, shapes, timing
from benchmarks.check import check
from benchmarks.inputs import Inputs
from benchmarks.measure import Budget
from benchmarks.providers import Provider
from benchmarks.rows import NOT_REACHED, read
from benchmarks.shapes import Case
from fastnorm.kernels import tiers

TIMES = ("us_p20", "us_p50", "us_p80", "gbps", "pct_copy", "host_us", "eager_us")


def stand_in(
    monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[[Case, Inputs], Tensor]
) -> None:
    """Let `function` compute what the provider `name` is asked for."""
    made = Provider(name, providers.bound(function))
    monkeypatch.setitem(providers.FACTORIES, name, lambda: made)


def rehearse(out: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the rows of a rehearsal without torch.compile, which takes seconds."""
    names = ("fastnorm", "eager") if "--providers" not in arguments else ()
    chosen = ["--providers", *names] if names else []
    code = run.main(["--tiny", "--out", str(out), *chosen, *arguments])
    return code, read(out)


def test_every_timing_of_a_case_has_a_row(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, rows = rehearse(tmp_path / "rows.jsonl", "--ops", "bn", "ln")
    assert code == 0
    found = {(row["op"], row["provider"], row["direction"], row["l2"]) for row in rows}
    assert len(found) == len(rows) == 2 * 2 * 3 * 2
    for row in rows:
        assert row["error"] is None and all(row[key] >= 0 for key in TIMES)
        assert 0 < row["us_p20"] <= row["us_p50"] <= row["us_p80"]
        case = next(case for case in shapes.tiny() if case.op == row["op"])
        assert row["floor_bytes"] == case.floor_bytes(row["direction"])
        assert row["torch"] == torch.__version__
        if row["provider"] == "fastnorm":
            assert row["launches"] == len(row["kernels"]) > 0, "interpreted here, and counted"
        else:
            assert row["launches"] is None
        if not torch.cuda.is_available():
            assert row["gpu"] is None and row["cpu"] and row["timing"] == "cpu"
    printed = capsys.readouterr().out
    assert printed.index("[1/2") < printed.index("[2/2") < printed.index("64 MB and more")


def test_a_wrong_result_is_marked_and_nothing_of_its_case_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    right = providers.ours

    def wrong_for_bn(case: Case, i: Inputs) -> Tensor:
        return right(case, i) * (1.01 if case.op == "bn" else 1.0)

    stand_in(monkeypatch, "fastnorm", wrong_for_bn)
    code, rows = rehearse(tmp_path / "rows.jsonl", "--ops", "bn", "bn_eval")
    assert code == 1
    (marked,) = [row for row in rows if row["op"] == "bn"]
    assert marked["provider"] == "fastnorm" and "y is off by" in marked["error"]
    assert "us_p50" not in marked
    assert {row["provider"] for row in rows if row["op"] == "bn_eval"} == {"fastnorm", "eager"}
    assert (
        "FAILED fastnorm in bn 2x8x5x4 float32 residual_relu: WrongResult"
        in capsys.readouterr().out
    )


def test_another_package_that_raises_costs_its_own_rows_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(case: Case, i: Inputs) -> Tensor:
        raise RuntimeError("no kernel for this\nand more")

    stand_in(monkeypatch, "liger", broken)
    out = tmp_path / "rows.jsonl"
    code, rows = rehearse(out, "--ops", "bn_eval", "--providers", "fastnorm", "liger")
    assert code == 0
    (marked,) = [row for row in rows if row["provider"] == "liger"]
    assert marked["error"] == "RuntimeError: no kernel for this"
    assert len(rows) == 1 + 3 * 2


def test_cooperative_kernels_that_are_wrong_leave_the_others_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(case: Case, i: Inputs) -> Tensor:
        return providers.ours(case, i) + 1

    stand_in(monkeypatch, "fastnorm-coop", wrong)
    names = ["fastnorm", "fastnorm-coop", "eager"]
    out = tmp_path / "rows.jsonl"
    code, rows = rehearse(out, "--ops", "bn_eval", "--providers", *names)
    assert code == 1
    assert {row["provider"]: row["error"] is None for row in rows} == {
        "fastnorm": True,
        "fastnorm-coop": False,
        "eager": True,
    }


def test_a_broken_device_ends_the_run_after_the_row_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(case: Case, i: Inputs) -> Tensor:
        raise RuntimeError("illegal memory access")

    def synchronize(self: object) -> None:
        raise RuntimeError("illegal memory access, still")

    stand_in(monkeypatch, "fastnorm", broken)
    monkeypatch.setattr(type(timing.clock()), "synchronize", synchronize)
    out = tmp_path / "rows.jsonl"
    with pytest.raises(RuntimeError, match="still"):
        rehearse(out, "--ops", "bn_eval")
    assert [row["error"] for row in read(out)] == ["RuntimeError: illegal memory access"]


def test_what_a_budget_has_no_room_for_is_listed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, rows = rehearse(tmp_path / "rows.jsonl", "--budget", "1e-6")
    assert code == 0 and {row["error"] for row in rows} == {NOT_REACHED}
    assert len(rows) == 2 * len(shapes.tiny())
    printed = capsys.readouterr().out
    assert f"{NOT_REACHED}: ln 6x32 bfloat16: fastnorm, eager" in printed
    assert "FAILED" not in printed


def test_a_budget_expects_of_a_provider_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first case compiles: that is not expected again."""
    now = [0.0]
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: now[0])
    budget = Budget(100.0)
    for seconds, allowed in ((50.0, True), (20.0, True), (15.0, False)):
        with budget.lap("slow"):
            now[0] += seconds
        assert budget.allows("slow") == allowed, seconds
    assert budget.allows("quick")
    now[0] = 100.0
    assert not budget.allows("quick")


def test_rows_may_be_added_to_those_of_another_run(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    _, first = rehearse(out, "--ops", "bn_eval", "--providers", "eager")
    _, both = rehearse(out, "--append", "--ops", "bn_eval", "--providers", "fastnorm")
    assert both[: len(first)] == first and len(both) == 2 * len(first)
    assert all(row["driver"] is None and "nvidia_cutlass_dsl" in row for row in both)


def test_rows_are_on_disk_as_soon_as_they_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"

    def interrupted() -> Any:
        yield {"op": "bn"}
        raise KeyboardInterrupt

    with out.open("w") as file, pytest.raises(KeyboardInterrupt):
        try:
            run.write(interrupted(), {}, file)
        finally:
            assert read(out) == [{"op": "bn"}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_only_the_rehearsal_runs_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        run.main(["--quick", "--out", str(tmp_path / "rows.jsonl")])
    assert not (tmp_path / "rows.jsonl").exists()


def test_absent_packages_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert [provider.name for provider in providers.load(["eager", "quack"])] == ["eager"]
    assert "without quack: ModuleNotFoundError" in capsys.readouterr().out


def install(monkeypatch: pytest.MonkeyPatch, **modules: types.SimpleNamespace) -> None:
    """Make importlib find stand-ins for other packages' modules."""
    real = importlib.import_module
    found = {name.replace("__", "."): module for name, module in modules.items()}
    monkeypatch.setattr(importlib, "import_module", lambda name: found.get(name) or real(name))


def test_adapters_of_other_packages_compute_the_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stand-ins with the packages' signatures: what an adapter passes and returns is checked."""

    def liger_layer_norm(X: Tensor, W: Tensor, B: Tensor, eps: float) -> Tensor:
        return torch.nn.functional.layer_norm(X, W.shape, W, B, eps)

    def liger_rms_norm(X: Tensor, W: Tensor, eps: float, in_place: bool = True) -> Tensor:
        assert not in_place, "it would overwrite the caller's dy"
        return torch.nn.functional.rms_norm(X, W.shape, W, eps)

    def liger_group_norm(
        X: Tensor, W: Tensor, B: Tensor, num_channels: int, num_groups: int, eps: float
    ) -> Tensor:
        assert num_channels == X.shape[1]
        return torch.nn.functional.group_norm(X, num_groups, W, B, eps)

    def quack_rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)

    def cudnn_layer_norm(
        input: Tensor, normalized_shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        return torch.nn.functional.layer_norm(input, normalized_shape, weight, bias, eps)

    def cudnn_rms_norm(input: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        return torch.nn.functional.rms_norm(input, weight.shape, weight, eps)

    def layernorm_fwd(
        x: Tensor, weight: Tensor, bias: Tensor, eps: float, return_rstd: bool, return_mean: bool
    ) -> tuple[Tensor, ...]:
        assert weight.dtype == bias.dtype == torch.float32 and return_rstd and return_mean
        y, mean, rstd = torch.native_layer_norm(x.float(), weight.shape, weight, bias, eps)
        return y.to(x.dtype), rstd, mean

    def layernorm_bwd(
        x: Tensor, weight: Tensor, dout: Tensor, rstd: Tensor, mean: Tensor
    ) -> tuple[Tensor, ...]:
        dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
            dout.float(), x.float(), weight.shape, mean, rstd, weight, weight, [True] * 3
        )
        return dx.to(x.dtype), dweight, dbias

    class UseGems:
        entered = 0

        def __init__(self, include: list[str]) -> None:
            assert "group_norm_backward" in include

        def __enter__(self) -> None:
            UseGems.entered += 1

        def __exit__(self, *error: object) -> None:
            pass

    install(
        monkeypatch,
        liger_kernel__transformers__functional=types.SimpleNamespace(
            liger_layer_norm=liger_layer_norm,
            liger_rms_norm=liger_rms_norm,
            liger_group_norm=liger_group_norm,
        ),
        quack__rmsnorm=types.SimpleNamespace(
            layernorm_fwd=layernorm_fwd, layernorm_bwd=layernorm_bwd, rmsnorm=quack_rmsnorm
        ),
        cudnn__ops__norm=types.SimpleNamespace(
            layer_norm=cudnn_layer_norm, rms_norm=cudnn_rms_norm
        ),
        flag_gems=types.SimpleNamespace(use_gems=UseGems),
    )
    names = ["liger", "quack", "cudnn", "flag_gems"]
    code, rows = rehearse(tmp_path / "rows.jsonl", "--ops", "ln", "rms", "--providers", *names)
    assert code == 0 and all(row["error"] is None for row in rows), rows
    served = {(row["provider"], row["op"]) for row in rows}
    both = {(name, op) for name in names[:3] for op in ("ln", "rms")}
    assert served == {*both, ("flag_gems", "ln")}
    assert UseGems.entered == 1
    (liger,) = providers.load(["liger"])
    groups = Case("gn", (2, 8, 6, 4))
    assert liger.serves(groups) and not liger.serves(
        Case("gn", groups.shape, layout="channels_last")
    )
    check(groups, liger.bind(groups))


def test_clusters_are_timed_where_sets_are_too_large_for_a_program() -> None:
    (coop,) = providers.load(["fastnorm-coop"])
    large = (2, 8, 128, 128)
    assert all(coop.serves(Case(op, large)) for op in ("bn", "in", "gn"))
    others = (
        Case("bn_eval", large),
        Case("bin", large),
        Case("in", (2, 8, 5, 3)),
        Case("bn", large, fused="residual_relu"),
        Case("bn", large, layout="channels_last"),
    )
    assert not any(map(coop.serves, others))
    with coop.setting():
        assert tiers.state() == (True, None)
