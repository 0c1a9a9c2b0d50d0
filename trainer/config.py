"""What a recipe may say: YAML in, validated settings out, and errors that name the key, the value and the remedy.

It knows what the settings mean only as far as they can be checked without data or a model.
"""

import re
from difflib import get_close_matches
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from service.bundle import InputSpec
from trainer.errors import TrainerError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
UpToOne = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

# What the parser raises: dates and numbers that cannot be (2026-13-01) come as ValueError.
BROKEN_YAML = (yaml.YAMLError, ValueError, RecursionError)


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LongTail(Section):
    """How many images of each class are kept. Class 0 is the most frequent.

    exponential: class c of C keeps ``int(n * f ** (-c / (C - 1)))`` images;
    step: the first half of the classes keeps n, the other half ``int(n / f)`` (Cao et al., NeurIPS 2019);
    n is the largest number for which every class has enough images.
    """

    profile: Literal["none", "exponential", "step"] = "none"
    imbalance_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1
    seed: Seed | None = Field(None, description="which images stay: null keeps the first ones of each class")

    @model_validator(mode="after")
    def _factor_has_a_profile(self) -> Self:
        if self.profile == "none" and self.imbalance_factor != 1:
            raise ValueError("imbalance_factor needs a profile: set profile to exponential or step")
        return self


class Lists(Section):
    """Files of ``path label`` lines, relative to the source folder, as ImageNet-LT and Places-LT are published."""

    train: str
    test: str
    validation: str | None = None
    class_names: str | None = Field(None, description="file with one class name a line")


class DataConfig(Section):
    """Where images come from and which of them are used."""

    source: str = Field(min_length=1, description="hub id, folder of parquet files, image folder, or 'digits'")
    image_column: str | None = None
    label_column: str | None = None
    lists: Lists | None = None
    long_tail: LongTail = LongTail()
    validation_share: Share = Field(0, description="share of each class's training images held out to choose alpha")
    in_memory: bool = Field(True, description="hold all pixels on the device; else decode in worker processes")
    num_workers: int = Field(4, ge=0, le=1024)
    stream: bool = Field(False, description="read parquet shards where they lie, a row group at a time")
    shuffle_window: int = Field(
        8192, ge=1, le=2**31, description="stream: pictures that are shuffled among each other, and held meanwhile"
    )

    @model_validator(mode="after")
    def _stream_fits(self) -> Self:
        if self.stream and self.in_memory:
            raise ValueError("stream=true reads pictures as they are needed: set in_memory=false")
        if self.stream and self.lists:
            raise ValueError("stream=true reads parquet shards, and lists name single pictures; give one of them")
        return self


class AugmentConfig(Section):
    """Training transforms; 0 switches one off."""

    crop_padding: int = Field(0, ge=0, le=4096, description="random crop of the picture padded by so many black pixels")
    random_resized_crop: bool = False
    horizontal_flip: bool = False
    color_jitter: NonNegative = Field(0, description="strength of brightness, contrast and saturation changes")
    policy: Literal["none", "auto", "rand", "trivial"] = Field(
        "none",
        description="drawn changes: AutoAugment's CIFAR-10 policy, RandAugment (2 of level 9), or one operation of "
        "TrivialAugment within RandAugment's ranges, which are narrower than those of TrivialAugment (Wide)",
    )
    cutout: int = Field(0, ge=0, le=4096, description="side of a square of the mean colour, put anywhere")
    mixup: NonNegative = Field(0, description="a of Beta(a, a): how two pictures and their losses are mixed")
    cutmix: NonNegative = Field(0, description="a of Beta(a, a): how much of a picture stays beside a box of another")
    mixing_probability: UpToOne = Field(1, description="share of batches that are mixed, by mixup or cutmix in turn")
    mixing_until: UpToOne = Field(1, description="share of the epochs after which nothing is mixed any more")


class LoraConfig(Section):
    """Low-rank changes ``W + lora_alpha / rank * B A`` of a backbone's layers, trained in place of W."""

    rank: int = Field(8, ge=1, le=2**16)
    lora_alpha: int = Field(16, ge=1, le=2**16, description="scale of the change; nothing to do with TDE's alpha")
    layers: str | None = Field(
        None, description="regular expression of the layers' names; null: all linear layers, or else all convolutions"
    )


class BackboneConfig(Section):
    """Which network makes the features, where its weights come from, and what of it is trained."""

    name: str = Field(min_length=1)
    pretrained: bool = Field(False, description="fetch timm's weights from the hub")
    weights: str | None = Field(
        None, min_length=1, description="weights from a safetensors or torch file, or from the folder of a run"
    )
    frozen: bool = Field(False, description="train the classifier alone, on features that are computed once")
    lora: LoraConfig | None = Field(None, description="train low-rank changes of the backbone alone; needs peft")

    @model_validator(mode="after")
    def _parts_belong(self) -> Self:
        if self.pretrained and self.weights:
            raise ValueError(f"pretrained=true and weights={self.weights!r} are two sources of weights; give one")
        if self.frozen and self.lora:
            raise ValueError("frozen=true and lora exclude each other; set frozen=false or lora=null")
        if (self.frozen or self.lora) and not (self.pretrained or self.weights):
            raise ValueError("frozen and lora keep the weights: set pretrained=true, or weights to a file or a run")
        return self


class HeadConfig(Section):
    """The classifier and its momentum direction; what tau, gamma and num_heads mean, its file says."""

    classifier: Literal["deconfounded", "linear", "cosine", "capsule"] = "deconfounded"
    num_heads: int = Field(2, ge=1, le=2**16)
    tau: Positive = 16.0
    gamma: NonNegative = 1 / 32
    momentum_decay: Annotated[float, Field(ge=0, le=1)] | Literal["coupled"] = Field(
        0.9, description="mu; coupled: 1 - 0.1 * min(50 * learning rate, 1)"
    )


class LossConfig(Section):
    """What training minimises; see ``trainer.losses``."""

    name: Literal["cross_entropy", "focal", "balanced_softmax", "logit_adjustment"] = "cross_entropy"
    gamma: NonNegative = Field(2.0, description="focal: how much less easy pictures count")
    tau: NonNegative = Field(1.0, description="logit_adjustment: how much of the log class share is added")

    @model_validator(mode="after")
    def _settings_belong(self) -> Self:
        for key, owner in (("gamma", "focal"), ("tau", "logit_adjustment")):
            if getattr(self, key) != type(self).model_fields[key].default and self.name != owner:
                raise ValueError(f"{key} belongs to name={owner}, got {getattr(self, key)} with name={self.name}")
        return self


class OptimizerConfig(Section):
    """SGD with momentum, the premise of the method, or AdamW; what the direction means then: ``trainer.optimizer``."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive
    backbone_learning_rate: Positive | None = Field(
        None, description="of the backbone, where it differs; follows the same schedule"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="adamw: beta 1")
    nesterov: bool = False
    weight_decay: NonNegative = Field(5e-4, description="adamw: decoupled, so larger values are usual (0.01 to 0.1)")
    sharpness_rho: NonNegative = Field(
        0, description="sharpness-aware: how far to the worst weights nearby; usual are 0.05 to 0.2; 0: off"
    )

    @model_validator(mode="after")
    def _nesterov_is_sgd(self) -> Self:
        if self.nesterov and self.name != "sgd":
            raise ValueError(f"nesterov=true belongs to name=sgd, got name={self.name}")
        return self

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs a momentum above 0, got 0")
        return self


class ScheduleConfig(Section):
    """Epochs and the learning rate over them."""

    epochs: int = Field(ge=1, le=2**31)
    warmup_epochs: float = Field(0, ge=0, le=2**31, description="a share of an epoch will do")
    warmup_start: Share = Field(1 / 3, description="share of the learning rate that the warm-up starts from")
    decay: Literal["constant", "steps", "cosine"] = "constant"
    milestones: tuple[int, ...] = Field(
        (), description="epochs after which the rate falls; those from the last epoch on have no effect"
    )
    step_factor: Positive = 0.01

    @model_validator(mode="after")
    def _milestones_fit(self) -> Self:
        if (self.decay == "steps") != bool(self.milestones):
            raise ValueError(f"milestones and decay=steps belong together, got {self.milestones} and {self.decay!r}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")
        if self.milestones and self.milestones[0] < 1:
            raise ValueError(f"milestones are epochs and must be 1 or more, got {list(self.milestones)}")
        return self


class AveragingConfig(Section):
    """The moving average of the weights over the steps, which then is the model in place of the last weights."""

    decay: Share = Field(0, description="share of the average that stays at each step; 0: no average")


class AlphaConfig(Section):
    """The range that requests may use, and how the default is chosen (never on test data)."""

    choose: Literal["validation", "mean_cosine", "recipe"] = "mean_cosine"
    value: float | None = None
    minimum: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    maximum: Annotated[float, Field(allow_inf_nan=False)] = 3.0

    @model_validator(mode="after")
    def _value_fits(self) -> Self:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum must lie below maximum, got {self.minimum} and {self.maximum}")
        if (self.choose == "recipe") != (self.value is not None):
            raise ValueError(f"value and choose=recipe belong together, got {self.value} and {self.choose!r}")
        if self.value is not None and not self.minimum <= self.value <= self.maximum:
            raise ValueError(f"value must lie in [{self.minimum}, {self.maximum}], got {self.value}")
        return self


class BaseRecipe(Section):
    """What a recipe says whatever its task: all that determines a training run is in it, apart from the machine."""

    task: str
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,99}$")
    seed: Seed = 0
    batch_size: int = Field(ge=2, le=2**20)
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 autocast where the device computes in bf16, else fp32"
    )
    checkpoint_steps: int = Field(
        0, ge=0, description="save also after so many steps within an epoch; needs data.in_memory=false; 0: do not"
    )
    input: InputSpec = Field(description="the pixels that the model sees, in training and in serving alike")
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    alpha: AlphaConfig = AlphaConfig()


class Recipe(BaseRecipe):
    """A classifier's recipe; a detector's is ``trainer.detection.recipe.DetectionRecipe``."""

    task: Literal["classification"] = "classification"
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="torch.compile of both passes; auto: on a GPU that captures none, as it is slower on a CPU"
    )
    capture: Literal["auto", "always", "never"] = Field(
        "auto", description="forward and backward pass as CUDA graphs; auto: on one GPU, of data in memory"
    )
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    backbone: BackboneConfig
    head: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
    averaging: AveragingConfig = AveragingConfig()

    @model_validator(mode="after")
    def _input_is_a_classifiers(self) -> Self:
        if self.input.resize == "longest_side":
            raise ValueError("input.resize=longest_side belongs to task=detection; set exact or shortest_side")
        return self

    @model_validator(mode="after")
    def _augmentation_fits_data(self) -> Self:
        if self.data.in_memory and (self.augment.random_resized_crop or self.input.resize != "exact"):
            raise ValueError(
                "augment.random_resized_crop and input.resize=shortest_side need data.in_memory=false: "
                "pictures in memory have one size"
            )
        return self

    @model_validator(mode="after")
    def _place_in_the_epoch_is_known(self) -> Self:
        if self.checkpoint_steps and self.data.in_memory:
            raise ValueError(
                f"checkpoint_steps={self.checkpoint_steps} needs data.in_memory=false: epochs of pictures in memory "
                "are short, and a checkpoint follows each"
            )
        return self

    @model_validator(mode="after")
    def _frozen_sees_each_picture_once(self) -> Self:
        if not self.backbone.frozen:
            return self
        if self.augment != AugmentConfig():
            changed = ", ".join(sorted(self.augment.model_dump(exclude_defaults=True)))
            raise ValueError(
                f"backbone.frozen=true computes features once, of pictures as they are: set augment={{}}, got {changed}"
            )
        if self.optimizer.backbone_learning_rate is not None:
            raise ValueError(
                "optimizer.backbone_learning_rate: backbone.frozen=true trains no backbone; set it to null"
            )
        return self


def recipe_names() -> list[str]:
    """List the recipes that come with evenkeel."""
    return sorted(Path(file.name).stem for file in _recipe_folder().iterdir() if file.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Read a classifier's recipe, as ``read_recipe`` does.

    Raises:
        TrainerError: whatever ``read_recipe`` refuses, or a recipe of another task.

    Example:
        >>> load_recipe("digits_lt", ["seed=3", "schedule.epochs=2"]).schedule.epochs
        2
    """
    recipe = read_recipe(name_or_path, overrides)
    if not isinstance(recipe, Recipe):
        raise TrainerError(f"recipe {name_or_path}: task is {recipe.task!r}; this command takes task 'classification'")
    return recipe


def read_recipe(name_or_path: str, overrides: list[str] | None = None) -> BaseRecipe:
    """Read a recipe by its name or from a file, then apply ``key=value`` overrides with dotted keys.

    Returns:
        The recipe, of the class that belongs to its task.

    Raises:
        TrainerError: no such recipe, broken YAML, an unknown key or a value that is not allowed.

    Example:
        >>> read_recipe("coco_tail_mini").task
        'detection'
    """
    settings = _read_yaml(name_or_path)
    for override in overrides or []:
        _apply(settings, override)
    try:
        kind = recipe_class(settings.get("task", "classification"))
        return kind.model_validate(settings)
    except ValidationError as error:
        raise TrainerError(f"recipe {name_or_path}: {explain(error, kind)}") from error
    except ValueError as error:
        raise TrainerError(f"recipe {name_or_path}: {error}") from error


def recipe_class(task: object) -> type[BaseRecipe]:
    """Find the class that validates the recipes of a task.

    Raises:
        ValueError: a task that is not known.
    """
    if task == "classification":
        return Recipe
    if task == "detection":
        from trainer.detection.recipe import DetectionRecipe  # noqa: PLC0415 - it builds on this module

        return DetectionRecipe
    raise ValueError(f"task: must be classification or detection, got {task!r}")


def explain(error: ValidationError, kind: type[BaseRecipe] = Recipe) -> str:
    """Say each fault of a recipe in a line: the key, the value and what is allowed."""
    faults: dict[str, list[ErrorDetails]] = {}
    for fault in error.errors():
        faults.setdefault(_key(fault), []).append(fault)
    return "\n".join(
        f"{key}: {_explain_key(key, its, kind)}" if key else _message(its[0]) for key, its in faults.items()
    )


def _key(fault: ErrorDetails) -> str:
    parts = [str(part) for part in fault["loc"]]
    if fault["type"] != "extra_forbidden":  # where several types are allowed, pydantic adds the type: no name of a key
        parts = [part for part in parts if re.fullmatch(r"\w+", part)]
    return ".".join(parts)


def _explain_key(key: str, faults: list[ErrorDetails], recipe: type[BaseRecipe]) -> str:
    kind, value = faults[0]["type"], faults[0]["input"]
    section, _, name = key.rpartition(".")
    if kind == "extra_forbidden":
        allowed = _allowed_keys(section.split("."), recipe)
        near = get_close_matches(name, allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown key with value {value!r}; {hint}allowed are {', '.join(allowed)}"
    if kind == "missing":
        remedy = "give one number more" if name.isdigit() else f"add it to the recipe or by --set {key}=..."
        return f"missing; {remedy}"
    message = "; or ".join(_message(fault) for fault in faults)
    return message if kind == "value_error" else f"{message}, got {value!r}"


def _message(fault: ErrorDetails) -> str:
    return "Must be a mapping of keys" if fault["type"] == "model_type" else fault["msg"].removeprefix("Value error, ")


def _allowed_keys(path: list[str], recipe: type[BaseRecipe]) -> list[str]:
    section: Any = recipe
    for part in path:
        section = section.model_fields[part].annotation if part in section.model_fields else None
        if section is None or not hasattr(section, "model_fields"):
            section = next((one for one in getattr(section, "__args__", ()) if hasattr(one, "model_fields")), recipe)
    return sorted(section.model_fields)


def _recipe_folder() -> Traversable:
    return resources.files("trainer") / "recipes"


def _read_yaml(name_or_path: str) -> dict[str, Any]:
    is_path = name_or_path.endswith((".yaml", ".yml"))
    file = Path(name_or_path) if is_path else _recipe_folder() / f"{name_or_path}.yaml"
    if not is_path and name_or_path not in recipe_names():
        raise TrainerError(
            f"recipe {name_or_path!r}: not known; give one of {', '.join(recipe_names())}, or the path of a .yaml file"
        )
    try:
        settings = _parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainerError(f"recipe {name_or_path}: cannot be read ({error.strerror}); check the path") from error
    except BROKEN_YAML as error:
        raise TrainerError(f"recipe {name_or_path}: not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise TrainerError(f"recipe {name_or_path}: must be a mapping of keys, got {type(settings).__name__}")
    return settings


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice in a mapping: YAML lets the last one win, unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in sorted({key for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:  # noqa: ANN401 - what YAML may hold
    return yaml.load(text, _UniqueKeys)  # noqa: S506 - a safe loader


def _apply(settings: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not all(key.split(".")):
        raise TrainerError(f"--set {override!r}: must read key=value, such as --set schedule.epochs=10")
    *sections, last = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise TrainerError(f"--set {override!r}: {section} is a value and has no keys")
    try:
        settings[last] = _parse(value)
    except BROKEN_YAML as error:
        raise TrainerError(f"--set {override!r}: the value is not valid YAML: {error}") from error
