"""Trained runs that several tests look at."""

from pathlib import Path

import pytest
import torch

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
