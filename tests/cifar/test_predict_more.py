"""test.py's output besides labels: probabilities, names of classes, the accuracy."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness import image_files
from harness.batches import Normalise
from harness.errors import UserError
from harness.evaluation import infer
from harness.files import write_torch
from harness.model import Architecture, make_model

Predict = Callable[..., None]
CPU = torch.device("cpu")
NAMES = ("cat", "a, dog", "ship")
MOMENTS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
COUNT = 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two random networks of three classes: the weights and their average."""
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    architecture = Architecture("gn", depth_n=1, classes=3)
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(make_model(architecture, "torch").state_dict())
    content = {"model": states[0], "ema": {"model": states[1], "updates": 1}, "config": {}}
    write_torch(
        path, content | MOMENTS | {"architecture": vars(architecture), "class_names": NAMES}
    )
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 3, 32, 32), np.uint8)


@pytest.fixture
def csv(images: np.ndarray, tmp_path: Path) -> Path:
    file = tmp_path / "images.csv"
    np.savetxt(file, images.reshape(COUNT, -1), fmt="%d", delimiter=",")
    return file


@pytest.fixture
def pngs(images: np.ndarray, tmp_path: Path) -> Path:
    folder = tmp_path / "pngs"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def predict(predict_script: ModuleType, checkpoint: Path) -> Predict:
    """test.py in this process, on a CSV or a folder, into a file."""

    def call(images: Path, output: Path, **flags: Any) -> None:
        config = predict_script.PredictConfig(checkpoint, images, output, "torch", **flags)
        predict_script.test(config)

    return call


def expected(checkpoint: Path, images: np.ndarray, ema: bool = False) -> np.ndarray:
    """Probabilities (COUNT, 3)."""
    content = torch.load(checkpoint, weights_only=True)
    model = make_model(Architecture(**content["architecture"]), "torch")
    model.load_state_dict(content["ema"]["model"] if ema else content["model"])
    normalise = Normalise(content["mean"], content["std"], CPU)
    return infer(model, torch.from_numpy(images), normalise, CPU).double().softmax(1).numpy()


@pytest.mark.parametrize("ema", [False, True])
def test_probabilities_of_a_csv(
    predict: Predict, checkpoint: Path, images: np.ndarray, csv: Path, tmp_path: Path, ema: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(image_files, "EVAL_BATCH", 3)
    labels, table = tmp_path / "labels.csv", tmp_path / "probabilities.csv"
    predict(csv, labels, probabilities=table, ema=ema)
    found = np.loadtxt(table, delimiter=",")
    np.testing.assert_allclose(found, expected(checkpoint, images, ema), rtol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    assert np.array_equal(found.argmax(1), np.loadtxt(labels))


def test_names_of_a_folder(
    predict: Predict, checkpoint: Path, images: np.ndarray, pngs: Path, tmp_path: Path
) -> None:
    labels, table = tmp_path / "labels.csv", tmp_path / "probabilities.csv"
    predict(pngs, labels, probabilities=table, class_names=True)
    truth = expected(checkpoint, images)
    quoted = [f'"{name}"' if "," in name else name for name in NAMES]
    lines = [f"{i}.png,{quoted[label]}" for i, label in enumerate(truth.argmax(1))]
    assert labels.read_text().splitlines() == lines
    rows = [line.split(",") for line in table.read_text().splitlines()]
    assert [row[0] for row in rows] == [f"{i}.png" for i in range(COUNT)]
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float), truth, rtol=1e-5)


@pytest.mark.parametrize("class_names", [False, True])
def test_accuracy_where_labels_are_given(
    predict: Predict, csv: Path, pngs: Path, tmp_path: Path, class_names: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The labels predicted, in either form, of which the first is then another."""
    for images in (csv, pngs):
        truth = tmp_path / "truth.csv"
        predict(images, truth, class_names=class_names)
        capsys.readouterr()
        predict(images, tmp_path / "labels.csv", labels=truth)
        assert "\naccuracy 1.0000, macro F1 1.0000\n" in capsys.readouterr().out
        first, *rest = truth.read_text().splitlines()
        other = "ship" if first.endswith(("cat", "0")) else "cat"
        name = f"{first.split(',')[0]}," if images is pngs else ""
        lines = [f"{name}{other}", *rest]
        truth.write_text("\n".join(lines if images is csv else lines[::-1]))  # names decide
        predict(images, tmp_path / "labels.csv", labels=truth)
        assert f"\naccuracy {6 / 7:.4f}, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "lines", "reason"),
    [
        (False, ["0"] * 6, r"no label for 1 of 7 images, the first is row 7; give one for each"),
        (False, ["0"] * 8, r"has 8 labels for 7 images: row 8 is none of them"),
        (
            False,
            ["0", "3"],
            r"line 2 has the label '3'; give 0 to 2, or a class: cat, a, dog, ship",
        ),
        (False, ["0", "x.png,1"], r"line 2 has 2 values, not LABEL"),
        (False, [""], r"line 1 has 0 values, not LABEL"),
        (True, ["0.png,0", "1"], r"line 2 has 1 values, not NAME,LABEL"),
        (True, ["0.png,0", "0.png,1"], r"line 2 names 0\.png again"),
        (True, ["0.png,0", "9.png,1"], r"no label for 6 of 7 images, the first is 1\.png"),
        (True, [f"{i}.png,0" for i in range(8)], r"8 labels for 7 images: 7\.png is none of them"),
    ],
)
def test_labels_that_do_not_fit(
    predict: Predict, csv: Path, pngs: Path, tmp_path: Path, folder: bool, lines: list[str],
    reason: str,
) -> None:  # fmt: skip
    """The error names the file, and neither output is touched."""
    truth, output, table = (tmp_path / name for name in ("truth.csv", "o.csv", "p.csv"))
    truth.write_text("\n".join(lines) + "\n")
    output.write_text("earlier")
    with pytest.raises(
        UserError, match=rf"--labels {truth}.* {reason}|--labels {truth}:? {reason}"
    ):
        predict(pngs if folder else csv, output, labels=truth, probabilities=table)
    assert output.read_text() == "earlier" and not table.exists()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_files_in_each_others_way(
    predict: Predict, checkpoint: Path, csv: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.csv"
    truth = tmp_path / "truth.csv"
    truth.write_text("0\n" * COUNT)
    for flags, reason in (
        ({"probabilities": output}, "is --output; give another file"),
        ({"probabilities": csv}, f"--probabilities {csv} would overwrite an input"),
        ({"probabilities": truth, "labels": truth}, "would overwrite an input"),
        ({"probabilities": tmp_path}, f"--probabilities {tmp_path} is a folder"),
        ({"labels": tmp_path / "none.csv"}, r"--labels .*none\.csv is missing; give"),
    ):
        with pytest.raises(UserError, match=reason):
            predict(csv, output, **flags)
    assert not output.exists()


def test_without_an_average(predict_script: ModuleType, checkpoint: Path, csv: Path) -> None:
    """Of a run without --ema, and of one before there was any."""
    content = torch.load(checkpoint, weights_only=True)
    file = csv.parent / "plain.pt"
    for values in (content | {"ema": None}, {k: v for k, v in content.items() if k != "ema"}):
        write_torch(file, values)
        config = predict_script.PredictConfig(file, csv, csv.parent / "o", "torch", ema=True)
        with pytest.raises(UserError, match=r"plain\.pt has no average; leave it out, or train"):
            predict_script.test(config)
