"""`python -m benchmarks.small`."""

import pytest

from benchmarks import small


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_a_line_has_the_times_of_both_and_their_ratio(
    cold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = []
    monkeypatch.setattr(small, "WARM_UP", 0)
    monkeypatch.setattr(small, "COLD_WARM_UP", 0)
    monkeypatch.setattr(small, "product_of_matrices", lambda: lambda: products.append(1))
    line = small.table_line("LayerNorm", "relu", 3, cold)
    name, activation, torch_us, our_us, ratio, _ = line.split()
    assert (name, activation) == ("LayerNorm", "relu")
    assert float(torch_us) > 0 and float(our_us) > 0 and float(ratio) > 0
    assert len(products) == (2 * 3 if cold else 0)  # before each call
