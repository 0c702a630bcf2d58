"""The verbs end to end, and the one sentence that wrong input gets."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from mobilenets import Run
from mobilenets.cli.main import run as cli
from mobilenets.deploy.evidence import find_evidence


def save(path, shade=128, size=(12, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)
    return path


def make_folder(folder, classes=("ant", "bee"), splits=("train", "val"), images=4):
    for split in splits:
        for number, name in enumerate(classes):
            for image in range(images):
                save(folder / split / name / f"{image}.png", 40 + 90 * number + image)
    return folder


def train_arguments(data, output, model="0.25-8-s4"):
    return ["train", str(data), "--model", model, "--epochs", "1", "--output", str(output)]


def one_sentence(capsys):
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if not line.startswith(("warning:", "training "))]
    assert len(lines) == 1, text
    return lines[0]


def test_train_evaluate_predict_export_on_a_folder_with_a_shifted_class_list(tmp_path, capsys):
    data = make_folder(tmp_path / "photos", classes=("ant", "bee", "cat"))
    # Case 13: validation has two of three classes, so positions differ and names must decide.
    shutil.rmtree(data / "val" / "ant")
    assert cli([*train_arguments(data, tmp_path / "run"), "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["images"] == 8
    assert cli(["evaluate", str(tmp_path / "run"), str(data), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["split"], figures["images"]) == ("val", 8)
    assert figures["top1"] == trained["top1"]
    assert set(figures) >= {"top1", "top5", "loss", "images"}
    assert cli(["export", str(tmp_path / "run"), "--json"]) == 0
    (bundle,) = json.loads(capsys.readouterr().out)
    assert bundle["parity"]["holds"] is True
    # Labelled by another class list than the model's own.
    assert bundle["top1"] == {"fp32": trained["top1"], "file": trained["top1"]}


def test_predict_takes_files_folders_and_patterns(digits_run, tmp_path, capsys):
    save(tmp_path / "a.png")
    save(tmp_path / "deep" / "b.png")
    (tmp_path / "notes.txt").write_text("no image")
    for places, count in (
        ([tmp_path / "a.png"], 1),
        ([tmp_path], 2),
        ([tmp_path / "*.png"], 1),
        ([tmp_path / "**" / "*.png"], 2),
    ):
        assert cli(["predict", str(digits_run), *map(str, places), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert len(rows) == count
        for row in rows:
            assert len(row["predictions"]) == 5
            assert set(row["predictions"][0]) == {"label", "index", "score"}
            scores = [guess["score"] for guess in row["predictions"]]
            assert scores == sorted(scores, reverse=True)


def test_predict_writes_csv_and_text(digits_run, tmp_path, capsys):
    image = save(tmp_path / "a.png")
    assert cli(["predict", str(digits_run), str(image), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert rows[0]["image"] == str(image)
    assert cli(["predict", str(digits_run), str(image)]) == 0
    assert capsys.readouterr().out.startswith(f"{image}: {rows[0]['label']} ")


# Case 18: a turned photo is turned back before the model sees it, in prediction and in parity.
def test_exif_orientation_holds_in_prediction_and_export(digits_run, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 24, 3), dtype=np.uint8)
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "upright.png")
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    paths = [str(tmp_path / name) for name in ("turned.png", "upright.png")]
    assert cli(["predict", str(digits_run), *paths, "--json"]) == 0
    turned, straight = json.loads(capsys.readouterr().out)
    assert turned["predictions"] == straight["predictions"]
    run = Run.load(digits_run)
    upright, turned = find_evidence(run, paths).images_NCHW
    assert upright.equal(turned)


def test_runs_work_from_another_working_directory(digits_run, tmp_path, monkeypatch, capsys):
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(digits_run, moved)
    monkeypatch.chdir(tmp_path / "elsewhere")
    save(Path("seen-never.png"))
    assert cli(["predict", "run", "seen-never.png", "--json"]) == 0
    assert cli(["evaluate", "run", "digits", "--json"]) == 0
    assert cli(["export", "run", "--output", "phone"]) == 0
    assert Path("phone/model.onnx").is_file()
    capsys.readouterr()


def test_evaluate_knows_the_images_that_a_run_held_out(tmp_path, capsys):
    data = make_folder(tmp_path / "photos", splits=(".",), images=10)
    assert cli(train_arguments(data, tmp_path / "run")) == 0
    capsys.readouterr()
    assert cli(["evaluate", str(tmp_path / "run"), str(data), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["split"], figures["images"]) == ("val", 2)


def test_evaluate_takes_all_of_another_folder_with_as_many_images(tmp_path, capsys):
    data = make_folder(tmp_path / "photos", splits=(".",), images=10)
    other = tmp_path / "other"
    for name in ("ant", "bee"):
        for image in range(10):
            save(other / name / f"new-{image}.png", 60 + image)
    assert cli(train_arguments(data, tmp_path / "run")) == 0
    capsys.readouterr()
    assert cli(["evaluate", str(tmp_path / "run"), str(other), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["split"], figures["images"]) == ("all", 20)


def test_evaluate_says_when_it_looks_at_training_images(tmp_path, capsys):
    data = make_folder(tmp_path / "photos")
    assert cli(train_arguments(data, tmp_path / "run")) == 0
    assert cli(["evaluate", str(tmp_path / "run"), str(data), "--split", "train"]) == 0
    assert "the model was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "0.5_160"], "unknown model '0.5_160'"),
        (["--model", "0-224"], "width must be a number above 0"),
        (["--model", "nan-224"], "width must be a number above 0"),
        (["--model", "0,5-224"], "write 0.5"),
        (["--task", "clasification"], "nearest: classification"),
        (["--recipe", "smal"], "unknown recipe 'smal'"),
        (["--set", "optimizer.lr"], "write KEY=VALUE"),
        (["--set", "optimizer.rate=1"], "there is no key 'optimizer.rate'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--on-bad-image", "maybe"], "stop or skip, not 'maybe'"),
    ],
)
def test_wrong_options_of_train(tmp_path, capsys, arguments, message):
    data = make_folder(tmp_path / "photos")
    assert cli([*train_arguments(data, tmp_path / "run"), *arguments]) == 2
    assert message in one_sentence(capsys)
    assert not (tmp_path / "run").exists()


def empty(folder):
    folder.mkdir()


def one_class(folder):
    make_folder(folder, classes=("ant",))


def class_only_in_val(folder):
    make_folder(folder)
    save(folder / "val" / "wasp" / "0.png")


def truncated(folder):
    make_folder(folder)
    victim = folder / "train" / "bee" / "2.png"
    Image.effect_noise((64, 64), 90).save(victim)
    victim.write_bytes(victim.read_bytes()[:2000])


def no_image(folder):
    make_folder(folder)
    (folder / "train" / "bee" / "2.jpg").write_text("not a picture")


def parquet_without_images(folder):
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    parquet.write_table(pa.table({"label": [0, 1], "text": ["a", "b"]}), folder / "train-0.parquet")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty, "it holds no images"),
        (one_class, "has one class, ant"),
        (class_only_in_val, "the class wasp is not in"),
        (truncated, "bee/2.png: a damaged image"),
        (no_image, "bee/2.jpg: not an image"),
        (parquet_without_images, "no image column"),
        (lambda folder: None, "there is no such folder"),
    ],
)
def test_wrong_data(tmp_path, capsys, make, message):
    make(tmp_path / "photos")
    assert cli(train_arguments(tmp_path / "photos", tmp_path / "run")) == 2
    sentence = one_sentence(capsys)
    assert message in sentence
    assert str(tmp_path / "photos") in sentence
    assert not (tmp_path / "run").exists()


# Case 19: the user chose to go on without the damaged image, and it is named.
def test_damaged_images_are_left_out_and_named(tmp_path, capsys):
    truncated(tmp_path / "photos")
    arguments = train_arguments(tmp_path / "photos", tmp_path / "run")
    assert cli([*arguments, "--on-bad-image", "skip"]) == 0
    assert "left out: " in (said := capsys.readouterr().err)
    assert "bee/2.png" in said
    record = Run.load(tmp_path / "run").config["data"]
    assert record["train_images"] == 7
    assert len(record["skipped"]) == 1


def test_predict_stops_at_or_skips_damaged_images(digits_run, tmp_path, capsys):
    good, bad = save(tmp_path / "good.png"), tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff nothing")
    assert cli(["predict", str(digits_run), str(bad), str(good), "--json"]) == 2
    assert "bad.jpg" in one_sentence(capsys)
    arguments = ["predict", str(digits_run), str(bad), str(good), "--json"]
    assert cli([*arguments, "--on-bad-image", "skip"]) == 0
    shown = capsys.readouterr()
    assert [row["image"] for row in json.loads(shown.out)] == [str(good)]
    assert "bad.jpg" in shown.err
    assert cli(["predict", str(digits_run), str(bad), "--on-bad-image", "skip"]) == 2
    assert cli(["predict", str(digits_run), str(tmp_path / "none.jpg")]) == 2
    assert "none.jpg" in capsys.readouterr().err


def test_output_that_holds_something_is_never_touched(digits_run, tmp_path, capsys):
    data = make_folder(tmp_path / "photos")
    before = (digits_run / "config.json").read_bytes()
    assert cli(train_arguments(data, digits_run)) == 2
    assert "already holds a run" in one_sentence(capsys)
    assert (digits_run / "config.json").read_bytes() == before
    assert cli([*train_arguments(data, data), "--overwrite"]) == 2
    assert "is not empty and holds no run" in one_sentence(capsys)
    assert (data / "train" / "ant" / "0.png").is_file()
    assert cli(train_arguments(data, data / "train" / "ant" / "0.png")) == 2
    assert "is a file" in one_sentence(capsys)


def test_overwrite_never_takes_another_program_s_folder_for_a_run(tmp_path, capsys):
    data = make_folder(tmp_path / "photos")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    assert cli([*train_arguments(data, tmp_path / "other"), "--overwrite"]) == 2
    assert "holds no run" in one_sentence(capsys)
    assert (tmp_path / "other" / "config.json").read_text() == "{}"


def test_overwrite_replaces_a_run(tmp_path, capsys):
    data = make_folder(tmp_path / "photos")
    assert cli(train_arguments(data, tmp_path / "run")) == 0
    (tmp_path / "run" / "stale").write_text("of the first run")
    assert cli([*train_arguments(data, tmp_path / "run"), "--overwrite"]) == 0
    assert not (tmp_path / "run" / "stale").exists()
    capsys.readouterr()


def damaged(folder, file, content):
    (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "is not a run: it has no config.json"),
        (lambda run: damaged(run, "config.json", b"{"), "config.json is damaged"),
        (lambda run: damaged(run, "config.json", b'{"task": "x"}'), "unknown task 'x'"),
        (lambda run: damaged(run, "config.json", b"{}"), "config.json is damaged: no 'task'"),
        (lambda run: (run / "model.safetensors").unlink(), "there is no such weights file"),
        (lambda run: damaged(run, "model.safetensors", b"123"), "not a whole safetensors file"),
    ],
)
def test_damaged_runs(digits_run, tmp_path, capsys, spoil, message):
    shutil.copytree(digits_run, tmp_path / "run")
    spoil(tmp_path / "run")
    assert cli(["predict", str(tmp_path / "run"), str(save(tmp_path / "a.png"))]) == 2
    assert message in one_sentence(capsys)


# Case 4: a checkpoint of another width is named with both widths, in one line.
def test_checkpoint_of_another_width(digits_run, tmp_path, capsys):
    from mobilenets import create_model

    shutil.copytree(digits_run, tmp_path / "run")
    other = create_model("0.5-16-s8", num_classes=10)
    save_file(other.state_dict(), tmp_path / "run" / "model.safetensors")
    assert cli(["evaluate", str(tmp_path / "run"), "digits"]) == 2
    assert "its width is 0.5 and the model's 0.25" in one_sentence(capsys)


def test_evaluate_with_unknown_classes_and_splits(digits_run, tmp_path, capsys):
    data = make_folder(tmp_path / "photos")
    assert cli(["evaluate", str(digits_run), str(data)]) == 2
    assert "has classes the model does not know: ant, bee" in one_sentence(capsys)
    assert cli(["evaluate", str(digits_run), "digits", "--split", "tst"]) == 2
    assert "has no split 'tst': it has train, test" in one_sentence(capsys)


def test_export_refuses_what_it_cannot_do(digits_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    assert cli(["export", str(run), "--to", "onx"]) == 2
    assert "unknown target 'onx'" in one_sentence(capsys)
    config = json.loads((run / "config.json").read_text())
    config["data"]["where"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    assert cli(["export", str(run)]) == 2
    assert "--images" in one_sentence(capsys)
    assert cli(["export", str(run), "--images", str(save(tmp_path / "a.png"))]) == 0
    capsys.readouterr()
    assert cli(["export", str(run), "--images", str(tmp_path / "a.png")]) == 2
    assert "already holds an export" in one_sentence(capsys)


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting needs root")
def test_full_disk_ends_with_a_sentence(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        data = make_folder(tmp_path / "photos")
        assert cli(train_arguments(data, disk / "run")) == 2
        assert "no space left on the disk of" in one_sentence(capsys)
        assert not list(disk.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("mobilenets.cli.cost.cost_of", lambda spec, classes: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli(["cost", "1.0-224"])


def test_unknown_verb_and_no_verb(capsys):
    assert cli(["csot"]) == 2
    assert "Did you mean 'cost'?" in capsys.readouterr().err
    assert cli(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mobilenets ")


def test_reader_that_closes_the_pipe_early_sees_no_traceback():
    script = f"{sys.executable} -m mobilenets cost 1.0-224 0.5-160 --json | head -n 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[\n"
    assert "Traceback" not in done.stderr


def test_main_job_on_real_photos(hymenoptera, tmp_path, capsys):
    arguments = ["train", str(hymenoptera), "--model", "0.25-96", "--epochs", "1", "--json"]
    assert cli([*arguments, "--output", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert "training 0.25-96 on 244 images of 2 classes, validating on 153" in shown.err
    best = json.loads(shown.out)
    assert cli(["evaluate", str(tmp_path / "run"), str(hymenoptera), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["images"], figures["split"], figures["top5"]) == (153, "val", 1.0)
    assert figures["top1"] == pytest.approx(best["top1"])
    photo = next((hymenoptera / "val" / "bees").glob("*.jpg"))
    assert cli(["predict", str(tmp_path / "run"), str(photo)]) == 0
    assert cli(["export", str(tmp_path / "run"), "--json"]) == 0
    (bundle,) = json.loads("[" + capsys.readouterr().out.partition("\n[")[2])
    assert (bundle["parity"]["images"], bundle["parity"]["holds"]) == (153, True)
    assert load_file(tmp_path / "run" / "last" / "model.safetensors")


def test_a_killed_reader_is_one_sentence(monkeypatch, capsys):
    def killed(arguments):
        raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed.")

    monkeypatch.setattr("mobilenets.cli.main.app", killed)
    assert cli(["train", "photos"]) == 2
    assert "a process that read images was killed" in capsys.readouterr().err

    def broken(arguments):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("mobilenets.cli.main.app", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli(["train", "photos"])
