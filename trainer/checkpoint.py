"""One file per checkpoint: weights, momentum direction, optimizer state and all that tells how they came about.

The format is safetensors with JSON in its header, so nothing is ever unpickled. Writing is atomic: whatever moment the
process is killed, the file that is there loads. Knows no training loop.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from typing_extensions import TypeVar

from service.bundle import ShotGroup
from trainer.config import BaseRecipe, Recipe, recipe_class
from trainer.errors import TrainerError

CHECKPOINT_FILE = "checkpoint.safetensors"
FORMAT_VERSION = "1"
MOMENTUM = "momentum_buffer"
EXTRA_TENSORS = ("dataset_mean", "sample_images", "sample_sizes", "training_rows")
RecipeT = TypeVar("RecipeT", bound=BaseRecipe, default=Recipe)


@dataclass(frozen=True)
class AlphaChoice:
    """The default alpha, how it was chosen, and the mean confounder cosine of the training images per slice [K]."""

    value: float
    chosen_by: str
    mean_cosine: list[float] = field(default_factory=list)


@dataclass
class EpochRecord:
    """What an epoch was like; by shot group the accuracy, and the mean cosine of features to the direction.

    A detector has no accuracy, but the mean of each part of its loss.
    """

    epoch: int
    losses: list[float]
    learning_rate: float
    train_accuracy: float | None
    images_per_second: float
    accuracy_by_group: dict[str, float] = field(default_factory=dict)
    cosine_by_group: dict[str, float] = field(default_factory=dict)
    loss_parts: dict[str, float] = field(default_factory=dict)


@dataclass
class Checkpoint(Generic[RecipeT]):
    """The state of a run after a number of whole epochs.

    Args:
        recipe: what was asked for.
        class_names, class_counts: of the training data [C].
        data_fingerprint: hash of the training data.
        epoch: whole epochs done.
        step: steps done of the epoch after them.
        place: what the rest of that epoch depends on (``trainer.epoch``), where steps are done.
        model: the classifier's state, its momentum direction included.
        optimizer: what it keeps (``optimizer_tensors``).
        average: the moving average of the weights while training goes on, where the recipe asks for one; at the end it
            becomes ``model``.
        history: a record per epoch.
        seconds: training time so far.
        alphas: the chosen default alpha for each direction (``ema``, ``dataset_mean``), once training has ended.
        dataset_mean: the mean feature of the training set in evaluation mode [D], once training has ended.
        sample_images: a few training pictures as the model sees them, uint8 [N, H, W, 3], once training has ended.
        sample_sizes: for detection, height and width of what of them is picture, float32 [N, 2]; zeros lie beyond.
        training_rows: for detection, which of the annotated pictures are trained on, int64 [N]; earlier runs lack them.
        shot_groups: for detection, the group of each class [C]; a classifier's follow from ``class_counts``.
        versions: of the libraries and the device that made it.
    """

    recipe: RecipeT
    class_names: list[str]
    class_counts: list[int]
    data_fingerprint: str
    epoch: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    history: list[EpochRecord] = field(default_factory=list)
    seconds: float = 0.0
    alphas: dict[str, AlphaChoice] = field(default_factory=dict)
    dataset_mean: Tensor | None = None
    sample_images: Tensor | None = None
    sample_sizes: Tensor | None = None
    training_rows: Tensor | None = None
    shot_groups: list[ShotGroup] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    step: int = 0
    place: dict[str, Tensor] = field(default_factory=dict)

    def is_finished(self) -> bool:
        """Tell whether training has ended and alpha has been chosen."""
        return bool(self.alphas)


def save_checkpoint(checkpoint: Checkpoint[RecipeT], folder: Path) -> Path:
    """Write the checkpoint whole or not at all, and flush it to the disk, before the old one gives way.

    Raises:
        TrainerError: the disk is full or the folder cannot be written; the old checkpoint is kept.
    """
    tensors = {f"model.{name}": tensor for name, tensor in checkpoint.model.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in checkpoint.optimizer.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in checkpoint.average.items()}
    tensors |= {f"place.{name}": tensor for name, tensor in checkpoint.place.items()}
    extra = {name: getattr(checkpoint, name) for name in EXTRA_TENSORS}
    tensors |= {name: tensor for name, tensor in extra.items() if tensor is not None}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(tensors, metadata={"evenkeel": FORMAT_VERSION, "state": json.dumps(_state(checkpoint))})
    target = folder / CHECKPOINT_FILE
    staging = target.with_suffix(".partial")
    try:
        with staging.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(target)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise TrainerError(
            f"{target}: cannot be written ({error.strerror}); the checkpoint before it, if any, is kept. "
            "Mend that and go on with train --resume"
        ) from error
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a classifier's checkpoint from its file or from the run's folder; raises as ``read_checkpoint`` does."""
    return read_checkpoint(path, Recipe)


def describe_checkpoint(path: Path) -> Checkpoint:
    """Read a classifier's checkpoint but for its tensors, which may be large; raises as ``read_checkpoint`` does."""
    return read_checkpoint(path, Recipe, with_tensors=False)


def read_checkpoint(path: Path, kind: type[RecipeT], *, with_tensors: bool = True) -> Checkpoint[RecipeT]:
    """Read a checkpoint from its file or from the run's folder.

    Args:
        path: of either.
        kind: which recipes will do; ``BaseRecipe`` takes those of every task.
        with_tensors: false leaves out weights and all other tensors.

    Raises:
        TrainerError: no file, a file that is not a checkpoint, one of another format version, or of another task.
    """
    file = _file_of(path)
    metadata, tensors = _read(file, with_tensors=with_tensors)
    try:
        state = json.loads(metadata["state"])
        recipe = recipe_class(_task_in(state)).model_validate(state["recipe"])
        if isinstance(recipe, kind):
            return _restore(state, recipe, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, error) from error
    raise TrainerError(f"{file}: is a run of task {recipe.task!r}, and this is not for that task; name another run")


def task_of(path: Path) -> str:
    """Tell the task of a run by its folder or checkpoint; raises as ``read_checkpoint`` does."""
    file = _file_of(path)
    metadata, _ = _read(file, with_tensors=False)
    try:
        return str(_task_in(json.loads(metadata["state"])))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, error) from error


def finished_checkpoint(folder: Path) -> Checkpoint:
    """Load the checkpoint of a classifier's run that has ended; raises as ``refuse_unfinished`` does."""
    return refuse_unfinished(load_checkpoint(folder), folder)


def refuse_unfinished(checkpoint: Checkpoint[RecipeT], folder: Path) -> Checkpoint[RecipeT]:
    """Return the checkpoint of a run that has ended.

    Raises:
        TrainerError: training has not ended.
    """
    if not checkpoint.is_finished():
        raise TrainerError(
            f"{folder}: training has done {checkpoint.epoch} of {checkpoint.recipe.schedule.epochs} epochs; "
            "finish it with train --resume"
        )
    return checkpoint


def _file_of(path: Path) -> Path:
    file = path / CHECKPOINT_FILE if path.is_dir() else path
    if not file.is_file():
        raise TrainerError(f"{file}: no checkpoint there; name a run's folder, as given to train --output")
    return file


def _read(file: Path, *, with_tensors: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            names = opened.keys() if with_tensors else ()
            tensors = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise TrainerError(
            f"{file}: is not a readable checkpoint ({error}); put a whole copy there, or remove it and train again"
        ) from error
    if metadata.get("evenkeel") != FORMAT_VERSION:
        raise TrainerError(
            f"{file}: has checkpoint format {metadata.get('evenkeel')!r}, this version reads {FORMAT_VERSION!r}; "
            "use the version of evenkeel that wrote it"
        )
    return metadata, tensors


def _damaged(file: Path, error: Exception) -> TrainerError:
    return TrainerError(
        f"{file}: its description is damaged or of another version ({type(error).__name__}: {error}); "
        "use the version of evenkeel that wrote it"
    )


def _task_in(state: dict[str, Any]) -> object:
    return state["recipe"].get("task", "classification")  # runs of earlier releases do not name it


def _state(checkpoint: Checkpoint[RecipeT]) -> dict[str, Any]:
    return {
        "recipe": checkpoint.recipe.model_dump(mode="json"),
        "class_names": checkpoint.class_names,
        "class_counts": checkpoint.class_counts,
        "data_fingerprint": checkpoint.data_fingerprint,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "history": [asdict(record) for record in checkpoint.history],
        "seconds": checkpoint.seconds,
        "alphas": {direction: asdict(choice) for direction, choice in checkpoint.alphas.items()},
        "shot_groups": checkpoint.shot_groups,
        "versions": checkpoint.versions,
    }


def _restore(state: dict[str, Any], recipe: RecipeT, tensors: dict[str, Tensor]) -> Checkpoint[RecipeT]:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    state["recipe"] = recipe
    state["history"] = [EpochRecord(**record) for record in state["history"]]
    state["alphas"] = {direction: AlphaChoice(**choice) for direction, choice in state["alphas"].items()}
    return Checkpoint(
        **state,
        model=part("model."),
        optimizer=part("optimizer."),
        average=part("average."),
        place=part("place."),
        dataset_mean=tensors.get("dataset_mean"),
        sample_images=tensors.get("sample_images"),
        sample_sizes=tensors.get("sample_sizes"),
        training_rows=tensors.get("training_rows"),
    )


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name SGD's momentum buffers by their parameters, and what other optimizers keep by parameter and part."""
    return {
        name if part == MOMENTUM else f"{name}:{part}": tensor
        for name, parameter in model.named_parameters()
        for part, tensor in optimizer.state.get(parameter, {}).items()
        if tensor is not None
    }


def restore_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put what the optimizer kept back to its parameters.

    Raises:
        TrainerError: it has another shape than its parameter.
    """
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        name, _, part = key.partition(":")
        parameter = parameters[name]
        if part == "step":  # AdamW's own count: on the CPU, but for a fused one where the parameter is
            place = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
            kept = tensor.to(place, copy=True)
        elif tensor.shape != parameter.shape:
            raise TrainerError(
                f"the checkpoint's optimizer keeps {list(tensor.shape)} of {key}, whose parameter is "
                f"{list(parameter.shape)}: the file is damaged; train anew without --resume"
            )
        else:  # laid out as the parameter is, in memory too: a fused step on a GPU refuses anything else
            kept = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        optimizer.state[parameter][part or MOMENTUM] = kept
