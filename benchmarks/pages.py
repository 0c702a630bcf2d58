"""How soon and how fast the page to try a run with answers in Chromium, against ONNX Runtime outside of it.

    python benchmarks/pages.py --shared SHARED [--lighthouse node_modules/.bin/lighthouse]

SHARED holds the ImageNet weights of 0.25-128 and 1.0-224 and `data/imagenet_samples.tar`. `mobilenets web` serves each page; a
browser that knows nothing of it opens it, and is given a photo at once. The network's time is the one that the page's own button
measures, on one thread, in turns with the same file in ONNX Runtime on one thread. Lighthouse, where it is installed
(`npm install lighthouse@12`), judges the try-it page and the explorer as on a desktop. Written to docs/results/pages.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from playwright.sync_api import Browser, Page, sync_playwright

from exports import PUBLISHED, run_of, samples
from mobilenets.deploy.bundle import export, folder_of
from mobilenets.deploy.evidence import find_evidence
from mobilenets.deploy.target import FLOAT, TARGETS
from mobilenets.runtimes.timing import time_calls
from mobilenets.training.device import provenance
from mobilenets.training.run import Run

MODELS = (PUBLISHED[0], PUBLISHED[3])
LOADS, TURNS, TRIES = 7, 5, 3
NOTICED = """
    window.answered = []; window.measured = [];
    document.addEventListener("answered", () => answered.push(performance.now()));
    document.addEventListener("measured", event => measured.push(event.detail.median_ms));
"""
WAIT = """async ([name, count]) => {
    while (window[name].length < count) await new Promise(resolve => setTimeout(resolve, 5));
    return window[name].at(-1);
}"""
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
# What Lighthouse gives a share of.
JUDGED = ("performance", "accessibility", "best-practices")


@contextmanager
def served(*arguments: str | Path) -> Iterator[str]:
    """A verb of ours that serves a page, and its address."""
    command = [sys.executable, "-m", "mobilenets", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        yield server.stderr.readline().split()[0]
        server.terminate()


def open_page(browser: Browser, address: str, photo: Path) -> Page:
    """The page in a browser that knows nothing of it, with the photo given."""
    context = browser.new_context()
    context.add_init_script(NOTICED)
    page = context.new_page()
    page.goto(address)
    page.set_input_files("input[type=file]", str(photo))
    return page


def first_answers(browser: Browser, address: str, photo: Path) -> dict:
    """Milliseconds to the first answer, from the beginning and from the load event."""
    begun, loaded = [], []
    for _ in range(LOADS):
        page = open_page(browser, address, photo)
        at = page.evaluate(WAIT, ["answered", 1])
        begun.append(at)
        loaded.append(at - page.evaluate(LOADED))
        page.context.close()
    return {
        "loads": LOADS,
        "ms_from_start": round(statistics.median(begun)),
        "ms_from_load": round(statistics.median(loaded)),
        "slowest_ms_from_load": round(max(loaded)),
    }


def speeds(browser: Browser, address: str, photo: Path, file: Path, shape: tuple) -> dict:
    """Milliseconds of one call in the page and outside of it, in turns."""
    page = open_page(browser, f"{address}#threads=1", photo)
    page.evaluate(WAIT, ["answered", 1])
    native = TARGETS["onnx"].open(file, threads=1)
    noise = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    inside, outside = [], []
    for turn in range(TURNS):
        page.click("#measure")
        inside.append(page.evaluate(WAIT, ["measured", turn + 1]))
        outside.append(
            time_calls({"native": lambda: native.run(noise)}, seconds=2)["native"].median_ms
        )
    state = page.locator("#state").inner_text()
    page.context.close()
    ratios = [one / other for one, other in zip(inside, outside, strict=True)]
    return {
        "state": state,
        "turns": TURNS,
        "page_ms": round(statistics.median(inside), 3),
        "native_ms": round(statistics.median(outside), 3),
        "page_frames_per_second": round(1000 / statistics.median(inside), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }


def judged(lighthouse: Path, address: str, runs: Path) -> dict[str, int]:
    """Lighthouse's shares of 100."""
    report = runs / "lighthouse.json"
    command = [
        str(lighthouse.resolve()),
        address,
        "--quiet",
        "--preset=desktop",
        f"--only-categories={','.join(JUDGED)}",
        "--output=json",
        f"--output-path={report}",
        "--chrome-flags=--headless --no-sandbox",
    ]
    environment = {**os.environ, "CHROME_PATH": shutil.which("chromium") or ""}
    # Now and then it loses its own trace.
    for _ in range(TRIES):
        if not subprocess.run(command, check=False, env=environment).returncode:
            break
    found = json.loads(report.read_text())
    return {
        "version": found["lighthouseVersion"],
        **{name: round(100 * found["categories"][name]["score"]) for name in JUDGED},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--lighthouse", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/exports"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/pages.json"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    photo = samples(options.shared, options.runs)[1]
    rows, lighthouse = [], {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name in MODELS:
            folder = run_of(name, options.shared, options.runs)
            run = Run.load(folder)
            place = folder_of(run, TARGETS["onnx"], FLOAT)
            if not place.is_dir():
                evidence = find_evidence(run, [str(photo.parent)], None, limit=32)
                export(run, TARGETS["onnx"], place, evidence)
            shape = (run.spec.input_channels, run.spec.height, run.spec.across)
            with served("web", folder) as address:
                row = {
                    "model": str(run.spec),
                    "first_answer": first_answers(browser, address, photo),
                    "speed": speeds(browser, address, photo, place / "model.onnx", shape),
                }
                if options.lighthouse and not rows:
                    lighthouse["try it"] = judged(options.lighthouse, address, options.runs)
            rows.append(row)
            print(json.dumps(row), flush=True)
        version = browser.version
        browser.close()
    if options.lighthouse:
        with served("explore") as address:
            lighthouse["explore"] = judged(options.lighthouse, address, options.runs)
        print(json.dumps(lighthouse), flush=True)
    result = {
        "command": "python benchmarks/pages.py --shared SHARED --lighthouse LIGHTHOUSE",
        "browser": f"Chromium {version}",
        "rows": rows,
        "lighthouse": lighthouse,
        **provenance(torch.device("cpu")),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
