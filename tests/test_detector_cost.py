"""Layer rows of detectors: figures of Table 13, known shapes, and what a name may be."""

import json
import subprocess
import sys

import pytest

from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.detector import DetectorSpec, detector_layers, levels_of
from mobilenets.cli.main import run as cli
from mobilenets.cost import cost, count


def parts(name, num_classes=90):
    """Weights and mult-adds of each part, by the first word of a layer's name."""
    found = {}
    for layer in detector_layers(DetectorSpec.parse(name), num_classes):
        found.setdefault(layer.name.split(".")[0], []).append(layer)
    return {part: (count(rows).weights, count(rows).mult_adds) for part, rows in found.items()}


def total(found, names):
    return tuple(sum(found[name][place] for name in names) for place in (0, 1))


def test_ssd300_is_that_of_the_table():
    rows = detector_layers(DetectorSpec.parse("ssd300/1.0"))
    body = [row for row in rows if row.name.startswith(("conv", "block"))]
    extra = [row for row in rows if row.name.endswith(("narrow", "wide"))]
    heads = [row for row in rows if row.name.endswith(("boxes", "scores"))]
    assert len(body) + len(extra) + len(heads) == len(rows)
    for part, weights, mult_adds in (
        (body, 3_185_088, 1_055_206_336),
        (extra, 2_220_032, 61_612_032),
        (heads, 1_386_240, 120_311_040),
    ):
        assert (count(part).weights, count(part).mult_adds) == (weights, mult_adds)
    whole = count(rows)
    assert (whole.mult_adds, whole.parameters) == (1_237_129_408, 6_819_839)
    assert sum(row.biases for row in whole.layers) == 3_135


def test_ssd300_has_three_boxes_on_the_first_map_and_six_on_the_others():
    levels = levels_of(DetectorSpec.parse("ssd300/1.0"))
    assert [level.boxes for level in levels] == [1083, 600, 150, 54, 24, 6]
    assert [level.channels for level in levels] == [512, 1024, 512, 256, 256, 128]


@pytest.mark.parametrize(
    ("name", "first", "rpn", "mult_adds"),
    [
        ("frcnn300/1.0", 896_537_536, 865_013_760, 25_224_412_096),
        ("frcnn600/1.0", 3_570_784_384, 3_460_055_040, 30_493_700_224),
    ],
)
def test_faster_rcnn_is_that_of_the_table(name, first, rpn, mult_adds):
    found = parts(name)
    stage = [part for part in found if part not in ("rpn", "block12", "block13", "scores", "boxes")]
    assert total(found, stage) == (1_598_400, first)
    assert found["rpn"] == (2_396_160, rpn)
    assert total(found, ["block12", "block13"]) == (1_586_688, 300 * 77_747_712)
    assert total(found, ["scores", "boxes"]) == (461_824, 300 * 461_824)
    counted = cost(DetectorSpec.parse(name), 90)
    assert (counted.mult_adds, counted.weights) == (mult_adds, 6_043_072)


def test_a_pyramid_shares_its_heads():
    spec = DetectorSpec.parse("ssdfpn640/1.0")
    levels = levels_of(spec)
    assert [level.size[0] for level in levels] == [80, 40, 20, 10, 5]
    heads = [row for row in detector_layers(spec) if ".boxes" in row.name or ".scores" in row.name]
    assert [len(level.shapes) for level in levels] == [6] * 5
    assert levels[0].shapes[0] == (32, 32)
    assert max(levels[-1].shapes[3]) == pytest.approx(512 * 2**0.5)
    assert len(heads) == 5 * 2 * 5
    towers = 8 * 9 * 256 * 256
    outputs = 9 * 256 * 6 * (4 + 91)
    assert count(heads).weights == towers + outputs
    places = sum(level.size[0] * level.size[1] for level in levels)
    assert count(heads).mult_adds == (towers + outputs) * places
    # Each level has batch norm of its own.
    assert sum(row.batch_norm_channels for row in count(heads).layers) == 5 * 8 * 256


@pytest.mark.parametrize("framework", ["ssd", "ssdfpn", "frcnn"])
@pytest.mark.parametrize("padding", ["torch", "tensorflow", "keras"])
@pytest.mark.parametrize("size", [33, (97, 161), 512])
def test_any_size_and_padding_leaves_something_of_every_map(framework, padding, size):
    spec = DetectorSpec(framework, MobileNetSpec(0.35, size, padding=padding))
    assert all(level.boxes for level in levels_of(spec))
    assert cost(spec, 3).mult_adds > 0


def test_layers_beyond_the_body_have_at_least_sixteen_channels():
    rows = detector_layers(DetectorSpec.parse("ssd300/0.1"))
    assert min(row.out_channels for row in rows if row.name.startswith("level")) >= 12
    assert {row.out_channels for row in rows if row.name.endswith("narrow")} == {25, 16}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ssd/1.0", "unknown detector 'ssd/1.0': a name is ssd, ssdfpn, frcnn with a side"),
        ("yolo300/1.0", "unknown detector 'yolo300/1.0'"),
        ("ssd300/1,0", "write 1.0"),
        ("ssd300/0", "width must be a number above 0"),
        ("ssd20/1.0", "ssd20/1.0 is too small: a side has at least 33 pixels"),
        ("ssd300/1.0-s8", "width must be a number above 0 and at most 16, not '1.0-s8'"),
    ],
)
def test_a_wrong_name_is_one_sentence(name, says, capsys):
    assert cli(["cost", name]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_detector_stands_on_a_plain_body():
    for body in (MobileNetSpec(1.0, 300, total_stride=16), MobileNetSpec(variant="shallow")):
        with pytest.raises(ValueError, match="a detector stands on a plain body"):
            DetectorSpec("ssd", body)


def test_cost_takes_detectors_and_classifiers_together(capsys):
    assert cli(["cost", "ssd300/1.0", "1.0-224", "ssd240x320/0.25", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["num_classes"]) for row in rows] == [
        ("ssd300/1.0", 90),
        ("1.0-224", 1000),
        ("ssd240x320/0.25", 90),
    ]
    assert [row["mult_adds"] for row in rows[:2]] == [1_237_129_408, 568_740_352]
    assert cli(["cost", "ssd300/1.0", "--num-classes", "3", "--layers"]) == 0
    said = capsys.readouterr().out
    assert "Cost with 3 classes" in said
    assert "level5.wide" in said


def test_counting_a_detector_does_not_import_torch():
    code = "import sys; from mobilenets.cli.main import run; run(['cost', 'frcnn300/1.0']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_table_13_names_what_can_be_counted(capsys):
    assert cli(["paper", "table", "13", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    counted = {
        (figure["row"], figure["column"]): figure["verdict"]
        for figure in figures
        if figure["computed"] is not None
    }
    assert len(counted) == 10
    missed = [place for place, verdict in counted.items() if verdict == "not reproduced"]
    assert missed == [("Faster-RCNN 600, VGG", "mult-adds")]
