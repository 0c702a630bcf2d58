"""Where shards lie: paths and addresses, with braces and stars as people write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from mobilenets.data.splits import ALL, SPLIT_NAMES

Layout = Literal["webdataset", "parquet"]
SUFFIXES: dict[str, Layout] = {".tar": "webdataset", ".parquet": "parquet"}
MANIFEST = "shards.json"


def is_address(where: str | Path) -> bool:
    """Whether it names a place that fsspec reaches, and not a path.

    >>> is_address("s3://bucket/train-{000..146}.tar"), is_address("photos/train")
    (True, False)
    """
    return "://" in str(where)


def file_system(address: str) -> tuple[Any, str]:
    """Fsspec's file system for an address, and what the file is called there.

    Raises:
        ValueError: nothing here speaks its protocol; says what to install.
    """
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if address.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout

        # A connection that says nothing for so long is dead, however long a shard takes.
        timeout = ClientTimeout(total=None, sock_connect=30, sock_read=30)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    try:
        system, path = url_to_fs(address, **options)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{address}: {' '.join(str(error).split())}") from None
    return system, path


def find_shards(where: str) -> list[str]:
    """The shards that a path, an address or a pattern of either names, sorted.

    Raises:
        ValueError: it names none.

    >>> find_shards("https://example.org/train-{00..02}.tar")[1:]
    ['https://example.org/train-01.tar', 'https://example.org/train-02.tar']
    """
    from braceexpand import braceexpand

    try:
        patterns = list(braceexpand(where))
    except ValueError:
        raise ValueError(f"{where}: a brace is not closed; write train-{{000..146}}.tar") from None
    found = [shard for pattern in patterns for shard in _matches(pattern)]
    for shard in found:
        if suffix_of(shard) not in SUFFIXES:
            raise ValueError(
                f"{shard} is no shard: they end in .tar (not compressed) or .parquet, and what "
                f"mobilenets shard writes is named by its folder"
            )
    if len(layouts := {suffix_of(shard) for shard in found}) > 1:
        raise ValueError(f"{where} names both {' and '.join(sorted(layouts))} files: give one kind")
    return found


def suffix_of(shard: str) -> str:
    """Of its file's name, in lower case."""
    return PurePosixPath(name_of(shard)).suffix.lower()


def name_of(shard: str) -> str:
    """Its file's name.

    >>> name_of("https://example.org/a/train-00.tar?version=2")
    'train-00.tar'
    """
    return PurePosixPath(urlsplit(shard).path if is_address(shard) else shard).name


def folder_of(where: str) -> str:
    """What stands before the file's name.

    >>> folder_of("https://example.org/a/train-00.tar"), folder_of("b/train-00.tar")
    ('https://example.org/a', 'b')
    """
    return where.rpartition("/")[0]


def split_of(shard: str) -> str:
    """The split that a shard's name tells, else the name of its folder; `all` where neither does.

    >>> split_of("imagenet1k-train-0000.tar"), split_of("a/val/000.tar"), split_of("000.tar")
    ('train', 'val', 'all')
    """
    for part in (name_of(shard), name_of(folder_of(shard))):
        for word in re.split(r"[-_.]", part.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return ALL


def by_split(shards: Sequence[str], where: str) -> dict[str, list[str]]:
    """Shards by the split that each belongs to.

    Raises:
        ValueError: some tell theirs, and others don't.
    """
    splits: dict[str, list[str]] = {}
    for shard in shards:
        splits.setdefault(split_of(shard), []).append(shard)
    if ALL in splits and len(splits) > 1:
        raise ValueError(
            f"{where}: {name_of(splits[ALL][0])} does not tell which split it is of, as others do: "
            "name them train-*, validation-* and test-*"
        )
    return splits


def tars_in(folder: Path) -> list[str]:
    """The tar files of a folder, or of the folders directly in it, sorted."""
    return [str(path) for path in sorted(folder.glob("*.tar")) or sorted(folder.glob("*/*.tar"))]


def _matches(pattern: str) -> list[str]:
    if not is_address(pattern):
        import glob

        found = sorted(glob.glob(pattern))
        if not found:
            raise ValueError(f"{pattern}: there is no such shard")
        return found
    if "*" not in pattern:
        return [pattern]
    if pattern.startswith(("http://", "https://")):
        raise ValueError(
            f"{pattern}: a web server does not list its files: write their numbers, such as "
            f"train-{{000..146}}.tar, or the folder that holds {MANIFEST}"
        )
    system, path = file_system(pattern)
    try:
        found = [str(system.unstrip_protocol(match)) for match in sorted(system.glob(path))]
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(f"{pattern} can't be listed ({reason})") from None
    if not found:
        raise ValueError(f"{pattern}: there is no such shard")
    return found
