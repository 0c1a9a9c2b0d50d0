"""The forward pass as training runs it: in bf16 where it is asked for, compiled, or captured as CUDA graphs.

A step of a small network is hundreds of kernels of a few microseconds each, and launching them one by one takes the
processor longer than the GPU needs for them. A CUDA graph launches all of a pass as one.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from trainer.epoch import random_state, restore_random
from trainer.errors import TrainerError
from trainer.model import channels_last

Pass = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps pixels [N, 3, H, W] (or features [N, D]) to logits [N, C] and features [N, D]."""


def forward_pass(model: nn.Module, device: torch.device, *, in_bf16: bool, compiled: bool, captured: bool) -> Pass:
    """Make the forward pass of a model; backward through it is ``torch.autograd.backward`` as ever.

    Args:
        model: maps pixels to logits and features; on the device.
        device: where it is.
        in_bf16: whether under autocast to bf16.
        compiled: by ``torch.compile``, for each size of a batch.
        captured: as CUDA graphs, likewise. What a captured pass gives lasts until the next one.
    """
    run = _Cast(_compiled(model) if compiled else model, device, in_bf16=in_bf16)
    return _Captured(model, run) if captured else run


class _Cast(nn.Module):
    """Runs a model under autocast, or as it is."""

    def __init__(self, model: Pass, device: torch.device, *, in_bf16: bool) -> None:
        super().__init__()
        self.model, self.device, self.in_bf16 = model, device, in_bf16

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        # No pass uses a weight twice, so nothing is gained by keeping the cast ones; a graph must not keep them.
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.in_bf16, cache_enabled=False):
            logits, features = self.model(channels_last(pixels))
        return logits, features


class _Captured:
    """Runs training passes as CUDA graphs, one for each size of a batch (an epoch has two), others as they are."""

    def __init__(self, model: nn.Module, run: _Cast) -> None:
        self._model, self._run = model, run
        self._graphs: dict[torch.Size, Pass] = {}
        torch.backends.cudnn.benchmark = True  # sizes stay, so it pays to try which convolution is fastest

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if not (self._model.training and torch.is_grad_enabled()):
            logits, features = self._run(pixels)
            return logits, features
        if pixels.shape not in self._graphs:
            self._graphs[pixels.shape] = self._capture(channels_last(pixels).clone())
        return self._graphs[pixels.shape](channels_last(pixels))

    def _capture(self, sample: Tensor) -> Pass:
        """Capture the passes; what warms them up leaves running statistics and random numbers as they were."""
        buffers = list(self._model.buffers())
        kept = [buffer.clone() for buffer in buffers]
        once = _Cast(self._run.model, self._run.device, in_bf16=self._run.in_bf16)  # what is captured loses its forward
        random = random_state(self._run.device)
        try:
            graph = torch.cuda.make_graphed_callables(once, (sample,), allow_unused_input=True)
        except RuntimeError as error:
            raise TrainerError(
                f"capture: the passes cannot be captured as CUDA graphs for batches of {len(sample)} ({error}); set "
                "capture=never, or a smaller batch_size if memory is short"
            ) from error
        restore_random(random, self._run.device)
        with torch.no_grad():
            torch._foreach_copy_(buffers, kept)
        return cast("Pass", graph)


def _compiled(model: nn.Module) -> Pass:
    """Compile a model, with kernels for each size of a batch: an epoch has two, and one kernel for both is slower.

    What was compiled for models before it is forgotten, as torch keeps a few graphs only and then compiles no more.
    """
    torch.compiler.reset()
    torch.backends.cudnn.benchmark = True
    compiled: Pass = torch.compile(model, dynamic=False)
    return compiled
