"""`mobilenets search`: the images of a gallery that are most like a given one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobilenets.cli.output import (
    BadImageOption,
    JsonFlag,
    RuntimeOption,
    leaving_out,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mobilenets.deploy.predictor import Engine
    from mobilenets.training.run import Run

    LeaveOut = Callable[[ValueError], None]
    Embed = Callable[[list[Path], str], dict[Path, NDArray[np.float32]]]


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
    runtime: RuntimeOption = "auto",
    on_bad_image: BadImageOption = "stop",
    as_json: JsonFlag = False,
) -> None:
    """Find the images of a gallery that are most like an example, the example itself left out."""
    leave_out = leaving_out(on_bad_image)

    import numpy as np

    from mobilenets.data.images import find_images
    from mobilenets.deploy.predictor import BATCH, find_engine
    from mobilenets.tasks.embedding.search import nearest
    from mobilenets.training.run import Run

    opened = Run.load(run)
    if opened.task.name != "embedding":
        raise ValueError(f"search compares embeddings, and {run} has learnt {opened.task.name}")

    asked, files = find_images([query]), find_images(gallery)
    engine = find_engine(opened, runtime, batch=min(len(files), BATCH))

    def embed(images: list[Path], what: str) -> dict[Path, NDArray[np.float32]]:
        return _embed(opened, images, engine, what, leave_out)

    known = _embed_gallery(opened, files, index, embed)
    questions = embed(asked, "looking")
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
    run: Run, files: list[Path], index: Path | None, embed: Embed
) -> dict[Path, NDArray[np.float32]]:
    """Embeddings of a gallery: what the index knows is not computed again."""
    if index is None:
        return embed(files, "embedding the gallery")

    import numpy as np

    from mobilenets.tasks.embedding.index import Index, file_key, read_index

    kept = read_index(index, run.weights_sha256).known() if index.is_file() else {}
    keys = {file: file_key(file) for file in files}
    new = [file for file in files if keys[file] not in kept]
    made = embed(new, "embedding the gallery")
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
    run: Run, files: list[Path], engine: Engine, what: str, leave_out: LeaveOut
) -> dict[Path, NDArray[np.float32]]:
    import numpy as np

    from mobilenets.data.images import BadImageError
    from mobilenets.data.progress import progress
    from mobilenets.deploy.predictor import BATCH, predict_images
    from mobilenets.tasks.embedding.prediction import EmbeddingPrediction

    if not files:
        return {}
    found = {}
    with progress(what, len(files)) as advance:
        for image, prediction in predict_images(run, files, engine, batch_size=BATCH):
            advance(1)
            if isinstance(prediction, BadImageError):
                leave_out(prediction)
                continue
            assert isinstance(image, Path)
            assert isinstance(prediction, EmbeddingPrediction)
            found[image] = np.array(prediction.embedding, dtype=np.float32)
    return found
