"""A device's profile: measured once, interpolated, shared, and what the picker makes of it."""

import json
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mobilenets.architecture import MobileNetSpec
from mobilenets.cli.main import run as cli
from mobilenets.cost import Budget, LatencyProfile, NothingFitsError, pick, read_profile
from mobilenets.cost.latency import Grid
from mobilenets.deploy.profile import check_profile
from mobilenets.deploy.target import TARGETS

WIDTHS, SIDES = (0.25, 0.5, 1.0), (128, 192, 224)


def made(**changes):
    """A profile of a device whose times follow a rule."""
    values = {
        "device": "a phone",
        "runtime": "litert",
        "threads": 1,
        "batch": 1,
        "precision": "fp32",
        "versions": {"litert": "1"},
        "widths": WIDTHS,
        "sides": SIDES,
        "milliseconds": tuple(tuple(1e-4 * w * s**2 for s in SIDES) for w in WIDTHS),
    }
    return LatencyProfile(**values | changes)


@pytest.mark.parametrize(
    ("width", "side"),
    # Corners, edges, the middle: a power of width and side is met exactly.
    [(0.25, 128), (1.0, 224), (0.5, 192), (0.35, 160), (0.75, 224), (1.0, 129)],
)
def test_a_power_law_is_interpolated_exactly(width, side):
    assert made().ms(MobileNetSpec(width, side)) == pytest.approx(1e-4 * width * side**2)


@pytest.mark.parametrize(
    "spec",
    [
        MobileNetSpec(0.2, 160),
        MobileNetSpec(0.5, 256),
        MobileNetSpec(0.5, (128, 160)),
        MobileNetSpec(0.5, 160, variant="shallow"),
        MobileNetSpec(0.5, 160, total_stride=16),
    ],
    ids=str,
)
def test_nothing_is_said_of_what_was_not_measured(spec):
    with pytest.raises(ValueError, match=f"no latency can be interpolated for {spec}"):
        made().ms(spec)


def test_a_profile_is_checked_against_what_lies_between(monkeypatch):
    # A device that takes half a millisecond more than the rule for whatever it is given.
    profile = made(widths=(0.25, 1.0), sides=(128, 224), milliseconds=((0.4, 1.25), (1.6, 5.0)))
    monkeypatch.setattr(
        "mobilenets.deploy.profile.measure",
        lambda specs, *_: [profile.ms(spec) + 0.5 for spec in specs],
    )
    checked = check_profile(profile, 5, 0.0)
    assert len({name for name, _, _ in checked}) == 5
    for name, guess, found in checked:
        assert guess == profile.ms(MobileNetSpec.parse(name))
        assert found == guess + 0.5


def test_channels_that_fill_no_blocks_take_longer():
    odd = Grid(widths=(0.31, 0.98), sides=(128, 224), milliseconds=((1.2, 4.0), (6.0, 20.0)))
    even = made(widths=(0.25, 1.0), sides=(128, 224), milliseconds=((0.4, 1.25), (1.6, 5.0)))
    profile = replace(even, odd=odd)
    # Multiples of 4 in every layer: as if the others had not been measured.
    for width in (0.25, 0.5, 0.75, 1.0):
        assert profile.ms(MobileNetSpec(width, 160)) == even.ms(MobileNetSpec(width, 160))
    # In none: what was measured.
    assert profile.ms(MobileNetSpec(0.98, 224)) == pytest.approx(20.0)
    # In some layers: in between.
    some = MobileNetSpec(0.93, 160)
    assert even.ms(some) < profile.ms(some) < odd.ms(0.93, 160)
    # Never quicker for it, and beyond the odd widths as at the nearest.
    quick = replace(odd, milliseconds=((0.1, 0.1), (0.1, 0.1)))
    assert replace(even, odd=quick).ms(some) == even.ms(some)
    narrow = MobileNetSpec(0.28, 128)
    share = (profile.ms(narrow) / even.ms(narrow) - 1) / (1.2 / even.grid.ms(0.31, 128) - 1)
    assert 0.9 < share < 1
    assert read_back(profile) == profile


def read_back(profile):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        path.write_text(json.dumps(profile.to_dict()))
        return read_profile(path)


def test_a_profile_is_shared_as_json(tmp_path):
    path = tmp_path / "phone.json"
    path.write_text(json.dumps(made().to_dict()))
    assert read_profile(path) == made()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "its format is 2"),
        ({"widths": [0.25]}, "needs two widths"),
        ({"widths": [1.0, 0.5, 0.25]}, "ascending"),
        ({"milliseconds": [[1, 2, 3]]}, "a time above 0 for each pair"),
        ({"milliseconds": [[1, 2, 3], [1, 0, 3], [1, 2, 3]]}, "a time above 0"),
        ({"milliseconds": [[1, 2, 3], [1, math.nan, 3], [1, 2, 3]]}, "a time above 0"),
        ({"sides": None}, "is not a latency profile"),
        ({"sides": [1e999, 2, 3]}, "is not a latency profile"),
        ({"threads": "x"}, "is not a latency profile"),
        ({"versions": ["a"]}, "is not a latency profile"),
        ({"precision": "fp16"}, "is of fp32 or int8 models, not 'fp16'"),
        (None, "there is no such latency profile"),
        ("[", "is not a latency profile"),
        ("[]", "is not a latency profile"),
        ("{}", "no 'format'"),
    ],
)
def test_a_damaged_profile_is_one_sentence(change, says, tmp_path, capsys):
    path = tmp_path / "phone.json"
    if isinstance(change, str):
        path.write_text(change)
    elif change is not None:
        path.write_text(json.dumps(made().to_dict() | change))
    assert cli(["pick", "--max-latency", "5ms", "--profile", str(path)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_the_picker_keeps_to_the_milliseconds():
    # The rule gives 1.0-224 5.02 ms and 1.0-192 3.69.
    best = pick(Budget(max_latency_ms=4), profile=made())[0]
    assert (str(best.spec), round(best.latency_ms, 2)) == ("1.0-192", 3.69)
    between = pick(Budget(max_latency_ms=4), any_size=True, profile=made())
    assert all(candidate.latency_ms <= 4 for candidate in between)
    with pytest.raises(NothingFitsError, match=r"--max-latency 0.1ms rules out all 16 models"):
        pick(Budget(max_latency_ms=0.1), profile=made())
    # Models outside of what was measured are left out.
    phone = made(widths=(0.5, 1.0), sides=(160, 224), milliseconds=((1.3, 2.5), (2.6, 5.0)))
    assert {candidate.spec.width for candidate in pick(Budget(), profile=phone)} == {0.5, 0.75, 1.0}
    huge = made(widths=(2.0, 3.0), sides=(160, 224), milliseconds=((1.3, 2.5), (2.6, 5.0)))
    with pytest.raises(ValueError, match="covers none of the models"):
        pick(Budget(), profile=huge)
    with pytest.raises(ValueError, match="needs a profile of the device"):
        pick(Budget(max_latency_ms=4))
    with pytest.raises(ValueError, match="is of fp32 models, not of int8"):
        pick(Budget(max_latency_ms=4, int8=True), profile=made())


def test_pick_shows_and_gives_latencies(tmp_path, capsys):
    path = tmp_path / "phone.json"
    path.write_text(json.dumps(made().to_dict()))
    arguments = ["pick", "--max-latency", "4 ms", "--profile", str(path)]
    assert cli([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["latency_ms"] == 3.686
    assert cli(arguments) == 0
    shown = capsys.readouterr().out
    assert "3.69" in shown
    assert "ms of a call on a phone, litert, 1 threads, batch 1" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-latency", "fast"], "--max-latency must be a time above 0 such as 5ms, not 'fast'"),
        (["--max-latency", "0ms"], "not '0ms'"),
        (["--max-latency", "5ms", "--runtime", "caffe"], "--runtime is onnxruntime, litert"),
        (
            ["--max-latency", "5ms", "--runtime", "pt2", "--int8", "--threads", "2"],
            "no profile for --runtime pt2 --int8 --threads 2: mobilenets profile --runtime pt2 --int8 --threads 2 measures",
        ),
        (["--profile", "phone.json", "--threads", "1"], "leave those out"),
        (
            ["--max-latency", "5ms", "--threads", "1"],
            "no profile for --threads 1: mobilenets profile --threads 1 measures one",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli(["pick", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [
        ("onnxruntime", "fp32"),
        pytest.param("onnxruntime", "int8", marks=pytest.mark.slow),
        pytest.param("litert", "int8", marks=pytest.mark.slow),
        pytest.param("openvino", "fp32", marks=pytest.mark.slow),
    ],
)
def test_this_device_is_profiled_once_and_picked_for(
    tmp_path, monkeypatch, capsys, runtime, precision
):
    target = next(target for target in TARGETS.values() if target.runtime == runtime)
    if not all(find_spec(package) for package in target.packages):
        pytest.skip(f"needs pip install 'mobilenets[{target.extra}]'")
    options = ["--runtime", runtime, *(["--int8"] if precision == "int8" else [])]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Two widths and two sides: sixteen exports would take a minute.
    monkeypatch.setattr("mobilenets.deploy.profile.WIDTHS", (0.25, 1.0))
    monkeypatch.setattr("mobilenets.deploy.profile.SIDES", (128, 224))
    monkeypatch.setattr("mobilenets.deploy.profile.ODD_WIDTHS", (0.31, 0.98))
    profiled = ["profile", "--threads", "1", "--seconds", "0.2", "--check", "1", "--json"]
    assert cli([*profiled, *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"].startswith(str(tmp_path))
    assert said["milliseconds"][0][0] < said["milliseconds"][1][1]
    assert (said["runtime"], said["precision"]) == (runtime, precision)
    assert len(said["checked"]) == 1
    assert said["mean_error"] >= 0
    slowest = said["milliseconds"][1][1]
    asked = ["pick", "--max-latency", f"{slowest}ms", "--threads", "1", "--json"]
    assert cli([*asked, *options]) == 0
    (best, *_) = json.loads(capsys.readouterr().out)
    assert best["model"] == "1.0-224"
    assert best["latency_ms"] == pytest.approx(slowest, abs=1e-3)
