"""Predictions for very many images with Ray Data: a network in each of many processes, on one machine or several.

The process that asks is the only one that writes results, so that each image is in them once, whatever happens to the others.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilenets.data.images import BadImageError
from mobilenets.data.progress import progress, say
from mobilenets.data.results import open_results
from mobilenets.deploy.predictor import BATCH, TORCH, Engine, find_engine, predict_images
from mobilenets.deploy.tries import Tries
from mobilenets.runtimes.quiet import in_short, quiet
from mobilenets.training.interrupt import interrupts
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.run import Run
from mobilenets.training.task import Prediction, Task

# Images that a process is given at a time.
SHARE = 2 * BATCH
# How often processes may be killed at a share before its images are tried one by one, and then at an image.
KILLS = 2
# Some shared disks take long to answer.
READERS = 2
CONNECT_SECONDS = 5.0
# How HTTP/2 begins, which Ray speaks: a client's greeting, and settings without any.
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS


@dataclass(frozen=True)
class Bulk:
    """What is asked of a run for each image.

    Args:
        runtime: as `find_engine` takes it.
        outputs: also keep the network's outputs, for who learns from them.
        score: the least that a box is told with.
        side: of parts that large images are also looked at in, in pixels.
    """

    runtime: str = "auto"
    outputs: bool = False
    score: float | None = None
    side: int | None = None


@dataclass(frozen=True)
class Done:
    """How it went.

    Args:
        predicted: images, now.
        failed: that are in the results with an error, whenever that was.
        skipped: that were in the results before, without one.
        images_per_second: of all processes together, once the first answers have come.
        start_seconds: until then.
        runtime: that was asked; None where nothing was left to ask.
        exit_code: what a shell expects where a signal ended it; else 0.
    """

    output: Path
    images: int
    predicted: int
    failed: int
    skipped: int
    images_per_second: float
    start_seconds: float
    runtime: str | None
    exit_code: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "output": str(self.output),
            "images": self.images,
            "predicted": self.predicted,
            "failed": self.failed,
            "skipped": self.skipped,
            "images_per_second": round(self.images_per_second, 1),
            "start_seconds": round(self.start_seconds, 2),
            "engine": "ray",
            "runtime": self.runtime,
        }


def predict_in_bulk(
    run: Run,
    images: Sequence[Path],
    output: Path,
    bulk: Bulk,
    *,
    address: str | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
) -> Done:
    """Write what a run says of each image to a folder of Parquet files, and leave out what is there already.

    A row has the image's absolute path, its `error` or null, the `runtime`, and what the prediction's `to_dict` has.

    Args:
        output: a new folder, or one that the same call has written to before.
        address: of a cluster of Ray, or `auto`; None starts one on this machine, for as long as it takes.
        workers: processes with a network each; as many as the cluster has cores where None.
        retry_failed: also predict again what has an error in the results.

    Raises:
        ValueError: the folder holds something else, there is no such cluster, or it ends before its work.
        ImportError: Ray is not installed; it says how to install it.
    """
    if find_spec("ray") is None:
        raise ImportError("--engine ray needs Ray, not installed: pip install 'mobilenets[ray]'")
    if bulk.outputs and bulk.side is not None:
        raise ValueError("outputs are of whole images: leave out --tile or --outputs")
    names = list(dict.fromkeys(str(image.absolute()) for image in images))
    example, shape = _blank(run)
    about = {
        "format": 1,
        "model": str(run.spec),
        "task": run.task.name,
        "weights_sha256": run.weights_sha256,
        "preprocessing": run.preprocessing.to_dict(),
        "labels": list(run.labels),
        "score": bulk.score,
        "tile": bulk.side,
        "finest": example.get("finest"),
        "outputs": list(shape) if bulk.outputs else None,
    }
    with open_results(output, about) as results:
        if retry_failed:
            results.forget_errors()
        known = results.errors()
        waiting = dict.fromkeys(name for name in names if name not in known)
        failed = sum(known.get(name) is not None for name in names)
        skipped = len(names) - len(waiting) - failed
        if not waiting:
            return Done(output, len(names), 0, failed, skipped, 0.0, 0.0, None, 0)
        engine = _engine(run, bulk)
        schema = _schema(example, shape if bulk.outputs else None)
        worker = (str(run.folder.absolute()), run.task, replace(bulk, runtime=engine.runtime))
        clock = _Clock()
        with (
            cluster(address, workers) as processes,
            interrupts() as interrupt,
            # Ray writes to it that a process was killed, and `--json` is for programs.
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere),
        ):
            say(f"{len(waiting):,} images for {processes} processes of Ray, which start")
            answers = _answers(waiting, (*worker, schema), processes)
            with closing(answers):
                for rows in _shown(answers, waiting):
                    results.add(rows)
                    clock.count(len(rows))
                    failed += len(rows) - rows["error"].null_count
                    if interrupt():
                        break
        return Done(
            output,
            len(names),
            len(names) - skipped - failed - len(waiting),
            failed,
            skipped,
            clock.images_per_second,
            clock.start_seconds,
            engine.runtime,
            interrupt.exit_code if interrupt() else 0,
        )


class _Clock:
    """Until the first answers, processes start and load the network; the images after those tell the speed."""

    def __init__(self) -> None:
        self._began = self._first = self._last = time.monotonic()
        self._before = self._images = 0

    def count(self, images: int) -> None:
        self._last = time.monotonic()
        if not self._images:
            self._first, self._before = self._last, images
        self._images += images

    @property
    def start_seconds(self) -> float:
        return self._first - self._began

    @property
    def images_per_second(self) -> float:
        if self._last == self._first:
            return self._images / max(self._last - self._began, 1e-9)
        return (self._images - self._before) / (self._last - self._first)


def _blank(run: Run) -> tuple[dict[str, Any], tuple[int, ...]]:
    """What a run says of a blank image, however unsure it is of it, and the shape of its outputs."""
    spec = run.spec
    outputs = run.outputs(torch.zeros(1, spec.input_channels, spec.height, spec.across)).numpy()
    (prediction,) = run.task.reading("network", 0.0).decode(outputs)
    return prediction.to_dict(), outputs.shape[1:]


def _schema(example: dict[str, Any], outputs: tuple[int, ...] | None) -> pa.Schema:
    """The columns of the results: the same in every file, whatever is in its images."""
    fields = [pa.field(name, pa.string()) for name in ("image", "error", "runtime")]
    fields += pa.Table.from_pylist([example]).schema
    if outputs is not None:
        fields.append(pa.field("outputs", pa.list_(pa.float32(), int(np.prod(outputs)))))
    return pa.schema(fields)


def _engine(run: Run, bulk: Bulk) -> Engine:
    """What each process will use, chosen here so that all use the same."""
    engine = find_engine(run, bulk.runtime, batch=BATCH, threads=1)
    if bulk.outputs and engine.form != "network":
        if bulk.runtime != "auto":
            raise ValueError(
                f"the export for {engine.runtime} gives boxes, and --outputs asks for the network's own outputs: "
                f"give --runtime {TORCH}"
            )
        return find_engine(run, TORCH)
    return engine


@contextmanager
def cluster(address: str | None = None, workers: int | None = None) -> Iterator[int]:
    """A cluster of Ray to work on: how many processes there will be.

    The one that this process is in already, if it is in one; else the one at the address; else one on this machine alone, which is gone with the
    block. That one answers nobody but this machine, and nobody without a key that is made for it, unless Ray was imported before.

    Raises:
        ValueError: there is no such cluster.
    """
    # Ray reads these when it is imported.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is not None:
        _check_address(address)
    elif "ray" not in sys.modules:
        # Without clusters of several machines, it listens on loopback alone; without a key, it writes one to the user's home.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    def processes() -> int:
        cores = int(ray.cluster_resources().get("CPU", 1))
        return max(1, min(cores, workers or cores))

    if ray.is_initialized():
        yield processes()
        return
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    # The paths of its sockets may have about a hundred characters, and the temporary folder of macOS takes half of them.
    short = Path(os.sep, "tmp")
    place = short if short.is_dir() else None
    with tempfile.TemporaryDirectory(
        dir=place, prefix="mobilenets-", ignore_cleanup_errors=True
    ) as sessions:
        if address is None:
            how |= {"address": "local", "include_dashboard": False, "_temp_dir": sessions}
            how |= {"num_cpus": workers or os.cpu_count()}
        else:
            how |= {"address": address}
        try:
            with quiet("ray"):
                ray.init(**how)
        except Exception as error:
            where = "on this machine" if address is None else f"at {address}"
            raise ValueError(f"Ray can't be used {where} ({in_short(error)})") from None
        try:
            yield processes()
        finally:
            with quiet("ray"):
                ray.shutdown()


def _check_address(address: str) -> None:
    """Make sure that something answers there: Ray itself waits for minutes.

    Raises:
        ValueError: nothing does.
    """
    if address == "auto":
        return
    host, gap, port = address.rpartition(":")
    if not gap or not port.isdecimal() or "/" in host:
        raise ValueError(f"--address is auto or HOST:PORT, such as 10.0.0.5:6379, not {address!r}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as peer:
            peer.sendall(HELLO)
            answer = peer.recv(len(SETTINGS))
    except (OSError, OverflowError) as error:
        raise ValueError(f"--address {address}: no cluster answers there ({error})") from None
    # The fourth byte is the kind of what is sent first, and HTTP/2 begins with settings.
    if answer[3:4] != SETTINGS[3:4]:
        raise ValueError(f"--address {address}: what answers there is no cluster of Ray")


def _shown(answers: Iterator[pa.Table], waiting: Collection[str]) -> Iterator[pa.Table]:
    """The same, with a bar that begins when processes have started, since its speed tells the time left."""
    yield next(answers)
    with progress("predicting", len(waiting)) as advance:
        for rows in answers:
            advance(len(rows))
            yield rows


def _answers(
    waiting: dict[str, None], worker: tuple[Any, ...], processes: int
) -> Generator[pa.Table]:
    """Rows of the images that wait from processes of Ray, as they come; what came waits no longer.

    Raises:
        ValueError: the cluster is lost, or no process can begin.
    """
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    names = list(waiting)
    shares = [
        pa.table({"image": names[start : start + SHARE]}) for start in range(0, len(names), SHARE)
    ]
    # Ray gives what a killed process had in hand to the next one, and that without end.
    tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tries).remote()
    try:
        data = ray.data.from_arrow(shares).map_batches(
            _Worker,
            fn_constructor_args=(*worker, tries),
            compute=ray.data.ActorPoolStrategy(size=min(processes, len(shares))),
            batch_format="pyarrow",
            num_cpus=1,
        )
        for rows in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            # What was lost with a process may come twice.
            rows = rows.filter(pa.array([name in waiting for name in rows["image"].to_pylist()]))
            for name in rows["image"].to_pylist():
                del waiting[name]
            yield rows
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"Ray ended before its work, and the same command goes on ({in_short(error)})"
        ) from None
    finally:
        ray.kill(tries)


class _Worker:
    """A process of Ray with a network in it, on one core."""

    def __init__(self, folder: str, task: Task, bulk: Bulk, schema: pa.Schema, tries: Any) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._run = Run.load(folder)
        self._run.task = task
        self._bulk, self._schema, self._tries = bulk, schema, tries
        self._kept: list[NDArray[np.float32]] = []
        engine = find_engine(self._run, bulk.runtime, batch=BATCH, threads=1)
        self._engine = replace(engine, outputs=self._keeping(engine.outputs))

    def __call__(self, images: pa.Table) -> pa.Table:
        names = images["image"].to_pylist()
        try:
            rows = self._rows(names) if self._killed(f"from {names[0]}") < KILLS else None
        except Exception:
            rows = None
        if rows is None:
            # One image of them is to blame, and one by one they tell which.
            rows = [row for name in names for row in self._row(name)]
        return pa.Table.from_pylist(rows, schema=self._schema)

    def _killed(self, what: str) -> int:
        import ray

        times: int = ray.get(self._tries.begin.remote(what))
        return times

    def _survived(self, what: str) -> None:
        import ray

        ray.get(self._tries.end.remote(what))

    def _row(self, name: str) -> list[dict[str, Any]]:
        if self._killed(name) >= KILLS:
            wrong = f"{name}: its process was killed each time, such as for want of memory"
            return [{"image": name, "error": wrong}]
        try:
            rows = self._rows([name])
        except Exception as error:
            rows = [{"image": name, "error": f"{name}: {type(error).__name__}: {in_short(error)}"}]
        self._survived(name)
        return rows

    def _rows(self, names: list[str]) -> list[dict[str, Any]]:
        self._kept = []
        bulk = self._bulk
        found = predict_images(
            self._run,
            map(Path, names),
            self._engine,
            side=bulk.side,
            score=bulk.score,
            readers=READERS,
        )
        rows = [self._told(name, answer) for name, (_, answer) in zip(names, found, strict=True)]
        if bulk.outputs:
            outputs = (one.ravel() for some in self._kept for one in some)
            for row in rows:
                if "error" not in row:
                    row["outputs"] = next(outputs)
        return rows

    def _told(self, name: str, answer: Prediction | BadImageError) -> dict[str, Any]:
        if isinstance(answer, BadImageError):
            return {"image": name, "error": str(answer)}
        return {"image": name, "runtime": self._engine.runtime, **answer.to_dict()}

    def _keeping(
        self, outputs: Callable[[Tensor], NDArray[np.float32]]
    ) -> Callable[[Tensor], NDArray[np.float32]]:
        """The same function, of which what it gives is kept where it is asked for."""
        if not self._bulk.outputs:
            return outputs

        def kept(inputs_NCHW: Tensor) -> NDArray[np.float32]:
            self._kept.append(outputs(inputs_NCHW))
            return self._kept[-1]

        return kept
