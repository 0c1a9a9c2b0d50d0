"""The moving average of a model's weights over training, and the momentum direction that belongs to it.

``average <- decay * average + (1 - decay) * weights`` after every step, running statistics of batch normalisation
included. In the first steps the decay is smaller, ``(1 + step) / (10 + step)``, so that the random start is forgotten.
"""

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of all floating-point entries of a model's state.

    Args:
        model: the model that is trained.
        decay: share of the average that stays at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        # The model's own tensors, gathered once: they are changed in place, and a step has no time for it.
        self._weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        self.state = {name: tensor.clone() for name, tensor in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights in after a step, counted from 0 over the whole training."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.state.values()), list(self._weights.values()), 1 - decay)

    def load(self, state: dict[str, Tensor]) -> None:
        """Go back to a saved average, laid out in memory as the weights are: all of it is updated at once then."""
        self.state = {name: torch.empty_like(tensor).copy_(state[name]) for name, tensor in self.state.items()}
