"""The methods that can be compared: what each changes in a recipe, and what is done after training.

It also knows which settings of a recipe determine the trained weights: what has the same key need not be trained again.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from trainer.config import Recipe, load_recipe
from trainer.errors import TrainerError

TRAINING_VERSION = 1
"""Raised by hand when a change of the code changes what training gives for the same recipe and data."""

POLICIES_VERSION = 2
"""The same for drawn policies alone. 2: some pixels differ by 1 of 255, or lie halfway between two, from those of 1."""

CROPS_VERSION = 2
"""The same for pictures that ``input.resize=shortest_side`` crops and ``random_resized_crop`` does not. 2: cropped as
in serving; 1 squeezed them."""

NOT_IN_KEY: dict[str, bool | set[str]] = {
    "name": True,
    "alpha": True,
    "data": True,
    "loss": True,
    "input": {"decoder"},
    "checkpoint_steps": True,
    "compile": True,
    "capture": True,
}
"""What does not change the weights but by rounding, as all decoders give the same pixels; data and loss are added in
their own form."""


@dataclass(frozen=True)
class Method:
    """How a method differs from the recipe: settings for training, and a post-hoc step by its name."""

    settings: tuple[str, ...] = ()
    posthoc: str | None = None


LINEAR = "head.classifier=linear"
METHODS = {
    "linear": Method((LINEAR,)),
    "cosine": Method(("head.classifier=cosine",)),
    "capsule": Method(("head.classifier=capsule",)),
    "deconfounded": Method(("head.classifier=deconfounded",)),
    "focal": Method((LINEAR, "loss={name: focal}")),
    "balanced_softmax": Method((LINEAR, "loss={name: balanced_softmax}")),
    "logit_adjustment": Method((LINEAR, "loss={name: logit_adjustment}")),
    "crt": Method((LINEAR,), posthoc="crt"),
    "lws": Method((LINEAR,), posthoc="lws"),
    "tau_norm": Method((LINEAR,), posthoc="tau_norm"),
    "ncm": Method((LINEAR,), posthoc="ncm"),
}


def choose_methods(names: str) -> list[str]:
    """Read a comma-separated list of methods; ``all`` is every one.

    Raises:
        TrainerError: a name that is not known, or none at all.
    """
    chosen = list(METHODS) if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in METHODS]
    if unknown or not chosen:
        raise TrainerError(f"--methods {names!r}: must be all, or some of {', '.join(METHODS)}, with commas")
    return list(dict.fromkeys(chosen))


def choose_seeds(numbers: str) -> list[int]:
    """Read a comma-separated list of seeds.

    Raises:
        TrainerError: something that is no whole number from 0 on, or none at all.
    """
    parts = [part.strip() for part in numbers.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise TrainerError(f"--seeds {numbers!r}: must be whole numbers from 0 on, with commas, such as 0,1")
    return list(dict.fromkeys(map(int, parts)))


def recipe_of(name_or_path: str, method: str, seed: int, overrides: list[str]) -> Recipe:
    """Load a recipe as a method trains it: the method's settings come before those given by hand."""
    return load_recipe(name_or_path, [*METHODS[method].settings, *overrides, f"seed={seed}"])


def training_key(recipe: Recipe, data_fingerprint: str) -> str:
    """Hash all that determines the weights: the recipe without name, place of the data and choice of alpha; the data.

    Settings at their default are left out, so that a new setting leaves old keys as they are. Balanced softmax and
    logit adjustment with tau 1 are one loss, so they have one key.

    Example:
        >>> base = load_recipe("digits_lt")
        >>> training_key(base, "x") == training_key(load_recipe("digits_lt", ["name=other"]), "x")
        True
    """
    settings = recipe.model_dump(mode="json", exclude_defaults=True, exclude=NOT_IN_KEY)
    loss = recipe.loss.model_dump(mode="json")
    if recipe.loss.name == "balanced_softmax":
        loss["name"] = "logit_adjustment"
    if recipe.backbone.weights:
        settings["backbone"]["weights"] = _weights_hash(Path(recipe.backbone.weights))
    settings |= {"loss": loss, "in_memory": recipe.data.in_memory, "data": data_fingerprint}
    if recipe.augment.policy != "none":
        settings["policies"] = POLICIES_VERSION
    drawn = recipe.augment.random_resized_crop or recipe.backbone.frozen  # frozen: of pictures as they are
    if recipe.input.resize == "shortest_side" and not drawn:
        settings["crops"] = CROPS_VERSION
    if recipe.data.stream:
        settings["shuffle_window"] = recipe.data.shuffle_window
    content = json.dumps({"version": TRAINING_VERSION, **settings}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _weights_hash(source: Path) -> str:
    """Hash the weights that training begins with, wherever they lie; where they are gone, the path stands for them."""
    file = source / "checkpoint.safetensors" if source.is_dir() else source
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return str(source)
