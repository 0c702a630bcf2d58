"""Files of settings, and writing so that a crash or a full disk never spoils what was there before."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any


def write_aside(path: Path, content: bytes) -> None:
    """Write a file whole: first beside its place, then renamed into it.

    Raises:
        OSError: with the file's name, such as no space left; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_json(path: Path) -> dict[str, Any]:
    """Settings by name.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it holds no settings by name")
    return values


def user_cache() -> Path:
    """Where programs of a user keep what can be made again: `XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_replaceable(
    folder: Path, what: str, ours: Collection[str] | None, *, overwrite: bool
) -> None:
    """Make sure that a folder may be written.

    Args:
        what: is to be written, such as `an export`.
        ours: names that such a folder may hold; None where what is there is none.

    Raises:
        ValueError: it holds something else, or may not be replaced.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give another folder with --output")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if ours is None:
        kind = what.split(" ", 1)[1]
        raise ValueError(f"{folder} is not empty and holds no {kind}: give another folder")
    others = {path.name for path in folder.iterdir()} - set(ours)
    if others:
        raise ValueError(
            f"{folder} holds {min(others)} besides {what}: move it away, or give another folder"
        )
    if not overwrite:
        raise ValueError(f"{folder} already holds {what}: give another --output, or --overwrite")


@contextlib.contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A folder beside the one to be written, gone when the block ends."""
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.absolute().parent, prefix=".unfinished-", ignore_cleanup_errors=True
    ) as aside:
        whole = Path(aside) / "whole"
        whole.mkdir()
        yield whole


def publish(aside: Path, folder: Path) -> None:
    """Put a whole folder in its place; what was there goes last, and comes back if that fails."""
    if folder.is_dir() and not any(folder.iterdir()):
        # It may be where someone stands, or a disk of its own.
        try:
            for path in aside.iterdir():
                shutil.move(path, folder / path.name)
        except BaseException:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise
        return
    before = aside.parent / "before"
    if folder.exists():
        folder.rename(before)
    try:
        aside.rename(folder)
    except BaseException:
        if before.exists() and not folder.exists():
            before.rename(folder)
        raise
