"""Core ML packages, which take pictures as they are: normalisation is inside."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mobilenets.deploy.exportable import LEVELS, Exportable
from mobilenets.runtimes.quiet import quiet


class _FromPixels(nn.Module):
    """A network that takes values from 0 to 255, and gives shares where it classifies."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Exportable) -> None:
        super().__init__()
        self.network = model.network
        self.end = nn.Softmax(1) if _classifies(model) else nn.Identity()
        mean, std = model.preprocessing.mean, model.preprocessing.std
        self.register_buffer("mean", LEVELS * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", LEVELS * torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        outputs_NK: Tensor = self.end(self.network((pixels_NCHW - self.mean) / self.std))
        return outputs_NK


def write(model: Exportable, path: Path) -> None:
    """Write a `.mlpackage`: a classifier of pictures in 32-bit floats, or with int8 weights.

    Its input is a picture where it has one or three channels, else an array of values from 0 to 255.
    """
    classifies = _classifies(model)
    with quiet("coremltools", "torch"):
        import coremltools as ct
        from coremltools.optimize import coreml as optimize

        shape = (1, *model.input_shape)
        colours = {
            "L": ct.colorlayout.GRAYSCALE,
            "RGB": ct.colorlayout.RGB,
            "BGR": ct.colorlayout.BGR,
        }
        channels = model.preprocessing.channels
        picture = (
            ct.ImageType(name="image", shape=shape, color_layout=colours[channels])
            if channels in colours
            else ct.TensorType(name="image", shape=shape)
        )
        program = model.program(any_batch=False, network=_FromPixels(model).eval())
        package = ct.convert(
            program.run_decompositions({}),
            inputs=[picture],
            outputs=[ct.TensorType(name="shares" if classifies else "outputs")],
            classifier_config=ct.ClassifierConfig(list(model.labels)) if classifies else None,
            minimum_deployment_target=ct.target.iOS16,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        if model.int8 is not None:
            how = optimize.OpLinearQuantizerConfig(
                mode="linear_symmetric",
                granularity="per_channel" if model.int8.per_channel else "per_tensor",
                # By itself it leaves small layers in float.
                weight_threshold=0,
            )
            package = optimize.linear_quantize_weights(
                package, config=optimize.OptimizationConfig(global_config=how)
            )
        package.save(str(path))


def _classifies(model: Exportable) -> bool:
    return bool(model.labels) and model.form == "network" and model.exclusive
