"""`Distilled`: a task whose model learns from a teacher, beside the labels or instead of them.

Teacher and student see the same images, each at its own size and normalised in its own way.

Shapes: N images, C channels, H height, W width, K outputs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenets.architecture.detector import Spec
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.files import user_cache
from mobilenets.data.loaders import WHOLE, Batch, Loader, OnBadImage, Shard
from mobilenets.data.progress import progress, say
from mobilenets.data.transforms import scale_of
from mobilenets.training.checkpoint import write_weights
from mobilenets.training.imitation import squared
from mobilenets.training.recipe import DistillationChoice, Recipe
from mobilenets.training.task import EXTENSION, Task, TrainingData
from mobilenets.training.teachers import StoredTeacher, Teacher
from mobilenets.weights.state import read_safetensors

# Kept answers are used again if those of the first images come out so near.
NEAR = 1e-3


class Distilled:
    """A task and its teacher: the data and the loss that training takes in place of the task's own.

    Args:
        unlabelled: more images to train on, of which the teacher alone says what they are.

    Raises:
        ValueError: the teacher knows other classes, or takes other channels.
    """

    def __init__(
        self,
        task: Task,
        teacher: Teacher,
        choice: DistillationChoice,
        unlabelled: Sequence[Path] = (),
    ) -> None:
        self._task, self._teacher, self._choice = task, teacher, choice
        self._unlabelled = tuple(unlabelled)
        self._columns = None if choice.loss == "features" else _columns(task, teacher)
        self._features: dict[str, Tensor] = {}
        ours, theirs = task.preprocessing.channel_count, teacher.preprocessing.channel_count
        if ours != theirs and (ours, theirs) != (1, 3):
            raise ValueError(
                f"{teacher.name} looks at {theirs} channels, and the images have {ours}"
            )

    def check(self, spec: Spec) -> None:
        """Make sure that a model can give what the teacher gives.

        Raises:
            ValueError: their outputs differ in kind.
        """
        ours = self._task.preprocessing
        with torch.inference_mode():
            network = self._task.build_model(spec).eval()
            if self._choice.loss == "features":
                _check_features(self._task, network, self._teacher)
                return
            outputs = network(torch.zeros(2, ours.channel_count, ours.height, ours.width))
            taught = _in_order(torch.zeros(2, *self._teacher.shape()), self._columns)
        if self._columns is not None and taught.dim() > 2:
            raise ValueError(f"{self._teacher.name} has its classes in another order")
        if outputs.shape != taught.shape:
            told, wanted = (" x ".join(map(str, one.shape[1:])) for one in (taught, outputs))
            raise ValueError(
                f"{self._teacher.name} gives {told} values an image, and {spec} learns {wanted}"
            )
        self._task.imitate(outputs, taught, self._choice)

    def build_data(self, recipe: Recipe, *, on_bad_image: OnBadImage) -> TrainingData:
        """As the task does, with the teacher's answers in each batch of training."""
        ours, theirs = self._task.preprocessing, self._teacher.preprocessing
        height, width = max(ours.height, theirs.height), max(ours.width, theirs.width)
        more = self._unlabelled
        data = self._task.build_data(recipe, on_bad_image=on_bad_image, unlabelled=more)
        seen, large = ours, data
        if (height, width) != (ours.height, ours.width):
            # The teacher sees more than the student can.
            larger = self._task.sized(height, width)
            seen = larger.preprocessing
            large = larger.build_data(recipe, on_bad_image=on_bad_image, unlabelled=more)
        asked = [
            self._teacher.fingerprint,
            theirs.to_dict(),
            seen.to_dict(),
            data.record,
            [str(path) for path in more],
            (recipe.fraction, recipe.seed) if recipe.fraction < 1 else None,
        ]

        def taught(own: Loader, loader: Loader, *part: str) -> TaughtLoader:
            kept = None
            answers = None
            if isinstance(self._teacher, StoredTeacher):
                answers = self._teacher.told(
                    [own.name(row) for row in range(own.in_order().images)]
                )
            elif self._choice.sees == "whole" or part:
                whole = json.dumps([*asked, *part], sort_keys=True)
                key = hashlib.sha256(whole.encode()).hexdigest()[:24]
                kept = answers_folder() / f"{key}.safetensors"
            return TaughtLoader(
                own, loader, self._teacher, seen, ours, self._columns, kept, answers
            )

        val = taught(data.val, large.val, "val") if self._task.asks_teacher else data.val
        extend = self.extend if self._choice.loss == "features" else None
        train = taught(data.train, large.train)
        return replace(data, train=train, val=val, loss=self.loss, extend=extend)

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
        """The task's losses, `labels` and `teacher` apart, and both as the recipe weighs them."""
        assert batch.taught_N is not None
        heard = _Heard(model)
        losses = self._task.loss(heard, batch, recipe)
        assert heard.outputs is not None
        if self._choice.loss == "features":
            imitated = self._feature_distance(model, batch.taught_N)
        else:
            imitated = self._task.imitate(heard.outputs, batch.taught_N, self._choice)
        weight, labels = self._choice.weight, losses["loss"]
        # A loss that counts for nothing gives no gradient, be it infinite.
        whole = imitated if weight == 1 else weight * imitated + (1 - weight) * labels
        return {**losses, "loss": whole, "labels": labels.detach(), "teacher": imitated.detach()}

    def extend(self, model: nn.Module) -> None:
        """Give a model a projector from its features to the teacher's, and listen to its features."""
        channels = model.feature_channels
        assert isinstance(channels, int)
        projector = nn.Linear(channels, self._teacher.shape()[0])
        model.add_module(EXTENSION, projector)
        heard = self._features

        # A function of its own: a copy of the model must not copy what is kept here.
        def listen(_: nn.Module, __: object, pooled_NC11: Tensor) -> None:
            heard["features"] = pooled_NC11.flatten(1)

        model.get_submodule("pool").register_forward_hook(listen)

    def _feature_distance(self, model: nn.Module, taught_NF: Tensor) -> Tensor:
        """Mean squared difference between the projected features of the last forward pass and the teacher's."""
        # What several processes share wraps the model.
        whole: nn.Module = getattr(model, "module", model)
        projected_NF = whole.get_submodule(EXTENSION)(self._features["features"])
        return squared(projected_NF.float(), taught_NF) / taught_NF.shape[1]


class TaughtLoader:
    """Batches with what a teacher says of them.

    Args:
        own: the student's loader.
        loader: the same at the larger of both sizes.
        seen: how they are made.
        wanted: how the student's images are made.
        columns: of the teacher's outputs, in the order of the student's classes; None takes all as they are.
        kept: where answers about whole images lie, or will; None asks about each batch as it comes.
        answers: about every image, where they are known.
    """

    def __init__(
        self,
        own: Loader,
        loader: Loader,
        teacher: Teacher,
        seen: Preprocessing,
        wanted: Preprocessing,
        columns: Tensor | None,
        kept: Path | None,
        answers: Tensor | None = None,
    ) -> None:
        self._own, self._loader, self._teacher = own, loader, teacher
        self._seen, self._wanted = seen, wanted
        self._columns = columns
        self._kept = kept
        self._answers = answers

    @property
    def images(self) -> int:
        return self._own.images

    def __len__(self) -> int:
        return len(self._own)

    def batches(self, epoch: int = 0, start: int = 0, shard: Shard = WHOLE) -> Iterator[Batch]:
        if self._kept is not None and self._answers is None:
            self._answers = self._answers_of_all(self._kept)
        # Whom the teacher has told all needs no images at its size.
        loader = self._loader if self._answers is None else self._own
        for batch in loader.batches(epoch, start, shard):
            if self._answers is None:
                answers = self._ask(batch)
            else:
                assert batch.rows_N is not None
                answers = self._answers[batch.rows_N]
            answers = _in_order(answers, self._columns).to(batch.images_NCHW.device)
            yield replace(
                batch.resized((self._wanted.height, self._wanted.width)), taught_N=answers
            )

    def still(self) -> Loader:
        return self._own.still()

    def in_order(self) -> Loader:
        return self._own.in_order()

    def name(self, row: int) -> str:
        return self._own.name(row)

    def to(self, device: torch.device) -> None:
        self._own.to(device)
        self._loader.to(device)
        self._teacher.to(device)

    def _ask(self, batch: Batch) -> Tensor:
        """The teacher's outputs for images that are made for the student, but for their size."""
        images_NCHW, theirs = batch.images_NCHW, self._teacher.preprocessing
        if not len(batch):
            # One of several processes may have none of a small batch.
            blank = replace(
                batch,
                images_NCHW=images_NCHW.new_zeros(1, *images_NCHW.shape[1:]),
                targets_N=torch.zeros(1),
            )
            return self._ask(blank)[:0]
        mean_C11, std_C11 = scale_of(self._seen, images_NCHW)
        pixels_NCHW = images_NCHW * std_C11 + mean_C11
        if self._seen.channels != theirs.channels:
            # RGB to BGR and back, or grey to three channels.
            pixels_NCHW = pixels_NCHW.flip(1).expand(-1, theirs.channel_count, -1, -1)
        mean_C11, std_C11 = scale_of(theirs, images_NCHW)
        inputs_NCHW = (pixels_NCHW - mean_C11) / std_C11
        size = [theirs.height, theirs.width]
        if list(inputs_NCHW.shape[-2:]) != size:
            inputs_NCHW = F.interpolate(inputs_NCHW, size, mode="bilinear", antialias=True)
        return self._teacher.answer(inputs_NCHW.contiguous(memory_format=torch.channels_last))

    def _answers_of_all(self, path: Path) -> Tensor:
        """What the teacher says of every image as it is: kept from before, if the first ones agree, or asked now and kept."""
        loader = self._loader.in_order()
        if path.is_file():
            answers = read_safetensors(path)["answers"]
            first = self._ask(next(iter(loader.batches()))).cpu()
            if torch.allclose(answers[: len(first)], first, rtol=NEAR, atol=NEAR):
                return answers
            say(f"{path} holds other answers than {self._teacher.name} gives now: asking again")
        found = []
        with progress(f"asking {self._teacher.name}", loader.images) as advance:
            for batch in loader.batches():
                found.append(self._ask(batch).cpu())
                advance(len(batch))
        answers = torch.cat(found)
        write_weights(path, {"answers": answers})
        return answers


def _check_features(task: Task, network: nn.Module, teacher: Teacher) -> None:
    if task.asks_teacher:
        raise ValueError(
            "recipe: distillation.loss=features says nothing of how good a model is, and the images are of nobody known"
        )
    if not hasattr(network, "pooled_features"):
        raise ValueError("recipe: distillation.loss=features is for models with one classifier")
    if len(teacher.shape()) != 1:
        shape = " x ".join(map(str, teacher.shape()))
        raise ValueError(f"{teacher.name} gives {shape} values an image, and features are a row")


def _columns(task: Task, teacher: Teacher) -> Tensor | None:
    """Where the student's classes stand among the teacher's; None where all stand in the same place, as far as is known."""
    if not teacher.labels or teacher.labels == task.labels:
        return None
    unknown = [label for label in task.labels if label not in teacher.labels]
    if unknown:
        raise ValueError(
            f"{teacher.name} does not know {', '.join(unknown[:5])}"
            + (f" and {len(unknown) - 5} more classes" if len(unknown) > 5 else "")
        )
    return torch.tensor([teacher.labels.index(label) for label in task.labels])


def _in_order(answers: Tensor, columns: Tensor | None) -> Tensor:
    """A teacher's outputs in the order of the student's classes."""
    return answers if columns is None else answers[:, columns]


class _Heard(nn.Module):
    """A network whose last outputs are kept."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # In a tuple it is not a part of this one.
        self._network = (network,)
        self.outputs: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs: Tensor = self._network[0](*inputs)
        self.outputs = outputs
        return outputs


def answers_folder() -> Path:
    """Where teachers' answers are kept: `XDG_CACHE_HOME/mobilenets/answers`, else below `~/.cache`."""
    return user_cache() / "mobilenets" / "answers"
