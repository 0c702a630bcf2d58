"""What libraries that read sharded image sets promise, and what they keep: each photo once, resuming, a failing network.

    pip install webdataset wids litdata polars datasets torchdata aiohttp
    python benchmarks/shard_libraries.py --shared SHARED [--only litdata] [--place /tmp/shards]

The package needs none of them, so that they are among no extra: install them into an environment of their own. The first
2,000 photos of CIFAR-10's test set are written as 1, 3 and 7 tar files, Parquet files and chunks of litdata's own kind. Each
reading is a process of its own, with batches of 64 (32 in each of two ranks), a seed, and buffers of 1,000 where there are
any. A server on loopback fails on the second of three shards. Written to docs/results/shard_libraries.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import socket
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from PIL import Image

from mobilenets.training.device import provenance

PHOTOS, BATCH, BUFFER, SEED = 2000, 64, 1000, 0
SHARDS, WORKERS = (1, 3, 7), (1, 2, 5)
# Batches before a run stops, and seconds before a reading is given up.
STOP, PATIENCE = 10, 90
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
}
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
    """A loader, how to begin an epoch, and its library's own state; `restore` before the first epoch."""

    loader: Iterable[list[Photo]]
    begin: Callable[[int], object]
    state: Callable[[int], Any]


def photo(number: int, content: bytes, resize: bool) -> Photo:
    """Number and checksum: what changed on its way counts as well."""
    if resize:
        Image.open(io.BytesIO(content)).convert("RGB").resize((224, 224)).tobytes()
    return number, zlib.crc32(content)


def from_tar(sample: dict[str, Any], resize: bool) -> Photo:
    image = sample.get("png") or sample[".png"]
    if not isinstance(image, bytes):
        image = image["bytes"] if isinstance(image, dict) else image.read()
    return photo(int(sample["__key__"]), image, resize)


def from_columns(sample: dict[str, Any], resize: bool) -> Photo:
    return photo(int(sample["number"]), sample["image"], resize)


def stateful(ask: Ask, data: Any, **options: Any) -> Reader:
    """A library that leaves state to torchdata."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(data, num_workers=ask.workers, **options)
    if ask.state is not None:
        loader.load_state_dict(ask.state)
    begin = getattr(data, "set_epoch", lambda epoch: None)
    return Reader(loader, begin, lambda batches: loader.state_dict())


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

    def drawn(rank: int, ranks: int) -> list[int]:
        # As `DistributedChunkedSampler` cuts, without its need for a process group.
        share = -(-PHOTOS // ranks)
        part = (rank * share, min(PHOTOS, (rank + 1) * share))
        options = {"chunksize": 500, "shuffle": ask.shuffle, "shufflefirst": True, "seed": SEED}
        return list(ChunkedSampler(data, num_samples=part, **options))

    order = drawn(ask.rank, ask.ranks)
    if ask.state is not None:
        batches, batch, ranks = ask.state
        rests = [drawn(rank, ranks)[batches * batch :] for rank in range(ranks)]
        order = [i for at in range(0, PHOTOS, batch) for r in rests for i in r[at : at + batch]]
    loader = torch.utils.data.DataLoader(
        data, ask.batch, sampler=order, num_workers=ask.workers, collate_fn=list
    )
    return Reader(loader, lambda epoch: None, lambda batches: (batches, ask.batch, ask.ranks))


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
    return Reader(loader, lambda epoch: None, lambda batches: loader.state_dict())


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
    return Reader(loader, lambda epoch: None, lambda batches: None)


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
            reader.begin(epoch)
            found["epochs"].append([])
            for batch in islice(reader.loader, ask.stop):
                found["epochs"][-1].append(batch)
        found["seconds"] = time.perf_counter() - started
        if ask.stop is not None:
            found["state"] = reader.state(ask.stop)
    except BaseException as error:  # noqa: BLE001: whatever a library throws is a result
        lines = [line for line in str(error).splitlines() if line.strip()]
        found["error"] = f"{type(error).__name__}: {lines[-1] if lines else ''}"
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


def numbers(result: dict[str, Any], epoch: int = 0) -> list[int]:
    batches = result["epochs"][epoch] if epoch < len(result["epochs"]) else []
    return [number for batch in batches for number, _ in batch]


def kept(result: dict[str, Any], truth: dict[int, int]) -> dict[str, Any]:
    seen = Counter(numbers(result))
    came = [pair for batch in (result["epochs"] or [[]])[0] for pair in batch]
    said = [line for line in result["log"].splitlines() if re.search("(?i)warning|retry", line)]
    said = [line for line in said if "set_vital" not in line]
    return {
        "missing": PHOTOS - len(seen),
        "doubled": seen.total() - len(seen),
        "changed": sum(truth.get(number) != checksum for number, checksum in came),
        "error": result["error"],
        "said": said[0][-200:] if said else None,
    }


def write(shared: Path, place: Path, with_litdata: bool) -> None:
    """Every kind of shard, unless it is there."""
    place.mkdir(parents=True, exist_ok=True)
    source = parquet.ParquetFile(shared / "data" / "cifar10" / "test-00000-of-00001.parquet")
    rows = next(source.iter_batches(PHOTOS)).to_pylist()
    images = [row["img"]["bytes"] for row in rows]
    (place / "files").mkdir(exist_ok=True)
    for number, image in enumerate(images):
        (place / "files" / f"{number}.png").write_bytes(image)
    for shards in SHARDS:
        for kind in ("tar", "parquet", "litdata"):
            (place / kind / str(shards)).mkdir(parents=True, exist_ok=True)
        for n, part in enumerate(shares(shards)):
            with tarfile.open(place / "tar" / str(shards) / f"{n}.tar", "w") as archive:
                for number in part:
                    member = tarfile.TarInfo(f"{number:05}.png")
                    member.size = len(images[number])
                    archive.addfile(member, io.BytesIO(images[number]))
            table = pa.table({"number": list(part), "image": [images[i] for i in part]})
            parquet.write_table(table, place / "parquet" / str(shards) / f"{n}.parquet")
        if with_litdata and not (place / "litdata" / str(shards) / "index.json").is_file():
            from litdata import index_parquet_dataset
            from litdata.streaming import Cache

            folder = place / "litdata" / str(shards)
            cache = Cache(str(folder), chunk_size=len(shares(shards)[0]))
            for number, image in enumerate(images):
                cache[number] = {"number": number, "image": image}
            cache.done()
            cache.merge()
            index_parquet_dataset(str(place / "parquet" / str(shards)))


class Server(BaseHTTPRequestHandler):
    """`/FAULT/TRIAL/KIND/...` of a folder, with that fault in what is the second shard."""

    place: Path
    asked: Counter[str] = Counter()
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        fault, _, rest = path.lstrip("/").split("/", 2)
        file = self.place / rest
        if not file.is_file():
            return self.send_error(404)
        body = file.read_bytes()
        if not re.search(r"/(1\.\w+|chunk-0-1\.bin)$", path):
            fault = ""
        elif with_body:
            self.asked[path] += 1
            if fault.endswith("twice") and self.asked[path] > 2:
                fault = ""
        if fault.startswith("503") and with_body:
            return self.send_error(503)
        if fault == "byte-changed":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        total = len(body)
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or total), total - 1)
            body = body[first : last + 1]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        if fault == "cut-no-length":
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{zlib.crc32(file.name.encode())}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if not with_body:
            return None
        cut = fault.startswith(("reset", "cut"))
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if fault.startswith("reset"):
            time.sleep(0.3)
            hard = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
        if cut:
            self.close_connection = True
        return None


FAULTS = (
    "503-twice",
    "503-always",
    "reset-twice",
    "cut-twice",
    "cut-always",
    "cut-no-length",
    "byte-changed",
)


def each_once(name: str, place: Path, truth: dict[int, int]) -> list[dict[str, Any]]:
    rows = []
    for shuffle in (False, True):
        for shards in SHARDS:
            for workers in WORKERS:
                ask = Ask(name, place, shards, workers, shuffle, epochs=2)
                (result,) = readings([ask])
                first, second = numbers(result), numbers(result, 1)
                rows.append(
                    {
                        "shuffle": shuffle,
                        "shards": shards,
                        "workers": workers,
                        **kept(result, truth),
                        "length_foretold": result["length"],
                        "length": len((result["epochs"] or [[]])[0]),
                        "second_epoch_differs": first != second if second else None,
                        "full_batches": [len(b) for b in (result["epochs"] or [[]])[0]].count(
                            BATCH
                        ),
                    }
                )
    return rows


def resumed(name: str, place: Path) -> list[dict[str, Any]]:
    """Stopped after some batches of the first epoch; (ranks, workers) before and after."""
    rows = []
    for before, after in (((1, 2), (1, 2)), ((1, 2), (1, 5)), ((1, 2), (1, 1)), ((2, 2), (1, 2))):
        ranks, workers = before
        asks = [
            Ask(name, place, 7, workers, True, BATCH // ranks, rank=rank, ranks=ranks)
            for rank in range(ranks)
        ]
        whole = readings(asks)
        stopped = readings([replace(ask, stop=STOP) for ask in asks])
        row: dict[str, Any] = {"before": before, "after": after}
        rows.append(row)
        failed = next((r["error"] for r in (*whole, *stopped) if r["error"]), None)
        if failed:
            row["error"] = failed
            continue
        (rest,) = readings([Ask(name, place, 7, after[1], True, state=stopped[0]["state"])])
        done = [number for result in stopped for number in numbers(result)]
        went_on = numbers(rest)
        row |= {
            "error": rest["error"],
            "lost": PHOTOS - len({*done, *went_on}),
            "repeated": len(done) + len(went_on) - len({*done, *went_on}),
            "same_order": went_on == numbers(whole[0])[len(numbers(stopped[0])) :],
        }
        if ranks > 1:
            row["batches_of_ranks"] = [len(result["epochs"][0]) for result in whole]
            row["missing_in_ranks"] = PHOTOS - len({n for r in whole for n in numbers(r)})
            (alone,) = readings([Ask(name, place, 7, workers, True)])
            parts = zip(*(result["epochs"][0] for result in whole), strict=False)
            pairs = zip(alone["epochs"][0], parts, strict=False)
            row["global_batches_alike"] = sum(
                set(one) == {p for part in both for p in part} for one, both in pairs
            )
    return rows


def failures(name: str, place: Path, address: str, truth: dict[int, int]) -> dict[str, Any]:
    found = {}
    for fault in FAULTS:
        server = f"{address}/{fault}/{zlib.crc32(name.encode())}"
        started = time.perf_counter()
        (result,) = readings([Ask(name, place, 3, 1, False, server=server)])
        seconds = round(time.perf_counter() - started, 1)
        found[fault] = {**kept(result, truth), "seconds": seconds}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()) / "shards")
    parser.add_argument("--only", choices=READERS)
    parser.add_argument("--output", type=Path, default=Path("docs/results/shard_libraries.json"))
    options = parser.parse_args()
    os.environ.update(QUIET)
    os.environ["HF_HOME"] = tempfile.mkdtemp()
    names = []
    for name in [options.only] if options.only else READERS:
        module = name.split(",")[0]
        if name == "files" or importlib.util.find_spec(module):
            names.append(name)
        else:
            print(f"{name} is skipped: pip install {module} torchdata", file=sys.stderr)
    context = multiprocessing.get_context("fork")
    has_litdata = importlib.util.find_spec("litdata") is not None
    writing = context.Process(target=write, args=(options.shared, options.place, has_litdata))
    writing.start()
    writing.join()
    truth = {
        int(path.stem): zlib.crc32(path.read_bytes()) for path in options.place.glob("files/*.png")
    }
    Server.place = options.place
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    serving = context.Process(target=server.serve_forever, daemon=True)
    serving.start()
    address = f"http://127.0.0.1:{server.server_port}"
    libraries: dict[str, Any] = {name: {} for name in names}
    compared = [name for name in names if name != "files"]
    # Most of a failing network is waiting. Parquet's downloads are those of litdata's own chunks.
    with ThreadPoolExecutor(8) as pool:
        waiting = {
            name: pool.submit(failures, name, options.place, address, truth)
            for name in compared
            if name != "litdata, parquet"
        }
        for name, future in waiting.items():
            libraries[name]["failures"] = future.result()
            print(name, json.dumps(libraries[name]["failures"], indent=1), flush=True)
    serving.terminate()
    for name in compared:
        libraries[name]["each_once"] = each_once(name, options.place, truth)
        libraries[name]["resumed"] = resumed(name, options.place)
        print(name, *libraries[name]["each_once"], *libraries[name]["resumed"], sep="\n", flush=True)
    for name in names:
        ask = Ask(name, options.place, 3, 1, False, epochs=2, resize=True)
        runs = [readings([ask])[0] for _ in range(3)]
        rates = [2 * PHOTOS / run["seconds"] for run in runs if not run["error"]]
        libraries[name]["images_per_second"] = [round(rate) for rate in sorted(rates)]
        print(name, libraries[name]["images_per_second"], "images a second", flush=True)
    packages = {name.split(",")[0] for name in compared} | {"torchdata", "fsspec"}
    content = {
        "command": "python benchmarks/shard_libraries.py --shared SHARED",
        "photos": PHOTOS,
        "batch": BATCH,
        "stop": STOP,
        "patience_s": PATIENCE,
        "libraries": libraries,
        "library_versions": {name: importlib.metadata.version(name) for name in sorted(packages)},
        **provenance(torch.device("cpu")),
    }
    options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
