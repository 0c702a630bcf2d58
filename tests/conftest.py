"""Trained runs that several tests look at."""

import json
import shutil
import subprocess
import sys
import tarfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial, wraps
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from coverage import Coverage
from filelock import FileLock
from huggingface_hub import constants
from PIL import Image, ImageDraw

from mobilenets.cli.main import run

# Two threads wait for each other on tensors this small whenever anything else runs.
torch.set_num_threads(1)

# A process has one command line and builds its parsers once; here it has hundreds, each of the same parsers.
typer.main.get_command = cache(typer.main.get_command)


def untraced(function):
    """The same; while coverage is measured it does not look inside, where it would find nothing of ours."""

    @wraps(function)
    def quick(*arguments, **named):
        tracer = sys.gettrace()
        if tracer is None or Coverage.current() is None:
            return function(*arguments, **named)
        tracer.stop()
        try:
            return function(*arguments, **named)
        finally:
            tracer.start()

    return quick


# Tracing makes Python half as fast, and these run in Python for seconds.
CONVERTERS = {
    "torch.export": ("export", "load", "save"),
    "torch.onnx": ("export",),
    "torchao.quantization.pt2e.quantize_pt2e": ("prepare_pt2e", "convert_pt2e"),
    "executorch.exir": ("to_edge_transform_and_lower",),
    "litert_torch": ("convert",),
    "coremltools": ("convert",),
    "nncf": ("quantize",),
    "onnxruntime.quantization": ("quantize_static",),
}


@pytest.fixture(autouse=True)
def untraced_converters():
    """All that have been imported by now."""
    for module in CONVERTERS.keys() & sys.modules.keys():
        for name in CONVERTERS.pop(module):
            setattr(sys.modules[module], name, untraced(getattr(sys.modules[module], name)))


SHARED = Path(__file__).parents[2] / "shared"

SIDE = 96
COLOURS = {"disc": "orange", "square": "navy"}


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """Makes a folder that all of pytest's processes look at: whoever needs it first, while the others wait."""
    alone = worker_id == "master"
    place = tmp_path_factory.getbasetemp() if alone else tmp_path_factory.getbasetemp().parent

    def find(name, make):
        folder, done = place / "once" / name, place / "once" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(place / "once" / f"{name}.lock"):
            if not done.exists():
                # What a test that failed halfway has left.
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder

    return find


@pytest.fixture(scope="session")
def digits_run(once):
    """A small model after four epochs of handwritten digits: well above chance, quickly made."""
    return once("digits", partial(train_digits, epochs=4))


def train_digits(folder, epochs):
    arguments = ["train", "digits", "--model", "0.25-16-s8", "--epochs", str(epochs)]
    assert run([*arguments, "--device", "cpu", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def exported(digits_run, once):
    """The same with a proven ONNX export in it."""

    def make(folder):
        shutil.copytree(digits_run, folder)
        assert run(["export", str(folder), "--to", "onnx"]) == 0

    return once("exported", make)


def predicted(folder, images, capsys, *options):
    """What `predict --json` says."""
    capsys.readouterr()
    assert run(["predict", str(folder), *map(str, images), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


@contextmanager
def served_by(*arguments):
    """A verb that serves pages, in a process of its own: the address that it tells."""
    command = [sys.executable, "-m", "mobilenets", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = server.stderr.readline().split()[0]
            assert address.startswith("http://127.0.0.1:")
            yield address
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def shared():
    """The folder of real data and weights beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in shared/ beside the checkout")
    return SHARED


@pytest.fixture(scope="module")
def chromium():
    """A real browser without a window, gone with its module: processes that other tests fork must not inherit its pipes."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root in a container there is no sandbox to be had, and a camera is a picture that moves.
        arguments = ["--no-sandbox", "--use-fake-device-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def barriers():
    """What axe-core finds serious on a page for people who read it aloud, by keyboard or in high contrast."""
    from axe_playwright_python.sync_playwright import Axe

    def find(page):
        violations = Axe().run(page).response["violations"]
        return [
            (found["id"], found["impact"], [node["html"][:120] for node in found["nodes"][:3]])
            for found in violations
            if found["impact"] in ("serious", "critical")
        ]

    return find


def unpacked(shared, name, place):
    """A set of real images in a folder of its own."""
    with tarfile.open(shared / "data" / f"{name}.tar") as archive:
        archive.extractall(place, filter="data")
    return place / name


@pytest.fixture(scope="session")
def hymenoptera(shared, once):
    """Real photos of ants and bees, train 244 and val 153, as an image folder."""
    return once("photos", partial(unpacked, shared, "hymenoptera")) / "hymenoptera"


def draw_shapes(path, things):
    """A grey picture with discs and squares: (label, left, top, side)."""
    random = np.random.default_rng(len(path.name))
    noise = random.integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    pen = ImageDraw.Draw(picture)
    for label, left, top, side in things:
        shape = (left, top, left + side - 1, top + side - 1)
        (pen.ellipse if label == "disc" else pen.rectangle)(shape, fill=COLOURS[label])
    picture.save(path)


@pytest.fixture(scope="session")
def shapes(once):
    """Twelve pictures of discs and squares, the last of which has none, in COCO's layout; `val` is as `train`."""
    return once("shapes", draw_all_shapes)


def draw_all_shapes(folder):
    folder.mkdir()
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        (folder / split).mkdir()
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for number in range(12):
        things = []
        for quarter in random.permutation(4)[: 0 if number == 11 else 2]:
            side = int(random.integers(20, 36))
            left, top = (
                48 * part + int(random.integers(0, 48 - side)) for part in divmod(int(quarter), 2)
            )
            things.append((("disc", "square")[int(random.integers(2))], left, top, side))
        name = f"{number:02}.png"
        for split in ("train", "val"):
            draw_shapes(folder / split / name, things)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for label, left, top, side in things:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": {"disc": 3, "square": 9}[label],
                    "bbox": [left, top, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 3, "name": "disc"}, {"id": 9, "name": "square"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def repeat_shapes(shapes, times, folder):
    """The same with each picture to train on several times, for epochs that are worth an evaluation."""
    shutil.copytree(shapes, folder)
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    images, annotations = content["images"], content["annotations"]
    content["images"], content["annotations"] = [], []
    for time in range(times):
        for image in images:
            name, number = f"{time}-{image['file_name']}", len(images) * time + image["id"]
            shutil.copy(folder / "train" / image["file_name"], folder / "train" / name)
            content["images"].append({**image, "id": number, "file_name": name})
        for thing in annotations:
            number = len(annotations) * time + thing["id"]
            place = len(images) * time + thing["image_id"]
            content["annotations"].append({**thing, "id": number, "image_id": place})
    for image in images:
        (folder / "train" / image["file_name"]).unlink()
    file.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def shapes_run(shapes, once):
    """SSD at width 0.25 after it has seen twelve pictures until it knows them."""
    often = once("often", partial(repeat_shapes, shapes, 10))
    command = ["train", str(often), "--task", "detection", "--model", "ssd96/0.25"]
    changes = ["augmentation.crop=false", "augmentation.expand=1", "augmentation.colour=0"]
    changes += ["batch_size=6", "optimizer.lr=0.01", "ema_decay=0.9"]
    for change in changes:
        command += ["--set", change]
    command += ["--epochs", "12", "--device", "cpu", "--output"]

    def make(folder):
        assert run([*command, str(folder)]) == 0

    return once("shapes-run", make)


@pytest.fixture(scope="session")
def coco_run(shared, once):
    """TensorFlow's own weights of SSD on COCO."""
    file = shared / "weights" / "ssd_mobilenet_v1_1_metadata_1.tflite"

    def make(folder):
        assert run(["weights", "import", str(file), "--output", str(folder)]) == 0

    return once("coco-run", make)


@pytest.fixture(scope="session")
def coco(shared, once):
    """256 images of COCO with their boxes."""
    return once("coco", partial(unpacked, shared, "coco128")) / "coco128"


@contextmanager
def served(server):
    """An HTTP server that answers in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def empty_caches(monkeypatch, tmp_path):
    """Downloads go to folders of this test, with no mirror and no ban in the way."""
    # The Hub's library reads its variables once, when it is imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("HF_HUB_OFFLINE", "MOBILENETS_MIRROR"):
        monkeypatch.delenv(name, raising=False)


class Quiet(SimpleHTTPRequestHandler):
    """Tells nobody what it was asked for, nor that a browser went away."""

    def log_message(self, *arguments):
        pass

    def copyfile(self, source, outputfile):
        with suppress(ConnectionError):
            super().copyfile(source, outputfile)


class Trial:
    """A page that a run is tried with, on a server that knows nothing of it, as seen by a browser.

    `problems` are what the browser complains of, `asked` the addresses that it asked for.
    """

    # A browser's own note where there is no GPU.
    EXPECTED = ("No available adapters.",)
    NOTICED = """
        window.answered = []; window.measured = [];
        for (const name of ["answered", "measured"]) document.addEventListener(name, event => window[name].push(event.detail));
    """
    WAIT = """async ([name, count, least]) => {
        const problem = document.getElementById("problem"), over = performance.now() + 30000;
        while (window[name].length < count) {
            if (!problem.hidden && count === least) throw new Error(problem.textContent);
            if (performance.now() > over) throw new Error(`nothing was ${name}`);
            await new Promise(resolve => setTimeout(resolve, 10));
        }
        return window[name].at(-1);
    }"""

    def __init__(self, context, address):
        self.context = context
        self.problems, self.asked = [], []
        context.add_init_script(self.NOTICED)
        context.on("console", lambda message: self.problems.append(message.text))
        context.on("weberror", lambda error: self.problems.append(str(error.error)))
        context.on("request", lambda request: self.asked.append(request.url))
        self.page = context.new_page()
        self.page.goto(address)

    def wait(self, count, name="answered"):
        """What was answered last, once there are so many."""
        return self.page.evaluate(self.WAIT, [name, count, count])

    def answer(self, image, slot=0):
        """What the page says of an image, a path or what playwright takes as a file."""
        count = self.page.evaluate("answered.length")
        given = image if isinstance(image, dict) else str(image)
        self.page.locator("input[type=file]").nth(slot).set_input_files(given)
        return self.wait(count + 1)["answers"][slot]

    def problem(self):
        """The sentence on the page about what is wrong."""
        problem = self.page.locator("#problem")
        problem.wait_for(state="visible")
        return problem.inner_text()


@pytest.fixture
def trial(chromium, tmp_path):
    """Opens the page of a run that is exported or a page's folder; afterwards nothing went wrong, and nobody else was asked."""
    with ExitStack() as stack:
        trials = []

        def try_run(
            place,
            *,
            page="index.html",
            before=None,
            size=(1280, 900),
            options=(),
            fine=True,
            browser=chromium,
            **more,
        ):
            folder = place
            if (place / "config.json").exists():
                folder = tmp_path / f"page-{len(trials)}"
                assert run(["web", str(place), "--output", str(folder), *options]) == 0
            handler = partial(Quiet, directory=folder)
            server = stack.enter_context(served(ThreadingHTTPServer(("127.0.0.1", 0), handler)))
            viewport = {"width": size[0], "height": size[1]}
            context = browser.new_context(viewport=viewport, **more)
            stack.callback(context.close)
            if before:
                context.add_init_script(before)
            address = f"http://127.0.0.1:{server.server_port}/"
            found = Trial(context, f"{address}{page}")
            trials.append((found, address, fine))
            return found

        yield try_run
    for found, address, fine in trials:
        if fine:
            assert [problem for problem in found.problems if problem not in Trial.EXPECTED] == []
        asked = {url for url in found.asked if not url.startswith(("blob:", "data:"))}
        assert all(url.startswith(address) for url in asked), asked
