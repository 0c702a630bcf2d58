"""Bulk prediction with Ray: every image once whatever is killed, results to go on with, and outputs that teach."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from conftest import predicted, served
from mobilenets import Run
from mobilenets.cli.main import run as cli
from mobilenets.data import results as results_module
from mobilenets.data.results import Results, open_results, read_outputs
from mobilenets.deploy import bulk
from mobilenets.deploy.bulk import SHARE, Bulk, predict_in_bulk
from mobilenets.training.recipe import DistillationChoice
from mobilenets.training.teachers import find_teacher

if find_spec("ray") is None:
    pytest.skip("needs Ray", allow_module_level=True)

# Ray warns of how its own parts use each other, and leaves files open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    with bulk.cluster(workers=2) as processes:
        assert processes == 2
        yield


@pytest.fixture
def photos(tmp_path):
    """Three shares of pictures and a few."""
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3 * SHARE + 8):
        pixels = random.integers(0, 256, (12, 10), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def read(folder):
    """Rows by the name of the image, each once."""
    rows = pq.read_table(folder).to_pylist()
    by_name = {Path(row["image"]).name: row for row in rows}
    assert len(by_name) == len(rows)
    return by_name


def asked(capsys, *arguments):
    capsys.readouterr()
    code = cli(["predict", *map(str, arguments), "--engine", "ray", "--json"])
    written = capsys.readouterr()
    return code, json.loads(written.out or "null"), written.err


COUNTS = ("images", "predicted", "failed", "skipped")


def test_rows_are_as_predict_says_and_are_gone_on_with(
    cluster, exported, photos, tmp_path, capsys, monkeypatch
):
    output = tmp_path / "results"
    good = len(list(photos.iterdir()))
    damaged = photos / "damaged.png"
    damaged.write_bytes(b"no picture")
    add = Results.add

    def interrupted(results, rows):
        add(results, rows)
        os.kill(os.getpid(), signal.SIGINT)

    # Ctrl-C keeps what is done.
    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", interrupted)
        code, first, err = asked(capsys, exported, photos, "--output", output)
    assert code == 130
    assert "the same command goes on" in err
    done = first["predicted"] + first["failed"]
    assert 0 < done < first["images"] == good + 1
    assert len(read(output)) == done

    code, said, _ = asked(capsys, exported, photos, "--output", output)
    assert code == 1
    assert said["images_per_second"] > 0
    assert said["start_seconds"] > 0
    assert (said["engine"], said["runtime"]) == ("ray", "onnxruntime")
    assert said["failed"] == 1
    assert said["skipped"] == first["predicted"]
    assert said["predicted"] + said["skipped"] == good
    rows = read(output)
    told = predicted(exported, [photos], capsys, "--on-bad-image", "skip")
    assert len(told) == good == len(rows) - 1
    for one in told:
        row = rows[Path(one["image"]).name]
        assert row["error"] is None
        assert row["runtime"] == "onnxruntime"
        likeliest = [some["predictions"][0] for some in (row, one)]
        assert likeliest[0]["label"] == likeliest[1]["label"]
        assert likeliest[0]["score"] == pytest.approx(likeliest[1]["score"], abs=1e-4)
    assert "damaged.png: not an image that can be read" in rows["damaged.png"]["error"]
    assert rows["damaged.png"]["predictions"] is None

    # What is there is not done again, and the error is still told.
    code, said, _ = asked(capsys, exported, photos, "--output", output, "--on-bad-image", "skip")
    assert code == 0
    assert [said[key] for key in COUNTS] == [good + 1, 0, 1, good]
    Image.new("L", (9, 9)).save(damaged)
    Image.new("L", (9, 9)).save(photos / "new.png")
    code, said, err = asked(capsys, exported, photos, "--output", output, "--retry-failed")
    assert code == 0
    assert [said[key] for key in COUNTS] == [good + 2, 2, 0, good]
    assert "error" not in err
    assert len(read(output)) == good + 2
    assert all(row["error"] is None for row in read(output).values())

    code, _, err = asked(capsys, exported, photos, "--output", output, "--outputs")
    assert code == 2
    assert "holds results of another run or of other options (outputs)" in err


def test_usage_is_not_reported_and_loopback_alone_is_answered(cluster):
    import ray
    from ray._common.usage.usage_lib import usage_stats_enabled

    assert not usage_stats_enabled()
    assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    of_ray = [line for line in listening.splitlines() if "gcs_server" in line or "raylet" in line]
    assert of_ray
    assert all("127.0.0.1" in line.split()[3] for line in of_ray)


def pipe(folder, name):
    """An image that is read when somebody writes it, so that who reads it is known to wait."""
    os.mkfifo(folder / name)
    return folder / name


def readers(path):
    """Other processes that have a pipe open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            opened = {str(link.readlink()) for link in (process / "fd").iterdir()}
            if str(path) in opened and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


def kill_reader(path):
    """Kill the process that has a pipe open; it takes it a moment to have it, and another to be gone."""
    over = time.monotonic() + 30
    while not (found := readers(path)):
        assert time.monotonic() < over
    os.kill(found[0], signal.SIGKILL)
    while readers(path):
        assert time.monotonic() < over


def test_a_killed_process_loses_and_doubles_nothing(cluster, exported, photos, tmp_path):
    path = pipe(photos, "pipe.png")
    kills = []

    def kill_then_answer():
        with path.open("wb"):
            kill_reader(path)
            kills.append(path)
        # Ray may ask twice for what was killed.
        content = (photos / "000.png").read_bytes()
        while True:
            with suppress(BrokenPipeError), path.open("wb") as writer:
                writer.write(content)
            time.sleep(0.1)

    threading.Thread(target=kill_then_answer, daemon=True).start()
    images = sorted(photos.iterdir())
    done = predict_in_bulk(Run.load(exported), images, tmp_path / "results", Bulk())
    assert kills
    assert (done.predicted, done.failed, done.skipped) == (len(images), 0, 0)
    rows = read(tmp_path / "results")
    assert set(rows) == {image.name for image in images}
    assert rows["pipe.png"]["predictions"] == rows["000.png"]["predictions"]


@pytest.mark.slow
def test_an_image_that_kills_whoever_reads_it_is_a_row_with_an_error(
    cluster, exported, photos, tmp_path
):
    path = pipe(photos, "pipe.png")

    def kill_always():
        while True:
            with suppress(BrokenPipeError), path.open("wb"):
                kill_reader(path)
            time.sleep(0.1)

    threading.Thread(target=kill_always, daemon=True).start()
    images = sorted(photos.iterdir())
    done = predict_in_bulk(Run.load(exported), images, tmp_path / "results", Bulk())
    assert (done.predicted, done.failed) == (len(images) - 1, 1)
    rows = read(tmp_path / "results")
    assert "killed each time" in rows["pipe.png"]["error"]
    assert [name for name, row in rows.items() if row["error"]] == ["pipe.png"]


@pytest.mark.slow
def test_whoever_asks_a_cluster_can_be_killed(cluster, exported, photos, tmp_path, capsys):
    import ray

    pipe(photos, "pipe.png")
    output = tmp_path / "results"
    address = ray.get_runtime_context().gcs_address
    # Every share is written at once, and the last one waits for ever.
    code = (
        "from mobilenets.data import results; results.ROWS = 1\n"
        "from mobilenets.cli.main import run; import sys; run(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "predict", exported, photos, "--engine", "ray"]
    command += ["--output", output, "--address", address]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE) as process:
        over = time.monotonic() + 60
        while len(list(output.glob("part-*.parquet"))) < 2:
            assert time.monotonic() < over, process.stderr.read()
            time.sleep(0.05)
        process.kill()
    before = len(read(output))
    assert before >= 2 * 8
    (photos / "pipe.png").unlink()
    code, said, _ = asked(capsys, exported, photos, "--output", output)
    assert code == 0
    assert said["skipped"] == before
    assert len(read(output)) == said["images"] == said["predicted"] + before


def test_outputs_teach_as_the_run_itself_does(cluster, exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for place, count in (("data/train/3", 6), ("data/train/7", 6), ("data/val/3", 2), ("more", 5)):
        (tmp_path / place).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (12, 10), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / place / f"{number}.png")
    Image.new("L", (8, 8)).save(tmp_path / "data" / "val" / "3" / "blank.png")
    (tmp_path / "data" / "val" / "7").mkdir()
    Image.new("L", (8, 8), 200).save(tmp_path / "data" / "val" / "7" / "blank.png")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "answers"
    code, _, _ = asked(capsys, exported, "data/train", "more", "--output", folder, "--outputs")
    assert code == 0

    names, outputs, labels = read_outputs(folder)
    teacher = Run.load(exported)
    assert labels == teacher.labels
    expected = torch.cat([teacher.outputs(teacher.prepare(name)) for name in names])
    assert torch.allclose(torch.from_numpy(outputs), expected, atol=1e-4)

    stored = find_teacher("answers", teacher.task, DistillationChoice())
    told = stored.told([str(Path("more", "2.png")), names[0]])
    assert torch.equal(told[1], torch.from_numpy(outputs[0]))
    direct = teacher.outputs(teacher.prepare("more/2.png"))[0]
    assert torch.allclose(told[0], direct, atol=1e-4)

    command = ["train", "data", "--model", "0.25-32-s4-shallow", "--unlabelled", "more"]
    command += ["--teacher", "answers", "--set", "distillation.weight=1", "--epochs", "1"]
    assert cli([*command, "--device", "cpu", "--output", "student"]) == 0
    (folder / "part-000000.parquet").unlink()
    assert cli([*command, "--device", "cpu", "--output", "other"]) == 2
    assert "holds no output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--output", "x"], "--output does not go with --engine threads"),
        (["--address", "auto"], "--address does not go with --engine threads"),
        (["--engine", "rays"], "--engine is threads or ray, not 'rays'"),
        (["--engine", "ray"], "give --output FOLDER"),
        (["--engine", "ray", "--output", "x", "--csv"], "--csv does not go with --engine ray"),
        (["--engine", "ray", "--output", "x", "--draw", "y"], "--draw does not go with"),
        (["--engine", "ray", "--output", "x", "--every", "2"], "--every does not go with"),
        (["--engine", "ray", "--output", "a.mp4"], None),
        (["--engine", "ray", "--output", "x", "--address", "ray"], "is auto or HOST:PORT"),
        (["--engine", "ray", "--output", "x", "--address", "127.0.0.1:1"], "no cluster answers"),
        (["--engine", "ray", "--output", "x", "--tile", "64", "--outputs"], "are for detectors"),
    ],
)
def test_what_does_not_go_together_is_said_in_a_sentence(
    options, said, digits_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("a.png")
    Path("a.mp4").write_bytes(b"no film")
    images = ["a.mp4"] if said is None else ["a.png"]
    assert cli(["predict", str(digits_run), *images, *options]) == 2
    err = capsys.readouterr().err
    assert (said or "a.mp4: --engine ray is for photos") in err
    assert err.count("\n") == 1


def test_another_server_is_no_cluster(digits_run, tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with served(ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)) as server:
        command = ["predict", str(digits_run), str(tmp_path / "a.png"), "--engine", "ray"]
        command += ["--address", f"127.0.0.1:{server.server_address[1]}"]
        assert cli([*command, "--output", str(tmp_path / "x")]) == 2
    assert "what answers there is no cluster of Ray" in capsys.readouterr().err


def test_other_folders_are_left_alone(digits_run, tmp_path, capsys, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    command = ["predict", str(digits_run), str(tmp_path / "a.png"), "--engine", "ray", "--output"]
    assert cli([*command, str(tmp_path)]) == 2
    assert "is not empty and holds no results" in capsys.readouterr().err
    assert cli([*command, str(tmp_path / "a.png")]) == 2
    assert "is a file" in capsys.readouterr().err
    with (
        open_results(tmp_path / "results", {"a": 1}),
        pytest.raises(ValueError, match="another command is writing to it"),
        open_results(tmp_path / "results", {"a": 1}),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"or of other options \(a\)"),
        open_results(tmp_path / "results", {"a": 2}),
    ):
        pass
    with pytest.raises(ValueError, match="holds no outputs"):
        read_outputs(tmp_path / "results")
    monkeypatch.setattr(bulk, "find_spec", lambda name: None)
    assert cli([*command, str(tmp_path / "new")]) == 2
    assert "pip install 'mobilenets[ray]'" in capsys.readouterr().err


def test_files_are_written_when_they_are_large_enough(tmp_path, monkeypatch):
    import pyarrow as pa

    monkeypatch.setattr(results_module, "ROWS", 3)
    with open_results(tmp_path / "results", {}) as results:
        for number in range(5):
            row = {"image": f"{number}", "error": None if number % 2 else "damaged"}
            schema = pa.schema([("image", pa.string()), ("error", pa.string())])
            results.add(pa.Table.from_pylist([row], schema=schema))
        assert len(list((tmp_path / "results").glob("part-*"))) == 1
    assert len(list((tmp_path / "results").glob("part-*"))) == 2
    with open_results(tmp_path / "results", {}) as results:
        assert list(results.errors().values()) == ["damaged", None, "damaged", None, "damaged"]
        results.forget_errors()
        assert results.errors() == {"1": None, "3": None}
        results.add(pa.Table.from_pylist([{"image": "5"}], schema=schema))
    assert len(read(tmp_path / "results")) == 3


def test_plain_predictions_do_without_ray(digits_run, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    code = (
        "import sys; from mobilenets.cli.main import run\n"
        "assert run(sys.argv[1:]) == 0; assert 'ray' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "predict", str(digits_run), str(tmp_path / "a.png")]
    subprocess.run(command, check=True, capture_output=True)
