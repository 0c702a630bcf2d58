"""ExecuTorch's programs, for XNNPACK."""

from __future__ import annotations

from pathlib import Path

from mobilenets.deploy.exportable import Exportable
from mobilenets.deploy.pt2e import quantise
from mobilenets.runtimes.quiet import quiet


def write(model: Exportable, path: Path) -> None:
    """Write a `.pte` that takes one image at a time, as phones do."""
    with quiet("executorch", "torch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = model.program(any_batch=False)
        if model.int8 is not None:
            rounded = quantise(model, program.module(), batch=1)
            program = model.program(any_batch=False, network=rounded)
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(edge.to_executorch().buffer)
