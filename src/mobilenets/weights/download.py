"""Downloads of weights: kept where other programs keep theirs, taken up where they broke off, checked.

Files of the Hugging Face Hub lie in its own cache (`HF_HOME`, `HF_HUB_CACHE`), all others in
`hub/checkpoints` of PyTorch's (`TORCH_HOME`, else `XDG_CACHE_HOME/torch`, else `~/.cache/torch`).
`HF_HUB_OFFLINE=1` forbids any download; `MOBILENETS_MIRROR=https://mirror.example/base` takes
`https://HOST/PATH` from `https://mirror.example/base/HOST/PATH`, and `HF_ENDPOINT` is the Hub's own mirror.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit
from urllib.response import addinfourl

from filelock import FileLock

from mobilenets.data.files import sha256, user_cache
from mobilenets.data.progress import progress
from mobilenets.weights.registry import HUB, PublishedFile, PublishedWeights

MIRROR, OFFLINE = "MOBILENETS_MIRROR", "HF_HUB_OFFLINE"

_IN_TORCH_HOME = Path("hub", "checkpoints", "mobilenets")
_CHUNK = 1 << 18
_TIMEOUT = 30.0
_KILOBYTE = 1000


class NotThereError(ValueError):
    """The server answers, and has no such file."""


def fetch(entry: PublishedWeights) -> list[Path]:
    """All files of an entry, from the cache or from where they are published.

    Raises:
        ValueError: one sentence about what could not be reached or what came was not.
        OSError: the disk is full.
    """
    for file in entry.beside:
        fetch_file(file)
    return [fetch_file(file) for file in entry.files]


def fetch_file(file: PublishedFile) -> Path:
    """One file, from the cache or from where it is published.

    Raises:
        ValueError: one sentence about what could not be reached or what came was not.
        OSError: the disk is full.
    """
    if file.address.startswith(HUB):
        return _from_hub(file)
    if not file.address.startswith(("http://", "https://")):
        raise ValueError(f"{file.address} is no address of a web server: it begins with https://")
    # Files of several projects have the same name, and an archive holds several files.
    mark = hashlib.sha256(f"{file.address} {file.member}".encode()).hexdigest()[:8]
    path = cache_folder() / f"{mark}-{file.member or name_of(file.address)}"
    if _is_there(file, path):
        return path
    _forbid_offline(file.address, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may want it at once, as those that torchrun starts do.
    with FileLock(path.with_name(path.name + ".lock")):
        if not _is_there(file, path):
            if file.member:
                archive = path.with_name(f"{mark}-{name_of(file.address)}")
                _download(file, archive)
                _take(archive, file.member, path)
            else:
                _download(file, path)
    return path


def _is_there(file: PublishedFile, path: Path) -> bool:
    if not path.is_file():
        return False
    # The sum of an archive says nothing about a file in it.
    return not file.sha256 or bool(file.member) or sha256(path) == file.sha256


def cache_folder() -> Path:
    """A folder of ours where PyTorch keeps checkpoints, by its own rules."""
    home = os.environ.get("TORCH_HOME")
    if home:
        return Path(home).expanduser() / _IN_TORCH_HOME
    return user_cache() / "torch" / _IN_TORCH_HOME


def name_of(address: str) -> str:
    """The file's name at the end of an address.

    Raises:
        ValueError: the address names no file.

    >>> name_of("https://example.org/weights/a%20b.h5?download=1")
    'a b.h5'
    """
    name = PurePosixPath(unquote(urlsplit(address).path)).name
    if not name or name in (".", ".."):
        raise ValueError(f"{address} names no file")
    return name


def mirrored(address: str) -> str:
    """The address at the mirror that `MOBILENETS_MIRROR` names, where it does."""
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return address
    parts = urlsplit(address)
    query = f"?{parts.query}" if parts.query else ""
    return f"{mirror.rstrip('/')}/{parts.netloc}{parts.path}{query}"


def _forbid_offline(address: str, path: Path) -> None:
    if os.environ.get(OFFLINE, "").upper() in ("1", "TRUE", "YES", "ON"):
        raise ValueError(
            f"{path} is not there yet, and {OFFLINE} forbids to download {address}: "
            "put the file there, or unset it"
        )


def _download(file: PublishedFile, path: Path) -> None:
    """Fetch to a file beside, going on with what is there, and rename it when it is whole."""
    part, tag = path.with_name(path.name + ".part"), path.with_name(path.name + ".etag")
    address = mirrored(file.address)
    request = urllib.request.Request(address, headers={"User-Agent": "mobilenets"})  # noqa: S310
    version = tag.read_text() if tag.is_file() else ""
    done = part.stat().st_size if version and part.is_file() else 0
    if done:
        # Of the same version only: of another one the server sends the whole.
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", version)
    with _network(address, part):
        with _answer(request) as answer:
            goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {done}-")
            done = done if goes_on else 0
            if not goes_on:
                part.unlink(missing_ok=True)
                tag.write_text(answer.headers.get("ETag") or "")
            left = answer.headers.get("Content-Length")
            total = done + int(left) if left is not None else file.size or 0
            with (
                part.open("ab") as target,
                progress(f"downloading {path.name}", max(1, total // _KILOBYTE), "kB") as advance,
            ):
                advance(done // _KILOBYTE)
                while chunk := answer.read(_CHUNK):
                    target.write(chunk)
                    advance(len(chunk) // _KILOBYTE)
        size = part.stat().st_size
        if left is not None and size < total:
            raise ValueError(
                f"{address} broke off after {size:,} of {total:,} bytes; the same command goes on"
            )
    tag.unlink()
    found = sha256(part)
    if file.sha256 and found != file.sha256:
        part.unlink()
        raise ValueError(
            f"{address} is not what was published: its SHA-256 is {found}, and {file.sha256} "
            "was expected; nothing of it was kept"
        )
    part.replace(path)


@contextmanager
def _answer(request: urllib.request.Request) -> Iterator[addinfourl]:
    """The answer to a request; from the beginning where the server can't go on from there."""
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        request.remove_header("Range")
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
    with answer:
        yield answer


@contextmanager
def _network(address: str, path: Path) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        kind = NotThereError if error.code == 404 else ValueError
        raise kind(
            f"{address} answers {error.code} ({error.reason}): if it has moved, name its new "
            f"address, or give a mirror in {MIRROR}"
        ) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"{address} can't be reached ({reason}): without a network, bring the file and use "
            f"mobilenets weights import FILE, or give a mirror in {MIRROR}"
        ) from None
    except OSError as error:
        # A full disk names no file by itself.
        if error.filename is None:
            error.filename = str(path)
        raise


def _take(archive: Path, member: str, path: Path) -> None:
    """Copy one file out of an archive, whatever folder it says it is in; the archive goes."""
    aside = path.with_name(path.name + ".part")
    try:
        with tarfile.open(archive) as tar:
            for info in tar:
                if info.isfile() and PurePosixPath(info.name).name == member:
                    source = tar.extractfile(info)
                    assert source is not None
                    with source, aside.open("wb") as target:
                        shutil.copyfileobj(source, target)
                    aside.replace(path)
                    return
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{archive.name} is not a whole archive ({reason}): try again") from None
    finally:
        archive.unlink()
        aside.unlink(missing_ok=True)
    raise ValueError(f"{archive.name} holds no {member}")


def _from_hub(file: PublishedFile) -> Path:
    from huggingface_hub import hf_hub_download, logging
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    parts = file.address.removeprefix(HUB).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise ValueError(f"{file.address} names no file of the Hub: write {HUB}OWNER/NAME/FILE")
    repository, path = "/".join(parts[:2]), parts[2]
    # It tells of every attempt, where one sentence follows.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        local = Path(hf_hub_download(repository, path, endpoint=os.environ.get("HF_ENDPOINT")))
    except RepositoryNotFoundError:
        raise NotThereError(
            f"{file.address}: the Hub has no {repository}, or it is private (HF_TOKEN opens it)"
        ) from None
    except RemoteEntryNotFoundError:
        raise NotThereError(f"{file.address}: the Hub has no such file") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ValueError(
            f"{file.address} is not in the cache, and the Hub can't be reached or {OFFLINE} forbids "
            "it: bring the file and use mobilenets weights import FILE, or give a mirror in "
            "HF_ENDPOINT"
        ) from None
    except (HfHubHTTPError, HFValidationError, HTTPError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{file.address}: the Hub refuses it ({reason})") from None
    # The Hub names a large file by its SHA-256, and so does its cache.
    expected = file.sha256 or local.resolve().name
    if len(expected) == 64 and sha256(local) != expected:
        local.resolve().unlink()
        raise ValueError(
            f"{file.address} is not what the Hub says it is: its SHA-256 is not {expected}; "
            "nothing of it was kept"
        )
    return local
