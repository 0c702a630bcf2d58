"""A run over HTTP: the answers of `predict`, batches of concurrent requests, and clients that want too much."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import predicted
from mobilenets import Run
from mobilenets.cli import serve as verb
from mobilenets.cli.main import run as cli
from mobilenets.deploy.predictor import Engine, find_engine
from mobilenets.web.server import LOOPBACK, Page
from mobilenets.web.service import batching
from mobilenets.web.service.app import Answers, Health, Problem, make_app
from mobilenets.web.service.limits import Limits
from mobilenets.web.service.metrics import Metrics
from mobilenets.web.service.server import listening, server_of


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of several kinds; the last is none."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number, mode in enumerate(("L", "RGB", "RGBA", "L", "RGB")):
        shape = (12, 10) if mode == "L" else (12, 10, len(mode))
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    Image.open(folder / "4.png").save(folder / "5.jpg")
    (folder / "6.png").write_bytes(b"no picture")
    return sorted(folder.iterdir())


class Site:
    """A server of this process, and requests to it."""

    def __init__(self, port, metrics):
        self.port = port
        self.metrics = metrics
        self.address = f"http://127.0.0.1:{port}"

    def ask(self, method, path, body=None, headers=()):
        """Status, JSON (or text) and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            content = answer.read()
            told = answer.headers
        finally:
            connection.close()
        if told["Content-Type"] == "application/json":
            return answer.status, json.loads(content), told
        return answer.status, content.decode(errors="replace"), told

    def image(self, content, query="", kind="image/png", headers=()):
        return self.ask(
            "POST", f"/predict{query}", content, {"Content-Type": kind, **dict(headers)}
        )

    def form(self, parts, query=""):
        """Parts: field, file name, content."""
        body = b""
        for field, name, content in parts:
            head = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'
            body += f"--edge\r\n{head}\r\n\r\n".encode() + content + b"\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=edge"}
        return self.ask("POST", f"/predict{query}", body + b"--edge--\r\n", kind)

    def open(self, sent=b""):
        """A connection of which only so much is sent."""
        one = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        one.sendall(sent)
        return one

    def counted(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"mobilenets_{name}", labels) or 0

    def until(self, true):
        """Wait for what other threads do."""
        over = time.monotonic() + 10
        while not true():
            assert time.monotonic() < over
            time.sleep(0.01)


@contextlib.contextmanager
def answering(run, engine=None, limits=None, **options):
    """A server for a run."""
    metrics, limits, ready = Metrics(), limits or Limits(), threading.Event()
    engine = engine or find_engine(run, "torch")
    app = make_app(run, engine, limits, hosts=LOOPBACK, metrics=metrics, **options)
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = server_of(app, limits, metrics, ready.set)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        assert ready.wait(60)
        try:
            yield Site(port, metrics)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def site(exported):
    run = Run.load(exported)
    with answering(run, find_engine(run, "onnxruntime")) as one:
        yield one


class Held:
    """An engine that waits until it may answer; the batches that it was given."""

    def __init__(self, run):
        self.inner = find_engine(run, "torch")
        self.may = threading.Event()
        self.may.set()
        self.batches = []

    @property
    def engine(self):
        return Engine("torch", self.outputs)

    def outputs(self, inputs):
        self.batches.append(len(inputs))
        assert self.may.wait(30)
        return self.inner.outputs(inputs)


@pytest.fixture
def held(exported):
    run = Run.load(exported)
    engine = Held(run)
    yield run, engine
    engine.may.set()


def expected(row, name):
    row = {**row, "image": name}
    del row["runtime"]
    return row


def test_large_images_are_decoded_one_after_the_other(exported, photos, monkeypatch):
    inside, most, lock = [0], [0], threading.Lock()
    read = batching.read_image

    def watched(content, *arguments, **options):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        with lock:
            inside[0] -= 1
        return read(content, *arguments, **options)

    monkeypatch.setattr(batching, "read_image", watched)
    content = photos[0].read_bytes()
    with ThreadPoolExecutor(6) as pool:
        # They have 120 pixels.
        for large, together in ((119, False), (120, os.cpu_count() > 1)):
            most[0] = 0
            with answering(Run.load(exported), limits=Limits(large=large)) as site:
                asked = [pool.submit(site.image, content) for _ in range(6)]
                assert {one.result()[0] for one in asked} == {200}
            assert (most[0] > 1) == together


def near(found, wanted):
    """Equal but for the last digits of scores, which the size of a batch may change."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            near(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            near(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=2e-5)
    else:
        assert found == wanted


def test_answers_are_those_of_predict(site, exported, photos, capsys):
    good = photos[:-1]
    wanted = predicted(exported, good, capsys, "--runtime", "onnxruntime")
    status, answer, _ = site.form([("images", path.name, path.read_bytes()) for path in good])
    assert status == 200
    assert (answer["runtime"], answer["task"]) == ("onnxruntime", "classification")
    assert answer["model"] == "0.25-16-s8"
    near(
        answer["predictions"],
        [expected(row, path.name) for row, path in zip(wanted, good, strict=True)],
    )
    Answers.model_validate(answer)
    for path, kind in ((good[0], "image/png"), (good[5], "application/octet-stream")):
        status, alone, _ = site.image(path.read_bytes(), kind=kind)
        assert status == 200
        near(alone["predictions"], [expected(wanted[good.index(path)], None)])


def test_one_that_can_not_be_read_is_named_among_several(site, photos):
    parts = [("images", path.name, path.read_bytes()) for path in photos[-2:]]
    status, answer, _ = site.form(parts)
    assert status == 200
    good, bad = answer["predictions"]
    assert "error" not in good
    assert bad == {"image": "6.png", "error": "6.png: not an image that can be read"}
    Answers.model_validate(answer)


def test_detectors_tell_boxes_as_predict_does(coco_run, coco, capsys):
    run = Run.load(coco_run)
    files = sorted(coco.rglob("*.jpg"))[:2]
    with answering(run) as site:
        for query, options in (("", ()), ("?score=0.2", ("--score", "0.2"))):
            wanted = predicted(coco_run, files, capsys, "--runtime", "torch", *options)
            parts = [("images", path.name, path.read_bytes()) for path in files]
            status, answer, _ = site.form(parts, query)
            assert status == 200
            near(
                answer["predictions"],
                [expected(row, path.name) for row, path in zip(wanted, files, strict=True)],
            )
        status, problem, _ = site.image(files[0].read_bytes(), "?score=7")
        assert (status, list(problem)) == (422, ["error"])


def test_each_of_a_batch_has_its_own_least_score(coco_run, coco):
    run = Run.load(coco_run)
    engine = Held(run)
    file = next(coco.rglob("*.jpg")).read_bytes()
    with answering(run, engine.engine) as site, ThreadPoolExecutor(3) as pool:
        engine.may.clear()
        engine.batches.clear()
        first = pool.submit(site.image, file)
        site.until(lambda: engine.batches)
        rest = [pool.submit(site.image, file, f"?score={score}") for score in (0.05, 0.9)]
        site.until(lambda: site.counted("waiting_images") == 3)
        time.sleep(0.3)
        engine.may.set()
        counts = [len(one.result()[1]["predictions"][0]["predictions"]) for one in (*rest, first)]
        assert engine.batches == [1, 2]
        assert counts[0] > counts[2] >= counts[1]


def test_concurrent_requests_share_a_batch(held, photos):
    run, engine = held
    with answering(run, engine.engine, Limits(batch=4)) as site, ThreadPoolExecutor(8) as pool:
        # To get warm.
        assert engine.batches == [1, 4]
        engine.may.clear()
        engine.batches.clear()
        content = photos[0].read_bytes()
        first = pool.submit(site.image, content)
        site.until(lambda: engine.batches)
        rest = [pool.submit(site.image, content) for _ in range(6)]
        site.until(lambda: site.counted("waiting_images") == 7)
        time.sleep(0.2)
        engine.may.set()
        answers = [one.result()[1]["predictions"] for one in (first, *rest)]
        assert engine.batches == [1, 4, 2]
        for answer in answers:
            near(answer, answers[0])
        assert site.counted("batch_images_count") == 3
        assert site.counted("batch_images_sum") == 7
        assert site.counted("images_total", outcome="answered") == 7
        assert site.counted("requests_total", path="/predict", status="200") == 7


def test_a_full_queue_says_so_and_goes_on(held, photos):
    run, engine = held
    content = photos[0].read_bytes()
    with answering(run, engine.engine, Limits(waiting=2)) as site, ThreadPoolExecutor(2) as pool:
        engine.may.clear()
        asked = [pool.submit(site.image, content) for _ in range(2)]
        site.until(lambda: site.counted("waiting_images") == 2)
        status, problem, headers = site.image(content)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert problem == {"error": "2 images wait already: try again in a second"}
        assert site.ask("GET", "/health")[1]["waiting"] == 2
        engine.may.set()
        assert [one.result()[0] for one in asked] == [200, 200]
        assert site.image(content)[0] == 200


def test_who_went_away_is_asked_for_no_more(held, photos):
    run, engine = held
    content = photos[0].read_bytes()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(content)}\r\n\r\n"
    with answering(run, engine.engine) as site, ThreadPoolExecutor(1) as pool:
        engine.may.clear()
        engine.batches.clear()
        stays = pool.submit(site.image, content)
        site.until(lambda: engine.batches)
        site.open(head.encode() + content).close()
        site.until(lambda: site.counted("images_total", outcome="dropped") == 1)
        # Half of a body, too.
        site.open(head.encode() + content[:10]).close()
        site.until(lambda: site.counted("requests_total", path="/predict", status="499") == 2)
        engine.may.set()
        assert stays.result()[0] == 200
        assert engine.batches == [1]
        assert site.counted("waiting_images") == 0


def test_a_fault_of_ours_is_one_sentence_and_the_next_is_answered(held, photos, caplog):
    run, engine = held
    broken = [False]

    def outputs(inputs):
        if broken[0]:
            raise RuntimeError("a wire is loose")
        return engine.inner.outputs(inputs)

    with answering(run, Engine("torch", outputs)) as site:
        broken[0] = True
        status, problem, headers = site.image(photos[0].read_bytes())
        assert (status, problem) == (500, {"error": "the server failed: its log tells how"})
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "a wire is loose" in caplog.text
        broken[0] = False
        assert site.image(photos[0].read_bytes())[0] == 200
        assert site.counted("requests_total", path="/predict", status="500") == 1


def one_bit_png(width, height):
    """A black picture whose file is a thousand times smaller than its pixels."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    packer, line = zlib.compressobj(6), bytes(1 + (width + 7) // 8)
    lines = [packer.compress(line * 100) for _ in range(height // 100)]
    lines += [packer.compress(line * (height % 100)), packer.flush()]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"".join(lines)) + chunk(b"IEND", b"")


def encoded(size, kind):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        # Refused by Pillow itself.
        (one_bit_png(20_000, 20_000), "too large to read safely"),
        # Pillow only warns of it.
        (one_bit_png(10_000, 10_000), "too large to read safely"),
        # Harmless until it is scaled by its shorter side.
        (one_bit_png(60_000, 1), "longer than 100 times its width"),
        (b"no picture", "not an image that can be read"),
        (b"", "the file is empty"),
        (encoded((40, 40), "PNG")[:60], "a damaged image"),
        # Its reader would start Ghostscript.
        (encoded((8, 8), "EPS"), "not an image that can be read"),
    ],
    ids=["bomb", "smaller bomb", "line", "text", "nothing", "cut off", "EPS"],
)
def test_images_that_are_refused(site, content, sentence):
    assert len(content) < 100_000
    status, problem, headers = site.image(content)
    assert status == 400
    assert sentence in problem["error"]
    assert problem["error"].startswith("the image: ")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    Problem.model_validate(problem)


FORM = "multipart/form-data; boundary=edge"
PART = b'--edge\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("method", "path", "kind", "body", "status", "sentence"),
    [
        ("GET", "/nothing", None, None, 404, "there is nothing at /nothing"),
        ("POST", "/nothing", "image/png", b"x" * 100_000, 404, "there is nothing at /nothing"),
        ("GET", "/predict", None, None, 405, "GET is not for /predict"),
        ("POST", "/docs", None, None, 405, "POST is not for /docs"),
        ("POST", "/predict", "text/plain", b"x", 415, "text/plain is not read"),
        ("POST", "/predict", None, None, 415, "a body of no kind is not read"),
        ("POST", "/predict?score=0.5", "image/png", b"x", 422, "score is for detectors"),
        ("POST", "/predict?score=much", "image/png", b"x", 422, "score: Input should be"),
        ("POST", "/predict?score=nan", "image/png", b"x", 422, "score: Input should be"),
        ("POST", "/predict", "multipart/form-data", b"x", 400, "no boundary"),
        ("POST", "/predict", FORM, b"x", 400, "malformed"),
        ("POST", "/predict", FORM, b"", 400, "ends before its last boundary"),
        ("POST", "/predict", FORM, PART, 400, "ends before its last boundary"),
        ("POST", "/predict", FORM, b"--edge--\r\n", 422, "no part named images"),
        (
            "POST",
            "/predict",
            FORM,
            PART.replace(b"images", b"photo") + b"--edge--\r\n",
            422,
            "the part 'photo' is not known",
        ),
        ("POST", "/predict", FORM, PART * 17 + b"--edge--\r\n", 413, "more than 16 images"),
        ("POST", "/predict", "image/png", b"x" * 20_000_001, 413, "more than 20 MB"),
    ],
)
def test_requests_that_are_refused(site, method, path, kind, body, status, sentence):
    headers = {} if kind is None else {"Content-Type": kind}
    found, problem, _ = site.ask(method, path, body, headers)
    assert found == status
    assert sentence in problem["error"]
    assert list(problem) == ["error"]
    # It is still there.
    assert site.ask("GET", "/health")[0] == 200


def answer_of(one):
    """All that a connection still says, until it is closed."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while more := one.recv(65536):
            said += more
    one.close()
    return said


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


def seconds_of(asked):
    began = time.monotonic()
    asked()
    return time.monotonic() - began


def test_slow_clients_are_let_go_while_others_are_answered(exported, site, photos):
    content = photos[0].read_bytes()
    run = Run.load(exported)
    # Time for thirty answers, however slow this machine is.
    usual = max(seconds_of(lambda: site.image(content)) for _ in range(5))
    patience = round(max(1.5, 30 * usual), 1)
    with answering(run, limits=Limits(seconds=patience)) as site:
        beginnings = (b"", b"POST /pre", HEAD, HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 10)
        beginnings += (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",)
        began = time.monotonic()
        slow = [site.open(beginnings[number % 5]) for number in range(50)]
        assert [site.image(content)[0] for _ in range(10)] == [200] * 10
        # Nobody was let go for it.
        assert site.counted("connections") >= 50
        assert site.counted("requests_total", path="", status="408") == 0
        # Now and then a byte more is no more than nothing.
        while time.monotonic() < began + 0.8 * patience:
            for one in slow[1::5]:
                one.sendall(b"d")
            time.sleep(0.1)
        for one in slow:
            said = answer_of(one)
            assert said.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert said.endswith(f'within {patience:g} seconds"}}'.encode())
        site.until(lambda: site.counted("connections") == 0)
        assert site.counted("requests_total", path="", status="408") == 50
        assert site.image(content)[0] == 200


def test_an_idle_connection_can_not_be_kept_with_empty_lines(exported):
    with answering(Run.load(exported), limits=Limits(seconds=1)) as site:
        one = site.open(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert one.recv(65536).startswith(b"HTTP/1.1 200")

        def is_let_go():
            with contextlib.suppress(ConnectionError):
                one.sendall(b"\r\n")
            return site.counted("connections") == 0

        site.until(is_let_go)
        one.close()


def test_who_reads_nothing_is_let_go(exported):
    pages = {"/large": Page("application/octet-stream", bytes(50_000_000))}
    with answering(Run.load(exported), limits=Limits(seconds=1), pages=pages) as site:
        assert len(site.ask("GET", "/large")[1]) == 50_000_000
        assert site.ask("HEAD", "/large")[1] == ""
        one = site.open(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        site.until(lambda: site.counted("connections") == 1)
        site.until(lambda: site.counted("connections") == 0)
        one.close()


def test_connections_have_a_limit(exported):
    with answering(Run.load(exported), limits=Limits(connections=3)) as site:
        opened = [site.open() for _ in range(3)]
        site.until(lambda: site.counted("connections") == 3)
        said = answer_of(site.open())
        assert said.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"Retry-After: 1\r\n" in said
        assert said.endswith(b'{"error": "too many connections: try again in a second"}')
        for one in opened:
            one.close()
        site.until(lambda: site.counted("connections") == 0)
        assert site.ask("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 10_000, "431"),
        (b"GET /" + b"x" * 70_000, "431"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, "431"),
        (b"\r\n" * 40_000, "431"),
        (b"\x16\x03\x01 no HTTP at all\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400"),
    ],
    ids=["headers", "address", "header", "lines", "TLS", "length"],
)
def test_heads_that_are_refused(site, sent, status):
    before = site.counted("requests_total", path="", status=status)
    one = site.open()
    with contextlib.suppress(ConnectionError):
        one.sendall(sent)
    said = answer_of(one)
    assert site.counted("requests_total", path="", status=status) == before + 1
    # What was still on its way may take the answer along.
    assert not said or said.startswith(f"HTTP/1.1 {status}".encode())
    assert not said or json.loads(said.partition(b"\r\n\r\n")[2])["error"]
    assert site.ask("GET", "/health")[0] == 200


def test_bodies_that_are_held_have_a_limit_together(exported, photos):
    with answering(Run.load(exported), limits=Limits(held_bytes=100_000)) as site:
        one = site.open(HEAD + b"Content-Length: 200000\r\n\r\n" + bytes(90_000))
        time.sleep(0.3)
        status, problem, headers = site.image(bytes(20_000))
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "too many images are sent at once" in problem["error"]
        one.close()
        site.until(lambda: site.counted("connections") == 0)
        assert site.image(photos[0].read_bytes())[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:1234"}, 200),
        ({"Host": "[::1]"}, 200),
        # A name of somebody's that leads to this machine.
        ({"Host": "evil.example:8000"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "localhost:1234", "Origin": "http://localhost:1234"}, 200),
        ({"Host": "localhost:1234", "Origin": "http://localhost:4321"}, 403),
        ({"Host": "localhost", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Origin": "https://friend.example"}, 200),
    ],
)
def test_other_hosts_and_pages_may_not_ask(exported, photos, headers, status, friendly):
    found, answer, told = friendly.image(photos[0].read_bytes(), headers=headers)
    assert found == status
    assert ("error" in answer) == (status != 200)
    friend = headers.get("Origin") == "https://friend.example"
    assert told["Access-Control-Allow-Origin"] == ("https://friend.example" if friend else None)


@pytest.fixture(scope="module")
def friendly(exported):
    with answering(Run.load(exported), origins=["https://friend.example"]) as one:
        yield one


def test_a_friend_s_page_may_ask_beforehand(friendly):
    asked = {"Access-Control-Request-Method": "POST", "Origin": "https://friend.example"}
    assert friendly.ask("OPTIONS", "/predict", headers=asked)[0] == 200
    asked["Origin"] = "https://evil.example"
    status, problem, _ = friendly.ask("OPTIONS", "/predict", headers=asked)
    assert (status, list(problem)) == (403, ["error"])


def test_what_it_tells_of_itself(site):
    status, health, headers = site.ask("GET", "/health")
    assert (status, health["status"], health["runtime"]) == (200, "ok", "onnxruntime")
    Health.model_validate(health)
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Server"] is None
    status, metrics, _ = site.ask("GET", "/metrics")
    assert status == 200
    for name in ("requests_total{", "request_seconds_bucket{", "batch_images_bucket{",
                 "waiting_images ", "connections ", "images_total{"):  # fmt: skip
        assert f"\nmobilenets_{name}" in metrics
    # Addresses that clients make up are counted together.
    site.ask("GET", "/made-up")
    assert "made-up" not in site.ask("GET", "/metrics")[1]
    status, described, _ = site.ask("GET", "/openapi.json")
    assert set(described["paths"]) == {"/predict", "/health", "/metrics"}
    asked = described["paths"]["/predict"]["post"]
    assert set(asked["requestBody"]["content"]) == {
        "multipart/form-data",
        "image/*",
        "application/octet-stream",
    }
    for code in ("400", "413", "415", "422", "503"):
        schema = asked["responses"][code]["content"]["application/json"]["schema"]
        assert schema["$ref"].endswith("/Problem")


def test_pages_are_given_beside_the_api(exported, photos):
    pages = {"/": Page("text/html; charset=utf-8", b"<!doctype html>try it")}
    told = []
    with answering(Run.load(exported), pages=pages, log=told.append) as site:
        status, content, headers = site.ask("GET", "/")
        assert (status, content) == (200, "<!doctype html>try it")
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert site.image(photos[0].read_bytes())[0] == 200
        site.ask("GET", "/%0aforged")
        site.until(lambda: len(told) == 3)
    assert re.fullmatch(r"127\.0\.0\.1 GET / 200 \d+ ms", told[0])
    assert "/%0aforged 404" in told[2]
    with pytest.raises(ValueError, match="a page can't be at /health"):
        make_app(Run.load(exported), Engine("torch", len), pages={"/health": pages["/"]})


def test_without_pages_the_start_is_the_api(site):
    status, _, headers = site.ask("GET", "/")
    assert (status, headers["Location"]) == (307, "docs")


@pytest.fixture
def documented(site, chromium):
    """The API's page, and what it asked for."""
    context = chromium.new_context()
    page = context.new_page()
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{site.address}/docs")
    page.wait_for_selector("text=/health")
    yield page, asked, problems
    context.close()


def test_the_api_s_page_asks_for_nothing_elsewhere(site, documented, photos):
    page, asked, problems = documented
    page.locator("#operations-server-health button").first.click()
    page.locator("button.execute").click()
    page.wait_for_selector("text=onnxruntime")
    assert problems == []
    remote = [url for url in asked if not url.startswith((site.address, "data:", "blob:"))]
    assert remote == []
    assert f"{site.address}/openapi.json" in asked


def test_nothing_serious_keeps_people_from_the_api_s_page(site, chromium, barriers):
    # axe-core brings its own script into the page.
    context = chromium.new_context(bypass_csp=True)
    page = context.new_page()
    page.goto(f"{site.address}/docs")
    page.locator("#operations-images-predict button").first.click()
    page.wait_for_selector("input[type=file], button.execute")
    assert barriers(page) == []
    context.close()


def test_a_script_that_is_put_into_the_api_s_page_does_not_run(documented):
    page, _, problems = documented
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.taken = 1'}))")  # fmt: skip
    assert page.evaluate("window.taken") is None
    assert any("Content Security Policy" in problem for problem in problems)


class Process:
    """`mobilenets serve` as people start it."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mobilenets", "serve", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = []
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            if found := re.match(r"http://[\d.]+:(\d+)/ ", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError(self.said)

    def memory_mb(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1000

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.said += self.process.stderr.read().splitlines()
        self.process.stderr.close()
        return code


@pytest.fixture
def started():
    running = []

    def start(*arguments):
        running.append(Process(*arguments))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        one.process.stderr.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads memory as Linux tells")
def test_a_gigabyte_is_refused_and_never_held(exported, photos, started):
    server = started(exported, "--port", 0, "--runtime", "torch", "--max-mb", 1)
    site = Site(server.port, None)
    good = photos[0].read_bytes()
    assert site.image(good)[0] == 200
    before, megabyte = server.memory_mb(), bytes(1_000_000)

    def send(head, pieces):
        one = site.open(head)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                one.sendall(piece)
        return answer_of(one)

    # Who says beforehand how much it is need not send it.
    one = site.open(HEAD + b"Connection: close\r\nContent-Length: 1000000000\r\n\r\n")
    assert one.recv(65536).startswith(b"HTTP/1.1 413")
    one.close()
    chunk = b"f4240\r\n" + megabyte + b"\r\n"
    for head, pieces in (
        (HEAD + b"Connection: close\r\nContent-Length: 1000000000\r\n\r\n", [megabyte] * 1000),
        (HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n", [chunk] * 1000),
    ):
        assert send(head, pieces).startswith(b"HTTP/1.1 413")
        assert server.memory_mb() < before + 60
    for bomb in (one_bit_png(20_000, 20_000), one_bit_png(10_000, 10_000)):
        assert site.image(bomb)[0] == 400
    assert server.memory_mb() < before + 60
    assert site.image(good)[0] == 200
    assert server.end() == 0
    assert not any("Traceback" in line for line in server.said)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_it_ends_well_with_what_was_asked_before(digits_run, photos, started, number):
    server = started(digits_run, "--host", "0.0.0.0", "--port", 0, "--log")
    assert server.said[0].startswith("no page to try it on, the API alone: ")
    assert server.said[1] == "warning: whoever reaches 0.0.0.0 can send images and gets answers"
    content = photos[0].read_bytes()
    site = Site(server.port, None)
    # By whatever name it was called.
    assert site.image(content, headers={"Host": "shop.example"})[0] == 200
    one = site.open(HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content[:20])
    # Half of it is there when the end is near.
    time.sleep(0.3)
    server.process.send_signal(number)
    time.sleep(0.3)
    one.sendall(content[20:])
    said = answer_of(one)
    assert said.startswith(b"HTTP/1.1 200")
    assert server.process.wait(30) == 0
    lines = server.process.stderr.read().splitlines()
    assert [re.sub(r"\d+ ms", "N ms", line) for line in lines] == [
        "127.0.0.1 POST /predict 200 N ms"
    ] * 2


def test_what_can_not_be_served_is_one_sentence(exported, capsys, monkeypatch):
    def said(*arguments):
        assert cli(["serve", *map(str, arguments)]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = said(exported, "--port", port, "--runtime", "torch")
    assert re.match(rf"mobilenets: 127\.0\.0\.1 port {port} can't be had \(.*in use.*\)", told)
    assert "nowhere is not a run" in said("nowhere")
    assert "--runtime is auto" in said(exported, "--runtime", "abacus")
    assert "an origin is such as" in said(exported, "--allow-origin", "example.org")
    found = verb.find_spec
    monkeypatch.setattr(verb, "find_spec", lambda name: None if name == "fastapi" else found(name))
    assert said(exported) == (
        "mobilenets: serving needs fastapi, not installed: pip install 'mobilenets[serve]'"
    )


def test_help_names_every_limit(capsys):
    assert cli(["serve", "--help"]) == 0
    said = capsys.readouterr().out
    for option in ("--host", "--port", "--runtime", "--batch", "--wait", "--max-mb", "--max-images",
                   "--timeout", "--connections", "--allow-origin", "--log", "--json"):  # fmt: skip
        assert option in said
