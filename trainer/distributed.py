"""Several processes that train one model: started by ``torchrun``, tied together by DistributedDataParallel.

Each process (rank) takes its part of every batch. Gradients, the momentum direction, the statistics of batch
normalisation and the recorded losses are those of the whole batch. In a process of its own, all of this does nothing.
Knows neither data nor losses.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.nn.functional import all_reduce
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from trainer.errors import TrainerError
from trainer.progress import console

PATIENCE = timedelta(hours=2)  # that ranks wait for each other; the death of one is seen at once
LAUNCHED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


class Launch:
    """What the processes of one ``torchrun`` remember together, those that it starts again included; others, nothing.

    It lies in the store of ``torchrun`` itself, and ends with it: no later one takes it for its own.
    """

    store: Store | None = None

    def note_begun(self, folder: Path) -> None:
        """Note that training into a folder has begun."""
        if self.store is not None:
            self.store.set(str(folder), "")

    def has_begun(self, folder: Path) -> bool:
        """Tell whether this ``torchrun`` has begun to train into a folder: then it goes on by itself."""
        return self.store is not None and self.store.check([str(folder)])


launch = Launch()


def join_processes(device: torch.device, batch_size: int) -> None:
    """Join the other processes, if ``torchrun`` has started this one: over nccl on GPUs, over gloo on the CPU.

    Only the first process talks from here on; each takes the GPU of its local rank.

    Raises:
        TrainerError: more processes than GPUs here, or than images in a batch.
    """
    if distributed.is_initialized() or not os.environ.keys() >= LAUNCHED:
        return
    size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0"))
    if batch_size < size:
        raise TrainerError(f"batch_size: must be at least one image for each of {size} processes, got {batch_size}")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise TrainerError(
                f"torchrun --nproc-per-node: at most one process for each of {torch.cuda.device_count()} GPUs here; "
                "start fewer, or give --device cpu"
            )
        torch.cuda.set_device(local_rank)
    store, rank, _ = next(rendezvous("env://", timeout=PATIENCE))
    launch.store = PrefixStore("training has begun into", store)
    # torchrun keeps its store over a restart, and with it the addresses of processes that are dead.
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    console.quiet = not is_first()


def leave_processes() -> bool:
    """Wait for the others, part from them, and tell whether this process is the one that goes on alone."""
    first = is_first()
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
    return first


def refuse_several_processes(command: str, remedy: str) -> None:
    """Check that ``torchrun`` has not started this process as one of several.

    Raises:
        TrainerError: it has; ``command`` is what works in one process alone.
    """
    size = int(os.environ["WORLD_SIZE"]) if os.environ.keys() >= LAUNCHED else 1
    if size > 1:
        raise TrainerError(f"torchrun: {command} works in one process, and this is one of {size}; {remedy}")


def world_size() -> int:
    """Count the processes; one where there is no group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Tell whether this process writes and speaks for all."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting for the work that is queued there, as a plain ``to`` of torch does."""
    return tensor.to(device, non_blocking=True)


def part_of(batch: Tensor) -> Tensor:
    """Take this process's part of a batch, in order; parts differ by at most one row."""
    if not distributed.is_initialized():
        return batch
    return batch.tensor_split(world_size())[distributed.get_rank()]


def summed(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes; no gradient flows through it."""
    if not distributed.is_initialized():
        return tensor
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total


def batch_mean(features: Tensor) -> Tensor:
    """Give rows whose mean is that of the whole batch: ``[1, D]``, or the features [N, D] where they are all.

    The mean is ``sum over ranks of sum(x) / sum over ranks of N``, so unequal parts count by their images.
    """
    if not distributed.is_initialized():
        return features
    sums = features.detach().sum(dim=0)
    total = summed(torch.cat((sums, sums.new_full((1,), len(features)))))
    return (total[:-1] / total[-1]).unsqueeze(0)


def share_of_loss(rows: int, device: torch.device) -> Tensor | float:
    """Compute what a part's mean loss is multiplied with, so that its mean over the ranks is the batch's mean.

    ``N_rank * ranks / N``: DistributedDataParallel takes the plain mean of the ranks' gradients.
    """
    if not distributed.is_initialized():
        return 1.0
    count = torch.full((), float(rows), device=device)
    return count * world_size() / summed(count)


def refuse_disagreement(what: str, value: int, device: torch.device) -> None:
    """Check that all processes have the same whole number.

    Raises:
        TrainerError: they differ; on every process.
    """
    if not distributed.is_initialized():
        return
    low_high = torch.tensor([-value, value], device=device)
    distributed.all_reduce(low_high, op=distributed.ReduceOp.MAX)
    if -low_high[0] != low_high[1]:
        raise TrainerError(
            f"--output: processes found {what} {-int(low_high[0])} to {int(low_high[1])} there; "
            "all machines must see the same folder"
        )


def share_batch_statistics(model: nn.Module, device: torch.device) -> None:
    """Make batch normalisation take its statistics over the whole batch, in place of a rank's part.

    On GPUs by torch's SyncBatchNorm; it has no CPU version, so there by ``WholeBatchNorm2d``.
    """
    if not distributed.is_initialized():
        return
    if device.type == "cuda":
        for name, child in list(model.named_children()):
            setattr(model, name, convert_sync_batchnorm(child))
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = WholeBatchNorm2d


def spread(model: nn.Module) -> nn.Module:
    """Wrap the model so that its gradients are averaged over the processes."""
    return DistributedDataParallel(model, broadcast_buffers=False) if distributed.is_initialized() else model


class WholeBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by mean and variance over the batch parts of all processes."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise [N, C, H, W]; in evaluation by the running statistics, as ever."""
        if not self.training:
            return super().forward(input)
        count = input.numel() // input.shape[1]
        axes = (0, 2, 3)
        total = _sum_with_gradient(torch.cat((input.sum(axes), input.new_tensor([count]))))
        images, mean = total[-1].detach(), total[:-1] / total[-1].detach()
        centred = input - mean[:, None, None]
        variance = _sum_with_gradient((centred**2).sum(axes)) / images
        self._remember(mean.detach(), variance.detach() * images / (images - 1))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return centred * scale[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def _sum_with_gradient(tensor: Tensor) -> Tensor:
    total: Any = all_reduce(tensor)
    return total  # type: ignore[no-any-return]
