"""Videos and cameras as frames, through OpenCV."""

import csv
import io
import json
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest

from mobilenets import Run
from mobilenets.cli.main import run as cli
from mobilenets.data.images import BadImageError
from mobilenets.data.video import Video

cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
RATE = 10
RED_GREEN_BLUE = ((250, 5, 5), (5, 250, 5), (5, 5, 250))
# In a process of its own, so that OpenCV is first used by what is tested here.
RECORD = f"""
import sys
import cv2
import numpy as np
code = "MJPG" if sys.argv[1].endswith(".avi") else "mp4v"
writer = cv2.VideoWriter(sys.argv[1], cv2.VideoWriter_fourcc(*code), {RATE}, (64, 48))
for red, green, blue in {RED_GREEN_BLUE}:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, 32:] = (blue, green, red)
    for _ in range({RATE}):
        writer.write(picture)
writer.release()
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds: a red one, a green one, a blue one; the left half is black."""
    return record(tmp_path_factory.mktemp("videos") / "clip.mp4")


def record(path):
    subprocess.run([sys.executable, "-c", RECORD, path], check=True)
    return path


@pytest.mark.parametrize(
    ("every", "seconds"),
    [
        (1.0, [0, 1, 2]),
        (0.5, [0, 0.5, 1, 1.5, 2, 2.5]),
        (0.0, [number / RATE for number in range(3 * RATE)]),
        # Between frames: the first one after it, and no later for that.
        (1.25, [0, 1.3, 2.5]),
        (0.25, [0, 0.3, 0.5, 0.8, 1.0, 1.3, 1.5, 1.8, 2.0, 2.3, 2.5, 2.8]),
        (99.0, [0]),
    ],
)
def test_frames_come_by_time(clip, every, seconds):
    video = Video(str(clip), every)
    frames = list(video.frames())
    assert [frame.seconds for frame in frames] == pytest.approx(seconds)
    assert video.count() == len(frames)


def test_frames_are_upright_and_rgb(clip):
    for frame, colour in zip(Video(str(clip)).frames(), RED_GREEN_BLUE, strict=True):
        assert frame.pixels_HWC.shape == (48, 64, 3)
        assert frame.pixels_HWC[:, 40:].mean((0, 1)) == pytest.approx(colour, abs=12)
        assert frame.pixels_HWC[:, :24].max() < 20


def test_a_video_on_its_side_is_turned(clip, tmp_path):
    """As phones write them: the matrix of the track's header says how to turn it."""
    content = bytearray(clip.read_bytes())
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = quarter
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(content)
    frame = next(Video(str(turned)).frames())
    assert frame.pixels_HWC.shape == (64, 48, 3)
    # What was black on the left is black above now.
    assert frame.pixels_HWC[:24].max() < 20
    assert frame.pixels_HWC[40:].mean((0, 1)) == pytest.approx(RED_GREEN_BLUE[0], abs=12)


def test_a_video_that_breaks_off_is_told(digits_run, tmp_path, capsys):
    path = record(tmp_path / "clip.avi")
    assert len(list(Video(str(path)).frames())) == 3
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(BadImageError, match=r"damaged after [01]\.\d of its 3\.0 seconds"):
        list(Video(str(path)).frames())
    assert cli(["predict", str(digits_run), str(path), "--json"]) == 2
    assert "damaged after" in capsys.readouterr().err
    asked = ["predict", str(digits_run), str(path), "--on-bad-image", "skip", "--json"]
    assert cli(asked) == 0
    there = capsys.readouterr()
    assert 1 <= len(json.loads(there.out)) <= 2
    assert "warning: left out: " in there.err


def test_a_run_says_of_a_frame_what_it_says_of_its_picture(clip, digits_run, capsys):
    assert cli(["predict", str(digits_run), str(clip), "--every", "0.5", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["seconds"] for row in rows] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert {row["image"] for row in rows} == {str(clip)}
    run = Run.load(digits_run)
    for row, frame in zip(rows, Video(str(clip), 0.5).frames(), strict=True):
        expected = run.predict(frame.pixels_HWC).to_dict()["predictions"]
        assert [guess["label"] for guess in row["predictions"]] == [
            guess["label"] for guess in expected
        ]


def test_photos_and_videos_go_together(clip, digits_run, tmp_path, capsys):
    picture = tmp_path / "photo.png"
    cv2.imwrite(str(picture), np.zeros((20, 20, 3), np.uint8))
    assert cli(["predict", str(digits_run), str(picture), str(clip), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["seconds"] for row in rows if row["rank"] == "1"] == ["", "0.0", "1.0", "2.0"]
    assert cli(["predict", str(digits_run), str(picture), str(clip)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4
    assert said[0].startswith(f"{picture}: ")
    assert said[2].startswith(f"{clip} at 1.00 s: ")


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:700])


def missing(path):
    path.unlink()


@pytest.mark.parametrize("spoil", [empty, text, cut_off, missing])
def test_a_video_that_cannot_be_read_is_one_sentence(clip, digits_run, tmp_path, capfd, spoil):
    path = tmp_path / "bad.mp4"
    path.write_bytes(clip.read_bytes())
    spoil(path)
    with pytest.raises(BadImageError, match=r"bad\.mp4: "):
        Video(str(path)).count()
    capfd.readouterr()
    assert cli(["predict", str(digits_run), str(path)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"mobilenets: {path}: ")
    asked = ["predict", str(digits_run), str(path), str(clip), "--on-bad-image", "skip", "--json"]
    assert cli(asked) == 0
    there = capfd.readouterr()
    assert len(json.loads(there.out)) == 3
    assert "warning: left out: " in there.err


def test_bad_options_are_one_sentence(clip, digits_run, capsys):
    for every in ("-1", "nan", "inf"):
        assert cli(["predict", str(digits_run), str(clip), "--every", every]) == 2
        assert "--every is a number of seconds" in capsys.readouterr().err
    assert cli(["predict", str(digits_run), "camera:77"]) == 2
    assert "camera:77: there is no such camera" in capsys.readouterr().err
    assert cli(["predict", str(digits_run), str(clip), "camera"]) == 2
    assert "camera is watched until Ctrl-C: ask for it alone" in capsys.readouterr().err
    assert cli(["predict", str(digits_run), "camera:10000000000"]) == 2
    assert "there is no such image" in capsys.readouterr().err


def test_patterns_name_photos_and_videos(clip, digits_run, tmp_path, capsys):
    (tmp_path / "b.mp4").write_bytes(clip.read_bytes())
    asked = ["predict", str(digits_run), str(tmp_path / "*"), "--json"]
    assert cli(asked) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 20, 3), np.uint8))
    assert cli(asked) == 0
    names = [row["image"] for row in json.loads(capsys.readouterr().out)]
    assert sorted(names) == [str(tmp_path / "a.png"), *[str(tmp_path / "b.mp4")] * 3]


def test_a_missing_opencv_says_how_to_install_it(clip, digits_run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert cli(["predict", str(digits_run), str(clip)]) == 2
    assert "needs OpenCV: pip install opencv-python-headless" in capsys.readouterr().err


def test_a_camera_is_watched_until_it_is_interrupted(clip, digits_run, capsys, monkeypatch):
    """A file that never ends stands for the camera, of which machines that test have none."""
    opened = cv2.VideoCapture
    grabbed = []

    class Camera:
        def __init__(self, number):
            assert number == 1
            self.file = opened(str(clip))

        def grab(self):
            grabbed.append(self.file.grab() or self.file.set(cv2.CAP_PROP_POS_FRAMES, 0))
            if len(grabbed) == 12:
                os.kill(os.getpid(), signal.SIGINT)
            return True

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    # Shells let what runs in the background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    code = cli(["predict", str(digits_run), "camera:1", "--every", "0", "--json"])
    signal.signal(signal.SIGINT, before)
    assert code == 0
    rows = json.loads(capsys.readouterr().out)
    assert 5 <= len(rows) <= 12
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert {row["image"] for row in rows} == {"camera:1"}
