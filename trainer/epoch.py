"""An epoch under way: what its steps add up to, its time, and its place, from which a run goes on. Knows no model.

Sums stay on the device, so that no step waits for it. Of several processes each adds up its own part; what is kept is
everyone's.
"""

import time

import torch
from torch import Tensor

from trainer.checkpoint import Checkpoint, RecipeT
from trainer.distributed import is_first, summed, world_size
from trainer.shot_statistics import ShotStatistics


class EpochTally:
    """Losses of an epoch's steps so far, and what is counted by shot group.

    Args:
        shots: what is kept by shot group; it begins anew where the epoch does. None of a detector.
        device: of the training.
    """

    def __init__(self, shots: ShotStatistics | None, device: torch.device) -> None:
        self.shots, self.device = shots, device
        self._losses: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Take in the loss of a step, or its parts [n]; ``ShotStatistics`` takes in the rest."""
        self._losses.append(loss)

    def state(self) -> dict[str, Tensor]:
        """Give everything so far, over all processes; all of them must ask."""
        losses = summed(torch.stack(self._losses)) / world_size()
        return {"losses": losses} | ({"shots": summed(self.shots.sums)} if self.shots else {})

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what was kept; the first process takes it for all."""
        share = 1.0 if is_first() else 0.0
        self._losses = [loss * share * world_size() for loss in state["losses"].to(self.device)]
        if self.shots:
            self.shots.sums.copy_(state["shots"] * share)


class EpochTimer:
    """Adds the time since it was made, or since the last stop, to what the training took."""

    def __init__(self, checkpoint: Checkpoint[RecipeT]) -> None:
        self._checkpoint = checkpoint
        self._began = self._last = time.monotonic()

    def stop(self) -> float:
        """Give the seconds since it was made."""
        now = time.monotonic()
        self._checkpoint.seconds += now - self._last
        self._last = now
        return now - self._began


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Give the state of torch's random numbers, which draw mixtures and what the network drops."""
    states = {"random": torch.get_rng_state()}
    return states | ({"random_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on with the random numbers from where they were."""
    torch.set_rng_state(state["random"])
    if device.type == "cuda" and "random_cuda" in state:
        torch.cuda.set_rng_state(state["random_cuda"], device)
