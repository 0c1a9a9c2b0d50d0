"""The training loop: a recipe becomes a checkpoint.

It knows neither where pictures come from nor what a bundle is. Weights are those of the last epoch, or their moving
average where the recipe asks for one; the test split is never seen here.
"""

from pathlib import Path

import torch
from torch import Tensor

from trainer.averaging import WeightAverage
from trainer.checkpoint import (
    Checkpoint,
    EpochRecord,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from trainer.config import Recipe
from trainer.data import Pixels, Splits
from trainer.distributed import (
    batch_mean,
    is_first,
    refuse_disagreement,
    share_batch_statistics,
    share_of_loss,
    spread,
    world_size,
)
from trainer.epoch import EpochTally, EpochTimer, random_state, restore_random
from trainer.errors import TrainerError
from trainer.losses import create_loss
from trainer.mixing import Mixture, mix
from trainer.model import LongTailClassifier
from trainer.optimizer import create_optimizer, set_rate
from trainer.passes import forward_pass
from trainer.progress import track
from trainer.schedule import learning_rate, momentum_decay
from trainer.sharpness import worst_nearby
from trainer.shot_statistics import ShotStatistics
from trainer.training_run import refuse_divergence, refuse_other_run, run_epochs, versions_of


class Training:
    """A model, its optimizer and the checkpoint that both are at.

    Args:
        recipe: what to train.
        splits: on which data; only classes and training images matter here.
        device: where.
        fetch_weights: whether to fetch pretrained weights; false where ``resume`` will bring the checkpoint's.
    """

    def __init__(self, recipe: Recipe, splits: Splits, device: torch.device, *, fetch_weights: bool = True) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.autocast = recipe.precision == "bf16" or (recipe.precision == "auto" and computes_bf16(device))
        self.model = LongTailClassifier(recipe, len(splits.class_names), fetch_weights=fetch_weights).on(device)
        share_batch_statistics(self.model, device)
        self.optimizer = create_optimizer(recipe.optimizer, self.model)
        captured = _is_captured(recipe, device)
        compiled = recipe.compile == "always" or (recipe.compile == "auto" and device.type == "cuda" and not captured)
        self._compute = forward_pass(
            spread(self.model), device, in_bf16=self.autocast, compiled=compiled, captured=captured
        )
        decay = recipe.averaging.decay
        self.average = WeightAverage(self.model, decay) if decay else None
        self._shots = ShotStatistics(splits.class_counts.tolist(), device)
        self.loss = create_loss(recipe.loss, splits.class_counts, device)
        self.checkpoint = Checkpoint(
            recipe=recipe,
            class_names=splits.class_names,
            class_counts=splits.class_counts.tolist(),
            data_fingerprint=splits.fingerprint(),
            epoch=0,
            model=self.model.state_dict(),
            versions=versions_of(device) | {"precision": "bf16" if self.autocast else "fp32"},
        )

    def resume(self, folder: Path) -> None:
        """Go back to the last checkpoint of the run.

        Raises:
            TrainerError: a checkpoint of another recipe or other training data.
        """
        saved = load_checkpoint(folder)
        refuse_other_run(saved, self.checkpoint)
        self.model.load_state_dict(saved.model)
        restore_optimizer(self.model, self.optimizer, saved.optimizer)
        if self.average and saved.average:
            self.average.load(saved.average)
        self.checkpoint = saved
        refuse_disagreement("finished epochs", saved.epoch, self.device)
        refuse_disagreement("finished steps", saved.step, self.device)

    def run(self, train: Pixels, folder: Path) -> None:
        """Train the epochs that are left, with a checkpoint after each."""
        run_epochs(self.checkpoint, folder, lambda epoch: self._epoch(train, epoch, folder), self._keep)

    def adopt_average(self, train: Pixels) -> None:
        """Make the averaged weights the model, if the recipe averages, once all epochs are done.

        The momentum direction belongs to the weights that it was gathered with, so it is gathered again: over one more
        epoch of training batches, forward only, in evaluation mode.
        """
        if self.average is None:
            return
        self.model.load_state_dict(self.average.state, strict=False)
        self.model.eval()
        self.model.head.momentum_direction.zero_()
        decay = momentum_decay(self.recipe.head, self.recipe.optimizer.learning_rate)
        batches = train.training(self.recipe.schedule.epochs)
        for pixels, _ in track(batches, "momentum direction", total=train.steps_per_epoch()):
            with torch.no_grad():
                features = self._compute(pixels)[1]
            self.model.head.update_direction(batch_mean(features), momentum_decay=decay)
        self.checkpoint.model, self.checkpoint.average = self.model.state_dict(), {}

    def _epoch(self, train: Pixels, epoch: int, folder: Path | None = None) -> EpochRecord:
        self.model.train()
        tally = EpochTally(self._shots, self.device)
        steps, first = train.steps_per_epoch(), self.checkpoint.step
        if first:
            tally.load(self.checkpoint.place)
        images, rate, timer = 0, 0.0, EpochTimer(self.checkpoint)
        batches = track(train.training(epoch, first), f"epoch {epoch + 1}", total=steps, done=first, transient=True)
        for step, (pixels, labels) in enumerate(batches, start=first):
            if step == first > 0:  # not before: an epoch draws numbers where it begins
                restore_random(self.checkpoint.place, self.device)
            progress = epoch + step / steps
            rate = learning_rate(self.recipe.optimizer, self.recipe.schedule, progress)
            mixed, mixture = mix(self.recipe.augment, pixels, progress / self.recipe.schedule.epochs)
            loss, _ = self._step(mixed, labels, rate, mixture)
            if self.average:
                self.average.update(epoch * steps + step)
            tally.add(loss)
            images += len(labels)
            if folder and self._is_due(step + 1) and step + 1 < steps:
                timer.stop()
                self._save_place(step + 1, tally, folder)
        state = tally.state()
        seen, right, _ = state["shots"].sum(dim=1).tolist()
        seconds = timer.stop()
        accuracy, cosine = self._shots.means()
        return EpochRecord(
            epoch=epoch,
            losses=state["losses"].tolist(),
            learning_rate=rate,
            train_accuracy=right / seen,
            images_per_second=images * world_size() / seconds,
            accuracy_by_group=accuracy,
            cosine_by_group=cosine,
        )

    def _is_due(self, step: int) -> bool:
        every = self.recipe.checkpoint_steps
        return every > 0 and step % every == 0

    def _save_place(self, step: int, tally: EpochTally, folder: Path) -> None:
        """Save a checkpoint within an epoch, with all that the rest of the epoch depends on."""
        state = tally.state()
        refuse_divergence(self.checkpoint, state["losses"].tolist())
        self.checkpoint.step, self.checkpoint.place = step, state | random_state(self.device)
        self._keep()
        if is_first():
            save_checkpoint(self.checkpoint, folder)

    def _step(
        self, pixels: Tensor, labels: Tensor, rate: float, mixture: Mixture | None = None
    ) -> tuple[Tensor, Tensor]:
        set_rate(self.optimizer, rate)
        loss, logits, features = self._backward(pixels, labels, mixture)
        if self.recipe.optimizer.sharpness_rho:
            logits, features = logits.detach().clone(), features.detach().clone()  # a captured pass reuses memory
            with worst_nearby(self.model, self.recipe.optimizer.sharpness_rho):
                self._backward(pixels, labels, mixture)
        self.optimizer.step()
        self.model.head.update_direction(batch_mean(features), momentum_decay=momentum_decay(self.recipe.head, rate))
        self._shots.add(logits, features, labels, self.model.head)
        return loss.detach(), logits.detach()

    def _backward(self, pixels: Tensor, labels: Tensor, mixture: Mixture | None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients at the weights as they are; gives loss, logits [N, C] and features [N, D]."""
        logits, features = self._compute(pixels)
        loss = mixture.loss(self.loss, logits, labels) if mixture else self.loss(logits, labels)
        loss = loss * share_of_loss(len(labels), self.device) if world_size() > 1 else loss
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        return loss, logits, features

    def _keep(self) -> None:
        self.checkpoint.model = self.model.state_dict()
        self.checkpoint.optimizer = optimizer_tensors(self.model, self.optimizer)
        self.checkpoint.average = self.average.state if self.average else {}


def _is_captured(recipe: Recipe, device: torch.device) -> bool:
    """Tell whether passes are captured: not beside a loader's threads, whose copies a capture does not bear."""
    fits = device.type == "cuda" and world_size() == 1 and recipe.data.in_memory
    if recipe.capture == "always" and not fits:
        raise TrainerError(
            f"capture=always: CUDA graphs need a GPU (this is {device.type}), one process (these are {world_size()}) "
            f"and data.in_memory=true (it is {str(recipe.data.in_memory).lower()}); set capture=auto"
        )
    return fits and recipe.capture != "never"


def choose_device(name: str) -> torch.device:
    """Take the device that was asked for; auto takes a GPU where there is one.

    Raises:
        TrainerError: a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise TrainerError(f"--device {name!r}: must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainerError("--device cuda: no GPU can be used here; give --device cpu, or mend the driver")
    return torch.device(name)


def computes_bf16(device: torch.device) -> bool:
    """Tell whether the device has bf16 arithmetic of its own, so that bf16 is faster than fp32 there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
