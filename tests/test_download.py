"""Downloads of weights, from a server on this machine: whole, broken off, changed, refused."""

import hashlib
import http.server
import io
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import served
from mobilenets.cli.main import run
from mobilenets.weights.download import cache_folder, fetch, fetch_file, mirrored, name_of
from mobilenets.weights.load import load_weights
from mobilenets.weights.registry import PUBLISHED_WEIGHTS, PublishedFile, find_weights

CONTENT = bytes(range(256)) * 5000


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path, understands ranges, and notes what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.asked, self.cut, self.ranges = {}, [], None, True

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append((self.command, self.path, wanted))
        content = server.files.get(self.path)
        if content is None:
            self.send_response(404, "Not Found")
            # What tells the Hub's answer from that of a server in between.
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if wanted and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-.*", wanted)[1])
            if start >= len(content):
                self.send_error(416, "Range Not Satisfiable")
                return
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        if self.headers.get("If-Range", tag) != tag:
            start = 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        rest = content[start:]
        self.send_header("Content-Length", str(len(rest)))
        # What the Hub says of a large file.
        self.send_header("ETag", tag)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(rest if server.cut is None else rest[: server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(empty_caches):
    with served(Server()) as made:
        yield made


def kept():
    """What the cache holds, without the marks of the addresses and the locks."""
    names = sorted(path.name for path in cache_folder().iterdir())
    return [name.partition("-")[2] for name in names if not name.endswith(".lock")]


def a_file(server, content=CONTENT, **more):
    server.files["/weights.bin"] = content
    return PublishedFile(address=f"{server.address}/weights.bin", **more)


def test_a_file_is_fetched_once_and_kept(server):
    file = a_file(server, sha256=hashlib.sha256(CONTENT).hexdigest())
    path = fetch_file(file)
    assert path.parent == cache_folder()
    assert path.name.endswith("-weights.bin")
    assert path.read_bytes() == CONTENT
    assert fetch_file(file) == path
    assert server.asked == [("GET", "/weights.bin", None)]
    assert kept() == ["weights.bin"]


def test_a_download_goes_on_where_it_broke_off(server):
    file = a_file(server, sha256=hashlib.sha256(CONTENT).hexdigest())
    server.cut = 700_000
    with pytest.raises(
        ValueError, match=r"broke off after 700,000 of 1,280,000 bytes|can't be reached"
    ):
        fetch_file(file)
    assert kept() == ["weights.bin.etag", "weights.bin.part"]
    (part,) = cache_folder().glob("*.part")
    assert part.stat().st_size == 700_000
    server.cut = None
    assert fetch_file(file).read_bytes() == CONTENT
    assert server.asked[-1] == ("GET", "/weights.bin", "bytes=700000-")
    assert kept() == ["weights.bin"]


def broken_off(server):
    file = a_file(server)
    server.cut = 700_000
    with pytest.raises(ValueError, match=r"broke off|can't be reached"):
        fetch_file(file)
    server.cut = None
    return file


def test_a_server_without_ranges_starts_again(server):
    file = broken_off(server)
    server.ranges = False
    assert fetch_file(file).read_bytes() == CONTENT


def test_what_has_changed_in_between_is_fetched_whole(server):
    file = broken_off(server)
    server.files["/weights.bin"] = CONTENT[::-1]
    assert fetch_file(file).read_bytes() == CONTENT[::-1]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server):
    file = broken_off(server)
    (part,) = cache_folder().glob("*.part")
    part.write_bytes(CONTENT + b"more")
    assert fetch_file(file).read_bytes() == CONTENT


def test_two_files_of_one_name_are_two_files(server):
    first = a_file(server)
    server.files["/other/weights.bin"] = b"other"
    other = PublishedFile(address=f"{server.address}/other/weights.bin")
    assert fetch_file(first).read_bytes() == CONTENT
    assert fetch_file(other).read_bytes() == b"other"
    assert fetch_file(first).read_bytes() == CONTENT


def test_many_at_once_download_once(server):
    file = a_file(server)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch_file(file), range(8)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(server.asked) == 1


def test_what_is_not_what_was_published_is_not_kept(server):
    file = a_file(server, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        fetch_file(file)
    assert "is not what was published: its SHA-256 is" in str(caught.value)
    assert kept() == []


def test_what_was_damaged_in_the_cache_is_fetched_again(server):
    file = a_file(server, sha256=hashlib.sha256(CONTENT).hexdigest())
    fetch_file(file).write_bytes(b"damaged")
    assert fetch_file(file).read_bytes() == CONTENT


def packed(**files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def test_one_file_is_taken_out_of_an_archive_wherever_it_says_it_is(server, tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in ("./labels.txt", "../../../escaped/m.tflite"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"TFLTE"))
    server.files["/m.tgz"] = archive.getvalue()
    path = fetch_file(PublishedFile(address=f"{server.address}/m.tgz", member="m.tflite"))
    assert path.read_bytes() == b"TFLTE"
    # Neither the archive nor anything else of it stays, in the cache or outside.
    assert kept() == ["m.tflite"]
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (packed(other=b"x"), "holds no m.tflite"),
        (packed(**{"m.tflite": bytes(100_000)})[:150], "is not a whole archive"),
        (b"an error page", "is not a whole archive"),
    ],
    # By itself a name holds the content, and with it the second in which it was packed.
    ids=["without it", "cut off", "no archive"],
)
def test_an_archive_that_serves_for_nothing_gets_one_line(server, content, says):
    server.files["/m.tgz"] = content
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        fetch_file(PublishedFile(address=f"{server.address}/m.tgz", member="m.tflite"))
    assert says in str(caught.value)
    assert kept() == []


def test_a_missing_file_and_no_network_get_one_line_each(server, monkeypatch):
    with pytest.raises(ValueError, match="answers 404"):
        fetch_file(PublishedFile(address=f"{server.address}/nothing.h5"))
    # A port that nothing listens on stands for a machine without a network.
    with pytest.raises(ValueError, match=r"can't be reached .*weights import FILE"):
        fetch_file(PublishedFile(address="http://127.0.0.1:9/nothing.h5"))


def test_offline_says_where_the_file_belongs(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = a_file(server)
    with pytest.raises(ValueError, match=r"is not there yet, and HF_HUB_OFFLINE forbids") as caught:
        fetch_file(file)
    assert server.asked == []
    path = Path(str(caught.value).partition(" is not there")[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch_file(file) == path


def test_a_full_disk_is_said_and_the_download_can_go_on(server, monkeypatch, capsys):
    file = a_file(server)
    opened = Path.open

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    def no_space(self, mode="r", *more, **named):
        return (
            Full()
            if mode in ("wb", "ab") and self.suffix == ".part"
            else opened(self, mode, *more, **named)
        )

    monkeypatch.setattr(Path, "open", no_space)
    assert run(["weights", "import", file.address]) == 2
    assert "no space left on the disk of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "mirror", "expected"),
    [
        ("https://a.org/b/c.h5", None, "https://a.org/b/c.h5"),
        ("https://a.org/b/c.h5?d=1", "http://m.net/all/", "http://m.net/all/a.org/b/c.h5?d=1"),
    ],
)
def test_mirror(address, mirror, expected, monkeypatch):
    monkeypatch.delenv("MOBILENETS_MIRROR", raising=False)
    if mirror:
        monkeypatch.setenv("MOBILENETS_MIRROR", mirror)
    assert mirrored(address) == expected


@pytest.mark.parametrize("address", ["http://a.org", "http://a.org/", "http://a.org/b/.."])
def test_an_address_without_a_file_is_said(address):
    with pytest.raises(ValueError, match="names no file"):
        name_of(address)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TORCH_HOME": "/t"}, "/t/hub/checkpoints/mobilenets"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/torch/hub/checkpoints/mobilenets"),
        ({}, "~/.cache/torch/hub/checkpoints/mobilenets"),
    ],
)
def test_the_cache_is_where_pytorch_keeps_its_own(environment, expected, monkeypatch):
    import torch

    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected).expanduser()
    assert str(cache_folder().parent.parent) == torch.hub.get_dir()


# Published weights


def test_every_entry_is_whole_and_named_once():
    names = [entry.name for entry in PUBLISHED_WEIGHTS]
    assert len(names) == len(set(names)) == 57
    for entry in PUBLISHED_WEIGHTS:
        assert find_weights(entry.name) is entry
        assert entry.spec.activation == "relu6"
        for file in (*entry.files, *entry.beside):
            assert re.match(
                r"https://[\w.]+/\S+\.(h5|tgz|tflite)|hf://\w+/\S+\.(safetensors|json)",
                file.address,
            )
            assert (file.member != "") == file.address.endswith(".tgz")


def serve_in_place(server, monkeypatch, entry, *contents):
    """Serve an entry's addresses from this machine: the mirror, and the Hub's own."""
    monkeypatch.setenv("MOBILENETS_MIRROR", server.address)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    for file, content in zip((*entry.files, *entry.beside), contents, strict=True):
        if file.address.startswith("hf://"):
            owner, name, path = file.address.removeprefix("hf://").split("/", 2)
            server.files[f"/{owner}/{name}/resolve/main/{path}"] = content
        else:
            server.files[file.address.removeprefix("https:/")] = content


@pytest.mark.parametrize(
    "name", [entry.name for entry in PUBLISHED_WEIGHTS if entry.source not in ("coral", "tfhub")]
)
def test_every_address_is_asked_for_as_it_stands(name, server, monkeypatch):
    entry = find_weights(name)
    contents = [
        packed(**{file.member: b"model"}) if file.member else b"model"
        for file in (*entry.files, *entry.beside)
    ]
    serve_in_place(server, monkeypatch, entry, *contents)
    paths = fetch(entry)
    assert [path.read_bytes() for path in paths] == [b"model"] * len(paths)
    # Settings lie where they are looked for.
    for file in entry.beside:
        assert (paths[0].parent / name_of(file.address)).read_bytes() == b"model"
    # The second time, nothing is asked of a server without the Hub's own look at what is new.
    server.asked.clear()
    assert fetch(entry) == paths
    assert not [asked for asked in server.asked if asked[0] == "GET"]


@pytest.mark.parametrize("model", ["1.0-224", "0.75-192", "0.5-160", "0.25-128"])
def test_coral_weights_come_by_their_own_addresses(model, server, shared, monkeypatch):
    entry = find_weights(f"coral/{model}")
    contents = [(shared / "weights" / name_of(f.address)).read_bytes() for f in entry.files]
    assert [len(content) for content in contents] == [file.size for file in entry.files]
    serve_in_place(server, monkeypatch, entry, *contents)
    imported = load_weights(entry.name)
    assert imported.spec == entry.spec
    assert imported.classes == 1000
    assert imported.labels[0] == "tench"


def test_a_detector_comes_by_its_own_address(server, shared, monkeypatch, capsys):
    entry = find_weights("tfhub/ssd300/0.75")
    content = (shared / "weights" / "ssd_mobilenet_v1_1_metadata_1.tflite").read_bytes()
    assert len(content) == entry.files[0].size
    serve_in_place(server, monkeypatch, entry, content)
    imported = load_weights(entry.name)
    assert imported.spec == entry.spec
    assert len(imported.labels) == 80
    assert run(["weights", "show", entry.name]) == 0
    assert "ssd300/0.75" in capsys.readouterr().out


def test_a_foreign_repository_brings_its_settings(server, monkeypatch, tmp_path):
    import json

    import torch
    from safetensors.torch import save

    from mobilenets.architecture import MobileNetSpec
    from mobilenets.architecture.network import MobileNet
    from test_import import exported, hugging_face_names, timm_names

    monkeypatch.setenv("HF_ENDPOINT", server.address)
    torch.manual_seed(0)
    network = MobileNet(MobileNetSpec(0.25, 96), 7)
    for name, names, files in (
        (
            "transformers",
            hugging_face_names,
            {
                "config.json": {"image_size": 96},
                "preprocessor_config.json": {"image_mean": [0.1] * 3},
            },
        ),
        ("plain", hugging_face_names, {"config.json": {"image_size": 96}}),
        (
            "timm",
            timm_names,
            {"config.json": {"pretrained_cfg": {"input_size": [3, 96, 96], "mean": [0.1] * 3}}},
        ),
    ):
        place = f"/them/{name}/resolve/main"
        server.files[f"{place}/model.safetensors"] = save(exported(network, names, "classifier"))
        for file, settings in files.items():
            server.files[f"{place}/{file}"] = json.dumps(settings).encode()
        imported = load_weights(f"hf://them/{name}")
        assert imported.preprocessing.height == 96
        assert imported.preprocessing.mean[0] == (0.5 if name == "plain" else 0.1)


def test_the_hub_vouches_for_its_files(server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    server.files["/a/b/resolve/main/model.safetensors"] = CONTENT
    file = PublishedFile(address="hf://a/b/model.safetensors")
    path = fetch_file(file)
    assert path.read_bytes() == CONTENT
    # Damaged in the cache: said, and fetched anew the next time.
    path.resolve().write_bytes(b"x" + CONTENT[1:])
    with pytest.raises(ValueError, match="is not what the Hub says it is"):
        fetch_file(file)
    assert fetch_file(file).read_bytes() == CONTENT


def test_the_hub_without_network_or_file_gets_one_line(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    with pytest.raises(ValueError, match=r"\Ahf://a/b/c.bin[^\n]+\Z"):
        fetch_file(PublishedFile(address="hf://a/b/c.bin"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    # It waits between attempts.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ValueError, match="the Hub can't be reached or HF_HUB_OFFLINE forbids it"):
        fetch_file(PublishedFile(address="hf://a/b/d.bin"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("keras/0.5-161", "did you mean"),
        ("nobody/0.5-160", "did you mean"),
        ("x/1", "see mobilenets weights list"),
    ],
)
def test_a_name_that_is_none_gets_the_nearest(name, says):
    with pytest.raises(ValueError, match=says):
        load_weights(name)
