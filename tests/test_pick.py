"""The picker: the published 16, the curve between them, and budgets that nothing keeps."""

import json

import numpy as np
import pytest

from mobilenets.architecture import MobileNetSpec
from mobilenets.cli.main import run
from mobilenets.cost import PUBLISHED, Budget, NothingFitsError, budget, fit_accuracy, pick


def names(candidates):
    return [str(candidate.spec) for candidate in candidates]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        # 149,497,088 mult-adds: just under.
        ({"max_mult_adds": 150e6}, ["0.5-224", "0.75-128", "0.5-192"]),
        # A limit is kept when it is met exactly, and not one below.
        ({"max_mult_adds": 149_497_088}, ["0.5-224", "0.75-128", "0.5-192"]),
        ({"max_mult_adds": 149_497_087}, ["0.75-128", "0.5-192", "0.5-160"]),
        # Accuracy decides, not size: 1.0-128 (65.2) stands after 0.75-160 (65.3).
        ({"max_mult_adds": 190e6}, ["0.75-160", "1.0-128", "0.5-224"]),
        # Parameters do not depend on the resolution.
        ({"max_parameters": 2e6}, ["0.5-224", "0.5-192", "0.5-160"]),
        ({"max_parameters": 470_072}, ["0.25-224", "0.25-192", "0.25-160"]),
        # 4 bytes for each of 1,326,120 folded parameters.
        ({"max_bytes": 5_304_480}, ["0.5-224", "0.5-192", "0.5-160"]),
        ({"max_bytes": 5_304_479}, ["0.25-224", "0.25-192", "0.25-160"]),
        # In int8 the same bytes hold the widest model, whose top-1 is int8's (69.7).
        ({"max_bytes": 5e6, "int8": True}, ["1.0-224", "1.0-192", "0.75-224"]),
        # All limits at once.
        (
            {"max_mult_adds": 200e6, "max_parameters": 2.6e6, "min_top1": 62},
            ["0.75-160", "0.5-224", "0.75-128"],
        ),
        # None at all.
        ({}, ["1.0-224", "1.0-192", "0.75-224"]),
    ],
)
def test_the_best_three_of_the_published(limits, expected):
    assert names(pick(Budget(**limits)))[:3] == expected


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({}, 16),
        ({"min_top1": 0}, 16),
        # 70.9 and 70.0.
        ({"min_top1": 70}, 2),
        ({"min_top1": 70.9}, 1),
        # int8: 69.7 and no other above 69.
        ({"min_top1": 69.5, "int8": True}, 1),
    ],
)
def test_how_many_fit(limits, count):
    assert len(pick(Budget(**limits))) == count


def test_a_smaller_classifier_fits_more():
    # 1.0-224 has 4.23M parameters with 1,000 classes and 3.22M with 10.
    assert str(pick(Budget(max_parameters=3.3e6))[0].spec) == "0.75-224"
    assert str(pick(Budget(max_parameters=3.3e6), num_classes=10)[0].spec) == "1.0-224"


def test_int8_uses_the_quantised_figures():
    for candidate, row in zip(budget.published_candidates(int8=True), PUBLISHED, strict=True):
        assert candidate.top1 == row.slim_2018_int8_top1
        assert candidate.bytes == candidate.cost.bytes_int8
        assert "quantised" in candidate.top1_source


def test_at_equal_top1_the_cheaper_is_first(monkeypatch):
    # No two of the 16 tie: two made to, the dearer given first.
    by_name = {str(c.spec): c for c in budget.published_candidates()}
    tied = [
        budget.Candidate(
            spec=c.spec, cost=c.cost, top1=60.0, top1_source="x", interpolated=False, int8=False
        )
        for c in (by_name["1.0-224"], by_name["0.25-128"], by_name["0.5-160"])
    ]
    monkeypatch.setattr(budget, "published_candidates", lambda *_, **__: tuple(tied))
    assert names(pick(Budget())) == ["0.25-128", "0.5-160", "1.0-224"]


# Between the published


# The quantised figures are less regular than the float ones.
@pytest.mark.parametrize(("int8", "worst"), [(False, 0.4), (True, 0.9)])
def test_the_curve_is_least_squares(int8, worst):
    w = np.log([row.width for row in PUBLISHED])
    r = np.log([row.resolution / 224 for row in PUBLISHED])
    terms = np.stack([np.ones_like(w), w, r, w * w, r * r, w * r], axis=1)
    top1 = np.array([row.top1(int8=int8) for row in PUBLISHED])
    expected, *_ = np.linalg.lstsq(terms, top1, rcond=None)
    fit = fit_accuracy(int8=int8)
    np.testing.assert_allclose(fit.coefficients, expected, rtol=1e-9)
    errors = terms @ expected - top1
    assert fit.residual == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert fit.worst == pytest.approx(np.abs(errors).max())
    # What makes it fit for use: points on the published 16.
    assert fit.worst < worst


def test_the_curve_rises_with_width_and_resolution():
    fit = fit_accuracy()
    grid = [
        [fit.top1(MobileNetSpec(w / 20, side)) for side in range(128, 225, 8)] for w in range(5, 21)
    ]
    assert (np.diff(grid, axis=0) > 0).all()
    assert (np.diff(grid, axis=1) > 0).all()


@pytest.mark.parametrize(
    "spec",
    [
        # Just outside each side of the published.
        MobileNetSpec(0.249, 224),
        MobileNetSpec(1.001, 224),
        MobileNetSpec(1.0, 127),
        MobileNetSpec(1.0, 225),
        MobileNetSpec(1.0, 256),
        # Inside, but another network.
        MobileNetSpec(1.0, (224, 192)),
        MobileNetSpec(variant="shallow"),
        MobileNetSpec(total_stride=16),
    ],
)
def test_nothing_is_extrapolated(spec):
    with pytest.raises(ValueError, match="no accuracy can be interpolated for") as caught:
        fit_accuracy().top1(spec)
    assert str(spec) in str(caught.value)


@pytest.mark.parametrize(("width", "side"), [(0.25, 128), (0.25, 224), (1.0, 128), (1.0, 224)])
def test_the_corners_are_inside(width, side):
    assert 35 < fit_accuracy().top1(MobileNetSpec(width, side)) < 75


def test_any_size_adds_interpolated_models_and_keeps_the_published():
    everything = pick(Budget(), any_size=True)
    assert len(everything) == 16 * 13
    assert len(set(names(everything))) == len(everything)
    published = [c for c in everything if not c.interpolated]
    assert sorted(names(published)) == sorted(str(row.spec) for row in PUBLISHED)
    assert {c.top1 for c in published} == {row.slim_2018_top1 for row in PUBLISHED}
    assert all("interpolated" in c.top1_source for c in everything if c.interpolated)
    assert [c.top1 for c in everything] == sorted((c.top1 for c in everything), reverse=True)


def test_any_size_finds_a_better_model_for_the_same_budget():
    best = pick(Budget(max_mult_adds=150e6), any_size=True)[0]
    assert best.interpolated
    assert best.cost.mult_adds <= 150e6
    assert best.top1 > 63.3


# Budgets that nothing keeps


@pytest.mark.parametrize(
    ("limits", "says", "nearest"),
    [
        # One limit rules out all: it alone is named, with what the best has.
        (
            {"max_mult_adds": 10e6},
            "no model fits: --max-mult-adds 10.0M rules out all 16 models, the smallest has 13.6M; "
            "nearest is 0.25-128 (13.6M for --max-mult-adds 10.0M)",
            "0.25-128",
        ),
        (
            {"max_mult_adds": 10e6, "max_parameters": 5e6, "min_top1": 40},
            "--max-mult-adds 10.0M rules out all 16 models, the smallest has 13.6M; nearest",
            "0.25-128",
        ),
        (
            {"max_bytes": 1e5},
            "--max-bytes 100.0kB rules out all 16 models, the smallest has 1.87MB",
            "0.25-224",
        ),
        (
            {"min_top1": 75},
            "--min-top1 75 % rules out all 16 models, the most accurate has 70.9 %",
            "1.0-224",
        ),
        # Two, each of which rules out all.
        (
            {"max_mult_adds": 10e6, "min_top1": 75},
            "--max-mult-adds 10.0M rules out all 16 models, the smallest has 13.6M and --min-top1 75 %"
            " rules out all 16 models, the most accurate has 70.9 %; nearest is ",
            None,
        ),
        # Each can be kept, but not both.
        (
            {"max_mult_adds": 50e6, "min_top1": 60},
            "each limit can be kept, but not --max-mult-adds 50.0M and --min-top1 60 % together; "
            "nearest is 0.5-128 (56.3 % for --min-top1 60 %)",
            "0.5-128",
        ),
        # int8 is half a point worse: what fits as float does not.
        ({"min_top1": 70, "int8": True}, "the most accurate has 69.7 %", "1.0-224"),
    ],
)
def test_an_impossible_budget_names_its_limit_and_the_nearest(limits, says, nearest):
    with pytest.raises(NothingFitsError, match=r"\A[^\n]+\Z") as caught:
        pick(Budget(**limits))
    assert says in str(caught.value)
    assert nearest is None or str(caught.value.nearest.spec) == nearest
    assert f"nearest is {caught.value.nearest.spec} (" in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        # Not impossible but meaningless: nothing would ever be near it.
        ({"max_mult_adds": 0}, "--max-mult-adds must be above 0, not 0"),
        ({"max_parameters": -1}, "--max-parameters must be above 0, not -1"),
        ({"max_bytes": float("nan")}, "--max-bytes must be above 0, not nan"),
        ({"min_top1": float("nan")}, "--min-top1 must be 0 or more, not nan"),
        ({"min_top1": -1}, "--min-top1 must be 0 or more, not -1"),
    ],
)
def test_a_limit_that_is_no_limit_is_refused(limits, says):
    with pytest.raises(ValueError, match=says):
        Budget(**limits)


# The verb


def test_the_verb_prints_the_rule_and_the_source(capsys):
    assert run(["pick", "--max-mult-adds", "150M"]) == 0
    out = capsys.readouterr().out
    assert "9 models fit" in out
    models = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert models[:2] == ["0.5-224", "0.75-128"]
    assert "highest ImageNet top-1 first; at equal top-1 the fewest mult-adds" in out
    assert "TensorFlow-Slim mobilenet_v1.md, 2018-02-22" in out
    assert "~" not in out


def test_the_verb_marks_what_is_interpolated_and_says_how_good_that_is(capsys):
    assert run(["pick", "--any", "--max-mult-adds", "150M", "--top", "200"]) == 0
    out = capsys.readouterr().out
    rows = {
        cells[1].strip(): cells[2].strip()
        for cells in (line.split("│") for line in out.splitlines() if line.startswith("│"))
    }
    assert rows["0.5-224"] == "63.3"
    assert rows["0.7-160"].startswith("~")
    assert f"{fit_accuracy().residual:.2f} points" in out
    assert f"{fit_accuracy().worst:.2f} at worst" in out


def test_the_verb_writes_json(capsys):
    assert run(["pick", "--max-bytes", "2MB", "--int8", "--num-classes", "10", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["model"] == "0.75-224"
    assert rows[0]["precision"] == "int8"
    assert rows[0]["top1"] == 67.9
    assert rows[0]["interpolated"] is False
    assert all(row["bytes"] <= 2e6 for row in rows)


def test_the_verb_shows_as_many_as_asked_for(capsys):
    assert run(["pick", "--top", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


@pytest.mark.parametrize("as_json", [False, True])
def test_an_impossible_budget_ends_with_1(as_json, capsys):
    assert run(["pick", "--max-mult-adds", "1M", *(["--json"] if as_json else [])]) == 1
    captured = capsys.readouterr()
    # A program that reads JSON gets an empty list, not nothing.
    assert captured.out == ("[]\n" if as_json else "")
    assert captured.err.startswith("mobilenets: no model fits: --max-mult-adds 1.00M rules out all")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-mult-adds", "0"], "--max-mult-adds must be a number above 0"),
        (["--max-bytes", "-3MB"], "--max-bytes must be a number above 0"),
        (["--max-parameters", "1,5M"], "not '1,5M'"),
        (["--min-top1", "nan"], "--min-top1 must be 0 or more, not nan"),
    ],
)
def test_wrong_input_ends_with_2_and_one_line(arguments, says, capsys):
    assert run(["pick", *arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert says in captured.err
