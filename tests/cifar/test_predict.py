"""test.py: a CSV or a folder of images in, one label a line out."""

import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from train import train

from harness import image_files
from harness.config import TrainConfig
from harness.datasets import Split, load_dataset
from harness.errors import UserError
from harness.image_files import parse_row, read_batches, read_png

Predict = Callable[..., None]


@pytest.fixture(scope="module")
def checkpoint(tiny_cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with torch's own modules, well enough to tell the tiny CIFAR-10's classes apart."""
    output = tmp_path_factory.mktemp("run")
    flags = {"epochs": 4, "batch_size": 16, "depth_n": 1, "backend": "torch", "ema": 0.5}
    return train(TrainConfig(data_dir=tiny_cifar, output=output, **flags)) / "checkpoint.pt"


@pytest.fixture
def predict(predict_script: ModuleType) -> Predict:
    """test.py in this process, given its flags' values in their order."""
    return lambda *words, **flags: predict_script.test(
        predict_script.PredictConfig(*words, **flags)
    )


@pytest.fixture
def split(tiny_cifar: Path) -> Split:
    """The images that the checkpoint was trained on."""
    return load_dataset("auto", tiny_cifar, None, 0.2).train


@pytest.fixture
def csv(split: Split, tmp_path: Path) -> Path:
    file = tmp_path / "images.csv"
    np.savetxt(file, split.images.reshape(len(split), -1).numpy(), fmt="%d", delimiter=",")
    return file


@pytest.fixture
def pngs(split: Split, tmp_path: Path) -> Path:
    """The same images; their names sort as they do, and were not created in that order."""
    folder = tmp_path / "pngs"
    folder.mkdir()
    for i, image in reversed(list(enumerate(split.images.numpy()))):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"image, {i:02}.png")
    return folder


def test_round_trip(
    checkpoint: Path,
    csv: Path,
    split: Split,
    tmp_path: Path,
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """The classes are the training images' own, so a wrong order, scale or layout would show."""
    output = tmp_path / "labels.csv"
    flags = ("--checkpoint", checkpoint, "--images", csv, "--output", output)
    done = run_script("test.py", *flags)
    assert done.returncode == 0, done.stderr
    labels = torch.tensor([int(line) for line in output.read_text().splitlines()])
    assert b"\r" not in output.read_bytes()
    assert (labels == split.labels).double().mean() > 0.9
    assert set(labels.tolist()) == {0, 1, 2}


def test_every_backend_reads_the_checkpoint(
    predict: Predict, checkpoint: Path, csv: Path, tmp_path: Path
) -> None:
    texts = set()
    for backend in ("auto", "reference", "torch"):
        predict(checkpoint, csv, tmp_path / backend, backend)
        texts.add((tmp_path / backend).read_text())
    assert len(texts) == 1


def test_batches_do_not_change_the_labels(
    predict: Predict, checkpoint: Path, csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(checkpoint, csv, tmp_path / "one")
    monkeypatch.setattr(image_files, "EVAL_BATCH", 10)  # of 44 images
    assert [len(batch) for _, batch in read_batches(csv)] == [10, 10, 10, 10, 4]
    predict(checkpoint, csv, tmp_path / "five")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "five").read_bytes()


def test_a_folder_of_images_has_the_labels_of_their_csv(
    predict: Predict, checkpoint: Path, csv: Path, pngs: Path, tmp_path: Path
) -> None:
    (pngs / "notes.txt").write_text("no image")
    (pngs / "image, 00.png").rename(pngs / "image, 00.PNG")
    predict(checkpoint, csv, tmp_path / "labels.csv")
    predict(checkpoint, pngs, tmp_path / "named.csv")
    labels = (tmp_path / "labels.csv").read_text().splitlines()
    expected = [f'"image, {i:02}.png",{label}' for i, label in enumerate(labels)]
    expected[0] = expected[0].replace("png", "PNG")
    assert (tmp_path / "named.csv").read_text().splitlines() == expected


def test_the_names_of_files_may_be_no_utf8(
    predict: Predict, checkpoint: Path, pngs: Path, tmp_path: Path
) -> None:
    for file in sorted(pngs.iterdir())[1:]:
        file.unlink()
    next(pngs.iterdir()).rename(pngs / "\udcff.png")
    predict(checkpoint, pngs, tmp_path / "named.csv")
    assert (tmp_path / "named.csv").read_bytes().startswith(b"\xff.png,")


def test_the_folder_of_a_run_stands_for_its_checkpoint(
    predict: Predict, checkpoint: Path, csv: Path, tmp_path: Path
) -> None:
    texts = set()
    for path in (checkpoint, checkpoint.parent):
        predict(path, csv, tmp_path / "labels.csv")
        texts.add((tmp_path / "labels.csv").read_text())
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["unfinished/checkpoint.pt"], "run/unfinished/checkpoint.pt for the weights"),
        (["checkpoint.pt", "config.json"], "run/checkpoint.pt for the weights"),
        (["unfinished/config.json"], "no finished run"),
        ([], "no finished run"),
    ],
)
def test_the_folder_of_no_finished_run(
    predict: Predict, csv: Path, tmp_path: Path, files: list[str], reason: str
) -> None:
    run = tmp_path / "run"
    (run / "unfinished").mkdir(parents=True)
    for name in files:
        (run / name).touch()
    with pytest.raises(UserError, match=reason):
        predict(run, csv, tmp_path / "labels.csv")


def test_reads_the_numbers_that_savetxt_writes() -> None:
    values = np.arange(3072) % 256
    parsed = parse_row(",".join(f"{value:.18e}" for value in values) + "\n")
    assert parsed.shape == (3, 32, 32) and (parsed.ravel() == values).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_reads_a_png_of_any_mode(mode: str, tmp_path: Path) -> None:
    """Against values taken before the file was written, and without a warning of Pillow's."""
    file, generator = tmp_path / "image.png", np.random.default_rng(0)
    if mode == "I;16":
        grey = generator.integers(0, 65536, (32, 32), np.uint16)
        Image.fromarray(grey).save(file)
        expected = np.stack([grey // 256] * 3)
    else:
        colours = Image.fromarray(generator.integers(0, 256, (32, 32, 4), np.uint8))
        image = colours.convert("RGB").convert(mode) if mode in "1P" else colours.convert(mode)
        image.save(file, **({"transparency": bytes(range(256))} if mode == "P" else {}))
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = read_png(file)
    assert (values.dtype, values.shape) == (np.uint8, (3, 32, 32))
    assert (values == expected).all()


def replaced(row: str, column: int, value: str) -> str:
    fields = row.split(",")
    fields[column] = value
    return ",".join(fields)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda row: row.rsplit(",", 1)[0], "row 3: 3071 values"),
        (lambda row: row + ",1", "row 3: 3073 values"),
        (lambda row: "", "row 3: 1 values"),
        (lambda row: replaced(row, 5, "red"), "row 3: .*'red'"),
        (lambda row: replaced(row, 5, "256"), "row 3: value 6 is 256"),
        (lambda row: replaced(row, 5, "-1"), "row 3: value 6 is -1"),
        (lambda row: replaced(row, 5, "nan"), "row 3: value 6 is nan"),
    ],
)
def test_a_malformed_row_is_named_and_nothing_written(
    predict: Predict,
    checkpoint: Path,
    csv: Path,
    tmp_path: Path,
    damage: Callable[[str], str],
    reason: str,
) -> None:
    rows = csv.read_text().splitlines()
    rows[2] = damage(rows[2])
    csv.write_text("\n".join(rows))
    output = tmp_path / "labels.csv"
    output.write_text("earlier")
    with pytest.raises(UserError, match=reason):
        predict(checkpoint, csv, output)
    assert output.read_text() == "earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"images.csv", "labels.csv"}


def test_all_malformed_rows_are_named(
    checkpoint: Path,
    csv: Path,
    tmp_path: Path,
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    rows = csv.read_text().splitlines()
    rows[1], rows[30], rows[43] = "1,2", replaced(rows[30], 0, "red"), replaced(rows[43], 1, "inf")
    csv.write_text("\n".join(rows))
    output = tmp_path / "labels.csv"
    done = run_script("test.py", "--checkpoint", checkpoint, "--images", csv, "--output", output)
    assert done.returncode == 1 and not output.exists()
    assert done.stderr.splitlines() == [
        f"error: {csv}: 3 of its images cannot be read",
        "  row 2: 2 values, an image has 3072",
        "  row 31: could not convert string to float: 'red' (there must be no header)",
        "  row 44: value 2 is inf, not 0 to 255",
    ]


def test_bad_images_of_later_batches_are_named_too(
    csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches before the first one are yielded, none after it."""
    monkeypatch.setattr(image_files, "EVAL_BATCH", 10)
    rows = csv.read_text().splitlines()
    rows[12] = rows[35] = "bad"
    csv.write_text("\n".join(rows))
    batches = read_batches(csv)
    assert next(batches)[0] == tuple(f"row {i}" for i in range(1, 11))
    with pytest.raises(UserError, match=r"2 of its images.*\n  row 13: .*\n  row 36: .*"):
        next(batches)


def test_all_broken_pngs_are_named_and_nothing_written(
    predict: Predict, checkpoint: Path, pngs: Path, tmp_path: Path
) -> None:
    whole = (pngs / "image, 00.png").read_bytes()
    (pngs / "cut.png").write_bytes(whole[:-100])
    (pngs / "empty.png").touch()
    (pngs / "folder.png").mkdir()
    Image.new("RGB", (32, 32)).save(pngs / "jpeg.png", "JPEG")
    Image.new("RGB", (64, 48)).save(pngs / "large.png")
    (pngs / "text.png").write_text("no image")
    with pytest.raises(UserError) as raised:
        predict(checkpoint, pngs, tmp_path / "labels.csv")
    first, *lines = str(raised.value).splitlines()
    assert first == f"{pngs}: 6 of its images cannot be read"
    reasons = {"cut": "truncated", "empty": "not a PNG", "folder": "directory"} | {
        "jpeg": "not a PNG",
        "large": "64x48 pixels, an image has 32x32",
        "text": "not a PNG",
    }
    for line, (name, reason) in zip(lines, reasons.items(), strict=True):
        assert line.startswith(f"  {name}.png: ") and reason in line
    assert not (tmp_path / "labels.csv").exists()


def test_refuses_what_is_no_checkpoint(
    predict: Predict, checkpoint: Path, csv: Path, tmp_path: Path
) -> None:
    output, other = tmp_path / "labels.csv", tmp_path / "other.pt"
    for content in (b"", b"abc", checkpoint.read_bytes()[:1000]):
        other.write_bytes(content)
        with pytest.raises(UserError, match="not a checkpoint"):
            predict(other, csv, output)
    torch.save({"weights": torch.zeros(1)}, other)
    with pytest.raises(UserError, match=r"not a checkpoint of train\.py"):
        predict(other, csv, output)
    values = torch.load(checkpoint, weights_only=True)
    torch.save({**values, "architecture": {**values["architecture"], "depth_n": 2}}, other)
    with pytest.raises(UserError, match="do not fit"):
        predict(other, csv, output)


def test_does_not_overwrite_its_input(
    predict: Predict, checkpoint: Path, csv: Path, pngs: Path
) -> None:
    inputs = ((checkpoint, csv, csv), (checkpoint.parent, csv, checkpoint))
    for flags in (*inputs, (checkpoint, pngs, pngs / "image, 03.png")):
        with pytest.raises(UserError, match="overwrite"):
            predict(*flags)
    with pytest.raises(UserError, match="is a folder"):
        predict(checkpoint, csv, pngs)


def test_no_images(predict: Predict, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "empty").mkdir()
    for name in ("empty.csv", "empty"):
        with pytest.raises(UserError, match=f"{name} has no images"):
            predict(checkpoint, tmp_path / name, tmp_path / "labels.csv")


def test_files_that_are_left_out_are_named(
    predict: Predict,
    checkpoint: Path,
    pngs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "labels.csv"
    predict(checkpoint, pngs, output)
    assert capsys.readouterr().err == ""
    Image.new("RGB", (32, 32)).save(pngs / "photo.jpg")
    (pngs / "more").mkdir()
    predict(checkpoint, pngs, output)
    expected = "warning: left out, for they are no .png files: more/, photo.jpg\n"
    assert capsys.readouterr().err == expected
    assert "photo" not in output.read_text()


def test_a_folder_of_other_images(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.jpg")
    with pytest.raises(UserError, match=r"has no images but photo\.jpg; give a CSV"):
        list(read_batches(tmp_path))


def test_what_is_missing_is_named_before_the_work(
    predict: Predict, checkpoint: Path, csv: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels.csv"
    with pytest.raises(UserError, match=r"--images .*absent\.csv is missing; give"):
        predict(checkpoint, tmp_path / "absent.csv", output)
    with pytest.raises(UserError, match=r"cannot read .*absent\.pt: No such file"):
        predict(tmp_path / "absent.pt", csv, output)
    with pytest.raises(UserError, match=r"cannot write .*labels\.csv: Not a directory"):
        predict(checkpoint, csv, csv / "labels.csv")
    assert not output.exists()
