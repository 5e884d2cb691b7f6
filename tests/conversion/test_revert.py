"""revert: norms that torch cannot express are refused, norms that it lacks are kept."""

import pytest
from torch import nn

import fastnorm
from tests.conversion.models import (
    C,
    fingerprint,
)


def test_revert_refuses_what_torch_cannot_say():
    model = nn.Sequential(
        fastnorm.LayerNorm(C),
        fastnorm.BatchInstanceNorm2d(C),
        fastnorm.BatchNorm2d(C, activation="relu"),
    )
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"1: torch.nn has no batch-inst[^\0]*2: .*'relu'"):
        fastnorm.revert(model)
    assert fingerprint(model) == before

    class Mine(fastnorm.LayerNorm):
        pass

    report = fastnorm.revert(nn.Sequential(Mine(C)))
    assert not report.changed and "subclass of fastnorm.LayerNorm" in report.kept[0].reason


def test_revert_keeps_norms_that_torch_lacks():
    class Mine(fastnorm.MomentNorm):
        pass

    norms = fastnorm.MeanOnlyBatchNorm2d(C), fastnorm.AddLayerNorm(C), fastnorm.SwitchableNorm2d(C)
    report = fastnorm.revert(nn.Sequential(*norms, Mine()))
    assert not report.changed
    assert [kept.reason for kept in report.kept] == ["torch.nn has no such norm"] * 4
