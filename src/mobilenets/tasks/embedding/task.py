"""The embedding task: identities, head, losses, data and metrics."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mobilenets.architecture.detector import Spec
from mobilenets.architecture.network import PAPER_DROPOUT, MobileNet
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.architecture.steps import Steps
from mobilenets.data.doctor import Report
from mobilenets.data.loaders import Batch, Loader, OnBadImage, make_loader
from mobilenets.data.splits import ALL, UNKNOWN, FileImages, Split, divide, join
from mobilenets.data.transforms import Distortion
from mobilenets.tasks.embedding.data import (
    IdentitySource,
    alone,
    hold_out_identities,
    numbered,
    open_identities,
    whole_identities,
)
from mobilenets.tasks.embedding.doctor import check
from mobilenets.tasks.embedding.loss import (
    TRIPLET_MARGIN,
    TripletLoss,
    arcface,
    embedding_distance,
    known,
)
from mobilenets.tasks.embedding.metrics import FIGURES, TAUGHT_FIGURES, EmbeddingMetrics
from mobilenets.tasks.embedding.prediction import EmbeddingPrediction
from mobilenets.tasks.embedding.recipes import RECIPES, TRIPLET
from mobilenets.training.agreement import Near, differences
from mobilenets.training.recipe import DistillationChoice, EmbeddingChoice, Recipe
from mobilenets.training.task import (
    OF_BOXES,
    OF_CLASSES,
    Form,
    Prediction,
    Task,
    TrainingData,
    choose_part,
    classifier_spec,
    make_loaders,
    plain_preprocessing,
    refuse_choices,
    told_data,
)

EVALUATION_BATCH = 64
# So many images make a million pairs, and more tell little more.
LARGEST_EVALUATION = 10_000
# Cosines that differ by less may change places in another runtime.
TIE = 1e-5


class Embedding(Task):
    """A point on a sphere for each image, near for images of the same identity.

    Args:
        size: values of an embedding.
        preprocessing: how an image becomes the input.
        identities: how many training knows.
        directions: whether each of them has one of its own (ArcFace).
        parts: what is trained and validated on, where the task is made for training.
    """

    name: ClassVar[str] = "embedding"
    hub_task: ClassVar[str] = "image-feature-extraction"
    mirrors: ClassVar[bool] = True
    default_model: ClassVar[str] = "0.5-112"
    class_layers: ClassVar[tuple[str, ...]] = ("classifier.", "margin.")
    answers: ClassVar[str] = "nearest images"
    output_told: ClassVar[str] = "the embedding, of length 1; two are compared by their product"
    output: ClassVar[str] = "embedding"
    monitor: str = "auc"
    figure_title: str = "AUC"
    figures: tuple[str, ...] = FIGURES

    def __init__(
        self,
        size: int,
        preprocessing: Preprocessing,
        identities: int = 0,
        parts: _Parts | None = None,
        *,
        directions: bool = False,
    ) -> None:
        self._labels = ()
        self._size = size
        self._preprocessing = preprocessing
        self._identities, self._directions = identities, directions
        self._parts = parts
        self._margin: nn.Module | None = None
        if self.asks_teacher:
            self.monitor, self.figure_title = "likeness", "likeness to the teacher"
            self.figures = TAUGHT_FIGURES

    @classmethod
    def recipes(cls) -> Mapping[str, Recipe]:
        return RECIPES

    @classmethod
    def default_recipe(cls, spec: Spec, where: str, *, pretrained: bool = False) -> Recipe:
        del spec, where, pretrained
        return TRIPLET

    @classmethod
    def from_data(
        cls,
        where: str,
        spec: Spec,
        recipe: Recipe | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Self:
        spec = _body(spec)
        recipe = recipe or TRIPLET
        choice = _choice(recipe)
        refuse_choices(recipe, "embeddings", augmentation=OF_BOXES + OF_CLASSES)
        given = preprocessing or plain_preprocessing(spec)
        # What is compared fills its picture: classifiers' weights would cut the edges off.
        given = replace(given, resize="squash", crop_fraction=1.0)
        source = open_identities(where)
        division: dict[str, Any] = {}
        if "val" not in source.splits:
            division = {"held_out": recipe.held_out, "seed": recipe.seed}
        train, val = _divided(source, division)
        lonely = tuple(source.identities[place] for place in alone(train))
        train, identities = numbered(train)
        if _learns_identities(recipe):
            counts = np.bincount(train.targets[train.targets != UNKNOWN])
            if identities < 2:
                raise ValueError(
                    f"{where} tells no identities apart: a folder for each is needed, or a teacher who knows them "
                    "(--teacher with --recipe embedding-distil)"
                )
            if choice.loss == "triplet" and (counts > 1).sum() < 2:
                raise ValueError(
                    f"{where} has one image of nearly every identity: triplets need two of each; try --recipe arcface"
                )
        return cls(
            choice.size,
            given,
            identities,
            _Parts(source, train, val, division, lonely),
            directions=choice.loss == "arcface" and _learns_identities(recipe),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], preprocessing: Preprocessing) -> Self:
        return cls(
            values["size"],
            preprocessing,
            values["identities"],
            directions=values["directions"],
        )

    @classmethod
    def of_weights(cls, spec: Spec, labels: Sequence[str], preprocessing: Preprocessing) -> Self:
        del preprocessing
        raise ValueError(
            f"these weights of {spec} tell {len(labels)} classes apart and give no embeddings: a run that was trained for them does"
        )

    @classmethod
    def check_data(
        cls,
        where: str,
        *,
        network: nn.Module | None = None,
        preprocessing: Preprocessing | None = None,
        noisy: bool = False,
    ) -> Report:
        del network, preprocessing, noisy
        return check(where)

    @property
    def outputs(self) -> int:
        return self._size

    @property
    def kinds(self) -> str:
        return f"{self._identities or 'no'} known identities"

    def to_dict(self) -> dict[str, Any]:
        return {
            "size": self._size,
            "identities": self._identities,
            "directions": self._directions,
        }

    def build_model(self, spec: Spec, recipe: Recipe | None = None) -> nn.Module:
        dropout = PAPER_DROPOUT if recipe is None else recipe.dropout
        network = MobileNet(_body(spec), self._size, dropout=dropout)
        if self._directions:
            choice = EmbeddingChoice(size=self._size) if recipe is None else _choice(recipe)
            margin = arcface(self._identities, choice)
            network.add_module("margin", margin)
            if recipe is not None:
                self._margin = margin
        return network

    def build_data(
        self, recipe: Recipe, *, on_bad_image: OnBadImage, unlabelled: Sequence[Path] = ()
    ) -> TrainingData:
        parts = self._parts
        assert parts is not None, "a task read back from a run trains on no data"
        train = parts.train
        if recipe.fraction < 1:
            train, _ = divide(train, 1 - recipe.fraction, recipe.seed)
        if unlabelled:
            nobody = np.full(len(unlabelled), UNKNOWN)
            train = join([train, Split(FileImages(tuple(unlabelled)), nobody)])
        choices = recipe.augmentation.model_dump(exclude=set(OF_BOXES + OF_CLASSES))
        loaders = make_loaders(
            make_loader,
            (train, parts.val),
            self._preprocessing,
            Distortion(**choices),
            recipe,
            parts.source.where,
            evaluation_batch=EVALUATION_BATCH,
            on_bad_image=on_bad_image,
            group=_choice(recipe).group if _learns_identities(recipe) else None,
        )
        data = told_data(parts.source, loaders, parts.division, on_bad_image=on_bad_image)
        if parts.lonely and _learns_identities(recipe):
            more = f" and {len(parts.lonely) - 1:,} more have" if len(parts.lonely) > 1 else " has"
            lonely = f"left out: {parts.lonely[0]}{more} one image, and nothing to compare it with"
            return replace(data, warnings=[*data.warnings, lonely])
        return data

    def open_for_evaluation(
        self,
        where: str,
        split: str | None,
        record: Mapping[str, Any],
        *,
        on_bad_image: OnBadImage,
        limit: int | None = None,
    ) -> tuple[str, Loader, tuple[str, ...]]:
        source = open_identities(where)
        own = source.fingerprint() == record.get("fingerprint")
        held = _divided(source, record) if own and "held_out" in record else None
        name, part, warnings = choose_part(where, source.splits, split, held, own=own, limit=None)
        if len(part) > (limit or LARGEST_EVALUATION):
            part = whole_identities(part, limit or LARGEST_EVALUATION)
            if limit is None:
                warnings.append(f"the pairs of the first {len(part):,} images are looked at")
        loader, skipped = make_loader(
            part,
            self._preprocessing,
            EVALUATION_BATCH,
            what=f"{name} images",
            on_bad_image=on_bad_image,
        )
        return name, loader, (*warnings, *(f"left out: {problem}" for problem in skipped))

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
        outputs_ND = model(batch.images_NCHW).float()
        some_MD, targets_M = known(outputs_ND, batch.targets_N)
        if not _learns_identities(recipe) or not len(some_MD):
            # A teacher alone tells what is learnt.
            return {"loss": 0 * outputs_ND.sum()}
        if self._margin is not None:
            return {"loss": self._margin(some_MD, targets_M)}
        return {"loss": TripletLoss(_choice(recipe).margin or TRIPLET_MARGIN)(some_MD, targets_M)}

    def imitate(self, outputs: Tensor, taught: Tensor, choice: DistillationChoice) -> Tensor:
        if choice.loss == "soft":
            raise ValueError(
                "recipe: distillation.loss=soft compares probabilities of classes: embeddings are compared by squared"
            )
        return embedding_distance(outputs, taught)

    @property
    def asks_teacher(self) -> bool:
        return self._parts is not None and bool((self._parts.val.targets == UNKNOWN).all())

    def metrics(self) -> EmbeddingMetrics:
        return EmbeddingMetrics(taught=self.asks_teacher)

    def compare(self, reference: NDArray[np.float32], other: NDArray[np.float32]) -> SameNeighbours:
        one_ND, two_ND = unit(reference), unit(other)
        cosine = float((one_ND * two_ND).sum(1).min(initial=1))
        same = _same_neighbours(one_ND, two_ND)
        return SameNeighbours(len(reference), *differences(reference, other), cosine, same)

    def in_file(self, model: nn.Module, form: Form) -> nn.Module:
        del form
        assert isinstance(model, MobileNet)
        network = copy.copy(model)
        # What only training asks for.
        network._modules = {name: part for name, part in model._modules.items() if name != "margin"}
        return UnitLength(network)

    def decode(self, outputs: NDArray[np.float32]) -> list[Prediction]:
        return [EmbeddingPrediction(tuple(values)) for values in unit(outputs).tolist()]


@dataclass(frozen=True)
class _Parts:
    """Training and validation images of a source, and how they were divided, where the data does not say."""

    source: IdentitySource
    train: Split
    val: Split
    division: Mapping[str, Any]
    # Identities of training that have one image.
    lonely: tuple[str, ...]


class UnitLength(nn.Module):
    """A network whose outputs (N, D) have length 1, as files give them."""

    def __init__(self, network: MobileNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D)."""
        outputs_ND: Tensor = F.normalize(self.network(images_NCHW), dim=1)
        return outputs_ND

    def steps(self) -> Steps:
        """The network's."""
        whole = self.network.steps()
        return Steps(
            whole.modules, whole.sources, lambda ends: F.normalize(whole.join(ends), dim=1)
        )


@dataclass(frozen=True)
class SameNeighbours(Near):
    """How far two sets of embeddings (N, D) are apart, and of how many images the nearest other one is the same."""

    least_cosine: float
    same_neighbours: float

    @property
    def share(self) -> float:
        """Of the images, those whose nearest other one is the same."""
        return self.same_neighbours

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest_difference:.2g} (cosines from {self.least_cosine:.5f} on), "
            f"{100 * self.same_neighbours:.2f} % of {self.images} images have the same neighbour"
        )


def unit(outputs_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs at length 1.

    >>> unit(np.array([[3.0, 4.0]], dtype=np.float32)).round(2).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    lengths_N1 = np.linalg.norm(outputs_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float32] = outputs_ND / np.maximum(lengths_N1, 1e-12)
    return unit_ND.astype(np.float32)


def _same_neighbours(one_ND: NDArray[np.float32], two_ND: NDArray[np.float32]) -> float:
    """The share of images whose nearest other one is the same in both, or as near in the first but for rounding."""
    alike_NN = one_ND @ one_ND.T
    np.fill_diagonal(alike_NN, -np.inf)
    theirs_NN = two_ND @ two_ND.T
    np.fill_diagonal(theirs_NN, -np.inf)
    of_theirs_N = alike_NN[np.arange(len(alike_NN)), theirs_NN.argmax(1)]
    return float((of_theirs_N >= alike_NN.max(1) - TIE).mean())


def _body(spec: Spec) -> MobileNetSpec:
    return classifier_spec(spec, "for embeddings", "0.5-112")


def _choice(recipe: Recipe) -> EmbeddingChoice:
    choice = recipe.embedding or EmbeddingChoice()
    if recipe.batch_size % choice.group:
        raise ValueError(
            f"recipe: batch_size is {recipe.batch_size}: a multiple of embedding.group, {choice.group}"
        )
    return choice


def _learns_identities(recipe: Recipe) -> bool:
    """Whether a teacher does not tell all."""
    return recipe.distillation is None or recipe.distillation.weight < 1


def _divided(source: IdentitySource, division: Mapping[str, Any]) -> tuple[Split, Split]:
    train = source.splits["train"] if "train" in source.splits else source.splits[ALL]
    if "val" in source.splits:
        return train, source.splits["val"]
    return hold_out_identities(train, division["held_out"], division["seed"])


TASK = Embedding
