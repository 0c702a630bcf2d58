"""The paper's tables and figures: every verdict, the drawings, and the verb."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from mobilenets.architecture import MobileNetSpec
from mobilenets.cli.main import run
from mobilenets.cost import PUBLISHED
from mobilenets.reproduce import (
    TABLES,
    VERDICTS,
    Alternative,
    Figure,
    Misprint,
    compare,
    find_table,
    verdict_counts,
)
from mobilenets.reproduce.figures import draw, points
from mobilenets.reproduce.layer_tables import body_text

FACTS = Path(__file__).parents[2] / "shared" / "paper" / "tables.json"


def figure(number, row, column, occurrence=0):
    found = [f for f in find_table(number).figures if (f.row, f.column) == (row, column)]
    return found[occurrence]


@pytest.fixture(scope="module")
def facts():
    if not FACTS.exists():
        pytest.skip("the fact sheet of the paper is not beside this checkout")
    return json.loads(FACTS.read_text())


@pytest.mark.parametrize(
    ("printed", "value", "step", "agreement"),
    [
        ("569", "568.740352", None, "match (rounded)"),
        # 290 and 76 are cut off, so that one rule for the whole paper is wrong.
        ("290", "290.6752", None, "match (truncated)"),
        ("76", "76.5248", None, "match (truncated)"),
        # Both: called rounded.
        ("149", "149.497088", None, "match (rounded)"),
        # A half rounds up.
        ("0.3", "0.25", None, "match (rounded)"),
        # Next to it on either side is no match.
        ("4866", "4867.293184", None, None),
        ("1.33", "1.320648", None, None),
        # Trailing zeros hide the precision; the step states it.
        ("15300", "15346.630656", None, None),
        ("15300", "15346.630656", "100", "match (rounded)"),
        # Zero decimals after the point are precision.
        ("64.0", "64.04", None, "match (rounded)"),
        ("64.0", "64.1", None, None),
    ],
)
def test_compare(printed, value, step, agreement):
    assert compare(printed, Fraction(value), step=step) == agreement


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({"computed": 190}, "not reproduced", "no convention tried here gives it"),
        ({"computed": None, "note": "trained"}, "not reproduced", "trained"),
        ({"computed": 119}, "match (rounded)", ""),
        # The first alternative that agrees is named; the misprint is only tried after them.
        (
            {"alternatives": (Alternative(convention="with bias", value=119),)},
            "other convention",
            "with bias: 119",
        ),
        ({"alternatives": (Alternative(convention="x", value=120),)}, "misprint", "should be 191"),
        # A misprint that the computed value does not bear out is none.
        ({"computed": 200}, "not reproduced", ""),
    ],
)
def test_verdict_follows_from_the_values(changes, verdict, reason):
    values = {"row": "r", "column": "c", "printed": "119", "computed": 191, "source": "s"}
    judged = Figure(
        **{**values, "misprint": Misprint(should_be="191", why="two digits changed"), **changes}
    )
    assert judged.verdict == verdict
    assert reason in judged.reason


@pytest.mark.parametrize(
    ("number", "row", "column", "verdict", "reason"),
    [
        # The erratum of tensorflow/models#1997.
        (1, "row 18", "type / stride", "misprint", "7x7"),
        (1, "row 16", "type / stride", "match", ""),
        (1, "text", "layers", "match (rounded)", ""),
        # 1.19 for 1.91; the other share of the same row is right.
        (2, "Conv 3x3", "mult-adds", "misprint", "1.91"),
        (2, "Conv 3x3", "parameters", "match (rounded)", "weights alone"),
        # One table, two conventions.
        (4, "Conv MobileNet", "mult-adds", "other convention", "4,866,269,184"),
        (4, "MobileNet", "mult-adds", "match (rounded)", ""),
        # Accuracies are kept with both of TensorFlow-Slim's figures, or said to have none.
        (4, "MobileNet", "ImageNet top-1", "not reproduced", "70.7 (2017-06-14) and 70.9"),
        (4, "Conv MobileNet", "ImageNet top-1", "not reproduced", "the only source"),
        (7, "1.0 MobileNet-160", "mult-adds", "match (truncated)", "as 291"),
        (8, "GoogleNet", "mult-adds", "not reproduced", "1550"),
        (8, "GoogleNet", "parameters", "not reproduced", "6.8"),
        (8, "VGG 16", "mult-adds", "other convention", "convolutions only"),
        (8, "VGG 16", "parameters", "match (rounded)", ""),
        (8, "text", "smaller than VGG 16", "match (truncated)", ""),
        (8, "text", "less compute than VGG 16", "match (rounded)", ""),
        (8, "text", "less compute than GoogleNet", "match (rounded)", ""),
        (9, "0.50 MobileNet-160", "mult-adds", "match (truncated)", "as 77"),
        (9, "0.50 MobileNet-160", "parameters", "other convention", "without batch norm"),
        (9, "Squeezenet", "mult-adds", "other convention", "FLOPs"),
        (9, "Squeezenet", "parameters", "match (rounded)", ""),
        (9, "AlexNet", "mult-adds", "match (rounded)", ""),
        (9, "AlexNet", "parameters", "match (truncated)", "as 61"),
        # "4% better", twice, is not in the table's own numbers; 22 divides FLOPs by mult-adds.
        (9, "text", "better than AlexNet", "not reproduced", "60.2 - 57.2"),
        (9, "text", "better than Squeezenet", "not reproduced", "60.2 - 57.5"),
        (9, "text", "smaller than AlexNet", "match (rounded)", ""),
        (9, "text", "less compute than AlexNet", "match (truncated)", ""),
        (9, "text", "less compute than Squeezenet", "other convention", "FLOPs"),
        # Copied from the network with 1,000 classes.
        (10, "1.0 MobileNet-224", "mult-adds", "other convention", "1,000"),
        (10, "0.75 MobileNet-192", "mult-adds", "match (rounded)", ""),
        (11, "Continent (2500 km)", "PlaNet MobileNet", "match (rounded)", "188 of 237"),
        (11, "City (25 km)", "PlaNet", "not reproduced", "75 are 31.65 %"),
        (11, "text", "parameters of PlaNet", "match (rounded)", "9,637 to 9,991"),
        (11, "text", "parameters of PlaNet", "match (rounded)", "26,263 cells would take 98.4 M"),
        (11, "text", "parameters of its MobileNet", "match (rounded)", "30.1 M"),
        (11, "text", "mult-adds of its MobileNet", "misprint", "0.58 billion is meant"),
        # A first layer of 16 channels, where Table 6 has 8.
        (12, "0.25 MobileNet-224", "mult-adds", "other convention", "45,992,576"),
        (12, "0.25 MobileNet-128", "mult-adds", "other convention", "15,017,984"),
        (12, "text", "parameters of the baseline", "misprint", "7.5"),
        (14, "1.0 MobileNet-160", "mult-adds", "other convention", "286,095,872"),
        (14, "0.75 MobileNet-128", "model", "misprint", "0.75 MobileNet-160"),
    ],
)
def test_verdicts(number, row, column, verdict, reason):
    found = figure(number, row, column)
    assert found.verdict == verdict
    assert reason in found.reason


def test_squeezenets_true_advantage_is_shown():
    assert float(figure(9, "text", "less compute than Squeezenet").computed) == pytest.approx(
        11.256, abs=1e-3
    )


@pytest.mark.parametrize(
    ("number", "counts"),
    [
        (1, {"match": 65, "match (rounded)": 1, "misprint": 1}),
        (2, {"match (rounded)": 9, "misprint": 1}),
        (3, {"match (rounded)": 8}),
        (4, {"match (rounded)": 4, "other convention": 1, "not reproduced": 2}),
        (5, {"match (rounded)": 5, "not reproduced": 2}),
        (6, {"match (rounded)": 8, "not reproduced": 4}),
        (7, {"match (rounded)": 7, "match (truncated)": 1, "not reproduced": 4}),
    ],
)
def test_every_figure_of_tables_1_to_7(number, counts):
    assert verdict_counts(find_table(number).figures) == counts


def test_every_figure_says_why_and_where():
    for table in TABLES:
        for judged in table.figures:
            assert judged.verdict in VERDICTS
            assert judged.reason
            assert judged.source.startswith("Howard et al. 2017, ")


def test_table_1_is_the_body_as_printed(facts):
    printed = [
        "|".join(f.printed for f in row)
        for row in zip(*[iter(find_table(1).figures[:66])] * 3, strict=True)
    ]
    assert printed == [
        row.replace(" (ERRATUM: s1)", "") for row in facts["table1"]["rows_as_printed"]
    ]
    assert len(facts["table1"]["layers"]) + 1 == figure(1, "text", "layers").computed


def test_body_text_of_a_thin_small_model():
    # Nothing in Table 1's text is fixed: width, resolution and classes change it.
    rows = body_text(MobileNetSpec(0.25, 128), 10)
    assert rows[13] == ("5x Conv dw / s1", "3x3x128 dw", "8x8x128")
    assert rows[-3:-1] == (
        ("Avg Pool / s1", "Pool 4x4", "4x4x256"),
        ("FC / s1", "256x10", "1x1x256"),
    )


def test_table_2_against_the_fact_sheet(facts):
    labels = {
        "pw1x1": "Conv 1x1",
        "dw3x3": "Conv DW 3x3",
        "conv3x3": "Conv 3x3",
        "fc": "Fully Connected",
    }
    for row in facts["table2"]:
        for column, key in (("mult-adds", "macs"), ("parameters", "params")):
            found = figure(2, labels[row["type"]], column)
            assert float(found.printed) == row[f"{key}_pct_printed"]
            assert float(found.computed) == pytest.approx(row[f"{key}_pct_exact"], rel=1e-12)
            assert found.verdict.startswith("match") == row[f"{key}_match"]


def test_table_3_against_the_fact_sheet(facts):
    labels = ("Convolution", "Depthwise Separable Conv", "α = 0.75", "ρ = 0.714")
    for row, label in zip(facts["table3"], labels, strict=True):
        hold(figure(3, label, "mult-adds"), row["macs"])
        hold(figure(3, label, "parameters"), row["params"])


@pytest.mark.parametrize("number", [4, 5, 6, 7, 8, 9, 10, 12])
def test_models_against_the_fact_sheet(facts, number):
    held = 0
    # A row kept twice there, under another convention, is one of ours.
    rows = [row for row in facts[f"table{number}"] if "body only" not in row["model"]]
    for row in rows:
        label = row["model"].split(" (")[0]
        macs = row.get("macs") or row.get("macs_body")
        if not isinstance(macs, dict):
            continue
        exact = dict(macs, exact=row.get("macs_exact", macs["exact"]))
        # VGG's and SqueezeNet's entries hold the count under the paper's convention.
        exact["exact"] = row.get("macs_with_fc", exact["exact"])
        if exact["exact"] != macs["exact"]:
            exact["match"] = "NO"
        hold(figure(number, label, "mult-adds"), exact)
        parameters = row.get("params_train") or row.get("params") or row.get("params_w")
        if parameters is not None:
            hold(figure(number, label, "parameters"), parameters)
        held += 1
    assert held >= 2


def hold(found, fact):
    """The same printed figure, the same exact value, and a match where the sheet has one."""
    assert float(found.printed) == fact["printed"]
    assert found.computed == fact["exact"]
    if fact["match"] == "NO":
        assert not found.verdict.startswith("match")
    else:
        word = "truncated" if fact["match"] == "truncate" else "rounded"
        assert found.verdict == f"match ({word})"


@pytest.mark.parametrize(
    ("source", "first", "last", "number"),
    [
        ("slim-2018", 70.9, 41.5, 16),
        ("slim-2017", 70.7, 41.3, 16),
        ("slim-2018-int8", 69.7, 39.9, 16),
        # The paper prints 8 of the 16; its smallest is 0.25-224.
        ("paper", 70.6, 50.6, 8),
    ],
)
def test_points_of_each_source(source, first, last, number):
    found = points(source)
    assert (found[0].top1, found[-1].top1, len(found)) == (first, last, number)
    assert (found[0].mult_adds, found[0].parameters) == (568_740_352, 4_231_976)


def test_points_against_the_fact_sheet(facts):
    for point, row in zip(points(), facts["fig4_fig5_16_models"], strict=True):
        assert point.mult_adds == row["macs_exact"]
        assert point.parameters == row["params_train"]
        assert point.top1 == row["slim2018_top1"]


@pytest.mark.parametrize("number", [4, 5])
@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".HTML", b"<!doctype html>")]
)
def test_drawings(tmp_path, number, suffix, start):
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    draw(number, first)
    draw(number, second)
    assert first.read_bytes().startswith(start)
    assert first.read_bytes() == second.read_bytes()


def test_page_holds_its_data_and_loads_nothing(tmp_path):
    page = tmp_path / "figure.html"
    draw(5, page, "paper")
    text = page.read_text()
    assert text.count("<svg ") == 1
    assert "<td>70.6</td><td>568,740,352</td><td>4,231,976</td>" in text
    assert "other 8 of the 16" in text
    # The only addresses are the names of XML's vocabularies.
    assert "src=" not in text
    assert "<link" not in text
    assert text.count("://") == text.count('="http://www.w3.org/')


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table", "99"], ("no table 99", "1 to 14")),
        (["figure", "3", "--output", "x.png"], ("figure 3", "4 and 5")),
        (["figure", "4", "--output", "x.pdf"], ("x.pdf", ".png, .svg, .html")),
        (["figure", "4", "--output", "x.png", "--source", "keras"], ("'keras'", "slim-2017")),
        (["figure", "4", "--output", "missing/x.svg"], ("missing", "No such file")),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert run(["paper", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in words)
    assert list(tmp_path.iterdir()) == []


def test_list(capsys):
    assert run(["paper"]) == 0
    assert "Face embeddings" in capsys.readouterr().out
    assert run(["paper", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["number"] for row in listed["tables"]] == list(range(1, 15))
    assert all(row["verdicts"] for row in listed["tables"])
    assert [row["number"] for row in listed["figures"]] == [4, 5]


@pytest.mark.parametrize("arguments", [["table", "4", "--json"], ["--json", "table", "4"]])
def test_table_as_json(capsys, arguments):
    assert run(["paper", *arguments]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["verdicts"]["other convention"] == 1
    entry = next(row for row in written["figures"] if row["printed"] == "4866")
    assert (entry["unit"], entry["computed"]) == ("M", 4_867_293_184)
    assert 4_866_269_184 in entry["alternatives"].values()


def test_fractions_and_misprints_as_json(capsys):
    assert run(["paper", "table", "2", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    entry = next(row for row in written["figures"] if row["printed"] == "1.19")
    assert (entry["verdict"], entry["should_be"]) == ("misprint", "1.91")
    assert entry["computed"] == pytest.approx(1.9056, abs=1e-4)


@pytest.mark.parametrize("number", [t.number for t in TABLES if t.build])
def test_tables_print(capsys, number):
    assert run(["paper", "table", str(number)]) == 0
    printed = capsys.readouterr().out
    assert all(judged.printed in printed for judged in find_table(number).figures)


def test_figure_verb(tmp_path, capsys):
    output = tmp_path / "figure.svg"
    assert run(["paper", "figure", "4", "-o", str(output)]) == 0
    assert "16 models" in capsys.readouterr().out
    assert run(["paper", "figure", "4", "--output", str(output), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["file"] == str(output)
    assert [p["model"] for p in written["points"]] == [str(row.spec) for row in PUBLISHED]
    assert "2018-02-22" in written["points"][0]["source"]


@pytest.mark.parametrize("arguments", [["paper"], ["paper", "table", "4"], ["paper", "table", "9"]])
def test_start_up_stays_light(arguments):
    program = (
        "import sys\n"
        "from mobilenets.cli.main import run\n"
        f"assert run({arguments!r}) == 0\n"
        "assert not {'torch', 'torchvision', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
