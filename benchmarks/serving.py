"""How many images a second `mobilenets serve` answers for, against the network alone and against `predict`.

    python benchmarks/serving.py --shared SHARED [--seconds 60] [--clients 64]

SHARED holds the ImageNet weights of 1.0-224 and 0.25-128 and `data/imagenet_samples.tar`. For each model a server is
started as a process, and clients in one more process each keep a connection over loopback and ask for the next photo as soon
as they have an answer: the same machine does both, so what the clients cost is in the figures. Before and after it, in turns, the
same engine is timed on a batch of noise, as `benchmark` does, and on the photos from files, as `predict` does; the quicker of the two counts. Written to
docs/results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from exports import PUBLISHED, run_of, samples
from mobilenets.deploy.bundle import export
from mobilenets.deploy.evidence import find_evidence
from mobilenets.deploy.predictor import find_engine, predict_images
from mobilenets.deploy.target import TARGETS
from mobilenets.runtimes.timing import time_calls
from mobilenets.training.device import provenance
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.run import Run

MODELS = (PUBLISHED[3], PUBLISHED[0])
# Before the counted time.
WARM_UP = 3.0


class Client(asyncio.Protocol):
    """A connection on which one request follows the other."""

    def __init__(self, load: Load, number: int) -> None:
        self.load = load
        self.place = number
        self.answer = b""
        self.asked_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        requests = self.load.requests
        self.place = (self.place + self.load.clients) % len(requests)
        self.answer, self.asked_at = b"", time.perf_counter()
        self.transport.write(requests[self.place])

    def data_received(self, data: bytes) -> None:
        self.answer += data
        head, gap, body = self.answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if not gap or length is None or len(body) < int(length[1]):
            return
        self.load.answered(head, body, self.asked_at)
        if not self.load.over.is_set():
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self.load.over.is_set():
            self.load.statuses["connection lost"] += 1


class Load:
    """What clients ask, and what they get."""

    def __init__(self, requests: list[bytes], clients: int) -> None:
        self.requests = requests
        self.clients = clients
        self.statuses: Counter[str] = Counter()
        self.milliseconds: list[float] = []
        self.counting = False
        self.over = asyncio.Event()

    def answered(self, head: bytes, body: bytes, asked_at: float) -> None:
        if not self.counting:
            return
        status = head[9:12].decode()
        if status == "200" and not body.endswith(b"]}]}"):
            status = "another answer"
        self.statuses[status] += 1
        self.milliseconds.append(1000 * (time.perf_counter() - asked_at))

    async def run(self, host: str, port: int, seconds: float) -> float:
        """Ask for so many seconds, and how long it was."""
        loop = asyncio.get_running_loop()
        connections = [
            await loop.create_connection(lambda number=number: Client(self, number), host, port)
            for number in range(self.clients)
        ]
        await asyncio.sleep(WARM_UP)
        self.counting = True
        started = time.perf_counter()
        await asyncio.sleep(seconds)
        self.counting = False
        spent = time.perf_counter() - started
        self.over.set()
        for transport, _ in connections:
            transport.close()
        return spent


def ask(port: int, paths: list[Path], clients: int, seconds: float) -> dict:
    """The load, in a process of its own."""
    requests = []
    for path in paths:
        content = path.read_bytes()
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\n"
        requests.append(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    load = Load(requests, clients)
    began = time.process_time()
    spent = asyncio.run(load.run("127.0.0.1", port, seconds))
    times = sorted(load.milliseconds)
    answered = load.statuses.pop("200", 0)
    return {
        "seconds": round(spent, 2),
        "requests": answered,
        "errors": dict(load.statuses),
        "images_per_second": round(answered / spent, 1),
        "latency_ms": {
            name: round(times[min(int(len(times) * share), len(times) - 1)], 1)
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("most", 1))
        },
        "client_cpu_share": round((time.process_time() - began) / (spent + WARM_UP), 3),
    }


class Server:
    """`mobilenets serve` as a process."""

    def __init__(self, run: Path, *options: object) -> None:
        command = [sys.executable, "-m", "mobilenets", "serve", run, "--port", "0", *options]
        self.process = subprocess.Popen(
            [*map(str, command), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stderr:
            if found := re.match(r"http://127\.0\.0\.1:(\d+)/", line):
                self.port = int(found[1])
                break
        else:
            sys.exit("the server did not start")
        # Whatever it says later must not fill a pipe that nobody empties.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
        return float(found[1])

    def memory_mb(self) -> float:
        return round(self.metric("process_resident_memory_bytes") / 1e6)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def batch_speed(engine, run: Run, batch: int, seconds: float) -> float:
    """Images a second of the network alone, as `benchmark` times it."""
    shape = (batch, 3, run.spec.height, run.spec.across)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    timing = time_calls({"batch": lambda: engine.outputs(noise)}, seconds=seconds)["batch"]
    return 1000 * batch / timing.median_ms


def predict_speed(engine, run: Run, paths: list[Path], batch: int) -> float:
    """Images a second from file to labels, as `predict` takes them."""
    started = time.perf_counter()
    for _ in predict_images(run, paths, engine, batch_size=batch):
        pass
    return len(paths) / (time.perf_counter() - started)


def measure(folder: Path, paths: list[Path], options: argparse.Namespace) -> dict:
    run = Run.load(folder)
    engine = find_engine(run, "onnxruntime", batch=options.batch)
    alone, files = [], []

    def others() -> None:
        alone.append(batch_speed(engine, run, options.batch, options.seconds / 6))
        files.append(predict_speed(engine, run, paths, options.batch))

    others()
    server = Server(
        folder, "--runtime", "onnxruntime", "--batch", options.batch, "--wait", options.wait
    )
    before_mb = server.memory_mb()
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        found = process.submit(ask, server.port, paths, options.clients, options.seconds).result()
    batches = server.metric("mobilenets_batch_images_count")
    images = server.metric("mobilenets_batch_images_sum")
    after_mb = server.memory_mb()
    ended = server.end()
    others()
    # Whatever else the machine did made the slower one slower.
    network, predict = max(alone), max(files)
    return {
        **found,
        "images_per_batch": round(images / batches, 1),
        "memory_mb": {"before": before_mb, "after": after_mb},
        "exit_code": ended,
        "network_alone": [round(speed, 1) for speed in alone],
        "predict_files": [round(speed, 1) for speed in files],
        "of_network_alone": round(found["images_per_second"] / network, 3),
        "of_predict": round(found["images_per_second"] / predict, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--wait", type=float, default=2.0)
    parser.add_argument("--only", nargs="*", default=MODELS)
    parser.add_argument("--runs", type=Path, default=Path("runs/exports"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/serving.json"))
    options = parser.parse_args()
    keep_freed_memory()
    options.runs.mkdir(parents=True, exist_ok=True)
    models = {}
    for name in options.only:
        folder = run_of(name, options.shared, options.runs)
        paths = samples(options.shared, options.runs)
        if not (folder / "onnx" / TARGETS["onnx"].file).exists():
            run = Run.load(folder)
            export(
                run,
                TARGETS["onnx"],
                folder / "onnx",
                find_evidence(run, [str(path) for path in paths[:100]], limit=100),
            )
        models[str(Run.load(folder).spec)] = found = measure(folder, paths, options)
        print(name, json.dumps(found), flush=True)
    result = {
        "command": "python benchmarks/serving.py --shared SHARED",
        "clients": options.clients,
        "seconds": options.seconds,
        "batch": options.batch,
        "wait_ms": options.wait,
        "cores": os.cpu_count(),
        "photos": len(paths),
        "photo_kb": round(statistics.fmean(path.stat().st_size for path in paths) / 1000, 1),
        "models": models,
        **provenance(torch.device("cpu")),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
