"""The loop that trains a detector: a recipe becomes a checkpoint. Knows neither files of pictures nor bundles."""

from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint import Checkpoint, EpochRecord, optimizer_tensors, restore_optimizer, save_checkpoint
from trainer.data import mixed_seed
from trainer.detection.batches import TrainingBatches
from trainer.detection.checkpoints import detection_checkpoint
from trainer.detection.data import DetectionSplits
from trainer.detection.network import CascadeMaskRCNN
from trainer.detection.recipe import DetectionRecipe
from trainer.detection.types import Batch
from trainer.distributed import (
    is_first,
    refuse_disagreement,
    share_batch_statistics,
    share_of_loss,
    spread,
    summed,
    world_size,
)
from trainer.epoch import EpochTally, EpochTimer
from trainer.optimizer import create_optimizer, set_rate
from trainer.progress import track
from trainer.schedule import learning_rate, momentum_decay
from trainer.train import computes_bf16
from trainer.training_run import refuse_divergence, refuse_other_run, run_epochs, versions_of


class DetectorTraining:
    """A detector, its optimizer and the checkpoint that both are at.

    Args:
        recipe: what to train.
        splits: on which data; the test pictures are never seen here.
        device: where.
        fetch_weights: whether to fetch pretrained weights; false where ``resume`` will bring the checkpoint's.
    """

    def __init__(
        self, recipe: DetectionRecipe, splits: DetectionSplits, device: torch.device, *, fetch_weights: bool = True
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self._splits = recipe, device, splits
        self.autocast = recipe.precision == "bf16" or (recipe.precision == "auto" and computes_bf16(device))
        self.model = create_detector(recipe, len(splits.class_names), fetch_weights=fetch_weights).on(device)
        share_batch_statistics(self.model, device)
        self.optimizer = create_optimizer(recipe.optimizer, self.model)
        self._compute = spread(self.model)
        self._batches = TrainingBatches(splits.train, recipe, len(splits.class_names), device)
        self.checkpoint: Checkpoint[DetectionRecipe] = Checkpoint(
            recipe=recipe,
            class_names=splits.class_names,
            class_counts=splits.class_counts.tolist(),
            shot_groups=list(splits.shot_groups),
            data_fingerprint=splits.fingerprint(),
            training_rows=torch.from_numpy(splits.train.rows),
            epoch=0,
            model=self.model.state_dict(),
            versions=versions_of(device) | {"precision": "bf16" if self.autocast else "fp32"},
        )

    def resume(self, folder: Path) -> None:
        """Go back to the last checkpoint of the run.

        Raises:
            TrainerError: a checkpoint of another recipe or other training data.
        """
        saved = detection_checkpoint(folder)
        rows = None if saved.training_rows is None else saved.training_rows.numpy()
        refuse_other_run(saved, self.checkpoint, remedy=self._splits.remedy(saved.data_fingerprint, rows))
        self.model.load_state_dict(saved.model)
        restore_optimizer(self.model, self.optimizer, saved.optimizer)
        saved.training_rows = self.checkpoint.training_rows
        self.checkpoint = saved
        refuse_disagreement("finished epochs", saved.epoch, self.device)
        refuse_disagreement("finished steps", saved.step, self.device)

    def run(self, folder: Path) -> None:
        """Train the epochs that are left, with a checkpoint after each, and within them as the recipe says."""
        run_epochs(self.checkpoint, folder, lambda epoch: self._epoch(epoch, folder), self._keep)

    def _keep(self) -> None:
        self.checkpoint.model = self.model.state_dict()
        self.checkpoint.optimizer = optimizer_tensors(self.model, self.optimizer)

    def _epoch(self, epoch: int, folder: Path | None = None) -> EpochRecord:
        self.model.train()
        tally, timer = EpochTally(None, self.device), EpochTimer(self.checkpoint)
        steps, first = len(self._batches.rows(epoch)), self.checkpoint.step
        if first:
            tally.load(self.checkpoint.place)
        names: list[str] = []
        rate, pictures = 0.0, 0
        left = self._batches.epoch(epoch, first)
        batches = track(left, f"epoch {epoch + 1}", total=steps, done=first, transient=True)
        for step, batch in enumerate(batches, start=first):
            # The network draws anchors and regions; drawn from here, a step is the same wherever the run began again.
            torch.manual_seed(mixed_seed(self.recipe.seed, epoch, step))
            rate = learning_rate(self.recipe.optimizer, self.recipe.schedule, epoch + step / steps)
            losses = self._step(batch, rate)
            names = sorted(losses)
            tally.add(torch.stack([losses[name] for name in names]))
            pictures += len(batch.pixels)
            if folder and self._is_due(step + 1) and step + 1 < steps:
                timer.stop()
                self._save_place(step + 1, tally, folder)
        parts = tally.state()["losses"]
        images = float(summed(torch.tensor(float(pictures), device=self.device)))
        return EpochRecord(
            epoch=epoch,
            losses=parts.sum(dim=1).tolist(),
            learning_rate=rate,
            train_accuracy=None,
            images_per_second=images / timer.stop(),
            loss_parts=dict(zip(names, parts.mean(dim=0).tolist(), strict=True)),
        )

    def _is_due(self, step: int) -> bool:
        every = self.recipe.checkpoint_steps
        return every > 0 and step % every == 0

    def _save_place(self, step: int, tally: EpochTally, folder: Path) -> None:
        """Save a checkpoint within an epoch; what the rest of it draws depends on its steps' numbers alone."""
        state = tally.state()
        refuse_divergence(self.checkpoint, state["losses"].sum(dim=1).tolist())
        self.checkpoint.step, self.checkpoint.place = step, state
        self._keep()
        if is_first():
            save_checkpoint(self.checkpoint, folder)

    def _step(self, batch: Batch, rate: float) -> dict[str, Tensor]:
        """Take a step and return the parts of the loss.

        The direction is updated after the step by the features of before it, as a classifier's is.
        """
        set_rate(self.optimizer, rate)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            losses, features = self._compute(batch)
        share = share_of_loss(len(batch.pixels), self.device) if world_size() > 1 else 1.0
        losses = {name: loss * share for name, loss in losses.items()}
        loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self.recipe.gradient_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_norm)
        self.optimizer.step()
        self.model.update_directions(features, momentum_decay=momentum_decay(self.recipe.detector.head, rate))
        return {name: loss.detach().float() for name, loss in losses.items()}


def create_detector(recipe: DetectionRecipe, num_classes: int, *, fetch_weights: bool) -> CascadeMaskRCNN:
    """Make a recipe's network for C classes."""
    return CascadeMaskRCNN(
        recipe.detector, num_classes, recipe.input.mean, recipe.input.std, fetch_weights=fetch_weights
    )
