"""CIFAR-10's and CIFAR-100's python versions: find them in a folder, read their pickles."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import UserError

Arrays = tuple[np.ndarray, np.ndarray]  # uint8 (N, 3, 32, 32), int64 (N,)


@dataclass(frozen=True)
class Meta:
    """The file of an archive, and the field in it, that holds the names of the classes."""

    file: str
    field: str


@dataclass(frozen=True)
class Archive:
    """The contents of an archive of https://www.cs.toronto.edu/~kriz/cifar.html."""

    key: str  # its name for --dataset
    name: str
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    label_field: str
    class_count: int
    class_names: tuple[str, ...] | Meta  # by label
    url: str
    md5: str

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files that are read."""
        meta = (self.class_names.file,) if isinstance(self.class_names, Meta) else ()
        return (*self.train_files, self.test_file, *meta)

    def is_in(self, folder: Path) -> bool:
        """Whether all files lie in `folder` itself."""
        return all((folder / name).is_file() for name in self.files)


CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR10 = Archive(
    key="cifar10",
    name="CIFAR-10",
    folder="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test_file="test_batch",
    label_field="labels",
    class_count=10,
    class_names=CLASSES,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
)
CIFAR100 = Archive(
    key="cifar100",
    name="CIFAR-100",
    folder="cifar-100-python",
    train_files=("train",),
    test_file="test",
    label_field="fine_labels",
    class_count=100,
    class_names=Meta("meta", "fine_label_names"),
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
)
ARCHIVES = {archive.key: archive for archive in (CIFAR10, CIFAR100)}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and NumPy arrays; any other global is refused.

    A pickle names the functions that it calls, so pickle.load would run anything in a file.
    """

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # protocol 2 stores bytes this way
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


def read_fields(archive: Archive, file: Path) -> dict[Any, Any]:
    """The fields of one file. Raises UserError if it is missing or is no pickle of a dict."""
    if not file.is_file():
        name = archive.name
        raise UserError(f"{file} is missing; --data-dir needs {name}'s python version, unpacked")
    content = file.read_bytes()
    try:
        fields = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{file} cannot be read as a file of {archive.name}: {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{file} holds a {type(fields).__name__}, not the fields of {archive.name}")
    return {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in fields.items()}


def read_batch(archive: Archive, file: Path) -> Arrays:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of one file, of any number of rows N >= 1.

    Raises UserError if the file is missing or is not such a batch.
    """
    fields = read_fields(archive, file)
    images, labels = fields.get("data"), fields.get(archive.label_field)
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 2):
        raise UserError(f"{file}: 'data' must be a uint8 array of two dimensions")
    if images.shape[1] != 3072 or len(images) == 0:
        raise UserError(f"{file}: 'data' must be (N, 3072) with N >= 1, got {images.shape}")
    where = f"{file}: '{archive.label_field}'"
    if not (isinstance(labels, list) and len(labels) == len(images)):
        raise UserError(f"{where} must be a list of {len(images)}, one for each image")
    if not all(type(label) is int and 0 <= label < archive.class_count for label in labels):
        raise UserError(f"{where} must be integers 0 to {archive.class_count - 1}")
    return images.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def read_class_names(archive: Archive, folder: Path) -> tuple[str, ...]:
    """One name for each label. Raises UserError if the archive's file of names is not valid."""
    if not isinstance(archive.class_names, Meta):
        return archive.class_names
    file, field = folder / archive.class_names.file, archive.class_names.field
    names = read_fields(archive, file).get(field)
    if not (isinstance(names, list) and len(names) == archive.class_count):
        raise UserError(f"{file}: '{field}' must be a list of {archive.class_count}")
    if not all(isinstance(name, bytes | str) for name in names):
        raise UserError(f"{file}: '{field}' must be strings")
    return tuple(n.decode("latin1") if isinstance(n, bytes) else n for n in names)


def find_folder(archive: Archive, data_dir: Path) -> Path:
    """The archive's own folder in `data_dir`, or `data_dir` itself.

    Raises UserError if `data_dir` is no folder, or the folder of another archive.
    """
    data_dir = data_dir.expanduser()
    if not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir} is not a folder")
    inner = data_dir / archive.folder
    if inner.is_dir():
        return inner
    for other in ARCHIVES.values():
        if other != archive and ((data_dir / other.folder).is_dir() or other.is_in(data_dir)):
            raise UserError(
                f"--data-dir {data_dir} holds {other.name}, not {archive.name}; "
                f"add --dataset {other.key}, or give a folder with {archive.folder} in it"
            )
    return data_dir


def read_folder(archive: Archive, data_dir: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """Training images, test images and class names of `data_dir`, see find_folder."""
    folder = find_folder(archive, data_dir)
    names = read_class_names(archive, folder)
    test = read_batch(archive, folder / archive.test_file)
    batches = (read_batch(archive, folder / name) for name in archive.train_files)
    images, labels = zip(*batches, strict=True)
    return (np.concatenate(images), np.concatenate(labels)), test, names
