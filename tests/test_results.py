"""The figures of the documentation are those of the JSON files that their commands wrote."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
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
    assert result["recipe"]["seed"] == result["seed"]
    assert result["machine"]
    assert result["versions"]["torch"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    assert "JPEG" in result["data"]
    curve = result["curve"]
    assert len({len(values) for values in curve.values()}) == 1
    assert max(curve["val/top1"]) == pytest.approx(result["val_top1"], abs=1e-5)
    assert curve["epoch"][curve["val/top1"].index(max(curve["val/top1"]))] == result["best_epoch"]
    assert curve["seconds"][-1] == pytest.approx(result["seconds"], abs=1)
    if "test" in result:
        confusion, test = result["test"]["confusion"], result["test"]
        assert test["images"] == sum(map(sum, confusion)) == 10_000
        right = sum(row[i] for i, row in enumerate(confusion))
        assert test["top1"] == pytest.approx(right / test["images"])
        assert sum(row["images"] for row in test["reliability"]) == test["images"]


def test_trials_agree_with_the_verdicts():
    for path in sorted(RESULTS.glob("reproduce/*.json")):
        experiment = json.loads(path.read_text())
        for row in experiment["models"]:
            trials = sorted(RESULTS.glob(f"reproduce/trials/{row['model']}-seed*.json"))
            top1 = [100 * json.loads(trial.read_text())["test_top1"] for trial in trials]
            assert row["top1"] == pytest.approx(top1, abs=0.005)
