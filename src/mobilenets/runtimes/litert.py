"""LiteRT, TensorFlow Lite's successor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenets.runtimes.quiet import in_short, quiet

# Channels of an image; the other sides of an input are longer.
_MOST_CHANNELS = 4
# Sides of the outputs of TensorFlow's post-processing: boxes (1, F, 4), classes (1, F), scores (1, F) and their number (1).
_SELECTION = [3, 2, 2, 1]


class LiteRtModel:
    """A `.tflite` file, loaded on the CPU.

    Integers at its ends are made from floats and back to floats with the scale that the file gives.

    Args:
        path: the file.
        threads: how many cores one call may use; 0 leaves it to LiteRT.

    Raises:
        ValueError: the file is no such model, or takes something else than one image batch.
    """

    name = "LiteRT"

    def __init__(self, path: Path, threads: int = 0) -> None:
        from ai_edge_litert.interpreter import Interpreter

        try:
            with quiet():
                self._interpreter = Interpreter(model_path=str(path), num_threads=threads or None)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: not a model that LiteRT reads ({in_short(error)})") from None
        inputs = self._interpreter.get_input_details()
        known = len(inputs) == 1 and _is_scaled(inputs[0])
        if not known or len(inputs[0]["shape"]) != 4:
            raise ValueError(f"{path}: it takes something else than a batch of images")
        self._path = path
        sides = [len(end["shape"]) for end in self._interpreter.get_output_details()]
        self._selects = sides == _SELECTION
        # What selects boxes does so in one image.
        self._one_by_one = self._selects
        self._channels_last = inputs[0]["shape"][3] <= _MOST_CHANNELS

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """An image's (C, H, W)."""
        _, *sides = (int(side) for side in self._interpreter.get_input_details()[0]["shape"])
        height, width, channels = sides if self._channels_last else (*sides[1:], sides[0])
        return channels, height, width

    def run(self, inputs_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for a batch, such as logits (N, K); of a file that selects boxes, those (N, F, 6): left, top,
        right, bottom, score and class, a score of 0 where there are fewer.

        A file made for one image at a time is given the images of a batch one after another.

        Raises:
            ValueError: the file takes images of another size.
        """
        given = inputs_NCHW.transpose(0, 2, 3, 1) if self._channels_last else inputs_NCHW
        if given.shape[1:] != tuple(self._interpreter.get_input_details()[0]["shape"][1:]):
            sides = "x".join(map(str, self.input_shape))
            raise ValueError(f"{self._path}: it takes images of {sides}")
        if not self._resized(len(given)):
            return np.concatenate([self._call(image[None]) for image in given])
        return self._call(given)

    def _resized(self, batch: int) -> bool:
        """Make room for a batch; False where the file takes one image at a time."""
        begin = self._interpreter.get_input_details()[0]
        before, *sides = begin["shape"]
        if before == batch:
            return True
        if self._one_by_one:
            return False
        try:
            self._resize(begin["index"], (batch, *sides))
        except (ValueError, RuntimeError) as error:
            if before != 1:
                raise ValueError(
                    f"{self._path}: it does not take a batch of {batch} ({in_short(error)})"
                ) from None
            self._one_by_one = True
            self._resize(begin["index"], (1, *sides))
        return not self._one_by_one

    def _resize(self, tensor: int, shape: tuple[int, ...]) -> None:
        self._interpreter.resize_tensor_input(tensor, shape)
        self._interpreter.allocate_tensors()

    def _call(self, given: NDArray[np.float32]) -> NDArray[np.float32]:
        begin = self._interpreter.get_input_details()[0]
        self._interpreter.set_tensor(begin["index"], _quantised(given, begin))
        self._interpreter.invoke()
        if self._selects:
            return self._selected()
        end = self._interpreter.get_output_details()[0]
        return _floats(self._interpreter.get_tensor(end["index"]), end)

    def _selected(self) -> NDArray[np.float32]:
        boxes_1F4, classes_1F, scores_1F, count_1 = (
            self._interpreter.get_tensor(end["index"])
            for end in self._interpreter.get_output_details()
        )
        top, left, bottom, right = np.moveaxis(boxes_1F4.clip(0, 1), -1, 0)
        scores_1F = np.where(np.arange(scores_1F.shape[1]) < count_1[0], scores_1F, 0)
        found: NDArray[np.float32] = np.stack([left, top, right, bottom, scores_1F, classes_1F], -1)
        return found


def _is_scaled(tensor: dict[str, Any]) -> bool:
    """Whether it holds floats, or integers that stand for floats."""
    return bool(tensor["dtype"] == np.float32 or tensor["quantization"][0])


def _quantised(values: NDArray[np.float32], tensor: dict[str, Any]) -> NDArray[Any]:
    if tensor["dtype"] == np.float32:
        return np.ascontiguousarray(values)
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    levels = np.rint(values / scale + zero).clip(limits.min, limits.max)
    return np.ascontiguousarray(levels.astype(tensor["dtype"]))


def _floats(values: NDArray[Any], tensor: dict[str, Any]) -> NDArray[np.float32]:
    if tensor["dtype"] == np.float32 or not _is_scaled(tensor):
        return values
    scale, zero = tensor["quantization"]
    floats: NDArray[np.float32] = (values.astype(np.float32) - zero) * np.float32(scale)
    return floats
