"""The page to try a run with, in a real browser: it says what `predict` says, without a network, or what is wrong in a sentence."""

import base64
import io
import json
import re
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from conftest import predicted, served_by
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.cli.main import run as cli
from mobilenets.data.images import read_image
from mobilenets.data.transforms import fit, normalise
from mobilenets.tasks.attributes.task import Attributes
from mobilenets.tasks.classification.task import Classification
from mobilenets.web import try_page
from mobilenets.web.try_page import RUNTIME, reading

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
# Each size and each scheme once, the other two pairs when there is time.
VIEWS = [
    ("desktop", "light"),
    ("phone", "dark"),
    pytest.param("desktop", "dark", marks=pytest.mark.slow),
    pytest.param("phone", "light", marks=pytest.mark.slow),
]
# Runs in the page, so that the page's own script is what is looked at.
INPUT = """async ([name, encoded, preprocessing]) => {
    const {inputOf} = await import("./picture.js");
    const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes]), {colorSpaceConversion: "none", imageOrientation: "from-image"});
    return Array.from(inputOf(bitmap, preprocessing));
}"""


@pytest.fixture(scope="module")
def site(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "digits"
    assert cli(["web", str(exported), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Handwritten digits as files."""
    folder = tmp_path_factory.mktemp("digits")
    for number, pixels in enumerate(load_digits().images[:6]):
        side = (16, 24, 64, 9, 16, 300)[number]
        picture = Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((side, side))
        picture.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def imagenet_run(shared, tmp_path_factory):
    """TensorFlow's own weights of 0.25-128, exported."""
    folder = tmp_path_factory.mktemp("imagenet")
    samples = folder / "samples"
    shutil.unpack_archive(shared / "data" / "imagenet_samples.tar", samples, filter="data")
    place = folder / "run"
    file = shared / "weights" / "mobilenet_v1_0.25_128_quant.tflite"
    assert cli(["weights", "import", str(file), "--output", str(place)]) == 0
    assert cli(["export", str(place), "--images", str(samples), "--limit", "32"]) == 0
    return place, sorted(samples.rglob("*.jpg"))


def check_classes(found, wanted, tolerance):
    assert found["predictions"][0]["label"] == wanted["predictions"][0]["label"]
    scores = {one["index"]: one["score"] for one in wanted["predictions"]}
    shared = [one for one in found["predictions"] if one["index"] in scores]
    assert len(shared) >= 3
    for one in shared:
        assert one["score"] == pytest.approx(scores[one["index"]], abs=tolerance)


def test_digits_are_told_as_predict_tells_them(exported, digits, trial, capsys):
    images = sorted(digits.iterdir())
    page = trial(exported)
    for image, wanted in zip(images, predicted(exported, images, capsys), strict=True):
        check_classes(page.answer(image), wanted, 0.01)
    assert page.page.locator("#state").inner_text().startswith("Ready: 0.25-16-s8, CPU, ")
    assert "frames/s" in page.page.locator("#times").inner_text()
    assert page.page.locator("#rows tr").count() == 5


def test_twenty_photos_are_told_as_predict_tells_them(imagenet_run, trial, capsys):
    run, samples = imagenet_run
    images = samples[::50][:20]
    assert len(images) == 20
    page = trial(run)
    for image, wanted in zip(images, predicted(run, images, capsys), strict=True):
        check_classes(page.answer(image), wanted, 0.01)


def test_a_detector_finds_what_predict_finds(coco_run, coco, trial, capsys, tmp_path):
    images = sorted(coco.rglob("*.jpg"))[:4]
    run = tmp_path / "run"
    shutil.copytree(coco_run, run)
    assert cli(["export", str(run), "--images", str(coco), "--limit", "4"]) == 0
    page = trial(run)
    count = 0
    for image, wanted in zip(images, predicted(run, images, capsys), strict=True):
        both = [page.answer(image)["predictions"], wanted["predictions"]]
        # What either tells with a score near the least may be missing from the other.
        for ones, others in (both, both[::-1]):
            for one in ones:
                alike = [
                    other
                    for other in others
                    if other["label"] == one["label"]
                    and other["box"] == pytest.approx(one["box"], abs=0.01)
                    and other["score"] == pytest.approx(one["score"], abs=0.01)
                ]
                assert alike or one["score"] < 0.51, (image.name, one)
                count += bool(alike)
    assert count > 10
    told = page.page.locator("#rows tr").count()
    page.page.locator("#least").fill("1")
    page.wait(len(images) + 1)
    assert page.page.locator("#rows tr").count() > told


def test_it_works_without_a_network_and_with_threads_on_any_server(exported, digits, trial):
    page = trial(exported, page="#threads=2")
    first = page.answer(digits / "0.png")
    assert page.page.evaluate("crossOriginIsolated") is False
    page.page.evaluate("navigator.serviceWorker.ready.then(() => null)")
    page.context.set_offline(True)
    page.page.reload()
    assert page.answer(digits / "0.png") == first
    # What the server did not say, the page's own worker says.
    assert page.page.evaluate("crossOriginIsolated") is True
    assert "2 threads" in page.page.locator("#state").inner_text()


@pytest.mark.parametrize(
    ("resize", "interpolation"), [("crop", "bilinear"), ("squash", "bicubic"), ("crop", "nearest")]
)
def test_pictures_become_what_the_network_takes(site, trial, resize, interpolation):
    page = trial(site)
    random = np.random.default_rng(0)
    for (height, width), channels in (
        ((300, 211), "RGB"),
        ((37, 90), "BGR"),
        ((32, 32), "L"),
        ((20, 9), "RGBA"),
        ((1, 700), "RGB"),
        ((2000, 1501), "RGB"),
    ):
        coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        count = {"L": 1, "RGBA": 4}.get(channels, 3)
        how = Preprocessing(
            24,
            32,
            channels,
            resize,
            interpolation=interpolation,
            mean=(0.5, 0.4, 0.3, 0.2)[:count],
            std=(0.25,) * count,
        )
        encoded = io.BytesIO()
        picture.save(encoded, "PNG")
        given = base64.b64encode(encoded.getvalue()).decode()
        found = page.page.evaluate(INPUT, ["picture", given, how.to_dict()])
        pixels = fit(read_image(encoded.getvalue(), count), how)
        wanted = normalise(pixels[None], how)[0]
        levels = (torch.tensor(found).view_as(wanted) - wanted).abs() * 0.25 * 255
        # Equal where PyTorch resizes 8-bit values themselves, as it does on processors with AVX2.
        assert float(levels.max()) <= 1.01, (height, width, channels)
        assert float(levels.mean()) < 0.1


@pytest.mark.parametrize("kind", ["turned", "transparent", "palette", "grey", "cmyk", "webp"])
def test_odd_files_are_seen_as_predict_sees_them(site, trial, kind):
    page = trial(site)
    random = np.random.default_rng(1)
    coarse = random.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((70, 90), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(encoded, "JPEG", exif=exif, quality=95)
    elif kind == "transparent":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(encoded, "PNG")
    elif kind == "webp":
        picture.save(encoded, "WEBP", lossless=True)
    else:
        mode = {"palette": "P", "grey": "L", "cmyk": "CMYK"}[kind]
        picture.convert(mode).save(encoded, "JPEG" if kind == "cmyk" else "PNG", quality=95)
    how = Preprocessing(24, 24)
    given = base64.b64encode(encoded.getvalue()).decode()
    found = torch.tensor(page.page.evaluate(INPUT, [kind, given, how.to_dict()]))
    wanted = normalise(fit(read_image(encoded.getvalue()), how)[None], how)[0]
    levels = (found.view_as(wanted) - wanted).abs() * 0.5 * 255
    # Browsers turn inks into colours in their own way.
    assert float(levels.mean()) < (20 if kind == "cmyk" else 1.5), float(levels.max())


def test_outputs_are_read_as_tasks_read_them(site, trial):
    page = trial(site)
    random = np.random.default_rng(2)
    outputs = random.normal(0, 3, (5, 7)).astype(np.float32)
    labels = tuple("abcdef")
    how = Preprocessing(8, 8)
    script = 'async ([model, outputs]) => (await import("./answers.js")).read(model, outputs)'
    for task in (
        Classification(labels, how),
        Attributes((*labels, "g"), how, thresholds=[0.1, 0.3, 0.5, 0.7, 0.9, 0.2, 0.4]),
    ):
        model = {"task": task.name, "labels": list(task.labels), **reading(task)}
        for row, wanted in zip(outputs, task.decode(outputs), strict=True):
            found = page.page.evaluate(script, [model, row.tolist()])
            (key,) = found
            for one, other in zip(found[key], wanted.to_dict()[key], strict=True):
                assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
                assert one == pytest.approx(other)


@pytest.mark.parametrize(("size", "scheme"), VIEWS)
def test_nothing_keeps_people_from_using_it(site, digits, trial, barriers, size, scheme):
    # axe-core brings its own script into the page.
    page = trial(site, size=SIZES[size], color_scheme=scheme, bypass_csp=True)
    page.answer(digits / "2.png")
    assert page.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert barriers(page.page) == []
    assert page.page.locator(".stage canvas").get_attribute("aria-label").startswith("Picture: ")
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.tagName") in ("BUTTON", "INPUT", "SELECT")


def paste(page, kind, content="new Blob(['no picture'], {type: 'text/plain'})"):
    page.page.evaluate(
        """async ([kind, address]) => {
            const data = new DataTransfer();
            if (address) data.items.add(new File([await (await fetch(address)).blob()], "given.png"));
            const options = {bubbles: true, cancelable: true};
            document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, {...options, clipboardData: data}) : new DragEvent(kind, {...options, dataTransfer: data}));
        }""",
        [kind, content],
    )


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_pictures_are_pasted_and_dropped(site, trial, kind):
    page = trial(site)
    paste(page, kind, "icon-192.png")
    assert page.wait(1)["answers"][0]["predictions"]
    if kind == "paste":
        paste(page, kind, None)
        assert page.problem() == "What was pasted holds no picture."


def test_the_camera_answers_frame_after_frame(site, trial):
    page = trial(site, permissions=["camera"])
    page.page.locator("#camera").click()
    page.wait(5)
    assert page.page.locator("#camera").get_attribute("aria-pressed") == "true"
    page.page.locator("#camera").click()
    assert page.page.locator("#camera").inner_text() == "Use the camera"


@pytest.mark.slow
def test_a_gpu_says_what_the_cpu_says(site, digits, chromium, trial):
    """WebGPU as Chromium's own software computes it."""
    browser = chromium.browser_type.launch(
        executable_path=shutil.which("chromium"),
        args=[
            "--no-sandbox",
            "--enable-unsafe-webgpu",
            "--use-webgpu-adapter=swiftshader",
            "--enable-features=Vulkan",
        ],
    )
    with browser:
        page = trial(site, browser=browser)
        if not page.page.evaluate("navigator.gpu?.requestAdapter().then(Boolean)"):
            pytest.skip("this Chromium has no GPU, not even in software")
        first = page.answer(digits / "0.png")
        page.page.locator("#processor option[value=gpu]").wait_for(state="attached")
        page.page.locator("#processor").select_option("gpu")
        # The picture that is there is looked at once more.
        second = page.wait(2)["answers"][0]
        assert page.page.locator("#state").inner_text().endswith("GPU, by WebGPU")
        assert [one["label"] for one in second["predictions"]] == [
            one["label"] for one in first["predictions"]
        ]
        for one, other in zip(first["predictions"], second["predictions"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=0.01)
        page.page.locator("#processor").select_option("cpu")
        assert page.wait(3)["answers"][0] == first


def test_speed_is_measured_on_the_page(site, digits, trial):
    page = trial(site)
    assert page.page.locator("#measure").is_disabled()
    page.answer(digits / "0.png")
    page.page.locator("#measure").click()
    measured = page.wait(1, "measured")
    assert measured["calls"] >= 5
    assert measured["median_ms"] > 0
    assert "the middle of" in page.page.locator("#times").inner_text()


def test_what_is_no_picture_is_one_sentence_and_the_next_is_answered(site, digits, trial):
    page = trial(site)
    files = page.page.locator("input[type=file]")
    files.set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"GIF? no"})
    assert page.problem() == "a.jpg is not a picture that this browser can read."
    files.set_input_files({"name": "empty.png", "mimeType": "image/png", "buffer": b""})
    page.page.locator("#problem", has_text="empty.png is not a picture").wait_for()
    whole = (digits / "5.png").read_bytes()
    files.set_input_files({"name": "cut.png", "mimeType": "image/png", "buffer": whole[:200]})
    damaged = page.page.locator("#problem", has_text="This picture is damaged")
    page.page.locator("#problem", has_text="cut.png is not a picture").or_(damaged).wait_for()
    # A hundred megapixels of nothing.
    large = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(large, "PNG")
    files.set_input_files(
        {"name": "large.png", "mimeType": "image/png", "buffer": large.getvalue()}
    )
    sentence = "large.png has 100 megapixels, and 89 are the most that are read: make it smaller."
    page.page.locator("#problem", has_text=sentence).wait_for()
    page.page.evaluate("answered.length = 0; document.getElementById('problem').hidden = true")
    assert page.answer(digits / "0.png")["predictions"]
    assert not page.page.locator("#problem").is_visible()


def test_a_camera_that_is_refused_or_missing_is_one_sentence(site, trial):
    page = trial(site)
    page.page.locator("#camera").click()
    assert page.problem().startswith("The camera was refused: allow it")
    page = trial(
        site, before="Object.defineProperty(navigator, 'mediaDevices', {value: undefined})"
    )
    page.page.locator("#camera").click()
    assert page.problem().startswith("Browsers give the camera to pages of https")


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("model.onnx", None, "model.onnx is missing (404): write this folder anew"),
        ("model.onnx", lambda whole: whole[:1000], "model.onnx is damaged: write this folder anew"),
        ("model.onnx", lambda whole: bytes(len(whole)), "model.onnx is damaged"),
        ("model.json", None, "model.json is missing (404)"),
        ("model.json", lambda whole: whole[:50], "model.json is damaged"),
        ("worker.js", None, "worker.js is missing or damaged"),
        ("app.js", None, "app.js is missing"),
        (f"{RUNTIME}/ort.wasm.min.mjs", None, "The runtime is missing"),
        (f"{RUNTIME}/ort-wasm-simd-threaded.wasm", None, "could not be started on the CPU"),
    ],
)
def test_files_that_are_missing_or_damaged_are_one_sentence(
    site, trial, tmp_path, name, change, sentence
):
    folder = tmp_path / "spoilt"
    shutil.copytree(site, folder)
    if change is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
    page = trial(folder, fine=False)
    assert sentence in page.problem()
    assert "\n" not in page.problem()


def test_a_browser_without_simd_is_told_so(site, trial):
    page = trial(site, before="WebAssembly.validate = () => false")
    assert page.problem().startswith(
        "This browser is too old for the model: it needs WebAssembly with SIMD"
    )
    assert not page.page.locator("#work").is_visible()


def test_a_page_that_is_opened_as_a_file_says_what_to_do(site, chromium):
    context = chromium.new_context()
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    assert "put this folder on any web server" in page.locator("#problem").inner_text()
    context.close()


def test_the_page_is_small_and_asks_nobody(site):
    files = [path for path in site.rglob("*") if path.is_file() and RUNTIME not in path.parts]
    assert sum(path.stat().st_size for path in files if path.name != "model.onnx") < 300_000
    text = (site / "index.html").read_text()
    assert "default-src 'none'" in text
    assert "unsafe-inline" not in text
    assert " 'unsafe-eval'" not in text
    for path in files:
        if path.suffix in (".html", ".js", ".css", ".json", ".webmanifest"):
            assert not re.search("https?://", path.read_text()), path


def test_it_is_served_with_the_headers_that_threads_ask_for(exported):
    with served_by("web", exported) as address:
        for path, kind in (
            ("", "text/html; charset=utf-8"),
            ("worker.js", "text/javascript; charset=utf-8"),
            (f"{RUNTIME}/ort-wasm-simd-threaded.wasm", "application/wasm"),
        ):
            with urllib.request.urlopen(address + path) as answer:
                assert answer.headers["Content-Type"] == kind
                assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
                assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"


@pytest.mark.slow
def test_int8_is_a_quarter_as_large(exported, digits, trial, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(exported, run)
    assert cli(["web", str(run), "--int8", "--output", str(tmp_path / "site")]) == 2
    assert "--int8 --overwrite" in capsys.readouterr().err
    assert cli(["export", str(run), "--int8", "--limit", "64", "--max-loss", "100"]) == 0
    page = trial(run, options=["--int8"])
    assert page.answer(digits / "0.png")["predictions"]
    assert "0.25-16-s8, int8" in page.page.locator("#state").inner_text()


def test_what_can_not_be_written_is_one_sentence(digits_run, exported, site, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    bare = tmp_path / "bare"
    shutil.copytree(digits_run, bare, ignore=shutil.ignore_patterns("onnx*"))
    for arguments, sentence in (
        ([str(bare), "--output", str(tmp_path / "page")], f"mobilenets export {bare} --to onnx"),
        ([str(exported), "--output", str(other)], "is not empty and holds no page"),
        ([str(exported), "--output", str(other / "thesis.txt")], "is a file"),
        ([str(exported), "--output", str(site)], "--overwrite"),
        ([str(exported), "--json"], "give a folder"),
        ([str(tmp_path)], "is not a run"),
    ):
        capsys.readouterr()
        assert cli(["web", *arguments]) == 2, arguments
        said = capsys.readouterr().err
        assert sentence in said.splitlines()[-1]
    assert (other / "thesis.txt").read_text() == "mine"
    (site / "CNAME").write_text("example.org")
    assert cli(["web", str(exported), "--output", str(site), "--overwrite"]) == 2
    assert "holds CNAME besides a page" in capsys.readouterr().err
    (site / "CNAME").unlink()
    assert cli(["web", str(exported), "--output", str(site), "--overwrite", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"]["page"] < 300_000
    assert "index.html" in told["files"]
    # Nothing half-written is left beside it.
    assert [path.name for path in site.parent.iterdir()] == ["digits"]


def test_what_pages_carry_is_named_with_its_version_and_licence():
    vendor = Path(try_page.__file__).parent / "vendor"
    told = (vendor / "README.md").read_text()
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    licences = (vendor / "LICENSES.txt").read_text()
    packages = re.search("VENDORED := (.*)", makefile)[1].split()
    for package in packages:
        words = " ".join(package.split("@"))
        assert words in told
        assert words in licences
    assert RUNTIME.replace("-1", "-web@1") in packages
    patterns = re.findall("`([^`]+)`", told)
    for path in vendor.iterdir():
        assert any(path.match(pattern) for pattern in [*patterns, "README.md"]), path.name
