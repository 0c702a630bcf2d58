"""Exact cost: the fact sheet's numbers, the convention, the verb `cost`, and no torch on the way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mobilenets.architecture import Layer, MobileNetSpec, layers_of
from mobilenets.cli.main import run
from mobilenets.cost import cost, count, format_quantity, parse_quantity

FACTS = Path(__file__).parents[2] / "shared" / "paper" / "tables.json"


@pytest.fixture(scope="module")
def facts():
    if not FACTS.exists():
        pytest.skip("the fact sheet of the paper is not beside this checkout")
    return json.loads(FACTS.read_text())


# Written out, not read from our own tables: the 16 models of Figures 4 and 5.
SIXTEEN = [
    (1.0, 224, 568_740_352, 4_231_976),
    (1.0, 192, 418_121_728, 4_231_976),
    (1.0, 160, 290_675_200, 4_231_976),
    (1.0, 128, 186_400_768, 4_231_976),
    # TF-slim's README has 317, 233, 162 and 104 million here, which its own code does not cost.
    (0.75, 224, 325_400_448, 2_585_560),
    (0.75, 192, 239_273_472, 2_585_560),
    (0.75, 160, 166_396_800, 2_585_560),
    (0.75, 128, 106_770_432, 2_585_560),
    (0.5, 224, 149_497_088, 1_331_592),
    (0.5, 192, 109_970_432, 1_331_592),
    (0.5, 160, 76_524_800, 1_331_592),
    (0.5, 128, 49_160_192, 1_331_592),
    # With a floor of 16 channels instead of 8 this would be 46,248,576 and 470,520.
    (0.25, 224, 41_030_272, 470_072),
    (0.25, 192, 30_212_608, 470_072),
    (0.25, 160, 21_059_200, 470_072),
    (0.25, 128, 13_570_048, 470_072),
]


@pytest.mark.parametrize(("width", "resolution", "mult_adds", "parameters"), SIXTEEN)
def test_the_sixteen_models(width, resolution, mult_adds, parameters):
    counted = cost(MobileNetSpec(width, resolution))
    assert (counted.mult_adds, counted.parameters) == (mult_adds, parameters)
    assert counted.flops == 2 * mult_adds


@pytest.mark.parametrize(
    ("name", "num_classes", "mult_adds", "parameters"),
    [
        # Table 4's Conv MobileNet: a lost `groups` counts this (apache/tvm#3083).
        ("1.0-224-fullconv", 1000, 4_867_293_184, 29_294_088),
        # What Table 4 prints as 4866 is without the classifier.
        ("1.0-224-fullconv", None, 4_866_269_184, 28_269_088),
        # Table 5.
        ("1.0-224-shallow", 1000, 307_323_392, 2_887_976),
        # Class counts: TensorFlow's background class, CIFAR-10 and CIFAR-100, Stanford Dogs.
        ("1.0-224", 1001, 568_741_376, 4_233_001),
        ("1.0-224", 10, 567_726_592, 3_217_226),
        ("1.0-224", 100, 567_818_752, 3_309_476),
        ("1.0-224", 120, 567_839_232, 3_329_976),
        ("0.75-224", 120, 324_724_608, 1_908_840),
        # The body alone.
        ("1.0-224", None, 567_716_352, 3_206_976),
        # Small images by total stride; kuangliu/pytorch-cifar starts at stride 1, BSConv at 8.
        ("1.0-32", 1000, 12_610_048, 4_231_976),
        ("1.0-32", 10, 11_596_288, 3_217_226),
        ("1.0-32-s16", 10, 46_354_432, 3_217_226),
        ("1.0-32-s8", 10, 175_556_608, 3_217_226),
        ("1.0-32-s4", 10, 611_559_424, 3_217_226),
        # Visual wake words of MLPerf Tiny.
        ("0.25-96", 2, 7_489_664, 213_586),
        # timm's mobilenetv1_125.
        ("1.25-224", 1000, 879_516_800, 6_270_840),
    ],
)
def test_other_members_of_the_family(name, num_classes, mult_adds, parameters):
    counted = cost(MobileNetSpec.parse(name), num_classes)
    assert (counted.mult_adds, counted.parameters) == (mult_adds, parameters)


def test_the_misprinted_stride_is_not_what_we_count():
    # tensorflow/models#1997: with Table 1's last stride of 2, the map would be 4x4.
    literal = [
        {"block13.depthwise": (4, 4), "block13.pointwise": (4, 4)}.get(row.name, row.out_size)
        for row in layers_of(MobileNetSpec())
    ]
    counted = cost(MobileNetSpec())
    wrong = sum(
        row.weights * size[0] * size[1] for row, size in zip(counted.layers, literal, strict=True)
    )
    assert wrong == 533_833_216
    assert counted.mult_adds == 568_740_352


def test_every_convention_for_parameters():
    counted = cost(MobileNetSpec())
    # Table 2's base: no bias, no batch norm.
    assert counted.weights == 4_209_088
    assert counted.parameters_without_batch_norm == 4_210_088
    assert counted.parameters == 4_231_976
    assert counted.parameters_keras == 4_253_864
    # OpenVINO's Caffe model has 4.221M, its TensorFlow model of 1,001 classes 4.222M.
    assert counted.parameters_folded == 4_221_032
    assert cost(MobileNetSpec(), 1001).parameters_folded == 4_222_057
    assert cost(MobileNetSpec(), None).weights == 3_185_088


@pytest.mark.parametrize(
    ("width", "keras"), [(1.0, 4_253_864), (0.75, 2_601_976), (0.5, 1_342_536), (0.25, 475_544)]
)
def test_keras_counts(width, keras):
    assert cost(MobileNetSpec(width)).parameters_keras == keras


@pytest.mark.parametrize(
    ("kind", "mult_adds", "weights", "percent_of_mult_adds", "percent_of_weights"),
    [
        ("pointwise", 539_492_352, 3_139_584, 94.86, 74.59),
        ("depthwise", 17_385_984, 44_640, 3.06, 1.06),
        # Printed as 1.19.
        ("conv", 10_838_016, 864, 1.91, 0.02),
        ("linear", 1_024_000, 1_024_000, 0.18, 24.33),
    ],
)
def test_table_2_by_type(kind, mult_adds, weights, percent_of_mult_adds, percent_of_weights):
    whole = cost(MobileNetSpec())
    part = whole.by_type()[kind]
    assert (part.mult_adds, part.weights) == (mult_adds, weights)
    assert round(100 * part.mult_adds / whole.mult_adds, 2) == percent_of_mult_adds
    assert round(100 * part.weights / whole.weights, 2) == percent_of_weights


def test_the_types_add_up():
    whole = cost(MobileNetSpec())
    parts = whole.by_type().values()
    assert sum(part.mult_adds for part in parts) == whole.mult_adds
    assert sum(part.parameters for part in parts) == whole.parameters
    # A network of full convolutions has no depthwise ones, rather than zero of them.
    assert list(cost(MobileNetSpec(variant="fullconv")).by_type()) == ["conv", "linear"]


@pytest.mark.parametrize(
    ("rows", "mult_adds", "weights"),
    [
        # Table 3: one layer, 512 to 512 on 14x14, full and separable.
        ([("conv", 512, 512, 3, 1, 14)], 462_422_016, 2_359_296),
        (
            [("depthwise", 512, 512, 3, 512, 14), ("pointwise", 512, 512, 1, 1, 14)],
            52_283_392,
            266_752,
        ),
        (
            [("depthwise", 384, 384, 3, 384, 14), ("pointwise", 384, 384, 1, 1, 14)],
            29_578_752,
            150_912,
        ),
        (
            [("depthwise", 384, 384, 3, 384, 10), ("pointwise", 384, 384, 1, 1, 10)],
            15_091_200,
            150_912,
        ),
        # Groups between one and all: AlexNet's second layer.
        ([("conv", 96, 256, 5, 2, 27)], 223_948_800, 307_200),
    ],
)
def test_any_rows_are_counted(rows, mult_adds, weights):
    counted = count(
        Layer(
            name=f"{kind}{position}",
            type=kind,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel=kernel,
            groups=groups,
            in_size=(size, size),
            out_size=(size, size),
        )
        for position, (kind, in_channels, out_channels, kernel, groups, size) in enumerate(rows)
    )
    assert (counted.mult_adds, counted.weights) == (mult_adds, weights)
    assert counted.parameters == weights


def test_a_kernel_need_not_be_square():
    row = Layer(name="conv", type="conv", in_channels=2, out_channels=3, kernel=(1, 7), bias=True)
    assert count([row]).weights == 42
    assert count([row]).parameters == 45


def test_nothing_to_count_is_said():
    with pytest.raises(ValueError, match="no layers to count"):
        count([])


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        # Block 1's pointwise convolution reads 112x112x32 and writes 112x112x64.
        ("1.0-224", 112 * 112 * (32 + 64)),
        ("0.5-160", 80 * 80 * (16 + 32)),
        # A first stride of 1 keeps the whole side.
        ("1.0-32-s16", 32 * 32 * (32 + 64)),
        ("1.0-32", 16 * 16 * (32 + 64)),
    ],
)
def test_the_activation_peak_by_hand(name, peak):
    counted = cost(MobileNetSpec.parse(name))
    assert counted.activation_peak == peak
    written = counted.to_dict()
    assert written["activation_peak_bytes_fp32"] == 4 * peak
    assert written["activation_peak_bytes_int8"] == peak


def test_bytes_by_hand():
    counted = cost(MobileNetSpec())
    assert counted.bytes_fp32 == 4 * 4_221_032 == 16_884_128
    # One byte a weight; for 10,944 channels and 1,000 classes an int32 bias and a float32 scale.
    assert counted.bytes_int8 == 4_209_088 + 8 * (10_944 + 1_000) == 4_304_640


def test_resolution_changes_work_but_no_parameters():
    small, large = cost(MobileNetSpec(1.0, 128), None), cost(MobileNetSpec(1.0, 224), None)
    assert small.parameters == large.parameters
    # The body's work grows with the area exactly, as all these sizes halve evenly.
    assert small.mult_adds * 49 == large.mult_adds * 16


def test_agrees_with_the_fact_sheet(facts):
    for row in facts["fig4_fig5_16_models"]:
        spec = MobileNetSpec(row["alpha"], row["res"])
        counted = cost(spec)
        assert counted.mult_adds == row["macs_exact"]
        assert cost(spec, None).mult_adds == row["body_macs"]
        assert counted.parameters_without_batch_norm == row["params_nobn"]
        assert counted.parameters == row["params_train"]
        assert counted.parameters_keras == row["params_keras"]


def test_every_layer_agrees_with_the_fact_sheet(facts):
    rows = facts["table1"]["layers"]
    body = cost(MobileNetSpec(), None).layers
    assert [(r.mult_adds, r.weights, r.layer.stride, r.layer.out_size) for r in body] == [
        (row["macs"], row["params"], row["stride"], (row["h_out"], row["h_out"])) for row in rows
    ]


@pytest.mark.parametrize(
    ("table", "position", "name", "num_classes"),
    [
        ("table4", 0, "1.0-224-fullconv", 1000),
        ("table4", 2, "1.0-224", 1000),
        ("table5", 0, "0.75-224", 1000),
        ("table5", 1, "1.0-224-shallow", 1000),
        ("table9", 0, "0.5-160", 1000),
        ("table10", 1, "1.0-224", 120),
        ("table10", 2, "0.75-224", 120),
        ("table10", 3, "1.0-192", 120),
        ("table10", 4, "0.75-192", 120),
    ],
)
def test_tables_agree_with_the_fact_sheet(facts, table, position, name, num_classes):
    row = facts[table][position]
    spec = MobileNetSpec.parse(name)
    counted = cost(spec, num_classes)
    assert counted.mult_adds == row["macs"]["exact"]
    assert cost(spec, None).mult_adds == row["macs_body_only"]
    assert counted.parameters_without_batch_norm == row["params_nobn"]["exact"]
    assert counted.parameters == row["params_train"]["exact"]
    assert counted.parameters_keras == row["params_keras"]


# Quantities


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("150M", 150e6),
        ("2.5k", 2500),
        # People write K.
        ("2.5K", 2500),
        ("1G", 1e9),
        ("3MB", 3e6),
        ("512KiB", 524_288),
        ("1MiB", 1_048_576),
        ("1000000", 1e6),
        (" 3 MB ", 3e6),
        ("100B", 100),
    ],
)
def test_quantities_are_read(text, value):
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text",
    # Nothing, no number, not above 0, a decimal comma, a milli for a mega, a unit alone, two.
    ["", "many", "0", "0M", "-1M", "1,5M", "150m", "M", "1 M M", "nan", "inf", "1e6", "150MHz"],
)
def test_a_wrong_quantity_gets_one_line(text):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        parse_quantity(text, "--max-bytes")
    assert str(caught.value) == (
        f"--max-bytes must be a number above 0 such as 150M, 2.5k or 3MB, not {text!r}"
    )


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (568_740_352, "", "568.7M"),
        (5_326_368, "B", "5.33MB"),
        (470_072, "", "470.1k"),
        (4_867_293_184, "", "4.87G"),
        (1000, "", "1.00k"),
        (999, "", "999"),
        (0, "", "0"),
        # Rounded up, it is the next prefix: not 1000.0k.
        (999_949, "", "999.9k"),
        (999_960, "", "1.00M"),
        (999_960_000, "B", "1.00GB"),
    ],
)
def test_quantities_are_written(value, unit, text):
    assert format_quantity(value, unit) == text


# The verb


def test_the_verb_writes_json(capsys):
    assert run(["cost", "0.5-160", "1.0-32-s16", "--num-classes", "10", "--json"]) == 0
    small, cifar = json.loads(capsys.readouterr().out)
    assert (small["model"], small["num_classes"]) == ("0.5-160", 10)
    assert small["parameters"] == 823_722
    assert cifar["mult_adds"] == 46_354_432
    # Lyken17/pytorch-OpCounter#37: both, by name.
    assert cifar["flops"] == 2 * cifar["mult_adds"]
    assert len(cifar["layers"]) == 28
    assert sum(row["mult_adds"] for row in cifar["layers"]) == cifar["mult_adds"]
    assert sum(row["parameters"] for row in cifar["by_type"].values()) == cifar["parameters"]
    assert cifar["layers"][0] == {
        "name": "conv0",
        "type": "conv",
        "in_channels": 3,
        "out_channels": 32,
        "in_size": [32, 32],
        "out_size": [32, 32],
        "stride": 1,
        "mult_adds": 864 * 32 * 32,
        "flops": 2 * 864 * 32 * 32,
        "parameters": 928,
        "activations": 32 * 32 * 35,
    }


def test_the_verb_prints_both_counts_by_name_and_the_convention(capsys):
    assert run(["cost", "1.0-224"]) == 0
    out = capsys.readouterr().out
    for expected in ("mult-adds", "568,740,352", "FLOPs", "1,137,480,704", "4,231,976"):
        assert expected in out
    assert "no bias, batch norm, activation or pooling" in out
    assert "block1.depthwise" not in out


def test_the_verb_prints_layers_on_request(capsys):
    assert run(["cost", "1.0-224", "--layers"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "block13.depthwise" in line]
    assert len(lines) == 1
    assert "7x7x1024" in lines[0]
    assert "451,584" in lines[0]
    # Table 2, with the misprint corrected.
    assert "by layer type" in out
    assert "94.86" in out
    assert "1.91" in out


@pytest.mark.parametrize(
    ("options", "parameters", "mult_adds"),
    [
        (["0.35-224"], 765_881, None),
        (["0.35-224", "--rounding", "divisible8"], 763_752, None),
        # Table 14's 286M for 1.0-160 is a grey body with a 128-d embedding.
        (["1.0-160", "--input-channels", "1", "--num-classes", "128"], 3_337_600, 286_095_872),
        # Keras' padding ends at 9x9 for 300 pixels, the others at 10x10.
        (["1.0-300"], 4_231_976, 1_056_230_336),
        (["1.0-300", "--padding", "keras"], 4_231_976, 964_167_232),
    ],
)
def test_the_options_of_the_verb(options, parameters, mult_adds, capsys):
    assert run(["cost", *options, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["parameters"] == parameters
    if mult_adds:
        assert row["mult_adds"] == mult_adds


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["0,5-160"], "write 0.5"),
        (["mobilenet_v1_0.50_160"], "such as 0.5-160"),
        (["0-224"], "width must be a number above 0"),
        (["0.5-160", "--rounding", "up"], "rounding must be one of slim, keras, divisible8"),
        (["0.5-160", "--padding", "same"], "padding must be one of torch, tensorflow, keras"),
        (["1.0-17", "--padding", "keras"], "use at least 31 pixels a side"),
    ],
)
def test_wrong_input_ends_with_2_and_one_line(arguments, says, capsys):
    assert run(["cost", *arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mobilenets: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err


@pytest.mark.parametrize("arguments", [[], ["0.5-160", "--num-classes", "0"], ["0.5-160", "--x"]])
def test_wrong_usage_ends_with_2(arguments, capsys):
    assert run(["cost", *arguments]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["cost", "1.0-224"],
        ["cost", "1.0-224", "--layers"],
        ["cost", "1.0-224", "--json"],
        ["pick", "--max-mult-adds", "150M"],
        ["pick", "--any", "--max-mult-adds", "150M"],
        ["paper"],
        ["paper", "table", "4"],
        ["--help"],
        ["train", "--help"],
        ["--version"],
        # An error must be as quick as an answer.
        ["cost", "0-224"],
    ],
)
def test_what_needs_no_network_starts_without_torch_and_numpy(arguments):
    program = (
        "import sys; from mobilenets.cli.main import run; code = run(sys.argv[1:]); "
        "heavy = {'torch', 'torchvision', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules); "
        "print(code, sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    code = 2 if arguments == ["cost", "0-224"] else 0
    assert done.stdout.splitlines()[-1] == f"{code} []"
