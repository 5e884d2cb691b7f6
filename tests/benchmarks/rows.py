"""Made-up rows in the form of `benchmarks.run`, for tests of the programs that read them."""

from typing import Any

from benchmarks.shapes import DIRECTIONS, Case, describe

COMMON = {
    "gpu": "made up",
    "cpu": "made up",
    "torch": "0",
    "triton": "0",
    "commit": "none",
    "copy_gbps": 1000.0,
}


def timed_row(case: Case, provider: str, us: float, **changes: Any) -> dict[str, Any]:
    """A row of forward + backward in a CUDA graph with cold L2, but for the changes."""
    row: dict[str, Any] = {
        "direction": "both",
        "l2": "cold",
        "timing": "graph",
        "error": None,
        "us_p50": us,
        "host_us": 10.0,
        **COMMON,
        **describe(case),
        "provider": provider,
    }
    row |= changes
    row["floor_bytes"] = case.floor_bytes(row["direction"])
    row["gbps"] = row["floor_bytes"] / row["us_p50"] / 1e3
    row["pct_copy"] = 100 * row["gbps"] / row["copy_gbps"]
    return row


def rows_of(case: Case, times: dict[str, float], **changes: Any) -> list[dict[str, Any]]:
    """Each provider's row in every direction."""
    return [
        timed_row(case, provider, us, direction=direction, **changes)
        for provider, us in times.items()
        for direction in DIRECTIONS
    ]
