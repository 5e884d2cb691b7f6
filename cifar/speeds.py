"""The rows of speed.jsonl, grouped by what makes them comparable."""

from collections.abc import Iterable

from study_files import Row

NO_SPEEDS = "speed.jsonl is missing or empty: nothing is known of the cost."
PROVIDERS = {
    "fastnorm": "fastnorm",
    "builtin": "torch.nn",
    "fastnorm-compile": "fastnorm, compiled",
    "builtin-compile": "torch.nn, compiled",
}


def provider_name(row: Row) -> str:
    """Who computed the norm, and how its kernels were launched."""
    name = PROVIDERS[row["provider"]]
    return f"{name}, CUDA graph" if row.get("cuda_graph") else name


def speed_conditions(row: Row) -> str:
    """Device, batch size and formats in words."""
    device = row["device"]
    if device == "cpu":
        threads = row.get("threads")
        device = "CPU" + (f", {threads} thread{'s' * (threads != 1)}" if threads else "")
    precision = "float32" if row["amp"] == "off" else f"autocast to {row['amp']}"
    layout = ", channels last" if row.get("channels_last") else ""
    return f"{device}, batch {row['batch_size']}, {precision}{layout}"


def speed_groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows by their conditions, in the order of the file."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(speed_conditions(row), []).append(row)
    return groups
