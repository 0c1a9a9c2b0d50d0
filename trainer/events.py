"""A run's curves for TensorBoard, as event files in its folder: ``tensorboard --logdir runs``.

The checkpoint's history is the truth: whoever opens the log writes that history anew and drops the file of before, so
that a run that was killed and goes on shows each epoch once.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from trainer.checkpoint import EpochRecord
from trainer.errors import writing


class EventLog:
    """Event files of one run; epochs count from 1.

    Args:
        folder: of the run.
        history: the epochs that were done before.

    Raises:
        TrainerError: the folder cannot be written.
    """

    def __init__(self, folder: Path, history: list[EpochRecord]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - slow to load, and only training needs it

        with writing(folder):
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            # A TensorBoard that watches drops what it read of the file before.
            self._writer = SummaryWriter(str(folder), purge_step=0)
        for record in history:
            self.add(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()

    def add(self, record: EpochRecord) -> None:
        """Write what an epoch was like."""
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record.epoch + 1)
        self._writer.flush()


def scalars(record: EpochRecord) -> dict[str, float]:
    """Name the numbers of an epoch as TensorBoard groups them."""
    return {
        "loss/train": sum(record.losses) / len(record.losses),
        **{f"loss/train, {part}": value for part, value in record.loss_parts.items()},
        **({} if record.train_accuracy is None else {"accuracy/train": record.train_accuracy}),
        **{f"accuracy/train, {group}-shot": value for group, value in record.accuracy_by_group.items()},
        **{f"cosine to the direction/{group}-shot": value for group, value in record.cosine_by_group.items()},
        "learning rate": record.learning_rate,
        "images per second": record.images_per_second,
    }
