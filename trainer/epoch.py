"""An epoch under way: what its steps add up to, and its place, from which a stopped run goes on. Knows no model.

Sums stay on the device, so that no step waits for it. Of several processes each adds up its own part; what is kept is
everyone's.
"""

import torch
from torch import Tensor

from trainer.distributed import is_first, summed, world_size
from trainer.shot_statistics import ShotStatistics


class EpochTally:
    """Losses of an epoch's steps so far, and what is counted by shot group.

    Args:
        shots: what is kept by shot group; it begins anew where the epoch does.
        device: of the training.
    """

    def __init__(self, shots: ShotStatistics, device: torch.device) -> None:
        self.shots, self.device = shots, device
        self._losses: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Take in the loss of a step; ``ShotStatistics`` takes in the rest."""
        self._losses.append(loss)

    def state(self) -> dict[str, Tensor]:
        """Give everything so far, over all processes; all of them must ask."""
        return {
            "losses": summed(torch.stack(self._losses)) / world_size(),
            "shots": summed(self.shots.sums),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what was kept; the first process takes it for all."""
        share = 1.0 if is_first() else 0.0
        self._losses = [loss * share * world_size() for loss in state["losses"].to(self.device)]
        self.shots.sums.copy_(state["shots"] * share)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Give the state of torch's random numbers, which draw mixtures and what the network drops."""
    states = {"random": torch.get_rng_state()}
    return states | ({"random_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on with the random numbers from where they were."""
    torch.set_rng_state(state["random"])
    if device.type == "cuda" and "random_cuda" in state:
        torch.cuda.set_rng_state(state["random_cuda"], device)
