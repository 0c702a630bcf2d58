"""Other libraries' models, to be timed beside ours where they are installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mobilenets.runtimes.eager import run_module, use_threads
from mobilenets.runtimes.model import Model

_SHAPE = (3, 224, 224)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A model of another library, run as that library's users do."""

    model: str
    package: str
    opener: Callable[[int], Model]

    def open(self, threads: int) -> Model:
        """Build it, with initial weights.

        Raises:
            ImportError: the library is not installed.
        """
        if find_spec(self.package) is None:
            raise ImportError(f"--against {self.package} needs it: pip install {self.package}")
        return self.opener(threads)


class _Plain:
    """A PyTorch module, eager, in the layout that it comes in."""

    name = "PyTorch"
    input_shape = _SHAPE

    def __init__(self, module: nn.Module, threads: int) -> None:
        self._module = module.eval()
        self._threads = threads

    def run(self, inputs_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        return run_module(self._module, torch.from_numpy(inputs_NCHW), self._threads)


class _Keras:
    """Keras on PyTorch, by `predict`."""

    name = "Keras"
    input_shape = _SHAPE

    def __init__(self, threads: int) -> None:
        os.environ["KERAS_BACKEND"] = "torch"
        import keras

        self._model = keras.applications.MobileNet(weights=None)
        self._threads = threads

    def run(self, inputs_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        use_threads(self._threads)
        outputs: NDArray[np.float32] = self._model.predict(
            inputs_NCHW.transpose(0, 2, 3, 1), verbose=0
        )
        return outputs


def _timm(threads: int) -> Model:
    import timm

    return _Plain(timm.create_model("mobilenetv1_100", pretrained=False), threads)


def _torchvision(threads: int) -> Model:
    from torchvision.models import mobilenet_v2

    return _Plain(mobilenet_v2(weights=None), threads)


def _keras(threads: int) -> Model:
    return _Keras(threads)


PEERS = {
    "timm": Peer(model="mobilenetv1_100", package="timm", opener=_timm),
    # It has no V1.
    "torchvision": Peer(model="mobilenet_v2", package="torchvision", opener=_torchvision),
    "keras": Peer(model="MobileNet", package="keras", opener=_keras),
}
