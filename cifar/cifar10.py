"""CIFAR-10's python version: download it, and read its pickles, allowing only NumPy arrays."""

import hashlib
import http.client
import io
import pickle
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from errors import UserError
from rich.progress import Progress

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
CACHE = Path("~/.cache/fastnorm")
TIMEOUT = 5.0  # seconds without an answer after which the machine counts as offline

Arrays = tuple[np.ndarray, np.ndarray]  # uint8 (N, 3, 32, 32), int64 (N,)


class Offline(Exception):
    """The download's host does not answer."""


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and NumPy arrays; any other global is refused.

    A pickle names the functions that it calls, so pickle.load would run whatever a file says.
    """

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # how protocol 2 stores bytes
            *(
                (f"numpy.{core}.{module}", name)  # NumPy 2 renamed core to _core
                for core in ("core", "_core")
                for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
            ),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """The global that the pickle asks for, if it is one of ALLOWED."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_batch(file: Path) -> Arrays:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of one file, of any number of rows N >= 1.

    Raises UserError if the file is missing or is anything else than such a batch.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; --data-dir needs CIFAR-10's python version, unpacked")
    content = file.read_bytes()
    try:
        batch = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{file} cannot be read as a CIFAR-10 batch: {error}") from None
    if not isinstance(batch, dict):
        raise UserError(f"{file} holds a {type(batch).__name__}, not a CIFAR-10 batch")
    fields = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in batch.items()}
    images, labels = fields.get("data"), fields.get("labels")
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 2):
        raise UserError(f"{file}: 'data' must be a uint8 array of two dimensions")
    if images.shape[1] != 3072 or len(images) == 0:
        raise UserError(f"{file}: 'data' must be (N, 3072) with N >= 1, got {images.shape}")
    if not (isinstance(labels, list) and len(labels) == len(images)):
        raise UserError(f"{file}: 'labels' must be a list of {len(images)}, one for each image")
    if not all(type(label) is int and 0 <= label < len(CLASSES) for label in labels):
        raise UserError(f"{file}: 'labels' must be integers 0 to {len(CLASSES) - 1}")
    return images.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def read_folder(data_dir: Path) -> tuple[Arrays, Arrays]:
    """Training and test images of `data_dir`/cifar-10-batches-py, or of `data_dir` itself."""
    data_dir = data_dir.expanduser()
    inner = data_dir / FOLDER
    folder = inner if inner.is_dir() else data_dir
    if not folder.is_dir():
        raise UserError(f"--data-dir {data_dir} is not a folder")
    test = read_batch(folder / TEST_FILE)
    images, labels = zip(*(read_batch(folder / name) for name in TRAIN_FILES), strict=True)
    return (np.concatenate(images), np.concatenate(labels)), test


def download() -> Path:
    """The folder holding cifar-10-batches-py, downloaded unless it is there already.

    Raises Offline if the host does not answer, UserError if what arrives is not CIFAR-10.
    """
    cache = CACHE.expanduser()
    if (cache / FOLDER).is_dir():
        return cache
    try:
        response = urllib.request.urlopen(URL, timeout=TIMEOUT)
    except (OSError, http.client.HTTPException) as error:
        raise Offline(str(getattr(error, "reason", error))) from None
    cache.mkdir(parents=True, exist_ok=True)
    # Work beside the goal: the last step is one rename, so no half-unpacked folder is ever seen.
    with tempfile.TemporaryDirectory(dir=cache) as work, response:
        archive = Path(work) / "cifar-10-python.tar.gz"
        fetch(response, archive)
        unpack(archive, Path(work) / FOLDER)
        (Path(work) / FOLDER).rename(cache / FOLDER)
    return cache


def unpack(archive: Path, folder: Path) -> None:
    """Write the archive's batch files into a new `folder`, by name: no member's path is followed.

    (extractall's filter="data" would do, but Python 3.11 has it only from 3.11.4 on.)
    """
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for name in (*TRAIN_FILES, TEST_FILE):
            member = tar.extractfile(f"{FOLDER}/{name}")
            assert member is not None, "the MD5 vouches for regular files"
            (folder / name).write_bytes(member.read())


def fetch(response: Any, archive: Path) -> None:
    """Write the open response to `archive`, with a progress bar, and check its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    with Progress(transient=True) as progress, archive.open("wb") as file:
        size = response.headers.get("Content-Length")
        task = progress.add_task("downloading CIFAR-10", total=int(size) if size else None)
        while True:
            try:
                chunk = response.read(1 << 20)
            except (OSError, http.client.HTTPException) as error:
                raise Offline(str(error)) from None
            if not chunk:
                break
            file.write(chunk)
            digest.update(chunk)
            progress.advance(task, len(chunk))
    if digest.hexdigest() != MD5:
        raise UserError(f"what {URL} sent has MD5 {digest.hexdigest()}, expected {MD5}; try again")
