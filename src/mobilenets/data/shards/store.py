"""Shards as files of this machine: fetched whole, checked, kept, and the oldest thrown away where room is short."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from mobilenets.data.files import sha256, user_cache, write_aside
from mobilenets.data.shards.places import Layout, file_system, is_address, name_of

CACHE, ROOM = "MOBILENETS_SHARDS", "MOBILENETS_SHARDS_GB"
ATTEMPTS = 5
# Seconds before the second attempt; each further wait is twice as long.
WAIT = 0.5
# So much is fetched at once, and again where it did not come whole.
BLOCK = 1 << 24
# Rows of Parquet that are laid out together.
ROWS = 256
# Seconds between two looks at what readers ask for.
ASKED_EVERY = 0.1


class ShardError(ValueError):
    """A shard that can't be had or is not what it should be; the message starts with its name."""


@dataclass(frozen=True)
class ShardFile:
    """A shard: where it lies, and what is known of the file.

    Args:
        address: a path, or an address that fsspec understands.
        size: in bytes, None where nobody says.
        sha256: None where nobody says.
        mark: changes when the file does, where there is no sum.
    """

    address: str
    size: int | None = None
    sha256: str | None = None
    mark: str = ""


def digest_of(files: Sequence[ShardFile], rows: bytes = b"") -> str:
    """A hash by which what is kept of files is known again; of some of their rows, where those are given."""
    told = repr([(file.address, file.size, file.sha256, file.mark) for file in files])
    return hashlib.sha256(told.encode() + rows).hexdigest()[:24]


class Store:
    """The shards of a data set, each as a file that can be read at any place.

    Tar files of this machine are read where they are. Those from elsewhere are fetched once, and Parquet, whose rows can be read
    in groups only, is laid out anew beside them. Only the process that made the store does so, and those that read for it ask it
    to: a process that is forked off while a thread holds a lock would wait for that lock for ever.

    Raises:
        ValueError: `MOBILENETS_SHARDS_GB` is no number.
    """

    def __init__(self, files: Sequence[ShardFile], layout: Layout) -> None:
        self.files, self.layout = tuple(files), layout
        self._room = _room()
        self._owner = os.getpid()
        self._broken: dict[int, str] = {}
        self._whole: set[int] = set()

    @cached_property
    def fetches(self) -> bool:
        """Whether shards are brought from elsewhere, or laid out anew."""
        return self.layout == "parquet" or any(is_address(file.address) for file in self.files)

    def read(self, shard: int, place: int, size: int) -> bytes:
        """The bytes of one sample's image.

        Args:
            place: its offset in a tar file, its row in Parquet.

        Raises:
            ShardError: the shard can't be had.
        """
        for again in (True, False):
            path = self.local(shard)
            try:
                if self.layout == "parquet":
                    encoded: bytes | None = laid_out(path).column(0)[place].as_py()
                    return encoded or b""
                with path.open("rb") as file:
                    file.seek(place)
                    return file.read(size)
            except FileNotFoundError:
                # Another process needed the room.
                if not again:
                    raise
        raise AssertionError

    def local(self, shard: int) -> Path:
        """The shard's file on this machine, brought here where it is not yet.

        Raises:
            ShardError: it can't be had; the same is said at once when it is asked for again.
            OSError: the disk is full.
        """
        if shard in self._broken:
            raise ShardError(self._broken[shard])
        try:
            return self._local(self.files[shard], checked=shard in self._whole)
        except ShardError as error:
            self._broken[shard] = str(error)
            raise
        finally:
            self._whole.add(shard)

    def _local(self, file: ShardFile, *, checked: bool) -> Path:
        if self.layout == "webdataset" and not is_address(file.address):
            path = Path(file.address)
            if not checked:
                check_size(path, file)
            return path
        kept = self.kept(file)
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            if os.getpid() != self._owner:
                _ask_for(kept)
            else:
                with FileLock(_beside(kept, "lock")):
                    if not kept.is_file():
                        self._bring(file, kept)
        if not checked:
            with contextlib.suppress(FileNotFoundError):
                os.utime(kept)
        return kept

    def _bring(self, file: ShardFile, kept: Path) -> None:
        if self.layout == "webdataset":
            fetch(file, kept)
        elif is_address(file.address):
            whole = _beside(kept, "parquet")
            fetch(file, whole)
            try:
                _lay_out(whole, kept, file.address)
            finally:
                whole.unlink()
        else:
            check_size(Path(file.address), file)
            _lay_out(Path(file.address), kept, file.address)

    def kept(self, file: ShardFile) -> Path:
        """Where a shard that is brought here is kept."""
        suffix = ".arrow" if self.layout == "parquet" else ""
        return cache_folder() / f"{digest_of([file])}-{name_of(file.address)}{suffix}"

    def wanted(self) -> list[int]:
        """The shards that processes which read for this one ask for."""
        return self._marked("wanted")

    def _marked(self, what: str) -> list[int]:
        found = {path.name for path in cache_folder().glob(f".*.{what}")}
        if not found:
            return []
        return [
            n for n, file in enumerate(self.files) if _beside(self.kept(file), what).name in found
        ]

    def offer(self, shard: int) -> None:
        """Bring a shard here for those that read; what is wrong with it is for them to say."""
        kept = self.kept(self.files[shard])
        try:
            self.local(shard)
        # Whatever it is, who waits for the shard must hear of it.
        except Exception as error:
            write_aside(_beside(kept, "failed"), str(error).encode())
        _beside(kept, "wanted").unlink(missing_ok=True)

    def forget_failures(self) -> None:
        """What failed in an earlier attempt may go right in this one."""
        self._broken.clear()
        for shard in self._marked("failed"):
            _beside(self.kept(self.files[shard]), "failed").unlink(missing_ok=True)

    def make_room(self, needed: Sequence[int]) -> None:
        """Throw away kept shards, longest unread first, until `MOBILENETS_SHARDS_GB` are enough; not those still needed."""
        if self._room is None:
            return
        spared = {self.kept(self.files[shard]) for shard in needed}
        kept: list[tuple[float, int, Path]] = []
        for path in cache_folder().glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):
                if path.suffix in (".tar", ".arrow"):
                    kept.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self._room:
                return
            if path not in spared:
                path.unlink(missing_ok=True)
                total -= size


@contextlib.contextmanager
def reading_ahead(store: Store, asked: Sequence[Sequence[int]], window: int) -> Iterator[Any]:
    """Bring shards here before they are read, in a thread of their own; gives what to call with the batch that is reached.

    Args:
        asked: the shards that each batch takes images from.
        window: so many shards are brought before their turn.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for batch, shards in enumerate(asked):
        for shard in shards:
            first.setdefault(shard, batch)
            last[shard] = batch
    order = sorted(first, key=lambda shard: first[shard])
    reached, over, moved = -1, False, threading.Condition()
    store.forget_failures()

    def ahead() -> None:
        brought = 0
        while True:
            with moved:
                begun = sum(first[shard] <= reached + 1 for shard in order)
                due = brought < min(len(order), begun + window)
                if not (due or over):
                    moved.wait(ASKED_EVERY)
                needed = [shard for shard in order[: brought + 1] if last[shard] >= reached]
            store.make_room(needed)
            if over:
                return
            if due:
                store.offer(order[brought])
                brought += 1
            for shard in store.wanted():
                store.offer(shard)

    def reach(batch: int) -> None:
        nonlocal reached
        with moved:
            reached = batch
            moved.notify()

    thread = threading.Thread(target=ahead, daemon=True, name="shards")
    thread.start()
    try:
        yield reach
    finally:
        with moved:
            over = True
            moved.notify()


def fetch(file: ShardFile, path: Path) -> None:
    """Bring a file here whole, going on after what did not come, and check it.

    Raises:
        ShardError: it did not come whole in several attempts, or is not what was written.
        OSError: the disk is full.
    """
    part = _beside(path, "part")
    for again in (True, False):
        _fetch(file, part)
        found = sha256(part)
        if file.sha256 in (None, found):
            part.replace(path)
            return
        part.unlink()
        if not again:
            raise ShardError(
                f"{file.address} is not the shard that was written: its SHA-256 is {found}, and "
                f"{file.sha256} was expected; write it again, or copy it again"
            )


def fetch_bytes(address: str) -> bytes:
    """A small file, in several attempts.

    Raises:
        FileNotFoundError: there is none.
        ShardError: it can't be had.
    """
    system, path = file_system(address)
    content: bytes = _patiently(address, lambda: system.cat_file(path))
    return content


def describe(address: str) -> ShardFile:
    """What the place that has a file says of it.

    Raises:
        ShardError: it can't be had.
    """
    system, path = file_system(address)
    try:
        info: Mapping[str, Any] = _patiently(address, lambda: system.info(path))
    except FileNotFoundError:
        raise ShardError(f"{address}: there is no such shard") from None
    named = (info.get(name) for name in ("ETag", "etag", "mtime", "LastModified", "Last-Modified"))
    return ShardFile(address, info.get("size"), None, str(next(filter(None, named), "")))


def check_size(path: Path, file: ShardFile) -> None:
    """Make sure that a file of this machine is as large as it was written.

    Raises:
        ShardError: it is gone, or of another size.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ShardError(f"{file.address}: there is no such shard") from None
    if file.size not in (None, size):
        raise ShardError(
            f"{file.address} has {size:,} bytes, and {file.size:,} were written: copy it again"
        )


def cache_folder() -> Path:
    """Where shards are kept: `MOBILENETS_SHARDS`, else `XDG_CACHE_HOME/mobilenets/shards`, else below `~/.cache`."""
    return Path(os.environ.get(CACHE) or user_cache() / "mobilenets" / "shards")


def _room() -> float | None:
    """Bytes that kept shards may take; None for as many as there are."""
    told = os.environ.get(ROOM)
    if not told:
        return None
    try:
        room = float(told) * 1e9
    except ValueError:
        room = -1.0
    if not room > 0:
        raise ValueError(f"{ROOM} is a number of gigabytes, such as 200, not {told!r}")
    return room


def _beside(kept: Path, what: str) -> Path:
    return kept.with_name(f".{kept.name}.{what}")


def _ask_for(kept: Path) -> None:
    """Wait until the process that this one reads for has brought a shard here.

    Raises:
        ShardError: it could not.
    """
    wanted, failed, parent = _beside(kept, "wanted"), _beside(kept, "failed"), os.getppid()
    wanted.touch()
    while not kept.is_file():
        if failed.is_file():
            raise ShardError(failed.read_text(encoding="utf-8"))
        if os.getppid() != parent:
            raise ShardError(f"{kept}: the process that brings shards here has ended")
        time.sleep(ASKED_EVERY / 4)


def _fetch(file: ShardFile, part: Path) -> None:
    system, remote = file_system(file.address)
    size = file.size
    try:
        if size is None:
            size = describe(file.address).size
        with part.open("ab") as target:
            if size is not None and target.tell() > size:
                target.truncate(0)
            while size is None or target.tell() < size:
                start = target.tell()
                end = None if size is None else min(start + BLOCK, size)

                def ask(start: int = start, end: int | None = end) -> tuple[int, bytes]:
                    return _block(system, remote, start, end, size)

                begins, block = _patiently(file.address, ask)
                target.truncate(begins)
                target.seek(begins)
                target.write(block)
                if size is None:
                    return
    except FileNotFoundError:
        part.unlink(missing_ok=True)
        raise ShardError(f"{file.address}: there is no such shard") from None


def _block(
    system: Any, remote: str, start: int, end: int | None, size: int | None
) -> tuple[int, bytes]:
    """Where a block begins, and its bytes; some servers give the whole file whatever they are asked for."""
    block: bytes = (
        system.cat_file(remote) if end is None else system.cat_file(remote, start=start, end=end)
    )
    if end is None or len(block) == end - start:
        return start, block
    if len(block) == size:
        return 0, block
    raise OSError(f"{len(block):,} bytes came, and {end - start:,} were asked for")


def _patiently(address: str, ask: Any) -> Any:
    """What is asked for, in several attempts; whatever goes wrong on the way may go right the next time.

    Raises:
        FileNotFoundError: it is not there, which no attempt changes.
        ShardError: the last attempt failed too.
    """
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except FileNotFoundError:
            raise
        # Each file system has errors of its own.
        except Exception as error:
            if attempt + 1 == ATTEMPTS:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise ShardError(
                    f"{address} did not come in {ATTEMPTS} attempts ({reason})"
                ) from None
        # Many that failed at once must not come back at once.
        time.sleep(WAIT * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError


def _lay_out(parquet_file: Path, kept: Path, address: str) -> None:
    """The rows of a Parquet file as an Arrow file, the images first: any of them can be read alone."""
    import pyarrow as pa
    from pyarrow import ArrowException, parquet

    from mobilenets.data.parquet import bytes_column, encoded_images

    part = _beside(kept, "part")
    try:
        with parquet.ParquetFile(parquet_file) as file:
            before = file.schema_arrow
            image = bytes_column(before)
            if image is None:
                raise ShardError(
                    f"{address}: no image column (bytes, or a struct with bytes) among "
                    f"{', '.join(before.names)}"
                )
            others = [field for field in before if field.name != image]
            schema = pa.schema(
                [(image, pa.large_binary()), *((f.name, _plain(f.type)) for f in others)],
                before.metadata,
            )
            with pa.OSFile(str(part), "wb") as target, pa.ipc.new_file(target, schema) as writer:
                for batch in file.iter_batches(ROWS):
                    images = encoded_images(batch[image], address).column
                    columns = [images, *(batch[field.name] for field in others)]
                    writer.write_batch(
                        pa.record_batch(
                            [
                                column.cast(kind)
                                for column, kind in zip(columns, schema.types, strict=True)
                            ],
                            schema,
                        )
                    )
    except (ArrowException, OSError) as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ShardError(f"{address}: not a whole Parquet file ({reason})") from None
    part.replace(kept)


def _plain(kind: Any) -> Any:
    """An Arrow file can't hold dictionaries that change from batch to batch."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


@lru_cache(maxsize=256)
def laid_out(path: Path) -> Any:
    """The table of an Arrow file, mapped into memory."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
