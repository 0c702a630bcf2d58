"""What only a GPU can show: the same batches there, every precision, and going on."""

import json

import pytest
import torch

from mobilenets.architecture import Preprocessing
from mobilenets.cli.main import run
from mobilenets.data.loaders import MemoryLoader
from mobilenets.data.transforms import Distortion
from mobilenets.training.averaging import average_of
from mobilenets.training.curves import read_curves

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    "distortion",
    [
        None,
        Distortion(shift=0.2, cutout=0.4),
        Distortion(alternate=True, mixup=0.3, cutmix=1.0, outputs=5),
    ],
)
def test_images_on_the_gpu_are_those_of_the_cpu(distortion):
    def loader():
        random = torch.Generator().manual_seed(3)
        pixels_NHWC = torch.randint(256, (50, 12, 14, 3), dtype=torch.uint8, generator=random)
        return MemoryLoader(
            pixels_NHWC, torch.arange(50) % 5, Preprocessing(12, 14), 16, distortion
        )

    there = loader()
    there.to(CUDA)
    for epoch in range(2):
        for here, batch in zip(loader().batches(epoch), there.batches(epoch), strict=True):
            assert batch.images_NCHW.device.type == batch.targets_N.device.type == "cuda"
            torch.testing.assert_close(batch.images_NCHW.cpu(), here.images_NCHW)
            torch.testing.assert_close(batch.targets_N.cpu(), here.targets_N)


def test_the_average_is_that_of_the_cpu():
    def trained(device):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).to(device)
        average = average_of(model, 0.9)
        random = torch.Generator().manual_seed(1)
        for _ in range(5):
            with torch.no_grad():
                for weight in model.parameters():
                    weight += torch.randn(weight.shape, generator=random).to(device)
            model(torch.randn(8, 4, generator=random).to(device))
            average.update_parameters(model)
        return average.module.cpu().state_dict()

    torch.testing.assert_close(trained(CUDA), trained(torch.device("cpu")))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_digits_are_learnt_and_gone_on_with(precision, tmp_path, capsys):
    """A run, its second half in another process's place, evaluation and export from it."""
    folder = tmp_path / "run"
    common = ["--device", "cuda"]
    start = ["train", "digits", "--model", "0.25-16-s8", "--set", f"precision={precision}"]
    start += ["--set", "ema_decay=0.99", "--set", "clip_norm=5"]
    assert run([*start, *common, "--epochs", "3", "--output", str(folder)]) == 0
    assert run(["train", "--resume", str(folder), "--epochs", "5", *common]) == 0
    rows = read_curves(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[-1]["val/top1"] > 0.3
    capsys.readouterr()
    top1 = []
    for device in ("cuda", "cpu"):
        assert run(["evaluate", str(folder), "digits", "--device", device, "--json"]) == 0
        top1.append(json.loads(capsys.readouterr().out)["top1"])
    assert top1[0] == pytest.approx(top1[1], abs=0.01)


def test_deterministic_runs_agree_to_the_bit(tmp_path):
    weights = []
    for name in ("a", "b"):
        folder = tmp_path / name
        command = ["train", "digits", "--model", "0.25-16-s8", "--set", "deterministic=true"]
        assert run([*command, "--epochs", "2", "--device", "cuda", "--output", str(folder)]) == 0
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
