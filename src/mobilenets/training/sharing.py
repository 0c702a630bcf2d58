"""Runs given away and taken in: folders, and repositories of the Hugging Face Hub.

A run's folder has the Hub's layout. What goes out is what using the model needs; where the images lay is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from mobilenets.data.files import read_json
from mobilenets.training.model_card import licence_line
from mobilenets.training.run import Run, check_free
from mobilenets.weights.download import NotThereError, fetch_file
from mobilenets.weights.registry import HUB, PUBLISHED_WEIGHTS, PublishedFile

NEEDED = ("config.json", "model.safetensors")
SHARED = (*NEEDED, "README.md", "recipe.yaml", "validation.json")


def push(
    run: Run, target: str, *, private: bool = False, licence: str = "", overwrite: bool = False
) -> str:
    """Give a run away: to a folder, or to `hf://OWNER/NAME` on the Hub.

    The model is loaded before, so that nothing goes out that can't be used. Returns where it is.

    Args:
        licence: stands in the card and in `config.json` of what is given away.

    Raises:
        ValueError: the run is damaged, the folder is taken, or the Hub refuses.
    """
    assert run.model
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / (target.rstrip("/").rpartition("/")[2] or "run")
        copy.mkdir()
        for name in SHARED:
            source = run.folder / name
            if source.is_file():
                shutil.copyfile(source, copy / name)
        if licence:
            _set_licence(copy, licence)
        _forget_places(copy)
        _replace(copy / "README.md", f'Run.load("{run.folder.name}")', f'Run.load("{copy.name}")')
        if target.startswith(HUB):
            return _upload(copy, target.removeprefix(HUB).strip("/"), private=private)
        _put(copy, Path(target), run.folder, overwrite=overwrite)
        return target


def _forget_places(copy: Path) -> None:
    """Take out where images and weights lay: it is nobody's business, and may hold a token."""
    config = read_json(copy / "config.json")
    data, origin = config["data"], config.get("origin", {})
    data.pop("skipped", None)
    for holder, key in ((data, "where"), (config, "start"), (origin, "weights")):
        if key in holder:
            before = str(holder[key])
            holder[key] = " + ".join(_plain(part) for part in before.split(" + "))
            _replace(copy / "README.md", before, holder[key])
    (copy / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))


def _set_licence(copy: Path, licence: str) -> None:
    """Name a licence in `config.json` and in the head of the card."""
    given = Run.load(copy)
    given.config["licence"] = licence
    given.save_config()
    card = copy / "README.md"
    if card.is_file():
        lines = card.read_text().splitlines(keepends=True)
        lines = [line for line in lines if not line.startswith("license:")]
        # Behind the line that opens the head.
        lines.insert(1, licence_line(licence))
        card.write_text("".join(lines))


def _plain(reference: str) -> str:
    """The name alone of a path or an address; what is published is named in full."""
    published = {entry.name for entry in PUBLISHED_WEIGHTS}
    if reference in published or reference.startswith(HUB):
        return reference
    return Path(urlsplit(reference).path).name


def _put(copy: Path, folder: Path, origin: Path, *, overwrite: bool) -> None:
    """Move a whole copy to its place, the old run away only when the new one is there."""
    if folder.resolve() == origin.resolve():
        raise ValueError(f"{folder} is where the run comes from: give another folder")
    check_free(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(copy, aside)
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)


def pull(origin: str, folder: Path, *, overwrite: bool = False) -> Run:
    """Take a run in: from a folder, or from `hf://OWNER/NAME` on the Hub.

    Raises:
        ValueError: there is no run, it is damaged, or the folder is taken.
    """
    check_free(folder, overwrite=overwrite)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "run"
        copy.mkdir()
        for name in SHARED:
            file = _find(origin.rstrip("/"), name)
            if file is not None:
                shutil.copyfile(file, copy / name)
        try:
            # Whole, and of a model of ours: or nothing is replaced.
            assert Run.load(copy).model
        except ValueError as error:
            raise ValueError(str(error).replace(str(copy), origin)) from None
        _put(copy, folder, Path(origin), overwrite=overwrite)
    return Run.load(folder)


def _find(origin: str, name: str) -> Path | None:
    if not origin.startswith(HUB):
        path = Path(origin) / name
        if not Path(origin).is_dir():
            raise ValueError(f"{origin} is no folder; of the Hub, write {HUB}OWNER/NAME")
        return path if path.is_file() else None
    try:
        return fetch_file(PublishedFile(address=f"{origin}/{name}"))
    except NotThereError:
        if name in NEEDED:
            raise
        return None


def _replace(path: Path, old: str, new: str) -> None:
    if path.is_file():
        path.write_text(path.read_text().replace(old, new))


def _upload(folder: Path, repository: str, *, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,
        LocalTokenNotFoundError,
    )

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="A run of mobilenets"
        )
    # A model card or a name that the Hub does not take is a ValueError there.
    except (HTTPError, LocalTokenNotFoundError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{HUB}{repository}: the Hub can't be reached or refuses it ({reason}); HF_TOKEN needs a "
            "token that may write"
        ) from None
    return f"{HUB}{repository}"
