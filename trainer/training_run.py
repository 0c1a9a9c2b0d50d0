"""What the training of every task has in common: epochs one by one, each kept in a checkpoint before the next begins.

Knows neither models nor data: what an epoch does, its caller says.
"""

import platform
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from trainer.checkpoint import Checkpoint, EpochRecord, RecipeT, save_checkpoint
from trainer.distributed import is_first, world_size
from trainer.errors import TrainerError
from trainer.events import EventLog
from trainer.progress import console, progress_bar


def run_epochs(
    checkpoint: Checkpoint[RecipeT], folder: Path, train: Callable[[int], EpochRecord], keep: Callable[[], None]
) -> None:
    """Train the epochs that are left, with a checkpoint and a point of the curves after each.

    Args:
        checkpoint: where the run is; it grows.
        folder: of the run.
        train: trains one epoch.
        keep: puts the present state of model and optimizer into the checkpoint.

    Raises:
        TrainerError: the loss is not finite any more; the last checkpoint stays.
    """
    epochs = checkpoint.recipe.schedule.epochs
    log = EventLog(folder, checkpoint.history) if is_first() else nullcontext()
    with log as events, progress_bar() as bar:
        task = bar.add_task("training", total=epochs, completed=checkpoint.epoch)
        for epoch in range(checkpoint.epoch, epochs):
            record = train(epoch)
            refuse_divergence(checkpoint, record.losses)
            checkpoint.epoch, checkpoint.step, checkpoint.place = epoch + 1, 0, {}
            checkpoint.history.append(record)
            keep()
            if is_first():
                save_checkpoint(checkpoint, folder)
            if events:
                events.add(record)
            bar.update(task, advance=1, description=f"training, loss {sum(record.losses) / len(record.losses):.3f}")
            if not console.is_terminal:
                console.print(_line(record, epochs), highlight=False, soft_wrap=True)


def refuse_other_run(
    saved: Checkpoint[RecipeT], wanted: Checkpoint[RecipeT], *, remedy: str = "give the same --data"
) -> None:
    """Check that a checkpoint is one of the run that is to go on.

    Raises:
        TrainerError: it is of another recipe, or of other training data, for which there is the remedy.
    """
    before, now = _flat(saved.recipe.model_dump(mode="json")), _flat(wanted.recipe.model_dump(mode="json"))
    # Where the pictures lie may change; which pictures they are may not, and the fingerprint holds that. All decoders
    # give the same pixels.
    may_change = (
        "data.source",
        "data.cache",
        "data.num_workers",
        "input.decoder",
        "checkpoint_steps",
        "compile",
        "capture",
    )
    differing = [key for key in now if before.get(key) != now[key] and key not in may_change]
    if differing:
        changes = "; ".join(f"{key}: {before.get(key)!r} then, {now[key]!r} now" for key in differing)
        raise TrainerError(f"--resume: the run was begun with another recipe ({changes}); use another --output")
    if saved.data_fingerprint != wanted.data_fingerprint:
        raise TrainerError(f"--resume: the run was begun on other training data; {remedy}")


def refuse_other_classes(checkpoint: Checkpoint[RecipeT], class_names: list[str]) -> None:
    """Check that data has the classes that a model knows.

    Raises:
        TrainerError: it has others, or in another order.
    """
    if class_names != checkpoint.class_names:
        raise TrainerError(
            f"--data: its classes ({_in_short(class_names)}) are not those that the model was trained on "
            f"({_in_short(checkpoint.class_names)}); give the data set of the training"
        )


def refuse_divergence(checkpoint: Checkpoint[RecipeT], losses: list[float]) -> None:
    """Check the losses of the epoch that follows a checkpoint.

    Raises:
        TrainerError: one is not finite.
    """
    if not all(abs(loss) < float("inf") for loss in losses):
        kept = "the last checkpoint is kept" if checkpoint.epoch or checkpoint.step else "there is no checkpoint yet"
        raise TrainerError(
            f"the loss became {losses[-1]} in epoch {checkpoint.epoch + 1}; {kept}. "
            f"Lower optimizer.learning_rate ({checkpoint.recipe.optimizer.learning_rate}) or set precision=fp32"
        )


def versions_of(device: torch.device) -> dict[str, str]:
    """Say with what a run is made: Python, torch, and the device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    name += f", {world_size()} processes" if world_size() > 1 else ""
    return {"python": platform.python_version(), "torch": torch.__version__, "device": f"{device.type}: {name}"}


def _line(record: EpochRecord, epochs: int) -> str:
    accuracy = "" if record.train_accuracy is None else f"train accuracy {record.train_accuracy:.3f}  "
    parts = "".join(f"{name} {value:.3f}  " for name, value in record.loss_parts.items())
    speed = f"{record.images_per_second:.{0 if record.images_per_second >= 10 else 1}f} images/s"
    return (
        f"epoch {record.epoch + 1}/{epochs}  loss {sum(record.losses) / len(record.losses):.4f}  "
        f"{parts}{accuracy}lr {record.learning_rate:.3g}  {speed}"
    )


def _in_short(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _flat(settings: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
