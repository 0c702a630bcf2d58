"""Trained runs that several tests look at."""

import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from mobilenets.cli.main import run

# Two threads wait for each other on tensors this small whenever anything else runs.
torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A small model after four epochs of handwritten digits: well above chance, quickly made."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    arguments = ["train", "digits", "--model", "0.25-16-s8", "--epochs", "4", "--device", "cpu"]
    assert run([*arguments, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def shared():
    """The folder of real data and weights beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in shared/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def hymenoptera(shared, tmp_path_factory):
    """Real photos of ants and bees, train 244 and val 153, as an image folder."""
    import tarfile

    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(shared / "data" / "hymenoptera.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder / "hymenoptera"


@contextmanager
def served(server):
    """An HTTP server that answers in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
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
