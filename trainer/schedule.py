"""The learning rate over the epochs, and the momentum decay that may follow it: pure functions of the recipe."""

import math

from trainer.config import HeadConfig, OptimizerConfig, ScheduleConfig


def learning_rate(optimizer: OptimizerConfig, schedule: ScheduleConfig, progress: float) -> float:
    """Compute the learning rate at a point of training.

    Args:
        optimizer: holds the base rate.
        schedule: warm-up and decay.
        progress: epochs done, with a fraction within the epoch (steps decay by whole epochs all the same).

    Example:
        >>> schedule = ScheduleConfig(epochs=200, decay="steps", milestones=(120, 160))
        >>> [learning_rate(OptimizerConfig(learning_rate=0.2), schedule, epoch) for epoch in (0, 120, 160)]
        [0.2, 0.002, 2e-05]
    """
    base = optimizer.learning_rate
    if progress < schedule.warmup_epochs:
        return base * (schedule.warmup_start + (1 - schedule.warmup_start) * progress / schedule.warmup_epochs)
    if schedule.decay == "steps":
        return base * schedule.step_factor ** sum(progress >= milestone for milestone in schedule.milestones)
    if schedule.decay == "cosine":
        # A warm-up as long as the whole schedule leaves no epoch to decay over.
        share = (progress - schedule.warmup_epochs) / max(schedule.epochs - schedule.warmup_epochs, 1)
        return base * (1 + math.cos(math.pi * share)) / 2
    return base


def momentum_decay(head: HeadConfig, rate: float) -> float:
    """Compute mu for one step: as set, or ``1 - 0.1 * min(50 * learning rate, 1)`` where coupled.

    Example:
        >>> momentum_decay(HeadConfig(momentum_decay="coupled"), 0.01)
        0.95
    """
    if head.momentum_decay == "coupled":
        return 1 - 0.1 * min(50 * rate, 1)
    return head.momentum_decay
