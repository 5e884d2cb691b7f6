"""The rows of speed.jsonl, grouped by the conditions that make them comparable."""

from collections.abc import Iterable

from reporting.study_files import Row
from reporting.wording import device_name

NO_SPEEDS = "speed.jsonl is missing or empty: nothing is known of the cost."
PROVIDERS = {
    "fastnorm": "fastnorm",
    "builtin": "torch.nn",
    "fastnorm-compile": "fastnorm, compiled",
    "builtin-compile": "torch.nn, compiled",
}


def provider_name(row: Row) -> str:
    """The provider of the norms, and whether the model was compiled."""
    return PROVIDERS[row["provider"]]


def speed_conditions(row: Row) -> str:
    """Device, model, batch size and how a step is run, in words."""
    parts = [
        device_name(row["device"], row["threads"]),
        f"ResNet-{6 * row['depth_n'] + 2}",
        f"batch {row['batch_size']}",
        "float32" if row["amp"] == "off" else f"autocast to {row['amp']}",
        "channels last" * row["channels_last"],
        "CUDA graph" * row["cuda_graph"],
    ]
    return ", ".join(filter(None, parts))


def speed_groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows by their conditions, in the order of the file."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(speed_conditions(row), []).append(row)
    return groups
