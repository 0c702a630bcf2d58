"""`mobilenets search`: the images of a gallery that are most like a given one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobilenets.cli.output import (
    BadImageOption,
    JsonFlag,
    note,
    on_bad_image_choice,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mobilenets.data.images import BadImageError
    from mobilenets.training.run import Run

    LeaveOut = Callable[[BadImageError], None]


def search(
    run: Annotated[Path, typer.Argument(help="A run that has learnt embeddings.")],
    query: Annotated[str, typer.Argument(help="An image, a folder or a glob pattern.")],
    gallery: Annotated[list[str], typer.Argument(help="Where to look: folders, images, patterns.")],
    count: Annotated[int, typer.Option(min=1, help="Images to name for each.")] = 5,
    index: Annotated[
        Path | None, typer.Option(help="A file that keeps the gallery's embeddings for next time.")
    ] = None,
    draw: Annotated[
        Path | None, typer.Option(help="A folder for pictures of each with what is like it.")
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="auto (the fastest), torch, or one that the run was exported for.")
    ] = "auto",
    on_bad_image: BadImageOption = "stop",
    as_json: JsonFlag = False,
) -> None:
    """Find the images of a gallery that are most like an example, the example itself left out."""
    skip_or_stop = on_bad_image_choice(on_bad_image)

    import numpy as np

    from mobilenets.data.images import BadImageError, find_images
    from mobilenets.tasks.embedding.search import nearest
    from mobilenets.training.run import Run

    opened = Run.load(run)
    if opened.task.name != "embedding":
        raise ValueError(f"search compares embeddings, and {run} has learnt {opened.task.name}")

    def leave_out(error: BadImageError) -> None:
        if skip_or_stop == "stop":
            raise BadImageError(f"{error}; --on-bad-image skip leaves such images out")
        note(f"warning: left out: {error}")

    asked = find_images([query])
    known = _embed_gallery(opened, find_images(gallery), runtime, index, leave_out)
    questions = _embed(opened, asked, runtime, "looking", leave_out)
    if not (known and questions):
        raise ValueError(f"{query if known else ', '.join(gallery)}: no image could be read")
    places = list(known)
    # One more, since the example may be in the gallery.
    cosines_QM, places_QM = nearest(
        np.stack(list(questions.values())), np.stack(list(known.values())), count + 1
    )
    found = {}
    for image, cosines, hits in zip(questions, cosines_QM, places_QM, strict=True):
        others = [
            (places[hit], float(cosine))
            for hit, cosine in zip(hits.tolist(), cosines.tolist(), strict=True)
            if places[hit].resolve() != image.resolve()
        ]
        found[image] = others[:count]
    if draw is not None:
        from mobilenets.web.sheet import draw_sheet

        draw.mkdir(parents=True, exist_ok=True)
        for number, (image, hits) in enumerate(found.items(), 1):
            draw_sheet(image, hits, draw / f"{number:06}-{image.stem}.jpg")
    if as_json:
        print_json(
            [
                {
                    "image": str(image),
                    "found": [
                        {"image": str(hit), "cosine": round(cosine, 6)} for hit, cosine in hits
                    ],
                }
                for image, hits in found.items()
            ]
        )
        return
    rows = [
        (str(image), str(hit), f"{cosine:.4f}")
        for image, hits in found.items()
        for hit, cosine in hits
    ]
    print_table(f"among {len(known):,} images", ("image", "is like", "cosine"), rows, left=2)


def _embed_gallery(
    run: Run, files: list[Path], runtime: str, index: Path | None, leave_out: LeaveOut
) -> dict[Path, NDArray[np.float32]]:
    """Embeddings of a gallery: what the index knows is not computed again."""
    if index is None:
        return _embed(run, files, runtime, "embedding the gallery", leave_out)

    import numpy as np

    from mobilenets.tasks.embedding.index import Index, file_key, read_index

    kept = read_index(index, run.weights_sha256).known() if index.is_file() else {}
    keys = {file: file_key(file) for file in files}
    new = [file for file in files if keys[file] not in kept]
    made = _embed(run, new, runtime, "embedding the gallery", leave_out)
    known = {}
    for file in files:
        values = made[file] if file in made else kept.get(keys[file])
        if values is not None:
            known[file] = values
    if made:
        kept |= {keys[file]: values for file, values in made.items()}
        Index(run.weights_sha256, tuple(kept), np.stack(list(kept.values()))).write(index)
    return known


def _embed(
    run: Run, files: list[Path], runtime: str, what: str, leave_out: LeaveOut
) -> dict[Path, NDArray[np.float32]]:
    import numpy as np

    from mobilenets.data.images import BadImageError
    from mobilenets.data.progress import progress
    from mobilenets.deploy.predictor import BATCH, find_engine, predict_images
    from mobilenets.tasks.embedding.prediction import EmbeddingPrediction

    if not files:
        return {}
    batch = min(len(files), BATCH)
    engine = find_engine(run, runtime, batch=batch)
    found = {}
    with progress(what, len(files)) as advance:
        for image, prediction in predict_images(run, files, engine, batch_size=batch):
            advance(1)
            if isinstance(prediction, BadImageError):
                leave_out(prediction)
                continue
            assert isinstance(image, Path)
            assert isinstance(prediction, EmbeddingPrediction)
            found[image] = np.array(prediction.embedding, dtype=np.float32)
    return found
