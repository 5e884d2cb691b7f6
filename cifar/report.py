"""Report a study's folder as Markdown and as one HTML page: python cifar/report.py --help."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import tyro
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt

from harness.errors import run_script
from harness.files import write_atomic
from harness.progress import counted
from reporting.figures import draw_accuracy, draw_batch_sizes, draw_builtin, draw_speed
from reporting.figures_errors import draw_confusion, draw_confusion_change, draw_misclassified
from reporting.figures_inside import PLACES, draw_features, draw_rho, draw_switch
from reporting.in_short import in_short
from reporting.overview import cautions, conditions_table, progress_table
from reporting.plot_style import DPI, Picture
from reporting.study_files import Missing, Study, read_study
from reporting.tables import batch_table, builtin_table, scores_table, significance, speed_tables
from reporting.wording import escape, label, listing

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "reporting"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class ReportConfig:
    """Report a study, or a run: DIR/report.md with DIR/figures, and the same in DIR/report.html.

    The study may be half finished; the report says what is missing, in its place.
    """

    folder: tyro.conf.Positional[Path]
    """The folder that study.py or train.py wrote to."""
    data_dir: Path | None = None
    """A folder with cifar-10-batches-py in it: shows the misclassified images."""


Maker = Callable[[Study], str | Picture]


def sections(study: Study, data_dir: Path | None) -> dict[str, Sequence[Maker]]:
    """The functions that make each section; for a single run, those without comparisons."""
    misclassified = partial(draw_misclassified, data_dir=data_dir)
    own: dict[str, Sequence[Maker]] = {
        "run": (conditions_table,),
        "scores": (scores_table,),
        "accuracy": (draw_accuracy,),
        "features": [partial(draw_features, place=place) for place in PLACES],
        "rho": (draw_rho,),
        "switch": (draw_switch,),
        "errors": (draw_confusion, misclassified),
    }
    if study.alone:
        norms = {run.flags["norm"] for run in study.runs}
        absent = {"rho": "bin", "switch": "sn"}.items()
        own.update({name: () for name, norm in absent if norm not in norms})
        return own
    own.update(
        run=(conditions_table, progress_table),
        significance=(significance,),
        builtin=(builtin_table, draw_builtin),
        batch=(batch_table, draw_batch_sizes),
        errors=(draw_confusion, draw_confusion_change, misclassified),
        speed=(speed_tables, draw_speed),
    )
    return own


class Report:
    """The text of a report and its figures, while they are made."""

    def __init__(self, study: Study, data_dir: Path | None) -> None:
        self.images: dict[str, bytes] = {}  # PNG, by its path relative to report.md
        self.title = title(study)
        self.text = TEMPLATES.get_template("report.md.jinja").render(
            title=escape(self.title),
            alone=study.alone,
            in_short=in_short(study),
            cautions=cautions(study),
            folder=study.folder,
            **{name: self.section(made, study) for name, made in sections(study, data_dir).items()},
        )

    def section(self, makers: Sequence[Callable[[Study], str | Picture]], study: Study) -> str:
        """The section's Markdown; if data are missing, a line that says so, once."""
        parts = []
        for make in makers:
            try:
                made = make(study)
                parts.append(made if isinstance(made, str) else self.picture(made))
            except Missing as missing:
                parts.append(f"*{missing}*")
        return "\n\n".join(dict.fromkeys(parts))

    def picture(self, picture: Picture) -> str:
        """The Markdown of a figure; its PNG is kept."""
        path = f"figures/{picture.name}.png"
        content = io.BytesIO()
        picture.figure.savefig(content, dpi=DPI, format="png")
        self.images[path] = content.getvalue()
        return f"![{escape(picture.alt)}]({path})\n\n*{picture.caption}*"

    def html(self) -> str:
        """The same text as one page that contains the figures."""
        # html=False: text in a name that looks like a tag stays text.
        body = MarkdownIt("commonmark", {"html": False}).enable("table").render(self.text)
        for path, content in self.images.items():
            data = base64.b64encode(content).decode()
            body = body.replace(f'src="{path}"', f'src="data:image/png;base64,{data}"')
        return TEMPLATES.get_template("report.html.jinja").render(title=self.title, body=body)

    def write(self, folder: Path) -> None:
        """All files, each whole or not at all."""
        texts = {"report.md": self.text.encode(), "report.html": self.html().encode()}
        for path, content in (self.images | texts).items():
            write_atomic(folder / path, partial(_put, content))


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def title(study: Study) -> str:
    """The title for a study, or for a single run; with the data of the runs."""
    names = listing(list(dict.fromkeys(run.dataset for run in study.runs))) or "no run yet"
    return f"{label(study.runs[0].name) if study.alone else 'Norm against norm'}: {names}"


def report(config: ReportConfig) -> None:
    """Read the study, then write."""
    study = read_study(config.folder)
    made = Report(study, config.data_dir)
    made.write(config.folder)
    found = f"{counted(len(study.runs), 'run')}, {counted(len(made.images), 'figure')}"
    print(f"{found}: {config.folder / 'report.html'}")


def main() -> None:
    """The command line."""
    report(tyro.cli(ReportConfig))


if __name__ == "__main__":
    run_script(main)
