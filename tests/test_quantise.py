"""Fine-tuning while rounding: a run like any other comes out, and int8 takes less from it."""

import json

import pytest
import torch

from mobilenets.cli.main import run as cli
from mobilenets.deploy.awareness import unfolded
from mobilenets.deploy.evidence import find_calibration
from mobilenets.deploy.exportable import Exportable
from mobilenets.deploy.simulate import Simulation, decibels
from mobilenets.training.run import Run

pytest.importorskip("executorch", reason="needs pip install 'mobilenets[executorch]'")


def test_folded_weights_go_back_into_the_network(digits_run):
    run = Run.load(digits_run)
    folded = Exportable.of_run(run).network
    state = unfolded(run, folded, dict(folded.named_parameters()))
    network = run.task.build_model(run.spec)
    network.load_state_dict(state)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(network.eval()(images), run.model(images), rtol=1e-4, atol=1e-4)


def noise(folder, images):
    """Signal over noise of int8 at the outputs, in decibels."""
    model = Exportable.of_run(Run.load(folder)).network
    simulation = Simulation(model, images)
    whole = simulation.outputs(images, frozenset())
    return decibels(whole, simulation.outputs(images, frozenset(simulation.layers)))


def test_a_run_comes_out_that_loses_less(digits_run, tmp_path, capsys):
    tuned = tmp_path / "tuned"
    asked = ["quantise", str(digits_run), "--output", str(tuned), "--epochs", "2", "--limit", "200"]
    assert cli([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 200
    run = Run.load(tuned)
    images = find_calibration(run, limit=64)
    assert noise(tuned, images) > noise(digits_run, images) + 1
    # Its data is known, so that it is judged and exported as the first one was.
    assert cli(["evaluate", str(tuned), "digits", "--json"]) == 0
    after = json.loads(capsys.readouterr().out)["top1"]
    assert cli(["evaluate", str(digits_run), "digits", "--json"]) == 0
    assert after > json.loads(capsys.readouterr().out)["top1"] - 0.02
    assert cli(["export", str(tuned), "--int8", "--json"]) == 0
    (bundle,) = json.loads(capsys.readouterr().out)
    assert (bundle["precision"], bundle["float_layers"]) == ("int8", [])
    assert "Trained elsewhere" in (tuned / "README.md").read_text()
    assert cli(asked) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_run_is_not_replaced_by_what_comes_of_it(digits_run, capsys):
    before = sorted(path.name for path in digits_run.iterdir())
    for output in (digits_run, digits_run / "tuned", digits_run.parent):
        assert cli(["quantise", str(digits_run), "--output", str(output), "--overwrite"]) == 2
        assert "is where the run itself lies" in capsys.readouterr().err
    assert sorted(path.name for path in digits_run.iterdir()) == before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--lr", "0"], "--lr is above 0, not 0"),
        (["--lr", "1e6"], "the outputs are no longer numbers: lower --lr from 1e+06"),
        (["--images", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_sentence(digits_run, tmp_path, capsys, wrong, says):
    output = tmp_path / "out"
    asked = ["quantise", str(digits_run), "--output", str(output), "--epochs", "1", "--limit", "64"]
    assert cli([*asked, *wrong]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mobilenets:")]
    assert len(said) == 1
    assert says in said[0]
    assert not output.exists()
