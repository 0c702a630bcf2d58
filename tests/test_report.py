"""The demo from end to end with few epochs, and its page."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from mobilenets import Run, tasks
from mobilenets.cli.main import run as cli
from mobilenets.data.loaders import Batch
from mobilenets.tasks.classification.analysis import analyse
from mobilenets.tasks.classification.prediction import ClassPrediction, Guess


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The real demo on a smaller model for fewer epochs, so that it has mistakes to show."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    kind = tasks.find("classification")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobilenets.cli.demo.MODEL", "0.25-16-s8")
        short = kind.recipes()["digits"].override({"epochs": 2})
        patch.setattr(kind, "default_recipe", classmethod(lambda cls, spec, where: short))
        assert cli(["demo", "--output", str(folder)]) == 0
    return folder


class Page(HTMLParser):
    """Addresses that a page would fetch, and its text."""

    def __init__(self):
        super().__init__()
        self.addresses, self.text, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text.append(data)


def test_page_has_every_part_and_fetches_nothing(demo):
    html = (demo / "report.html").read_text()
    page = Page()
    page.feed(html)
    text = " ".join(page.text)
    for part in (
        "Learning curves",
        "Confusion matrix",
        "Worst mistakes",
        "Cost",
        "Latency and parity",
        "Go on with your own photos",
        "ONNX Runtime",
        "359 test images",
    ):
        assert part in text, part
    assert page.addresses, "mistakes are shown as pictures"
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not re.search(r"@import|url\(\s*['\"]?http", html)


def test_page_agrees_with_the_run(demo):
    run = Run.load(demo)
    _, loader, _ = run.task.open_for_evaluation(
        "digits", None, run.config["data"], on_bad_image="stop"
    )
    analysis = analyse(run.model, loader, 10)
    html = (demo / "report.html").read_text()
    assert analysis.images == 359
    assert f"{100 * analysis.top1:.2f} %" in html
    wrong = 359 - int(analysis.confusion_KK.trace())
    assert html.count("<figure>") == min(12, wrong)


def test_demo_leaves_a_run_and_an_export(demo):
    assert json.loads((demo / "onnx" / "manifest.json").read_text())["parity"]["holds"] is True
    assert Run.load(demo).predict(demo / "digit.png").label in "0123456789"


def test_demo_does_not_overwrite_unasked(demo, capsys):
    assert cli(["demo", "--output", str(demo)]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_analysis_by_hand():
    class Fixed(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)

    class OneBatch:
        def batches(self):
            logits = torch.tensor([[9.0, 0.0], [0.0, 3.0], [1.0, 2.0]])
            yield Batch(logits.reshape(3, 2, 1, 1), torch.tensor([0, 0, 0]), whole=3)

    analysis = analyse(Fixed(), OneBatch(), 2)
    assert analysis.confusion_KK.tolist() == [[1, 2], [0, 0]]
    assert [round(mistake.score, 3) for mistake in analysis.mistakes] == [0.953, 0.731]
    assert analysis.top1 == pytest.approx(1 / 3)


def test_prediction_reads_and_draws():
    from PIL import Image

    prediction = ClassPrediction((Guess("bee", 1, 0.9), Guess("ant", 0, 0.1)))
    assert str(prediction) == "bee 90.0 %, ant 10.0 %"
    assert (prediction.label, prediction.score) == ("bee", 0.9)
    image = Image.new("L", (100, 80), 255)
    drawn = prediction.draw(image)
    assert drawn.mode == "RGB"
    assert drawn.size == image.size
    assert drawn.getpixel((1, 78)) != (255, 255, 255)
    assert image.getpixel((1, 78)) == 255
