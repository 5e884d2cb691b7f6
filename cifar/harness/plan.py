"""The runs of a study."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from harness.config import Norm, Setting, TrainConfig, flag
from harness.errors import UserError
from harness.recipes import RECIPES

Part = Literal["variants", "builtin", "batch", "speed"]
Variant = Literal["bn-builtin", "none", "bn", "in", "bin", "ln", "gn", "rms", "sn", "wn"]

SEVEN: tuple[Variant, ...] = ("bn-builtin", "none", "bn", "in", "bin", "ln", "gn")
BUILTIN = ("in-builtin", "ln-builtin", "gn-builtin")  # besides bn-builtin of the variants
BATCH_NORMS = ("bn", "gn")


@dataclass(frozen=True)
class StudyConfig(Setting):
    """Run the whole study, norm against norm, into OUTPUT. Call it again, and it goes on.

    OUTPUT/runs/NAME/seedSEED holds the files of train.py, OUTPUT/speed.jsonl the results of
    speed.py, OUTPUT/logs the output of both. `python cifar/report.py OUTPUT` reads them, at any
    time.
    """

    output: Path = field(kw_only=True)
    """The study's folder."""
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int | None = None
    """Epochs of a run; the schedule is scaled to it. Default: the recipe's 100, 182, 30 or 13."""
    parts: tuple[Part, ...] = get_args(Part)
    """variants: norm against norm. builtin: torch.nn's norms, if torch.nn has the same. batch: bn
    against gn at each batch size. speed: images/s and memory in training."""
    variants: tuple[Variant, ...] = SEVEN
    """Norms in the parts variants and speed."""
    batch_sizes: tuple[int, ...] = (128, 32, 8, 4, 2)
    """Batch sizes in the part batch. The learning rate is in proportion to them, as in Wu and He
    (arXiv 1803.08494): the recipe's at the recipe's batch size."""
    batch_epochs: int | None = None
    """Epochs of the batch part's runs. Default: 60% of --epochs, as in the study."""
    jobs: int = 1
    """Number of runs at a time."""
    seconds: float | None = None
    """Stop after this time, even in the middle of runs; call again to go on."""

    def check(self) -> None:
        """Raises UserError for values that no study can have; train.py checks those of runs."""
        self.require_counts("epochs", "batch_epochs", "jobs")
        for name in ("seeds", "parts", "variants", "batch_sizes"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UserError(
                    f"{flag(name)} must name at least one, and none twice; got {values}"
                )


@dataclass(frozen=True)
class PlannedRun:
    """One training of the study."""

    part: Part
    name: str
    config: TrainConfig


def planned(study: StudyConfig) -> list[PlannedRun]:
    """All trainings, a whole seed before the next, in the order of StudyConfig.parts."""
    parts = itertools.product(study.seeds, study.parts)
    return [run for seed, part in parts for run in plan_part(study, part, seed)]


def plan_part(study: StudyConfig, part: Part, seed: int) -> Iterator[PlannedRun]:
    """The trainings of one part and seed."""
    recipe = RECIPES[study.chosen_recipe()]
    epochs = study.epochs or recipe.epochs
    names: dict[str, dict[str, Any]] = {}
    if part == "variants":
        names = {name: {"epochs": epochs} for name in study.variants}
    elif part == "builtin":
        names = {name: {"epochs": epochs} for name in BUILTIN}
    elif part == "batch":
        short = study.batch_epochs or -(-epochs * 3 // 5)
        names = {
            f"{norm}-batch{size}": {
                "epochs": short,
                "batch_size": size,
                "lr": recipe.rate(norm) * size / recipe.batch_size,
            }
            for size in study.batch_sizes
            for norm in BATCH_NORMS
        }
    for name, flags in names.items():
        yield PlannedRun(part, name, train_config(study, name, seed, **flags))


def train_config(study: StudyConfig, name: str, seed: int, **flags: Any) -> TrainConfig:
    """The flags of the training called `name`, with a value for each."""
    norm, *variant = name.split("-")
    name_of_recipe = study.chosen_recipe()
    recipe = RECIPES[name_of_recipe]
    chosen = {"recipe": name_of_recipe, "shortcut": study.chosen_shortcut()}
    assert norm in get_args(Norm)
    return TrainConfig(
        **study.settings() | chosen,
        norm=norm,  # type: ignore[arg-type]
        backend="torch" if "builtin" in variant else "auto",
        seed=seed,
        output=study.output / "runs" / name / f"seed{seed}",
        resume=True,
        **{"lr": recipe.rate(norm), "batch_size": recipe.batch_size, **flags},
    )
