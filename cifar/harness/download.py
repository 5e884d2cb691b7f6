"""Fetches CIFAR's archives once, into a cache, and checks their MD5."""

import hashlib
import http.client
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from rich.progress import Progress

from harness.archives import Archive
from harness.errors import UserError, writing

CACHE = Path("~/.cache/fastnorm")
TIMEOUT = 5.0  # seconds without an answer: then the machine counts as offline


class Offline(Exception):
    """The download's host does not answer."""


def download(archive: Archive) -> Path:
    """The folder that contains the archive's own folder; downloaded if it is missing.

    Raises Offline if the host does not answer, UserError if another file arrives.
    """
    cache = CACHE.expanduser()
    if (cache / archive.folder).is_dir():
        return cache
    try:
        response = urllib.request.urlopen(archive.url, timeout=TIMEOUT)
    except (OSError, http.client.HTTPException) as error:
        raise Offline(str(getattr(error, "reason", error))) from None
    with writing(cache), response:
        cache.mkdir(parents=True, exist_ok=True)
        # Work in the target's folder: the last step is one rename, so nothing is half-unpacked.
        with tempfile.TemporaryDirectory(dir=cache) as work:
            file = Path(work) / "archive.tar.gz"
            fetch(archive, response, file)
            unpack(archive, file, Path(work) / archive.folder)
            (Path(work) / archive.folder).rename(cache / archive.folder)
    return cache


def unpack(archive: Archive, file: Path, folder: Path) -> None:
    """Write the files of the tar `file` into a new `folder`, by name: no member's path is followed.

    (extractall's filter="data" would do, but Python 3.11 has it only from 3.11.4 on.)
    """
    folder.mkdir()
    with tarfile.open(file) as tar:
        for name in archive.files:
            member = tar.extractfile(f"{archive.folder}/{name}")
            assert member is not None, "the MD5 vouches for regular files"
            (folder / name).write_bytes(member.read())


def fetch(archive: Archive, response: Any, file: Path) -> None:
    """Write the open response to `file`, with a progress bar, and check its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    with Progress(transient=True) as progress, file.open("wb") as output:
        size = response.headers.get("Content-Length")
        task = progress.add_task(f"downloading {archive.name}", total=int(size) if size else None)
        while True:
            try:
                chunk = response.read(1 << 20)
            except (OSError, http.client.HTTPException) as error:
                raise Offline(str(error)) from None
            if not chunk:
                break
            output.write(chunk)
            digest.update(chunk)
            progress.advance(task, len(chunk))
    md5 = digest.hexdigest()
    if md5 != archive.md5:
        raise UserError(f"{archive.url} sent data of MD5 {md5}, expected {archive.md5}; try again")
