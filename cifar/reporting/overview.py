"""The runs and their conditions, missing runs, and cautions about comparisons."""

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

from harness.config import flag_words
from harness.plan import StudyConfig
from harness.recipes import RECIPES
from reporting.comparisons import finished_variants
from reporting.study_files import Missing, Run, Study
from reporting.wording import device_name, escape, label, lengths, listing, table

ORIGINAL = "CIFAR-10"
PUBLISHED_STUDY = (
    'Harman Singh and Shubham Mittal, "Normalizations in Deep Learning", 2021, '
    "https://github.com/HarmanDotpy/Normalizations-in-Deep-Learning"
)
PARTS = {
    "variants": "the variants",
    "builtin": "fastnorm against torch.nn",
    "batch": "batch sizes",
}
# Flags that other rows of the table, or a run's name, show.
SHOWN_FLAGS = (
    *("norm", "backend", "seed", "depth_n", "recipe", "lr", "epochs", "batch_size"),
    *("dataset", "dataset_label", "device"),
)


def progress_table(study: Study) -> str:
    """Planned, finished, running and missing runs of each part; Missing without a plan."""
    planned = study.planned()
    if not planned:
        raise Missing(
            "study.json is missing or plans nothing, so this cannot tell what is still to come; "
            f"{len(study.runs)} run(s) found, {sum(run.finished for run in study.runs)} finished."
        )
    known = {(run.name, run.seed): run for run in study.runs}
    rows = []
    for part in dict.fromkeys(part for part, _, _ in planned):
        wanted = [(name, seed) for found, name, seed in planned if found == part]
        running = [run for key in wanted if (run := known.get(key)) and not run.finished]
        done = sum(key in known and known[key].finished for key in wanted)
        begun = [
            f"{label(run.name)} seed {run.seed} (epoch {len(run.rows)} of {run.flags['epochs']})"
            for run in running
        ]
        absent = not_begun([key for key in wanted if key not in known])
        cells = [f"{done} of {len(wanted)}", ", ".join(begun) or "–", absent]
        rows.append([PARTS.get(part, escape(part)), *cells])
    return table(["part", "finished", "unfinished", "not begun"], rows, numbers=False)


def not_begun(keys: Sequence[tuple[str, int]]) -> str:
    """The labels of (name, seed), seed by seed; a dash for none."""
    seeds: dict[int, list[str]] = {}
    for name, seed in keys:
        seeds.setdefault(seed, []).append(label(name))
    return "; ".join(f"seed {seed}: {', '.join(names)}" for seed, names in seeds.items()) or "–"


def conditions_table(study: Study) -> str:
    """The conditions that all runs share, and every value of those that differ."""
    runs = study.runs
    if not runs:
        raise Missing("There is no run yet.")
    variants = [run for run in runs if run.name in study.variants] or runs

    def values(describe: Callable[[Run], object], of: Iterable[Run] = runs) -> str:
        return "; ".join(dict.fromkeys(escape(describe(run)) for run in of))

    of = "" if study.alone else ", variants"
    rows = [
        ["data set", values(lambda run: run.dataset)],
        ["images: train / val / test", values(_images)],
        ["model", values(_model)],
        ["parameters", _parameters(runs)],
        ["recipe", values(_recipe)],
        [f"learning rate{of}", values(lambda run: run.flags["lr"], variants)],
        [f"epochs{of}", values(lambda run: run.flags["epochs"], variants)],
        [f"batch size{of}", values(lambda run: run.flags["batch_size"], variants)],
        ["further flags", values(_further_flags)],
        ["hardware", values(_hardware)],
        ["versions", values(_versions)],
        ["commit", values(lambda run: run.description["commit"] or "unknown")],
    ]
    if study.plan:
        rows.append(["command", escape(command(study))])
    return table(["what", "value"], rows, numbers=False)


def command(study: Study) -> str:
    """The command for study.json, without paths, defaults and flags that do not affect results."""
    given = {
        field.name: study.plan[field.name]
        for field in fields(StudyConfig)
        if field.name in study.plan and study.plan[field.name] != as_json(field.default)
    }
    lists = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    words = flag_words({"output": study.folder, **lists})
    return f"python cifar/study.py {shlex.join(words)}"


def as_json(value: Any) -> Any:
    """The value as it comes back from a JSON file."""
    return list(value) if isinstance(value, tuple) else value


def _images(run: Run) -> str:
    return " / ".join(f"{count:,}" for count in run.description["images"].values())


def _model(run: Run) -> str:
    return f"ResNet-{6 * run.flags['depth_n'] + 2}"


def _parameters(runs: Sequence[Run]) -> str:
    counts = sorted({run.description["parameters"] for run in runs})
    return " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))


def _recipe(run: Run) -> str:
    return str(RECIPES[run.flags["recipe"]])


def _further_flags(run: Run) -> str:
    further = {flag: value for flag, value in run.flags.items() if flag not in SHOWN_FLAGS}
    return ", ".join(f"{flag} {value}" for flag, value in further.items() if value is not None)


def _hardware(run: Run) -> str:
    device = device_name(run.description["device"], run.description["threads"])
    return device + ", kernels in Triton's interpreter" * run.description["interpreter"]


def _versions(run: Run) -> str:
    versions = run.description["versions"]
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def cautions(study: Study) -> list[str]:
    """Cautions for a reader who compares this report's numbers with others."""
    runs, lines = study.runs, []
    for name in dict.fromkeys(run.flags["recipe"] for run in runs):
        recipe = RECIPES[name]
        whole = recipe.epochs
        of_it = [run for run in runs if run.flags["recipe"] == name]
        short = [r for r in of_it if r.name in study.variants and r.flags["epochs"] < whole]
        if short:
            published = " Expect accuracies below the published ones." * study.cifar10()
            lines.append(
                f"{'The run has' if study.alone else 'The variants have'} {lengths(short)}, not "
                f"the {whole} of the recipe {recipe.source}: its schedule was scaled, the "
                f"learning rate falls after the same shares of the epochs.{published}"
            )
    names = [name for name in dict.fromkeys(run.dataset for run in runs) if name != ORIGINAL]
    if names:
        lines.append(
            f"The data are {listing([*map(escape, names)])}, not the original CIFAR-10: the "
            "numbers compare only with one another, not with published ones."
        )
    devices = {run.description["device"] for run in runs} | {row["device"] for row in study.speed}
    if "cpu" in devices:
        lines.append("Speeds measured on a CPU say nothing of a GPU.")
    lines += [f"Not alike in all variants: {text}." for text in unlike(finished_variants(study))]
    return lines


def unlike(variants: dict[str, list[Run]]) -> list[str]:
    """The flags in which variants differ, besides the norm and its backend."""
    runs = [run for found in variants.values() for run in found]
    texts = []
    for flag in dict.fromkeys(flag for run in runs for flag in run.flags):
        values: dict[str, list[str]] = {}
        for run in runs:
            values.setdefault(str(run.flags.get(flag)), []).append(label(run.name))
        if flag not in ("norm", "backend", "seed") and len(values) > 1:
            parts = [f"{escape(v)} ({listing([*dict.fromkeys(n)])})" for v, n in values.items()]
            texts.append(f"{escape(flag)} is {', '.join(parts)}")
    return texts
