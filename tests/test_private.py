"""Nothing is installed and nothing is sent while the tool runs (case 23)."""

import re
import socket
import subprocess
from pathlib import Path

import pytest

import mobilenets
from mobilenets.cli.main import run as cli

SOURCES = sorted(Path(mobilenets.__file__).parent.rglob("*.py"))


@pytest.fixture
def alone(monkeypatch):
    """No name is looked up, no connection opened, no program started."""

    def refuse(*arguments, **options):
        raise AssertionError(f"reached outside: {arguments[:2]}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess.Popen, "_execute_child", refuse)


def test_the_fixture_notices(alone):
    with pytest.raises(AssertionError, match="reached outside"):
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    with pytest.raises(AssertionError, match="reached outside"):
        subprocess.run(["true"], check=True)


def test_the_main_job_needs_nobody(alone, tmp_path):
    run = str(tmp_path / "run")
    job = ["train", "digits", "--model", "0.25-8-s4", "--epochs", "1", "--output", run]
    assert cli(job) == 0
    assert cli(["train", "--resume", run, "--epochs", "2"]) == 0
    assert cli(["evaluate", run, "digits"]) == 0
    assert cli(["export", run, "--to", "onnx"]) == 0
    assert cli(["cost", "0.5-160"]) == 0


# Downloads happen in named places only; each asks for what the user named.
DOWNLOADERS = {
    "data/sources.py",
    "data/shards/places.py",
    "deploy/bulk.py",
    "weights/download.py",
    "training/sharing.py",
}


# Answers whoever asks, and asks nobody.
SERVERS = {"web/server.py", *(f"web/service/{name}.py" for name in ("gate", "guard", "server"))}


# Times a model's loading in a process of its own, which is this library again.
STARTS_ITSELF = "deploy/benchmark.py"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_source_installs_or_phones(path):
    text = path.read_text()
    if path.relative_to(Path(mobilenets.__file__).parent).as_posix() == STARTS_ITSELF:
        assert text.count("subprocess.") == text.count("subprocess.run([*command,") == 1
        assert 'command = [sys.executable, "-P", "-m", "mobilenets.deploy.first_call"]' in text
        text = text.replace("subprocess", "")
    assert not re.search(
        r"pip\s+install.*(run|call|Popen)|subprocess|os\.system|(?<![.\w])(eval|exec)\(", text
    )
    place = path.relative_to(Path(mobilenets.__file__).parent).as_posix()
    if place in SERVERS:
        assert not re.search(r"urllib\.request|http\.client|\.connect\(|create_connection", text)
    elif place not in DOWNLOADERS:
        assert not re.search(r"^\s*(import|from) (requests|urllib|http|socket)", text, re.MULTILINE)
