"""Moving what is wrong out of an image folder, so that it can always be moved back.

Every file is in its old place, in its new one, or for a moment in both: first a second name is
made, or a whole copy on another file system, and only then the first one goes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenets.data.doctor import Report, printable
from mobilenets.data.files import write_aside
from mobilenets.data.sources import is_image_folder

MANIFEST = "moved.json"
# Another file system, or one that has no second names for a file.
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Move:
    """One file's way out: from where in the data, to where in the quarantine, and why."""

    source: Path
    target: Path
    why: tuple[str, ...]


@dataclass(frozen=True)
class Fixed:
    """What was moved, and what was left in its place, with the reason, one sentence each."""

    quarantine: Path
    moved: tuple[Move, ...]
    left: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "quarantine": str(self.quarantine),
            "moved": [
                {
                    "from": printable(str(move.source)),
                    "to": printable(str(move.target)),
                    "why": list(move.why),
                }
                for move in self.moved
            ],
            "left": list(self.left),
        }


def find_quarantine(where: str, wanted: Path | None = None) -> Path:
    """The folder that files of a data set may be moved to: `DATA-doctor` beside it unless named.

    Raises:
        ValueError: the data is no folder of image files, or the quarantine lies in it, or holds
            something else.

    >>> find_quarantine("digits")
    Traceback (most recent call last):
    ...
    ValueError: digits is not a folder of image files: --fix moves files, and there are none to move
    """
    if not is_image_folder(where):
        raise ValueError(
            f"{where} is not a folder of image files: --fix moves files, and there are none to move"
        )
    data = Path(os.path.abspath(where))  # noqa: PTH100  (resolve would follow the folder's own link)
    folder = data.with_name(f"{data.name}-doctor") if wanted is None else wanted
    folder = Path(os.path.abspath(folder))  # noqa: PTH100
    inside, outside = folder.resolve(), data.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise ValueError(f"{folder} and {where} lie in each other: give another --quarantine")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give another --quarantine")
    if folder.is_dir() and any(folder.iterdir()) and _read_manifest(folder)["data"] != str(data):
        raise ValueError(f"{folder} holds files of other data: give another --quarantine")
    return folder


def move_aside(report: Report, quarantine: Path) -> Fixed:
    """Move the files that the report's errors name to a quarantine, keeping their relative paths.

    Nothing is deleted or overwritten; `moved.json` in the quarantine says what came from where,
    and is written before the first file moves.

    Args:
        quarantine: as `find_quarantine` gives it.
    """
    data = Path(os.path.abspath(report.where))  # noqa: PTH100
    reasons: dict[Path, list[str]] = {}
    counterparts: dict[Path, set[Path]] = {}
    folders: list[Path] = []
    left: list[str] = []
    for finding in report.errors:
        if finding.path is None:
            left.append(f"{finding.name}: {finding.detail}")
            continue
        other = report.item_by_name.get(finding.other)
        path = data / finding.path.relative_to(report.where)
        if path.is_dir() and not path.is_symlink():
            folders.append(path)
        for file in _files(path):
            reasons.setdefault(file, []).append(f"{finding.kind}: {finding.detail}")
            if other is not None and other.path is not None:
                counterparts.setdefault(file, set()).add(other.path)
    moves: list[Move] = []
    taken: set[Path] = set()
    for file, why in reasons.items():
        relative = file.relative_to(data)
        if not file.parent.resolve().is_relative_to(data.resolve()):
            left.append(f"{printable(str(relative))}: it is reached through a link out of the data")
        elif any(_leads_to(other, file) for other in counterparts.get(file, ())):
            left.append(f"{printable(str(relative))}: its copy is only a link to it")
        else:
            target = _free(quarantine / relative, taken)
            taken.add(target)
            moves.append(Move(file, target, tuple(why)))
    if not moves:
        return Fixed(quarantine, (), tuple(left))
    before = _read_manifest(quarantine)["moved"] if quarantine.is_dir() else []
    _write_manifest(quarantine, data, before, moves)
    moved: list[Move] = []
    for move in moves:
        try:
            _move(move.source, move.target)
        except OSError as error:
            relative = move.source.relative_to(data)
            left.append(f"{printable(str(relative))}: {error.strerror or error}")
        else:
            moved.append(move)
    _write_manifest(quarantine, data, before, moved)
    for folder in folders:
        _remove_empty(folder)
    return Fixed(quarantine, tuple(moved), tuple(left))


def _files(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for inside in sorted(path.rglob("*")):
        if inside.is_symlink() or not inside.is_dir():
            yield inside


def _leads_to(other: Path, file: Path) -> bool:
    """Whether `other` is `file` by way of a link, so that moving the file would break it."""
    return other.is_file() and other.resolve() == file.resolve() and not file.is_symlink()


def _free(target: Path, taken: set[Path]) -> Path:
    candidate, number = target, 1
    while candidate in taken or os.path.lexists(candidate):
        number += 1
        candidate = target.with_name(f"{target.stem}-{number}{target.suffix}")
    return candidate


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _copy(source, target)
    except NotImplementedError:
        _copy(source, target)
    try:
        source.unlink()
    except OSError:
        # The source stays: a second copy of it would only confuse.
        target.unlink()
        raise


def _copy(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    try:
        with source.open("rb") as old, target.open("xb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())
        shutil.copystat(source, target)
    except OSError:
        target.unlink(missing_ok=True)
        raise


def _remove_empty(folder: Path) -> None:
    """Remove folders that moving has emptied; one with something in it stays."""
    inside = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    for path in [*sorted(inside, reverse=True), folder]:
        try:
            path.rmdir()
        except OSError:
            return


def _read_manifest(quarantine: Path) -> dict[str, Any]:
    path = quarantine / MANIFEST
    if not path.is_file():
        if any(quarantine.iterdir()):
            raise ValueError(
                f"{quarantine} is not empty and holds no {MANIFEST}: give another --quarantine"
            )
        return {"data": "", "moved": []}
    try:
        values = json.loads(path.read_text())
        return {"data": str(values["data"]), "moved": list(values["moved"])}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: move it away, or give another --quarantine") from None


def _write_manifest(
    quarantine: Path, data: Path, before: list[dict[str, Any]], moves: list[Move]
) -> None:
    """ASCII, so that any file name survives."""
    entries = [
        {
            "from": str(move.source.relative_to(data)),
            "to": str(move.target.relative_to(quarantine)),
            "why": list(move.why),
        }
        for move in moves
    ]
    text = json.dumps({"data": str(data), "moved": [*before, *entries]}, indent=2)
    write_aside(quarantine / MANIFEST, (text + "\n").encode())
