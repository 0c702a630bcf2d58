"""How each library reads shards of photos, in a process of its own, for the benchmark beside this file."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import re
import signal
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

PHOTOS, BATCH, BUFFER, SEED = 2000, 64, 1000, 0
# Seconds before a reading is given up.
PATIENCE = 150
# A photo's number and the checksum of its file.
Photo = tuple[int, int]


def shares(shards: int) -> list[range]:
    """The photos of each shard."""
    size = -(-PHOTOS // shards)
    return [range(n * size, min(PHOTOS, (n + 1) * size)) for n in range(shards)]


@dataclass(frozen=True)
class Ask:
    """What one process is to read, and how."""

    library: str
    place: Path
    shards: int
    workers: int
    shuffle: bool
    batch: int = BATCH
    epochs: int = 1
    rank: int = 0
    ranks: int = 1
    stop: int | None = None
    state: Any = None
    server: str = ""
    resize: bool = False

    def files(self, kind: str) -> list[str]:
        base = self.server or str(self.place)
        return [f"{base}/{kind}/{self.shards}/{n}.{kind}" for n in range(self.shards)]


@dataclass(frozen=True)
class Reader:
    """A loader, its library's own state, and what begins an epoch where a loader doesn't know by itself."""

    loader: Iterable[list[Photo]]
    state: Callable[[], Any] | None = None
    set_epoch: Callable[[int], None] | None = None


def photo(number: int, content: bytes, resize: bool) -> Photo:
    """Number and checksum: what changed on its way counts as well."""
    if resize:
        Image.open(io.BytesIO(content)).convert("RGB").resize((224, 224)).tobytes()
    return number, zlib.crc32(content)


def from_tar(sample: dict[str, Any], resize: bool) -> Photo:
    image = sample.get("png") or sample[".png"]
    # `datasets` gives a dictionary, `wids` an open file.
    image = image["bytes"] if isinstance(image, dict) else image
    image = image if isinstance(image, bytes) else image.read()
    return photo(int(sample["__key__"]), image, resize)


def from_columns(sample: dict[str, Any], resize: bool) -> Photo:
    return photo(int(sample["number"]), sample["image"], resize)


def stateful(ask: Ask, data: Any, **options: Any) -> Reader:
    """A library that leaves state to torchdata."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(data, num_workers=ask.workers, **options)
    if ask.state is not None:
        loader.load_state_dict(ask.state)
    return Reader(loader, loader.state_dict, getattr(data, "set_epoch", None))


def webdataset(ask: Ask, lenient: bool = False, cached: bool = False) -> Reader:
    import webdataset as wds

    data = wds.WebDataset(
        ask.files("tar"),
        shardshuffle=100 if ask.shuffle else False,
        detshuffle=ask.shuffle,
        seed=SEED,
        nodesplitter=wds.split_by_node,
        empty_check=not lenient,
        handler=wds.warn_and_continue if lenient or cached else wds.reraise_exception,
        cache_dir=tempfile.mkdtemp() if cached else None,
    )
    if ask.shuffle:
        data = data.compose(wds.detshuffle(BUFFER, seed=SEED))
    data = data.map(partial(from_tar, resize=ask.resize)).batched(ask.batch, collation_fn=list)
    return stateful(ask, data, batch_size=None)


def wids(ask: Ask) -> Reader:
    """It has no state: the batches read are left out of the sampler's list, for as many ranks as there were."""
    from wids import ChunkedSampler, ShardListDataset

    parts = zip(ask.files("tar"), shares(ask.shards), strict=True)
    shards = [{"url": url, "nsamples": len(part)} for url, part in parts]
    data = ShardListDataset(
        shards,
        cache_dir=tempfile.mkdtemp(),
        keep=True,
        transformations=[partial(from_tar, resize=ask.resize)],
    )

    def sampler(rank: int, ranks: int) -> ChunkedSampler:
        # As `DistributedChunkedSampler` cuts, which knows the ranks of now only.
        share = -(-PHOTOS // ranks)
        part = (rank * share, min(PHOTOS, (rank + 1) * share))
        options = {"chunksize": 500, "shuffle": ask.shuffle, "shufflefirst": True, "seed": SEED}
        return ChunkedSampler(data, num_samples=part, **options)

    order: Any = sampler(ask.rank, ask.ranks)
    if ask.state is not None:
        batches, batch, ranks = ask.state
        rests = [list(sampler(rank, ranks))[batches * batch :] for rank in range(ranks)]
        order = [i for at in range(0, PHOTOS, batch) for r in rests for i in r[at : at + batch]]
    loader = torch.utils.data.DataLoader(
        data, ask.batch, sampler=order, num_workers=ask.workers, collate_fn=list
    )
    return Reader(loader, lambda: (ask.stop, ask.batch, ask.ranks))


def litdata(ask: Ask, kind: str = "litdata") -> Reader:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader
    from litdata.streaming.item_loader import ParquetLoader

    folder = f"{ask.place}/{kind}/{ask.shards}"
    options: dict[str, Any] = {"item_loader": ParquetLoader() if kind == "parquet" else None}
    if ask.server:
        host, bucket, trial = re.fullmatch(r"(http://[^/]+)/([^/]+)/(.+)", ask.server).groups()
        folder = f"s3://{bucket}/{trial}/{kind}/{ask.shards}"
        # Its client insists on TLS, which loopback has not.
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
        options |= {"storage_options": {"endpoint_url": host}, "cache_dir": tempfile.mkdtemp()}
    transform = partial(from_columns, resize=ask.resize)
    # Else it drops in two ranks, not in one, and neither takes the other's state.
    options["drop_last"] = False
    data = StreamingDataset(folder, shuffle=ask.shuffle, seed=SEED, transform=transform, **options)
    loader = StreamingDataLoader(
        data,
        batch_size=ask.batch,
        num_workers=ask.workers,
        collate_fn=list,
        multiprocessing_context="spawn" if kind == "parquet" else None,
    )
    if ask.state is not None:
        loader.load_state_dict(ask.state)
    return Reader(loader, loader.state_dict)


def datasets(ask: Ask, kind: str) -> Reader:
    import datasets as hf
    from datasets.distributed import split_dataset_by_node

    hf.disable_progress_bars()
    builder = {"tar": "webdataset", "parquet": "parquet"}[kind]
    data = hf.load_dataset(builder, data_files=ask.files(kind), split="train", streaming=True)
    data = data.decode(False) if kind == "tar" else data
    if ask.ranks > 1:
        data = split_dataset_by_node(data, ask.rank, ask.ranks)
    if ask.shuffle:
        data = data.shuffle(seed=SEED, buffer_size=BUFFER)
    read = partial(from_tar if kind == "tar" else from_columns, resize=ask.resize)
    return stateful(ask, data, batch_size=ask.batch, collate_fn=partial(read_each, read=read))


def read_each(samples: list[Any], read: Callable[[Any], Photo]) -> list[Photo]:
    return [read(sample) for sample in samples]


def files(ask: Ask) -> Reader:
    """Plain files, to compare the speed with."""
    paths = sorted(ask.place.glob("files/*.png"))
    read = partial(from_file, resize=ask.resize)
    loader = torch.utils.data.DataLoader(
        paths, ask.batch, num_workers=ask.workers, collate_fn=partial(read_each, read=read)
    )
    return Reader(loader)


def from_file(path: Path, resize: bool) -> Photo:
    return photo(int(path.stem), path.read_bytes(), resize)


READERS: dict[str, Callable[[Ask], Reader]] = {
    "webdataset": webdataset,
    "webdataset, lenient": partial(webdataset, lenient=True),
    "webdataset, cached": partial(webdataset, cached=True),
    "wids": wids,
    "litdata": litdata,
    "litdata, parquet": partial(litdata, kind="parquet"),
    "datasets, tar": partial(datasets, kind="tar"),
    "datasets, parquet": partial(datasets, kind="parquet"),
    "files": files,
}


def read(ask: Ask, answer: Path) -> None:
    """In a process of its own: what came, what it said, and where it stood."""
    os.setsid()
    log = os.open(answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    warnings.simplefilter("always", UserWarning)
    found: dict[str, Any] = {"epochs": [], "error": None, "length": None}
    try:
        if ask.ranks > 1:
            meeting = f"file://{answer.parent}/meeting"
            torch.distributed.init_process_group(
                "gloo", init_method=meeting, rank=ask.rank, world_size=ask.ranks
            )
        reader = READERS[ask.library](ask)
        with suppress(TypeError, NotImplementedError):
            found["length"] = len(reader.loader)
        started = time.perf_counter()
        for epoch in range(ask.epochs):
            if reader.set_epoch:
                reader.set_epoch(epoch)
            found["epochs"].append([])
            for batch in islice(reader.loader, ask.stop):
                found["epochs"][-1].append(batch)
        found["seconds"] = time.perf_counter() - started
        if ask.stop is not None and reader.state:
            found["state"] = reader.state()
    except Exception as error:  # whatever a library throws is a result
        named = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", str(error), re.MULTILINE)
        found["error"] = f"{type(error).__name__}: {(named or str(error).splitlines() or [''])[-1]}"
    answer.write_bytes(pickle.dumps(found))
    # Threads and workers of a library may be left.
    os._exit(0)


def readings(asks: list[Ask], patience: float = PATIENCE) -> list[dict[str, Any]]:
    """Processes at the same time, one a rank; what is given up has an error as well."""
    folder = Path(tempfile.mkdtemp())
    answers = [folder / f"{rank}.pickle" for rank in range(len(asks))]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=read, args=pair) for pair in zip(asks, answers, strict=True)
    ]
    for process in processes:
        process.start()
    until = time.monotonic() + patience
    found = []
    for process, answer in zip(processes, answers, strict=True):
        process.join(max(0.0, until - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        late = {"epochs": [[]], "error": f"no end within {patience:.0f} s", "length": None}
        result = pickle.loads(answer.read_bytes()) if answer.is_file() else late
        log = answer.with_suffix(".log")
        result["log"] = log.read_text(errors="replace") if log.is_file() else ""
        found.append(result)
    return found
