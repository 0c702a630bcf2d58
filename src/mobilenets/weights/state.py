"""Reading stored weights, and loading them strictly with one sentence about all that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

STEM = "body.conv0.conv.weight"
HEAD = "classifier.weight"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file.

    Raises:
        ValueError: the file is missing, truncated or of another kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise ValueError(f"{path}: there is no such weights file")
    try:
        state: dict[str, Tensor] = load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    return state


def split_head(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the body, which any task shares, and those of the head."""
    body = {key: value for key, value in state.items() if key.startswith("body.")}
    return body, {key: value for key, value in state.items() if key not in body}


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy `state` into `model`, only when every key and every shape agrees.

    Args:
        origin: the file or run the weights came from, for the message.

    Raises:
        ValueError: one sentence with the likely cause, then what is missing, extra and mis-shaped.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    mis_shaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or extra or mis_shaped:
        findings = [
            f"{len(keys)} {what} (first {keys[0]})"
            for what, keys in (("missing", missing), ("extra", extra), ("mis-shaped", mis_shaped))
            if keys
        ]
        raise ValueError(
            f"{origin} does not fit this model: {_likely_cause(own, state)}; {', '.join(findings)}"
        )
    model.load_state_dict(dict(state))


def _likely_cause(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    if STEM not in state:
        return "it is not a MobileNet of this library"
    if STEM not in own:
        return "the model is not a MobileNet"
    # The last layer tells the width, whatever the rounding: the first has 8 channels at 0.2 too.
    width, own_width = _width(state), _width(own)
    if abs(width - own_width) > 0.005:
        return f"its width is {width:.3g} and the model's {own_width:.3g}"
    have, want = state[STEM].shape, own[STEM].shape
    if have[1] != want[1]:
        return f"it takes {have[1]} input channels and the model {want[1]}"
    body_keys = {key for key in own if key.startswith("body.")}
    if body_keys != {key for key in state if key.startswith("body.")}:
        return "it is another variant (separable, fullconv or shallow)"
    if HEAD in state and HEAD in own and state[HEAD].shape[0] != own[HEAD].shape[0]:
        return f"it has {state[HEAD].shape[0]} classes and the model {own[HEAD].shape[0]}"
    if (HEAD in state) != (HEAD in own):
        return "one has a classifier and the other has none"
    return "its channels were rounded by another rule"


def _width(state: Mapping[str, Tensor]) -> float:
    body = (key for key in state if key.startswith("body.") and key.endswith(".conv.weight"))
    return max(state[key].shape[0] for key in body) / 1024
