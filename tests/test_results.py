"""The figures of the documentation are those of the JSON files that their commands wrote."""

import doctest
import importlib
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from mobilenets.reproduce.experiments import Scale, experiments, to_dict
from mobilenets.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
CLAIMS = sorted(RESULTS.glob("reproduce/*.json"))
STUDIES = sorted(RESULTS.glob("cifar10/*/*.json"))


def test_the_page_says_what_the_files_say():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "results_page.py", "--check"], check=False
    )
    assert done.returncode == 0, "run: python benchmarks/results_page.py"


def test_every_picture_and_file_of_the_page_is_there():
    page = (ROOT / "docs" / "results.md").read_text()
    targets = re.findall(r"\]\((results/[^)#]+)\)", page)
    assert targets
    for target in targets:
        assert (ROOT / "docs" / target).is_file(), target


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_result_can_be_made_again(path):
    """Command, recipe, seed, machine, versions and date; figures that agree with the curve."""
    result = json.loads(path.read_text())
    assert result["command"].startswith("mobilenets train ")
    assert f"--seed {result['seed']}" in result["command"]
    assert f"--model {result['model']}" in result["command"]
    recipe = Recipe.model_validate(result["recipe"])
    assert recipe.seed == result["seed"]
    # Of two values for one choice the later one holds.
    changes = dict(re.findall(r"--set ([^\s=]+)=(\S+)", result["command"]))
    assert recipe.override(changes) == recipe
    assert result["machine"]
    assert result["versions"]["torch"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    assert "JPEG" in result["data"]
    curve = result["curve"]
    assert len({len(values) for values in curve.values()}) == 1
    assert max(curve["val/top1"]) == pytest.approx(result["val_top1"], abs=1e-5)
    assert curve["val/top1"][curve["epoch"].index(result["best_epoch"])] == max(curve["val/top1"])
    assert curve["seconds"][-1] == pytest.approx(result["seconds"], abs=1)
    if "test" in result:
        confusion, test = result["test"]["confusion"], result["test"]
        assert test["images"] == sum(map(sum, confusion)) == 10_000
        right = sum(row[i] for i, row in enumerate(confusion))
        assert test["top1"] == pytest.approx(right / test["images"])
        assert sum(row["images"] for row in test["reliability"]) == test["images"]


@pytest.mark.parametrize("path", CLAIMS, ids=lambda path: path.stem)
def test_verdicts_are_those_of_the_trials(path):
    stored = json.loads(path.read_text())
    experiment = experiments(Scale(**stored["scale"]))[path.stem]
    top1 = {
        model: [
            100 * json.loads(trial.read_text())["test_top1"]
            for trial in sorted(RESULTS.glob(f"reproduce/trials/{model}-seed*.json"))
        ]
        for model in experiment.models
    }
    assert {len(values) for values in top1.values()} == {stored["scale"]["seeds"]}
    assert to_dict(experiment, top1).items() <= stored.items()


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("detection/*.json")), ids=lambda path: path.stem
)
def test_every_figure_of_detection_can_be_made_again(path):
    result = json.loads(path.read_text())
    assert re.match(r"(python benchmarks/detection\.py|mobilenets train) ", result["command"])
    assert result["machine"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    if "curve" in result:
        assert len({len(values) for values in result["curve"].values()}) == 1
        best = max(result["curve"]["val/map"])
        place = result["curve"]["val/map"].index(best)
        assert result["curve"]["val/map50"][place] == pytest.approx(result["val_map50"], abs=1e-5)


TILES = sorted(RESULTS.glob("geolocation/*-[0-9].json"))


@pytest.mark.parametrize("path", TILES, ids=lambda path: path.stem)
def test_tiles_are_placed_better_than_without_a_network(path):
    """At 750 and 2,500 km, by more than either interval tells."""
    result = json.loads(path.read_text())
    assert (
        f"seed{'s' if result['name'] == 'coordinates' else ''} {result['seed']}"
        in result["command"]
    )
    assert result["test"]["images"] == 2000
    assert result["machine"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    if result["name"] == "coordinates":
        return
    baselines = json.loads((RESULTS / "geolocation" / "baselines.json").read_text())["rows"]
    for name, baseline in baselines[result["tiles"]].items():
        for scale in ("within_750km", "within_2500km"):
            low, high = result["test"]["intervals"][scale]
            assert low < result["test"][scale] < high
            assert low > baseline["intervals"][scale][1], (name, scale)


def test_the_model_of_training_time_keeps_its_worked_values(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    failed, attempted = doctest.testmod(importlib.import_module("scale_model"))
    assert attempted
    assert not failed


def test_the_page_on_scale_says_what_its_file_says():
    result = json.loads((RESULTS / "scale.json").read_text())
    page = (ROOT / "docs" / "scale.md").read_text()
    assert result["machine"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    for plan in result["curve"].values():
        for slow, middle, fast in zip(*plan["rows"].values(), strict=True):
            step = middle["step"]
            parts = [step[name] for name in ("compute", "data", "stragglers", "collective")]
            assert sum(parts) == pytest.approx(step["seconds"], rel=0.01)
            cells = [f"{middle['gpus']}", f"{middle['batch']}", *(f"{part:.1f}" for part in parts)]
            cells += [f"{row['hours']:.2f}" for row in (slow, middle, fast)]
            assert f"| {' | '.join(cells)} |" in page
    for row in result["check"]:
        assert row["error"] == pytest.approx(row["simulated"] / row["measured"] - 1, abs=2e-3)
        cells = [row["model"], f"{row['processes']}", f"{row['measured']:.1f}"]
        cells += [f"{row['simulated']:.1f}", f"{100 * row['error']:+.0f} %"]
        assert f"| {' | '.join(cells)} |" in page


def test_the_page_of_several_machines_says_what_was_measured():
    measured = json.loads((RESULTS / "processes.json").read_text())
    page = (ROOT / "docs" / "distributed.md").read_text()
    for row in measured.get("scaling", {"rows": []})["rows"]:
        own = "over all" if row["sync_batch_norm"] else "each its own"
        line = f"| {row['processes']} | {row['reduce_in']} | {own} | {row['images_per_second']:.0f} | {row['scaling']:.2f} |"
        if row["processes"] > 1:
            line += f" {row['bytes'] / 1e6:.1f} | {row['all_reduce_ms']:.0f} | {row['overlapped_ms']:.0f} |"
        assert line in page, line
    for row in measured["equal"]["rows"]:
        line = f"| {row['processes']} | {row['threads']} | {row['reduce_in']} | {row['val_loss']:.4f} | {100 * row['val_top1']:.2f} | {row['distance']:.5f} |"
        assert line in page, line
        if row["reduce_in"] == "fp32":
            # As far as another order of adding puts one process from itself.
            assert row["distance"] < 1.5 * measured["equal"]["rows"][1]["distance"]
    elastic = measured["elastic"]
    straight = [100 * value for value in elastic["undisturbed"]]
    for row in elastic["killed"]:
        line = f"| {row['seed']} | {straight[row['seed']]:.2f} | {100 * row['test_top1']:.2f} | {row['killed_in_epoch']} | {row['killed_after_step']} | {row['seconds_until_it_went_on']:.1f} |"
        assert line in page, line
    # A lost node costs no more accuracy, on average, than another seed may.
    killed = statistics.fmean(100 * row["test_top1"] for row in elastic["killed"])
    assert abs(killed - statistics.fmean(straight)) < statistics.stdev(straight)
    assert f"{100 * elastic['mean']:.2f} ± {100 * elastic['deviation']:.2f} %" in page


def test_the_page_of_shards_says_what_was_measured():
    measured = json.loads((RESULTS / "shards.json").read_text())
    page = (ROOT / "docs" / "shards.md").read_text()
    speeds = measured["throughput"]["images_per_second"]
    whole = statistics.median(speeds["memory"])
    assert f"| memory | {whole:.0f} | |" in page
    names = {"tar": "tar files", "parquet": "Parquet shards", "server": "a web server on loopback"}
    for source, share in measured["throughput"]["of_memory"].items():
        speed = statistics.median(speeds[source])
        assert share == pytest.approx(speed / whole, abs=1e-3)
        row = next(line for line in page.splitlines() if line.startswith(f"| {names[source]}"))
        assert row.endswith(f"| {speed:.0f} | {100 * share:.0f} % |")
    by_window = {}
    for row in measured["mixing"]:
        by_window.setdefault(row["window"], []).append(row["distance"])
    for window, distances in by_window.items():
        name = "all" if window == measured["shards"] else window
        assert f"| {name} | {' | '.join(f'{distance:.3f}' for distance in distances)} |" in page
