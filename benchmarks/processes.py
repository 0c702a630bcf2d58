"""Training in several processes on one machine: how it scales, what the gradients' way costs, and what a lost node does to accuracy.

    python benchmarks/processes.py [--runs runs/processes] [--parts scaling equal elastic]

Three parts, all on scikit-learn's digits; with --parts, the others stay as they are in the file, and the figures go to docs/distributed.md:

- scaling: 1, 2 and 4 processes of one thread each, gradients in fp32 and in bf16, and with batch norm that is each process's own.
  `--steps` steps of one model at one global batch size: images a second in the fastest third of them, and of the gradients their bytes a step, the
  time from the first bucket that goes to the last that is there, and how much of it passed while the
  backward pass went on (PyTorch's own clock of DistributedDataParallel).
- equal: one training in 1, 2 and 4 processes, and with gradients in bf16: its figures, and how far the weights are from those of one process;
  beside it one process on two threads, which differs by rounding alone.
- elastic: `--seeds` trainings that nobody disturbs; then, with the first five of these seeds, two agents (`torchrun --nnodes 1:2`), of which
  the one that does not host the rendezvous is killed with its process in the middle of an epoch. Top-1 is that of the test split.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from mobilenets import tasks
from mobilenets.training.begin import Wanted, begin
from mobilenets.training.device import provenance
from mobilenets.training.processes import processes
from mobilenets.training.session import Session
from mobilenets.training.stages import Stages
from verb import mobilenets

COUNTS = (1, 2, 4)
WAYS: tuple[dict[str, object], ...] = (
    {"reduce_in": "fp32", "sync_batch_norm": True},
    {"reduce_in": "bf16", "sync_batch_norm": True},
    {"reduce_in": "fp32", "sync_batch_norm": False},
)
WINDOWS = 3
PARTS = ("scaling", "equal", "elastic")
LARGE = ["--model", "0.5-32-s8", "--set", "batch_size=64"]
SMALL = ["digits", "--model", "0.25-8-s4-shallow", "--set", "batch_size=64", "--device", "cpu"]
EPOCHS = 12
# A new network with batch norm magnifies rounding, at usual rates until runs are as far apart as seeds. Masks of dropout are
# drawn by each process for its own images.
GENTLE = [
    "optimizer.lr=0.001",
    "schedule.name=constant",
    "schedule.warmup=0",
    "growth=null",
    "dropout=0",
]
GENTLE_EPOCHS = 4
# Processes, threads of each, gradients.
EQUAL = ((1, 1, "fp32"), (1, 2, "fp32"), (2, 1, "fp32"), (4, 1, "fp32"), (2, 1, "bf16"))
KILLED = 5
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def torchrun(count: int, *arguments: object, threads: int = 1) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", str(count), *map(str, arguments)]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout


def steps(folder: Path, count: int, choices: dict[str, object]) -> None:
    """Some steps in one of several processes; the first of them writes what they took."""
    with processes(torch.device("cpu")) as (mine, device):
        changes = {"batch_size": 64, **choices}
        wanted = Wanted(data="digits", model="0.5-32-s8", output=folder, changes=changes)
        job = begin(tasks.find("classification"), wanted, mine, device)
        mine.wait()
        session = Session(job.run, job.data, job.recipe, device, mine, None)
        batches = job.data.train.batches(1, 0, mine.shard)
        for _ in range(3):
            session.step(next(batches), 0.01, Stages())
        speeds = []
        for _ in range(WINDOWS):
            mine.wait()
            started, images = time.perf_counter(), 0
            for _ in range(count // WINDOWS):
                batch = next(batches)
                session.step(batch, 0.01, Stages())
                images += batch.whole
            mine.wait()
            speeds.append(images / (time.perf_counter() - started))
        found: dict[str, object] = {
            "processes": mine.count,
            **choices,
            "images_per_second": max(speeds),
        }
        if mine.count > 1:
            clock = session._shared._get_ddp_logging_data()  # type: ignore[operator]
            sizes = [int(size) for size in clock["rebuilt_bucket_sizes"].split(",")]
            found |= {
                "buckets": len(sizes),
                "bytes": sum(sizes) // (2 if choices["reduce_in"] == "bf16" else 1),
                "all_reduce_ms": clock["avg_backward_comm_time"] / 1e6,
                "overlapped_ms": clock["avg_backward_compute_comm_overlap_time"] / 1e6,
                "backward_ms": clock["avg_backward_compute_time"] / 1e6,
            }
        if mine.first:
            (folder / "steps.json").write_text(json.dumps(found))


def scaling(runs: Path, count: int) -> list[dict]:
    rows = []
    for number in COUNTS:
        for way in WAYS if number > 1 else WAYS[:1]:
            folder = runs / "steps"
            shutil.rmtree(folder, ignore_errors=True)
            torchrun(number, __file__, "--worker", folder, json.dumps(way), "--steps", count)
            row = json.loads((folder / "steps.json").read_text())
            row["scaling"] = row["images_per_second"] / (rows or [row])[0]["images_per_second"]
            print(row, flush=True)
            rows.append(row)
    return rows


def equal(runs: Path) -> list[dict]:
    rows = []
    for number, threads, reduce_in in EQUAL:
        folder = runs / f"equal-{number}-{threads}-{reduce_in}"
        shutil.rmtree(folder, ignore_errors=True)
        train = ["train", *SMALL, "--epochs", GENTLE_EPOCHS, "--output", folder, "--json"]
        for change in (*GENTLE, f"reduce_in={reduce_in}"):
            train += ["--set", change]
        answer = json.loads(torchrun(number, "-m", "mobilenets", *train, threads=threads))
        row = {"processes": number, "threads": threads, "reduce_in": reduce_in}
        row["val_loss"] = answer["loss"]
        row |= {"val_top1": answer["top1"], "distance": distance(runs / "equal-1-1-fp32", folder)}
        print(row, flush=True)
        rows.append(row)
    return rows


def distance(folder: Path, other: Path) -> float:
    """The largest relative distance of a layer's weights between two runs."""
    one, two = (load_file(f / "last" / "model.safetensors") for f in (folder, other))
    return max(
        float((value - two[key]).norm() / value.norm())
        for key, value in one.items()
        if key.endswith("weight")
    )


def test_top1(folder: Path) -> float:
    return mobilenets("evaluate", folder, "digits", "--split", "test", "--device", "cpu")["top1"]


def undisturbed(folder: Path, seed: int) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    mobilenets("train", *SMALL, "--epochs", EPOCHS, "--seed", seed, "--output", folder)
    return test_top1(folder)


def disturbed(folder: Path, seed: int) -> dict:
    """Two agents, one killed in the third epoch."""
    shutil.rmtree(folder, ignore_errors=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [start_agent(folder, seed, port, is_host) for is_host in (1, 0)]
    host, other = agents
    try:
        before = standing(folder)
        while before["epoch"] < 3 or not before["position"]:
            if host.poll() is not None or other.poll() is not None:
                sys.exit("training ended before an agent was killed")
            time.sleep(0.01)
            before = standing(folder)
        for children in Path(f"/proc/{other.pid}/task").glob("*/children"):
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
        other.kill()
        killed = time.monotonic()
        while standing(folder)["step"] <= before["step"] + 1 and host.poll() is None:
            time.sleep(0.05)
        seconds = time.monotonic() - killed
        if host.wait():
            sys.exit(f"the agent that was left ended with {host.returncode}")
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    after = standing(folder)
    return {
        "seed": seed,
        "killed_in_epoch": before["epoch"],
        "killed_after_step": before["step"],
        "steps": after["step"],
        "seconds_until_it_went_on": round(seconds, 1),
        "test_top1": test_top1(folder),
    }


def start_agent(folder: Path, seed: int, port: int, is_host: int) -> subprocess.Popen[bytes]:
    conf = f"is_host={is_host},last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=2"
    command = [*TORCHRUN, "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    command += ["--rdzv-id", "benchmark", "--rdzv-conf", conf, "-m", "mobilenets", "train", *SMALL]
    command += ["--epochs", str(EPOCHS), "--seed", str(seed), "--save-every", "0.2"]
    return subprocess.Popen([*command, "--restartable", "--output", folder])


def standing(folder: Path) -> dict:
    try:
        return torch.load(folder / "state.pt", weights_only=True)["standing"]
    except FileNotFoundError:
        return {"epoch": 0, "position": 0, "step": 0}


def elastic(runs: Path, seeds: int) -> dict:
    straight = [undisturbed(runs / f"straight-{seed}", seed) for seed in range(seeds)]
    print(straight, flush=True)
    killed = []
    for seed in range(min(seeds, KILLED)):
        killed.append(disturbed(runs / f"killed-{seed}", seed))
        print(killed[-1], flush=True)
    return {
        "undisturbed": straight,
        "mean": statistics.fmean(straight),
        "deviation": statistics.stdev(straight),
        "killed": killed,
    }


def measured(content: dict) -> str:
    """What docs/distributed.md says of the figures."""
    equal, elastic = content["equal"], content["elastic"]
    lines = [
        f"`{content['command']}`, on {content['machine']}, gloo over the loopback ([figures](results/processes.json)). "
        "Four processes share two cores.",
    ]
    if "scaling" in content:
        lines += [
            "",
            "A step of 0.5-32-s8 on 64 images of 32 x 32 pixels. The last columns are of the gradients: megabytes a step, milliseconds from the "
            "first bucket that goes to the last that is there, waiting for the other processes included, and how many of these the backward pass hid.",
            "",
            "| processes | gradients in | batch norm | images/s | times one process | MB | ms | hidden, ms |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in content["scaling"]["rows"]:
            norm = "over all" if row["sync_batch_norm"] else "each its own"
            line = f"| {row['processes']} | {row['reduce_in']} | {norm} | {row['images_per_second']:.0f} | {row['scaling']:.2f} |"
            if row["processes"] > 1:
                line += f" {row['bytes'] / 1e6:.1f} | {row['all_reduce_ms']:.0f} | {row['overlapped_ms']:.0f} |"
            else:
                line += " | | |"
            lines.append(line)
    lines += [
        "",
        f"A training of digits (`{equal['arguments']}`, {equal['epochs']} epochs) at a rate of 0.001 and without dropout, and how far a layer's weights "
        "are at most from those of one process. Steps are the same up to rounding, which a new network with batch norm magnifies: one process on two "
        "threads, which adds in another order and does nothing else, comes out as far away as several processes do.",
        "",
        "| processes | threads each | gradients in | val loss | val top-1, % | distance |",
        "|---|---|---|---|---|---|",
    ]
    for row in equal["rows"]:
        lines.append(
            f"| {row['processes']} | {row['threads']} | {row['reduce_in']} | {row['val_loss']:.4f} | {100 * row['val_top1']:.2f} | {row['distance']:.5f} |"
        )
    straight = [100 * value for value in elastic["undisturbed"]]
    lines += [
        "",
        f"With {len(straight)} seeds and nobody to disturb it reaches {100 * elastic['mean']:.2f} ± {100 * elastic['deviation']:.2f} % of the test "
        f"split ({min(straight):.2f} to {max(straight):.2f}). Then two agents train (`--nnodes 1:2`), and one is killed with its process in the "
        "middle of an epoch; the other goes on alone:",
        "",
        "| seed | undisturbed, % | one agent killed, % | in epoch | after step | seconds until it went on |",
        "|---|---|---|---|---|---|",
    ]
    for row in elastic["killed"]:
        lines.append(
            f"| {row['seed']} | {straight[row['seed']]:.2f} | {100 * row['test_top1']:.2f} | {row['killed_in_epoch']} | "
            f"{row['killed_after_step']} | {row['seconds_until_it_went_on']:.1f} |"
        )
    killed = [100 * row["test_top1"] for row in elastic["killed"]]
    within = sum(min(straight) <= value <= max(straight) for value in killed)
    lines += [
        "",
        f"{within} of {len(killed)} end among the seeds that nobody disturbed; on average they reach {statistics.fmean(killed):.2f} %.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/processes"))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=Path, default=Path("docs/results/processes.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/distributed.md"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        steps(Path(options.worker[0]), options.steps, json.loads(options.worker[1]))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    # See docs/distributed.md.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    options.runs.mkdir(parents=True, exist_ok=True)
    content = json.loads(options.output.read_text()) if options.output.is_file() else {}
    content["command"] = "python benchmarks/processes.py"
    if "scaling" in options.parts:
        rows = scaling(options.runs, options.steps)
        content["scaling"] = {"arguments": " ".join(LARGE), "steps": options.steps, "rows": rows}
    if "equal" in options.parts:
        rows = equal(options.runs)
        content["equal"] = {"arguments": " ".join(SMALL), "epochs": GENTLE_EPOCHS, "rows": rows}
    if "elastic" in options.parts:
        found = elastic(options.runs, options.seeds)
        content["elastic"] = {"arguments": " ".join(SMALL), "epochs": EPOCHS, **found}
    content |= provenance(torch.device("cpu"))
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    if {"equal", "elastic"} <= content.keys():
        text, heading, _ = options.page.read_text().partition("## Measured\n\n")
        options.page.write_text(text + heading + measured(content))


if __name__ == "__main__":
    main()
