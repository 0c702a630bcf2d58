"""Weights by whatever names them: published ones, a file, a run folder, an address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mobilenets.architecture.detector import spec_from_dict
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.files import read_json
from mobilenets.weights.download import NotThereError, fetch, fetch_file
from mobilenets.weights.files import NOTHING_SAID, import_weights
from mobilenets.weights.imported import ImportedWeights, Said
from mobilenets.weights.registry import HUB, PublishedFile, find_weights
from mobilenets.weights.state import read_safetensors

_PUBLISHED = re.compile(r"[a-z0-9-]+/(?:[a-z]+[\dx]+/)?\d[\w.-]*")
_REPOSITORY = re.compile(rf"{re.escape(HUB)}[^/]+/[^/]+/?")


def load_weights(
    reference: str | Path,
    *,
    labels: Sequence[str] = (),
    said: Said = NOTHING_SAID,
    keep_background: bool = False,
) -> ImportedWeights:
    """Weights from where they are, downloaded where they must be.

    Args:
        reference: published weights such as `keras/0.5-160`; a run folder; a file of any project that
            `import_weights` reads; an address; `hf://OWNER/NAME` or `hf://OWNER/NAME/FILE` on the Hub.
        labels, said, keep_background: as of `import_weights`; a run has its own.

    Raises:
        ValueError: one sentence that names the file or address and says what is wrong with it.
        ImportError: a package that knows the format is missing; it says how to install it.
    """
    text, path = str(reference), Path(reference)
    files, licence = [path], ""
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} is not a run: it has no config.json")
        if "spec" in read_json(path / "config.json"):
            run = read_run(path)
            said.check(text, run.spec)
            return run
        # Hugging Face's layout.
        path = path / "model.safetensors"
        files = [path]
    if not path.exists():
        if text.startswith(("http://", "https://")):
            files = [fetch_file(PublishedFile(address=text))]
        elif _REPOSITORY.fullmatch(text):
            config = fetch_file(PublishedFile(address=f"{text.rstrip('/')}/config.json"))
            weights = fetch_file(PublishedFile(address=f"{text.rstrip('/')}/model.safetensors"))
            settings = read_json(config)
            if "spec" in settings:
                run = read_run(weights.parent)
                said.check(text, run.spec)
                return run
            # timm keeps all in one file.
            if "pretrained_cfg" not in settings:
                beside = f"{text.rstrip('/')}/preprocessor_config.json"
                with suppress(NotThereError):
                    fetch_file(PublishedFile(address=beside))
            files = [weights]
        elif text.startswith(HUB):
            files = [fetch_file(PublishedFile(address=text))]
        elif _PUBLISHED.fullmatch(text):
            entry = find_weights(text)
            files, licence = fetch(entry), entry.licence
            said = replace(said, resolution=said.resolution or entry.spec.height)
    imported = import_weights(files, labels=labels, said=said, keep_background=keep_background)
    return replace(imported, licence=licence)


def read_run(folder: Path) -> ImportedWeights:
    """The weights of a run folder of ours, with all that it says of them.

    Raises:
        ValueError: the folder is no run, or one of its files is damaged.
    """
    path = folder / "config.json"
    config = read_json(path)
    try:
        spec = spec_from_dict(config["spec"])
        preprocessing = Preprocessing.from_dict(config["preprocessing"])
        labels = tuple(config[config["task"]].get("labels", ()))
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is damaged: {reason}") from None
    return ImportedWeights(
        spec=spec,
        state=read_safetensors(folder / "model.safetensors"),
        preprocessing=preprocessing,
        labels=labels,
        licence=config.get("licence") or config.get("origin", {}).get("licence", ""),
    )
