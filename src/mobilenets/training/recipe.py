"""How a model is trained: a frozen, validated set of choices that a run keeps with it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

_STRICT = ConfigDict(frozen=True, extra="forbid")


class OptimizerChoice(BaseModel):
    """Optimiser and its numbers; weight decay reaches no depthwise filter, batch norm or bias."""

    model_config = _STRICT
    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)


class ScheduleChoice(BaseModel):
    """Learning rate over the steps: a linear warm-up, then down to `final` times the peak."""

    model_config = _STRICT
    name: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of all steps")
    final: float = Field(default=0.0, ge=0, le=1)


class AugmentationChoice(BaseModel):
    """Random changes to training images."""

    model_config = _STRICT
    mirror: bool = True
    shift: float = Field(default=0.0, ge=0, lt=1, description="share of the side; small images")
    min_area: float = Field(default=1.0, gt=0, le=1, description="smallest random crop; photos")


class Recipe(BaseModel):
    """Everything that decides a training run besides the model and the data.

    >>> Recipe(name="short", epochs=3).override({"optimizer.lr": "0.1"}).optimizer.lr
    0.1
    """

    model_config = _STRICT
    name: str
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=2)
    optimizer: OptimizerChoice = OptimizerChoice()
    schedule: ScheduleChoice = ScheduleChoice()
    augmentation: AugmentationChoice = AugmentationChoice()
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    dropout: float = Field(default=0.001, ge=0, lt=1)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    clip_norm: float | None = Field(default=None, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share without a val split")
    seed: int = Field(default=0, ge=0)
    expected: str = Field(default="", description="the result it reached, and on what")

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with some values changed, `optimizer.lr` and the like as keys.

        Raises:
            ValueError: names the key, the value, and the nearest valid key.
        """
        values = self.model_dump()
        for key, value in changes.items():
            inner = values
            *path, last = key.split(".")
            for step in path:
                inner = _step_into(inner, step, key)
            _check_key(last, inner, key)
            inner[last] = yaml.safe_load(value) if isinstance(value, str) else value
        return _validated(values)

    def to_yaml(self) -> str:
        """The recipe as YAML, which `read_recipe` reads back."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        ValueError: the file is missing or not a valid recipe.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a recipe ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a list of `key: value` lines")
    return _validated({"name": path.stem, **values})


def find_recipe(wanted: str, recipes: Mapping[str, Recipe]) -> Recipe:
    """A recipe by its name or from a YAML file.

    Raises:
        ValueError: neither; names the nearest.
    """
    if wanted in recipes:
        return recipes[wanted]
    if Path(wanted).suffix in (".yaml", ".yml") or Path(wanted).is_file():
        return read_recipe(Path(wanted))
    close = difflib.get_close_matches(wanted, recipes, n=1, cutoff=0)[0]
    raise ValueError(
        f"unknown recipe {wanted!r}: the recipes are {', '.join(recipes)}, or a YAML file; "
        f"nearest: {close}"
    )


def _step_into(values: dict[str, Any], step: str, key: str) -> dict[str, Any]:
    _check_key(step, values, key)
    inner = values[step]
    if not isinstance(inner, dict):
        raise ValueError(f"recipe: {key} does not exist, {step} holds a single value")
    return inner


def _check_key(name: str, values: Mapping[str, Any], key: str) -> None:
    if name not in values:
        close = difflib.get_close_matches(name, values, n=1, cutoff=0)[0]
        raise ValueError(f"recipe: there is no key {key!r}; nearest: {close}")


def _validated(values: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            choices: type[BaseModel] = Recipe
            for step in first["loc"][:-1]:
                choices = type(getattr(Recipe.model_validate({"name": "", "epochs": 1}), str(step)))
            names = list(choices.model_fields)
            close = difflib.get_close_matches(str(first["loc"][-1]), names, n=1, cutoff=0)[0]
            raise ValueError(f"recipe: there is no key {key!r}; nearest: {close}") from None
        raise ValueError(f"recipe: {key} is {first['input']!r}: {first['msg']}") from None
