"""Options that take several values at once: `--to onnx litert` is `--to onnx --to litert`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# What may follow, besides numbers: any other word is an argument of its own.
_RUNTIMES = ("torch", "onnxruntime", "litert", "executorch", "openvino", "pt2")
SEVERAL: Mapping[str, tuple[str, ...]] = {
    "--to": ("onnx", "litert", "executorch", "openvino", "coreml", "pt2"),
    "--against": ("timm", "torchvision", "keras"),
    "--runtime": _RUNTIMES,
    "--batch": (),
    "--threads": (),
}


def spread(arguments: Iterable[str]) -> list[str]:
    """Repeat an option before each of its values.

    >>> spread(["export", "runs/a", "--to", "onnx", "litert", "--int8"])
    ['export', 'runs/a', '--to', 'onnx', '--to', 'litert', '--int8']
    >>> spread(["benchmark", "--batch", "1", "32", "0.5-160"])
    ['benchmark', '--batch', '1', '--batch', '32', '0.5-160']
    """
    found: list[str] = []
    option: str | None = None
    first = False
    for word in arguments:
        if word.startswith("-"):
            option, first = (word if word in SEVERAL else None), True
            found.append(word)
            continue
        if option is not None and not first:
            if word in SEVERAL[option] or (word.isdecimal() and not SEVERAL[option]):
                found.append(option)
            else:
                option = None
        first = False
        found.append(word)
    return found
