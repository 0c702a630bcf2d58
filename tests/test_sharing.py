"""Runs given away and taken in: folders, and a Hub on this machine."""

import base64
import http.server
import json
import shutil

import pytest
from safetensors.torch import load_file

from conftest import served
from mobilenets import Run
from mobilenets.cli.main import run as cli
from mobilenets.training.sharing import NEEDED, SHARED


class Hub(http.server.ThreadingHTTPServer):
    """As much of the Hugging Face Hub as pushing and pulling asks for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.created, self.tokens = {}, [], set()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append(asked)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            self._json({"url": f"{self.server.address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self._json({})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            self._json(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in files
                    ]
                }
            )
        elif self.path.endswith("/commit/main"):
            repository = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[f"/{repository}/resolve/main/{entry['value']['path']}"] = (
                        content
                    )
            self._json(
                {"commitUrl": f"{self.server.address}/{repository}/commit/0", "commitOid": "0" * 40}
            )
        else:
            self._json({}, 404)

    def do_HEAD(self):
        self._file(body=False)

    def do_GET(self):
        if self.path.startswith("/api/"):
            self._json({"id": "me/flowers", "sha": "0" * 40, "siblings": []})
        else:
            self._file(body=True)

    def _file(self, body):
        content = self.server.files.get(self.path)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{abs(hash(content))}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _json(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(empty_caches, monkeypatch):
    with served(Hub()) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.address)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield made


def assert_same_model(first, second):
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)
    assert Run.load(first).labels == Run.load(second).labels
    assert Run.load(first).preprocessing == Run.load(second).preprocessing


def test_to_a_folder_and_back(digits_run, tmp_path, capsys):
    given, taken = tmp_path / "given", tmp_path / "taken"
    assert cli(["push", str(digits_run), str(given)]) == 0
    assert f"mobilenets pull {given}" in capsys.readouterr().out
    assert {path.name for path in given.iterdir()} == set(SHARED)
    assert cli(["pull", str(given), "--output", str(taken), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "0.25-16-s8"
    assert_same_model(digits_run, taken)
    # Neither replaces a run unasked.
    for command in (
        ["push", str(digits_run), str(given)],
        ["pull", str(given), "--output", str(taken)],
    ):
        assert cli(command) == 2
        assert "already holds a run" in capsys.readouterr().err
        assert cli([*command, "--overwrite"]) == 0


def test_to_the_hub_and_back(digits_run, hub, tmp_path):
    assert cli(["push", str(digits_run), "hf://me/flowers", "--private"]) == 0
    assert hub.created[0]["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_secret"}
    assert {path.rpartition("/")[2] for path in hub.files} >= set(SHARED)
    taken = tmp_path / "taken"
    assert cli(["pull", "hf://me/flowers", "--output", str(taken)]) == 0
    assert_same_model(digits_run, taken)
    # And straight into a training.
    start = [
        "train",
        "digits",
        "--weights",
        "hf://me/flowers",
        "--recipe",
        "probe",
        "--device",
        "cpu",
    ]
    assert cli([*start, "--output", str(tmp_path / "run")]) == 0


def test_no_path_of_this_machine_goes_out(digits_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    config = json.loads((run / "config.json").read_text())
    config["data"]["where"] = "/home/someone/secret/photos"
    config["data"]["skipped"] = ["/home/someone/secret/photos/cat/1.jpg: truncated"]
    config["start"] = "../someone/secret/imagenet"
    config["origin"] = {"weights": "/home/someone/a.h5 + https://someone.net/b.h5?token=someone"}
    (run / "config.json").write_text(json.dumps(config))
    card = (run / "README.md").read_text().replace("`digits`", "`/home/someone/secret/photos`")
    (run / "README.md").write_text(card)
    given = tmp_path / "given"
    assert cli(["push", str(run), str(given)]) == 0
    for path in given.iterdir():
        assert b"someone" not in path.read_bytes(), path.name
    assert "`photos`" in (given / "README.md").read_text()
    assert json.loads((given / "config.json").read_text())["origin"]["weights"] == "a.h5 + b.h5"
    # What is published is named in full.
    config["start"] = "keras/0.25-128"
    (run / "config.json").write_text(json.dumps(config))
    assert cli(["push", str(run), str(given), "--overwrite"]) == 0
    assert json.loads((given / "config.json").read_text())["start"] == "keras/0.25-128"


def test_a_run_is_not_pushed_onto_itself_nor_another_project_replaced(digits_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    assert cli(["push", str(run), str(run), "--overwrite"]) == 2
    assert "is where the run comes from" in capsys.readouterr().err
    assert (run / "state.pt").is_file()
    other = tmp_path / "transformers"
    other.mkdir()
    (other / "config.json").write_text('{"hidden_act": "relu6"}')
    (other / "model.safetensors").write_bytes(b"weights")
    assert cli(["push", str(run), str(other), "--overwrite"]) == 2
    assert "is not empty and holds no run" in capsys.readouterr().err


@pytest.mark.parametrize("missing", NEEDED)
def test_what_is_no_whole_run_replaces_nothing(missing, digits_run, tmp_path, capsys):
    given, taken = tmp_path / "given", tmp_path / "taken"
    cli(["push", str(digits_run), str(given)])
    (given / missing).unlink()
    shutil.copytree(digits_run, taken)
    assert cli(["pull", str(given), "--output", str(taken), "--overwrite"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert missing in error
    assert str(given) in error
    assert_same_model(digits_run, taken)


def test_mistakes_are_one_sentence(digits_run, hub, tmp_path, monkeypatch, capsys):
    for command, says in (
        (["pull", "me/flowers"], "me/flowers is no folder; of the Hub, write hf://OWNER/NAME"),
        (["pull", "hf://me/nothing", "--output", str(tmp_path / "x")], "the Hub has no such file"),
        (["push", str(tmp_path), "hf://me/flowers"], "is not a run"),
        (["push", str(digits_run), "hf://a/b/c"], "or refuses it"),
        (["pull", "hf://flowers", "--output", str(tmp_path / "y")], "write hf://OWNER/NAME/FILE"),
    ):
        assert cli(command) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cli(["push", str(digits_run), "hf://me/flowers"]) == 2
    assert "the Hub can't be reached" in capsys.readouterr().err
