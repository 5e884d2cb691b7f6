"""report.py on synthetic studies: whole, half finished, empty and damaged."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
from report import Report, ReportConfig, report

from harness.archives import CIFAR10, read_folder
from harness.errors import UserError
from harness.recipes import RECIPES
from reporting.figures import draw_accuracy
from reporting.figures_errors import best_variant, draw_confusion, draw_misclassified
from reporting.figures_inside import draw_features, round_values
from reporting.in_short import in_short
from reporting.overview import cautions, conditions_table
from reporting.plot_style import COLOURS
from reporting.study_files import Missing, read_study
from reporting.tables import scores_table, significance, speed_tables

from .study_folders import StudyFolder, whole_study

LABELS = np.random.default_rng(1).integers(0, 10, 400)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study", LABELS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two seeds with its report. Read only."""
    path = tmp_path_factory.mktemp("whole")
    whole_study(StudyFolder(path, LABELS, epochs=8), seeds=(0, 1))
    report(ReportConfig(path))
    return path


def cells(text: str, first: str) -> list[str]:
    """The cells of the first table row that begins with `first`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_needs_nothing_else(whole: Path) -> None:
    text, page = ((whole / f"report.{kind}").read_text() for kind in ("md", "html"))
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)\n\n\*[^\n]+\*\n", text)  # with alt and caption
    assert len(figures) == text.count("![") == 10
    assert all((whole / figure).read_bytes().startswith(b"\x89PNG") for figure in figures)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 10
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page and "url(" not in page and "@import" not in page


def test_both_say_the_same(whole: Path) -> None:
    text, page = ((whole / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert page.count("<h2>") == text.count("\n## ") and page.count("<h2>") == 9
    assert page.count("<tr>") == len(re.findall(r"(?m)^\| (?!:--)", text))
    assert "is missing" not in text and "yet" not in text


def test_scores_are_means_over_seeds(whole: Path) -> None:
    runs = read_study(whole).finished("bn")
    scores = [run.accuracy("test") for run in runs]
    row = cells((whole / "report.md").read_text(), "BN")
    assert row[1] == "2"
    assert row[4] == f"{sum(scores) / 2:.3f}\u00a0±\u00a0{stdev(scores):.3f}"
    assert row[-1] == "0.977 / 0.880 / 0.878"


def test_one_seed_has_no_spread(folder: StudyFolder) -> None:
    folder.run("bn", 0.9)
    folder.run("gn", 0.6)
    made = Report(read_study(folder.path), None).text
    assert cells(made, "BN")[1:5] == ["1", "0.970", "0.900", "0.900"]
    assert "Welch" not in made and "another seed may change the order" in made


def test_pairs_are_told_apart_by_their_predictions(folder: StudyFolder) -> None:
    for name, accuracy in (("bn", 0.9), ("gn", 0.6)):
        folder.run(name, accuracy)
    copy = folder.path / "runs" / "bin"
    (folder.path / "runs" / "bn").rename(copy)  # BIN with BN's predictions, and BN as well
    folder.run("bn", 0.9)
    (copy / "seed0" / "predictions.npz").replace(folder.path / "kept.npz")
    for name in ("bn", "bin"):
        path = folder.path / "runs" / name / "seed0" / "predictions.npz"
        path.write_bytes((folder.path / "kept.npz").read_bytes())
    text = significance(read_study(folder.path))
    groups = [line for line in text.splitlines() if line.startswith("- ")]
    assert groups == ["- BN 0.900 and BIN 0.900", "- GN 0.600"]
    matrix = [cells(text, f"{name} 0.{tenths}00") for name, tenths in (("BIN", 9), ("GN", 6))]
    assert matrix[0][1] == "1.000" and matrix[1][1] == matrix[1][2] == "**\\<0.001**"


def test_a_half_finished_study(folder: StudyFolder) -> None:
    folder.plan((0,))
    folder.run("bn", 0.9)
    folder.run("bin", 0.9, stop=3)  # with a torn line
    folder.run("bn-batch8", 0.8, stop=1)
    text = Report(read_study(folder.path), None).text
    row = cells(text, "the variants")
    assert row[1] == "1 of 9" and row[2] == "BIN seed 0 (epoch 3 of 20)"
    assert row[3] == "seed 0: BN (torch), no norm, IN, LN, GN, SN, WN"
    for picture in ("accuracy", "features_last_conv", "features_pooled", "rho"):
        caption = text.split(f"figures/{picture}.png")[1].split("\n")[2]
        assert caption.endswith(" Unfinished: BIN at epoch 3 of 20.*")
    assert "*No run of the batch sizes has finished.*" in text
    assert "*No norm has finished both with fastnorm and with torch.nn yet.*" in text
    assert "*Fewer than two variants have finished with their predictions.*" in text
    assert "with no norm is not there yet" in text
    assert "Pass `--data-dir FOLDER`" in text
    assert text.count("speed.jsonl is missing") == 1


@pytest.mark.slow
def test_a_study_that_has_only_begun(
    folder: StudyFolder, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder.plan((0,))
    done = run_script("report.py", folder.path)
    assert done.returncode == 0, done.stderr
    text = (folder.path / "report.md").read_text()
    sections = text.split("\n## ")[1:]
    assert len(sections) == 9
    assert all(re.search(r"(?m)^\*[^*]+\*$", part) for part in sections[1:])
    assert (folder.path / "report.html").is_file() and not (folder.path / "figures").exists()


def test_no_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent is not a folder"):
        report(ReportConfig(tmp_path / "absent"))


def test_an_empty_or_wrong_folder_is_an_error(folder: StudyFolder, tmp_path: Path) -> None:
    """Nothing is written there; a folder of runs names one that it holds."""
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "notes.txt").write_text("mine")
    for path in (folder.path, tmp_path / "wrong"):
        with pytest.raises(UserError, match=f"{path.name} holds neither a study nor a run; give"):
            report(ReportConfig(path))
    assert [path.name for path in (tmp_path / "wrong").iterdir()] == ["notes.txt"]
    folder.run("bn", 0.9)
    with pytest.raises(UserError, match=r"did you mean .*bn.seed0\?"):
        report(ReportConfig(folder.path / "runs" / "bn"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gn", "bn-builtin", "gn-builtin", "none", "bin"])
def test_a_single_run(folder: StudyFolder, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its curves, its scores, its confusions; nothing that compares it with another."""
    path = folder.run(name, 0.9, seed=3)
    report(ReportConfig(path))
    assert capsys.readouterr().out.startswith("1 run, ")
    text = (path / "report.md").read_text()
    shown = {"gn": "GN", "bn-builtin": "BN (torch)", "gn-builtin": "GN (torch)"}.get(name)
    shown = shown or {"none": "no norm", "bin": "BIN"}[name]
    assert text.startswith(f"# {shown}: CIFAR-10 (JPEG q75)\n")
    assert cells(text, shown)[1:5] == ["1", "0.970", "0.900", "0.900"]
    for figure in ("accuracy", "confusion", *["rho"] * (name == "bin")):
        assert (path / "figures" / f"{figure}.png").is_file(), figure
    assert "seed 3" in text and "Pass `--data-dir FOLDER` to see the images" in text
    absent = (
        "torch.nn",
        "significant",
        "variant",
        "batch sizes",
        "speed.jsonl",
        "SN:",
        "study.json",
    )
    assert not [word for word in absent if word in text]
    assert (path / "report.html").is_file()


def test_an_unfinished_run_alone(folder: StudyFolder) -> None:
    path = folder.run("gn", 0.9, stop=3)
    made = Report(read_study(path.parent), None)
    assert "Unfinished: GN at epoch 3 of 20." in made.text
    assert "figures/accuracy.png" in made.images and "figures/confusion.png" not in made.images


def test_a_single_run_shows_its_errors(tmp_path: Path, tiny_cifar: Path) -> None:
    _, (_, labels), _ = read_folder(CIFAR10, tiny_cifar)
    path = StudyFolder(tmp_path / "small", labels).run("bn", 0.5)
    report(ReportConfig(path, tiny_cifar))
    assert (path / "figures" / "misclassified.png").is_file()


@pytest.mark.parametrize(
    ("dataset", "flag"), [("sklearn-digits-32x32", "auto"), ("CIFAR-100", "cifar100")]
)
def test_published_figures_stand_beside_cifar10_alone(
    folder: StudyFolder, dataset: str, flag: str
) -> None:
    folder.run("bn", 0.9)
    text = scores_table(read_study(folder.path))
    assert "0.977 / 0.880 / 0.878" in text and "HarmanDotpy" in text and "Mittal" in text
    folder.dataset = dataset
    folder.run("bn", 0.9, dataset=flag)
    study = read_study(folder.path)
    text = scores_table(study)
    assert cells(text, "BN")[1:] == ["1", "0.970", "0.900", "0.900", "0.900", "0.898"]
    assert "ublished" not in text + " ".join(cautions(study)[:1]).replace("the published study", "")


def test_a_single_epoch_is_no_plural(folder: StudyFolder) -> None:
    folder.epochs = 1
    folder.run("bn", 0.9)
    assert cautions(read_study(folder.path))[0].startswith("The variants have 1 epoch, not the 100")


def test_no_winner_among_networks_at_chance(folder: StudyFolder) -> None:
    """10% of ten classes, a little more by luck; then one that has learnt."""
    for name, accuracy in (("bn", 0.102), ("gn", 0.098)):
        folder.run(name, accuracy)
    study = read_study(folder.path)
    assert in_short(study)[0] == (
        "No variant is better than chance on the validation split: none is the best."
    )
    for draw in (draw_confusion, lambda study: draw_misclassified(study, None)):
        with pytest.raises(Missing, match="No variant is better than chance"):
            draw(study)
    folder.run("in", 0.2)
    assert best_variant(read_study(folder.path)) == "in"
    assert in_short(read_study(folder.path))[0].startswith("Best validation accuracy: **IN**")


def test_a_damaged_line_is_named(folder: StudyFolder) -> None:
    path = folder.run("bn", 0.9) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{\n", *lines[2:]]))
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        read_study(folder.path)


def test_runs_on_other_test_images_are_refused(folder: StudyFolder) -> None:
    folder.run("bn", 0.9)
    folder.labels = folder.labels[::-1]
    folder.run("gn", 0.9)
    with pytest.raises(UserError, match="different test labels"):
        significance(read_study(folder.path))


def test_names_are_text(folder: StudyFolder) -> None:
    folder.dataset = "a|b <script>*_`&amp;"
    folder.run("bn", 0.9)
    made = Report(read_study(folder.path), None)
    shown = "a|b &lt;script&gt;*_`&amp;amp;"
    assert f'<td style="text-align:left">{shown}</td>' in made.html()
    assert f"<h1>Norm against norm: {shown}</h1>" in made.html()


def test_what_must_not_be_compared(folder: StudyFolder) -> None:
    folder.run("bn", 0.9)
    lines = cautions(read_study(folder.path))
    assert [line.split()[:4] for line in lines] == [
        ["The", "variants", "have", "20"],
        ["The", "data", "are", "CIFAR-10"],
        ["Speeds", "measured", "on", "a"],
    ]


def test_nothing_to_caution_about(folder: StudyFolder) -> None:
    folder.epochs, folder.dataset = 100, "CIFAR-10"
    config = folder.run("bn", 0.9) / "config.json"
    content = json.loads(config.read_text()) | {"device": "NVIDIA H200"}
    config.write_text(json.dumps(content))
    assert cautions(read_study(folder.path)) == []


def test_variants_that_differ_in_more_than_the_norm(folder: StudyFolder) -> None:
    folder.run("bn", 0.9)
    folder.run("wn", 0.8, lr=0.03)
    assert "Not alike in all variants: lr is 0.1 (BN), 0.03 (WN)." in cautions(
        read_study(folder.path)
    )


def test_the_best_variant_is_not_chosen_by_the_test(folder: StudyFolder) -> None:
    folder.run("bn", 0.9)
    results = folder.run("gn", 0.8) / "results.json"
    content = json.loads(results.read_text())
    content["val"]["accuracy"], content["test"]["accuracy"] = 0.95, 0.1
    results.write_text(json.dumps(content))
    assert best_variant(read_study(folder.path)) == "gn"


def test_an_unfinished_run_is_drawn_only_where_none_is_finished(folder: StudyFolder) -> None:
    folder.run("bn", 0.9, seed=0)
    folder.run("bn", 0.9, seed=1, stop=2)
    folder.run("bn", 0.9, seed=2)
    folder.run("gn", 0.9, seed=0, stop=2)
    folder.run("gn", 0.9, seed=1, stop=5)
    study = read_study(folder.path)
    assert [(run.seed, len(run.rows)) for run in study.curves("bn")] == [(0, 20), (2, 20)]
    assert [(run.seed, len(run.rows)) for run in study.curves("gn")] == [(1, 5)]


def test_a_norm_has_one_colour_and_torch_is_dashed(folder: StudyFolder) -> None:
    for name in ("bn", "bn-builtin", "gn"):
        folder.run(name, 0.9)
    panel = draw_accuracy(read_study(folder.path)).figure.axes[0]
    looks = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in panel.lines}
    assert looks["BN"] == (COLOURS["bn"], "-") and looks["GN"] == (COLOURS["gn"], "-")
    assert looks["BN (torch)"] == (COLOURS["bn"], "--")


def test_misclassified_images(tmp_path: Path, tiny_cifar: Path, folder: StudyFolder) -> None:
    _, (_, labels), _ = read_folder(CIFAR10, tiny_cifar)
    small = StudyFolder(tmp_path / "small", labels)
    small.run("bn", 0.5)
    study = read_study(small.path)
    wrong = sum(run.answers[0] != run.answers[1] for run in study.runs if run.answers).sum()
    picture = draw_misclassified(study, tiny_cifar)
    assert sum(bool(panel.images) for panel in picture.figure.axes) == wrong > 0
    assert f"The first {wrong} of the {wrong} test images" in picture.caption
    with pytest.raises(Missing, match="--data-dir"):
        draw_misclassified(study, None)
    folder.run("bn", 0.5)
    with pytest.raises(UserError, match="its test labels are not those of"):
        draw_misclassified(read_study(folder.path), tiny_cifar)


def test_the_surest_errors_come_first(tmp_path: Path, tiny_cifar: Path) -> None:
    _, (_, labels), _ = read_folder(CIFAR10, tiny_cifar)
    path = StudyFolder(tmp_path, labels).run("bn", 0.5) / "predictions.npz"
    predictions, sure = labels.copy(), np.full(len(labels), 0.99, np.float32)
    predictions[[1, 3, 4]] += 1
    sure[[1, 3, 4]] = 0.4, 0.9, 0.6
    np.savez(path, labels=labels, predictions=predictions, confidences=sure)
    picture = draw_misclassified(read_study(path.parent), tiny_cifar)
    titles = [panel.get_title().split()[-1] for panel in picture.figure.axes if panel.images]
    assert titles == ["90%", "60%", "40%"]
    assert "The first 3 of the 3 test images" in picture.caption
    assert "the surest errors first" in picture.caption


def test_speeds(folder: StudyFolder) -> None:
    folder.speed()
    text = speed_tables(read_study(folder.path))
    assert "**CPU, 1 thread, ResNet-14, batch 128, float32**" in text
    assert cells(text, "GN, fastnorm")[1:] == ["1,710", "1,659–1,744", "1.90", "23.4", "–"]
    assert cells(text, "BIN, fastnorm")[3] == "–"


def test_of_a_hundred_classes_the_hardest_are_shown(tmp_path: Path) -> None:
    labels = np.arange(100).repeat(4)
    names = [f"class {k}" for k in range(100)]
    folder = StudyFolder(tmp_path / "study", labels, class_names=names)
    path = folder.run("bn", 0.9) / "predictions.npz"
    predictions = labels.copy()
    predictions[3::4] = np.where(labels[3::4] < 70, 99, labels[3::4])  # 0 to 69: one of four wrong
    predictions[:40] = 98  # 0 to 9: all wrong
    np.savez(path, labels=labels, predictions=predictions)
    picture = draw_confusion(read_study(folder.path))
    (panel,) = picture.figure.axes
    shown = [text.get_text() for text in panel.get_yticklabels()]
    assert shown == [f"class {k}" for k in range(20)]
    assert "Of 100 classes the 20 hardest." in picture.caption


def test_the_command_leaves_out_paths_and_defaults(folder: StudyFolder) -> None:
    folder.run("bn", 0.9)
    folder.plan((0, 3))
    row = cells(conditions_table(read_study(folder.path)), "command")[1]
    words = ["--seeds 0 3 --epochs 20", "--batch-sizes 2 8 32 128 --batch-epochs 6"]
    variants = "--variants bn-builtin none bn in bin ln gn sn wn"
    flags = f"{words[0]} {variants} {words[1]}"
    assert row.replace("\\", "") == f"python cifar/study.py --output {folder.path} {flags}"


def test_the_recipe_of_he(folder: StudyFolder) -> None:
    folder.epochs = 150
    folder.run("bn", 0.9, recipe="he")
    study = read_study(folder.path)
    recipe = cells(conditions_table(study), "recipe")[1]
    assert "momentum 0.9, weight decay 0.0001, learning rate x0.1 after 50% and 75%" in recipe
    assert cautions(study)[0].startswith("The variants have 150 epochs, not the 182 of the recipe")


def test_the_recipe_is_written_out() -> None:
    assert str(RECIPES["study"]).endswith(
        "SGD, momentum 0, weight decay 0, learning rate x0.1 after 75% and 95% of the epochs"
    )
    assert str(RECIPES["fast"]).endswith(
        "SGD, Nesterov momentum 0.9, weight decay 0.0005 of weights alone, label smoothing 0.1, "
        "learning rate rising for 15% of the epochs, then half a cosine to 0"
    )


def test_speeds_under_other_conditions_are_not_mixed(folder: StudyFolder) -> None:
    folder.speed()
    rows = [json.loads(line) for line in (folder.path / "speed.jsonl").read_text().splitlines()]
    graph = [row | {"cuda_graph": True, "ratio": 3.0} for row in rows if row["norm"] == "bn"]
    folder.append("speed.jsonl", graph)
    (line,) = in_short(read_study(folder.path))
    assert "1.40 (BN) to 1.90 (GN) times torch.nn's speed on CPU, 1 thread" in line
    assert "at 3.00 (BN) times torch.nn's speed on CPU" in line
    assert line.endswith("float32, CUDA graph.")


def test_features_that_diverge_are_drawn_on_an_axis_for_both(folder: StudyFolder) -> None:
    folder.run("bn", 0.9)
    panel = draw_features(read_study(folder.path), "last_conv").figure.axes[0]
    assert panel.get_yscale() == "linear"
    folder.run("none", 0.9)  # 25 times as wide in the end
    panel = draw_features(read_study(folder.path), "last_conv").figure.axes[0]
    assert panel.get_yscale() == "asinh"
    assert sorted(panel.get_yticks()) == [-100, -30, -10, -3, 0, 3, 10, 30, 100]
    assert round_values(0.02, 40_000) == [30_000, 300, 3, 0.03]
