"""Quantisation of an exported graph, after training or while training, by torchao's PT2E with XNNPACK's rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from mobilenets.deploy.exportable import Exportable, Int8, tail_of
from mobilenets.runtimes.quiet import quiet

BATCH = 16
SMALLEST_SCALE = 2**-12
_RELU6, _RELU6_IN_PLACE = torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default
_WEIGHTED = ("aten.conv2d.default", "aten.linear.default")


def quantise(model: Exportable, graph: nn.Module, batch: int = BATCH) -> GraphModule:
    """A graph with integer weights and activations, calibrated on the model's images.

    Args:
        graph: of `model.program(...).module()`.
        batch: how many images it takes at a time.
    """
    with quiet("torch", "torchao", "executorch"):
        from torchao.quantization.pt2e import MinMaxObserver
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        assert model.int8 is not None
        # By itself it looks for a range that loses little over all values, and cuts off what few need.
        observer = MinMaxObserver.with_args(eps=SMALLEST_SCALE)
        floats = set() if model.form == "network" else _tail(graph)
        prepared = _prepared(graph, model.int8, prepare_pt2e, observer, floats)
        with torch.inference_mode():
            for images_NCHW in torch.split(model.int8.images_NCHW, batch):
                prepared(images_NCHW)
        return _without_leftovers(convert_pt2e(prepared))


def rounded_in_training(graph: nn.Module, int8: Int8) -> GraphModule:
    """A graph that rounds as int8 does, and through whose rounding gradients pass.

    Args:
        graph: of `model.program(...).module()`.
    """
    with quiet("torch", "torchao", "executorch"):
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        return _prepared(graph, int8, prepare_qat_pt2e, None, set())


def _prepared(
    graph: nn.Module,
    int8: Int8,
    prepare: Callable[..., GraphModule],
    observer: Any,
    floats: set[str],
) -> GraphModule:
    """The graph with an observer at each place that int8 rounds.

    Args:
        prepare: torchao's, for calibration or for training.
        observer: of activations; None takes XNNPACK's own.
        floats: nodes that stay in float.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    assert isinstance(graph, GraphModule)
    config = get_symmetric_quantization_config(
        is_per_channel=int8.per_channel, is_qat=observer is None
    )
    if observer is not None:
        ends = {
            end: replace(getattr(config, end), observer_or_fake_quant_ctr=observer)
            for end in ("input_activation", "output_activation")
        }
        config = replace(config, **ends)
    kept = _kept(graph, int8.keep) | floats
    quantizer = XNNPACKQuantizer().set_global(config)
    quantizer.set_filter_function(lambda node: node.name not in kept)
    capped = _uncap(graph, kept)
    prepared = prepare(graph, quantizer)
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.args[0].name in capped:
            prepared.get_submodule(node.target).register_forward_pre_hook(_cap)
    return prepared


def _cap(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
    """Stop at 6, as the largest integer will."""
    return (inputs[0].clamp(max=6.0),)


def _kept(graph: GraphModule, keep: frozenset[int]) -> set[str]:
    """The nodes of layers that stay in float, with the activation that follows each."""
    weighted = [node for node in graph.graph.nodes if str(node.target) in _WEIGHTED]
    nodes = [weighted[number] for number in keep]
    return {node.name for node in nodes} | {user.name for node in nodes for user in node.users}


def _tail(graph: nn.Module) -> set[str]:
    """The nodes that place boxes."""
    assert isinstance(graph, GraphModule)
    return tail_of(
        [
            (
                node.name,
                [taken.name for taken in node.all_input_nodes],
                str(node.target) in _WEIGHTED,
            )
            for node in graph.graph.nodes
        ]
    )


def _uncap(graph: GraphModule, kept: set[str]) -> set[str]:
    """Make every ReLU6 a ReLU, which alone is merged with the convolution before it.

    Returns:
        The names of those that were ReLU6: what follows them must stop at 6.
    """
    names = set()
    for node in graph.graph.nodes:
        if node.target in (_RELU6, _RELU6_IN_PLACE) and node.name not in kept:
            node.target = torch.ops.aten.relu.default
            node.args = node.args[:1]
            names.add(node.name)
    graph.recompile()
    return names


def _without_leftovers(graph: GraphModule) -> GraphModule:
    """The graph without the float weights that its integers were made from."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in [*graph.named_parameters(), *graph.named_buffers()]:
        if name not in used:
            place, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(place), leaf)
    return graph
