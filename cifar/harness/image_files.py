"""The images of a CSV or of a folder of PNG files, in batches; names every unreadable one."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from harness.errors import UserError
from harness.evaluation import EVAL_BATCH

PIXELS = 3 * 32 * 32


def parse_row(row: str) -> np.ndarray:
    """float32 (3, 32, 32) from one row of a CSV. Raises UserError with the reason if it is bad."""
    fields = row.split(",")
    if len(fields) != PIXELS:
        raise UserError(f"{len(fields)} values, an image has {PIXELS}")
    try:
        values = np.fromiter(map(float, fields), np.float32, PIXELS)
    except ValueError as error:
        raise UserError(f"{error} (there must be no header)") from None
    outside = ~((values >= 0) & (values <= 255))  # NaN compares false, so it is outside
    if outside.any():
        column = int(outside.argmax())
        raise UserError(f"value {column + 1} is {fields[column].strip()}, not 0 to 255")
    return values.reshape(3, 32, 32)


def rgb_values(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3) of an image of any mode; transparency is ignored."""
    if image.mode.startswith("I"):  # 16 bits of grey, which convert would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    # By way of RGBA: Pillow warns if palettes with transparency become RGB directly.
    return np.asarray(image.convert("RGBA").convert("RGB"))


def read_png(file: Path) -> np.ndarray:
    """uint8 (3, 32, 32) from a PNG file. Raises UserError with the reason if it is bad."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            width, height = image.size
            if (width, height) == (32, 32):
                return rgb_values(image).transpose(2, 0, 1)
    except UnidentifiedImageError:
        raise UserError("not a PNG file, or damaged at its beginning") from None
    except Exception as error:  # a damaged file can raise anything
        raise UserError(str(error)) from None
    raise UserError(f"{width}x{height} pixels, an image has 32x32")


def png_files(folder: Path) -> list[Path]:
    """The PNG files in the folder, sorted by name, without those in subfolders."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".png")


def other_files(folder: Path) -> list[str]:
    """The names of all other entries, sorted; the name of a folder ends with a slash."""
    others = {*folder.iterdir()} - {*png_files(folder)}
    return sorted(f"{path.name}{'/' * path.is_dir()}" for path in others)


def named_images(path: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yields each image's name and its reader, for the folder or the CSV at `path`."""
    if path.is_dir():
        yield from ((file.name, partial(read_png, file)) for file in png_files(path))
        return
    with path.open(encoding="utf-8-sig", errors="replace") as rows:
        yield from ((f"row {i}", partial(parse_row, row)) for i, row in enumerate(rows, start=1))


def readable_images(path: Path, bad: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and images until one cannot be read; that and later bad ones go to `bad`."""
    for name, read in named_images(path):
        try:
            image = read()
        except UserError as error:
            bad.append(f"  {name}: {error}")
            continue
        if not bad:
            yield name, image


def read_batches(path: Path) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """Yields B <= EVAL_BATCH names and images (B, 3, 32, 32) of values 0 to 255, uint8 or float32.

    So a large file needs little memory. After the last batch it raises UserError with the names of
    all images that cannot be read; also if there is no image at all.
    """
    bad: list[str] = []
    images, count = readable_images(path, bad), 0
    while chunk := list(itertools.islice(images, EVAL_BATCH)):
        names, values = zip(*chunk, strict=True)
        count += len(chunk)
        if not bad:
            yield names, torch.from_numpy(np.stack(values))
    if bad:
        raise UserError("\n".join([f"{path}: {len(bad)} of its images cannot be read", *bad]))
    if count == 0:
        found = other_files(path)[:3] if path.is_dir() else []
        others = f" but {', '.join(found)}" if found else ""
        raise UserError(
            f"{path} has no images{others}; give a CSV, an image a row, or a folder of PNGs"
        )
